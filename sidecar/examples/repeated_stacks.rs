//! The stacks of one process, again and again in one process of ours, so that what we leak adds up: for
//! `cargo e2e bench snapshots`.
//!
//! `repeated_stacks PID COUNT` prints one line of JSON each time: the answer, and our own resident memory after it.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is the report of a benchmark"
)]

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use sidewinder_model::{Action, Data, Locals, Reason, Stacks};
use sidewinder_sidecar::discover::Discovery;
use sidewinder_sidecar::read::{Bounds, act, fenced};

/// How long one reading may take.
const LIMIT: Duration = Duration::from_secs(10);
/// A page of x86-64 and of the usual aarch64.
const PAGE_BYTES: u64 = 4096;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stacks: Stacks,
    resident_bytes: u64,
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    PAGE_BYTES * pages.unwrap_or(0_u64)
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|argument| argument.parse().expect("PID and COUNT are numbers"));
    let (Some(pid), Some(count), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        panic!("usage: repeated_stacks PID COUNT")
    };
    let discovery = Discovery::one(pid).expect("the process is there");
    let found = discovery.found.into_iter().next();
    let found = Arc::new(found.expect("the process is a Python"));
    let action = Action::Stacks {
        locals: Locals::None,
    };
    let mut stdout = std::io::stdout().lock();
    for _ in 0..count {
        let bounds = Bounds::until(Instant::now() + LIMIT);
        let (found, action) = (found.clone(), action.clone());
        let outcome =
            fenced(move || act(&found, &action, &bounds)).unwrap_or_else(|refused| *refused);
        assert!(
            outcome.reason == Reason::Succeeded,
            "{:?}: {}",
            outcome.reason,
            outcome.message
        );
        let Some(Data::Stacks(stacks)) = outcome.data else {
            panic!("an answer without stacks")
        };
        let line = Line {
            stacks,
            resident_bytes: resident_bytes(),
        };
        let mut line = serde_json::to_vec(&line).expect("stacks are JSON");
        line.push(b'\n');
        stdout.write_all(&line).expect("somebody reads");
    }
}
