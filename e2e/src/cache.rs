//! What is slow to make and the same every time: kept outside the checkout under a key of what it was made from.

use std::fmt::Write as _;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

/// Nothing that is made here takes longer: a cold build of Kubernetes on one slow core included.
const BUILD_LIMIT: Duration = Duration::from_hours(1);

/// `$SIDEWINDER_CACHE`, else `sidewinder` below `$XDG_CACHE_HOME` or `~/.cache`.
pub fn root() -> Result<PathBuf> {
    root_from(|name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
}

fn root_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    let root = variable("SIDEWINDER_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|base| base.join("sidewinder")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/sidewinder")))
        .context("no place for the cache: set SIDEWINDER_CACHE or HOME")?;
    if root.is_relative() {
        bail!(
            "the cache folder {} is relative: set SIDEWINDER_CACHE to an absolute path",
            root.display()
        );
    }
    Ok(root)
}

/// A key of named contents: 16 hexadecimal digits that differ whenever a name, a content or their order differs.
pub fn key<'a>(parts: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (name, content) in parts {
        for field in [name.as_bytes(), content] {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
    }
    let mut text = hex(&hash.finalize());
    text.truncate(16);
    text
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The folder `kind/name` of the cache. If it is not there, `build` fills a new folder, which then takes its place as a whole: a build that fails
/// or is killed leaves nothing that looks finished. Of several processes that want it, one builds and the others wait.
pub fn entry(kind: &str, name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    entry_in(&root()?, kind, name, build)
}

fn entry_in(
    root: &Path,
    kind: &str,
    name: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = root.join(kind);
    let done = folder.join(name);
    if done.exists() {
        return Ok(done);
    }
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the cache folder {}", folder.display()))?;
    let _lock = lock(&folder.join(format!(".{name}.lock")), BUILD_LIMIT)?;
    if done.exists() {
        return Ok(done);
    }
    let unfinished = folder.join(format!(".{name}.unfinished"));
    // With the lock held, whatever is there is left from a build that was killed.
    remove_all(&unfinished)?;
    std::fs::create_dir(&unfinished)
        .with_context(|| format!("cannot make {}", unfinished.display()))?;
    build(&unfinished)?;
    std::fs::rename(&unfinished, &done)
        .with_context(|| format!("cannot move {} to {}", unfinished.display(), done.display()))?;
    Ok(done)
}

/// Removes a folder with all it holds; one that is not there is fine.
pub fn remove_all(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The exclusive lock on `file`, held until the value is dropped or the process ends; waits at most `limit`.
pub fn lock(file: &Path, limit: Duration) -> Result<File> {
    let start = Instant::now();
    let handle = open_lock(file)?;
    loop {
        match handle.try_lock() {
            Ok(()) => return Ok(handle),
            Err(TryLockError::WouldBlock) if start.elapsed() < limit => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another process holds {} for more than {} s",
                    file.display(),
                    limit.as_secs()
                )
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", file.display()));
            }
        }
    }
}

/// Whether some process holds the lock on `file`.
pub fn is_locked(file: &Path) -> Result<bool> {
    let handle = match File::open(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        handle => {
            handle.with_context(|| format!("cannot open the lock file {}", file.display()))?
        }
    };
    match handle.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot try the lock on {}", file.display()))
        }
    }
}

fn open_lock(file: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(file)
        .with_context(|| format!("cannot open the lock file {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<PathBuf> {
        root_from(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn the_most_specific_variable_names_the_cache() {
        assert_eq!(
            with(&[("HOME", "/h")]).unwrap(),
            Path::new("/h/.cache/sidewinder")
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap(),
            Path::new("/x/sidewinder")
        );
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "/x"), ("SIDEWINDER_CACHE", "/s")]).unwrap(),
            Path::new("/s")
        );
        assert!(
            with(&[])
                .unwrap_err()
                .to_string()
                .contains("SIDEWINDER_CACHE")
        );
        assert!(
            with(&[("SIDEWINDER_CACHE", "here")])
                .unwrap_err()
                .to_string()
                .contains("absolute")
        );
    }

    #[test]
    fn a_key_differs_when_anything_differs() {
        let base = key([("go.mod", b"a".as_slice()), ("go.sum", b"b")]);
        assert_eq!(base.len(), 16);
        assert_eq!(base, key([("go.mod", b"a".as_slice()), ("go.sum", b"b")]));
        for other in [
            key([("go.mod", b"ab".as_slice()), ("go.sum", b"")]),
            key([("go.sum", b"b".as_slice()), ("go.mod", b"a")]),
            key([("go.modgo.sum", b"ab".as_slice())]),
            key([("go.mod", b"a".as_slice())]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn an_entry_is_built_once_and_a_failed_build_leaves_none() {
        let root = tempfile::tempdir().unwrap();
        let failed = entry_in(root.path(), "kind", "name", |folder| {
            std::fs::write(folder.join("half"), "x")?;
            bail!("no disk")
        });
        assert!(failed.unwrap_err().to_string().contains("no disk"));
        assert!(!root.path().join("kind/name").exists());
        let built = entry_in(root.path(), "kind", "name", |folder| {
            Ok(std::fs::write(folder.join("whole"), "x")?)
        })
        .unwrap();
        assert!(built.join("whole").exists() && !built.join("half").exists());
        let again = entry_in(root.path(), "kind", "name", |_| bail!("built twice")).unwrap();
        assert_eq!(built, again);
    }

    #[test]
    fn several_that_want_an_entry_build_it_once() {
        let root = tempfile::tempdir().unwrap();
        let builds = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    entry_in(root.path(), "kind", "name", |_| {
                        builds.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        Ok(())
                    })
                    .unwrap()
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }

    #[test]
    fn a_held_lock_is_seen_and_waited_for_no_longer_than_the_limit() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("lock");
        assert!(!is_locked(&file).unwrap());
        let held = lock(&file, Duration::ZERO).unwrap();
        assert!(is_locked(&file).unwrap());
        assert!(
            lock(&file, Duration::from_millis(50))
                .unwrap_err()
                .to_string()
                .contains("another process holds")
        );
        drop(held);
        assert!(!is_locked(&file).unwrap());
    }
}
