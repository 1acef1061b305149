//! Commands that cannot be carried out as they are given: exit code 2 and a sentence on stderr, nothing on stdout.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a test")]

use std::io::Write as _;
use std::process::{Command, Stdio};

fn refused(args: &[&str], stdin: &[u8], words: &str) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sidewinder-sidecar"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    assert!(said.contains(words), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn a_script_that_cannot_be_used_is_wrong_usage() {
    let no_process = ["exec", "--pid", "999999999", "-"];
    refused(
        &["exec", "--pid", "999999999", "/no/such/file"],
        b"",
        "failed to read the script /no/such/file",
    );
    refused(&no_process, b"print('\xff')", "not UTF-8");
    refused(
        &no_process,
        &vec![b' '; sidewinder_model::MAX_SCRIPT_BYTES + 1],
        "longer than 262144 bytes",
    );
}

#[test]
fn an_image_that_cannot_be_used_is_wrong_usage() {
    refused(
        &["stacks", "--image", "/no/such/file"],
        b"",
        "failed to read the image",
    );
    refused(
        &["tasks", "--image", "/proc/self/exe"],
        b"",
        "not a sidewinder image",
    );
}

#[test]
fn arguments_that_mean_nothing_are_wrong_usage() {
    refused(&["stacks"], b"", "--pid");
    refused(
        &["exec", "--pid", "1", "--thread", "bogus"],
        b"",
        "expected auto, main, any or a thread id",
    );
}

#[test]
fn a_standard_input_that_stays_open_does_not_outlast_the_timeout() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sidewinder-sidecar"))
        .args(["exec", "--pid", "999999999", "--timeout", "200ms"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Open until the child has ended.
    let stdin = child.stdin.take().unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--code"), "{said}");
}

#[test]
fn a_script_given_as_text_needs_no_standard_input() {
    let output = Command::new(env!("CARGO_BIN_EXE_sidewinder-sidecar"))
        .args(["exec", "--pid", "999999999", "--code", "1"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // The script is fine; the process is not there.
    assert_eq!(output.status.code(), Some(4));
    refused(
        &["exec", "--pid", "1", "--code", "1", "file.py"],
        b"",
        "cannot be used with",
    );
}
