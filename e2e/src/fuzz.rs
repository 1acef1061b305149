//! The fuzz targets of `sidecar/decode/fuzz`, for a bounded time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{checkout, command, packages};

/// The targets, each with the seconds it runs and the folder of the checkout that it begins with.
const TARGETS: [(&str, u64, Option<&str>); 3] = [
    ("mutate", 30, None),
    ("image", 20, Some("sidecar/decode/tests/images")),
    ("elf", 10, None),
];

/// A cold build takes a minute on two cores.
const BUILD_LIMIT: Duration = Duration::from_mins(15);

/// Builds the targets and runs each; what one found fails the step, and the error says how to see it again.
///
/// # Errors
/// When a target finds something or does not build.
pub fn run() -> Result<()> {
    packages::ensure(packages::FUZZ)?;
    command::visible(&mut cargo("build", &["--quiet", "--bins"]), BUILD_LIMIT)?;
    for (target, seconds, seeds) in TARGETS {
        // What led somewhere is kept for the next time; what failed is where `.gitignore` knows it.
        let (corpus, findings) = (kept("corpus", target)?, kept("findings", target)?);
        let mut fuzz = cargo("run", &["--quiet", "--bin", target, "--"]);
        fuzz.args(options(seconds, &findings)).arg(corpus);
        fuzz.args(seeds.map(|seeds| checkout().join(seeds)));
        let limit = Duration::from_secs(seconds) + Duration::from_mins(3);
        if let Err(error) = command::visible(&mut fuzz, limit) {
            bail!(
                "{target}: {error:#}. {}",
                again(target, newest(&findings).as_deref())
            );
        }
    }
    Ok(())
}

/// Cargo in the workspace of the fuzz targets, whose own flags must not be overridden.
fn cargo(subcommand: &str, arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(checkout().join("sidecar/decode/fuzz"))
        .env("CARGO_TARGET_DIR", folder())
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args([subcommand, "--release", "--locked"])
        .args(arguments);
    cargo
}

fn folder() -> PathBuf {
    checkout().join("target/fuzz")
}

fn kept(what: &str, target: &str) -> Result<PathBuf> {
    let kept = folder().join(what).join(target);
    std::fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
    Ok(kept)
}

/// libFuzzer's options: an input that takes ten seconds or half a gigabyte is a finding.
/// <https://llvm.org/docs/LibFuzzer.html#options>
fn options(seconds: u64, findings: &Path) -> [String; 6] {
    [
        format!("-max_total_time={seconds}"),
        "-timeout=10".to_owned(),
        "-rss_limit_mb=512".to_owned(),
        "-verbosity=0".to_owned(),
        "-print_funcs=0".to_owned(),
        format!("-artifact_prefix={}/", findings.display()),
    ]
}

/// How a finding is seen again.
fn again(target: &str, input: Option<&Path>) -> String {
    let Some(input) = input else {
        return "it left no input to try again".to_owned();
    };
    format!(
        "To see it again: cd sidecar/decode/fuzz && cargo run --release --bin {target} -- {}",
        input.display()
    )
}

/// The file that was written last.
fn newest(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten();
    files
        .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
        .max()
        .map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_workspace_is_run() {
        let manifest = checkout().join("sidecar/decode/fuzz/Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        for (target, _, seeds) in TARGETS {
            assert!(manifest.contains(&format!("[[bin]]\nname = \"{target}\"")));
            assert!(seeds.is_none_or(|seeds| checkout().join(seeds).is_dir()));
        }
        assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    }

    #[test]
    fn a_finding_is_named_with_the_command_that_shows_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest(folder.path()), None);
        let input = folder.path().join("crash-1");
        std::fs::write(&input, "x").unwrap();
        let text = again("elf", newest(folder.path()).as_deref());
        assert!(text.ends_with(&format!("--bin elf -- {}", input.display())));
    }
}
