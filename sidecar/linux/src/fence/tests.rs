#![expect(
    unsafe_code,
    reason = "what no crate offers is tried as well, with arguments that no call keeps"
)]

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::*;

/// A process to do something to: it waits for its standard input to end.
struct Victim(Child);

impl Victim {
    fn start() -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        let victim = Self(child);
        let limit = Instant::now() + Duration::from_secs(20);
        // Its stack is that of the shell before.
        while std::fs::read_to_string(format!("/proc/{}/comm", victim.0.id())).unwrap() != "cat\n" {
            assert!(Instant::now() < limit);
            std::thread::yield_now();
        }
        victim
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    /// The last bytes of its stack: the name of the file that it executes.
    fn name_at(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.0.id())).unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let end = stack.split(['-', ' ']).nth(1).unwrap();
        usize::from_str_radix(end, 16).unwrap() - 16
    }

    fn write_into(&self, at: usize, bytes: &[u8]) -> Result<(), Errno> {
        let remote = RemoteIoVec {
            base: at,
            len: bytes.len(),
        };
        process_vm_writev(self.pid(), &[IoSlice::new(bytes)], &[remote]).map(drop)
    }

    fn memory(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", self.0.id()))
            .unwrap()
    }

    fn name(&self, at: usize) -> [u8; 4] {
        let mut bytes = [0; 4];
        self.memory().read_exact_at(&mut bytes, at as u64).unwrap();
        bytes
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn number<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn call(number: c_long, of: [usize; 6]) -> Result<c_long, Errno> {
    // SAFETY: the calls of these tests have arguments that point nowhere or at memory that outlives them.
    Errno::result(unsafe { libc::syscall(number, of[0], of[1], of[2], of[3], of[4], of[5]) })
}

#[test]
fn nothing_behind_the_fence_writes_into_a_process_and_all_before_it_does() {
    let victim = Arc::new(Victim::start());
    let at = victim.name_at();
    let open = Arc::new(victim.memory());
    victim.write_into(at, b"1111").unwrap();
    assert_eq!(&victim.name(at), b"1111");
    let (prey, file) = (victim.clone(), open.clone());
    read_only(move || {
        let (victim, open) = (prey, file);
        assert_eq!(victim.write_into(at, b"2222"), Err(Errno::EPERM));
        assert_eq!(
            number(open.write_all_at(b"2222", at as u64)),
            Some(libc::EPERM)
        );
        assert_eq!(number((&*open).write(b"2222")), Some(libc::EPERM));
        for write in [true, false] {
            let again = File::options()
                .read(!write)
                .write(write)
                .open(format!("/proc/{}/mem", victim.0.id()));
            assert_eq!(number(again), write.then_some(libc::EPERM));
        }
        // Who is started from there is there.
        std::thread::scope(|scope| {
            let other = scope.spawn(|| victim.write_into(at, b"3333"));
            assert_eq!(other.join().unwrap(), Err(Errno::EPERM));
        });
    })
    .unwrap();
    assert_eq!(&victim.name(at), b"1111");
    victim.write_into(at, b"4444").unwrap();
    open.write_all_at(b"5555", at as u64).unwrap();
    assert_eq!(&victim.name(at), b"5555");
}

#[test]
fn a_thread_that_is_held_behind_the_fence_is_not_changed_and_goes_on() {
    let mut victim = Victim::start();
    let pid = victim.pid();
    let tracing = move |request: u64, data: usize| {
        let id = usize::try_from(pid.as_raw()).unwrap();
        call(
            libc::SYS_ptrace,
            [usize::try_from(request).unwrap(), id, 0, data, 0, 0],
        )
    };
    // By their numbers, of which a C library knows only some: linux/ptrace.h.
    let changing: [(&str, u64); 19] = [
        ("TRACEME", 0),
        ("POKETEXT", 4),
        ("POKEDATA", 5),
        ("POKEUSR", 6),
        ("CONT", 7),
        ("KILL", 8),
        ("SINGLESTEP", 9),
        ("SETREGS", 13),
        ("SETFPREGS", 15),
        ("ATTACH", 16),
        ("SYSCALL", 24),
        ("SETOPTIONS", 0x4200),
        ("SETSIGINFO", 0x4203),
        ("SETREGSET", 0x4205),
        ("SETSIGMASK", 0x420b),
        ("SECCOMP_GET_FILTER", 0x420c),
        ("SET_SYSCALL_USER_DISPATCH_CONFIG", 0x4210),
        ("ARCH_PRCTL", 30),
        ("SEIZE in the upper half", 0x1_0000_4206),
    ];
    read_only(move || {
        assert_eq!(
            ptrace::seize(pid, ptrace::Options::PTRACE_O_EXITKILL),
            Err(Errno::EPERM)
        );
        ptrace::seize(pid, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(pid).unwrap();
        waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        for (name, request) in changing {
            assert_eq!(tracing(request, 0), Err(Errno::EPERM), "{name}");
        }
        for signal in [9, 65, usize::MAX] {
            assert_eq!(
                tracing(libc::PTRACE_DETACH.into(), signal),
                Err(Errno::EPERM)
            );
        }
        tracing(libc::PTRACE_DETACH.into(), 0).unwrap();
    })
    .unwrap();
    let mut pipes = (
        victim.0.stdin.take().unwrap(),
        victim.0.stdout.take().unwrap(),
    );
    pipes.0.write_all(b"!").unwrap();
    let mut echo = [0];
    pipes.1.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"!");
    // The control: before the fence the kernel lets these through, or finds something else wrong with them.
    ptrace::seize(pid, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    for request in [0x4200, 0x4203, 0x4205, 0x420b] {
        assert_ne!(tracing(request, 0), Err(Errno::EPERM), "{request:#x}");
    }
}

#[test]
fn files_are_opened_to_be_read_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "kept").unwrap();
    let shared = File::options().read(true).write(true).open(&path).unwrap();
    let mapped = shared.as_raw_fd();
    let map = move |flags: c_int| {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        call(
            libc::SYS_mmap,
            [0, 4096, bits(protection), bits(flags), bits(mapped), 0]
                .map(|n| usize::try_from(n).unwrap_or_default()),
        )
    };
    let (file, parent, own) = (
        path.clone(),
        folder.path().to_owned(),
        shared.try_clone().unwrap(),
    );
    read_only(move || {
        let (path, folder, shared) = (file, parent, own);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
        let mut options = File::options();
        for tried in [
            options.write(true).clone(),
            options.read(true).clone(),
            options.truncate(true).clone(),
            File::options().append(true).clone(),
            File::options().write(true).create(true).clone(),
        ] {
            assert_eq!(number(tried.open(&path)), Some(libc::EPERM), "{tried:?}");
        }
        for flags in [
            libc::O_CREAT,
            libc::O_TRUNC,
            libc::O_TMPFILE | libc::O_RDWR,
            3,
        ] {
            let opened = nix::fcntl::open(
                &path,
                nix::fcntl::OFlag::from_bits_retain(flags),
                nix::sys::stat::Mode::empty(),
            );
            assert_eq!(opened.err(), Some(Errno::EPERM), "{flags:#o}");
        }
        assert_eq!(number(std::fs::remove_file(&path)), Some(libc::EPERM));
        assert_eq!(number(std::fs::rename(&path, "/tmp/x")), Some(libc::EPERM));
        assert_eq!(
            number(std::fs::create_dir(folder.join("d"))),
            Some(libc::EPERM)
        );
        assert_eq!(number(shared.set_len(0)), Some(libc::EPERM));
        assert_eq!(map(libc::MAP_SHARED), Err(Errno::EPERM));
        assert!(map(libc::MAP_PRIVATE).is_ok());
        assert_eq!(number(Command::new("/bin/true").spawn()), Some(libc::EPERM));
    })
    .unwrap();
    assert!(map(libc::MAP_SHARED).is_ok());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
}

