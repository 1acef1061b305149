//! What the kernel knows of a target's threads.

use nix::errno::Errno;
use sidewinder_decode::OsThread;
use sidewinder_model::{Syscall, ThreadState};

use crate::procfs::{self, Stat, Status, SyscallLine};
use crate::syscalls::{self, Subject};
use crate::{Error, Process};

/// Most threads of one process that are looked at.
pub const MAX_THREADS: usize = 32_768;

/// What the scheduler counted for one thread: it ran meanwhile if two readings differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedStat {
    /// Time on a CPU, in nanoseconds.
    pub run_nanoseconds: u64,
    /// How often it was put on a CPU.
    pub timeslices: u64,
}

impl Process {
    /// The kernel ids of its threads, ascending, at most 32768.
    ///
    /// # Errors
    /// [`Error::Gone`], or what the kernel said.
    pub fn tids(&self) -> Result<Vec<u64>, Error> {
        let tids = self
            .numbers("task", MAX_THREADS)
            .map_err(|e| self.io("list the threads of", e))?;
        if tids.is_empty() {
            return Err(Error::Gone { pid: self.pid() });
        }
        Ok(tids)
    }

    /// Its threads. What may not be seen is left out of each; a thread that ends meanwhile is left out whole.
    ///
    /// # Errors
    /// [`Error::Gone`], or what the kernel said.
    pub fn threads(&self) -> Result<Vec<OsThread>, Error> {
        Ok(self
            .tids()?
            .into_iter()
            .filter_map(|tid| self.thread(tid))
            .collect())
    }

    /// One of its threads; `None` when it is not one, or has ended.
    pub fn thread(&self, tid: u64) -> Option<OsThread> {
        let stat = self.thread_stat(tid)?;
        // Only a process in a nested PID namespace has other ids there.
        let ns_tid = if self.pid() == self.ns_pid() {
            tid
        } else {
            let status = self.thread_status(tid)?;
            status
                .ns_pids
                .last()
                .and_then(|id| u64::try_from(*id).ok())
                .unwrap_or(tid)
        };
        let line = self
            .proc_file(format!("task/{tid}/syscall"))
            .ok()
            .and_then(|text| procfs::syscall(&text));
        let running = match stat.state {
            'R' => true,
            // Stopped, by us or by a signal: what it was doing shows in whether it is in a system call.
            't' | 'T' => line.is_none(),
            _ => false,
        };
        Some(OsThread {
            tid,
            ns_tid,
            name: stat.comm,
            state: if running {
                ThreadState::Running
            } else {
                ThreadState::Blocked
            },
            futex: line
                .filter(|line| {
                    !running && matches!(syscalls::lookup(line.number), Some((_, Subject::Futex)))
                })
                .map(|line| line.args[0]),
            syscall: line.filter(|_| !running).map(|line| self.describe(line)),
        })
    }

    /// `/proc/PID/task/TID/stat`.
    pub fn thread_stat(&self, tid: u64) -> Option<Stat> {
        procfs::stat(&self.proc_file(format!("task/{tid}/stat")).ok()?)
    }

    /// `/proc/PID/task/TID/status`.
    pub fn thread_status(&self, tid: u64) -> Option<Status> {
        procfs::status(&self.proc_file(format!("task/{tid}/status")).ok()?)
    }

    /// What the scheduler counted for a thread; `None` when it has ended or the kernel does not count.
    pub fn schedstat(&self, tid: u64) -> Option<SchedStat> {
        let text = self.proc_file(format!("task/{tid}/schedstat")).ok()?;
        let text = String::from_utf8_lossy(&text);
        let mut numbers = text.split_ascii_whitespace();
        let run_nanoseconds = numbers.next()?.parse().ok()?;
        let timeslices = numbers.nth(1)?.parse().ok()?;
        Some(SchedStat {
            run_nanoseconds,
            timeslices,
        })
    }

