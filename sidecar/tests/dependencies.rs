//! Who may depend on whom: the direction that docs/architecture.md draws, checked on cargo's own graph.

#![expect(clippy::unwrap_used, reason = "a panic is the report of a test")]

use std::process::Command;

fn tree(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            package,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| Some(line.split(' ').next()?.to_owned()))
        .collect();
    names.sort();
    names.dedup();
    assert!(
        names.iter().any(|name| name == package),
        "{package} is not in its own tree: {names:?}"
    );
    names
}

fn assert_absent(package: &str, unwanted: &[&str]) {
    let names = tree(package);
    for name in unwanted {
        assert!(
            !names.iter().any(|other| other == name),
            "{package} must not depend on {name}"
        );
    }
}

#[test]
fn the_contract_depends_on_serde_alone() {
    let names = tree("sidewinder-model");
    for name in &names {
        let allowed = [
            "sidewinder-model",
            "serde",
            "serde_core",
            "serde_derive",
            "proc-macro2",
            "quote",
            "syn",
            "unicode-ident",
        ];
        assert!(
            allowed.contains(&name.as_str()),
            "sidewinder-model depends on {name}"
        );
    }
}

#[test]
fn the_pure_crates_cannot_reach_the_kernel() {
    for package in ["sidewinder-decode", "sidewinder-diagnose"] {
        assert_absent(
            package,
            &[
                "nix",
                "rustix",
                "libc",
                "tokio",
                "getrandom",
                "sidewinder-linux",
            ],
        );
    }
}

#[test]
fn the_sidecar_knows_nothing_of_kubernetes_and_has_no_async_runtime() {
    assert_absent(
        "sidewinder-sidecar",
        &[
            "kube",
            "kube-core",
            "kube-client",
            "k8s-openapi",
            "tokio",
            "futures",
            "hyper",
            "rustls",
            "sidewinder-crds",
        ],
    );
}

#[test]
fn the_operator_knows_nothing_of_cpython() {
    assert_absent(
        "sidewinder-operator",
        &[
            "sidewinder-decode",
            "sidewinder-diagnose",
            "sidewinder-linux",
            "sidewinder-sidecar",
            "nix",
            "object",
        ],
    );
}

#[test]
fn the_api_has_no_client() {
    assert_absent(
        "sidewinder-crds",
        &[
            "kube-client",
            "tokio",
            "hyper",
            "rustls",
            "sidewinder-model",
        ],
    );
}

#[test]
fn what_only_reads_names_nothing_that_writes() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources: Vec<String> = ["read.rs", "capture.rs", "discover.rs", "select.rs"]
        .iter()
        .map(|file| std::fs::read_to_string(folder.join(file)).unwrap())
        .collect();
    for writer in [
        "inject",
        "perform",
        "carrier",
        "Carrier",
        "Writer",
        "Armed",
        "write::",
        "stopped::",
        "registers",
    ] {
        let named = |text: &String| {
            let mut code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            code.any(|line| line.contains(writer))
        };
        assert!(
            !sources.iter().any(named),
            "{writer} is named where only reading is done"
        );
    }
}
