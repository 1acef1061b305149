//! Wrong input: each ends with the reason that says what was wrong, and never hangs.

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use sidewinder_crds::conditions::DISARMED;
use sidewinder_crds::{
    ConfigMapKey, ProcessSelector, RemoteExec, ScriptSource, SelectMode, ThreadSelector, WakePolicy,
};
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::workload::{self, ephemeral_containers, line_of};
use sidewinder_model::{ExecOutcome, Reason, Stacks, Wake};

use crate::expect::{complete, condition, data, failed, frame, message, one, thread};
use crate::interruptions::{LONG_SCRIPT, check_stopped};
use crate::stage::test;

#[test]
fn a_pod_that_does_not_exist() {
    test("no_such_pod", async |namespace| {
        let session = namespace.run(&sessions::stacks("stacks", "nobody")).await?;
        let status = failed(&session, Reason::PodNotFound)?;
        ensure!(message(status)?.contains("nobody"), "{}", message(status)?);
        Ok(())
    });
}

#[test]
fn a_pod_that_no_node_takes_is_waited_for_and_then_given_up() {
    test("pending_pod", async |namespace| {
        let pending = namespace.python("waiting", "idle_server.py").on_no_node();
        workload::create(&namespace.pods(), &pending).await?;
        let session = namespace
            .run(&sessions::stacks("stacks", "waiting"))
            .await?;
        let status = failed(&session, Reason::PodNotRunning)?;
        ensure!(message(status)?.contains("Pending"), "{}", message(status)?);
        Ok(())
    });
}

#[test]
fn a_pod_that_starts_while_the_session_waits_is_answered() {
    test("a_pod_that_starts_later", async |namespace| {
        // The volume's ConfigMap is missing, so the kubelet cannot start the container until it is there.
        let mut late = namespace.python("late", "idle_server.py").pod()?;
        let volume = late
            .spec
            .as_mut()
            .and_then(|spec| spec.volumes.as_mut())
            .and_then(|volumes| volumes.first_mut());
        let source = volume
            .and_then(|volume| volume.config_map.as_mut())
            .context("the pod has no volume")?;
        source.name = "programs-later".into();
        namespace
            .pods()
            .create(&kube::api::PostParams::default(), &late)
            .await?;
        let session =
            sessions::create(&namespace.sessions(), &sessions::stacks("stacks", "late")).await?;
        sessions::status(
            &namespace.sessions(),
            &session.name_any(),
            std::time::Duration::from_secs(20),
            "it to be taken up",
            |status| status.phase.is_some(),
        )
        .await?;
        namespace
            .write_configmap(
                "programs-later",
                &[("idle_server.py", workload::source("idle_server.py")?)],
            )
            .await?;
        let session = sessions::ended(&namespace.sessions(), &session).await?;
        // The container may run before its program does: then there is no Python yet, which is an answer as well.
        let end = sessions::end_of(&session)?;
        ensure!(
            [(true, Reason::Succeeded), (false, Reason::NoPythonProcess)].contains(&end),
            "{end:?} {:?}",
            session.status
        );
        Ok(())
    });
}

#[test]
fn a_pod_that_has_ended() {
    test("succeeded_pod", async |namespace| {
        let done = namespace.shell("done", "exit 0").once();
        workload::create(&namespace.pods(), &done).await?;
        sidewinder_e2e::watch::until_object(
            &namespace.pods(),
            "done",
            std::time::Duration::from_mins(1),
            "its end",
            |pod| {
                pod.status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref())
                    == Some("Succeeded")
            },
        )
        .await?;
        let session = namespace.run(&sessions::stacks("stacks", "done")).await?;
        let status = failed(&session, Reason::PodNotRunning)?;
        ensure!(
            message(status)?.contains("Succeeded"),
            "{}",
            message(status)?
        );
        let now = namespace.pods().get("done").await?;
        ensure!(ephemeral_containers(&now).is_empty());
        Ok(())
    });
}

