//! What the kernel knows of a target's threads.

use sidewinder_decode::OsThread;
use sidewinder_model::{Syscall, ThreadState};

use crate::procfs::{self, Stat, Status, SyscallLine};
use crate::syscalls::{self, Call, Subject};
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

/// What `/proc/PID/task/TID/syscall` tells of a thread.
#[derive(Debug)]
enum Activity {
    /// It is in a system call, and sleeps.
    InCall(SyscallLine, Call),
    /// It runs, or is ready to.
    Running,
    /// It does not run and is in no system call: it is stopped, or waits for a page.
    OutsideCalls,
}

/// Most children of one thread that are looked at.
const MAX_CHILDREN: usize = 1024;

impl Process {
    /// The processes that one of its threads has forked and that were not waited for; none where the kernel does not say
    /// (`CONFIG_PROC_CHILDREN`).
    pub(crate) fn children(&self, tid: u64) -> Vec<i32> {
        let text = self
            .proc_file(format!("task/{tid}/children"))
            .unwrap_or_default();
        String::from_utf8_lossy(&text)
            .split_ascii_whitespace()
            .map_while(|pid| pid.parse().ok())
            .take(MAX_CHILDREN)
            .collect()
    }

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

    /// Its threads. What may not be seen is left out of each; a thread that ends meanwhile is left out whole. Their
    /// system calls say what is in the registers; [`Self::describe`] says the rest.
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
        let name = self.short_file(format!("task/{tid}/comm")).ok()?;
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
        let activity = self.activity(tid);
        let (state, call) = match activity {
            Some(Activity::InCall(line, call)) => (ThreadState::Blocked, Some((line, call))),
            Some(Activity::Running) => (ThreadState::Running, None),
            // The state costs more to read than all the rest, and is needed only where the call does not tell.
            Some(Activity::OutsideCalls) | None => {
                let state = match self.thread_stat(tid)?.state {
                    // Stopped, by us or by a signal, when it was in no call.
                    'R' | 't' | 'T' => ThreadState::Running,
                    _ => ThreadState::Blocked,
                };
                (state, None)
            }
        };
        let futex = call
            .as_ref()
            .filter(|(_, call)| call.subject == Subject::Futex);
        Some(OsThread {
            tid,
            ns_tid,
            name: String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned(),
            state,
            futex: futex.map(|(line, _)| line.args[0]),
            arguments: call.as_ref().map(|(line, _)| line.args),
            syscall: call.map(|(line, call)| Syscall {
                name: call
                    .name
                    .map_or_else(|| format!("syscall {}", line.number), str::to_owned),
                detail: call.detail(&line),
            }),
        })
    }

    /// What the kernel says that a thread does; `None` where it says nothing, for example for want of the right to ask.
    fn activity(&self, tid: u64) -> Option<Activity> {
        let text = self.short_file(format!("task/{tid}/syscall")).ok()?;
        let Some(line) = procfs::syscall(&text) else {
            return match text.as_slice() {
                b"running\n" => Some(Activity::Running),
                [b'-', ..] => Some(Activity::OutsideCalls),
                _ => None,
            };
        };
        let call = syscalls::lookup(line.number);
        if call.name != Some(syscalls::RESTART) {
            return Some(Activity::InCall(line, call));
        }
        let wchan = self
            .short_file(format!("task/{tid}/wchan"))
            .unwrap_or_default();
        let was = syscalls::restarted(&line, &String::from_utf8_lossy(&wchan));
        Some(Activity::InCall(line, was.unwrap_or(call)))
    }

    /// The system call that a thread is in, a restarted one as what it was.
    pub(crate) fn call(&self, tid: u64) -> Option<(SyscallLine, Call)> {
        match self.activity(tid)? {
            Activity::InCall(line, call) => Some((line, call)),
            Activity::Running | Activity::OutsideCalls => None,
        }
    }

    /// The system call that a thread waits in: its number and arguments. A wait that is being resumed after a stop counts
    /// as what it was, as far as that can be told; while the thread is stopped it cannot.
    pub fn wait_of(&self, tid: u64) -> Option<(u64, [u64; 6])> {
        let (line, call) = self.call(tid)?;
        Some((syscalls::number(call.name?)?, line.args))
    }

    /// `/proc/PID/task/TID/stat`.
    pub fn thread_stat(&self, tid: u64) -> Option<Stat> {
        procfs::stat(&self.proc_file(format!("task/{tid}/stat")).ok()?)
    }

    /// `/proc/PID/task/TID/status`.
    pub fn thread_status(&self, tid: u64) -> Option<Status> {
        procfs::status(&self.proc_file(format!("task/{tid}/status")).ok()?)
    }

    /// Whether a thread was on no CPU, nor about to be put on one, at some time after this was asked.
    pub fn off_cpu(&self, tid: u64) -> bool {
        match self.activity(tid) {
            // The kernel reads the registers of a thread that is off its CPU only.
            Some(Activity::InCall(..) | Activity::OutsideCalls) => true,
            Some(Activity::Running) => false,
            None => self.thread_stat(tid).is_some_and(|stat| stat.state != 'R'),
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_spins_runs_and_one_that_waits_is_blocked() {
        use std::sync::atomic::{AtomicBool, Ordering};
        use std::sync::mpsc::channel;
        let own = i32::try_from(std::process::id()).unwrap();
        let process = Process::open(own).unwrap();
        let tid = || u64::try_from(nix::unistd::gettid().as_raw()).unwrap();
        let (stop, (say, hear)) = (AtomicBool::new(false), channel());
        let (release, wait) = channel::<()>();
        std::thread::scope(|scope| {
            let spins = say.clone();
            let stop = &stop;
            scope.spawn(move || {
                spins.send(tid()).unwrap();
                while !stop.load(Ordering::Relaxed) {}
            });
            let spinning = hear.recv().unwrap();
            std::thread::Builder::new()
                .name("waits (a) b".into())
                .spawn_scoped(scope, move || {
                    say.send(tid()).unwrap();
                    wait.recv().unwrap_err();
                })
                .unwrap();
            let waiting = hear.recv().unwrap();
            let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
            // Each may still be in the call that told its id.
            let becomes = |tid, state| loop {
                let thread = process.thread(tid).unwrap();
                if thread.state == state {
                    return thread;
                }
                assert!(std::time::Instant::now() < limit, "{thread:?}");
                std::thread::yield_now();
            };
            assert_eq!(becomes(spinning, ThreadState::Running).syscall, None);
            let blocked = becomes(waiting, ThreadState::Blocked);
            assert_eq!(blocked.name, "waits (a) b");
            assert!(blocked.syscall.is_some());
            assert!(!process.off_cpu(spinning) && process.off_cpu(waiting));
            assert!(process.tids().unwrap().contains(&waiting));
            stop.store(true, Ordering::Relaxed);
            drop(release);
        });
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
