//! Where a child stands that a target is to look into.

use std::fs::File;
use std::io::Read;
use std::process::Child;

use rustix::fs::OFlags;

use super::error::{CarrierError, io_error};
use crate::Process;

/// Where a child has to be born to stand where the target looks; in our own namespaces by default.
#[derive(Default)]
pub(super) struct Birth {
    /// The PID namespace, where it is another one.
    pub(super) pid: Option<File>,
    /// The user namespace to enter, where it is another one: a process may look into those of its own alone.
    pub(super) user: Option<File>,
}

impl Birth {
    /// Beside a target.
    pub(super) fn beside(process: &Process) -> Result<Self, CarrierError> {
        let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).ok();
        let same = |kind: &str| {
            let target = process.namespace(kind).map(std::path::PathBuf::from);
            target.is_some() && target == own(kind)
        };
        let open = |path: &str, what: &'static str| {
            process
                .openat(path, OFlags::RDONLY)
                .map_err(io_error(what))
                .map(Some)
        };
        // The target looks its files up in the /proc of its own root: that of its PID namespace, or of ours.
        let shows = |pid: i32| {
            started_at(process, pid).is_some_and(|started| started == process.start_time())
        };
        let pid = if shows(process.pid()) {
            None
        } else if shows(process.ns_pid()) && !same("pid") {
            open("ns/pid", "open the target's PID namespace")?
        } else {
            return Err(CarrierError::Unseen(
                "no /proc of its PID namespace is mounted in the target's root",
            ));
        };
        let user = if same("user") {
            None
        } else {
            open("ns/user", "open the target's user namespace")?
        };
        Ok(Self { pid, user })
    }
}

/// When a process of this number started, in the `/proc` of the target's root.
fn started_at(process: &Process, pid: i32) -> Option<u64> {
    let mut text = Vec::new();
    process
        .in_root(&format!("/proc/{pid}/stat"), OFlags::RDONLY)
        .and_then(|file| file.take(4096).read_to_end(&mut text))
        .ok()?;
    Some(crate::procfs::stat(&text)?.start_time)
}

/// Whether the `/proc` in the target's root shows this child of ours under that number.
pub(super) fn seen_by(process: &Process, pid: i32, child: &Child) -> Result<(), CarrierError> {
    let started = i32::try_from(child.id())
        .ok()
        .and_then(|id| Process::open(id).ok())
        .map(|child| child.start_time());
    if started.is_some() && started_at(process, pid) == started {
        Ok(())
    } else {
        Err(CarrierError::Unseen(
            "the /proc in the target's root does not show it",
        ))
    }
}
