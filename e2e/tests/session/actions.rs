//! Each action on programs that stand still for different reasons.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sidewinder_crds::conditions::{ACCEPTED, ATTACHED, DISARMED, RESULT_STORED};
use sidewinder_crds::{
    AsyncioFormat, AttachedAs, ConfigMapKey, DebugSession, DisarmState, Phase, RemoteExec,
    ScriptSource,
};
use sidewinder_e2e::namespace::Target;
use sidewinder_e2e::workload::line_of;
use sidewinder_e2e::{answer, session_client as sessions};
use sidewinder_model::{
    ExecOutcome, Id, ProcessList, Reason, Stacks, Task, TaskState, Tasks, Thread, ThreadState, Wake,
};

use crate::expect::{complete, condition, data, frame, one, task, thread};
use crate::stage::test;

#[test]
fn tasks_of_a_stuck_service_show_who_waits_for_whom() {
    test("tasks_of_a_stuck_service", async |namespace| {
        let pod = namespace
            .start(&namespace.python("shop", "stuck_service.py"))
            .await?;
        let session = namespace.run(&sessions::tasks("tasks", "shop")).await?;
        check_status_of_a_read(&session, &pod)?;
        let status = complete(&session, Reason::Succeeded)?;
        let target = one(status)?;
        let tasks: Tasks = data(namespace, &session, target).await?;
        check_names(&tasks)?;
        check_await_graph(&tasks)?;
        let text = answer::text(&namespace.client, &session, target).await?;
        ensure!(
            text.contains("request-17") && text.contains("stuck_service.py"),
            "{text}"
        );
        let summary = status.summary.as_deref().unwrap_or_default();
        ensure!(
            summary.contains(&format!("{} tasks in 1 loop", tasks.tasks.len())),
            "the summary is {summary:?}"
        );
        pod.check_untouched(namespace).await
    });
}

/// What the status of a read-only session says beside its answer.
fn check_status_of_a_read(session: &DebugSession, pod: &Target) -> Result<()> {
    let status = complete(session, Reason::Succeeded)?;
    ensure!(
        status.phase == Some(Phase::Succeeded),
        "the phase is {:?}",
        status.phase
    );
    ensure!(status.observed_generation == session.metadata.generation);
    condition(status, ACCEPTED, "True", &[Reason::Accepted])?;
    condition(status, ATTACHED, "True", &[Reason::Attached])?;
    condition(
        status,
        RESULT_STORED,
        "True",
        &[Reason::Inline, Reason::Stored],
    )?;
    ensure!(
        !status.conditions.iter().any(|each| each.type_ == DISARMED),
        "nothing ran, so nothing is disarmed"
    );
    ensure!(status.start_time.is_some() && status.completion_time.is_some());

    let target = one(status)?;
    ensure!(target.pod_name == "shop" && target.pod_uid == pod.before.metadata.uid);
    ensure!(
        target.container.as_deref() == Some("app"),
        "the container is {:?}",
        target.container
    );
    ensure!(
        target
            .container_id
            .as_deref()
            .is_some_and(|id| id.starts_with("containerd://"))
    );
    ensure!(target.pid == Some(1), "the pid is {:?}", target.pid);
    ensure!(
        target
            .command
            .as_deref()
            .is_some_and(|command| command.contains("stuck_service.py"))
    );
    ensure!(
        target
            .python
            .as_deref()
            .is_some_and(|python| python.starts_with("3.14.")),
        "{:?}",
        target.python
    );
    ensure!(
        target.attach == Some(AttachedAs::Ptrace),
        "attached as {:?}",
        target.attach
    );
    ensure!(
        target.node.is_some()
            && target
                .sidecar
                .as_deref()
                .is_some_and(|name| name.starts_with("sidewinder-"))
    );
    ensure!(target.disarmed.is_none());
    let paused = target
        .paused_microseconds
        .context("how long the target was held still is missing")?;
    ensure!(
        (0..100_000).contains(&paused),
        "the target was held still for {paused} µs"
    );
    Ok(())
}

