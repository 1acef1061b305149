//! Times when parts of the cluster are away or wrongly configured. Each test has the cluster for itself.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use sidewinder_e2e::deploy::{self, Destination};
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::tools::Module;
use sidewinder_e2e::workload::{self, ephemeral_containers};
use sidewinder_e2e::{checkout, command};
use sidewinder_model::{ExecOutcome, Reason};

use crate::expect::{complete, data, failed, message, one};
use crate::stage::{alone, stage};

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(30);

#[test]
fn a_session_survives_that_the_api_server_is_away() {
    alone("api_server_away", async |namespace| {
        let Destination::Embedded(cluster) = &stage()?.destination else {
            // The API server of somebody's own cluster is not ours to stop.
            return Ok(());
        };
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let script = "import time\nwith open('/tmp/runs', 'a') as runs:\n    runs.write('run\\n')\nend = time.monotonic() + 10\nwhile time.monotonic() < end:\n    time.sleep(0.05)\n'ended'";
        let mut session = sessions::exec("exec", "idle", script);
        session.spec.timeout_seconds = 60;
        let session = sessions::create(&namespace.sessions(), &session).await?;
        namespace
            .shell_in(
                "idle",
                "for i in $(seq 400); do [ -s /tmp/runs ] && exit 0; sleep 0.05; done; exit 1",
            )
            .await?;
        {
            let _away = cluster.stop("kube-apiserver")?;
            tokio::time::sleep(AWAY).await;
        }
        let ended = sessions::ended(&namespace.sessions(), &session).await?;
        let status = complete(&ended, Reason::Succeeded)?;
        let outcome: ExecOutcome = data(namespace, &ended, one(status)?).await?;
        ensure!(outcome.value.as_deref() == Some("'ended'"), "{outcome:?}");
        ensure!(
            namespace.shell_in("idle", "cat /tmp/runs").await? == "run\n",
            "the script ran again"
        );
        let after = namespace.run(&sessions::stacks("after", "idle")).await?;
        complete(&after, Reason::Succeeded)?;
        let now = namespace.pods().get("idle").await?;
        ensure!(workload::restarts(&now) == 0);
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_sidecar_image_that_cannot_be_pulled() {
    alone("image_cannot_be_pulled", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let stage = stage()?;
        let (repository, tag) = stage
            .sidecar_image
            .rsplit_once(':')
            .context("the sidecar's image has no tag")?;
        set_sidecar(repository, "not-there").await?;
        let outcome = async {
            let started = std::time::Instant::now();
            let session = namespace.run(&sessions::stacks("stacks", "idle")).await?;
            let message = message(failed(&session, Reason::ImagePullFailed)?)?;
            ensure!(message.contains("not-there"), "{message}");
            ensure!(
                started.elapsed() < Duration::from_mins(1),
                "it took {:?}",
                started.elapsed()
            );
            Ok(())
        }
        .await;
        set_sidecar(repository, tag).await?;
        outcome?;
        // What cannot be pulled stays in the pod for ever; the next session brings a sidecar of its own.
        let session = namespace.run(&sessions::stacks("again", "idle")).await?;
        complete(&session, Reason::Succeeded)?;
        ensure!(
            ephemeral_containers(&namespace.pods().get(&pod.before.name_any()).await?).len() == 2
        );
        pod.check_untouched(namespace).await
    });
}

/// Upgrades the chart's release so that the operator puts this image into pods.
async fn set_sidecar(repository: &str, tag: &str) -> Result<()> {
    let image = format!("sidecar.image.repository={repository},sidecar.image.tag={tag}");
    tokio::task::spawn_blocking(move || {
        let mut helm = Command::new(Module::Helm.binary("helm")?);
        helm.env("KUBECONFIG", stage()?.destination.kubeconfig())
            .args(["upgrade", deploy::RELEASE])
            .arg(checkout().join("charts/sidewinder"))
            .args([
                "--namespace",
                deploy::NAMESPACE,
                "--reuse-values",
                "--set",
                &image,
            ])
            .args(["--wait", "--timeout", "90s"]);
        command::output(&mut helm, Duration::from_mins(2)).context("cannot upgrade the release")?;
        Ok(())
    })
    .await?
}
