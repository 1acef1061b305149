//! Where a script is put for a target, and as whom.

use std::path::Path;

use crate::live::{self, Enter, Python, Start, Target};
use crate::seccomp::{self, Filter};
use crate::sidecars::Sidecar;

/// Says where each script comes from.
const PROGRAM: &str = r#"
import sys, time
def hook(event, arguments):
    if event == "cpython.remote_debugger_script":
        print(arguments[0], flush=True)
sys.addaudithook(hook)
print("ready", flush=True)
while True: time.sleep(0.01)
"#;
pub(crate) const USER: (u32, u32, u32) = (4711, 4712, 4713);
/// What a container's root has unless it is told otherwise.
const CONTAINER: &str = ",+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";
/// Folders of its own, where others that run in the same root would be seen.
pub(crate) const PRIVATE: &str =
    "for folder in dev/shm tmp var/tmp; do mount -t tmpfs -o mode=1777 none $root/$folder; done";
/// A root that nobody writes to.
const READ_ONLY: &str = "mount --bind $root $root && mount -o remount,bind,ro $root && for folder in dev/shm tmp var/tmp; do mount -t tmpfs -o ro none $root/$folder; done";
/// The folders of it that may hold a file of ours.
const FOLDERS: [&str; 7] = ["/", "/dev/shm", "/tmp", "/var/tmp", "/run", "/srv", "/mnt"];

fn tmpfs(folder: &str, options: &str) -> String {
    format!("mount -t tmpfs -o mode=1777{options} none $root{folder}")
}

/// Our files that a target could see.
pub(crate) fn files(target: &Target) -> Vec<String> {
    FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(target.path(folder)).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains(".sidewinder-"))
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

/// A script runs, on the way that is named by how it begins, and nothing is left.
fn runs(target: &Target, sidecar: &Sidecar, way: &str) {
    runs_in(target, target.pid, sidecar, way);
}

/// The same with the number under which the sidecar knows the target.
fn runs_in(target: &Target, pid: i32, sidecar: &Sidecar, way: &str) {
    let before = target.traces();
    let answered = sidecar.exec_in(pid, "print('said')\n6 * 7", &[]);
    let (document, said) = (&answered.document, &answered.said);
    assert_eq!(
        (answered.code, &document["reason"], &document["stdout"]),
        (0, &"Succeeded".into(), &"said\n".into()),
        "{document} {said}"
    );
    assert_eq!(document["value"], "42");
    assert_eq!(document["disarmed"], true);
    let path = target.line();
    assert!(path.starts_with(way), "{path} is not {way}: {said}");
    assert_eq!(target.traces(), before);
    assert_eq!(files(target), Vec::<String>::new());
}

/// Nothing runs: the exit code, the reason, and what is said.
fn refused(target: &Target, sidecar: &Sidecar, reason: &str, says: &[&str]) {
    let before = target.traces();
    let answered = sidecar.exec(target, "1", &["--start", "1s"]);
    assert!(
        answered.said.starts_with(&format!("{reason}: ")),
        "{}",
        answered.said
    );
    for text in says {
        assert!(answered.said.contains(text), "no {text}: {}", answered.said);
    }
    assert_eq!(answered.code, 3);
    assert_eq!(target.traces(), before);
    assert_eq!(files(target), Vec::<String>::new());
}

fn start(python: Python) -> Start<'static> {
    Start {
        python,
        program: PROGRAM,
        proc: true,
        setup: PRIVATE,
        ..Start::default()
    }
}

fn any_user_and_group_as_ptrace_and_as_the_same_user(python: Python) {
    let target = Start {
        user: Some(USER),
        ..start(python)
    }
    .start();
    for sidecar in [Sidecar::root(), Sidecar::ptrace(), Sidecar::same_user(USER)] {
        runs(&target, &sidecar, "/proc/");
    }
}

