//! Scripts in one process, again and again from one process of ours, as a resident agent runs them: for
//! `cargo e2e bench exec`.
//!
//! `repeated_exec PID COUNT SCRIPT THREAD...` runs the script each time in one of the threads (`main`, `any` or the
//! kernel's id of one), in an order that is the same each time, and prints one line of JSON: the outcome, and how long it
//! took from the request to the script's first statement. The script's value is a list that begins with its own
//! `time.monotonic_ns()`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is the report of a benchmark"
)]

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use sidewinder_model::{Data, ExecRequest, Reason, ThreadChoice, Wake, WakePolicy};
use sidewinder_sidecar::discover::Discovery;
use sidewinder_sidecar::perform::{Scripts, exec};
use sidewinder_sidecar::read::Bounds;

/// How long one script may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to start, in milliseconds.
const START: u64 = 10_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    reason: Reason,
    message: String,
    wake: Option<Wake>,
    started_microseconds: Option<u64>,
    total_microseconds: u128,
    paused_microseconds: u64,
    /// The script's value.
    value: Vec<u64>,
}

fn now() -> u64 {
    let now =
        Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock"));
    u64::try_from(now.as_nanos()).expect("not in this century")
}

fn thread(text: &str) -> ThreadChoice {
    match text {
        "main" => ThreadChoice::Main,
        "any" => ThreadChoice::Any,
        tid => ThreadChoice::Tid(tid.parse().expect("a thread is main, any or a number")),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // A script's carrier is this program once more.
    if let Some((command, orders)) = arguments.split_first()
        && command == "carrier"
    {
        return sidewinder_linux::carrier::carrier_main(orders);
    }
    let [pid, count, script, threads @ ..] = arguments.as_slice() else {
        panic!("usage: repeated_exec PID COUNT SCRIPT THREAD...")
    };
    let discovery = Discovery::one(pid.parse().expect("PID is a number")).expect("it is there");
    let found = discovery.found.first().expect("the process is a Python");
    let script = std::fs::read_to_string(script).expect("the script can be read");
    let threads: Vec<ThreadChoice> = threads.iter().map(|text| thread(text)).collect();
    assert!(!threads.is_empty(), "no thread");
    let mut stdout = std::io::stdout().lock();
    let mut place = 0_usize;
    for _ in 0..count.parse::<usize>().expect("COUNT is a number") {
        // Knuth's generator: any order will do that is not that of the threads.
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let thread = threads
            .get((place >> 33) % threads.len())
            .expect("a remainder is below the length");
        let request = ExecRequest {
            script: script.clone(),
            thread: *thread,
            wake: WakePolicy::Auto,
            interpreter: 0,
            start_milliseconds: START,
        };
        let bounds = Bounds::until(Instant::now() + LIMIT);
        let (began, clock) = (now(), Instant::now());
        let outcome = exec(found, &request, &bounds, &Scripts::default());
        let total_microseconds = clock.elapsed().as_micros();
        let Some(Data::Exec(ran)) = outcome.data else {
            panic!("{:?}: {}", outcome.reason, outcome.message)
        };
        let value: Vec<u64> = ran
            .value_json
            .as_deref()
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default();
        let line = Line {
            reason: outcome.reason,
            message: outcome.message,
            wake: value.first().map(|_| ran.wake),
            started_microseconds: value.first().map(|at| at.saturating_sub(began) / 1000),
            total_microseconds,
            paused_microseconds: outcome.paused_microseconds,
            value,
        };
        let mut line = serde_json::to_vec(&line).expect("an outcome is JSON");
        line.push(b'\n');
        stdout.write_all(&line).expect("somebody reads");
    }
    ExitCode::SUCCESS
}
