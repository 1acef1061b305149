//! One operator at work on the session: the loop of `drive`, one outside effect at a time, so that it can be killed
//! between any two of them. What comes next is the plan's word; each function says which part of `drive` it repeats.

use sidewinder_model::Reason;

use super::view::{Broken, Next, Plan, Reply, Seen};
use super::world::{
    Ending, Given, Instance, Message, Progress, Request, Seconds, SidecarState, Status, Target,
    World, Written, rebase,
};
use crate::inject::MAX_SIDECARS;
use crate::session::plan::{MAX_ASKED, MAX_INJECTIONS, Way};

/// `drive/ask.rs`: `LAST_CALL`.
const LAST_CALL: Seconds = 5;
/// One open stream: what is on its way to the agent, and what was asked on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stream {
    pub(super) instance: Instance,
    pub(super) out: Vec<Message>,
    /// The request is out on this stream (`Run::replies`).
    asked: bool,
    cancel_sent: bool,
    /// The agent has the request and answers on this stream.
    pub(super) attached: bool,
    pub(super) refused: Option<Reason>,
    pub(super) cut: bool,
}

/// What is done once a write of the status stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Then {
    Wait(Box<At>),
    Given(Given, bool),
    Ended,
}

/// Where in `drive` an operator is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    /// The top of the loop.
    Loop,
    /// `save`: about to write.
    Write(Then),
    /// `save`: the write met another one, or its answer was lost.
    Reread(Then),
    AwaitPod(Seconds),
    Opening(usize, Way, Seconds),
    Asking {
        until: Seconds,
        cancel: bool,
        last_call: Option<Seconds>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operator {
    pub(super) at: At,
    /// Whether the resource version that it knows is still the object's.
    pub(super) current: bool,
    /// As it stands in the API server, as far as is known (`Run::session`).
    known: Status,
    /// As it should stand there (`Run::status`).
    status: Status,
    spec_cancel: bool,
    /// Where a selector chose the pod, the run has its own start.
    began: Option<Seconds>,
    pub(super) seen: Seen,
    pub(super) stream: Option<Stream>,
}

/// What an operator does next, or what reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Does {
    /// `Supervisor::hand_over` and the head of `drive`.
    Start,
    /// Asks the plan and does what it says.
    Act,
    /// Sends the write.
    Write,
    /// Sends the write; its answer is lost.
    WriteUnheard,
    /// Reads the session again after a conflict.
    Reread,
    /// `take_signal`.
    NoticeCancel,
    NoticeGone,
    /// `pod_changes`.
    NoticePod,
    /// `progress`, on the way.
    Show,
    Connect,
    ConnectFails(Broken),
    /// The next message reaches the agent.
    Deliver,
    /// An answer reaches the operator.
    Hear,
    /// An answer reaches the operator that it cannot receive.
    HearNothingReadable,
    /// A stream that ended is noticed.
    Lose,
    /// The time is over.
    Late,
}

impl At {
    fn rebase(&mut self, passed: Seconds) {
        match self {
            Self::AwaitPod(until) | Self::Opening(_, _, until) => *until -= passed,
            Self::Asking {
                until, last_call, ..
            } => {
                *until -= passed;
                rebase(last_call, passed);
            }
            Self::Write(Then::Wait(at)) | Self::Reread(Then::Wait(at)) => at.rebase(passed),
            _ => {}
        }
    }
}

impl Operator {
    pub(super) fn rebase(&mut self, passed: Seconds) {
        self.at.rebase(passed);
        self.known.rebase(passed);
        self.status.rebase(passed);
        rebase(&mut self.began, passed);
        let seen = &mut self.seen;
        for time in [
            &mut seen.entering_since,
            &mut seen.asked_since,
            &mut seen.cancelled_since,
        ] {
            rebase(time, passed);
        }
    }

    pub(super) fn deadline(&self) -> Option<Seconds> {
        match &self.at {
            At::AwaitPod(until) | At::Opening(_, _, until) => Some(*until),
            At::Asking {
                until, last_call, ..
            } => Some(last_call.unwrap_or(*until)),
            _ => None,
        }
    }

    fn start(&self) -> Seconds {
        self.began.or(self.status.start).unwrap_or_default()
    }

    /// `Run::progress`: whether there is something to write, which then stands in `status`.
    fn show(&mut self, phase: Progress) -> bool {
        if self.seen.given.is_none() {
            self.status.phase = phase;
            self.status.given = None;
        }
        self.status != self.known
    }