/// Every task of the service has its name, and there is one event loop.
fn check_names(tasks: &Tasks) -> Result<()> {
    ensure!(tasks.problems.is_empty(), "{:?}", tasks.problems);
    ensure!(tasks.cycles.is_empty());
    let [event_loop] = tasks.loops.as_slice() else {
        anyhow::bail!("{:?}", tasks.loops)
    };
    ensure!(
        event_loop.running && event_loop.tid == Some(1) && event_loop.interpreter == 0,
        "{event_loop:?}"
    );

    let names: BTreeMap<&str, &Task> = tasks.tasks.iter().map(|task| (&*task.name, task)).collect();
    ensure!(names.len() == tasks.tasks.len(), "two tasks have one name");
    let mut expected: Vec<String> = (1..=17).map(|number| format!("request-{number}")).collect();
    expected.extend((2..=17).map(|number| format!("charge-{number}")));
    expected.extend(["charge", "settlement", "tick", "Task-1"].map(str::to_owned));
    for name in &expected {
        ensure!(names.contains_key(name.as_str()), "there is no task {name}");
    }
    // The bank's own handlers are tasks without a name that somebody chose: one for the charge, one for the exporter.
    ensure!(names.len() == expected.len() + 2, "{:?}", names.keys());
    Ok(())
}

/// The charge of request 1 waits for the bank, all others for the pool, and the settlement for all.
fn check_await_graph(tasks: &Tasks) -> Result<()> {
    let charge = task(tasks, "charge")?;
    ensure!(
        charge.state == TaskState::Waiting && charge.awaited_by == [task(tasks, "request-1")?.id]
    );
    ensure!(
        charge.loop_id.as_ref() == tasks.loops.first().map(|each| &each.id)
            && charge.tid == Some(1)
    );
    frame(
        &charge.coroutine,
        "Service.charge",
        "stuck_service.py",
        line_of("stuck_service.py", "return await reader.readline()")?,
    )?;
    let innermost = charge.coroutine.last().context("charge has no frame")?;
    ensure!(
        &*innermost.function == "StreamReader._wait_for_data",
        "charge stands at {innermost:?}"
    );
    let waiting_for = charge
        .waiting_for
        .as_ref()
        .context("charge waits for nothing")?;
    ensure!(
        &*waiting_for.kind == "Stream" && waiting_for.future.is_some_and(|id| id != Id(0)),
        "{waiting_for:?}"
    );
    let detail = waiting_for.detail.as_deref().unwrap_or_default();
    ensure!(detail.starts_with("read, fd "), "{waiting_for:?}");

    for number in 2..=17 {
        let behind = task(tasks, &format!("charge-{number}"))?;
        ensure!(behind.state == TaskState::Waiting, "{behind:?}");
        ensure!(
            behind.awaited_by == [task(tasks, &format!("request-{number}"))?.id],
            "{behind:?}"
        );
        frame(
            &behind.coroutine,
            "Pool.acquire",
            "stuck_service.py",
            line_of("stuck_service.py", "await self.free.acquire()")?,
        )?;
        ensure!(
            behind
                .coroutine
                .last()
                .is_some_and(|innermost| &*innermost.function == "Semaphore.acquire")
        );
    }
    let pool = tasks
        .groups
        .iter()
        .find(|group| &*group.kind == "Semaphore");
    let pool = pool.context("no group waits for the pool")?;
    ensure!(pool.tasks.len() == 16, "{pool:?}");
    ensure!(
        pool.detail.as_deref() == Some("value 0, 16 waiting"),
        "{pool:?}"
    );
    let settlement = task(tasks, "settlement")?;
    for number in 1..=17 {
        let request = task(tasks, &format!("request-{number}"))?;
        ensure!(request.awaited_by == [settlement.id], "{request:?}");
        frame(
            &request.coroutine,
            "Service.handle",
            "stuck_service.py",
            line_of("stuck_service.py", "async with asyncio.TaskGroup()")?,
        )?;
    }
    ensure!(
        settlement.awaited_by == [task(tasks, "Task-1")?.id],
        "{settlement:?}"
    );
    ensure!(
        settlement
            .waiting_for
            .as_ref()
            .is_some_and(|on| &*on.kind == "Gather"),
        "{settlement:?}"
    );
    Ok(())
}

#[test]
fn tasks_can_be_a_table() {
    test("tasks_can_be_a_table", async |namespace| {
        let pod = namespace
            .start(&namespace.python("shop", "stuck_service.py").arg("2"))
            .await?;
        let mut table = sessions::tasks("table", "shop");
        table.spec.asyncio_snapshot = Some(sidewinder_crds::AsyncioSnapshot {
            format: AsyncioFormat::Table,
        });
        let session = namespace.run(&table).await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        let text = answer::text(&namespace.client, &session, target).await?;
        let rows = text
            .lines()
            .filter(|line| line.contains("request-1") || line.contains("request-2"));
        ensure!(rows.count() >= 2, "{text}");
        pod.check_untouched(namespace).await
    });
}

