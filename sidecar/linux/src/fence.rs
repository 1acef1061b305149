//! The fence around reading: a thread that the kernel lets read other processes and change none of them.
//!
//! It is a filter of system calls, seccomp(2), of one thread, which the threads that it starts inherit and nobody can
//! take off again. What is not listed fails with EPERM: the call that was forgotten is an answer with a problem in it,
//! not the end of the agent, and a call that a later kernel brings is refused from the start, as are those of the x32
//! ABI, whose numbers are others: <https://docs.kernel.org/userspace-api/seccomp_filter.html#pitfalls>. Only a call that
//! pretends to another architecture ends the process.
//!
//! A filter cannot follow pointers. So openat2(2) is refused as a whole, and clone3(2) let through: what it starts,
//! thread or process, is behind the same fence and executes nothing. The memory of this process is shared with threads
//! that are not fenced; what is read under the fence therefore gets nothing by which one of those could be told to
//! write.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use nix::libc::{self, c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is,
    SeccompCondition as Argument, SeccompFilter, SeccompRule, apply_filter,
};

/// Why nothing was read: not without the fence.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// There is no filter for this machine.
    #[error("no filter of system calls could be made, behind which targets are read")]
    Build(#[source] BackendError),
    /// There can be no further thread.
    #[error("no thread could be started to read in")]
    Thread,
    /// The kernel has no such filters, or something refuses them.
    #[error(
        "the kernel did not take the filter of system calls behind which targets are read, and without it nothing is: it \
         needs CONFIG_SECCOMP_FILTER, and a seccomp profile of this container that allows seccomp(2) and prctl(2), as \
         RuntimeDefault does"
    )]
    Install(#[source] seccompiler::Error),
}

/// What is done behind the fence.
type Work = Box<dyn FnOnce() + Send>;

/// Does work behind the fence, in a thread of its own, and waits for it. A panic of the work goes on here.
///
/// # Errors
/// [`FenceError`]; the work was not begun then.
pub fn read_only<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FenceError> {
    let (reply, answer) = channel();
    let work = Box::new(move || {
        // Whoever asked waits for it.
        let _ = reply.send(catch_unwind(AssertUnwindSafe(work)));
    });
    gate()?.send(work).map_err(|_| FenceError::Thread)?;
    match answer.recv() {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(FenceError::Thread),
    }
}

/// The way in, opened by the first who needs it. Where it could not be, the next one tries again.
fn gate() -> Result<Sender<Work>, FenceError> {
    static GATE: Mutex<Option<Sender<Work>>> = Mutex::new(None);
    let mut gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gate) = &*gate {
        return Ok(gate.clone());
    }
    Ok(gate.insert(open()?).clone())
}

/// Starts a thread that stands behind the fence and starts one for everything that is to be done there, which inherits the
/// fence: that takes some tens of microseconds, as any thread does, while the kernel works on a new filter for one or two
/// milliseconds. A call takes a quarter of a microsecond longer behind it.
fn open() -> Result<Sender<Work>, FenceError> {
    let filter = build().map_err(FenceError::Build)?;
    let (gate, inbox) = channel::<Work>();
    let (ready, installed) = channel();
    let gatekeeper = move || {
        // It sets no_new_privs as well, of this thread alone.
        let applied = apply_filter(&filter);
        let failed = applied.is_err();
        // Whoever opens waits for it.
        let _ = ready.send(applied);
        if failed {
            return;
        }
        for work in inbox {
            // Where there can be no thread, the work is dropped, which whoever waits for it is told.
            let _ = thread("reader", work);
        }
    };
    thread("fence", gatekeeper).map_err(|_| FenceError::Thread)?;
    match installed.recv() {
        Ok(Ok(())) => Ok(gate),
        Ok(Err(error)) => Err(FenceError::Install(error)),
        Err(_) => Err(FenceError::Thread),
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop)
}

fn build() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    for (call, arguments) in conditional() {
        let conditions = arguments.into_iter().map(Condition::build);
        let conditions = conditions.collect::<Result<_, _>>()?;
        let rule = SeccompRule::new(conditions)?;
        rules.entry(call).or_default().push(rule);
    }
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

