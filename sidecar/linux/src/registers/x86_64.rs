//! The registers of x86-64, and the frame of a signal that was never sent, through which the kernel puts all of them back.
//!
//! <https://github.com/torvalds/linux/blob/master/arch/x86/include/uapi/asm/sigcontext.h>, `ucontext.h`.

use std::io;

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace;
use nix::unistd::Pid;
use sidewinder_decode::native::{self, Entry};

use super::Interrupted;

/// How much of a thread's stack a call in place may need below its stack pointer, in bytes: with less, what runs there
/// ends with a `MemoryError`.
pub const CALL_STACK: u64 = 128 << 10;

/// `ERESTARTSYS`, `ERESTARTNOINTR`, `ERESTARTNOHAND`, `ERESTART_RESTARTBLOCK` of the kernel.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;
/// `syscall` is two bytes long.
const SYSCALL_BYTES: u64 = 2;
/// What a function may keep below the stack pointer: System V ABI, AMD64 supplement, 3.2.2.
const RED_ZONE: u64 = 128;
/// The most that the processor's extended state takes: about 11 KiB with AMX.
const MAX_EXTENDED_STATE: usize = 64 << 10;
/// Where the software's own bytes stand in the extended state, and the marks that say that they and the end are there.
const SOFTWARE_BYTES: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`.
const UC_FLAGS: u64 = 7;
/// `struct ucontext` with the kernel's 64-bit signal mask.
const UCONTEXT_BYTES: u64 = 304;
/// The five words of the chain of return addresses in front of it.
const CHAIN_BYTES: u64 = 40;
const DIRECTION_FLAG: u64 = 1 << 10;

/// The registers of a thread that stands still.
#[derive(Clone, Copy, Debug)]
pub struct Registers(pub(crate) user_regs_struct);

impl Registers {
    /// The system call that it is in.
    pub fn call(&self) -> Option<u64> {
        i64::try_from(self.0.orig_rax)
            .ok()
            .filter(|call| *call >= 0)
            .map(i64::cast_unsigned)
    }

    /// That call's arguments.
    pub fn arguments(&self) -> [u64; 6] {
        let regs = &self.0;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]
    }

    /// How the call was interrupted; `None` when it was not: the thread runs its own code, or the call is done.
    pub fn interrupted(&self) -> Option<Interrupted> {
        self.call()?;
        match self.0.rax.cast_signed().checked_neg()? {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Some(Interrupted::Restarts),
            ERESTART_RESTARTBLOCK => Some(Interrupted::Resumes),
            error if error == i64::from(libc::EINTR) => Some(Interrupted::Returns),
            _ => None,
        }
    }

    /// The stack pointer.
    pub fn stack_pointer(&self) -> u64 {
        self.0.rsp
    }

    /// Where the C library keeps what belongs to the thread: at the upper end of a stack that it has made for it.
    pub fn thread_pointer(&self) -> u64 {
        self.0.fs_base
    }

    /// What unwinding begins with.
    pub fn unwind(&self) -> native::Registers {
        let regs = &self.0;
        native::Registers {
            rip: regs.rip,
            rsp: regs.rsp,
            rbp: regs.rbp,
            rbx: regs.rbx,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
        }
    }

    /// The same in another call.
    pub(super) fn with_call(mut self, number: u64) -> Self {
        self.0.orig_rax = number;
        self
    }

    /// The same with the call returning this error to whoever made it.
    pub(crate) fn returning(&self, errno: Errno) -> Self {
        let mut regs = self.0;
        regs.rax = (-i64::from(errno as i32)).cast_unsigned();
        // Not in a system call any more, so that the kernel does not replace it.
        regs.orig_rax = u64::MAX;
        Self(regs)
    }

    /// The same with the call about to be made again, as the kernel would have it; one that returns `EINTR` in any case
    /// does.
    pub(crate) fn again(&self) -> Self {
        let mut regs = self.0;
        if self.interrupted() != Some(Interrupted::Returns) {
            regs.rax = regs.orig_rax;
            regs.rip = regs.rip.wrapping_sub(SYSCALL_BYTES);
        }
        regs.orig_rax = u64::MAX;
        Self(regs)
    }
}

/// The processor's extended state as `PTRACE_GETREGSET` gives it: the layout of `XSAVE`.
fn extended_state(tid: Pid) -> Result<Vec<u8>, Errno> {
    let mut state = vec![0_u8; MAX_EXTENDED_STATE];
    let mut vector = libc::iovec {
        iov_base: state.as_mut_ptr().cast(),
        iov_len: state.len(),
    };
    // NT_X86_XSTATE of elf(5).
    let kind = std::ptr::without_provenance_mut::<libc::c_void>(0x202);
    // SAFETY: the vector describes memory that lives for the call, of which the kernel writes at most its length.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            tid.as_raw(),
            kind,
            (&raw mut vector).cast::<libc::c_void>(),
        )
    };
    Errno::result(done)?;
    state.truncate(vector.iov_len);
    Ok(state)
}

/// The signals that the thread blocks.
fn signal_mask(tid: Pid) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    let size = std::ptr::without_provenance_mut::<libc::c_void>(size_of::<u64>());
    // SAFETY: the kernel writes eight bytes, as it was told, into a word that lives for the call.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_GETSIGMASK,
            tid.as_raw(),
            size,
            (&raw mut mask).cast::<libc::c_void>(),
        )
    };
    Errno::result(done).map(|_| mask)
}

/// The registers of a thread that stands still.
pub(crate) fn read(tid: Pid) -> Result<Registers, Errno> {
    ptrace::getregs(tid).map(Registers)
}

/// Has a thread that stands still go on with these.
pub(crate) fn set(tid: Pid, registers: &Registers) -> Result<(), Errno> {
    ptrace::setregs(tid, registers.0)
}

/// Has a thread that stands still make the call of [`Frame`] before it goes on as `then` says.
pub(crate) fn call(
    tid: Pid,
    then: &Registers,
    entry: &Entry,
    thread_state: u64,
    write: impl FnOnce(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let frame = Frame::new(
        then,
        &extended_state(tid)?,
        signal_mask(tid)?,
        entry,
        thread_state,
    )
    .ok_or_else(|| io::Error::other("there is no room below the thread's stack pointer"))?;
    write(frame.at, &frame.bytes)?;
    Ok(set(tid, &frame.registers)?)
}

/// A call of `PyErr_CheckSignals` in a thread that waits: what to write below its stack, and its registers.
///
/// It takes the GIL, calls, gives the GIL back, and returns into the frame of a signal that never was, through which the
/// kernel puts every register back: `PyEval_RestoreThread(tstate)`, `PyErr_CheckSignals()`, `PyEval_SaveThread()`,
/// `rt_sigreturn`. No code is written, and nothing but dead stack is touched.
#[derive(Debug)]
struct Frame {
    /// Where the bytes go.
    at: u64,
    /// What is written there.
    bytes: Vec<u8>,
    /// Where the thread goes on.
    registers: Registers,
}

impl Frame {
    /// `then` are the registers with which the thread goes on after the call.
    fn new(
        then: &Registers,
        extended: &[u8],
        mask: u64,
        entry: &Entry,
        thread_state: u64,
    ) -> Option<Self> {
        let regs = &then.0;
        let size = u32::try_from(extended.len()).ok()?;
        let extended_bytes = u64::from(size).checked_add(4)?;
        let top = regs.rsp.checked_sub(RED_ZONE)?;
        let state_at = top.checked_sub(extended_bytes)? & !63;
        let context_at = state_at.checked_sub(UCONTEXT_BYTES)? & !15;
        // The stack pointer at the entry of a function is 8 less than a multiple of 16.
        let start = context_at.checked_sub(CHAIN_BYTES)?;
        let length =
            usize::try_from(state_at.checked_add(extended_bytes)?.checked_sub(start)?).ok()?;
        let mut bytes = Vec::with_capacity(length);
        let mut word = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
        // A bare `ret` between two calls keeps the alignment.
        for address in [
            entry.ret,
            entry.check_signals,
            entry.ret,
            entry.save_thread,
            entry.sigreturn,
        ] {
            word(address.0);
        }
        word(UC_FLAGS);
        // uc_link, and a uc_stack of no size, which the kernel does not take: the thread keeps the one it has.
        for _ in 0..4 {
            word(0);
        }
        for value in [
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            regs.rdi,
            regs.rsi,
            regs.rbp,
            regs.rbx,
            regs.rdx,
            regs.rax,
            regs.rcx,
            regs.rsp,
            regs.rip,
            regs.eflags,
        ] {
            word(value);
        }
        // cs, gs, fs and ss, 16 bits each; the kernel takes the first and the last.
        word((regs.cs & 0xffff) | ((regs.ss & 0xffff) << 48));
        // err, trapno, oldmask, cr2
        for _ in 0..4 {
            word(0);
        }
        word(state_at);
        for _ in 0..8 {
            word(0);
        }
        word(mask);
        bytes.resize(usize::try_from(state_at.checked_sub(start)?).ok()?, 0);
        let from = bytes.len();
        bytes.extend_from_slice(extended);
        bytes.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
        let software = bytes.get_mut(from.checked_add(SOFTWARE_BYTES)?..)?;
        let features = software.get(..8)?.to_vec();
        for (place, value) in [
            (0..4, FP_XSTATE_MAGIC1.to_le_bytes().as_slice()),
            (4..8, size.checked_add(4)?.to_le_bytes().as_slice()),
            (8..16, features.as_slice()),
            (16..20, size.to_le_bytes().as_slice()),
        ] {
            software.get_mut(place)?.copy_from_slice(value);
        }
        let mut registers = *regs;
        registers.rsp = start;
        registers.rip = entry.restore_thread.0;
        registers.rdi = thread_state;
        registers.orig_rax = u64::MAX;
        registers.eflags &= !DIRECTION_FLAG;
        Some(Self {
            at: start,
            bytes,
            registers: Registers(registers),
        })
    }
}

#[cfg(test)]
mod tests {
    use sidewinder_decode::Addr;

    use super::*;

    fn registers() -> Registers {
        // SAFETY: a structure of numbers, for which zero is a value.
        let mut regs: user_regs_struct = unsafe { std::mem::zeroed() };
        regs.rsp = 0x7fff_0000_1238;
        regs.rip = 0x1002;
        regs.orig_rax = 202;
        regs.rax = (-ERESTARTSYS).cast_unsigned();
        regs.r8 = 8;
        regs.rcx = 99;
        regs.cs = 0x33;
        regs.ss = 0x2b;
        regs.eflags = 0x246 | DIRECTION_FLAG;
        Registers(regs)
    }

    fn with(rax: i64) -> Registers {
        let mut regs = registers();
        regs.0.rax = rax.cast_unsigned();
        regs
    }

    #[test]
    fn a_call_that_was_interrupted_is_told_from_one_that_is_done() {
        for (rax, interrupted) in [
            (-512, Some(Interrupted::Restarts)),
            (-513, Some(Interrupted::Restarts)),
            (-514, Some(Interrupted::Restarts)),
            (-516, Some(Interrupted::Resumes)),
            (-4, Some(Interrupted::Returns)),
            (-110, None),
            (17, None),
            (0, None),
            (i64::MIN, None),
        ] {
            assert_eq!(with(rax).interrupted(), interrupted, "{rax}");
        }
        let mut outside = with(-512);
        outside.0.orig_rax = u64::MAX;
        assert_eq!((outside.call(), outside.interrupted()), (None, None));
    }

    #[test]
    fn a_call_is_made_again_from_its_instruction_and_one_that_returns_eintr_does() {
        let again = registers().again().0;
        assert_eq!(
            (again.rip, again.rax, again.orig_rax),
            (0x1000, 202, u64::MAX)
        );
        let returns = with(-4).again().0;
        assert_eq!(
            (returns.rip, returns.rax.cast_signed(), returns.orig_rax),
            (0x1002, -4, u64::MAX)
        );
        let failed = registers().returning(Errno::ETIMEDOUT).0;
        assert_eq!(
            (failed.rip, failed.rax.cast_signed(), failed.orig_rax),
            (0x1002, -110, u64::MAX)
        );
    }

    #[test]
    fn a_resumed_wait_is_made_again_as_what_it_was() {
        let mut resumed = with(-516);
        resumed.0.orig_rax = 219;
        resumed.0.rdi = 0x1000;
        assert!(resumed.resumed(None).is_none());
        assert!(resumed.resumed(Some((7, [0; 6]))).is_none());
        let arguments = [0x1000, 0, 0, 0, 8, 0];
        let known = resumed.resumed(Some((7, arguments))).unwrap();
        assert_eq!(known.call_name(), Some("poll"));
        assert_eq!(known.again().0.rax, 7);
        // Any other call stands for itself.
        let other = registers().resumed(Some((7, arguments))).unwrap();
        assert_eq!(other.call_name(), Some("futex"));
    }

    #[test]
    fn a_frame_lies_below_the_red_zone_and_is_what_the_kernel_reads() {
        let entry = Entry {
            restore_thread: Addr(1),
            check_signals: Addr(2),
            save_thread: Addr(3),
            ret: Addr(4),
            sigreturn: Addr(5),
        };
        let mut extended = vec![0_u8; 832];
        extended[SOFTWARE_BYTES] = 7;
        let then = registers();
        let frame = Frame::new(&then, &extended, 0xff00, &entry, 77).unwrap();
        let word = |at: usize| u64::from_le_bytes(frame.bytes[at..at + 8].try_into().unwrap());
        let chain: Vec<u64> = (0..5).map(|n| word(n * 8)).collect();
        assert_eq!(chain, [4, 2, 4, 3, 5]);
        assert_eq!(frame.at % 16, 8);
        assert!(frame.at + frame.bytes.len() as u64 <= then.0.rsp - RED_ZONE);
        // The context begins where the stack pointer is when rt_sigreturn is called.
        let context = 40;
        assert_eq!(word(context), UC_FLAGS);
        let machine = context + 40;
        assert_eq!((word(machine), word(machine + 14 * 8)), (8, 99));
        assert_eq!(word(machine + 15 * 8), then.0.rsp);
        assert_eq!(word(machine + 18 * 8), 0x33 | (0x2b << 48));
        let state_at = word(machine + 23 * 8);
        assert_eq!(state_at % 64, 0);
        assert_eq!(word(context + 296), 0xff00);
        let state = usize::try_from(state_at - frame.at).unwrap();
        let half = |at: usize| u32::from_le_bytes(frame.bytes[at..at + 4].try_into().unwrap());
        assert_eq!(half(state + 464), FP_XSTATE_MAGIC1);
        assert_eq!(half(state + 468), 836);
        assert_eq!(word(state + 472), 7);
        assert_eq!(half(state + 480), 832);
        assert_eq!(half(state + 832), FP_XSTATE_MAGIC2);
        let regs = frame.registers.0;
        assert_eq!((regs.rip, regs.rdi, regs.rsp), (1, 77, frame.at));
        assert_eq!((regs.eflags, regs.orig_rax), (0x246, u64::MAX));
    }

    #[test]
    fn a_stack_pointer_at_the_bottom_of_memory_has_no_room() {
        let mut then = registers();
        then.0.rsp = 300;
        let entry = Entry {
            restore_thread: Addr(1),
            check_signals: Addr(2),
            save_thread: Addr(3),
            ret: Addr(4),
            sigreturn: Addr(5),
        };
        assert!(Frame::new(&then, &[0; 832], 0, &entry, 0).is_none());
    }
}