#[test]
fn what_reaches_other_processes_the_machine_or_another_identity_is_refused() {
    let own = usize::try_from(std::process::id()).unwrap();
    // Where the kernel would find something else wrong with the arguments for whoever may, which root may.
    let refused: &[(&str, c_long)] = &[
        ("kill", libc::SYS_kill),
        ("tkill", libc::SYS_tkill),
        ("tgkill", libc::SYS_tgkill),
        ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo),
        ("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("process_madvise", libc::SYS_process_madvise),
        ("process_mrelease", libc::SYS_process_mrelease),
        ("openat2", libc::SYS_openat2),
        ("execve", libc::SYS_execve),
        ("execveat", libc::SYS_execveat),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("io_uring_enter", libc::SYS_io_uring_enter),
        ("pwrite64", libc::SYS_pwrite64),
        ("pwritev", libc::SYS_pwritev),
        ("pwritev2", libc::SYS_pwritev2),
        ("sendfile", libc::SYS_sendfile),
        ("splice", libc::SYS_splice),
        ("tee", libc::SYS_tee),
        ("vmsplice", libc::SYS_vmsplice),
        ("copy_file_range", libc::SYS_copy_file_range),
        ("sendmsg", libc::SYS_sendmsg),
        ("sendmmsg", libc::SYS_sendmmsg),
        ("connect", libc::SYS_connect),
        ("ioctl", libc::SYS_ioctl),
        ("setuid", libc::SYS_setuid),
        ("setgid", libc::SYS_setgid),
        ("setreuid", libc::SYS_setreuid),
        ("setresuid", libc::SYS_setresuid),
        ("setresgid", libc::SYS_setresgid),
        ("setgroups", libc::SYS_setgroups),
        ("setfsuid", libc::SYS_setfsuid),
        ("capset", libc::SYS_capset),
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("move_mount", libc::SYS_move_mount),
        ("setns", libc::SYS_setns),
        ("unshare", libc::SYS_unshare),
        ("chroot", libc::SYS_chroot),
        ("pivot_root", libc::SYS_pivot_root),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("keyctl", libc::SYS_keyctl),
        ("memfd_create", libc::SYS_memfd_create),
        ("sched_setaffinity", libc::SYS_sched_setaffinity),
        ("sched_setattr", libc::SYS_sched_setattr),
        ("ioprio_set", libc::SYS_ioprio_set),
        ("move_pages", libc::SYS_move_pages),
        ("init_module", libc::SYS_init_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("reboot", libc::SYS_reboot),
        ("fchmodat", libc::SYS_fchmodat),
        ("fchownat", libc::SYS_fchownat),
        ("unlinkat", libc::SYS_unlinkat),
        ("linkat", libc::SYS_linkat),
        ("symlinkat", libc::SYS_symlinkat),
        ("mknodat", libc::SYS_mknodat),
        ("setxattr", libc::SYS_setxattr),
        ("a call that there is not yet", 4000),
        #[cfg(target_arch = "x86_64")]
        ("process_vm_writev of the x32 ABI", 0x4000_0000 + 540),
        #[cfg(target_arch = "x86_64")]
        ("write of the x32 ABI", 0x4000_0000 + 1),
    ];
    read_only(move || {
        for (name, number) in refused {
            assert_eq!(call(*number, [usize::MAX; 6]), Err(Errno::EPERM), "{name}");
        }
        let others = [
            (libc::SYS_prlimit64, [own, 0, 1, 0, 0, 0]),
            (libc::SYS_setpriority, [0, own, 0, 0, 0, 0]),
            (libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
            (libc::SYS_socket, [2, 2, 0, 0, 0, 0]),
            (libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
            (libc::SYS_fcntl, [2, 4, 0, 0, 0, 0]),
            (libc::SYS_prctl, [4, 1, 0, 0, 0, 0]),
        ];
        for (number, arguments) in others {
            assert_eq!(
                call(number, arguments),
                Err(Errno::EPERM),
                "{number} {arguments:?}"
            );
        }
    })
    .unwrap();
    // The control: it is the fence that said no.
    for number in [libc::SYS_kill, libc::SYS_openat2, libc::SYS_pwrite64, 4000] {
        assert_ne!(call(number, [usize::MAX; 6]), Err(Errno::EPERM), "{number}");
    }
}

#[test]
fn what_reading_needs_of_the_standard_library_works() {
    let answer = read_only(|| {
        let threads: Vec<_> = (0..4_u64)
            .map(|number| std::thread::spawn(move || vec![number; 1 << 20].iter().sum::<u64>()))
            .collect();
        let sum: u64 = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum();
        std::thread::sleep(Duration::from_millis(1));
        let (sender, receiver) = std::sync::mpsc::channel();
        assert!(receiver.recv_timeout(Duration::from_millis(1)).is_err());
        sender.send(sum).unwrap();
        eprintln!("a word");
        crate::hardening::give_back_memory();
        drop(crate::priority::Urgent::begin());
        receiver.recv().unwrap()
    });
    assert_eq!(answer.unwrap(), 6 << 20);
}

#[test]
fn a_panic_behind_the_fence_goes_on_before_it() {
    let caught = std::panic::catch_unwind(|| read_only(|| panic!("of the work")));
    let said = caught.unwrap_err();
    assert_eq!(said.downcast_ref(), Some(&"of the work"));
}

#[test]
fn where_the_kernel_takes_no_filter_there_is_no_way_in() {
    // Behind the fence seccomp(2) is refused.
    let refused = read_only(|| open().map(drop).map_err(|error| error.to_string()));
    let refused = refused.unwrap().unwrap_err();
    assert!(refused.contains("CONFIG_SECCOMP_FILTER"), "{refused}");
}

#[test]
fn sockets_have_their_names_behind_it() {
    use crate::Process;
    use crate::descriptors::Descriptors;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    let unbound = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
    let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    let from = connected.local_addr().unwrap();
    let [unbound_at, listens_at, connected_at] = [
        unbound.as_raw_fd(),
        listener.as_raw_fd(),
        connected.as_raw_fd(),
    ]
    .map(i32::cast_unsigned);
    let described = read_only(move || {
        let process = Process::open(std::process::id().cast_signed()).unwrap();
        let mut descriptors = Descriptors::new(&process);
        [unbound_at, listens_at, connected_at].map(|number| descriptors.describe(number))
    })
    .unwrap();
    assert_eq!(
        described,
        [
            format!("fd {unbound_at}: TCP socket"),
            format!("fd {listens_at}: TCP socket {at}, LISTEN"),
            format!("fd {connected_at}: TCP socket {from} -> {at}, ESTABLISHED"),
        ]
    );
}
