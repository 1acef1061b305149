//! Why no script can be carried into a target, in words that say what to do.

use std::io;

use super::files::Closed;
use crate::Error;

/// The most folders that a message names.
const MOST_TOLD: usize = 8;

/// Why no script can be carried into the target.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// The kernel refused something.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The child could not take the target's identity.
    #[error(
        "it cannot become uid {uid}, gid {gid}, which needs CAP_SETUID and CAP_SETGID or a sidecar that runs as them"
    )]
    Identity {
        /// The target's file system uid.
        uid: u32,
        /// The target's file system gid.
        gid: u32,
    },
    /// The child cannot stand where the target looks.
    #[error("{0}")]
    Unseen(&'static str),
    /// Neither way is open.
    #[error(
        "no way to hand a script to process {pid}. Memory of a process beside it: {child}. A file in the target: {folders}. \
         Mount a folder into its container that its user can write, for example an emptyDir volume on /tmp"
    )]
    NoWay {
        /// The process.
        pid: i32,
        /// Why there is no child.
        child: String,
        /// Why there is no file, for each folder.
        folders: String,
    },
    /// The target could not be looked at.
    #[error(transparent)]
    Process(#[from] Error),
}

pub(super) fn io_error(what: &'static str) -> impl Fn(io::Error) -> CarrierError {
    move |source| CarrierError::Io { what, source }
}

/// An error and what caused it.
pub(super) fn told(error: &CarrierError) -> String {
    match error {
        CarrierError::Io { what, source } => format!("cannot {what}: {}", plain(source)),
        other => other.to_string(),
    }
}

/// Why each folder was of no use, but for those that are not there under a name that only some have.
pub(super) fn listed(closed: &[Closed]) -> String {
    let mut told: Vec<String> = closed
        .iter()
        .filter(|(_, error)| error.kind() != io::ErrorKind::NotADirectory)
        .map(|(folder, error)| format!("{folder}: {}", plain(error)))
        .collect();
    let more = told.len().saturating_sub(MOST_TOLD);
    told.truncate(MOST_TOLD);
    if more > 0 {
        told.push(format!("{more} more folders"));
    }
    told.join(", ")
}

/// What the kernel said, in the middle of a sentence.
fn plain(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_owned(),
        None => error.to_string(),
    };
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(letters).collect()
    })
}