#[test]
fn stacks_show_every_thread_of_a_stuck_service() {
    test("stacks_of_a_stuck_service", async |namespace| {
        let pod = namespace
            .start(&namespace.python("shop", "stuck_service.py"))
            .await?;
        let session = namespace.run(&sessions::stacks("stacks", "shop")).await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        let stacks: Stacks = data(namespace, &session, target).await?;
        ensure!(stacks.problems.is_empty(), "{:?}", stacks.problems);
        ensure!(
            stacks.interpreters.len() == 1 && stacks.interpreters.iter().all(|each| each.id == 0)
        );

        let main = thread(&stacks, "MainThread")?;
        ensure!(
            main.main && main.tid == 1 && main.state == ThreadState::Blocked,
            "{main:?}"
        );
        ensure!(blocked_in(main) == Some("epoll_wait"), "{main:?}");
        frame(
            &main.frames,
            "BaseEventLoop.run_forever",
            "base_events.py",
            None,
        )?;

        let ledger = thread(&stacks, "ledger")?;
        frame(
            &ledger.frames,
            "Service.write_ledger",
            "stuck_service.py",
            line_of("stuck_service.py", "with self.ledger:")?,
        )?;
        ensure!(
            blocked_in(ledger) == Some("futex") && !ledger.main,
            "{ledger:?}"
        );
        let exporter = thread(&stacks, "exporter")?;
        frame(
            &exporter.frames,
            "Service.export",
            "stuck_service.py",
            line_of("stuck_service.py", "bank.recv(4096)")?,
        )?;
        ensure!(
            blocked_in(exporter).is_some_and(|call| call.starts_with("recv")),
            "{exporter:?}"
        );
        let receipts = thread(&stacks, "receipts")?;
        frame(
            &receipts.frames,
            "Service.send_receipts",
            "stuck_service.py",
            line_of("stuck_service.py", "self.receipts.get()")?,
        )?;
        for each in [ledger, exporter, receipts] {
            // Frames are innermost last, as in a traceback: a thread begins in its bootstrap.
            ensure!(
                each.frames
                    .first()
                    .is_some_and(|outermost| &*outermost.function == "Thread._bootstrap"),
                "{each:?}"
            );
        }
        let text = answer::text(&namespace.client, &session, target).await?;
        ensure!(
            text.contains("exporter") && text.contains("Service.export"),
            "{text}"
        );
        let summary = session
            .status
            .as_ref()
            .and_then(|status| status.summary.as_deref())
            .unwrap_or_default();
        ensure!(summary.contains("epoll_wait"), "the summary is {summary:?}");
        pod.check_untouched(namespace).await
    });
}

fn blocked_in(thread: &Thread) -> Option<&str> {
    thread.syscall.as_ref().map(|syscall| syscall.name.as_str())
}

