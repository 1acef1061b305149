//! Everything around the operator: the session's object, the pod, the agents and the script in the target, small enough
//! to be compared and hashed. Nothing here decides; it keeps what is true, so that what is claimed can be held against it.

use std::collections::BTreeSet;

use sidewinder_model::Reason;

use super::operator::Operator;
use crate::session::plan::Way;

/// Seconds since the session was created.
pub(super) type Seconds = i64;
/// A run of an agent: its place in [`World::agents`].
pub(super) type Instance = usize;

/// What stands in the status as an intent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Given {
    pub(super) uid: u8,
    pub(super) container_id: u8,
    pub(super) sidecar: usize,
    pub(super) way: Way,
    pub(super) instance: Instance,
}

/// The session's end as it stands in the status.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Written {
    pub(super) reason: Reason,
    pub(super) complete: bool,
    /// The reason of the condition `Disarmed`.
    pub(super) claim: Option<Reason>,
}

/// How far a status says that its session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Progress {
    #[default]
    Nothing,
    Pending,
    Attaching,
    Running,
    Ended,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Status {
    pub(super) phase: Progress,
    pub(super) start: Option<Seconds>,
    pub(super) given: Option<Given>,
    pub(super) end: Option<Written>,
}

/// Longer ago than this is no different.
const LONG_AGO: Seconds = -1000;

pub(super) fn rebase(time: &mut Option<Seconds>, passed: Seconds) {
    *time = time.map(|time| (time - passed).max(LONG_AGO));
}

impl Status {
    pub(super) fn rebase(&mut self, passed: Seconds) {
        rebase(&mut self.start, passed);
    }
}

/// The session in the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub(super) cancel: bool,
    pub(super) gone: bool,
    pub(super) status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Running,
    Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Over {
    No,
    Deleting,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SidecarState {
    Starting,
    Stuck,
    Running,
    Ended(u8),
}

/// The pod in the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PodState {
    pub(super) uid: u8,
    pub(super) container_id: u8,
    pub(super) target: Target,
    pub(super) over: Over,
    pub(super) sidecars: Vec<(Way, SidecarState)>,
}

/// What an agent says at the end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Ending {
    /// The action was carried out.
    Ran,
    /// The script did not start in time and was taken back.
    Blocked,
    /// The script did not start in time and could not be taken back.
    Stuck,
    /// The script started and did not end in time.
    Overran,
    /// It was cancelled before anything was armed.
    NotBegun,
    /// It was cancelled, and what was armed was taken back.
    Withdrawn,
    /// The kernel does not let the agent in.
    Denied,
    /// It was turned away.
    Turned,
    /// There is no such process beside this agent.
    Elsewhere,
    /// The outcome was acknowledged before.
    Forgotten,
}

/// A request as its agent and the target see it. What is armed or runs stays so when its agent is killed: the carrier
/// lives on. With its target it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Request {
    Unknown,
    /// Accepted; for a script: armed in the target.
    Begun,
    /// The script runs.
    Started,
    Done(Ending),
    /// The target is gone, and everything in it.
    Vanished,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct AgentState {
    pub(super) uid: u8,
    pub(super) container_id: u8,
    pub(super) sidecar: usize,
    pub(super) way: Way,
    pub(super) alive: bool,
    pub(super) request: Request,
    pub(super) cancelled: bool,
    /// A script that could not be taken back waits in the target.
    pub(super) left: bool,
    /// It has no room for the next request.
    pub(super) full: bool,
}

/// What an operator says to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Message {
    Run {
        instance: Option<Instance>,
        container_id: u8,
        /// It must not begin any more.
        late: bool,
    },
    Cancel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// Whether the action is a script.
    pub(super) script: bool,
    /// Whether a selector chose the pod, so that no other of its name counts.
    pub(super) selector: bool,
    /// Whether the kernel refuses `Ptrace`.
    pub(super) kernel_refuses: bool,
    pub(super) now: Seconds,
    /// Whether the fences refuse the session by now.
    pub(super) gate_refuses: bool,
    /// How many more things go wrong.
    pub(super) faults: u8,
    pub(super) object: Object,
    pub(super) pod: Option<PodState>,
    pub(super) agents: Vec<AgentState>,
    pub(super) operators: Vec<Option<Operator>>,
    /// Messages in streams that were cut: they may still arrive.
    pub(super) stray: BTreeSet<(Instance, Message)>,
    /// How often the script started.
    pub(super) starts: u8,
    /// Whether anything was ever armed.
    pub(super) ever_armed: bool,
    /// The instances that an intent in the object ever named.
    pub(super) named: BTreeSet<Instance>,
    /// The last identity given to a pod or container.
    pub(super) identities: u8,
    /// What must never happen and did.
    pub(super) wrong: Option<&'static str>,
}