#[test]
fn a_container_that_the_pod_does_not_have() {
    test("wrong_container", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let mut session = sessions::stacks("stacks", "idle");
        session.spec.target.container = Some("web".into());
        let session = namespace.run(&session).await?;
        let message = message(failed(&session, Reason::ContainerNotFound)?)?;
        ensure!(
            message.contains("web") && message.contains("app"),
            "{message}"
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_container_without_python() {
    test("no_python", async |namespace| {
        let sleeper = namespace.shell("sleeper", "exec sleep infinity");
        workload::create(&namespace.pods(), &sleeper).await?;
        workload::running(&namespace.pods(), "sleeper").await?;
        for session in [
            sessions::stacks("stacks", "sleeper"),
            sessions::tasks("tasks", "sleeper"),
            sessions::exec("exec", "sleeper", "1"),
        ] {
            let session = namespace.run(&session).await?;
            let status = failed(&session, Reason::NoPythonProcess)?;
            ensure!(
                message(status)?.contains("sleep"),
                "the message does not say what runs there: {}",
                message(status)?
            );
        }
        // Which processes there are is a question that "none" answers.
        let session = namespace
            .run(&sessions::processes("processes", "sleeper"))
            .await?;
        let end = sessions::end_of(&session)?;
        ensure!(
            [(true, Reason::Succeeded), (false, Reason::NoPythonProcess)].contains(&end),
            "{end:?}"
        );
        Ok(())
    });
}

#[test]
fn remote_debugging_that_is_disabled_is_respected_and_reading_still_works() {
    test("remote_debugging_disabled", async |namespace| {
        let closed = namespace
            .python("closed", "idle_server.py")
            .env("PYTHON_DISABLE_REMOTE_DEBUG", "1");
        let pod = namespace.start(&closed).await?;
        let session = namespace
            .run(&sessions::exec("exec", "closed", "open('/tmp/ran', 'w')"))
            .await?;
        let status = failed(&session, Reason::RemoteDebugDisabled)?;
        condition(status, DISARMED, "True", &[Reason::NotArmed])?;
        ensure!(
            namespace.shell_in("closed", "ls /tmp").await?.is_empty(),
            "the script ran"
        );
        let session = namespace.run(&sessions::stacks("stacks", "closed")).await?;
        complete(&session, Reason::Succeeded)?;
        pod.check_untouched(namespace).await
    });
}

#[test]
fn several_processes_are_ambiguous_for_scripts_and_fine_for_reading() {
    test("several_processes", async |namespace| {
        let pod = namespace
            .start(&namespace.shell("mill", "python3.14 /app/two_workers.py; exit 1"))
            .await?;
        let session = namespace
            .run(&sessions::exec("exec", "mill", "open('/tmp/ran', 'w')"))
            .await?;
        let message = message(failed(&session, Reason::AmbiguousProcess)?)?;
        ensure!(
            message.contains("worker mail") && message.contains("worker images"),
            "{message}"
        );
        ensure!(
            namespace.shell_in("mill", "ls /tmp").await?.is_empty(),
            "the script ran"
        );

        let session = namespace.run(&sessions::stacks("stacks", "mill")).await?;
        let status = complete(&session, Reason::Succeeded)?;
        ensure!(status.targets.len() == 3, "{:?}", status.targets);
        let pids: Vec<_> = status.targets.iter().map(|target| target.pid).collect();
        ensure!(
            pids.is_sorted() && pids.iter().all(Option::is_some),
            "{pids:?}"
        );
        ensure!(status.pods.as_deref() == Some("1/1"), "{:?}", status.pods);

        let mail = namespace
            .run(&exec_in("mail", "worker mail$", None))
            .await?;
        let mail = by_command(&mail, Reason::Succeeded)?;
        ensure!(mail == [Some("worker mail")], "{mail:?}");
        let all = namespace
            .run(&exec_in(
                "all",
                "two_workers.py worker",
                Some(SelectMode::All),
            ))
            .await?;
        let mut all = by_command(&all, Reason::Succeeded)?;
        all.sort_unstable();
        ensure!(
            all == [Some("worker images"), Some("worker mail")],
            "{all:?}"
        );
        let several = namespace
            .run(&exec_in("several", "two_workers.py worker", None))
            .await?;
        failed(&several, Reason::AmbiguousProcess)?;
        let none = namespace.run(&exec_in("none", "celery", None)).await?;
        failed(&none, Reason::NoPythonProcess)?;
        let nonsense = namespace.run(&exec_in("nonsense", "(", None)).await?;
        failed(&nonsense, Reason::InvalidProcessSelector)?;

        let mut gone = sessions::stacks("gone", "mill");
        gone.spec.target.process = Some(ProcessSelector {
            pid: Some(4_000_000),
            ..ProcessSelector::default()
        });
        failed(&namespace.run(&gone).await?, Reason::NoPythonProcess)?;
        pod.check_untouched(namespace).await
    });
}

fn exec_in(name: &str, command: &str, mode: Option<SelectMode>) -> sidewinder_crds::DebugSession {
    let mut session = sessions::exec(name, "mill", "import sys; ' '.join(sys.argv[1:])");
    session.spec.target.process = Some(ProcessSelector {
        command: Some(command.to_owned()),
        mode,
        pid: None,
    });
    session
}

/// The ends of the targets' commands, which tell the workers apart.
fn by_command(
    session: &sidewinder_crds::DebugSession,
    reason: Reason,
) -> Result<Vec<Option<&str>>> {
    let status = complete(session, reason)?;
    Ok(status
        .targets
        .iter()
        .map(|target| {
            target
                .command
                .as_deref()
                .and_then(|command| command.split_once("two_workers.py "))
                .map(|(_, rest)| rest)
        })
        .collect())
}

#[test]
fn process_1_is_taken_for_scripts_when_it_is_python() {
    test("process_1_is_taken", async |namespace| {
        let pod = namespace
            .start(&namespace.python("mill", "two_workers.py"))
            .await?;
        let session = namespace
            .run(&sessions::exec("exec", "mill", "import os; os.getpid()"))
            .await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        ensure!(target.pid == Some(1), "{:?}", target.pid);
        let said = target.message.as_deref().unwrap_or_default();
        ensure!(
            said.contains("worker mail") || said.contains('3'),
            "the message does not name the other processes: {said:?}"
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_script_that_does_not_exist() {
    test("a_script_that_does_not_exist", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        namespace
            .write_configmap("scripts", &[("there.py", "1")])
            .await?;
        for (session, name, key) in [
            ("no-map", "nothing", "there.py"),
            ("no-key", "scripts", "missing.py"),
        ] {
            let mut exec = sessions::exec(session, "idle", "");
            exec.spec.remote_exec = Some(RemoteExec {
                script_from: Some(ScriptSource {
                    config_map_key_ref: ConfigMapKey {
                        name: name.into(),
                        key: key.into(),
                    },
                }),
                ..RemoteExec::default()
            });
            let ended = namespace.run(&exec).await?;
            let message = message(failed(&ended, Reason::ScriptNotFound)?)?;
            ensure!(
                message.contains(if session == "no-map" { name } else { key }),
                "{message}"
            );
        }
        pod.check_untouched(namespace).await
    });
}

async fn outcome_of_script(
    namespace: &TestNamespace,
    name: &str,
    script: &str,
) -> Result<ExecOutcome> {
    let session = namespace.run(&sessions::exec(name, "idle", script)).await?;
    let status = complete(&session, Reason::ScriptError)?;
    let target = one(status)?;
    ensure!(
        target.reason.as_deref() == Some("ScriptError"),
        "{:?}",
        target.reason
    );
    data(namespace, &session, target).await
}

#[test]
fn a_script_that_raises_is_an_answer() {
    test("a_script_that_raises", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let raised = outcome_of_script(
            namespace,
            "raises",
            "print('before')\ndef inner():\n    raise ValueError('no such order')\ninner()",
        )
        .await?;
        let exception = raised.exception.context("there is no exception")?;
        ensure!(
            exception.type_name == "ValueError" && exception.message == "no such order",
            "{exception:?}"
        );
        ensure!(
            exception.traceback.contains("line 3, in inner")
                && exception.traceback.contains("ValueError: no such order"),
            "{}",
            exception.traceback
        );
        ensure!(raised.stdout == "before\n" && raised.value.is_none());

        let own = outcome_of_script(namespace, "own", "import json\njson.loads('{')").await?;
        ensure!(
            own.exception
                .is_some_and(|exception| exception.type_name == "json.decoder.JSONDecodeError")
        );
        let exits = outcome_of_script(namespace, "exits", "import sys; sys.exit(7)").await?;
        ensure!(exits.exception.is_some_and(
            |exception| exception.type_name == "SystemExit" && exception.message == "7"
        ));
        let interrupts =
            outcome_of_script(namespace, "interrupts", "raise KeyboardInterrupt").await?;
        ensure!(
            interrupts
                .exception
                .is_some_and(|exception| exception.type_name == "KeyboardInterrupt")
        );
        let syntax = outcome_of_script(namespace, "syntax", "print('a'\nfor").await?;
        ensure!(
            syntax
                .exception
                .is_some_and(|exception| exception.type_name == "SyntaxError")
        );
        let nul = outcome_of_script(namespace, "nul", "print('a\0b')").await?;
        ensure!(
            nul.exception
                .is_some_and(|exception| exception.type_name == "SyntaxError"
                    || exception.type_name == "ValueError")
        );
        let log = namespace.printed_by(&pod.name, "app").await?;
        ensure!(
            log.lines()
                .all(|line| line == "ready" || line.starts_with("tick ")),
            "the program's own output has more: {log}"
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_script_that_prints_10_megabytes() {
    test("a_script_that_prints_10_megabytes", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let session = namespace
            .run(&sessions::exec(
                "prints",
                "idle",
                "for _ in range(10 * 1024): print('x' * 1023)",
            ))
            .await?;
        let status = complete(&session, Reason::Succeeded)?;
        ensure!(serde_json::to_vec(status)?.len() <= 256 * 1024);
        let target = one(status)?;
        let result = target
            .result
            .as_ref()
            .context("the answer is stored nowhere")?;
        ensure!(
            result.size_bytes > 10 * 1024 * 1024 && !result.truncated,
            "{result:?}"
        );
        let outcome: ExecOutcome = data(namespace, &session, target).await?;
        ensure!(
            outcome.stdout.len() == 10 * 1024 * 1024,
            "{} bytes of output",
            outcome.stdout.len()
        );
        ensure!(
            outcome.stdout.lines().all(|line| line.len() == 1023) && outcome.clipped.is_empty(),
            "{:?}",
            outcome.clipped
        );
        condition(status, "ResultStored", "True", &[Reason::Stored])?;
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_main_thread_that_cannot_answer_is_disarmed_and_shown() {
    test("a_blocked_main_thread", async |namespace| {
        let pod = namespace
            .start(&namespace.python("blocked", "blocked_main.py"))
            .await?;
        workload::goes_on(&namespace.pods(), "blocked").await?;
        // It can be made to answer where it waits, and waits on.
        let answers = sessions::exec("answers", "blocked", "frame.f_code.co_name");
        let session = namespace.run(&answers).await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        let outcome: ExecOutcome = data(namespace, &session, target).await?;
        ensure!(
            outcome.value.as_deref() == Some("'wait_for_gate'")
                && outcome.wake == Wake::PendingCall,
            "{outcome:?}"
        );
        // Unless that is not allowed.
        let mut exec = sessions::exec("exec", "blocked", "open('/tmp/ran', 'w')");
        exec.spec.remote_exec = exec.spec.remote_exec.map(|remote| RemoteExec {
            start_seconds: 1,
            thread: ThreadSelector::Main,
            wake: WakePolicy::Never,
            ..remote
        });
        let session = namespace.run(&exec).await?;
        let status = failed(&session, Reason::TargetBlocked)?;
        condition(status, DISARMED, "True", &[Reason::Disarmed])?;
        let target = one(status)?;
        let outcome: ExecOutcome = data(namespace, &session, target).await?;
        ensure!(
            outcome.disarmed
                && outcome.started_after_milliseconds.is_none()
                && !outcome.still_running
        );
        let stacks: Stacks = outcome.stacks.context("TargetBlocked without the stacks")?;
        let main = thread(&stacks, "MainThread")?;
        frame(
            &main.frames,
            "wait_for_gate",
            "blocked_main.py",
            line_of("blocked_main.py", "gate.acquire()  # waits")?,
        )?;
        let text = sidewinder_e2e::answer::text(&namespace.client, &session, target).await?;
        ensure!(text.contains("wait_for_gate"), "{text}");
        // What was taken back does not run later either.
        let release = "import __main__; __main__.gate.release()";
        let mut other = sessions::exec("release", "blocked", release);
        let tick = thread(&stacks, "tick")?.tid;
        other.spec.remote_exec = other.spec.remote_exec.map(|remote| RemoteExec {
            thread: ThreadSelector::Tid(i32::try_from(tick).unwrap_or_default()),
            ..remote
        });
        complete(&namespace.run(&other).await?, Reason::Succeeded)?;
        workload::goes_on(&namespace.pods(), "blocked").await?;
        ensure!(
            namespace.shell_in("blocked", "ls /tmp").await?.is_empty(),
            "the script ran after it was taken back"
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_script_that_takes_too_long_is_stopped_and_what_it_said_is_kept() {
    test("a_script_that_takes_too_long", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let mut long = sessions::exec("long", "idle", LONG_SCRIPT);
        long.spec.timeout_seconds = 2;
        let session = namespace.run(&long).await?;
        let status = failed(&session, Reason::ScriptTimeout)?;
        let outcome: ExecOutcome = data(namespace, &session, one(status)?).await?;
        ensure!(outcome.stdout == "begun\n", "{outcome:?}");
        ensure!(outcome.stacks.is_some(), "ScriptTimeout without the stacks");
        check_stopped(namespace, Some(outcome.still_running)).await?;
        pod.check_untouched(namespace).await
    });
}
