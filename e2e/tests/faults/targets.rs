//! The pods: started, given what a flow needs, disturbed, and looked into afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Pod, PodSchedulingGate, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use sidewinder_decode::Runtime;
use sidewinder_decode::remote_exec::support;
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::workload::{self, Workload};
use sidewinder_linux::Process;
use sidewinder_operator::faults::Point;

use crate::flows::{Case, FLEET, FLEET_LABEL, Flow, RELEASE, WARM};
use crate::stage::World;

/// So many pods start at the same time.
const AT_ONCE: usize = 8;
/// How long a session may take to its point, all others on their way beside it.
pub(crate) const SOON: Duration = Duration::from_secs(45);
/// How long a script may run after its session was cancelled or deleted.
const STOPPED: Duration = Duration::from_secs(12);

/// The same program as a process that only `CAP_SYS_PTRACE` may look into: prctl(2), `PR_SET_DUMPABLE`.
const NOT_DUMPABLE: &str =
    "import ctypes; ctypes.CDLL(None).prctl(4, 0); exec(open('/app/idle_server.py').read())";

/// Walks through the processes of a pod: `$kind` is what of ours a process is.
const OURS: &str = "for process in /proc/[0-9]*; do kind=; case $(cat $process/comm 2>/dev/null) in sidewinder-side*|exe) \
    case \"$(tr '\\0' ' ' <$process/cmdline 2>/dev/null)\" in *' relay '*) kind=relay;; *' carrier '*) kind=carrier;; \
    *' agent '*) kind=agent;; esac;; esac";

/// Kills everything of ours of this kind in a pod, and says how many there were.
pub(crate) async fn kill(namespace: &TestNamespace, pod: &str, kind: &str) -> Result<usize> {
    let kill = format!(
        "count=0; {OURS}; [ \"$kind\" = {kind} ] && kill -9 ${{process#/proc/}} && count=$((count + 1)); done; echo $count"
    );
    let count = namespace.shell_in(pod, &kill).await?;
    count
        .trim()
        .parse()
        .with_context(|| format!("{count:?} is no number"))
}

