//! Sessions on one process: in their order, and none twice, whatever is killed in the pod.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::ListParams;
use sidewinder_crds::{Afterwards, DebugSession, DebugSessionStatus};
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::workload::ephemeral_containers;
use sidewinder_model::{ExecOutcome, Reason};

use crate::expect::{complete, condition, data, failed, message, one};
use crate::interruptions::{begin, kill_the_operator, long, runs, until};
use crate::stage::{alone, test};

const SOON: Duration = Duration::from_mins(1);

/// Spins in C for a lock that a shell in the container has, without the GIL and without a system call: nothing from
/// outside can end that.
const UNSTOPPABLE: &str = "\
import ctypes, mmap
with open('/tmp/runs', 'a') as runs:
    runs.write('run\\n')
print('begun')
libc = ctypes.CDLL(None)
with open('/tmp/lock', 'w+b') as file:
    file.truncate(4096)
    memory = mmap.mmap(file.fileno(), 4096)
lock = ctypes.byref(ctypes.c_int.from_buffer(memory))
libc.pthread_spin_init(lock, 0)
with open('/tmp/free', 'wb') as file:
    file.write(memory[:4])
libc.pthread_spin_lock(lock)
libc.pthread_spin_lock(lock)
open('/tmp/ended', 'w').close()";
const RELEASE: &str = "dd if=/tmp/free of=/tmp/lock conv=notrunc 2>/dev/null";

/// Kills our processes of this kind, and must find one. A carrier is started from `/proc/self/exe`.
fn kill(kind: &str) -> String {
    format!(
        "found=1; for process in /proc/[0-9]*; do case $(cat $process/comm 2>/dev/null) in sidewinder-side*|exe) case \
         \"$(tr '\\0' ' ' <$process/cmdline)\" in *' {kind} '*) kill -9 ${{process#/proc/}} && found=0;; esac;; esac; \
         done; exit $found"
    )
}

#[test]
fn sessions_for_one_thread_run_in_their_order_and_the_ninth_that_waits_is_turned_away() {
    test("queue", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let first = begin(namespace, &long("first", "idle")).await?;
        let waiting: Vec<String> = (1..=8).map(|number| format!("waiting-{number}")).collect();
        for name in &waiting {
            let script = format!("open('/tmp/order', 'a').write('{name}\\n')\nNone");
            let mut session = sessions::exec(name, "idle", &script);
            session.spec.timeout_seconds = 120;
            sessions::create(&namespace.sessions(), &session).await?;
            // The intent stands there when the agent is asked, and each is asked before the next one is made.
            running(namespace, name).await?;
        }
        let late = namespace.run(&sessions::exec("late", "idle", "1")).await?;
        let status = failed(&late, Reason::QueueFull)?;
        condition(status, "Disarmed", "True", &[Reason::NotArmed])?;
        namespace.shell_in("idle", "touch /tmp/enough").await?;
        complete(
            &sessions::ended(&namespace.sessions(), &first).await?,
            Reason::Succeeded,
        )?;
        for name in &waiting {
            let session = namespace.sessions().get(name).await?;
            complete(
                &sessions::ended(&namespace.sessions(), &session).await?,
                Reason::Succeeded,
            )?;
        }
        let order = namespace.shell_in("idle", "cat /tmp/order").await?;
        ensure!(
            order.lines().eq(waiting.iter().map(String::as_str)),
            "{order}"
        );
        pod.check_untouched(namespace).await
    });
}

async fn running(namespace: &TestNamespace, name: &str) -> Result<DebugSession> {
    let running =
        |status: &DebugSessionStatus| status.targets.iter().any(|target| target.agent.is_some());
    sessions::status(&namespace.sessions(), name, SOON, "its intent", running).await
}

#[test]
fn a_relay_and_a_carrier_that_are_killed_run_nothing_twice() {
    test("relay_and_carrier_killed", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let session = begin(namespace, &long("relay", "idle")).await?;
        namespace.shell_in("idle", &kill("relay")).await?;
        namespace.shell_in("idle", "touch /tmp/enough").await?;
        let ended = sessions::ended(&namespace.sessions(), &session).await?;
        let status = complete(&ended, Reason::Succeeded)?;
        let outcome: ExecOutcome = data(namespace, &ended, one(status)?).await?;
        ensure!(outcome.stdout == "begun\n", "{outcome:?}");
        ensure!(runs(namespace, "idle").await? == 1, "the script ran again");

        namespace
            .shell_in("idle", "rm /tmp/runs /tmp/enough /tmp/ended")
            .await?;
        let session = begin(namespace, &long("carrier", "idle")).await?;
        namespace.shell_in("idle", &kill("carrier")).await?;
        let ended = sessions::ended(&namespace.sessions(), &session).await?;
        let status = failed(&ended, Reason::SidecarFailed)?;
        condition(status, "Disarmed", "True", &[Reason::Disarmed])?;
        let exec = one(status)?.exec.clone().unwrap_or_default();
        ensure!(
            exec.still_running == Some(true) && exec.watched == Some(true),
            "{exec:?}"
        );
        namespace.shell_in("idle", "touch /tmp/enough").await?;
        let end = afterwards(namespace, "carrier").await?;
        ensure!(end.reason == Reason::ScriptEnded.as_str(), "{end:?}");
        ensure!(runs(namespace, "idle").await? == 1, "the script ran again");
        ensure!(ephemeral_containers(&namespace.pods().get("idle").await?).len() == 1);
        pod.check_untouched(namespace).await
    });
}

