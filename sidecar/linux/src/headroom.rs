//! How much memory is left below the limits that count for a process: those of its cgroup and of every cgroup above it
//! that can be seen.
//!
//! In a pod that is mostly the container's own: with a private cgroup namespace a container sees no further up.
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>,
//! <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sidewinder_decode::Limits;

use crate::Process;

/// Most bytes of one of a cgroup's files that are read.
const MAX_BYTES: u64 = 64 << 10;
/// Cgroups from a process's own upwards.
const MAX_LEVELS: usize = 32;

/// The limits of a decode of this process: lowered where the memory that is left, here or there, would not hold twice
/// what a decode may take.
///
/// Our memory counts against the pod's limit as the target's does.
pub fn limits_for(target: &Process) -> Limits {
    let limits = Limits::default();
    let enough = limits.need().saturating_mul(2);
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let theirs = target
        .cgroup()
        .ok()
        .filter(|cgroup| *cgroup != own)
        .and_then(|cgroup| below(&View::Of(target), &cgroup, enough));
    [below(&View::Own, &own, enough), theirs]
        .into_iter()
        .flatten()
        .min()
        .map_or(limits, |headroom| limits.within(headroom))
}

/// The bytes left below the tightest limit of a cgroup and of those above it; `None` where there is none, or none can be
/// seen.
///
/// What the kernel could give back counts as left where there is less than `enough`: to know that takes the kernel longer
/// than the rest.
fn below(view: &View<'_>, cgroup: &str, enough: u64) -> Option<u64> {
    let hierarchy = hierarchy(cgroup, &view.mountinfo()?)?;
    hierarchy
        .levels()
        .filter_map(|path| {
            let kind = hierarchy.kind;
            Folder { view, path, kind }.headroom(enough)
        })
        .min()
}

/// Whose mounts are looked at.
enum View<'a> {
    Own,
    Of(&'a Process),
}

impl View<'_> {
    fn mountinfo(&self) -> Option<String> {
        let bytes = match self {
            Self::Own => std::fs::read("/proc/self/mountinfo").ok()?,
            Self::Of(process) => process.proc_file("mountinfo").ok()?,
        };
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        // What a target mounted there instead may be anything that blocks.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match self {
            Self::Own => Ok(rustix::fs::open(path, flags, Mode::empty())?.into()),
            Self::Of(process) => {
                let path = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
                process.in_root(path, flags)
            }
        }
    }
}

/// The two interfaces of the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    V1,
    V2,
}

impl Kind {
    fn limit(self) -> &'static str {
        match self {
            Self::V1 => "memory.limit_in_bytes",
            Self::V2 => "memory.max",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
        }
    }

    /// The line of `memory.stat` with the pages of files that nobody has used lately, of the whole subtree. kubelet
    /// subtracts the same from what it calls the working set.
    fn reclaimable(self) -> &'static str {
        match self {
            Self::V1 => "total_inactive_file",
            Self::V2 => "inactive_file",
        }
    }

    /// `f_type` of its file systems, linux/magic.h: a target may mount anything over the path.
    fn magic(self) -> u64 {
        match self {
            Self::V1 => 0x0027_e0eb,
            Self::V2 => 0x6367_7270,
        }
    }
}

/// Where the memory controller's files of a process are, in its mount namespace.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    kind: Kind,
    /// Where the hierarchy is mounted.
    mount: PathBuf,
    /// The process's cgroup beneath.
    below: PathBuf,
}

impl Hierarchy {
    /// The folders of the process's cgroup and of those above it, up to where the hierarchy is mounted.
    fn levels(&self) -> impl Iterator<Item = PathBuf> {
        self.below
            .ancestors()
            .take(MAX_LEVELS)
            .map(|below| self.mount.join(below))
    }
}

/// Finds a process's memory cgroup by `/proc/PID/cgroup` and `/proc/PID/mountinfo`. The paths of both are relative to the
/// cgroup namespace of whoever reads, so that they fit together; those of other namespaces begin with `/..`.
fn hierarchy(cgroup: &str, mountinfo: &str) -> Option<Hierarchy> {
    let mut lines = cgroup.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let (kind, path) = lines
        .clone()
        .find_map(|(_, controllers, path)| {
            let memory = controllers.split(',').any(|name| name == "memory");
            memory.then_some((Kind::V1, path))
        })
        .or_else(|| {
            let unified = lines.find(|(id, controllers, _)| *id == "0" && controllers.is_empty());
            unified.map(|(_, _, path)| (Kind::V2, path))
        })?;
    // The last mount covers earlier ones at the same place.
    mountinfo.lines().rev().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let (root, point) = (mount.nth(3)?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let name = file_system.next()?;
        let options = file_system.nth(1).unwrap_or_default();
        let fits = match kind {
            Kind::V1 => name == "cgroup" && options.split(',').any(|o| o == "memory"),
            Kind::V2 => name == "cgroup2",
        };
        let below = Path::new(path).strip_prefix(root).ok()?;
        fits.then(|| Hierarchy {
            kind,
            mount: PathBuf::from(point),
            below: below.to_path_buf(),
        })
    })
}

