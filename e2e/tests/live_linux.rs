//! Stopping and reading live processes.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod live;

use std::time::{Duration, Instant};

use live::{Python, Start, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidewinder_linux::Process;
use sidewinder_linux::stop::{StopError, stop, stop_all};

const BUSY: &str = "print('ready', flush=True)\nx = 0\nwhile True: x += 1";
const THREADS: &str = "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nprint('ready', flush=True)\nwhile True: pass";

fn main_tid(target: &Target) -> u64 {
    u64::from(target.pid.unsigned_abs())
}

fn a_stopped_thread_stands_still_and_goes_on(python: Python) {
    let target = python.run(BUSY);
    let (process, tid) = (target.process(), main_tid(&target));
    let guard = stop(&process, &[tid], Duration::from_secs(10)).unwrap();
    assert_eq!(guard.tids(), [tid]);
    assert_eq!(process.thread_stat(tid).unwrap().state, 't');
    let before = process.schedstat(tid).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(process.schedstat(tid).unwrap(), before);
    let released = guard.release();
    assert!(
        !released.expired && released.paused >= Duration::from_millis(20),
        "{released:?}"
    );
    target.until("running", |_| process.schedstat(tid).unwrap() != before);
    assert_eq!(process.status().unwrap().tracer, 0);
}

fn the_limit_lets_go_although_the_owner_does_not(python: Python) {
    let target = python.run(BUSY);
    let process = target.process();
    let guard = stop(&process, &[main_tid(&target)], Duration::from_millis(50)).unwrap();
    target.until("let go", |_| !guard.holds());
    target.until("no tracer", |_| process.status().unwrap().tracer == 0);
    let released = guard.release();
    assert!(
        released.expired && released.paused < Duration::from_secs(5),
        "{released:?}"
    );
}

fn all_threads_stop_and_a_dropped_guard_lets_them_go(python: Python) {
    let target = python.run(THREADS);
    let process = target.process();
    let guard = stop_all(&process, Duration::from_secs(10)).unwrap();
    let mut held = guard.tids().to_vec();
    held.sort_unstable();
    assert_eq!(held, process.tids().unwrap());
    assert_eq!(held.len(), 21);
    assert!(
        held.iter()
            .all(|tid| process.thread_stat(*tid).unwrap().state == 't')
    );
    drop(guard);
    assert!(
        held.iter()
            .all(|tid| process.thread_status(*tid).unwrap().tracer == 0)
    );
}

fn signals_that_arrive_meanwhile_are_not_lost(python: Python) {
    let target = python.run(
        "import signal, time\nn = 0\ndef got(*a):\n    global n\n    n += 1\n    print('got', n, flush=True)\nsignal.signal(signal.SIGUSR1, got)\nprint('ready', flush=True)\nwhile True: pass",
    );
    let (process, tid) = (target.process(), main_tid(&target));
    for n in 1..=100 {
        // Before the stop, so that the thread may stop in the very delivery of the signal.
        kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
        stop(&process, &[tid], Duration::from_secs(10))
            .unwrap()
            .release();
        assert_eq!(target.line(), format!("got {n}"));
    }
}

fn a_process_that_a_signal_has_stopped_stays_stopped(python: Python) {
    let target = python.run(BUSY);
    let process = target.process();
    kill(Pid::from_raw(target.pid), Signal::SIGSTOP).unwrap();
    target.until("stopped", |_| process.stopped_by_signal().unwrap());
    let error = stop(&process, &[main_tid(&target)], Duration::from_secs(1)).unwrap_err();
    assert!(
        matches!(error, StopError::StoppedBySignal { .. }),
        "{error}"
    );
    assert!(process.stopped_by_signal().unwrap());
    assert_eq!(process.status().unwrap().tracer, 0);
}

fn a_traced_process_is_left_to_its_tracer(python: Python) {
    let target = python.run(BUSY);
    let process = target.process();
    let guard = stop(&process, &[main_tid(&target)], Duration::from_secs(10)).unwrap();
    let error = stop(&process, &[main_tid(&target)], Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, StopError::Traced { .. }), "{error}");
    guard.release();
}

