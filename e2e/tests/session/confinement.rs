//! Pods and namespaces that allow little, and the sidecar without an operator.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use sidewinder_crds::{AttachMode, AttachedAs, DebugSession};
use sidewinder_e2e::namespace::{PodSecurity, Target, TestNamespace};
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::workload::{Confinement, ephemeral_containers, line_of};
use sidewinder_model::{ExecOutcome, ProcessList, Reason, Stacks, Tasks};

use crate::expect::{complete, data, failed, frame, message, one, task, thread};
use crate::stage::{kubectl, stage, test, test_in};

/// Runs every action on the stuck service and checks how the sidecar attached.
async fn every_action(namespace: &TestNamespace, pod: &Target, attach: AttachedAs) -> Result<()> {
    let attached = |session: &DebugSession| -> Result<()> {
        let target = one(complete(session, Reason::Succeeded)?)?;
        ensure!(
            target.attach == Some(attach),
            "attached as {:?}",
            target.attach
        );
        Ok(())
    };
    let session = namespace
        .run(&sessions::processes("processes", &pod.name))
        .await?;
    attached(&session)?;
    let list: ProcessList = data(namespace, &session, sessions::target_of(&session)?).await?;
    ensure!(
        list.processes.len() == 1 && list.processes.iter().all(|process| process.pid == 1),
        "{list:?}"
    );

    let session = namespace.run(&sessions::tasks("tasks", &pod.name)).await?;
    attached(&session)?;
    let tasks: Tasks = data(namespace, &session, sessions::target_of(&session)?).await?;
    let request = task(&tasks, "request-17")?;
    frame(
        &request.coroutine,
        "Service.handle",
        "stuck_service.py",
        line_of("stuck_service.py", "async with asyncio.TaskGroup()")?,
    )?;

    let session = namespace
        .run(&sessions::stacks("stacks", &pod.name))
        .await?;
    attached(&session)?;
    let stacks: Stacks = data(namespace, &session, sessions::target_of(&session)?).await?;
    thread(&stacks, "exporter")?;

    let session = namespace
        .run(&sessions::exec(
            "exec",
            &pod.name,
            "import os; print(os.getuid()); os.getuid()",
        ))
        .await?;
    attached(&session)?;
    let outcome: ExecOutcome = data(namespace, &session, sessions::target_of(&session)?).await?;
    ensure!(
        outcome.value.as_deref() == Some(outcome.stdout.trim()),
        "{outcome:?}"
    );
    pod.check_untouched(namespace).await
}

#[test]
fn a_pod_without_capabilities_and_with_a_read_only_root_answers() {
    test("a_confined_pod_answers", async |namespace| {
        let shop = namespace
            .python("shop", "stuck_service.py")
            .confined(Confinement::Restricted);
        let pod = namespace.start(&shop).await?;
        every_action(namespace, &pod, AttachedAs::Ptrace).await
    });
}

#[test]
fn a_restricted_namespace_is_entered_as_the_targets_own_user() {
    test_in(
        "restricted_namespace",
        PodSecurity::Restricted,
        async |namespace| {
            let shop = namespace
                .python("shop", "stuck_service.py")
                .confined(Confinement::Restricted);
            let pod = namespace.start(&shop).await?;
            every_action(namespace, &pod, AttachedAs::SameUser).await
        },
    );
}

#[test]
fn a_baseline_namespace_is_entered_as_the_targets_own_root() {
    test_in(
        "baseline_namespace",
        PodSecurity::Baseline,
        async |namespace| {
            let pod = namespace
                .start(&namespace.python("shop", "stuck_service.py"))
                .await?;
            every_action(namespace, &pod, AttachedAs::SameUser).await
        },
    );
}