    /// What the plan, or the gate, ended is written.
    fn end(&mut self, end: Written) {
        self.status.phase = Progress::Ended;
        self.status.given = None;
        self.status.end = Some(end);
        self.at = At::Write(Then::Ended);
    }

    /// `Run::fall_back`.
    fn fall_back(&mut self, way: Way) {
        let seen = &mut self.seen;
        seen.refused.insert(way);
        seen.answer = None;
        seen.link = None;
        seen.given = None;
        seen.asked_since = None;
        seen.entering_since = None;
        self.stream = None;
    }
}

impl World {
    fn operator(&mut self, number: usize) -> &mut Operator {
        self.operators[number].as_mut().unwrap()
    }

    /// Its streams are cut; what was on its way may still arrive.
    pub(super) fn close_stream(&mut self, number: usize) {
        if let Some(stream) = self.operator(number).stream.take() {
            self.strand(&stream);
        }
    }

    pub(super) fn strand(&mut self, stream: &Stream) {
        if self.agents[stream.instance].alive {
            let instance = stream.instance;
            self.stray
                .extend(stream.out.iter().map(|message| (instance, *message)));
        }
    }

    /// What an operator may do now.
    pub(super) fn may(&self, number: usize, does: &mut Vec<Does>) {
        let Some(operator) = &self.operators[number] else {
            if !self.over() {
                does.push(Does::Start);
            }
            return;
        };
        let news = operator.seen.pod != self.pod;
        let waits = match &operator.at {
            At::Loop => {
                does.push(Does::Act);
                true
            }
            At::Write(_) => {
                does.push(Does::Write);
                false
            }
            At::Reread(_) => {
                does.push(Does::Reread);
                false
            }
            At::AwaitPod(_) => {
                if news {
                    does.push(Does::NoticePod);
                }
                true
            }
            At::Opening(sidecar, ..) => {
                if news {
                    does.push(Does::NoticePod);
                }
                if self.pod.is_none() {
                    does.push(Does::ConnectFails(Broken::NotRunning));
                } else if self.reached(*sidecar).is_some() {
                    does.push(Does::Connect);
                }
                if operator.status.phase != Progress::Attaching && operator.seen.given.is_none() {
                    does.push(Does::Show);
                }
                true
            }
            At::Asking { .. } => {
                if let Some(stream) = &operator.stream {
                    let done = matches!(self.agents[stream.instance].request, Request::Done(_));
                    if stream.cut {
                        does.push(Does::Lose);
                    } else if stream.refused.is_some() || stream.attached && done {
                        does.push(Does::Hear);
                    }
                }
                if operator.status.phase != Progress::Running && operator.seen.given.is_none() {
                    does.push(Does::Show);
                }
                true
            }
        };
        if let Some(stream) = &operator.stream
            && !stream.cut
            && !stream.out.is_empty()
        {
            does.push(Does::Deliver);
        }
        if waits && self.object.gone {
            does.push(Does::NoticeGone);
        }
        if waits && self.object.cancel && operator.seen.cancelled_since.is_none() {
            does.push(Does::NoticeCancel);
        }
        if operator.deadline().is_some_and(|until| self.now >= until) {
            does.push(Does::Late);
        }
    }

    pub(super) fn does(&mut self, plan: &Plan, number: usize, does: Does) {
        match does {
            Does::Start => self.take_up(plan, number),
            Does::Act => self.act(plan, number),
            Does::Write => self.write(number, true),
            Does::WriteUnheard => self.write(number, false),
            Does::Reread => self.reread(number),
            Does::NoticeCancel => {
                let now = self.now;
                let operator = self.operator(number);
                operator.seen.cancelled_since = Some(now);
                operator.at = At::Loop;
            }
            Does::NoticeGone => self.abandon(number),
            Does::NoticePod => {
                let pod = self.pod.clone();
                let now = self.now;
                let operator = self.operator(number);
                operator.seen.pod = pod;
                let next = plan.next(operator.start(), now, &operator.seen);
                let same = match (&operator.at, &next) {
                    (At::AwaitPod(until), Next::AwaitPod(again)) => until == again,
                    (At::Opening(sidecar, way, until), Next::Open(again, by, limit)) => {
                        (sidecar, way, until) == (again, by, limit)
                    }
                    _ => false,
                };
                if !same {
                    operator.at = At::Loop;
                }
            }
            Does::Show => {
                let operator = self.operator(number);
                let at = operator.at.clone();
                let phase = if matches!(at, At::Opening(..)) {
                    Progress::Attaching
                } else {
                    Progress::Running
                };
                if operator.show(phase) {
                    operator.at = At::Write(Then::Wait(Box::new(at)));
                }
            }
            Does::Connect => self.connect(number),
            Does::ConnectFails(error) => {
                let pod = self.pod.clone();
                let operator = self.operator(number);
                if pod.is_none() {
                    operator.seen.pod = None;
                }
                operator.seen.link_error = Some(error);
                operator.at = At::Loop;
            }
            Does::Deliver => {
                let stream = self.operator(number).stream.as_mut().unwrap();
                let message = stream.out.remove(0);
                let instance = stream.instance;
                let refused = self.arrives(instance, message);
                let stream = self.operator(number).stream.as_mut().unwrap();
                if matches!(message, Message::Run { .. }) {
                    stream.attached = refused.is_none();
                    stream.refused = refused;
                }
            }
            Does::Hear => {
                let stream = self.operator(number).stream.clone().unwrap();
                let reply = match (stream.refused, self.agents[stream.instance].request) {
                    (Some(reason), _) => Reply::Refused(reason),
                    (None, Request::Done(ending)) => Reply::Finished(ending),
                    (None, other) => panic!("nothing to hear: {other:?}"),
                };
                let operator = self.operator(number);
                operator.seen.answer = Some(reply);
                operator.at = At::Loop;
            }
            Does::HearNothingReadable => {
                let operator = self.operator(number);
                operator.seen.answer = Some(Reply::Unreadable);
                operator.at = At::Loop;
            }
            Does::Lose => self.lose(number),
            Does::Late => self.late(number),
        }
    }

