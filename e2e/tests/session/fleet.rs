//! Sessions for several pods at once, and sessions that only say what would happen.

use anyhow::{Context as _, Result, ensure};
use sidewinder_crds::{
    AttachMode, DebugSession, LabelOperator, LabelRequirement, PodCount, PodMode, PodSelector,
    Requester,
};
use sidewinder_e2e::namespace::{PodSecurity, TestNamespace};
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::workload::ephemeral_containers;
use sidewinder_model::Reason;

use crate::expect::{complete, failed, one};
use crate::interruptions::runs;
use crate::stage::{test, test_in};

/// Writes down inside the target that it ran.
const COUNTED: &str = "with open('/tmp/runs', 'a') as runs:\n    runs.write('run\\n')\n'done'";

/// `session`, for the pods of these applications instead of one.
fn of(mut session: DebugSession, applications: &[&str], pods: Option<PodCount>) -> DebugSession {
    let target = &mut session.spec.target;
    target.pod_name = None;
    target.selector = Some(PodSelector {
        match_expressions: vec![LabelRequirement {
            key: "app".to_owned(),
            operator: LabelOperator::In,
            values: applications.iter().map(|name| (*name).to_owned()).collect(),
        }],
        ..PodSelector::default()
    });
    target.pods = pods;
    session
}

fn all(parallel: i32) -> PodCount {
    PodCount {
        mode: PodMode::All,
        value: None,
        max_parallel: parallel,
    }
}

async fn sidecars(namespace: &TestNamespace, pod: &str) -> Result<Vec<String>> {
    let pod = namespace.pods().get(pod).await?;
    Ok(ephemeral_containers(&pod))
}

#[test]
fn every_pod_of_a_selector_answers_and_the_one_that_differs_is_named() {
    test("fleet", async |namespace| {
        let names = ["web-0", "web-1", "web-2", "web-3"];
        for name in names {
            let program = if name == "web-2" {
                "idle_server.py"
            } else {
                "blocked_main.py"
            };
            namespace.start(&namespace.python(name, program)).await?;
        }
        let session = of(sessions::stacks("stacks", ""), &names, Some(all(3)));
        let session = namespace.run(&session).await?;
        let status = complete(&session, Reason::Succeeded)?;
        let found: Vec<_> = status
            .targets
            .iter()
            .map(|target| target.pod_name.as_str())
            .collect();
        ensure!(found == names, "{found:?}");
        ensure!(status.pods.as_deref() == Some("4/4"), "{:?}", status.pods);
        for target in &status.targets {
            let pod = namespace.pods().get(&target.pod_name).await?;
            ensure!(target.pod_uid == pod.metadata.uid);
            ensure!(target.pid == Some(1) && target.text.is_some(), "{target:?}");
        }
        let summary = status.summary.as_deref().unwrap_or_default();
        ensure!(
            summary.starts_with("3 of 4 pods: ") && summary.contains("web-2 differs"),
            "{summary}"
        );

        // Each of them runs a script once, two at a time.
        let session = of(sessions::exec("count", "", COUNTED), &names, Some(all(2)));
        let session = namespace.run(&session).await?;
        complete(&session, Reason::Succeeded)?;
        for name in names {
            let runs = runs(namespace, name).await?;
            ensure!(runs == 1, "{name} ran it {runs} times");
            let sidecars = sidecars(namespace, name).await?;
            ensure!(sidecars.len() == 1, "{name} carries {sidecars:?}");
        }
        Ok(())
    });
}

#[test]
fn one_pod_without_python_fails_alone_and_one_pod_is_asked_by_default() {
    test("fleet_partly", async |namespace| {
        namespace
            .start(&namespace.python("web-1", "idle_server.py"))
            .await?;
        namespace
            .start(&namespace.shell("web-0", "echo ready; exec sleep 3600"))
            .await?;
        let names = ["web-0", "web-1"];
        let session = of(sessions::exec("run", "", COUNTED), &names, Some(all(5)));
        let session = namespace.run(&session).await?;
        let status = complete(&session, Reason::PartiallyFailed)?;
        let reasons: Vec<_> = status
            .targets
            .iter()
            .filter_map(|target| target.reason.as_deref())
            .collect();
        ensure!(
            reasons == ["NoPythonProcess", "Succeeded"],
            "{reasons:?}: {status:?}"
        );
        // Neither is Ready or not Ready more than the other, so the first name is asked.
        let session = of(sessions::stacks("one", ""), &names, None);
        let session = namespace.run(&session).await?;
        ensure!(
            one(failed(&session, Reason::NoPythonProcess)?)?.pod_name == "web-0",
            "{:?}",
            session.status
        );
        let session = of(sessions::stacks("none", ""), &["api"], Some(all(5)));
        let session = namespace.run(&session).await?;
        let status = failed(&session, Reason::PodNotFound)?;
        let summary = status.summary.as_deref().unwrap_or_default();
        ensure!(summary.contains("matches app in (api)"), "{summary}");
        ensure!(status.targets.is_empty());
        Ok(())
    });
}

#[test]
fn a_dry_run_says_what_would_happen_and_leaves_the_pod_alone() {
    test_in("dry_run", PodSecurity::Restricted, async |namespace| {
        let workload = namespace
            .python("idle", "idle_server.py")
            .confined(sidewinder_e2e::workload::Confinement::Restricted);
        let pod = namespace.start(&workload).await?;
        for (attach, reason, words) in [
            (AttachMode::Auto, Reason::DryRun, "(attach SameUser)"),
            (
                AttachMode::Ptrace,
                Reason::PodSecurityForbidden,
                "violates PodSecurity",
            ),
        ] {
            let name = format!("dry-{attach:?}").to_lowercase();
            let mut session = sessions::exec(&name, "idle", "1");
            session.spec.dry_run = true;
            session.spec.attach = attach;
            let session = namespace.run(&session).await?;
            let status = if reason == Reason::DryRun {
                complete(&session, reason)?
            } else {
                failed(&session, reason)?
            };
            let message = one(status)?.message.clone().unwrap_or_default();
            ensure!(message.contains(words), "{message}");
        }
        let mut missing = sessions::stacks("dry-missing", "nobody");
        missing.spec.dry_run = true;
        failed(&namespace.run(&missing).await?, Reason::PodNotFound)?;
        let carried = sidecars(namespace, "idle").await?;
        ensure!(carried.is_empty(), "{carried:?}");
        pod.check_untouched(namespace).await
    });
}

#[test]
fn whoever_says_to_be_somebody_else_is_refused() {
    test("requester", async |namespace| {
        let mut session = sessions::stacks("false", "idle");
        session.spec.requested_by = Some(Requester {
            username: "somebody-else".to_owned(),
            ..Requester::default()
        });
        let refused = sessions::create(&namespace.sessions(), &session).await;
        let error = refused.err().context("it was accepted")?;
        ensure!(format!("{error:#}").contains("requestedBy"), "{error:#}");
        Ok(())
    });
}
