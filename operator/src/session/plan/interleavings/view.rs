//! Between the small words of the model and the operator's own: what a decision sees, what it says, and what the end
//! that it chooses would claim in the status.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sidewinder_crds::{DebugSession, Phase, TargetStatus, conditions};
use sidewinder_model::{Action, Outcome, Reason, TargetOutcome};

use super::world::{
    Ending, Given, Instance, Over, PodState, Seconds, SidecarState, Target, Written,
};
use crate::inject::{self, Refusal};
use crate::relay::RelayError;
use crate::relay::budget::Delivered;
use crate::session::plan::{self, Answer, End, Intent, Link, Observed, Step, Way};
use crate::session::result::{PodEnd, Sensitive, finish};
use crate::testing;

/// Why there is no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Broken {
    Ended,
    NotRunning,
    NodeUnreachable,
    Forbidden,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reply {
    Finished(Ending),
    Refused(Reason),
    Unreadable,
    Silent,
}

/// [`Observed`] in small.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) pod: Option<PodState>,
    pub(super) pinned: Option<u8>,
    pub(super) refused: BTreeSet<Way>,
    pub(super) given: Option<Given>,
    pub(super) link: Option<(usize, Way, Instance)>,
    pub(super) link_error: Option<Broken>,
    pub(super) answer: Option<Reply>,
    pub(super) barred: bool,
    pub(super) injected: BTreeMap<usize, u8>,
    pub(super) asked: BTreeSet<usize>,
    pub(super) entering_since: Option<Seconds>,
    pub(super) asked_since: Option<Seconds>,
    pub(super) cancelled_since: Option<Seconds>,
}

/// [`Step`] in small.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Next {
    End(Written),
    AwaitPod(Seconds),
    Inject(Way, usize),
    Open(usize, Way, Seconds),
    Record(Given),
    Ask {
        instance: Option<Instance>,
        container_id: u8,
        late: bool,
        until: Seconds,
        cancel: bool,
    },
    FallBack(Way),
}

type Question = (Seconds, Seconds, Seen);

/// The plan, asked once for everything that can be seen.
pub(super) struct Plan {
    script: bool,
    /// The ways that admission refuses.
    forbidden: BTreeSet<Way>,
    known: Mutex<HashMap<Question, Next>>,
    pods: Mutex<HashMap<PodState, Pod>>,
}

fn epoch() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn time(at: Seconds) -> Timestamp {
    epoch() + SignedDuration::from_secs(at)
}

fn seconds(time: Timestamp) -> Seconds {
    time.duration_since(epoch()).as_secs()
}

fn name(sidecar: usize) -> String {
    format!("sidewinder-app-{}", sidecar + 1)
}

fn number(name: &str) -> usize {
    let digits = name.rsplit('-').next().unwrap();
    digits.parse::<usize>().unwrap() - 1
}

fn container_id(id: u8) -> String {
    format!("containerd://c{id}")
}

fn instance(instance: Instance) -> String {
    format!("i{instance}")
}

fn instance_number(name: &str) -> Instance {
    name.trim_start_matches('i').parse().unwrap()
}

fn refusal(reason: Reason) -> Refusal {
    Refusal::new(reason, "no")
}

impl Plan {
    pub(super) fn new(script: bool, forbidden: BTreeSet<Way>) -> Self {
        Self {
            script,
            forbidden,
            known: Mutex::default(),
            pods: Mutex::default(),
        }
    }

    pub(super) fn script(&self) -> bool {
        self.script
    }

    pub(super) fn admits(&self, way: Way) -> bool {
        !self.forbidden.contains(&way)
    }

    fn session(&self, start: Seconds) -> DebugSession {
        let mut session = testing::session(if self.script {
            json!({"remoteExec": {"script": "print(1)"}})
        } else {
            json!({"stacks": {}})
        });
        session.status.get_or_insert_default().start_time = Some(Time(time(start)));
        session
    }

    fn pod(&self, state: &PodState) -> Pod {
        let mut pods = self.pods.lock().unwrap();
        pods.entry(state.clone())
            .or_insert_with(|| pod(state))
            .clone()
    }

