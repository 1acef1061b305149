//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sidewinder_model::{Locals, ThreadChoice, WakePolicy};

/// Reads a running Python process, or runs a script in it, without preparing or restarting it.
#[derive(Debug, Parser)]
#[command(name = "sidewinder-sidecar", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 answered; 1 the script raised; 2 wrong usage; 3 not permitted; 4 no such process, or not a \
supported Python; 5 blocked, busy or out of time (the stacks are still printed); 6 everything else; 130 interrupted.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the Python processes that can be seen.
    Ps {
        /// How the answer looks.
        #[arg(short, long, value_enum, default_value_t = TextOrJson::Text)]
        output: TextOrJson,
    },
    /// Print the stacks of every thread.
    Stacks {
        /// Where the snapshot comes from.
        #[command(flatten)]
        source: Source,
        /// How the answer looks.
        #[arg(short, long, value_enum, default_value_t = TextOrJson::Text)]
        output: TextOrJson,
        /// Which local variables are shown.
        #[arg(long, value_enum, default_value_t = LocalsArg::None)]
        locals: LocalsArg,
    },
    /// Print every asyncio task and what it waits for.
    Tasks {
        /// Where the snapshot comes from.
        #[command(flatten)]
        source: Source,
        /// How the answer looks.
        #[arg(short, long, value_enum, default_value_t = TreeTableOrJson::Tree)]
        output: TreeTableOrJson,
    },
    /// Run a script inside the process (CPython 3.14 and newer).
    Exec {
        /// The process.
        #[arg(long, value_name = "N")]
        pid: i32,
        /// The script; `-`, or nothing, reads standard input to its end.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// The script as text, for where nothing can be piped in (`kubectl debug` leaves standard input open).
        #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
        code: Option<String>,
        /// Which thread runs it: auto, main, any or a thread id.
        #[arg(long, default_value = "auto", value_parser = parse_thread)]
        thread: ThreadChoice,
        /// The interpreter that runs it.
        #[arg(long, value_name = "ID", default_value_t = 0)]
        interpreter: i64,
        /// How far to go to make a blocked thread answer.
        #[arg(long, value_enum, default_value_t = WakeArg::Auto)]
        wake: WakeArg,
        /// Not started by then: disarm, and print where the threads are blocked.
        #[arg(long, default_value = "3s", value_parser = parse_duration)]
        start: Duration,
        /// How long the whole command may take.
        #[arg(long, default_value = "30s", value_parser = parse_duration)]
        timeout: Duration,
        /// How the answer looks.
        #[arg(short, long, value_enum, default_value_t = TextOrJson::Text)]
        output: TextOrJson,
    },
    /// Record the memory that a snapshot reads, for a bug report or a test.
    Record {
        /// The process.
        #[arg(long, value_name = "N")]
        pid: i32,
        /// The file to write. It must not exist.
        #[arg(long)]
        out: PathBuf,
        /// Which local variables can be shown from the recording. Values may be secrets: a recording masks nothing.
        #[arg(long, value_enum, default_value_t = LocalsArg::Types)]
        locals: LocalsArg,
    },
    /// Serve requests on the socket in /run/sidewinder. This is what the operator starts.
    Agent {
        /// Leave after this many seconds without a request.
        #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        idle_seconds: u64,
    },
    /// Carry frames between standard input and output and the agent. This is what the operator executes.
    Relay,
    /// Do nothing until told to end: for nodes that shall keep this image.
    #[command(hide = true)]
    Hold,
    /// Hold a script for a target. For internal use.
    #[command(hide = true)]
    Carrier {
        /// As the parent process passes them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// Where a snapshot comes from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// The process.
    #[arg(long, value_name = "N")]
    pub pid: Option<i32>,
    /// A file that `record` wrote.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
}

/// Output of most commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextOrJson {
    /// For people.
    Text,
    /// One document, as documented in the API.
    Json,
}

/// Output of `tasks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TreeTableOrJson {
    /// The await graph.
    Tree,
    /// One row per task.
    Table,
    /// One document, as documented in the API.
    Json,
}

/// Which local variables are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LocalsArg {
    /// None.
    None,
    /// Names and types.
    Types,
    /// Names, types and clipped values.
    Values,
}

/// How far to go to make a blocked thread answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WakeArg {
    /// Whatever is known to be safe.
    Auto,
    /// Only the interrupt step.
    Interrupt,
    /// Nothing.
    Never,
}

impl From<LocalsArg> for Locals {
    fn from(arg: LocalsArg) -> Self {
        match arg {
            LocalsArg::None => Self::None,
            LocalsArg::Types => Self::Types,
            LocalsArg::Values => Self::Values,
        }
    }
}

impl From<WakeArg> for WakePolicy {
    fn from(arg: WakeArg) -> Self {
        match arg {
            WakeArg::Auto => Self::Auto,
            WakeArg::Interrupt => Self::Interrupt,
            WakeArg::Never => Self::Never,
        }
    }
}

fn parse_thread(text: &str) -> Result<ThreadChoice, String> {
    match text {
        "auto" => Ok(ThreadChoice::Auto),
        "main" => Ok(ThreadChoice::Main),
        "any" => Ok(ThreadChoice::Any),
        _ => match text.parse() {
            Ok(tid) if tid > 0 => Ok(ThreadChoice::Tid(tid)),
            _ => Err("expected auto, main, any or a thread id".to_owned()),
        },
    }
}

/// `250ms`, `3s`, `2m`, or a number of seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number = u64::from_str(number)
        .map_err(|_| "expected a number with ms, s or m, such as 30s".to_owned())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => None,
    };
    match milliseconds {
        Some(milliseconds @ 1..=3_600_000) => Ok(Duration::from_millis(milliseconds)),
        _ => Err("expected 1ms to 60m, such as 250ms, 30s or 2m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        for bad in [
            "",
            "s",
            "0s",
            "61m",
            "3h",
            "-1s",
            "99999999999999999999s",
            "1.5s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn threads_are_named_or_numbered() {
        assert_eq!(parse_thread("any"), Ok(ThreadChoice::Any));
        assert_eq!(parse_thread("17"), Ok(ThreadChoice::Tid(17)));
        for bad in ["", "0", "-3", "Main", "first"] {
            assert!(parse_thread(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_snapshot_needs_exactly_one_source() {
        assert!(Cli::try_parse_from(["s", "stacks"]).is_err());
        assert!(Cli::try_parse_from(["s", "stacks", "--pid", "1", "--image", "x"]).is_err());
        assert!(Cli::try_parse_from(["s", "stacks", "--pid", "1"]).is_ok());
    }
}
