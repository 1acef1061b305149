//! docs/security.md names tests for what it says: here they are looked for in the sources.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a panic is the report; clippy exempts only functions marked as tests, not what they call"
)]

use sidewinder_e2e::checkout;

/// What stands under this heading is what no test can show: what remains open.
const OPEN: &str = "## What remains";

fn page() -> String {
    std::fs::read_to_string(checkout().join("docs/security.md")).unwrap()
}

/// The tests that a text names, each as its file and its name.
fn named(text: &str) -> Vec<(&str, &str)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| word.split_once(".rs::"))
        .collect()
}

/// Whether `source` has a test called `name`: a function that is marked as one, or that `on_each_python` marks.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|line| {
        let line = line.trim_start_matches("pub(crate) ");
        let line = line.trim_start_matches("async ");
        line.strip_prefix("fn ")
            .and_then(|line| line.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('('))
    }) else {
        return false;
    };
    let marked = lines[..at]
        .iter()
        .rev()
        .take_while(|line| line.starts_with("#["))
        .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
    let on_each = source
        .split("on_each_python!")
        .skip(1)
        .filter_map(|list| list.split(['}', ';']).next())
        .any(|list| {
            list.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
                .any(|word| word == name)
        });
    marked || on_each
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let page = page();
    let tests = named(&page);
    assert!(!tests.is_empty());
    let missing: Vec<_> = tests
        .into_iter()
        .filter(|(file, name)| {
            let path = checkout().join(format!("{file}.rs"));
            !std::fs::read_to_string(path).is_ok_and(|source| has_test(&source, name))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_statement_names_a_test() {
    let page = page();
    let (shown, open) = page.split_once(OPEN).unwrap();
    assert!(!open.contains("\n## "), "{OPEN} is the last section");
    let mut heading = false;
    for line in shown.lines() {
        // A table's first line, the line below it, and its rows.
        let row = line.starts_with('|') && !line.starts_with("|---");
        let is_heading = row && !heading;
        heading = line.starts_with('|');
        let numbered = line.starts_with(|first: char| first.is_ascii_digit());
        // Rules of the masking stand below the sentence about them.
        let item = line.starts_with("* ") || numbered;
        if (row && !is_heading) || item {
            assert!(!named(line).is_empty(), "{line}");
        }
    }
}

#[test]
fn a_test_is_known_by_its_mark() {
    let source = "on_each_python![\n    one,\n    two\n];\nfn one(python: Python) {}\nfn three() {}\n#[test]\n#[ignore]\nfn four() {}\n    #[tokio::test(start_paused = true)]\n    async fn five() {}\n";
    for (name, known) in [
        ("one", true),
        ("two", false),
        ("three", false),
        ("four", true),
        ("five", true),
        ("fiv", false),
    ] {
        assert_eq!(has_test(source, name), known, "{name}");
    }
    assert_eq!(named("a `b/c.rs::d`, `e`"), [("b/c", "d")]);
}

/// What other pages and the operator's own words lead to.
#[test]
fn every_link_into_the_page_leads_somewhere() {
    let anchors: Vec<String> = page()
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches(['#', ' ']);
            title.to_lowercase().replace(' ', "-")
        })
        .collect();
    let mut links = 0;
    for file in [
        "README.md",
        "docs/operations.md",
        "docs/runbook.md",
        "docs/reasons.md",
        "docs/architecture.md",
        "docs/scripts.md",
        "docs/security.md",
        "docs/stacks.md",
        "operator/src/fences/words.rs",
    ] {
        let text = std::fs::read_to_string(checkout().join(file)).unwrap();
        let own = if file == "docs/security.md" {
            "](#"
        } else {
            "security.md#"
        };
        for link in text.split(own).skip(1) {
            let anchor = link.split(|letter: char| !letter.is_alphanumeric() && letter != '-');
            let anchor = anchor.into_iter().next().unwrap_or_default();
            assert!(
                anchors.iter().any(|known| known == anchor),
                "{file}: {anchor}"
            );
            links += 1;
        }
    }
    assert!(links > 2, "{links}");
}
