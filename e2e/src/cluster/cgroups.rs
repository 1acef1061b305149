//! The control groups of one cluster's pods: below a root of their own, so that clusters do not meet and what is left can be removed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The kernel may take a moment to let the last process of a group go.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// The name of a cluster's group, below the root of every hierarchy.
pub(crate) fn name(id: &str) -> String {
    format!("sidewinder-{id}")
}

/// The hierarchies of this machine: one with cgroup v2, one per controller with v1.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        matches!(kind, "cgroup" | "cgroup2").then_some(())?;
        Some(PathBuf::from(left.split(' ').nth(4)?))
    });
    let mut folders: Vec<PathBuf> = mounts
        .filter(|folder| folder.starts_with("/sys/fs/cgroup"))
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

fn all() -> Result<Vec<PathBuf>> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
        .context("cannot read /proc/self/mountinfo")?;
    let found = hierarchies(&mountinfo);
    if found.is_empty() {
        bail!(
            "no cgroup file system is mounted below /sys/fs/cgroup: the kubelet cannot run without one"
        );
    }
    Ok(found)
}

/// Makes the cluster's group everywhere: the kubelet wants its root to exist.
pub(crate) fn make(id: &str) -> Result<()> {
    for hierarchy in all()? {
        let group = hierarchy.join(name(id));
        std::fs::create_dir_all(&group)
            .with_context(|| format!("cannot make the control group {}", group.display()))?;
        // A new cpuset of v1 is empty, and no process can enter it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (hierarchy.join(file), group.join(file));
            if hierarchy.join("cgroup.controllers").exists() || !from.exists() {
                continue;
            }
            let value = std::fs::read_to_string(&from)
                .with_context(|| format!("cannot read {}", from.display()))?;
            std::fs::write(&to, value.trim())
                .with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    Ok(())
}

/// Removes the cluster's groups with everything below, whose processes must have ended.
pub(crate) fn remove(id: &str) -> Result<()> {
    for hierarchy in all()? {
        let group = hierarchy.join(name(id));
        let start = Instant::now();
        while let Err(error) = remove_tree(&group) {
            if start.elapsed() > EMPTY_LIMIT {
                return Err(error).with_context(|| {
                    format!("cannot remove the control group {}", group.display())
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Groups are removed from the leaves up, with rmdir alone.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hierarchy_is_found_once_and_nothing_else() {
        let mountinfo = "22 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                         30 22 0:21 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
                         31 22 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                         32 22 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                         33 22 0:23 / /mnt/elsewhere rw - cgroup cgroup rw,memory\n";
        assert_eq!(
            hierarchies(mountinfo),
            [
                Path::new("/sys/fs/cgroup/cpu"),
                Path::new("/sys/fs/cgroup/unified")
            ]
        );
    }
}