/// A number in one of a cgroup's files; `None` for `max` and whatever else is no number.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// One number of `memory.stat`.
fn counter(stat: &str, name: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(number)
}

/// One cgroup's folder.
struct Folder<'a> {
    view: &'a View<'a>,
    path: PathBuf,
    kind: Kind,
}

impl Folder<'_> {
    fn headroom(&self, enough: u64) -> Option<u64> {
        let limit = number(&self.file(self.kind.limit()).ok()?)?;
        // The first version has no word for none, but the largest number of whole pages.
        if limit > u64::MAX >> 2 {
            return None;
        }
        let usage = number(&self.file(self.kind.usage()).ok()?)?;
        let left = limit.saturating_sub(usage);
        if left >= enough {
            return Some(left);
        }
        let stat = self.file("memory.stat").unwrap_or_default();
        let reclaimable = counter(&stat, self.kind.reclaimable()).unwrap_or(0);
        Some(left.saturating_add(reclaimable.min(usage)).min(limit))
    }

    fn file(&self, name: &str) -> io::Result<String> {
        let file = self.view.open(&self.path.join(name))?;
        let kind = rustix::fs::fstatfs(&file)?.f_type;
        if u64::try_from(kind).ok() != Some(self.kind.magic()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = Vec::with_capacity(4096);
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cgroup: &str, mountinfo: &str) -> Option<(Kind, Vec<String>)> {
        let hierarchy = hierarchy(cgroup, mountinfo)?;
        let levels = hierarchy.levels().map(|level| level.display().to_string());
        Some((hierarchy.kind, levels.collect()))
    }

    #[test]
    fn the_unified_hierarchy_as_a_node_shows_it() {
        let mounts = "24 30 0:22 / /proc rw shared:13 - proc proc rw\n\
            35 28 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            found("0::/kubepods.slice/pod1.slice/cri-a.scope\n", mounts),
            Some((
                Kind::V2,
                vec![
                    "/sys/fs/cgroup/kubepods.slice/pod1.slice/cri-a.scope".to_owned(),
                    "/sys/fs/cgroup/kubepods.slice/pod1.slice".to_owned(),
                    "/sys/fs/cgroup/kubepods.slice".to_owned(),
                    "/sys/fs/cgroup/".to_owned(),
                ]
            ))
        );
        assert_eq!(
            found("0::/\n", "24 30 0:22 / /proc rw - proc proc rw\n"),
            None
        );
    }

    #[test]
    fn a_container_with_a_cgroup_namespace_of_its_own() {
        let own = "731 722 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
        let levels = vec!["/sys/fs/cgroup/".to_owned()];
        assert_eq!(found("0::/\n", own), Some((Kind::V2, levels.clone())));
        // The target's, from the container beside it: its root is elsewhere in both files.
        let other = "801 790 0:30 /../cri-b.scope /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(
            found("0::/../cri-b.scope\n", other),
            Some((Kind::V2, levels))
        );
        assert_eq!(found("0::/../cri-c.scope\n", other), None);
    }

    #[test]
    fn the_memory_controller_of_the_first_version_comes_before_the_unified_hierarchy() {
        let mounts = "33 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
            35 31 0:32 /kubepods/pod1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            found(
                "5:devices:/x\n4:memory:/kubepods/pod1/a\n1:name=systemd:/memory\n0::/\n",
                mounts
            ),
            Some((
                Kind::V1,
                vec![
                    "/sys/fs/cgroup/memory/a".to_owned(),
                    "/sys/fs/cgroup/memory/".to_owned()
                ]
            ))
        );
    }

    #[test]
    fn torn_lines_are_left_out() {
        assert_eq!(found("", ""), None);
        assert_eq!(found("0:\n\n0::/\n", "35 28 -\n - cgroup2\n1 - \n"), None);
        assert_eq!(number("max\n"), None);
        assert_eq!(
            number("9223372036854771712\n"),
            Some(9_223_372_036_854_771_712)
        );
        let stat = "anon 5\ninactive_file_x 1\ninactive_file 4096\n";
        assert_eq!(counter(stat, "inactive_file"), Some(4096));
        assert_eq!(counter(stat, "total_inactive_file"), None);
    }
}
