//! Why a target that accepted a request did not run its script.

use sidewinder_decode::Addr;
use sidewinder_decode::remote_exec::Hooks;
use sidewinder_linux::carrier::{Carrier, Reached};
use sidewinder_model::Reason;

use super::{Refusal, Run, refuse};

/// What can be seen of it from outside.
struct Seen<'a> {
    hooks: Hooks,
    reached: Option<Reached>,
    /// It cannot open another file, whichever.
    out_of_descriptors: bool,
    script: &'a str,
}

impl Run<'_> {
    /// Why there was no sign of life of a script that a thread of this interpreter accepted.
    pub(super) fn refused(&self, carrier: &Carrier, interpreter: Addr) -> Refusal {
        let seen = Seen {
            hooks: Hooks::of(self.process, self.runtime, interpreter),
            reached: carrier.reached(),
            out_of_descriptors: self.process.is_out_of_descriptors(),
            script: carrier.script_path(),
        };
        let closed = seen.is_closed();
        let (reason, why) = seen.judge();
        let mut refusal = refuse(
            reason,
            format!("the target accepted the request and did not run the script: {why}"),
        );
        refusal.unopened = closed;
        refusal
    }
}

impl Seen<'_> {
    /// Whether the target may not open the script where it lies, and nobody has said that it is not to run.
    fn is_closed(&self) -> bool {
        self.reached == Some(Reached::Nothing)
            && !self.out_of_descriptors
            && self.hooks.open_code == Some(false)
            && self.hooks.audit == Some(false)
    }

    fn judge(&self) -> (Reason, String) {
        let Hooks { open_code, audit } = self.hooks;
        let read = self.reached == Some(Reached::Read);
        if self.out_of_descriptors && !read {
            return (
                Reason::TargetBlocked,
                format!(
                    "it has as many files open as it may (RLIMIT_NOFILE), so it could not open {}",
                    self.script
                ),
            );
        }
        let audited = if read {
            "an audit hook refused it at the event compile or exec, or refused the event open of its result"
        } else {
            "an audit hook refused it at the event cpython.remote_debugger_script or open"
        };
        let hooked = format!("the open_code hook refused {}", self.script);
        let more = "; what the hook raised is on the target's stderr, unless it has another sys.unraisablehook";
        match (open_code, audit) {
            (Some(false), Some(false)) if read => (
                Reason::TargetBlocked,
                "it read the script and could not begin it: the thread is as deep in calls as it may be, has no memory \
                 left, or may not write files; what was raised is on the target's stderr"
                    .to_owned(),
            ),
            (Some(false), Some(false)) => (
                Reason::PermissionDenied,
                format!(
                    "it has no hook that could have refused it, and did not open {}: a security module (Landlock, \
                     AppArmor, SELinux) or a filter of system calls forbids that, or what the interpreter opens it with \
                     (io, __import__) was replaced; what was raised is on the target's stderr",
                    self.script
                ),
            ),
            (Some(false), _) => (Reason::AuditHookRefused, format!("{audited}{more}")),
            (Some(true), Some(false)) => (Reason::OpenCodeRefused, format!("{hooked}{more}")),
            // Audit hooks are asked before the file is opened, and again before it is run.
            (Some(true), _) if self.reached == Some(Reached::Nothing) => (
                Reason::AuditHookRefused,
                format!("{audited}, or {hooked} without opening it{more}"),
            ),
            (Some(true), _) => (
                Reason::OpenCodeRefused,
                format!("{hooked} after it had opened it, or {audited}{more}"),
            ),
            (None, _) => (
                Reason::AuditHookRefused,
                format!("{audited}, or {hooked}{more}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(
        open_code: Option<bool>,
        audit: Option<bool>,
        reached: Option<Reached>,
    ) -> (Reason, String) {
        seen(open_code, audit, reached).judge()
    }

    fn seen(
        open_code: Option<bool>,
        audit: Option<bool>,
        reached: Option<Reached>,
    ) -> Seen<'static> {
        Seen {
            hooks: Hooks { open_code, audit },
            reached,
            out_of_descriptors: false,
            script: "/proc/7/fd/40000",
        }
    }

    #[test]
    fn the_only_hook_there_is_has_refused() {
        for reached in [None, Some(Reached::Nothing), Some(Reached::Read)] {
            let (reason, text) = judged(Some(false), Some(true), reached);
            assert_eq!(reason, Reason::AuditHookRefused);
            assert!(!text.contains("open_code"), "{text}");
            let (reason, text) = judged(Some(true), Some(false), reached);
            assert_eq!(reason, Reason::OpenCodeRefused);
            assert!(!text.contains("audit"), "{text}");
        }
    }

    #[test]
    fn of_two_kinds_of_hooks_the_likelier_is_blamed_and_both_are_named() {
        for (reached, likelier) in [
            (Some(Reached::Nothing), Reason::AuditHookRefused),
            (Some(Reached::Opened), Reason::OpenCodeRefused),
            (Some(Reached::Read), Reason::OpenCodeRefused),
        ] {
            for audit in [Some(true), None] {
                let (reason, text) = judged(Some(true), audit, reached);
                assert_eq!(reason, likelier);
                assert!(text.contains("audit hook") && text.contains("open_code hook"));
            }
        }
        let (reason, text) = judged(None, None, None);
        assert_eq!(reason, Reason::AuditHookRefused);
        assert!(text.contains("audit hook") && text.contains("open_code hook"));
    }

    #[test]
    fn without_hooks_it_was_something_else() {
        let closed = seen(Some(false), Some(false), Some(Reached::Nothing));
        assert!(closed.is_closed());
        assert_eq!(closed.judge().0, Reason::PermissionDenied);
        for open in [
            seen(Some(false), Some(false), Some(Reached::Read)),
            Seen {
                out_of_descriptors: true,
                ..closed
            },
        ] {
            assert!(!open.is_closed());
            assert_eq!(open.judge().0, Reason::TargetBlocked);
        }
        assert!(!seen(Some(false), None, Some(Reached::Nothing)).is_closed());
        assert!(!seen(None, Some(false), Some(Reached::Nothing)).is_closed());
        assert!(!seen(Some(false), Some(false), None).is_closed());
    }
}