fn root_with_and_without_capabilities(python: Python) {
    for capabilities in ["", CONTAINER] {
        let bounding = format!("--bounding-set=-all{capabilities}");
        let target = Start {
            through: &["setpriv", "--inh-caps=-all", &bounding],
            ..start(python)
        }
        .start();
        for sidecar in [Sidecar::ptrace(), Sidecar::same_root(capabilities)] {
            runs(&target, &sidecar, "/proc/");
        }
    }
}

fn a_root_that_is_read_only_and_one_without_proc(python: Python) {
    let setup = [READ_ONLY, &tmpfs("/dev/shm", "")].join(" && ");
    for (proc, way) in [(true, "/proc/"), (false, "/dev/shm/.sidewinder-")] {
        let target = Start {
            setup: &setup,
            proc,
            user: Some(USER),
            ..start(python)
        }
        .start();
        for sidecar in [Sidecar::ptrace(), Sidecar::same_user(USER)] {
            runs(&target, &sidecar, way);
        }
    }
}

fn a_folder_for_shared_memory_that_is_not_to_be_had(python: Python) {
    let tmp = tmpfs("/tmp", "");
    for (shm, way) in [
        (tmpfs("/dev/shm", ",noexec,nosuid,nodev"), "/dev/shm/"),
        // Missing.
        (tmpfs("/dev", ""), "/tmp/"),
        // Too small.
        (tmpfs("/dev/shm", ",size=4k"), "/tmp/"),
        // Full.
        (
            format!(
                "{} && head -c 4M /dev/zero > $root/dev/shm/full",
                tmpfs("/dev/shm", ",size=4M")
            ),
            "/tmp/",
        ),
        // Without room for another name.
        (tmpfs("/dev/shm", ",nr_inodes=2"), "/tmp/"),
        (
            format!(
                "{} && mount -o remount,ro $root/dev/shm",
                tmpfs("/dev/shm", "")
            ),
            "/tmp/",
        ),
        // Closed to whoever is not its owner.
        (
            "mount -t tmpfs -o mode=755 none $root/dev/shm".to_owned(),
            "/tmp/",
        ),
    ] {
        let setup = [READ_ONLY, &tmp, &shm].join(" && ");
        let target = Start {
            setup: &setup,
            proc: false,
            user: Some(USER),
            ..start(python)
        }
        .start();
        for sidecar in [Sidecar::ptrace(), Sidecar::same_user(USER)] {
            runs(&target, &sidecar, way);
        }
    }
}

fn the_only_folder_that_can_be_written_is_anywhere(python: Python) {
    // On a disk, and nobody but its user may enter it.
    let volume = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(volume.path(), Some(USER.0), Some(USER.1)).unwrap();
    let volume = format!("mount --bind {} $root/srv", volume.path().display());
    for folder in [tmpfs("/srv", ""), volume] {
        let setup = [READ_ONLY, &folder].join(" && ");
        let target = Start {
            setup: &setup,
            proc: false,
            user: Some(USER),
            ..start(python)
        }
        .start();
        for sidecar in [Sidecar::ptrace(), Sidecar::same_user(USER)] {
            runs(&target, &sidecar, "/srv/.sidewinder-");
        }
    }
}

fn a_target_that_went_into_a_root_of_its_own(python: Python) {
    // With nothing in it, but that it is its owner's.
    let program = format!(
        "import os, asyncio\nos.mkdir('/srv/jail', 0o755)\nos.chown('/srv/jail', 4711, 4712)\nos.chroot('/srv/jail')\nos.chdir('/')\nos.setgroups([])\nos.setresgid(4712, 4712, 4712)\nos.setresuid(4711, 4711, 4711)\n{PROGRAM}"
    );
    let setup = [READ_ONLY, &tmpfs("/srv", "")].join(" && ");
    let target = Start {
        setup: &setup,
        program: &program,
        ..start(python)
    }
    .start();
    runs(&target, &Sidecar::ptrace(), "/.sidewinder-");
    assert!(Path::new(&target.path("/")).exists());
}