#[test]
fn the_capability_is_refused_where_pod_security_forbids_it() {
    test_in(
        "capability_refused",
        PodSecurity::Restricted,
        async |namespace| {
            let shop = namespace
                .python("shop", "stuck_service.py")
                .confined(Confinement::Restricted);
            let pod = namespace.start(&shop).await?;
            let mut session = sessions::stacks("stacks", "shop");
            session.spec.attach = AttachMode::Ptrace;
            let session = namespace.run(&session).await?;
            let status = failed(&session, Reason::PodSecurityForbidden)?;
            let message = message(status)?;
            for words in ["violates PodSecurity \"restricted:latest\"", "SYS_PTRACE"] {
                ensure!(message.contains(words), "the message is {message:?}");
            }
            let now = namespace.pods().get("shop").await?;
            ensure!(
                ephemeral_containers(&now).is_empty(),
                "{:?}",
                ephemeral_containers(&now)
            );
            pod.check_untouched(namespace).await
        },
    );
}

#[test]
fn the_targets_own_user_suffices_where_it_is_asked_for() {
    test("same_user_on_request", async |namespace| {
        let shop = namespace
            .python("shop", "stuck_service.py")
            .confined(Confinement::Restricted);
        let pod = namespace.start(&shop).await?;
        let mut session = sessions::tasks("tasks", "shop");
        session.spec.attach = AttachMode::SameUser;
        let session = namespace.run(&session).await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        ensure!(
            target.attach == Some(AttachedAs::SameUser),
            "{:?}",
            target.attach
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn the_sidecar_answers_by_hand_without_the_operator() {
    test("the_sidecar_by_hand", async |namespace| {
        let pod = namespace
            .start(&namespace.python("shop", "stuck_service.py"))
            .await?;
        for (container, command) in [
            ("by-hand-stacks", ["stacks", "--pid", "1", "-o", "json"]),
            ("by-hand-tasks", ["tasks", "--pid", "1", "-o", "json"]),
        ] {
            let image = stage()?.sidecar_image.as_str();
            let mut debug = vec![
                "debug",
                "--namespace",
                &namespace.name,
                "shop",
                "--image",
                image,
                "--image-pull-policy",
                "IfNotPresent",
                "--target",
                "app",
                "--container",
                container,
                "--quiet",
                "--",
                "/sidewinder-sidecar",
            ];
            debug.extend(command);
            kubectl(&debug).await?;
            let printed = namespace.printed_by(&pod.name, container).await?;
            if container == "by-hand-stacks" {
                let stacks: Stacks = serde_json::from_str(&printed)?;
                let exporter = thread(&stacks, "exporter")?;
                frame(
                    &exporter.frames,
                    "Service.export",
                    "stuck_service.py",
                    line_of("stuck_service.py", "bank.recv(4096)")?,
                )?;
            } else {
                let tasks: Tasks = serde_json::from_str(&printed)?;
                task(&tasks, "request-17")?;
            }
        }
        pod.check_untouched(namespace).await
    });
}

/// The first name that a sidecar would have.
const FOREIGN: &str = "sidewinder-app-1";

/// What somebody else put beside the program, also under a name of ours, is neither entered nor counted as ours.
#[test]
fn a_container_of_somebody_else_with_our_name_is_passed_over() {
    test("foreign_container", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let foreign = serde_json::json!({"spec": {"ephemeralContainers": [{
            "name": FOREIGN,
            "image": namespace.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sh", "-c", "echo begun; exec sleep infinity"],
            "targetContainerName": "app",
        }]}});
        let added = namespace
            .pods()
            .patch_ephemeral_containers("idle", &PatchParams::default(), &Patch::Strategic(foreign))
            .await?;
        ensure!(ephemeral_containers(&added) == [FOREIGN]);
        let session = namespace.run(&sessions::stacks("stacks", "idle")).await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        ensure!(
            target.sidecar.as_deref() == Some("sidewinder-app-2"),
            "{:?}",
            target.sidecar
        );
        let session = namespace
            .run(&sessions::exec("exec", "idle", "6 * 7"))
            .await?;
        complete(&session, Reason::Succeeded)?;
        let now = namespace.pods().get("idle").await?;
        ensure!(ephemeral_containers(&now).len() == 2);
        let foreign = |pod: &Pod| {
            let spec = pod.spec.clone().unwrap_or_default();
            let all = spec.ephemeral_containers.unwrap_or_default();
            all.into_iter().find(|found| found.name == FOREIGN)
        };
        ensure!(
            foreign(&added).is_some() && foreign(&added) == foreign(&now),
            "{:?}",
            foreign(&now)
        );
        pod.check_untouched(namespace).await
    });
}
