//! The table of `docs/remote-exec.md`, as measured.

use std::fmt::Write as _;

use crate::Results;
use crate::case::{Kind, State};

const BEGIN: &str = "<!-- Measured by `UPDATE=1 cargo test -p sidewinder-e2e --features live --test live_wake`. -->\n";
const END: &str = "<!-- The end of what was measured. -->\n";
const VERSIONS: [&str; 2] = ["3.14", "3.15"];

/// The table in Markdown.
pub(crate) fn of(states: &[State], results: &Results) -> String {
    let mut table = String::from(
        "| blocked in | system call | main thread, 3.14 | 3.15 | other thread, 3.14 | 3.15 | |\n|---|---|---|---|---|---|---|\n",
    );
    for state in states {
        let note = state.note.as_deref().unwrap_or_default();
        let cells: Vec<String> = [Kind::Main, Kind::Other]
            .into_iter()
            .flat_map(|kind| VERSIONS.map(|version| cell(state, kind, version, results)))
            .collect();
        writeln!(
            table,
            "| {} | {} | {} | {note} |",
            state.title,
            call(state, results),
            cells.join(" | ")
        )
        .unwrap();
    }
    table
}

/// What came, or what comes usually.
fn cell(state: &State, kind: Kind, version: &'static str, results: &Results) -> String {
    let Some(saw) = results.get(&(state.name.clone(), kind, version)) else {
        return String::new();
    };
    let expected = state.expected(kind, version);
    let usual = expected.first().copied().unwrap_or(&saw.came);
    if expected.contains(&saw.came.as_str()) {
        usual.to_owned()
    } else {
        saw.came.clone()
    }
}

/// The system calls, which may be others in another version.
fn call(state: &State, results: &Results) -> String {
    let [first, second] = VERSIONS.map(|version| {
        let seen = results
            .iter()
            .filter(|((name, _, of), _)| *name == state.name && *of == version);
        let mut calls: Vec<&str> = seen.map(|(_, saw)| saw.call.as_str()).collect();
        calls.sort_unstable();
        calls.dedup();
        calls.join(", ")
    });
    match (first == second, first.is_empty()) {
        (true, true) => "none".to_owned(),
        (true, false) => first,
        (false, _) => format!("{first}; 3.15: {second}"),
    }
}

/// Compares the table with the one that is committed; with `UPDATE=1` in the environment it takes its place.
pub(crate) fn compare(table: &str) {
    let path = sidewinder_e2e::checkout().join("docs/remote-exec.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("no beginning of the table");
    let (committed, after) = rest.split_once(END).expect("no end of the table");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}\n{table}\n{END}{after}")).unwrap();
        return;
    }
    for (line, of_page) in table.lines().zip(committed.trim().lines()) {
        assert_eq!(line, of_page, "docs/remote-exec.md says otherwise");
    }
    assert_eq!(table.trim(), committed.trim());
}