    /// What the plan says.
    pub(super) fn next(&self, start: Seconds, now: Seconds, seen: &Seen) -> Next {
        let question = (start, now, seen.clone());
        if let Some(next) = self.known.lock().unwrap().get(&question) {
            return next.clone();
        }
        let session = self.session(start);
        let observed = self.observed(seen);
        let step = plan::plan(&session, &observed, &testing::sidecar(), time(now));
        let next = Self::small(step, &session, seen, now);
        self.known.lock().unwrap().insert(question, next.clone());
        next
    }

    /// What the status would say of a session that the gate refuses.
    pub(super) fn refused(&self, start: Seconds, now: Seconds, seen: &Seen) -> Written {
        let Refusal { reason, message } = refusal(Reason::PolicyDenied);
        let end = End {
            reason,
            message,
            outcome: None,
            maybe_armed: false,
        };
        Self::written(end, &self.session(start), seen, now)
    }

    fn observed(&self, seen: &Seen) -> Observed {
        Observed {
            pod: seen.pod.as_ref().map(|pod| self.pod(pod)),
            pinned: seen.pinned.map(|uid| format!("pod-uid-{uid}")),
            script: self.script.then(|| Ok("print(1)".into())),
            refused: seen
                .refused
                .iter()
                .map(|way| (*way, refusal(Reason::PodSecurityForbidden)))
                .collect(),
            intent: seen.given.as_ref().map(intent),
            link: seen.link.map(|(sidecar, way, run)| Link {
                sidecar: name(sidecar),
                attach: way.into(),
                instance: instance(run),
            }),
            link_error: seen.link_error.map(|error| match error {
                Broken::Ended => RelayError::Ended(String::new()),
                Broken::NotRunning => RelayError::NotRunning("not yet".into()),
                Broken::NodeUnreachable => RelayError::NodeUnreachable("dial tcp".into()),
                Broken::Forbidden => RelayError::Forbidden("no".into()),
            }),
            answer: seen.answer.map(|reply| match reply {
                Reply::Finished(ending) => {
                    Answer::Finished(Delivered::new(outcome(ending, self.script), None))
                }
                Reply::Refused(reason) => Answer::Refused(refusal(reason)),
                Reply::Unreadable => Answer::Unreadable(refusal(Reason::ResultNotStored)),
                Reply::Silent => Answer::Silent,
            }),
            barred: seen.barred.then(|| refusal(Reason::PolicyDenied)),
            injected: seen
                .injected
                .iter()
                .map(|(sidecar, id)| (name(*sidecar), container_id(*id)))
                .collect(),
            asked: seen.asked.iter().map(|sidecar| name(*sidecar)).collect(),
            entering_since: seen.entering_since.map(time),
            asked_since: seen.asked_since.map(time),
            cancelled_since: seen.cancelled_since.map(time),
        }
    }

    fn small(step: Step, session: &DebugSession, seen: &Seen, now: Seconds) -> Next {
        match step {
            Step::End(end) => Next::End(Self::written(*end, session, seen, now)),
            Step::AwaitPod { until, .. } => Next::AwaitPod(seconds(until)),
            Step::Inject { way, container } => Next::Inject(way, number(&container.name)),
            Step::Open {
                sidecar,
                way,
                until,
            } => Next::Open(number(&sidecar), way, seconds(until)),
            Step::Record(intent) => Next::Record(given(&intent)),
            Step::Ask {
                request,
                until,
                cancel,
            } => Next::Ask {
                instance: request.instance.as_deref().map(instance_number),
                container_id: request
                    .container_id
                    .as_deref()
                    .and_then(|id| id.trim_start_matches('c').parse().ok())
                    .unwrap(),
                late: request.timeout_milliseconds == 0
                    && match &request.action {
                        Action::Exec(exec) => exec.start_milliseconds == 0,
                        _ => true,
                    },
                until: seconds(until),
                cancel,
            },
            Step::FallBack { way, .. } => Next::FallBack(way),
        }
    }