fn a_thread_in_uninterruptible_sleep_is_given_up_and_left_clean(python: Python) {
    // The parent of a vfork child sleeps uninterruptibly until the child executes, and this one waits for a writer.
    let fifo = format!("/tmp/fifo-{}", std::process::id());
    let program = format!(
        "import os\nos.mkfifo('{fifo}')\nprint('ready', flush=True)\nos.posix_spawn('/bin/true', ['true'], {{}}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, '{fifo}', os.O_RDONLY, 0)])\nprint('on', flush=True)\nwhile True: pass",
    );
    let target = python.run(&program);
    let (process, tid) = (target.process(), main_tid(&target));
    target.until("in uninterruptible sleep", |_| {
        process.thread_stat(tid).unwrap().state == 'D'
    });
    let began = Instant::now();
    let error = stop(&process, &[tid], Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, StopError::Unstoppable { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(process.status().unwrap().tracer, 0);
    let fifo = target.path(&fifo);
    drop(std::fs::File::options().write(true).open(&fifo).unwrap());
    assert_eq!(target.line(), "on");
    std::fs::remove_file(fifo).unwrap();
}

fn thread_ids_of_a_nested_namespace_are_its_own(python: Python) {
    let target = Start {
        python,
        program: BUSY,
        proc: true,
        pid_namespace: true,
        ..Start::default()
    }
    .start();
    let process = target.process();
    assert_eq!(process.ns_pid(), 1);
    let thread = process.thread(main_tid(&target)).unwrap();
    assert_eq!((thread.tid, thread.ns_tid), (main_tid(&target), 1));
}

fn a_mapped_file_is_opened_also_when_it_was_deleted(python: Python) {
    let target = python.run(
        "import mmap, os\nfd = os.open('/tmp/mapped', os.O_RDWR | os.O_CREAT)\nos.write(fd, b'the old build')\nm = mmap.mmap(fd, 13)\nos.unlink('/tmp/mapped')\nopen('/tmp/mapped', 'w').write('the new build')\nprint('ready', flush=True)\nwhile True: pass",
    );
    let process = target.process();
    let mappings = process.mappings().unwrap();
    let mapping = mappings
        .iter()
        .find(|mapping| mapping.path.ends_with("/mapped (deleted)"))
        .unwrap();
    let text = std::io::read_to_string(process.open_mapping(mapping).unwrap()).unwrap();
    assert_eq!(text, "the old build");
    std::fs::remove_file(target.path("/tmp/mapped")).unwrap();
}

fn two_of_our_own_requests_take_turns_and_neither_takes_the_other_for_a_debugger(python: Python) {
    let target = python.run(BUSY);
    let (pid, tid) = (target.pid, main_tid(&target));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                let process = Process::open(pid).unwrap();
                for _ in 0..50 {
                    let guard = stop(&process, &[tid], Duration::from_secs(10)).unwrap();
                    assert_eq!(process.thread_stat(tid).unwrap().state, 't');
                    guard.release();
                }
            });
        }
    });
    assert_eq!(target.process().status().unwrap().tracer, 0);
}

live::on_each_python! {
    a_stopped_thread_stands_still_and_goes_on,
    the_limit_lets_go_although_the_owner_does_not,
    all_threads_stop_and_a_dropped_guard_lets_them_go,
    signals_that_arrive_meanwhile_are_not_lost,
    a_process_that_a_signal_has_stopped_stays_stopped,
    a_traced_process_is_left_to_its_tracer,
    a_thread_in_uninterruptible_sleep_is_given_up_and_left_clean,
    thread_ids_of_a_nested_namespace_are_its_own,
    a_mapped_file_is_opened_also_when_it_was_deleted,
    two_of_our_own_requests_take_turns_and_neither_takes_the_other_for_a_debugger,
}