/// What may be called with any arguments: it reads, or concerns this process alone.
const ALLOWED: &[c_long] = &[
    // Memory, threads and time of our own.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_futex,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getrandom,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    libc::SYS_uname,
    // Who we are.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    // Files, which the rules below open to be read.
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_dup,
    libc::SYS_ppoll,
    // Other processes.
    libc::SYS_process_vm_readv,
    libc::SYS_pidfd_open,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // The kernel's table of sockets, through the one kind of socket that can be made, and the name of a socket's protocol.
    libc::SYS_getxattr,
    libc::SYS_bind,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    // Older ways to say the same, which other architectures never had.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// Flags that open a file for more than to be read, or make one. `O_TMPFILE` without the flags it is made of.
const WRITING: c_int = libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_TRUNC
    | libc::O_APPEND
    | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// One argument of a call, and what it has to be.
struct Condition(u8, Width, Is, u64);

impl Condition {
    fn build(self) -> Result<Argument, BackendError> {
        Argument::new(self.0, self.1, self.2, self.3)
    }
}

/// The bits of a number as the kernel gets it.
fn bits(number: c_int) -> u64 {
    u64::from(number.cast_unsigned())
}

/// An argument that the kernel takes as 32 bits.
fn is(index: u8, number: c_int) -> Condition {
    Condition(index, Width::Dword, Is::Eq, bits(number))
}

/// An argument of all 64 bits.
fn whole(index: u8, number: u64) -> Condition {
    Condition(index, Width::Qword, Is::Eq, number)
}

/// These bits of an argument, of 32.
fn masked(index: u8, mask: c_int, number: c_int) -> Condition {
    Condition(index, Width::Dword, Is::MaskedEq(bits(mask)), bits(number))
}

/// What may be called with some arguments; each line is a way.
fn conditional() -> Vec<(c_long, Vec<Condition>)> {
    let mut calls = vec![
        (libc::SYS_openat, vec![masked(2, WRITING, 0)]),
        // What may not be executed cannot be put into memory to be executed; and what another thread shares with a target
        // cannot be mapped.
        (
            libc::SYS_mmap,
            vec![
                masked(2, libc::PROT_EXEC, 0),
                masked(3, libc::MAP_TYPE, libc::MAP_PRIVATE),
            ],
        ),
        (libc::SYS_mprotect, vec![masked(2, libc::PROT_EXEC, 0)]),
        // What a panic says. Other descriptors of this process may lead into a target.
        (libc::SYS_write, vec![is(0, libc::STDERR_FILENO)]),
        (libc::SYS_writev, vec![is(0, libc::STDERR_FILENO)]),
        // Our own limits and priority, not those of others.
        (libc::SYS_prlimit64, vec![whole(2, 0)]),
        (libc::SYS_getpriority, vec![is(0, 0), is(1, 0)]),
        (libc::SYS_setpriority, vec![is(0, 0), is(1, 0)]),
        (
            libc::SYS_socket,
            vec![is(0, libc::AF_NETLINK), is(2, libc::NETLINK_SOCK_DIAG)],
        ),
        // Without a second socket there is nobody else to send to but the kernel, which is named.
        (
            libc::SYS_sendto,
            vec![
                Condition(4, Width::Qword, Is::Ne, 0),
                is(5, NETLINK_ADDRESS),
            ],
        ),
    ];
    #[cfg(target_arch = "x86_64")]
    calls.push((libc::SYS_open, vec![masked(1, WRITING, 0)]));
    for command in [libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC] {
        calls.push((libc::SYS_fcntl, vec![is(1, command)]));
    }
    calls.push((libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME)]));
    calls.extend(ptrace());
    calls
}

/// `sizeof(struct sockaddr_nl)`.
const NETLINK_ADDRESS: c_int = 12;

/// `_NSIG`, the highest signal.
const LAST_SIGNAL: u64 = 64;

/// Stopping threads and letting them go. Options are none: `PTRACE_O_EXITKILL` would end the target with us.
fn ptrace() -> Vec<(c_long, Vec<Condition>)> {
    let request = |number: libc::c_uint| whole(0, number.into());
    vec![
        (
            libc::SYS_ptrace,
            vec![request(libc::PTRACE_SEIZE), whole(3, 0)],
        ),
        (libc::SYS_ptrace, vec![request(libc::PTRACE_INTERRUPT)]),
        // A thread that stopped on the way to a signal gets it when it is let go; without, the signal would be lost. The
        // kernel gives it one only there, and SIGKILL stops nobody on its way.
        (
            libc::SYS_ptrace,
            vec![
                request(libc::PTRACE_DETACH),
                Condition(3, Width::Qword, Is::Le, LAST_SIGNAL),
                Condition(3, Width::Qword, Is::Ne, bits(libc::SIGKILL)),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests;
