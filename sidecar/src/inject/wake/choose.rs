//! What is done to a thread that does not come by itself: decided from what was seen of it while it stands still.
//!
//! The table of facts is in docs/remote-exec.md: a wait of Python's own is made to return `EINTR`, after which Python
//! looks for requests and waits on; the main thread's waits for locks look only for pending calls; everything else is
//! called in place.

use std::fmt;

use sidewinder_linux::registers::Interrupted;
use sidewinder_linux::stopped::Resume;
use sidewinder_model::{Wake, WakePolicy};

/// What was seen of a thread that stands still.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that was looked at"
)]
pub(super) struct Seen<'a> {
    /// What may be done.
    pub(super) policy: WakePolicy,
    /// The system call that the stop interrupted; `None` when the thread runs, or its call is done.
    pub(super) call: Option<Call<'a>>,
    /// The stop has ended its system call, which returns what it has done.
    pub(super) returned: bool,
    /// One of its thread states has the GIL.
    pub(super) attached: bool,
    /// It is the main thread of the main interpreter, the only one that runs pending calls and signal handlers.
    pub(super) main: bool,
    /// A signal waits for its Python handler.
    pub(super) tripped: bool,
    /// The request is in the innermost of its thread states: one that waits inside another interpreter does not look at
    /// the outer one's.
    pub(super) innermost: bool,
    /// The queue of pending calls can take one.
    pub(super) queue: bool,
    /// What keeps it from being called in place.
    pub(super) not_in_place: Option<Obstacle>,
    /// What has been done for this request before, without success.
    pub(super) tried: Tried,
}

/// A system call that a stop has interrupted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) name: &'a str,
    pub(super) interrupted: Interrupted,
    /// Python's own code made it and deals with `EINTR`; `None` when that could not be found out.
    pub(super) own: Option<bool>,
    /// It waits for the GIL: it comes by when it has it.
    pub(super) for_gil: bool,
    /// `connect` on a Unix socket, after which Python takes `EINTR` for success.
    pub(super) unix_connect: bool,
    /// On an eventfd: `os.eventfd_read` and `os.eventfd_write` raise `InterruptedError`.
    pub(super) eventfd: bool,
}

impl Call<'_> {
    /// Whether Python does not wait on after `EINTR`: `signal.pause` and sigsuspend return to the application, which takes
    /// an interrupted `connect` for done; `fcntl.ioctl`, termios and eventfds raise.
    pub(super) fn returns_to_application(&self) -> bool {
        self.unix_connect
            || self.eventfd
            || matches!(self.name, "pause" | "rt_sigsuspend" | "ioctl")
    }
}

/// What was done for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tried {
    pub(super) stopped: bool,
    pub(super) forced: bool,
    pub(super) queued: bool,
}

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: it comes by itself, or the stop was enough.
    LetGo,
    /// Its call returns `EINTR`.
    ForceReturn,
    /// A pending call is queued, and its call returns `EINTR`.
    QueueCall,
    /// It runs the request where it is.
    InPlace(Resume),
    /// Nothing can be done at this instant.
    Cannot(Obstacle),
}

impl Step {
    /// How an answer after this step is accounted for.
    pub(super) fn wake(self) -> Wake {
        match self {
            Self::LetGo | Self::Cannot(_) => Wake::Interrupt,
            Self::ForceReturn => Wake::ForcedReturn,
            Self::QueueCall => Wake::PendingCall,
            Self::InPlace(_) => Wake::InPlace,
        }
    }
}

/// Why a blocked thread cannot be made to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It has the GIL.
    HoldsGil,
    /// It waits for the GIL, which another thread has.
    WantsGil,
    /// It runs code that is not Python's, in no system call.
    Computes,
    /// A signal's handler waits for it, and could raise where nobody expects it.
    SignalWaits,
    /// Its stack is nearly used up.
    Stack,
    /// Its stack of return addresses is kept by the processor.
    ShadowStack,
    /// What has to be called was not found in the target.
    NoEntry,
    /// More was not allowed.
    Policy,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HoldsGil => {
                "it holds the GIL there, so no thread of the interpreter runs, and foreign code that holds the GIL does \
                 not expect Python to run in it"
            }
            Self::WantsGil => "it waits for the GIL, which another thread does not give back",
            Self::Computes => "it runs code that is not Python's and makes no system call",
            Self::SignalWaits => {
                "a signal waits for its Python handler, which could raise where the call does not expect it; handler and \
                 script run when the call returns"
            }
            Self::Stack => "less than 128 KiB of its stack are left, or it is on another stack than its own",
            Self::ShadowStack => "its return addresses are kept in a shadow stack",
            Self::NoEntry => "the functions that would have to be called were not found in it",
            Self::Policy => "spec.remoteExec.wake (--wake) allows no more than what was tried",
        })
    }
}

