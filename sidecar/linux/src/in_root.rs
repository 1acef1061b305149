//! A path as somebody with another root sees it: never left through a link or `..` that was planted there.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Most links of one path, as the kernel has it: `MAXSYMLINKS`, `path_resolution(7)`.
const MAX_LINKS: u32 = 40;

/// Most folders of one path: each is held open, and a target may plant a deep tree.
const MAX_DEPTH: usize = 128;

/// Opens a path below `root`.
pub(crate) fn open(root: impl AsFd, path: &str, flags: OFlags) -> io::Result<File> {
    // openat2(2) refuses O_PATH with flags that only an opened file can have.
    let flags = if flags.contains(OFlags::PATH) {
        flags
    } else {
        flags | OFlags::NOCTTY
    } | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(fd.into()),
        // A thread behind the fence has no openat2(2), whose flags a filter cannot see.
        Err(Errno::PERM | Errno::NOSYS) => walk(root.as_fd(), path, flags),
        Err(errno) => Err(errno.into()),
    }
}

/// The names of a path, the first one last, so that those of a link can be put before what is left.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
}

/// The same, one name at a time. What `..` leads to is the folder through which we came, whatever was moved meanwhile.
fn walk(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<File> {
    let mut rest: Vec<OsString> = names(Path::new(path)).collect();
    let mut folders: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            folders.pop();
            continue;
        }
        let here = folders.last().map_or(root, AsFd::as_fd);
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(here, &name, look, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind.is_symlink() && !(rest.is_empty() && flags.contains(OFlags::NOFOLLOW)) {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            let text = rustix::fs::readlinkat(&found, "", Vec::new())?;
            let text = OsString::from_vec(text.into_bytes());
            let text = Path::new(&text);
            if text.is_absolute() {
                folders.clear();
            }
            rest.extend(names(text));
        } else if rest.is_empty() {
            // Changed for a link meanwhile, it is refused.
            let fd = rustix::fs::openat(here, &name, flags | OFlags::NOFOLLOW, Mode::empty())?;
            return Ok(fd.into());
        } else if !kind.is_dir() {
            return Err(Errno::NOTDIR.into());
        } else if folders.len() >= MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        } else {
            folders.push(found);
        }
    }
    let here = folders.last().map_or(root, AsFd::as_fd);
    Ok(rustix::fs::openat(here, ".", flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    /// Which file it is, or why there is none.
    fn which(opened: io::Result<File>) -> Result<(u64, u64), Option<i32>> {
        match opened {
            Ok(file) => {
                let meta = file.metadata().unwrap();
                Ok((meta.dev(), meta.ino()))
            }
            Err(error) => Err(error.raw_os_error()),
        }
    }

    #[test]
    fn a_walk_leads_to_the_file_that_the_kernel_s_own_resolution_does() {
        let outer = tempfile::tempdir().unwrap();
        std::fs::write(outer.path().join("secret"), "outside").unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "inside").unwrap();
        std::fs::write(root.join("secret"), "the root's own").unwrap();
        for (link, text) in [
            ("up", "../../../secret"),
            ("a/up", "../../secret"),
            ("absolute", "/a/b/file"),
            ("folder", "/a/b"),
            ("a/relative", "b/file"),
            ("dots", "a/../a/./b/../b/file"),
            ("loop", "loop"),
            ("broken", "nowhere"),
            ("slash", "/"),
        ] {
            symlink(text, root.join(link)).unwrap();
        }
        let opened = File::open(&root).unwrap();
        for path in [
            "a/b/file",
            "/a/b/file",
            "//a//b//file",
            "up",
            "a/up",
            "../../../../secret",
            "/../secret",
            "absolute",
            "folder/file",
            "folder/../b/file",
            "a/relative",
            "dots",
            "loop",
            "loop/x",
            "broken",
            "nowhere",
            "a/b/file/more",
            "a/b/file/../file",
            "slash",
            "slash/secret",
            "/",
            ".",
            "..",
            "a",
        ] {
            for flags in [
                OFlags::PATH,
                OFlags::PATH | OFlags::NOFOLLOW,
                OFlags::PATH | OFlags::DIRECTORY,
                OFlags::RDONLY | OFlags::NONBLOCK,
                OFlags::RDONLY | OFlags::NOFOLLOW,
                OFlags::RDONLY | OFlags::DIRECTORY,
            ] {
                let kernel = which(open(&opened, path, flags));
                let walked = which(walk(opened.as_fd(), path, flags | OFlags::CLOEXEC));
                assert_eq!(walked, kernel, "{path} with {flags:?}");
            }
        }
        let outside = std::fs::metadata(outer.path().join("secret")).unwrap();
        let reached = which(walk(opened.as_fd(), "up", OFlags::RDONLY));
        assert_ne!(reached, Ok((outside.dev(), outside.ino())));
    }

    #[test]
    fn a_deep_tree_does_not_take_all_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let deep = "d/".repeat(MAX_DEPTH + 2);
        std::fs::create_dir_all(root.path().join(&deep)).unwrap();
        let opened = File::open(root.path()).unwrap();
        let error = walk(opened.as_fd(), &deep, OFlags::PATH).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENAMETOOLONG));
    }
}
