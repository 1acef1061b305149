//! Which folders of a target may hold a script for it.

use crate::Process;

/// Where a program may expect to write, in the order they are tried.
const USUAL: [&str; 4] = ["/dev/shm", "/tmp", "/var/tmp", "/run"];
/// File systems that cannot keep us waiting for another machine, and that are no window into the kernel.
const KINDS: [&str; 9] = [
    "tmpfs", "overlay", "ext4", "xfs", "btrfs", "ext3", "ext2", "f2fs", "zfs",
];
/// The most folders that are looked at. The target can mount as many as its user namespace lets it.
const MOST: usize = 48;

/// A line of `/proc/PID/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: String,
    kind: String,
    read_only: bool,
}

/// The folders to try, in order: those that are usual, what lies in memory, other volumes, and where the target works.
pub(super) fn folders(process: &Process) -> Vec<String> {
    let text = process.proc_file("mountinfo").unwrap_or_default();
    let cwd = process.readlink("cwd").ok().and_then(|cwd| {
        let cwd = cwd.into_string().ok()?;
        // As the target sees it: the link is relative to the root of the mount namespace.
        let root = process.readlink("root").ok()?.into_string().ok()?;
        let inside = match root.as_str() {
            "/" => cwd.as_str(),
            root => cwd.strip_prefix(root)?,
        };
        Some(if inside.is_empty() { "/" } else { inside }.to_owned())
    });
    in_order(&mounts(&String::from_utf8_lossy(&text)), cwd)
}

fn in_order(mounts: &[Mount], cwd: Option<String>) -> Vec<String> {
    let writable = |memory: bool| {
        mounts
            .iter()
            .filter(move |mount| !mount.read_only && (mount.kind == "tmpfs") == memory)
            .map(|mount| mount.point.clone())
    };
    let mut folders: Vec<String> = Vec::new();
    for folder in USUAL
        .map(str::to_owned)
        .into_iter()
        .chain(writable(true))
        .chain(writable(false))
        .chain(cwd)
    {
        if folder.starts_with('/') && is_on_a_disk(mounts, &folder) && !folders.contains(&folder) {
            folders.push(folder);
        }
        if folders.len() >= MOST {
            break;
        }
    }
    folders
}

/// Whether a folder lies on one of [`KINDS`], or on what the target's mounts do not tell: a process that changed its root
/// sees only the mounts below it.
fn is_on_a_disk(mounts: &[Mount], folder: &str) -> bool {
    let beneath = |point: &str| {
        point == "/"
            || folder
                .strip_prefix(point)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    mounts
        .iter()
        .filter(|mount| beneath(&mount.point))
        // Of several there the last, which is the one that is seen.
        .max_by_key(|mount| mount.point.len())
        .is_none_or(|mount| KINDS.contains(&mount.kind.as_str()))
}

/// `/proc/PID/mountinfo`: <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>. A line that cannot be read is
/// left out.
fn mounts(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(4);
            let point = unescaped(before.next()?);
            let options = before.next()?;
            let mut after = after.split(' ');
            let kind = after.next()?.to_owned();
            let all = after.nth(1)?;
            let read_only = |options: &str| options.split(',').any(|option| option == "ro");
            Some(Mount {
                point,
                kind,
                read_only: read_only(options) || read_only(all),
            })
        })
        .collect()
}

/// A path with its blanks as they are: the kernel writes them as `\040`.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = byte {
            out.push(byte);
            rest = after.get(3..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 0:20 / / ro,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b\n\
        23 22 0:21 / /proc rw - proc proc rw\n\
        24 22 0:22 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755\n\
        25 24 0:23 / /dev/shm rw - tmpfs shm rw,size=65536k\n\
        26 22 8:1 /pods/1/data /data\\040of\\040mine rw - ext4 /dev/sda1 rw\n\
        27 22 8:1 /pods/1/hosts /etc/hosts rw - ext4 /dev/sda1 rw\n\
        28 22 0:24 / /var/run/secrets ro - tmpfs tmpfs rw\n\
        29 22 0:25 / /scratch rw - tmpfs tmpfs rw\n\
        30 22 0:26 / /frozen rw - tmpfs tmpfs ro\n\
        31 22 0:27 / /tmp rw - nfs4 server:/tmp rw\n\
        32 22 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n\
        torn\n";

    #[test]
    fn memory_comes_before_disks_and_what_is_no_disk_is_left_alone() {
        assert_eq!(
            in_order(&mounts(MOUNTS), Some("/data of mine/work".to_owned())),
            [
                "/dev/shm",
                "/var/tmp",
                "/run",
                "/dev",
                "/scratch",
                "/data of mine",
                "/etc/hosts",
                "/data of mine/work",
            ]
        );
        // On a disk of another machine, and in a kernel's own file system.
        for cwd in ["/tmp/work", "/proc/1", "/proc"] {
            let folders = in_order(&mounts(MOUNTS), Some(cwd.to_owned()));
            assert!(!folders.iter().any(|folder| folder == cwd), "{folders:?}");
        }
        assert!(is_on_a_disk(&mounts(MOUNTS), "/temporary"));
    }

    #[test]
    fn without_mounts_the_usual_folders_are_left() {
        assert_eq!(
            in_order(&[], Some("/".to_owned())),
            ["/dev/shm", "/tmp", "/var/tmp", "/run", "/"]
        );
        assert_eq!(in_order(&[], None).len(), 4);
    }

    #[test]
    fn a_folder_is_where_the_last_mount_put_it() {
        let twice = "1 0 8:1 / / rw - ext4 disk rw\n2 1 0:9 / /tmp rw - nfs a rw\n3 2 0:8 / /tmp rw - tmpfs b rw\n";
        assert!(is_on_a_disk(&mounts(twice), "/tmp/x"));
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescaped("/a\\040b\\134c\\9\\77"), "/a b\\c\\9\\77");
        assert_eq!(unescaped("\\777"), "\\777");
    }
}
