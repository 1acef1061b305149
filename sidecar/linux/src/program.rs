//! Which program a process executes: execve(2) leaves its id, its start time and its first thread as they were.

use std::os::unix::fs::FileExt;

use crate::Process;
use crate::pinned::Pinned;

/// The program that a process executed when it was first asked for, or written to.
#[derive(Debug)]
pub struct Program(Pinned);

impl Process {
    /// The program that it executes now, for all that is written from here on.
    pub fn program(&self) -> Program {
        Program(self.pinned_memory())
    }
}

impl Program {
    /// Whether the process executes another one by now, or has ended. Where its memory cannot be opened that is not known,
    /// and false.
    ///
    /// A file of a memory that is gone is at its end everywhere, also where nothing was mapped.
    /// <https://man7.org/linux/man-pages/man5/proc_pid_mem.5.html>
    pub fn is_over(&self) -> bool {
        let read = self.0.file().map(|memory| memory.read_at(&mut [0], 0));
        matches!(read, Some(Ok(0)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_program_is_over_when_another_one_is_executed() {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "echo shell; read line; exec sh -c 'echo next; read line'",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "shell");
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        let first = process.program();
        assert!(!first.is_over());
        stdin.write_all(b"\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "next");
        assert!(first.is_over());
        assert!(process.alive() && process.program().is_over());
        stdin.write_all(b"\n").unwrap();
        child.wait().unwrap();
    }
}