/// What was noted after a session's end.
async fn afterwards(namespace: &TestNamespace, name: &str) -> Result<Afterwards> {
    let find = |status: &DebugSessionStatus| {
        let exec = status.targets.first()?.exec.as_ref()?;
        exec.afterwards.clone()
    };
    let noted = sessions::status(
        &namespace.sessions(),
        name,
        SOON,
        "the end of its script",
        |status| find(status).is_some(),
    )
    .await?;
    find(sessions::status_of(&noted)?).context("it is gone again")
}

/// How often the end of a script was told, of the session and of the pod.
async fn told(namespace: &TestNamespace, reason: Reason) -> Result<Vec<(String, String, String)>> {
    let all = namespace
        .api::<Event>()
        .list(&ListParams::default())
        .await?;
    let mut told: Vec<_> = all
        .into_iter()
        .filter(|event| event.reason.as_deref() == Some(reason.as_str()))
        .map(|event| {
            let about = event.regarding.unwrap_or_default();
            (
                about.kind.unwrap_or_default(),
                about.name.unwrap_or_default(),
                event.note.unwrap_or_default(),
            )
        })
        .collect();
    told.sort();
    Ok(told)
}

#[test]
fn the_end_of_a_script_that_cannot_be_stopped_becomes_an_event() {
    alone("unstoppable", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let mut session = sessions::exec("stuck", "idle", UNSTOPPABLE);
        session.spec.timeout_seconds = 3;
        let session = namespace.run(&session).await?;
        let status = failed(&session, Reason::ScriptTimeout)?;
        condition(status, "Disarmed", "True", &[Reason::Disarmed])?;
        let exec = one(status)?.exec.clone().unwrap_or_default();
        ensure!(
            exec.still_running == Some(true) && exec.watched == Some(true),
            "{exec:?}"
        );
        let busy = namespace.run(&sessions::exec("busy", "idle", "1")).await?;
        let words = message(failed(&busy, Reason::TargetBusy)?)?;
        ensure!(words.contains("session stuck is still running"), "{words}");
        // Reading is not affected.
        let stacks = namespace.run(&sessions::stacks("stacks", "idle")).await?;
        complete(&stacks, Reason::Succeeded)?;
        kill_the_operator(namespace).await?;
        ensure!(told(namespace, Reason::ScriptEnded).await?.is_empty());
        namespace.shell_in("idle", RELEASE).await?;
        until(namespace, "idle", "-e /tmp/ended").await?;
        let end = afterwards(namespace, "stuck").await?;
        ensure!(end.reason == Reason::ScriptEnded.as_str(), "{end:?}");
        ensure!(end.message.contains("has ended by itself"), "{end:?}");
        let events = told(namespace, Reason::ScriptEnded).await?;
        let about: Vec<_> = events
            .iter()
            .map(|(kind, name, _)| (kind.as_str(), name.as_str()))
            .collect();
        ensure!(
            about == [("DebugSession", "stuck"), ("Pod", "idle")],
            "{events:?}"
        );
        let after = namespace
            .run(&sessions::exec("after", "idle", "'free'"))
            .await?;
        complete(&after, Reason::Succeeded)?;
        ensure!(runs(namespace, "idle").await? == 1, "the script ran again");
        // What the session ended with stays.
        let now = namespace.sessions().get(&session.name_any()).await?;
        failed(&now, Reason::ScriptTimeout)?;

        // A session that is watched is gone at once when it is deleted.
        namespace.shell_in("idle", "rm /tmp/ended").await?;
        let mut again = sessions::exec("deleted", "idle", UNSTOPPABLE);
        again.spec.timeout_seconds = 3;
        failed(&namespace.run(&again).await?, Reason::ScriptTimeout)?;
        sessions::delete(&namespace.sessions(), "deleted", Duration::from_secs(10)).await?;
        namespace.shell_in("idle", RELEASE).await?;
        until(namespace, "idle", "-e /tmp/ended").await?;
        let free = namespace
            .run(&sessions::exec("free", "idle", "'free'"))
            .await?;
        complete(&free, Reason::Succeeded)?;
        ensure!(told(namespace, Reason::ScriptEnded).await?.len() == 2);
        pod.check_untouched(namespace).await
    });
}
