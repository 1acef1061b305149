//! A script in a thread that is blocked, in every way in which one can be: whether it ran or why it cannot, that the
//! wait goes on as if nothing had been, and that nothing is left armed. `docs/remote-exec.md` shows what came out.
//!
//! The states are the functions in `states/*.py`; one more function there is one more row. `STATES=locks.lock,tls` runs
//! those whose names contain one of the words, and then leaves the table alone.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

#[path = "../live/mod.rs"]
mod live;

mod case;
mod hazards;
mod table;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::thread;

use case::{Case, Kind, Saw, State};
use live::Python;

/// How many targets there are at a time: they wait more than they compute.
const AT_A_TIME: usize = 10;

/// What came of every case: by the state's name, the thread and the version.
type Results = BTreeMap<(String, Kind, &'static str), Saw>;

/// Runs every case, some side by side.
fn run(cases: Vec<Case>, at_a_time: usize) -> Results {
    let waiting = Mutex::new(VecDeque::from(cases));
    let results = Mutex::new(Results::new());
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    let Some(case) = waiting.lock().unwrap().pop_front() else {
                        return;
                    };
                    let key = (case.state.name.clone(), case.kind, case.python.version());
                    let saw = thread::spawn(move || case.run()).join();
                    let saw = saw.unwrap_or_else(|panic| Saw {
                        problems: vec![case::message(&*panic)],
                        ..Saw::default()
                    });
                    results.lock().unwrap().insert(key, saw);
                }
            });
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn every_blocked_state() {
    let words = std::env::var("STATES").ok();
    let wanted = |state: &State| {
        words
            .as_ref()
            .is_none_or(|words| words.split(',').any(|word| state.name.contains(word)))
    };
    // Built before the first program runs.
    live::sidecar();
    let states: Vec<State> = case::states().into_iter().filter(wanted).collect();
    assert!(!states.is_empty(), "there is no such state");
    let (mut waiting, mut computing) = (Vec::new(), Vec::new());
    for state in &states {
        for kind in state.kinds() {
            for python in [Python::V3_14, Python::V3_15] {
                let cases = if state.computes() {
                    &mut computing
                } else {
                    &mut waiting
                };
                cases.push(Case {
                    state: state.clone(),
                    kind,
                    python,
                });
            }
        }
    }
    // The long ones first, so that the last ones are not waited for.
    waiting.sort_by_key(|case| case.state.seconds.is_none());
    let mut results = run(waiting, AT_A_TIME);
    // Each of these takes a CPU.
    results.extend(run(computing, 2));
    let wrong: Vec<String> = results
        .iter()
        .flat_map(|((name, kind, version), saw)| {
            let problems = saw.problems.iter();
            problems.map(move |problem| format!("{name} {kind} {version}: {problem}"))
        })
        .collect();
    if words.is_some() {
        eprintln!("{}", table::of(&states, &results));
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        results.len(),
        wrong.join("\n")
    );
    if words.is_none() {
        table::compare(&table::of(&states, &results));
    }
}
