//! What reading a process costs us and the process, beside the peers: tables for each Python.

mod memory;
mod pauses;
pub(super) mod python;
mod rounds;
mod snapshots;
mod stacks;
pub(super) mod target;
mod tasks;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use self::python::Python;
use super::{figures, load};
use crate::{images, python as pythons};

/// One table, or a few that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Tasks,
    Pauses,
    Stacks,
    Snapshots,
    Memory,
}

impl Part {
    pub(super) const ALL: [Self; 5] = [
        Self::Tasks,
        Self::Pauses,
        Self::Stacks,
        Self::Snapshots,
        Self::Memory,
    ];
}

/// Prints the tables of `parts` for every Python.
pub(super) fn run(parts: &[Part]) -> Result<()> {
    python::own_mounts()?;
    let sidecar = images::sidecar_binary()?;
    for version in pythons::VERSIONS {
        let bench = Bench {
            python: Python::open(version)?,
            sidecar: sidecar.clone(),
        };
        for part in parts {
            match part {
                Part::Tasks => tasks::run(&bench)?,
                Part::Pauses => pauses::run(&bench)?,
                Part::Stacks => stacks::run(&bench)?,
                Part::Snapshots => snapshots::run(&bench)?,
                Part::Memory => memory::run(&bench)?,
            }
        }
    }
    Ok(())
}

/// What every part needs.
struct Bench {
    python: Python,
    sidecar: PathBuf,
}

impl Bench {
    /// `sidewinder-sidecar ACTION --pid PID -o OUTPUT`.
    fn ours(&self, action: &str, pid: u32, output: &str) -> Command {
        let mut command = Command::new(&self.sidecar);
        command.args([action, "--pid", &pid.to_string(), "-o", output]);
        command
    }

    /// Begins the output of a part.
    fn heading(&self, title: &str) {
        println!(
            "\n# CPython {}: {title} (load {})",
            self.python.release,
            load()
        );
    }
}

/// The value of the last field `key` of a pretty-printed document of ours, as it is written. A document of 100 000
/// tasks takes long to parse; quotes within its texts are escaped, so none of them can look like a field.
fn field<'a>(document: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = document.rsplit_once(&format!("\"{key}\": "))?;
    rest.split([',', '\n', '}']).next()
}

/// How long the target stood still, as the answer has it.
fn paused(document: &str) -> Option<Duration> {
    let paused = field(document, "pausedMicroseconds")?.parse().ok()?;
    Some(Duration::from_micros(paused))
}

/// `0.123 ms`.
fn precise(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1000.0)
}

/// How often `other` contains `one`.
fn ratio(one: Duration, other: Duration) -> f64 {
    other.as_secs_f64() / one.as_secs_f64()
}

/// A row of a table.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_without_parsing_the_document() {
        let document = "{\n  \"name\": \"\\\"pausedMicroseconds\\\": 7\",\n  \"pausedMicroseconds\": 1234,\n  \"problems\": []\n}\n";
        assert_eq!(paused(document), Some(Duration::from_micros(1234)));
        assert_eq!(field(document, "problems"), Some("[]"));
        assert_eq!(field(document, "stopped"), None);
    }
}