#[test]
fn stacks_show_threads_that_wait_for_each_others_locks() {
    test("stacks_of_deadlocked_threads", async |namespace| {
        let pod = namespace
            .start(
                &namespace
                    .python("bank", "deadlocked_threads.py")
                    .arg("join"),
            )
            .await?;
        let session = namespace.run(&sessions::stacks("stacks", "bank")).await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        let stacks: Stacks = data(namespace, &session, target).await?;
        let line = line_of("deadlocked_threads.py", "with target.lock:")?;
        for name in ["transfer-alice-bob", "transfer-bob-alice"] {
            let waiting = thread(&stacks, name)?;
            ensure!(
                waiting.state == ThreadState::Blocked && blocked_in(waiting) == Some("futex"),
                "{waiting:?}"
            );
            let innermost = waiting.frames.last().context("the thread has no frame")?;
            ensure!(
                &*innermost.function == "transfer" && innermost.line == Some(line),
                "{innermost:?}"
            );
        }
        let main = thread(&stacks, "MainThread")?;
        frame(
            &main.frames,
            "main",
            "deadlocked_threads.py",
            line_of("deadlocked_threads.py", "thread.join()")?,
        )?;
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_busy_program_is_read_while_it_computes() {
    test("a_busy_program_is_read", async |namespace| {
        let pod = namespace
            .start(&namespace.python("busy", "busy.py"))
            .await?;
        for number in 0..5 {
            let session = namespace
                .run(&sessions::stacks(&format!("stacks-{number}"), "busy"))
                .await?;
            let target = one(complete(&session, Reason::Succeeded)?)?;
            let stacks: Stacks = data(namespace, &session, target).await?;
            ensure!(stacks.problems.is_empty(), "{:?}", stacks.problems);
            // Without the module threading no thread has a name of Python's.
            let [main] = stacks
                .interpreters
                .iter()
                .flat_map(|each| &each.threads)
                .collect::<Vec<_>>()[..]
            else {
                anyhow::bail!("{stacks:?}");
            };
            ensure!(main.main, "{main:?}");
            frame(&main.frames, "main", "busy.py", None)?;
            ensure!(
                main.frames
                    .first()
                    .is_some_and(|outermost| &*outermost.function == "<module>"),
                "{main:?}"
            );
        }
        let session = namespace
            .run(&sessions::exec(
                "exec",
                "busy",
                "__import__('__main__').fold(['abc'])",
            ))
            .await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        let outcome: ExecOutcome = data(namespace, &session, target).await?;
        ensure!(
            outcome.value.as_deref() == Some("[('bc', ['cba'])]"),
            "{outcome:?}"
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn processes_lists_what_runs_in_the_container() {
    test("processes_lists_what_runs", async |namespace| {
        let pod = namespace
            .start(&namespace.python("mill", "two_workers.py"))
            .await?;
        let session = namespace
            .run(&sessions::processes("processes", "mill"))
            .await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        ensure!(
            target.pid.is_none(),
            "processes has one entry for the container, without a pid: {:?}",
            target.pid
        );
        let list: ProcessList = data(namespace, &session, target).await?;
        let commands: Vec<String> = list
            .processes
            .iter()
            .map(|process| process.command.join(" "))
            .collect();
        ensure!(list.processes.len() == 3, "{commands:?}");
        ensure!(
            list.processes
                .iter()
                .any(|process| process.pid == 1 && process.ns_pid == 1)
        );
        for worker in ["worker mail", "worker images"] {
            ensure!(
                commands.iter().any(|command| command.contains(worker)),
                "{commands:?}"
            );
        }
        ensure!(
            list.processes
                .iter()
                .all(|process| process.python.starts_with("3.14.") && process.remote_exec.enabled)
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_script_runs_inside_an_idle_event_loop() {
    test("a_script_runs_inside_an_idle_loop", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let script = "import asyncio, sys, threading\n\
                      print('tasks', len(asyncio.all_tasks()))\n\
                      print('grumble', file=sys.stderr)\n\
                      threading.current_thread() is threading.main_thread(), 6 * 7";
        let session = namespace
            .run(&sessions::exec("exec", "idle", script))
            .await?;
        let status = complete(&session, Reason::Succeeded)?;
        condition(status, DISARMED, "True", &[Reason::Disarmed])?;
        let digest = sidewinder_e2e::answer::sha256(script.as_bytes());
        ensure!(
            status.script_sha256.as_deref() == Some(digest.as_str()),
            "{:?}",
            status.script_sha256
        );
        let target = one(status)?;
        ensure!(target.disarmed == Some(DisarmState::Disarmed) && target.agent.is_some());
        let outcome: ExecOutcome = data(namespace, &session, target).await?;
        ensure!(
            outcome.value.as_deref() == Some("(True, 42)"),
            "{outcome:?}"
        );
        ensure!(
            outcome
                .value_json
                .as_deref()
                .is_some_and(|json| json.replace(' ', "") == "[true,42]"),
            "{outcome:?}"
        );
        ensure!(
            outcome.stdout == "tasks 1\n" && outcome.stderr == "grumble\n",
            "{outcome:?}"
        );
        ensure!(
            outcome.thread == Some(1) && outcome.exception.is_none() && !outcome.still_running,
            "{outcome:?}"
        );
        // Nothing but the interrupt brings this event loop out of the kernel.
        ensure!(
            outcome.wake == Wake::Interrupt,
            "woken by {:?}",
            outcome.wake
        );
        ensure!(
            outcome
                .started_after_milliseconds
                .is_some_and(|after| after < 1000),
            "{outcome:?}"
        );
        ensure!(outcome.disarmed);
        // Script output goes to a Secret unless the operator is told otherwise: whoever may read sessions must not
        // thereby read what a script printed.
        let inline = serde_json::to_string(status)?;
        ensure!(
            !inline.contains("grumble") && target.result.is_some(),
            "{inline}"
        );
        ensure!(
            !namespace
                .shell_in("idle", "ls -A /tmp /dev/shm")
                .await?
                .contains("sidewinder")
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_script_sees_the_programs_own_objects() {
    test(
        "a_script_sees_the_programs_own_objects",
        async |namespace| {
            let pod = namespace
                .start(&namespace.python("shop", "stuck_service.py"))
                .await?;
            let script =
                "import __main__\npool = __main__.service.pool\n(pool.holders, len(pool.waiting))";
            let mut read = sessions::exec("exec", "shop", script);
            read.spec.reason = Some("INC-4711".into());
            let session = namespace.run(&read).await?;
            let target = one(complete(&session, Reason::Succeeded)?)?;
            let outcome: ExecOutcome = data(namespace, &session, target).await?;
            ensure!(
                outcome.value.as_deref() == Some("(['request-1'], 16)"),
                "{outcome:?}"
            );
            pod.check_untouched(namespace).await
        },
    );
}

#[test]
fn a_script_comes_from_a_configmap() {
    test("a_script_comes_from_a_configmap", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let script = "print('from a ConfigMap')\n'value'";
        namespace
            .write_configmap("scripts", &[("answer.py", script)])
            .await?;
        let mut from = sessions::exec("exec", "idle", "");
        from.spec.remote_exec = Some(RemoteExec {
            script_from: Some(ScriptSource {
                config_map_key_ref: ConfigMapKey {
                    name: "scripts".into(),
                    key: "answer.py".into(),
                },
            }),
            ..RemoteExec::default()
        });
        let session = namespace.run(&from).await?;
        let status = complete(&session, Reason::Succeeded)?;
        ensure!(status.script_sha256 == Some(sidewinder_e2e::answer::sha256(script.as_bytes())));
        let outcome: ExecOutcome = data(namespace, &session, one(status)?).await?;
        ensure!(
            outcome.value.as_deref() == Some("'value'") && outcome.stdout == "from a ConfigMap\n",
            "{outcome:?}"
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn later_sessions_on_a_pod_reuse_its_sidecar() {
    test("later_sessions_reuse_the_sidecar", async |namespace| {
        let pod = namespace
            .start(&namespace.python("shop", "stuck_service.py"))
            .await?;
        let mut sidecars = Vec::new();
        let first = namespace.run(&sessions::stacks("first", "shop")).await?;
        sidecars.push(one(complete(&first, Reason::Succeeded)?)?.sidecar.clone());
        let many = [
            sessions::tasks("a", "shop"),
            sessions::stacks("b", "shop"),
            sessions::processes("c", "shop"),
            sessions::exec("d", "shop", "1"),
            sessions::exec("e", "shop", "2"),
        ];
        let at_once =
            futures::future::try_join_all(many.iter().map(|session| namespace.run(session)))
                .await?;
        for session in &at_once {
            sidecars.push(one(complete(session, Reason::Succeeded)?)?.sidecar.clone());
        }
        let now = namespace.pods().get("shop").await?;
        let [only] = sidewinder_e2e::workload::ephemeral_containers(&now)
            .try_into()
            .map_err(|all| anyhow::anyhow!("{all:?}"))?;
        ensure!(
            sidecars
                .iter()
                .all(|sidecar| sidecar.as_deref() == Some(only.as_str())),
            "{sidecars:?}"
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_worker_that_is_not_process_1_is_found() {
    test("a_worker_that_is_not_process_1", async |namespace| {
        let command = "python3.14 /app/worker.py; echo the worker has ended";
        let pod = namespace.start(&namespace.shell("worker", command)).await?;
        let session = namespace.run(&sessions::stacks("stacks", "worker")).await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        ensure!(
            target.pid.is_some_and(|pid| pid > 1),
            "the pid is {:?}",
            target.pid
        );
        let stacks: Stacks = data(namespace, &session, target).await?;
        ensure!(
            thread(&stacks, "MainThread")?.tid
                == u64::from(target.pid.unwrap_or_default().unsigned_abs())
        );
        thread(&stacks, "producer")?;
        let session = namespace
            .run(&sessions::exec("exec", "worker", "import os; os.getpid()"))
            .await?;
        let target = one(complete(&session, Reason::Succeeded)?)?;
        let outcome: ExecOutcome = data(namespace, &session, target).await?;
        ensure!(
            outcome.value == target.pid.map(|pid| pid.to_string()),
            "{outcome:?}"
        );
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_program_without_asyncio_has_no_tasks() {
    test(
        "a_program_without_asyncio_has_no_tasks",
        async |namespace| -> Result<()> {
            let pod = namespace
                .start(&namespace.python("busy", "blocked_main.py"))
                .await?;
            let session = namespace.run(&sessions::tasks("tasks", "busy")).await?;
            let target = one(complete(&session, Reason::Succeeded)?)?;
            let tasks: Value = data(namespace, &session, target).await?;
            ensure!(
                tasks.get("tasks") == Some(&Value::Array(vec![]))
                    && tasks.get("loops") == Some(&Value::Array(vec![])),
                "{tasks}"
            );
            pod.check_untouched(namespace).await
        },
    );
}