fn a_result_in_a_folder_that_is_full(python: Python) {
    let setup = [READ_ONLY, &tmpfs("/dev/shm", ",size=4M")].join(" && ");
    let target = Start {
        setup: &setup,
        proc: false,
        user: Some(USER),
        ..start(python)
    }
    .start();
    let runs_to_its_end = |script: &str| {
        let answered = Sidecar::ptrace().exec(&target, script, &["--timeout", "20s"]);
        assert_eq!(
            answered.document["reason"], "Succeeded",
            "{}",
            answered.said
        );
        assert_eq!(answered.document["value"], "42");
        assert!(target.line().starts_with("/dev/shm/"));
        answered.document
    };
    // What does not fit is cut.
    let document = runs_to_its_end("for i in range(40_000): print('x' * 99)\n6 * 7");
    assert_eq!(document["clipped"]["stdout"], 4_000_000);
    let kept = document["stdout"].as_str().unwrap().len();
    assert!((200_000..1_000_000).contains(&kept), "{kept}");
    // Whatever the script fills it with.
    let document = runs_to_its_end(
        "import os\nfile = open('/dev/shm/full', 'wb', buffering=0)\ntry:\n    while True: file.write(bytes(4096))\nexcept OSError as error: print(error.errno)\nfile.close()\n6 * 7",
    );
    assert_eq!(document["stdout"], "28\n");
    std::fs::remove_file(target.path("/dev/shm/full")).unwrap();
    runs(&target, &Sidecar::ptrace(), "/dev/shm/");
}

fn a_signal_that_a_script_consumed_comes_back_on_every_way(python: Python) {
    // Nobody but its user and CAP_KILL may send it one.
    for proc in [true, false] {
        let target = Start {
            program: "import time\nprint('ready', flush=True)\ntry:\n    while True: time.sleep(0.01)\nexcept KeyboardInterrupt: print('application', flush=True)\nwhile True: time.sleep(0.01)",
            proc,
            user: Some(USER),
            ..start(python)
        }
        .start();
        let answered = Sidecar::ptrace().exec(
            &target,
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10)",
            &[],
        );
        let document = &answered.document;
        assert_eq!(
            document["exception"]["type"], "KeyboardInterrupt",
            "{document}"
        );
        assert_eq!(document["signals"], serde_json::json!(["SIGINT"]));
        assert_eq!(document["stderr"], "");
        assert_eq!(target.line(), "application");
    }
}

fn nowhere_to_put_a_script(python: Python) {
    let setup = [READ_ONLY, &tmpfs("/dev/shm", ",size=4k")].join(" && ");
    let target = Start {
        setup: &setup,
        proc: false,
        user: Some(USER),
        ..start(python)
    }
    .start();
    for sidecar in [Sidecar::ptrace(), Sidecar::same_user(USER)] {
        refused(
            &target,
            &sidecar,
            "PermissionDenied",
            &[
                "no /proc of its PID namespace is mounted in the target's root",
                "/dev/shm: no space left on device",
                "/tmp: read-only file system",
                "/var/tmp: read-only file system",
                "emptyDir",
            ],
        );
    }
}

fn a_user_namespace_of_its_own(python: Python) {
    let tmp = tmpfs("/tmp", "");
    let setup = [READ_ONLY, &tmp].join(" && ");
    for through in [
        vec!["unshare", "-U", "-r"],
        // The /proc that it sees is that of the namespace outside.
        vec!["unshare", "-U", "-r", "--pid", "--fork", "--kill-child"],
        // Its user is one that does not exist in it.
        vec!["unshare", "-U"],
    ] {
        for user in [None, Some(USER)] {
            let target = Start {
                setup: &setup,
                enter: Enter::Pivot,
                user,
                through: &through,
                ..start(python)
            }
            .start();
            for sidecar in [
                Sidecar::root(),
                Sidecar::ptrace(),
                user.map_or_else(Sidecar::root, Sidecar::same_user),
            ] {
                runs(&target, &sidecar, "/proc/");
                // It may not be entered.
                runs(
                    &target,
                    &sidecar.filtered(&Filter::runtime_default()),
                    "/tmp/",
                );
            }
        }
    }
}

