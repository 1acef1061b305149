//! What the kernel refused, told apart by what can be done about it.

use nix::errno::Errno;

use crate::procfs::Status;

/// Why something about a process could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The id that was asked for.
        pid: i32,
    },
    /// The process was there and has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// Its id.
        pid: i32,
    },
    /// The process lives, and its memory is not what it was: `execve(2)`.
    #[error("process {pid} runs another program now")]
    Replaced {
        /// Its id.
        pid: i32,
    },
    /// Yama, and nothing else as far as can be told, forbids it.
    #[error(
        "kernel.yama.ptrace_scope is {scope} on this node, which forbids to {what} process {pid}: \
         give the sidecar CAP_SYS_PTRACE (attach: Ptrace){} or set kernel.yama.ptrace_scope to 0",
        if *scope >= 3 { " (useless here: 3 forbids it to everybody until the node restarts)" } else { "" }
    )]
    Yama {
        /// The process.
        pid: i32,
        /// The value of `kernel.yama.ptrace_scope`.
        scope: u32,
        /// What was tried.
        what: &'static str,
    },
    /// The kernel refused for another reason: other user or group, capabilities, not dumpable, AppArmor, SELinux.
    #[error(
        "not permitted to {what} process {pid}: {}",
        if *closed {
            "it is closed to its own user, since it changed its user after it had started or asked for that \
             (PR_SET_DUMPABLE), so it takes CAP_SYS_PTRACE (attach: Ptrace)"
        } else {
            differs
        }
    )]
    Denied {
        /// The process.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// Whether the process is not dumpable, and nothing else as far as can be told stands in the way.
        closed: bool,
        /// In what the process differs from whoever tried, and what to do about it.
        differs: String,
        /// What the kernel said.
        source: Errno,
    },
    /// Anything else.
    #[error("cannot {what} process {pid}")]
    Io {
        /// The process.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// What decides whether Yama is to blame for a refusal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Refusal {
    /// `kernel.yama.ptrace_scope`, where Yama is there.
    pub(crate) scope: Option<u32>,
    /// Whether the caller has `CAP_SYS_PTRACE`.
    pub(crate) capable: bool,
    /// Whether user and group ids are all equal and the caller's capabilities cover the target's.
    pub(crate) covered: bool,
}

impl Refusal {
    /// The scope to blame. Yama comes last in the kernel's order, so it is to blame only when everything before it
    /// was satisfied: <https://docs.kernel.org/admin-guide/LSM/Yama.html>.
    pub(crate) fn yama(self) -> Option<u32> {
        match self.scope? {
            scope @ 3.. => Some(scope),
            scope @ 1..=2 if self.covered && !self.capable => Some(scope),
            _ => None,
        }
    }
}

/// In what a process differs from whoever may not look into it, of what the kernel compares: ptrace(2), access mode
/// checking. Supplementary groups are not compared.
pub(crate) fn differs(target: &Status, own: &Status) -> String {
    let [real, effective, saved, _] = target.uids;
    let changed = real != effective || real != saved;
    let (uid, gid) = (target.uids[1], target.gids[1]);
    let ids = |uid, gid| format!("user {uid} and group {gid}");
    let same = |ids: &[u32; 4], id: u32| ids.iter().take(3).all(|other| *other == id);
    if changed || !same(&target.uids, own.uids[0]) || !same(&target.gids, own.gids[0]) {
        let how = if changed {
            format!("(real {real}, saved {saved}) ")
        } else {
            String::new()
        };
        return format!(
            "it runs as {} {how}and the sidecar as {}: where the pod says nothing else (runAsUser, runAsGroup), it has changed \
             them since its container started, and only CAP_SYS_PTRACE (attach: Ptrace) reaches it",
            ids(uid, gid),
            ids(own.uids[0], own.gids[0])
        );
    }
    let more = target.permitted & !own.permitted;
    if more != 0 {
        return format!(
            "it has capabilities that the sidecar has not ({more:#x}, see capsh --decode), so it takes CAP_SYS_PTRACE \
             (attach: Ptrace)"
        );
    }
    "run as its user and group with its capabilities, or with CAP_SYS_PTRACE".to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Refusal, differs};
    use crate::procfs;

    #[test]
    fn what_stands_between_two_processes_is_named() {
        let status = |uids: &str, gids: &str, permitted: &str| {
            let text = format!(
                "Name:\tx\nState:\tS (sleeping)\nTgid:\t7\nPid:\t7\nTracerPid:\t0\nUid:\t{uids}\nGid:\t{gids}\nGroups:\t\n\
                 NStgid:\t7\nThreads:\t1\nSigCgt:\t0\nCapPrm:\t{permitted}\nCapEff:\t0\n"
            );
            procfs::status(text.as_bytes()).unwrap()
        };
        let own = status("5 5 5 5", "6 6 6 6", "0");
        let said = |uids, gids, permitted| differs(&status(uids, gids, permitted), &own);
        let other = said("7 7 7 7", "6 6 6 6", "0");
        assert!(
            other
                .starts_with("it runs as user 7 and group 6 and the sidecar as user 5 and group 6"),
            "{other}"
        );
        assert!(
            other.contains("runAsGroup") && other.contains("attach: Ptrace"),
            "{other}"
        );
        let group = said("5 5 5 5", "0 0 0 0", "0");
        assert!(group.contains("user 5 and group 0 and"), "{group}");
        let changed = said("0 5 0 5", "6 6 6 6", "0");
        assert!(changed.contains("(real 0, saved 0)"), "{changed}");
        let capable = said("5 5 5 5", "6 6 6 6", "400");
        assert!(capable.contains("0x400"), "{capable}");
        assert!(said("5 5 5 5", "6 6 6 6", "0").starts_with("run as its user"));
    }

    #[test]
    fn yama_is_blamed_only_when_nothing_before_it_could_have_refused() {
        let refusal = |scope, capable, covered| Refusal {
            scope,
            capable,
            covered,
        };
        assert_eq!(refusal(None, false, true).yama(), None);
        assert_eq!(refusal(Some(0), false, true).yama(), None);
        assert_eq!(refusal(Some(1), false, true).yama(), Some(1));
        assert_eq!(refusal(Some(1), false, false).yama(), None);
        assert_eq!(refusal(Some(2), true, true).yama(), None);
        assert_eq!(refusal(Some(3), true, false).yama(), Some(3));
    }
}