    /// What the status would say of this end.
    fn written(end: End, session: &DebugSession, seen: &Seen, now: Seconds) -> Written {
        let mut entry = TargetStatus {
            pod_uid: seen
                .pinned
                .or(seen.pod.as_ref().map(|pod| pod.uid))
                .map(|uid| format!("pod-uid-{uid}")),
            ..TargetStatus::default()
        };
        if let Some(intent) = seen.given.as_ref().map(intent) {
            entry = TargetStatus {
                pod_name: "web-0".into(),
                pod_uid: Some(intent.pod_uid),
                container: Some(intent.container),
                container_id: Some(intent.container_id),
                sidecar: Some(intent.sidecar),
                attach: Some(intent.attach),
                agent: Some(intent.instance),
                phase: Some(Phase::Running),
                ..TargetStatus::default()
            };
        }
        let end = PodEnd::new(session, end, &entry, String::new(), Sensitive::Secret);
        let finished = finish(session, &[end], Duration::ZERO, time(now));
        let disarmed = conditions::find(&finished.status.conditions, conditions::DISARMED);
        Written {
            reason: finished.reason,
            complete: finished.complete,
            claim: disarmed.map(|condition| match condition.reason.as_str() {
                "Disarmed" => Reason::Disarmed,
                "NotArmed" => Reason::NotArmed,
                "StillArmed" => Reason::StillArmed,
                other => panic!("no reason of this condition: {other}"),
            }),
        }
    }
}

fn intent(given: &Given) -> Intent {
    Intent {
        pod_uid: format!("pod-uid-{}", given.uid),
        container: "app".into(),
        container_id: container_id(given.container_id),
        sidecar: name(given.sidecar),
        attach: given.way.into(),
        instance: instance(given.instance),
    }
}

fn given(intent: &Intent) -> Given {
    let number_of = |text: &str, prefix: &str| text.trim_start_matches(prefix).parse().unwrap();
    Given {
        uid: number_of(&intent.pod_uid, "pod-uid-"),
        container_id: number_of(&intent.container_id, "containerd://c"),
        sidecar: number(&intent.sidecar),
        way: intent.attach.into(),
        instance: instance_number(&intent.instance),
    }
}

fn outcome(ending: Ending, script: bool) -> Outcome {
    let (reason, disarmed) = match ending {
        Ending::Ran => (Reason::Succeeded, Some(true)),
        Ending::Blocked => (Reason::TargetBlocked, Some(true)),
        Ending::Stuck => (Reason::StillArmed, Some(false)),
        Ending::Overran => (Reason::ScriptTimeout, Some(true)),
        Ending::NotBegun => (Reason::Cancelled, None),
        Ending::Withdrawn => (Reason::Cancelled, Some(true)),
        Ending::Denied => (Reason::PermissionDenied, None),
        Ending::Turned => (Reason::QueueFull, None),
        Ending::Elsewhere => (Reason::NoPythonProcess, None),
        Ending::Forgotten => (Reason::SidecarLost, None),
    };
    Outcome {
        targets: vec![TargetOutcome {
            disarmed: disarmed.filter(|_| script),
            ..TargetOutcome::failed(reason, "")
        }],
        ..Outcome::default()
    }
}

fn pod(state: &PodState) -> Pod {
    let target = match state.target {
        Target::Running => json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
        Target::Waiting => {
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}})
        }
    };
    let mut patch = json!({
        "metadata": {"uid": format!("pod-uid-{}", state.uid)},
        "status": {"containerStatuses": [{
            "name": "app", "ready": true, "restartCount": 0, "image": "app:1", "imageID": "app",
            "containerID": container_id(state.container_id), "state": target,
            "user": {"linux": {"uid": 1000, "gid": 2000}}
        }]}
    });
    match state.over {
        Over::No => {}
        Over::Deleting => patch["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        Over::Failed => patch["status"]["phase"] = json!("Failed"),
    }
    let plain = testing::pod(patch.clone());
    let mut containers = Vec::new();
    let mut statuses = Vec::new();
    for (sidecar, (way, state)) in state.sidecars.iter().enumerate() {
        let name = name(sidecar);
        let ours =
            inject::ephemeral_container(&plain, "app", (*way).into(), &testing::sidecar(), &name);
        containers.push(serde_json::to_value(ours.unwrap()).unwrap());
        let state = match state {
            SidecarState::Starting => continue,
            SidecarState::Stuck => {
                json!({"waiting": {"reason": "CreateContainerError", "message": "mounts"}})
            }
            SidecarState::Running => json!({"running": {}}),
            SidecarState::Ended(code) => json!({"terminated": {"exitCode": code}}),
        };
        statuses.push(json!({
            "name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state
        }));
    }
    patch["spec"] = json!({"ephemeralContainers": containers});
    patch["status"]["ephemeralContainerStatuses"] = json!(statuses);
    testing::pod(patch)
}