fn a_pid_namespace_of_its_own(python: Python) {
    let tmp = tmpfs("/tmp", "");
    let setup = [READ_ONLY, &tmp].join(" && ");
    let target = Start {
        setup: &setup,
        user: Some(USER),
        pid_namespace: true,
        ..start(python)
    }
    .start();
    runs(&target, &Sidecar::root(), "/proc/");
    // Beside it, it is one process among others.
    for sidecar in [Sidecar::root(), Sidecar::ptrace(), Sidecar::same_user(USER)] {
        runs_in(&target, 1, &sidecar.beside(&target), "/proc/");
    }
    // What it would have to enter is closed to these.
    runs(&target, &Sidecar::ptrace(), "/tmp/");
    runs(&target, &Sidecar::same_user(USER), "/tmp/");
    // The /proc that it sees is that of the namespace outside.
    let target = Start {
        setup: READ_ONLY,
        enter: Enter::Pivot,
        through: &["unshare", "--pid", "--fork", "--kill-child"],
        ..start(python)
    }
    .start();
    runs(&target, &Sidecar::ptrace(), "/proc/");
}

fn a_proc_that_hides_the_processes_of_others(python: Python) {
    for hide in ["1", "2", "4"] {
        let setup = format!("{READ_ONLY} && mount -t proc -o hidepid={hide} proc $root/proc");
        let target = Start {
            setup: &setup,
            proc: false,
            user: Some(USER),
            ..start(python)
        }
        .start();
        for sidecar in [Sidecar::ptrace(), Sidecar::same_user(USER)] {
            runs(&target, &sidecar, "/proc/");
        }
    }
}

fn filters_of_system_calls(python: Python) {
    let interpreter = format!("/usr/bin/python{}", python.version());
    let closed = [
        "memfd_create",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
    ];
    let filter = Filter::runtime_default().and_refusing(&closed);
    let through = seccomp::through(&interpreter, &filter);
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    let target = Start {
        through: &through,
        user: Some(USER),
        ..start(python)
    }
    .start();
    for (filter, way) in [
        (Filter::runtime_default(), "/proc/"),
        (
            Filter::runtime_default().and_refusing(&["process_vm_writev", "process_vm_readv"]),
            "/proc/",
        ),
        (
            Filter::runtime_default().and_refusing(&["memfd_create"]),
            "/dev/shm/",
        ),
    ] {
        for sidecar in [Sidecar::ptrace(), Sidecar::same_user(USER)] {
            runs(&target, &sidecar.filtered(&filter), way);
        }
    }
}

fn a_target_that_may_not_be_looked_into(python: Python) {
    // It became this user after it had started, or asked for it.
    for change in [
        "import os\nos.setgroups([4713])\nos.setresgid(4712, 4712, 4712)\nos.setresuid(4711, 4711, 4711)\n",
        "import os, ctypes\nos.setgroups([4713])\nos.setresgid(4712, 4712, 4712)\nos.setresuid(4711, 4711, 4711)\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n",
    ] {
        let program = format!("{change}{PROGRAM}");
        let target = Start {
            program: &program,
            ..start(python)
        }
        .start();
        runs(&target, &Sidecar::ptrace(), "/proc/");
        refused(
            &target,
            &Sidecar::same_user(USER),
            "PermissionDenied",
            &["closed to its own user", "CAP_SYS_PTRACE"],
        );
    }
}

live::on_each_python! {
    any_user_and_group_as_ptrace_and_as_the_same_user,
    root_with_and_without_capabilities,
    a_root_that_is_read_only_and_one_without_proc,
    a_folder_for_shared_memory_that_is_not_to_be_had,
    the_only_folder_that_can_be_written_is_anywhere,
    a_target_that_went_into_a_root_of_its_own,
    a_result_in_a_folder_that_is_full,
    a_signal_that_a_script_consumed_comes_back_on_every_way,
    nowhere_to_put_a_script,
    a_user_namespace_of_its_own,
    a_pid_namespace_of_its_own,
    a_proc_that_hides_the_processes_of_others,
    filters_of_system_calls,
    a_target_that_may_not_be_looked_into,
}
