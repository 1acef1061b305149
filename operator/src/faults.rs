//! The moments of a session at which a test holds it, or kills the operator: one between any two things that are done.
//!
//! They exist with the feature `failpoints` alone, which no image is built with; otherwise each is nothing. At a point
//! the operator tells whoever listens on the socket that [`SOCKET`] names which session is where, and goes on when the
//! other end closes. Where that says `kill`, the process kills itself: at exactly that moment, without a last word.
//!
//! The crate `fail` was not taken: its points are names that nothing checks, and its pause holds a thread, with every
//! other session on it.

use crate::session::plan::Step;

/// The environment variable that names the socket.
pub const SOCKET: &str = "SIDEWINDER_FAULTS";
/// The answer that kills.
pub const KILL: &str = "kill";

macro_rules! points {
    ($($point:ident $words:literal,)*) => {
        /// A moment of a session. A new one belongs into a flow of `e2e/tests/faults`, which fails where it is missing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $(#[doc = $words] $point,)*
        }

        impl Point {
            /// All of them, in the order in which a session comes past.
            pub const ALL: &[Self] = &[$(Self::$point),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => stringify!($point),)*
                }
            }
        }
    };
}

points! {
    TakenUp "The session was seen, and nothing of it was written.",
    Gate "Before the fences are asked whether it may act.",
    AwaitPod "Before the pod is waited for.",
    AwaitedPod "The pod has changed.",
    Inject "Before the sidecar is added.",
    Admitted "The dry-run let the sidecar in, and it is not added.",
    Patched "The API server has added the sidecar.",
    Injected "The operator knows the pod with the sidecar.",
    Open "Before the stream is opened.",
    Opened "The agent shook hands.",
    Record "Before the intent is written.",
    Write "Before a status that is not the last is written.",
    Written "That status stands in the API server.",
    Recorded "The intent stands in the API server, and nothing was sent.",
    Ask "Before the request is sent, or asked for again.",
    Begin "Before the fences are asked whether a script whose intent stands may begin.",
    Sent "The request is on its way.",
    Accepted "The agent has it.",
    Cancel "It is cancelled, and its agent was not told.",
    CancelSent "The cancellation is on its way.",
    Abandon "It was deleted, and its agent was not told.",
    Answered "The outcome is here, and nowhere but in the agent else.",
    Asked "The agent was asked.",
    FallBack "A way into the pod was refused by the kernel.",
    FellBack "The other way is next.",
    End "The plan says that the pod's part is over.",
    Finish "Before the results are stored.",
    Secret "Before a part of a result is stored.",
    SecretStored "A part of a result is stored.",
    Stored "Every result is stored, and the end is not written.",
    Finished "The end stands in the API server, and the agents keep the outcomes.",
    Acknowledged "The agents may forget the outcomes.",
    Report "Before the Events tell of the end.",
    Reported "The Events are on their way.",
    Watch "Before the end of a script that outlived its session is waited for.",
    ScriptEnded "That end is known, and nobody was told.",
    Told "The Events tell of that end.",
    Noted "The status tells of that end.",
}

impl Point {
    /// The moment before a step.
    pub(crate) fn before(step: &Step) -> Self {
        match step {
            Step::End(_) => Self::End,
            Step::AwaitPod { .. } => Self::AwaitPod,
            Step::Inject { .. } => Self::Inject,
            Step::Open { .. } => Self::Open,
            Step::Record(_) => Self::Record,
            Step::Ask { .. } => Self::Ask,
            Step::FallBack { .. } => Self::FallBack,
        }
    }

    /// The moment after a step.
    pub(crate) fn after(step: &Step) -> Self {
        match step {
            Step::End(_) => Self::End,
            Step::AwaitPod { .. } => Self::AwaitedPod,
            Step::Inject { .. } => Self::Injected,
            Step::Open { .. } => Self::Opened,
            Step::Record(_) => Self::Recorded,
            Step::Ask { .. } => Self::Asked,
            Step::FallBack { .. } => Self::FellBack,
        }
    }
}

#[cfg(not(feature = "failpoints"))]
mod points {
    use std::future::{Ready, ready};

    use sidewinder_crds::DebugSession;

    use super::Point;

    /// Nothing.
    pub(crate) fn at(_: Point) -> Ready<()> {
        ready(())
    }

    /// `work` itself.
    pub(crate) fn of<W>(_: &DebugSession, work: W) -> W {
        work
    }
}

#[cfg(feature = "failpoints")]
mod points {
    use kube::ResourceExt as _;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use sidewinder_crds::DebugSession;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::{KILL, Point, SOCKET};

    tokio::task_local! {
        /// Whose work this task is.
        static SESSION: String;
    }

    /// The work of `session`, whose points are told.
    pub(crate) fn of<W: Future>(
        session: &DebugSession,
        work: W,
    ) -> impl Future<Output = W::Output> + use<W> {
        SESSION.scope(session.name_any(), work)
    }

    /// Tells where the session is, and waits until it may go on.
    pub(crate) async fn at(point: Point) {
        let (Some(socket), Ok(session)) =
            (std::env::var_os(SOCKET), SESSION.try_with(String::clone))
        else {
            return;
        };
        // Nobody listens any more: go on.
        let Ok(mut stream) = UnixStream::connect(socket).await else {
            return;
        };
        let told = format!("{session} {}\n", point.name());
        let mut answer = String::new();
        if stream.write_all(told.as_bytes()).await.is_ok()
            && stream.read_to_string(&mut answer).await.is_ok()
            && answer == KILL
        {
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }
}

pub(crate) use self::points::{at, of};