    fn describe(&self, line: SyscallLine) -> Syscall {
        let Some((name, subject)) = syscalls::lookup(line.number) else {
            return Syscall {
                name: format!("syscall {}", line.number),
                detail: None,
            };
        };
        let [first, second, ..] = line.args;
        let detail = match subject {
            Subject::Nothing => None,
            Subject::Descriptor => Some(self.descriptor(first)),
            Subject::Futex => Some(format!("futex {first:#x}")),
            Subject::Child => Some(child(first)),
            Subject::IdType => match first {
                1 => Some(child(second)),
                3 => Some(self.descriptor(second)),
                _ => Some("any child".to_owned()),
            },
            Subject::PollSet => self.poll_set(first, second),
        };
        Syscall {
            name: name.to_owned(),
            detail,
        }
    }

    fn descriptor(&self, number: u64) -> String {
        // An int argument: the upper half of the register means nothing.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the kernel looks at the lower half only"
        )]
        let number = number as u32;
        match self.readlink(format!("fd/{number}")) {
            Ok(target) => {
                let target = target.to_string_lossy();
                format!(
                    "fd {number}: {}",
                    target.chars().take(256).collect::<String>()
                )
            }
            Err(_) => format!("fd {number}"),
        }
    }

    /// `struct pollfd` is an int and two shorts; one descriptor is named, more are counted.
    fn poll_set(&self, at: u64, count: u64) -> Option<String> {
        match count {
            0 => None,
            1 => {
                let mut bytes = [0; 4];
                match self.read_memory(at, &mut bytes) {
                    Ok(()) => Some(self.descriptor(u64::from(u32::from_le_bytes(bytes)))),
                    Err(Errno::EFAULT | _) => None,
                }
            }
            more => Some(format!("{more} descriptors")),
        }
    }
}

fn child(pid: u64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "pid_t: the kernel looks at the lower half only"
    )]
    let pid = (pid as u32).cast_signed();
    if pid > 0 {
        format!("child {pid}")
    } else {
        "any child".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_named_and_minus_one_is_any() {
        assert_eq!(child(17), "child 17");
        assert_eq!(child(0xffff_ffff_ffff_ffff), "any child");
        assert_eq!(child(0xffff_ffff), "any child");
    }

    #[test]
    fn this_process_has_this_thread() {
        let own = i32::try_from(std::process::id()).unwrap();
        let process = Process::open(own).unwrap();
        let tid = u64::try_from(nix::unistd::gettid().as_raw()).unwrap();
        let thread = process.thread(tid).unwrap();
        assert_eq!(thread.state, ThreadState::Running);
        assert!(process.tids().unwrap().contains(&tid));
        assert_eq!(process.thread(1 << 40), None);
    }

    #[test]
    fn its_own_memory_reads_back_and_address_zero_faults() {
        use sidewinder_decode::{Addr, Memory, ReadError};
        let process = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let text = *b"sidewinder";
        let mut back = [0; 10];
        let at = Addr(text.as_ptr() as u64);
        process.read(at, &mut back).unwrap();
        assert_eq!(back, text);
        let error = process.read(Addr(8), &mut back).unwrap_err();
        assert!(matches!(error, ReadError::Fault { .. }), "{error}");
        let error = process.read(Addr(u64::MAX - 4), &mut back).unwrap_err();
        assert!(matches!(error, ReadError::Fault { .. }), "{error}");
    }

    #[test]
    fn an_ended_process_is_not_opened_and_an_opened_one_notices() {
        let mut child = std::process::Command::new("/proc/self/exe")
            .arg("--list")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let opened = Process::open(pid);
        child.wait().unwrap();
        if let Ok(process) = opened {
            assert!(!process.alive());
            assert!(matches!(process.status(), Err(Error::Gone { .. })));
        }
        assert!(matches!(
            Process::open(pid),
            Err(Error::NoSuchProcess { .. })
        ));
        assert!(matches!(Process::open(0), Err(Error::NoSuchProcess { .. })));
        assert!(matches!(
            Process::open(-1),
            Err(Error::NoSuchProcess { .. })
        ));
    }
}