    /// `drive`: the session and its pod are read, `take_up`.
    fn take_up(&mut self, plan: &Plan, number: usize) {
        let status = self.object.status.clone();
        let mut wanted = status.clone();
        wanted.start.get_or_insert(self.now);
        if wanted.phase == Progress::Nothing {
            wanted.phase = Progress::Pending;
        }
        let seen = Seen {
            pod: self.pod.clone(),
            // The pod was chosen when the session was made.
            pinned: self.selector.then_some(1),
            // `Intent::read`, for scripts alone.
            given: status
                .given
                .clone()
                .filter(|_| plan.script() && status.phase == Progress::Running),
            cancelled_since: self.object.cancel.then_some(self.now),
            ..Seen::default()
        };
        self.operators[number] = Some(Operator {
            at: At::Loop,
            current: true,
            known: status,
            status: wanted,
            spec_cancel: self.object.cancel,
            began: self.selector.then_some(self.now),
            seen,
            stream: None,
        });
    }

    /// Steps that nobody else can see are taken at once: an operator that is killed before or after them is the same.
    pub(super) fn think(&mut self, plan: &Plan, number: usize) {
        let now = self.now;
        while let Some(operator) = &mut self.operators[number]
            && operator.at == At::Loop
            && matches!(
                plan.next(operator.start(), now, &operator.seen),
                Next::Open(..) | Next::FallBack(_)
            )
        {
            self.act(plan, number);
        }
    }

    /// `Run::drive`: what the gate refuses is not begun (`touches`), and what may have been is asked for without time to
    /// begin (`may_begin`). Whether the step is not taken.
    fn is_refused(&mut self, plan: &Plan, number: usize, next: &Next) -> bool {
        let now = self.now;
        let operator = self.operator(number);
        let seen = &operator.seen;
        let begun = seen.given.is_some() || seen.asked_since.is_some();
        let acts = matches!(
            next,
            Next::Inject(..) | Next::Open(..) | Next::Record(_) | Next::Ask { .. }
        );
        if acts && !begun && seen.cancelled_since.is_none() && seen.pod.is_some() {
            let end = plan.refused(operator.start(), now, seen);
            operator.end(end);
            return true;
        }
        let asked = operator.stream.as_ref().is_some_and(|stream| stream.asked);
        let may_begin = matches!(next, Next::Ask { cancel: false, .. })
            && operator.seen.given.is_some()
            && !asked
            && !operator.seen.barred;
        operator.seen.barred |= may_begin;
        may_begin
    }