/// What is done to a thread of which this was seen.
pub(super) fn step(seen: &Seen<'_>) -> Step {
    let Some(call) = seen.call else {
        // With the GIL it runs Python code, and comes by.
        return if seen.attached || seen.returned {
            Step::LetGo
        } else {
            Step::Cannot(Obstacle::Computes)
        };
    };
    if call.for_gil {
        return Step::Cannot(Obstacle::WantsGil);
    }
    if seen.attached {
        return Step::Cannot(Obstacle::HoldsGil);
    }
    if seen.policy != WakePolicy::Auto {
        return if seen.tried.stopped {
            Step::Cannot(Obstacle::Policy)
        } else {
            Step::LetGo
        };
    }
    let own = call.own == Some(true) && seen.innermost;
    let futex = call.name == "futex";
    if own {
        match call.interrupted {
            // The stop itself was what it needs.
            Interrupted::Returns if !seen.tried.stopped => return Step::LetGo,
            Interrupted::Returns => {}
            Interrupted::Restarts | Interrupted::Resumes => {
                if futex && seen.main && seen.queue && !seen.tried.queued {
                    return Step::QueueCall;
                }
                if !futex && !call.returns_to_application() && !seen.tried.forced {
                    return Step::ForceReturn;
                }
            }
        }
    }
    if seen.main && seen.tripped {
        return Step::Cannot(Obstacle::SignalWaits);
    }
    if let Some(obstacle) = seen.not_in_place {
        return Step::Cannot(obstacle);
    }
    // Python works out the time that is left after EINTR; a lock's deadline is a point in time, and exact either way.
    let resume = if call.own == Some(true) && !futex && call.interrupted == Interrupted::Resumes {
        Resume::Interrupted
    } else {
        Resume::Again
    };
    Step::InPlace(resume)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(name: &str, interrupted: Interrupted, own: Option<bool>) -> Seen<'_> {
        Seen {
            policy: WakePolicy::Auto,
            call: Some(Call {
                name,
                interrupted,
                own,
                for_gil: false,
                unix_connect: false,
                eventfd: false,
            }),
            returned: false,
            attached: false,
            main: true,
            tripped: false,
            innermost: true,
            queue: true,
            not_in_place: None,
            tried: Tried::default(),
        }
    }

    use Interrupted::{Restarts, Resumes, Returns};

    #[test]
    fn each_wait_has_its_method() {
        for (name, interrupted, own, step) in [
            ("read", Restarts, Some(true), Step::ForceReturn),
            ("clock_nanosleep", Restarts, Some(true), Step::ForceReturn),
            ("poll", Resumes, Some(true), Step::ForceReturn),
            ("futex", Restarts, Some(true), Step::QueueCall),
            ("futex", Resumes, Some(true), Step::QueueCall),
            ("epoll_wait", Returns, Some(true), Step::LetGo),
            (
                "epoll_pwait",
                Returns,
                Some(false),
                Step::InPlace(Resume::Again),
            ),
            ("read", Restarts, Some(false), Step::InPlace(Resume::Again)),
            ("poll", Resumes, Some(false), Step::InPlace(Resume::Again)),
            ("futex", Restarts, Some(false), Step::InPlace(Resume::Again)),
            ("read", Restarts, None, Step::InPlace(Resume::Again)),
            ("pause", Restarts, Some(true), Step::InPlace(Resume::Again)),
            ("rt_sigtimedwait", Returns, Some(true), Step::LetGo),
        ] {
            let seen = blocked(name, interrupted, own);
            assert_eq!(super::step(&seen), step, "{seen:?}");
        }
    }

    #[test]
    fn a_lock_of_another_thread_is_never_queued_for() {
        let seen = Seen {
            main: false,
            ..blocked("futex", Restarts, Some(true))
        };
        assert_eq!(step(&seen), Step::InPlace(Resume::Again));
        let full = Seen {
            queue: false,
            ..blocked("futex", Restarts, Some(true))
        };
        assert_eq!(step(&full), Step::InPlace(Resume::Again));
    }

    #[test]
    fn python_takes_an_interrupted_connect_to_a_unix_socket_for_done() {
        let mut seen = blocked("connect", Restarts, Some(true));
        assert_eq!(step(&seen), Step::ForceReturn);
        seen.call = seen.call.map(|call| Call {
            unix_connect: true,
            ..call
        });
        assert_eq!(step(&seen), Step::InPlace(Resume::Again));
    }

    #[test]
    fn python_raises_what_interrupts_an_eventfd() {
        let mut seen = blocked("read", Restarts, Some(true));
        seen.call = seen.call.map(|call| Call {
            eventfd: true,
            ..call
        });
        assert_eq!(step(&seen), Step::InPlace(Resume::Again));
    }

    #[test]
    fn a_call_that_the_stop_has_ended_needs_no_more() {
        let seen = Seen {
            call: None,
            returned: true,
            ..blocked("sendto", Restarts, Some(true))
        };
        assert_eq!(step(&seen), Step::LetGo);
    }

    #[test]
    fn what_did_not_help_is_followed_by_a_call_in_place() {
        for (tried, name, interrupted, resume) in [
            (
                Tried {
                    forced: true,
                    ..Tried::default()
                },
                "poll",
                Resumes,
                Resume::Interrupted,
            ),
            (
                Tried {
                    queued: true,
                    ..Tried::default()
                },
                "futex",
                Resumes,
                Resume::Again,
            ),
            (
                Tried {
                    stopped: true,
                    ..Tried::default()
                },
                "rt_sigtimedwait",
                Returns,
                Resume::Again,
            ),
        ] {
            let seen = Seen {
                tried,
                ..blocked(name, interrupted, Some(true))
            };
            assert_eq!(step(&seen), Step::InPlace(resume), "{seen:?}");
        }
    }

    #[test]
    fn a_thread_with_the_gil_or_on_its_way_to_it_is_left_alone() {
        let holds = Seen {
            attached: true,
            ..blocked("clock_nanosleep", Resumes, Some(false))
        };
        assert_eq!(step(&holds), Step::Cannot(Obstacle::HoldsGil));
        let mut waits = blocked("futex", Resumes, Some(true));
        waits.call = waits.call.map(|call| Call {
            for_gil: true,
            ..call
        });
        assert_eq!(step(&waits), Step::Cannot(Obstacle::WantsGil));
        let runs = Seen {
            call: None,
            ..holds
        };
        assert_eq!(step(&runs), Step::LetGo);
        let computes = Seen {
            attached: false,
            ..runs
        };
        assert_eq!(step(&computes), Step::Cannot(Obstacle::Computes));
    }

    #[test]
    fn a_call_in_place_needs_its_conditions() {
        let foreign = blocked("poll", Resumes, Some(false));
        for obstacle in [Obstacle::Stack, Obstacle::ShadowStack, Obstacle::NoEntry] {
            let seen = Seen {
                not_in_place: Some(obstacle),
                ..foreign
            };
            assert_eq!(step(&seen), Step::Cannot(obstacle));
        }
        let signalled = Seen {
            tripped: true,
            ..foreign
        };
        assert_eq!(step(&signalled), Step::Cannot(Obstacle::SignalWaits));
        // Another thread runs no handlers.
        let other = Seen {
            main: false,
            ..signalled
        };
        assert_eq!(step(&other), Step::InPlace(Resume::Again));
    }

    #[test]
    fn a_wait_inside_another_interpreter_is_called_in_place() {
        let seen = Seen {
            innermost: false,
            ..blocked("clock_nanosleep", Restarts, Some(true))
        };
        assert_eq!(step(&seen), Step::InPlace(Resume::Again));
    }

    #[test]
    fn no_more_is_done_than_is_allowed() {
        let mut seen = Seen {
            policy: WakePolicy::Interrupt,
            ..blocked("read", Restarts, Some(true))
        };
        assert_eq!(step(&seen), Step::LetGo);
        seen.tried.stopped = true;
        assert_eq!(step(&seen), Step::Cannot(Obstacle::Policy));
    }
}
