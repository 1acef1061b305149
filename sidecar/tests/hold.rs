//! The command that keeps an image on its node: it ends at once when it is told to, as the first process of a container.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a test")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether the process waits for a signal.
fn waits(child: &Child) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap();
    call.starts_with(&format!("{} ", nix::libc::SYS_rt_sigtimedwait))
}

#[test]
fn it_holds_until_it_is_told_to_end() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sidewinder-sidecar"))
        .arg("hold")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !waits(&child) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "it does not wait"
        );
        std::thread::yield_now();
    }
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
}