    fn act(&mut self, plan: &Plan, number: usize) {
        let now = self.now;
        let refuses = self.gate_refuses;
        let operator = self.operator(number);
        let next = plan.next(operator.start(), now, &operator.seen);
        if refuses && self.is_refused(plan, number, &next) {
            return;
        }
        let operator = self.operator(number);
        match next {
            Next::End(end) => {
                let seen = &operator.seen;
                let gone = seen.given.as_ref().zip(seen.pod.as_ref());
                let gone = gone.is_some_and(|(given, pod)| {
                    (pod.uid, pod.container_id) != (given.uid, given.container_id)
                        || pod.target == Target::Waiting
                });
                if gone && seen.answer.is_none() && end.claim == Some(Reason::StillArmed) {
                    self.must_not("a process that is seen to be gone is not said to be armed");
                }
                self.operator(number).end(end);
            }
            Next::AwaitPod(until) => {
                let at = At::AwaitPod(until);
                operator.at = if operator.show(Progress::Pending) {
                    At::Write(Then::Wait(Box::new(at)))
                } else {
                    at
                };
            }
            Next::Inject(way, sidecar) => {
                operator.seen.entering_since.get_or_insert(now);
                self.inject(plan, number, way, sidecar);
            }
            Next::Open(sidecar, way, until) => {
                operator.seen.entering_since.get_or_insert(now);
                operator.at = At::Opening(sidecar, way, until);
            }
            Next::Record(given) => {
                // `Run::record`.
                operator.status.phase = Progress::Running;
                operator.status.given = Some(given.clone());
                let cancelled = operator.seen.cancelled_since.is_some();
                operator.at = At::Write(Then::Given(given, cancelled));
            }
            Next::Ask {
                instance,
                container_id,
                late,
                until,
                cancel,
            } => {
                let run = Message::Run {
                    instance,
                    container_id,
                    late,
                };
                self.ask(plan, number, run, until, cancel);
            }
            Next::FallBack(way) => operator.fall_back(way),
        }
    }

    /// `apply::inject`: bound to the pod's UID, by name, twice is once.
    fn inject(&mut self, plan: &Plan, number: usize, way: Way, sidecar: usize) {
        let looked_at = self.operator(number).seen.pod.clone().unwrap();
        if !plan.admits(way) {
            self.operator(number).seen.refused.insert(way);
            return;
        }
        let pod = self.pod.as_mut().filter(|pod| pod.uid == looked_at.uid);
        let added = pod.is_some_and(|pod| {
            if let Some((there, _)) = pod.sidecars.get(sidecar) {
                return *there == way;
            }
            pod.sidecars.push((way, SidecarState::Starting));
            true
        });
        let pod = self.pod.clone();
        if pod
            .as_ref()
            .is_some_and(|pod| pod.sidecars.len() > MAX_SIDECARS)
        {
            self.must_not("a pod gets no more sidecars than its cap");
        }
        let operator = self.operator(number);
        if added {
            operator
                .seen
                .injected
                .insert(sidecar, looked_at.container_id);
            operator.seen.link_error = None;
        }
        operator.seen.pod = pod;
        if operator.seen.injected.len() > MAX_INJECTIONS {
            self.must_not("a run adds no more sidecars than its limit");
        }
    }

    /// `Run::open`. A stream is opened by the pod's name, not by its UID.
    fn connect(&mut self, number: usize) {
        let At::Opening(sidecar, way, _) = self.operator(number).at else {
            return;
        };
        let instance = self.reached(sidecar).unwrap();
        self.close_stream(number);
        let operator = self.operator(number);
        operator.seen.link = Some((sidecar, way, instance));
        operator.seen.link_error = None;
        operator.seen.entering_since = None;
        operator.stream = Some(Stream {
            instance,
            out: Vec::new(),
            asked: false,
            cancel_sent: false,
            attached: false,
            refused: None,
            cut: false,
        });
        operator.at = At::Loop;
    }

    /// `Run::ask` and `Run::send`.
    fn ask(&mut self, plan: &Plan, number: usize, run: Message, until: Seconds, cancel: bool) {
        let now = self.now;
        let Some(stream) = self.operator(number).stream.clone() else {
            self.operator(number).seen.link = None;
            return;
        };
        if stream.cut {
            return self.lose(number);
        }
        if plan.script() {
            let Message::Run { instance, .. } = run else {
                return;
            };
            if instance != Some(stream.instance) {
                self.must_not("a request is sent to no other agent than the intent's");
            }
            if !self.named.contains(&stream.instance) {
                self.must_not("nothing is sent to an agent before its intent stands");
            }
        }
        if cancel && !matches!(run, Message::Run { late: true, .. }) {
            self.must_not("what is cancelled does not begin any more");
        }
        if self.operator(number).seen.barred && !matches!(run, Message::Run { late: true, .. }) {
            self.must_not("what is barred does not begin any more");
        }
        let operator = self.operator(number);
        let sidecar = operator.seen.link.map(|(sidecar, ..)| sidecar);
        let stream = operator.stream.as_mut().unwrap();
        if !stream.asked {
            if cancel {
                stream.out.push(Message::Cancel);
            }
            operator.seen.asked_since.get_or_insert(now);
            operator.seen.asked.extend(sidecar);
            stream.out.push(run);
            stream.asked = true;
        }
        if cancel && !stream.cancel_sent {
            stream.out.push(Message::Cancel);
            stream.cancel_sent = true;
        }
        operator.at = At::Asking {
            until,
            cancel,
            last_call: None,
        };
        if !plan.script() && operator.seen.asked.len() > MAX_ASKED {
            self.must_not("a read-only action is given to no more agents than its limit");
        }
    }