/// Starts the pods of these cases that are used again and again.
pub(crate) async fn start(namespace: &TestNamespace, cases: &[Case]) -> Result<Vec<String>> {
    let own = cases
        .iter()
        .filter(|case| case.flow.has_own_pods())
        .map(|case| (case.pod().to_owned(), case.flow));
    let warm = WARM.map(|name| (name.to_owned(), Flow::Exec));
    let fleet = FLEET.map(|name| (name.to_owned(), Flow::Fleet));
    let all: Vec<_> = warm.into_iter().chain(fleet).chain(own).collect();
    stream::iter(all)
        .map(|(name, flow)| async move {
            let mut pod = if flow == Flow::Refused {
                of(&Workload::command(
                    &name,
                    &namespace.image,
                    &["python3.14", "-c", NOT_DUMPABLE],
                ))?
            } else {
                pod(namespace, &name)?
            };
            if flow == Flow::Fleet {
                let labels = pod.metadata.labels.get_or_insert_with(BTreeMap::new);
                labels.insert(FLEET_LABEL.0.to_owned(), FLEET_LABEL.1.to_owned());
            }
            if flow == Flow::Outliving {
                // What spins there spins beside everything else.
                let container = pod
                    .spec
                    .as_mut()
                    .and_then(|spec| spec.containers.first_mut());
                container.context("a pod has no container")?.resources =
                    Some(ResourceRequirements {
                        limits: Some(BTreeMap::from([(
                            "cpu".to_owned(),
                            Quantity("100m".to_owned()),
                        )])),
                        requests: Some(BTreeMap::from([(
                            "cpu".to_owned(),
                            Quantity("1m".to_owned()),
                        )])),
                        ..ResourceRequirements::default()
                    });
            }
            let pods = namespace.pods();
            pods.create(&PostParams::default(), &pod).await?;
            workload::ready(&pods, &name).await?;
            anyhow::Ok(name)
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

/// Brings sidecars into the pods that several sessions share. Needs an operator.
pub(crate) async fn warm_up(namespace: &TestNamespace) -> Result<()> {
    let all = WARM.iter().chain(&FLEET).map(async |pod| {
        let session = sessions::stacks(&format!("warm-up-{pod}"), pod);
        let ended = namespace.run(&session).await?;
        let (complete, reason) = sessions::end_of(&ended)?;
        ensure!(complete, "{pod} cannot be entered: {reason}");
        Ok(())
    });
    try_join_all(all).await.map(drop)
}

fn pod(namespace: &TestNamespace, name: &str) -> Result<Pod> {
    of(&namespace.python(name, "idle_server.py"))
}

fn of(workload: &Workload) -> Result<Pod> {
    let mut pod = workload.pod()?;
    // Nothing in it has to be told that it ends.
    if let Some(spec) = &mut pod.spec {
        spec.termination_grace_period_seconds = Some(0);
    }
    Ok(pod)
}

impl Case {
    /// What must be there before the session.
    pub(crate) async fn prepare(&self, namespace: &TestNamespace) -> Result<()> {
        match self.flow {
            Flow::Waiting => {
                let mut pod = pod(namespace, &self.name)?;
                let spec = pod.spec.as_mut().context("a pod has no spec")?;
                spec.scheduling_gates = Some(vec![PodSchedulingGate {
                    name: "example.com/later".to_owned(),
                }]);
                namespace
                    .pods()
                    .create(&PostParams::default(), &pod)
                    .await?;
                Ok(())
            }
            // There may be none.
            Flow::Fresh => kill(namespace, self.pod(), "agent").await.map(drop),
            Flow::Refused => {
                kill(namespace, self.pod(), "agent").await?;
                namespace.run(&self.before()).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Waits until a long script runs, carried by one of ours.
    pub(crate) async fn runs(&self, namespace: &TestNamespace) -> Result<()> {
        if !self.flow.is_long() {
            return Ok(());
        }
        let wait = format!(
            "for i in $(seq 300); do [ -e {} ] && break; sleep 0.1; done; carriers=0; \
             {OURS}; [ \"$kind\" = carrier ] && carriers=$((carriers + 1)); done; echo $carriers",
            self.running()
        );
        let carriers = namespace.shell_in(self.pod(), &wait).await?;
        ensure!(
            carriers.trim() == "1",
            "the script of {} runs in {}, carried by {carriers}",
            self.name,
            self.pod()
        );
        Ok(())
    }

    /// Waits until a long script has ended: that takes as long as an operator may take to have it stopped.
    pub(crate) async fn stopped(&self, namespace: &TestNamespace) -> Result<()> {
        if !self.flow.is_long() {
            return Ok(());
        }
        let wait = format!(
            "for i in $(seq {}); do [ -e {} ] || exit 0; sleep 0.1; done; exit 1",
            STOPPED.as_secs() * 10,
            self.running()
        );
        let waited = namespace.shell_in(self.pod(), &wait).await;
        waited.map(drop).with_context(|| {
            format!(
                "its script still runs after {} s in {}",
                STOPPED.as_secs(),
                self.pod()
            )
        })
    }

    /// Brings the session to its point, where that does not follow from the session alone.
    pub(crate) async fn approach(&self, world: &World<'_>) -> Result<()> {
        match (self.flow, self.point) {
            (Flow::Waiting, Point::AwaitedPod) => {
                world.points.seen(&self.name, Point::AwaitPod, SOON).await?;
                self.let_in(world.namespace).await
            }
            (Flow::Cancelled, _) => sessions::cancel(&world.namespace.sessions(), &self.name).await,
            (Flow::Deleted, _) => {
                let all = world.namespace.sessions();
                all.delete(&self.name, &DeleteParams::default()).await?;
                Ok(())
            }
            (Flow::Outliving, Point::ScriptEnded | Point::Told | Point::Noted) => {
                world.points.seen(&self.name, Point::Watch, SOON).await?;
                self.let_go(world.namespace).await
            }
            _ => Ok(()),
        }
    }

    /// Brings the session to its end, where that does not follow.
    pub(crate) async fn go_on(&self, world: &World<'_>) -> Result<()> {
        match (self.flow, self.point) {
            (Flow::Waiting, Point::AwaitPod) => self.let_in(world.namespace).await,
            (Flow::Outliving, Point::Watch) => self.let_go(world.namespace).await,
            _ => Ok(()),
        }
    }

    async fn let_in(&self, namespace: &TestNamespace) -> Result<()> {
        let open = Patch::Merge(json!({"spec": {"schedulingGates": null}}));
        namespace
            .pods()
            .patch(self.pod(), &PatchParams::default(), &open)
            .await?;
        Ok(())
    }

    async fn let_go(&self, namespace: &TestNamespace) -> Result<()> {
        namespace.shell_in(self.pod(), RELEASE).await.map(drop)
    }
}

/// The sessions of which a script ran in a pod, each as often as it ran.
pub(crate) async fn runs(namespace: &TestNamespace, pod: &str) -> Result<BTreeMap<String, usize>> {
    let mut runs = BTreeMap::new();
    let read = "cat /tmp/runs 2>/dev/null || true";
    for name in namespace.shell_in(pod, read).await?.lines() {
        *runs.entry(name.to_owned()).or_insert(0) += 1;
    }
    Ok(runs)
}

/// Nothing in the pod is stopped, traced, carried or armed, and no more relays than sidecars are there; its program goes on
/// and takes the next script.
pub(crate) async fn check(world: &World<'_>, pod: &str, round: &str) -> Result<()> {
    let look = format!(
        "for i in $(seq 60); do bad=; relays=0; \
         for status in /proc/1/task/*/status; do while read key value rest; do case $key$value in \
         State:T|State:t) bad=\"$bad stopped\";; TracerPid:0) ;; TracerPid:*) bad=\"$bad traced\";; esac; done <$status; done; \
         {OURS}; case $kind in relay) relays=$((relays + 1));; carrier) bad=\"$bad carrier\";; esac; done; \
         [ $relays -gt 2 ] && bad=\"$bad $relays relays\"; \
         [ -z \"$bad\" ] && exit 0; sleep 0.1; done; echo $bad >&2; exit 1"
    );
    let namespace = world.namespace;
    let looked = namespace.shell_in(pod, &look).await;
    looked.with_context(|| format!("something is left in {pod}"))?;
    let now = namespace.pods().get(pod).await?;
    ensure!(workload::restarts(&now) == 0, "{pod} was started again");
    ensure!(!armed(&now)?, "a request is left in {pod}");
    let free = sessions::exec(&format!("{round}-free-{pod}"), pod, "'free'");
    let ended = namespace.run(&free).await?;
    let (complete, reason) = sessions::end_of(&ended)?;
    ensure!(complete, "{pod} takes no script: {reason}");
    sessions::delete(&namespace.sessions(), &format!("{round}-free-{pod}"), SOON).await
}

/// Whether a request waits in any thread of the pod's program, read from this machine, on which it runs.
fn armed(pod: &Pod) -> Result<bool> {
    let id = workload::app_status(pod).and_then(|status| status.container_id.clone());
    let id = id.context("the container has no id")?;
    let id = id.rsplit('/').next().unwrap_or_default().to_owned();
    let pid = first_process(&id);
    let pid = pid.with_context(|| format!("no process of this machine is container {id}"))?;
    let process = Process::open(pid)?;
    let runtime = Runtime::locate(&process, &process.mappings()?, &process)
        .ok()
        .context("the program is no Python that can be read")?;
    let support = support(&process, &runtime, &process.threads()?);
    ensure!(
        !support.interpreters.is_empty(),
        "no interpreter can be read"
    );
    let mut threads = support
        .interpreters
        .iter()
        .flat_map(|interpreter| &interpreter.threads);
    Ok(threads.any(|thread| thread.is_pending))
}

/// The process of this machine that is process 1 of the container.
fn first_process(container: &str) -> Option<i32> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let read =
            |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let first = read("status").lines().any(|line| {
            line.starts_with("NSpid:") && line.split_whitespace().next_back() == Some("1")
        });
        first && read("cgroup").contains(container)
    })
}
