//! Whose rights count, and when: those of whoever asked, as they are right before anything is done.

use anyhow::{Result, ensure};
use kube::{Api, ResourceExt as _};
use sidewinder_crds::DebugSession;
use sidewinder_e2e::namespace::{Target, TestNamespace};
use sidewinder_e2e::people::{self, rule};
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::workload::{self, ephemeral_containers};
use sidewinder_model::Reason;

use crate::expect::{cannot_stamp, complete, failed, message};
use crate::interruptions::SOON;
use crate::stage::{stage, test};

/// The sessions of the namespace, in the name of `user`.
async fn as_user(namespace: &TestNamespace, user: &str) -> Result<Api<DebugSession>> {
    let kubeconfig = stage()?.destination.kubeconfig();
    let client = people::client_as(&kubeconfig, user).await?;
    Ok(Api::namespaced(client, &namespace.name))
}

/// Lets `user` create sessions, and run code by them.
async fn may_exec(namespace: &TestNamespace, user: &str) -> Result<()> {
    let sessions = rule("sidewinder.dev", "debugsessions", &["create"]);
    let exec = rule("", "pods/exec", &["create"]);
    let name = format!("{user}-exec");
    people::grant(&namespace.client, &namespace.name, user, user, &[sessions]).await?;
    people::grant(&namespace.client, &namespace.name, &name, user, &[exec]).await
}

fn touch(name: &str) -> DebugSession {
    let script = format!("open('/tmp/{name}', 'w').close()\n'{name}'");
    sessions::exec(name, "idle", &script)
}

#[test]
fn a_right_that_is_lost_before_the_script_runs_no_longer_counts() {
    test("right_lost", async |namespace| {
        let held = namespace.python("idle", "idle_server.py").held();
        workload::create(&namespace.pods(), &held).await?;
        let mut asked = Vec::new();
        for user in ["keeper", "loser"] {
            may_exec(namespace, user).await?;
            let theirs = as_user(namespace, user).await?;
            let session = sessions::create(&theirs, &touch(user)).await?;
            let requester = session.spec.requested_by.as_ref();
            // Before Kubernetes 1.36 nobody is stamped, and nobody's rights are asked for again.
            if requester.is_none() {
                return cannot_stamp(&namespace.client).await;
            }
            ensure!(requester.is_some_and(|requester| requester.username == user));
            asked.push(session);
        }
        // Both were admitted and taken up, and wait for their pod.
        for session in &asked {
            sessions::status(
                &namespace.sessions(),
                &session.name_any(),
                SOON,
                "it to be taken up",
                |status| status.phase.is_some(),
            )
            .await?;
        }
        people::revoke(&namespace.client, &namespace.name, "loser-exec", "loser").await?;
        let before = workload::let_go(&namespace.pods(), "idle").await?;
        let pod = Target {
            name: before.name_any(),
            before,
        };

        let [kept, lost] = asked.as_slice() else {
            anyhow::bail!("two sessions were asked for");
        };
        let kept = sessions::ended(&namespace.sessions(), kept).await?;
        complete(&kept, Reason::Succeeded)?;
        let lost = sessions::ended(&namespace.sessions(), lost).await?;
        let words = message(failed(&lost, Reason::PolicyDenied)?)?;
        ensure!(
            words.contains("loser") && words.contains("pods/exec on pod idle"),
            "{words}"
        );
        let files = namespace.shell_in("idle", "ls /tmp").await?;
        ensure!(files == "keeper\n", "{files}");

        // Reading never needed the right.
        let theirs = as_user(namespace, "loser").await?;
        let stacks = sessions::create(&theirs, &sessions::stacks("stacks", "idle")).await?;
        let stacks = sessions::ended(&namespace.sessions(), &stacks).await?;
        complete(&stacks, Reason::Succeeded)?;
        // And whoever has lost it is not admitted any more.
        let again = sessions::create(&theirs, &touch("again")).await;
        ensure!(
            again
                .as_ref()
                .is_err_and(|error| format!("{error:#}").contains("sidewinder-code-running")),
            "{again:?}"
        );
        ensure!(ephemeral_containers(&namespace.pods().get("idle").await?).len() == 1);
        pod.check_untouched(namespace).await
    });
}
