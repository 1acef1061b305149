//! `docs/reasons.md` is what the enum says.

use std::path::Path;
use std::{env, fs};

use sidewinder_model::Reason;

const HEAD: &str = "\
<!-- Generated from sidecar/model/src/reason.rs by `UPDATE=1 cargo test -p sidewinder-model --test reasons_doc`. -->

# Reasons

Whatever ends, ends for one of these reasons. The same name stands in a session's conditions and in `status.reason`, in
`status.targets[].reason`, in Events, as the `reason` label of the metrics, and in what the commands print. The list is
closed: a name that is not here comes from another version.

A session ends with two conditions, of which one is True: `Complete` (the action was carried out; a script that raised is
an answer) or `Failed`. To wait for either:

```
kubectl wait --for=jsonpath='{.status.completionTime}' debugsessions.sidewinder.dev/NAME --timeout=5m
```

The exit code is that of `sidewinder-sidecar` by hand: 0 answered, 1 the script raised, 2 wrong usage, 3 not permitted, 4 the target is not there or is not a supported Python, 5 blocked, busy or not in
time, 6 everything else, 130 interrupted.
";

fn page() -> String {
    let mut parts = vec![HEAD.to_owned()];
    let ends_well = |reason: &Reason| reason.is_complete() || reason.exit_code() == 0;
    let groups = [
        ("Steps and good ends", true),
        ("Why a session fails", false),
    ];
    for (title, wanted) in groups {
        parts.push(format!("\n## {title}\n"));
        for reason in Reason::ALL
            .iter()
            .filter(|reason| ends_well(reason) == wanted)
        {
            let meaning = capitalized(reason.sentence());
            let code = reason.exit_code();
            let condition = if reason.is_complete() {
                ", `Complete`"
            } else {
                ""
            };
            parts.push(format!(
                "\n### {reason}\n\n{meaning} (exit code {code}{condition}).\n\n{}\n",
                reason.advice()
            ));
        }
    }
    parts.concat()
}

fn capitalized(sentence: &str) -> String {
    let mut rest = sentence.chars();
    rest.next()
        .map(|first| first.to_uppercase().chain(rest).collect())
        .unwrap_or_default()
}

#[test]
fn the_page_is_generated_from_the_enum() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reasons.md");
    let wanted = page();
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, &wanted).unwrap();
    }
    assert!(
        fs::read_to_string(&file).unwrap_or_default() == wanted,
        "docs/reasons.md is out of date: run `UPDATE=1 cargo test -p sidewinder-model --test reasons_doc`"
    );
}

#[test]
fn every_reason_says_what_it_means_and_what_to_do() {
    for reason in Reason::ALL {
        assert!(!reason.sentence().ends_with('.'), "{reason}");
        assert!(reason.advice().ends_with('.'), "{reason}");
        assert!(reason.advice().len() > 8, "{reason}");
    }
}
