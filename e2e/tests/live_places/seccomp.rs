//! Filters of system calls, seccomp(2).

use std::fmt::Write as _;

use syscalls::Sysno;

/// Which calls fail, and how.
pub(crate) struct Filter {
    refused: Vec<(u32, u32)>,
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// What containerd's default profile refuses to a container without capabilities, of what there is on x86-64.
/// <https://github.com/containerd/containerd/blob/main/contrib/seccomp/seccomp_default.go>
const RUNTIME_DEFAULT: &str = "syslog uselib ustat sysfs vhangup pivot_root _sysctl chroot acct settimeofday mount \
    umount2 swapon swapoff reboot sethostname setdomainname iopl ioperm create_module init_module delete_module \
    get_kernel_syms query_module quotactl nfsservctl getpmsg putpmsg afs_syscall tuxcall security lookup_dcookie \
    clock_settime vserver mbind set_mempolicy get_mempolicy kexec_load add_key request_key keyctl migrate_pages unshare \
    move_pages perf_event_open fanotify_init open_by_handle_at setns kcmp finit_module kexec_file_load bpf userfaultfd \
    io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount fspick pidfd_getfd \
    process_madvise mount_setattr quotactl_fd set_mempolicy_home_node";

/// What installs a filter and executes the rest of its arguments.
const INSTALL: &str = r#"
import ctypes, os, sys
code = bytes.fromhex(sys.argv[1])
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + 4 * [ctypes.c_void_p]
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
program = Program(len(code) // 8, code)
for done in (
    prctl(PR_SET_NO_NEW_PRIVS, 1, None, None, None),
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), None, None),
):
    if done:
        raise OSError(ctypes.get_errno(), "prctl")
os.execvp(sys.argv[2], sys.argv[2:])
"#;

fn number(name: &str) -> u32 {
    let call: Sysno = name.parse().unwrap_or_else(|()| panic!("no call {name}"));
    u32::try_from(call.id()).unwrap()
}

impl Filter {
    /// As a container's runtime has it unless it is told otherwise.
    pub(crate) fn runtime_default() -> Self {
        let mut filter = Self::refusing(&RUNTIME_DEFAULT.split(' ').collect::<Vec<_>>());
        // The C library falls back to clone only then.
        filter.refused.push((number("clone3"), ENOSYS));
        filter
    }

    /// These calls are not permitted.
    pub(crate) fn refusing(names: &[&str]) -> Self {
        Self {
            refused: names.iter().map(|name| (number(name), EPERM)).collect(),
        }
    }

    pub(crate) fn and_refusing(mut self, names: &[&str]) -> Self {
        self.refused.extend(Self::refusing(names).refused);
        self
    }

    /// The program, in hexadecimal: `struct sock_filter` is a code, two jumps and a number.
    fn program(&self) -> String {
        // `BPF_LD|BPF_W|BPF_ABS`, `BPF_JMP|BPF_JEQ|BPF_K`, `BPF_RET|BPF_K`; `SECCOMP_RET_ERRNO`.
        const LOAD: u16 = 0x20;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        const FAIL: u32 = 0x0005_0000;
        const ALLOW: (u16, u8, u8, u32) = (RETURN, 0, 0, 0x7fff_0000);
        let mut program: Vec<(u16, u8, u8, u32)> = vec![(LOAD, 0, 0, 0)];
        for (number, errno) in &self.refused {
            program.push((JUMP_IF_EQUAL, 0, 1, *number));
            program.push((RETURN, 0, 0, FAIL | errno));
        }
        program.push(ALLOW);
        let mut text = String::new();
        for (code, yes, no, number) in program {
            let [low, high] = code.to_le_bytes();
            for byte in [low, high, yes, no].into_iter().chain(number.to_le_bytes()) {
                write!(text, "{byte:02x}").unwrap();
            }
        }
        text
    }
}

/// What executes its last arguments under the filter, with this Python.
pub(crate) fn through(python: &str, filter: &Filter) -> Vec<String> {
    vec![
        python.to_owned(),
        "-c".to_owned(),
        INSTALL.to_owned(),
        filter.program(),
    ]
}