    /// `Run::lose`.
    fn lose(&mut self, number: usize) {
        let (now, pod) = (self.now, self.pod.clone());
        self.close_stream(number);
        let seen = &mut self.operator(number).seen;
        seen.link = None;
        seen.link_error = Some(Broken::Ended);
        seen.entering_since = Some(now);
        seen.pod = pod;
        self.operator(number).at = At::Loop;
    }

    /// The deadlines in `await_pod`, `open` and `ask`.
    fn late(&mut self, number: usize) {
        let now = self.now;
        let operator = self.operator(number);
        match &mut operator.at {
            At::Asking {
                cancel, last_call, ..
            } if !*cancel && last_call.is_none() => {
                *last_call = Some(now + LAST_CALL);
                if let Some(stream) = &mut operator.stream {
                    stream.out.push(Message::Cancel);
                }
            }
            At::Asking { .. } => {
                operator.seen.answer = Some(Reply::Silent);
                operator.at = At::Loop;
            }
            _ => operator.at = At::Loop,
        }
    }

    /// `apply::status`: bound to the resource version.
    fn write(&mut self, number: usize, heard: bool) {
        if self.object.gone {
            return self.abandon(number);
        }
        let operator = self.operator(number);
        let At::Write(then) = operator.at.clone() else {
            return;
        };
        let status = operator.status.clone();
        if !operator.current {
            operator.at = At::Reread(then);
            return;
        }
        self.note(&status);
        self.object.status = status;
        self.changed();
        if heard {
            self.written(number, then);
        } else {
            self.operator(number).at = At::Reread(then);
        }
    }

    /// Holds what is about to stand against what is true.
    fn note(&mut self, status: &Status) {
        if self.object.status.end.is_some() && self.object.status.end != status.end {
            self.must_not("an end is never changed");
        }
        if let Some(given) = &status.given {
            self.named.insert(given.instance);
        }
    }

    /// `save`: the write stands.
    fn written(&mut self, number: usize, then: Then) {
        let object = self.object.clone();
        let now = self.now;
        let operator = self.operator(number);
        operator.current = true;
        operator.known = object.status.clone();
        operator.status = object.status;
        operator.spec_cancel = object.cancel;
        match then {
            Then::Wait(at) => operator.at = *at,
            Then::Given(given, cancelled) => {
                operator.seen.given = Some(given);
                if !cancelled && operator.spec_cancel {
                    operator.seen.cancelled_since = Some(now);
                }
                operator.at = At::Loop;
            }
            Then::Ended => {
                let acknowledges = matches!(operator.seen.answer, Some(Reply::Finished(_)));
                let stream = operator.stream.clone();
                if let Some(stream) = stream.filter(|stream| acknowledges && !stream.cut)
                    && matches!(self.agents[stream.instance].request, Request::Done(_))
                {
                    self.agents[stream.instance].request = Request::Done(Ending::Forgotten);
                }
                self.leave(number);
            }
        }
    }

    /// `save`: what a conflict means.
    fn reread(&mut self, number: usize) {
        if self.object.gone {
            return self.abandon(number);
        }
        let object = self.object.clone();
        let now = self.now;
        let operator = self.operator(number);
        let At::Reread(then) = operator.at.clone() else {
            return;
        };
        if object.status == operator.status {
            return self.written(number, then);
        }
        let untouched = object.status.phase == Progress::Nothing;
        if object.status != operator.known && !untouched {
            return self.leave(number);
        }
        if object.cancel {
            operator.seen.cancelled_since.get_or_insert(now);
        }
        operator.current = true;
        operator.known = object.status;
        operator.spec_cancel = object.cancel;
        operator.at = At::Write(then);
    }

    /// A session that it left and that is not over is handed to it again (`Supervisor::work`).
    fn leave(&mut self, number: usize) {
        self.close_stream(number);
        self.operators[number] = None;
    }

    /// `Run::abandon`: what runs is told to stop, and nothing is claimed.
    fn abandon(&mut self, number: usize) {
        if let Some(stream) = &mut self.operator(number).stream
            && stream.asked
        {
            stream.out.push(Message::Cancel);
        }
        self.leave(number);
    }
}