impl World {
    pub(super) fn new(script: bool, operators: usize, faults: u8) -> Self {
        Self {
            script,
            selector: false,
            kernel_refuses: false,
            now: 0,
            gate_refuses: false,
            faults,
            object: Object::default(),
            pod: Some(PodState {
                uid: 1,
                container_id: 1,
                target: Target::Running,
                over: Over::No,
                sidecars: Vec::new(),
            }),
            agents: Vec::new(),
            operators: vec![None; operators],
            stray: BTreeSet::new(),
            starts: 0,
            ever_armed: false,
            named: BTreeSet::new(),
            identities: 1,
            wrong: None,
        }
    }

    /// The object was written: what others know of it is old.
    pub(super) fn changed(&mut self) {
        for operator in self.operators.iter_mut().flatten() {
            operator.current = false;
        }
    }

    pub(super) fn must_not(&mut self, what: &'static str) {
        self.wrong.get_or_insert(what);
    }

    /// The agent that a stream to this sidecar of the pod of that name reaches.
    pub(super) fn reached(&self, sidecar: usize) -> Option<Instance> {
        let pod = self.pod.as_ref()?;
        self.agents
            .iter()
            .position(|agent| agent.alive && agent.uid == pod.uid && agent.sidecar == sidecar)
    }

    /// The agents that are gone take their streams along.
    fn kill(&mut self, dies: impl Fn(&AgentState) -> bool) {
        for agent in self.agents.iter_mut().filter(|agent| dies(agent)) {
            agent.alive = false;
        }
        let agents = &self.agents;
        self.stray.retain(|(instance, _)| agents[*instance].alive);
        for operator in self.operators.iter_mut().flatten() {
            if let Some(stream) = &mut operator.stream
                && !agents[stream.instance].alive
            {
                stream.cut = true;
                stream.out.clear();
            }
        }
    }

    pub(super) fn kill_agent(&mut self, instance: Instance, code: Option<u8>) {
        let AgentState { uid, sidecar, .. } = self.agents[instance];
        self.agents[instance].alive = false;
        self.kill(|_| false);
        let Some(pod) = self.pod.as_mut().filter(|pod| pod.uid == uid) else {
            return;
        };
        if let Some(code) = code {
            pod.sidecars[sidecar].1 = SidecarState::Ended(code);
        } else {
            let again = AgentState {
                alive: true,
                request: Request::Unknown,
                cancelled: false,
                left: false,
                full: false,
                ..self.agents[instance].clone()
            };
            self.agents.push(again);
        }
    }

    /// Every process of the target container ends, and those of its PID namespace with it.
    pub(super) fn end_target(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        for (_, state) in &mut pod.sidecars {
            *state = SidecarState::Ended(137);
        }
        let uid = pod.uid;
        for agent in self.agents.iter_mut().filter(|agent| agent.uid == uid) {
            agent.left = false;
            if !matches!(agent.request, Request::Unknown | Request::Done(_)) {
                agent.request = Request::Vanished;
            }
        }
        self.kill(|agent| agent.uid == uid);
    }

    /// Whether something of ours is armed or runs in a target.
    pub(super) fn armed(&self) -> bool {
        self.agents
            .iter()
            .any(|agent| agent.left || matches!(agent.request, Request::Begun))
    }

    pub(super) fn running(&self) -> bool {
        self.agents
            .iter()
            .any(|agent| agent.request == Request::Started)
    }

    /// Makes now the beginning of time, so that worlds that differ in nothing else are the same.
    pub(super) fn rebase(&mut self) {
        let passed = std::mem::take(&mut self.now);
        if passed == 0 {
            return;
        }
        self.object.status.rebase(passed);
        for operator in self.operators.iter_mut().flatten() {
            operator.rebase(passed);
        }
    }

    pub(super) fn over(&self) -> bool {
        self.object.gone || self.object.status.end.is_some()
    }
}
