//! Every order in which things can happen around one session, as far as a few faults go: the plan, driven as `drive`
//! drives it, among an API server, a pod, agents that keep what they were given, streams that break and operators that
//! are killed between any two of their steps. All of it is searched, breadth first, so that what is found is short;
//! beyond those bounds it is walked at random, from seeds that can be given again.
//!
//! A second operator may be at work at the same time: a lease is no fence.
#![expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, true or not whatever the others are"
)]

mod agent;
mod operator;
mod view;
mod world;

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use sidewinder_model::Reason;
use stateright::{Checker, Chooser, Expectation, HasDiscoveries, Model, Property};

use self::agent::Progressed;
use self::operator::{At, Does, Stream};
use self::view::{Broken, Plan};
use self::world::{
    AgentState, Instance, Message, Over, Request, Seconds, SidecarState, Target, World,
};
use super::{MAX_INJECTIONS, Way};
use crate::inject::MAX_SIDECARS;

/// Longer than every limit.
const GAP: Seconds = 100;
/// More steps than any session takes once nothing goes wrong any more.
const MAX_STEPS: usize = 300;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    Operator(usize, Does),
    Agent(Instance, Progressed),
    /// A message of a stream that was cut arrives after all.
    Straggler(Instance, Message),
    /// The kubelet starts a sidecar.
    SidecarStarts(usize),
    /// The target is started again after a crash.
    TargetReturns,
    /// A pod that is being deleted, or was evicted, is gone.
    PodGone,
    /// Another pod of the same name.
    PodReplaced,
    /// The next limit is reached.
    Tick,
    /// A fault: costs one of the world's.
    Fault(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    Crash(usize),
    Cut(usize),
    LostAnswer(usize),
    CannotConnect(usize, Broken),
    AgentDies(Instance, u8),
    AgentRestarts(Instance),
    /// An agent refuses the next request.
    QueueFull(Instance),
    SidecarBreaks(usize, SidecarState),
    TargetCrashes,
    PodOver(Over),
    /// Nothing moves for longer than any limit.
    Gap,
    /// The next limit is reached.
    Limit,
    Cancel,
    Delete,
    /// The fences refuse what they allowed before.
    GateRefuses,
    /// The answer that would be heard next can never be received.
    Unreadable(usize),
}

struct Sessions {
    plan: Arc<Plan>,
    operators: usize,
    faults: u8,
    kernel_refuses: bool,
    selector: bool,
    /// Whether the only faults are sidecars that end by themselves.
    losses: bool,
    /// How many sidecars the pod carries already, all of them ended.
    carried: usize,
    /// Whether what is only for people to see is written, too.
    shows: bool,
    /// The worlds from which it settles, by their hash: while all else goes on, and in silence.
    settled: [Mutex<HashSet<u64>>; 2],
}

impl Sessions {
    fn new(script: bool, operators: usize, faults: u8) -> Self {
        Self {
            plan: Arc::new(Plan::new(script, BTreeSet::new())),
            operators,
            faults,
            kernel_refuses: false,
            selector: false,
            losses: false,
            carried: 0,
            shows: false,
            settled: Default::default(),
        }
    }

    fn faults(world: &World, events: &mut Vec<Event>) {
        if world.faults == 0 || world.over() {
            return;
        }
        let mut fault = |fault| events.push(Event::Fault(fault));
        fault(Fault::Delete);
        fault(Fault::Gap);
        if world.operators.len() > 1 && next_limit(world).is_some() {
            fault(Fault::Limit);
        }
        if !world.object.cancel {
            fault(Fault::Cancel);
        }
        if !world.gate_refuses {
            fault(Fault::GateRefuses);
        }
        let mut does = Vec::new();
        for (number, operator) in world.operators.iter().enumerate() {
            let Some(operator) = operator else { continue };
            fault(Fault::Crash(number));
            does.clear();
            world.may(number, &mut does);
            let refused = |stream: &Stream| stream.refused.is_some();
            if does.contains(&Does::Hear) && !operator.stream.as_ref().is_some_and(refused) {
                fault(Fault::Unreadable(number));
            }
            if operator.stream.as_ref().is_some_and(|stream| !stream.cut) {
                fault(Fault::Cut(number));
            }
            match operator.at {
                At::Write(_) => fault(Fault::LostAnswer(number)),
                At::Opening(..) => {
                    fault(Fault::CannotConnect(number, Broken::Forbidden));
                    fault(Fault::CannotConnect(number, Broken::NodeUnreachable));
                }
                _ => {}
            }
        }
        for (instance, agent) in world.agents.iter().enumerate().filter(|(_, it)| it.alive) {
            fault(Fault::AgentDies(instance, 137));
            fault(Fault::AgentRestarts(instance));
            if agent.request == Request::Unknown {
                fault(Fault::AgentDies(instance, 0));
                if !agent.full {
                    fault(Fault::QueueFull(instance));
                }
            }
        }
        if let Some(pod) = &world.pod {
            for (sidecar, (_, state)) in pod.sidecars.iter().enumerate() {
                if *state == SidecarState::Starting && pod.target == Target::Running {
                    fault(Fault::SidecarBreaks(sidecar, SidecarState::Stuck));
                    fault(Fault::SidecarBreaks(sidecar, SidecarState::Ended(1)));
                }
            }
            if pod.over == Over::No {
                fault(Fault::PodOver(Over::Deleting));
                fault(Fault::PodOver(Over::Failed));
                if pod.target == Target::Running {
                    fault(Fault::TargetCrashes);
                }
            }
        }
    }

    fn befalls(world: &mut World, plan: &Plan, fault: Fault) {
        world.faults -= 1;
        match fault {
            Fault::Crash(number) => {
                world.close_stream(number);
                world.operators[number] = None;
            }
            Fault::Cut(number) => {
                let stream = world.operators[number].as_mut().unwrap().stream.as_mut();
                let stream = stream.unwrap();
                stream.cut = true;
                let left = stream.clone();
                stream.out.clear();
                world.strand(&left);
            }
            Fault::LostAnswer(number) => world.does(plan, number, Does::WriteUnheard),
            Fault::CannotConnect(number, error) => {
                world.does(plan, number, Does::ConnectFails(error));
            }
            Fault::AgentDies(instance, code) => world.kill_agent(instance, Some(code)),
            Fault::AgentRestarts(instance) => world.kill_agent(instance, None),
            Fault::QueueFull(instance) => world.agents[instance].full = true,
            Fault::SidecarBreaks(sidecar, state) => {
                world.pod.as_mut().unwrap().sidecars[sidecar].1 = state;
            }
            Fault::TargetCrashes => {
                world.end_target();
                world.pod.as_mut().unwrap().target = Target::Waiting;
            }
            Fault::PodOver(over) => world.pod.as_mut().unwrap().over = over,
            Fault::Gap => world.now += GAP,
            Fault::Limit => world.now = next_limit(world).unwrap(),
            Fault::Cancel => {
                world.object.cancel = true;
                world.changed();
            }
            Fault::Delete => world.object.gone = true,
            Fault::GateRefuses => world.gate_refuses = true,
            Fault::Unreadable(number) => world.does(plan, number, Does::HearNothingReadable),
        }
    }

    fn happens(&self, world: &mut World, event: Event) {
        match event {
            Event::Operator(number, does) => world.does(&self.plan, number, does),
            Event::Agent(instance, how) => world.go_on(instance, how),
            Event::Straggler(instance, message) => {
                world.stray.remove(&(instance, message));
                world.arrives(instance, message);
            }
            Event::SidecarStarts(sidecar) => {
                let pod = world.pod.as_mut().unwrap();
                pod.sidecars[sidecar].1 = SidecarState::Running;
                world.agents.push(AgentState {
                    uid: pod.uid,
                    container_id: pod.container_id,
                    sidecar,
                    way: pod.sidecars[sidecar].0,
                    alive: true,
                    request: Request::Unknown,
                    cancelled: false,
                    left: false,
                    full: false,
                });
            }
            Event::TargetReturns => {
                world.identities += 1;
                let pod = world.pod.as_mut().unwrap();
                pod.target = Target::Running;
                pod.container_id = world.identities;
            }
            Event::PodGone => {
                world.end_target();
                world.pod = None;
            }
            Event::PodReplaced => {
                world.identities += 1;
                world.pod = Some(world::PodState {
                    uid: world.identities,
                    container_id: world.identities,
                    target: Target::Running,
                    over: Over::No,
                    sidecars: Vec::new(),
                });
            }
            Event::Tick => world.now = next_limit(world).unwrap(),
            Event::Fault(fault) => Self::befalls(world, &self.plan, fault),
        }
        if let Event::Operator(number, _) = event {
            world.think(&self.plan, number);
        }
        judge(world);
        world.rebase();
    }

    /// Whether the session ends once nothing goes wrong any more and one operator stays. `frozen`: nothing around it
    /// moves any more, either.
    fn settles(&self, world: &World, frozen: bool) -> bool {
        let mut world = world.clone();
        world.faults = 0;
        if !frozen {
            for other in 1..world.operators.len() {
                if world.operators[other].is_some() {
                    world.close_stream(other);
                    world.operators[other] = None;
                }
            }
        }
        world.operators.truncate(1);
        world.stray.clear();
        let settled = &self.settled[usize::from(frozen)];
        let mut path = Vec::new();
        for _ in 0..MAX_STEPS {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            if world.over() || settled.lock().unwrap().contains(&hasher.finish()) {
                settled.lock().unwrap().extend(path);
                return true;
            }
            path.push(hasher.finish());
            let mut does = Vec::new();
            world.may(0, &mut does);
            let others = |does: &Does| matches!(does, Does::Connect | Does::Deliver | Does::Hear);
            let own = does.into_iter().find(|does| !frozen || !others(does));
            let agent = || {
                let mut all = 0..world.agents.len();
                all.find_map(|agent| Some((agent, world.goes_on(agent).pop_last()?)))
            };
            let event = if let Some(does) = own {
                Event::Operator(0, does)
            } else if let Some((agent, how)) = agent().filter(|_| !frozen) {
                Event::Agent(agent, how)
            } else if let Some(kubelet) = kubelet(&world).filter(|_| !frozen) {
                kubelet
            } else if next_limit(&world).is_some() {
                Event::Tick
            } else {
                return false;
            };
            self.happens(&mut world, event);
        }
        false
    }
}

/// What the kubelet does by itself.
fn kubelet(world: &World) -> Option<Event> {
    let pod = world.pod.as_ref()?;
    if pod.over != Over::No {
        return (pod.over == Over::Deleting).then_some(Event::PodGone);
    }
    if pod.target == Target::Waiting {
        return Some(Event::TargetReturns);
    }
    let starting = pod
        .sidecars
        .iter()
        .position(|(_, state)| *state == SidecarState::Starting)?;
    Some(Event::SidecarStarts(starting))
}

fn next_limit(world: &World) -> Option<Seconds> {
    let limits = world.operators.iter().flatten();
    limits
        .filter_map(operator::Operator::deadline)
        .filter(|limit| *limit > world.now)
        .min()
}

/// What must hold at every moment.
fn judge(world: &mut World) {
    if world.starts > 1 {
        world.must_not("a script starts once in the world");
    }
    let Some(end) = world.object.status.end.clone() else {
        return;
    };
    if end.reason == Reason::InternalError {
        world.must_not("nothing that is needed is absent");
    }
    if !world.script {
        return;
    }
    // The reason of every end that says that it was not begun, and will not be.
    if end.reason == Reason::PolicyDenied && world.ever_armed {
        world.must_not("what the gate refused is not said not to have begun where it had");
    }
    if end.complete && world.starts != 1 {
        world.must_not("what is complete ran exactly once");
    }
    match end.claim {
        Some(Reason::StillArmed) => {}
        Some(Reason::NotArmed) if world.ever_armed => {
            world.must_not("what is said never to have been armed never was");
        }
        Some(Reason::NotArmed | Reason::Disarmed) => {
            if world.armed() {
                world.must_not("what is said to be disarmed is not armed");
            }
            // Where the script is known to run on, the outcome says so.
            if world.running() && end.reason != Reason::ScriptTimeout {
                world.must_not("a script that may still run is not said to be over");
            }
        }
        _ => world.must_not("an end says whether anything is armed"),
    }
}

impl Model for Sessions {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::new(self.plan.script(), self.operators, self.faults);
        world.kernel_refuses = self.kernel_refuses;
        world.selector = self.selector;
        let ended = (Way::Ptrace, SidecarState::Ended(0));
        let pod = world.pod.as_mut().unwrap();
        pod.sidecars = vec![ended; self.carried];
        vec![world]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        // Of a session that is gone nothing is claimed, and only what a script does can belie the end of another one.
        if world.wrong.is_some() || world.object.gone || world.over() && !world.script {
            return;
        }
        let mut does = Vec::new();
        for number in 0..world.operators.len() {
            does.clear();
            world.may(number, &mut does);
            does.retain(|does| self.shows || *does != Does::Show);
            events.extend(does.iter().map(|does| Event::Operator(number, *does)));
        }
        for instance in 0..world.agents.len() {
            let ways = world.goes_on(instance);
            events.extend(ways.into_iter().map(|how| Event::Agent(instance, how)));
        }
        for (instance, message) in &world.stray {
            events.push(Event::Straggler(*instance, *message));
        }
        if world.over() && world.operators.iter().all(Option::is_none) {
            return;
        }
        events.extend(kubelet(world));
        if world.pod.is_none() {
            events.push(Event::PodReplaced);
        }
        // With two at work there are too many ways for time to pass: there it is a fault.
        if self.operators == 1 && next_limit(world).is_some() {
            events.push(Event::Tick);
        }
        Self::faults(world, events);
        if self.losses {
            events.retain(|event| match event {
                Event::Fault(fault) => matches!(fault, Fault::AgentDies(_, 0)),
                _ => true,
            });
        }
    }

    fn next_state(&self, world: &World, event: Event) -> Option<World> {
        let mut next = world.clone();
        self.happens(&mut next, event);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing goes wrong", |_: &Self, world: &World| {
                world.wrong.is_none()
            }),
            Property::always("it settles", |model: &Self, world: &World| {
                world.wrong.is_some() || model.settles(world, false)
            }),
            Property::always("it settles in silence", |model: &Self, world: &World| {
                world.wrong.is_some() || model.settles(world, true)
            }),
            Property::sometimes("it is complete", |_: &Self, world: &World| {
                let end = &world.object.status.end;
                end.as_ref().is_some_and(|end| end.complete)
            }),
        ]
    }
}

/// Searches everything that can happen.
fn search(model: Sessions) {
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(2)
        .spawn_bfs()
        .join();
    checker.assert_properties();
}

/// Picks what happens next on a walk: mostly what has to happen, faults now and then.
#[derive(Clone)]
struct Walker;

impl Walker {
    /// The next number of the sequence that a seed begins: `SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>
    fn draw(state: &mut u64, below: usize) -> usize {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % below as u64).unwrap()
    }
}

impl Chooser<Sessions> for Walker {
    type State = u64;

    fn new_state(&self, seed: u64) -> u64 {
        seed
    }

    fn choose_initial_state(&self, _: &mut u64, _: &[World]) -> usize {
        0
    }

    fn choose_action(&self, state: &mut u64, _: &World, events: &[Event]) -> usize {
        let rare =
            |event: &Event| matches!(event, Event::Fault(_) | Event::Tick | Event::PodReplaced);
        let wanted = Self::draw(state, 8) == 0;
        let places: Vec<usize> = (0..events.len())
            .filter(|place| rare(&events[*place]) == wanted)
            .collect();
        match places.len() {
            0 => Self::draw(state, events.len()),
            count => places[Self::draw(state, count)],
        }
    }
}

/// How many walks are taken, each with another seed.
const WALKS: u64 = 1500;
/// A walk from this seed alone.
const SEED: &str = "SIDEWINDER_INTERLEAVING";

/// Walks at random where there is too much to be searched.
fn walk(model: impl Fn(u64) -> Sessions) {
    let seeds = match std::env::var(SEED) {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..WALKS).collect(),
    };
    for seed in seeds {
        let model = model(seed);
        let names: Vec<_> = model.properties().into_iter().collect();
        let checker = model
            .checker()
            .target_state_count(1)
            .threads(1)
            .spawn_simulation(seed, Walker)
            .join();
        for property in names {
            if property.expectation == Expectation::Always
                && let Some(path) = checker.discovery(property.name)
            {
                panic!(
                    "{SEED}={seed}: not so: {}: {path}{:#?}",
                    property.name,
                    path.last_state()
                );
            }
        }
    }
}

#[test]
fn a_script_runs_at_most_once_and_its_end_says_what_is_true() {
    search(Sessions::new(true, 1, 1));
}

#[test]
fn a_script_runs_at_most_once_in_a_pod_that_a_selector_chose() {
    search(Sessions {
        selector: true,
        ..Sessions::new(true, 1, 1)
    });
}

#[test]
fn a_script_runs_at_most_once_between_two_operators() {
    search(Sessions {
        shows: true,
        ..Sessions::new(true, 2, 0)
    });
}

#[test]
fn a_script_runs_at_most_once_on_its_second_way_in() {
    search(Sessions {
        kernel_refuses: true,
        ..Sessions::new(true, 1, 0)
    });
}

#[test]
fn what_only_reads_always_ends() {
    search(Sessions::new(false, 1, 1));
}

#[test]
fn sidecars_that_end_are_not_replaced_for_ever() {
    let losses = |faults, carried| Sessions {
        losses: true,
        carried,
        ..Sessions::new(false, 1, faults)
    };
    search(losses(u8::try_from(MAX_INJECTIONS + 1).unwrap(), 0));
    // The pod's own limit comes first.
    search(losses(1, MAX_SIDECARS - 1));
}

#[test]
fn many_faults_between_two_operators_change_none_of_it() {
    let plans = [BTreeSet::new(), BTreeSet::from([Way::Ptrace])]
        .into_iter()
        .flat_map(|forbidden| [false, true].map(|script| (forbidden.clone(), script)))
        .map(|(forbidden, script)| Arc::new(Plan::new(script, forbidden)))
        .collect::<Vec<_>>();
    let one_in = |seed: u64, count| seed.is_multiple_of(count);
    walk(|seed| Sessions {
        plan: Arc::clone(&plans[usize::from(!one_in(seed, 5)) + 2 * usize::from(one_in(seed, 7))]),
        kernel_refuses: one_in(seed, 4),
        selector: one_in(seed, 3),
        shows: true,
        ..Sessions::new(true, 1 + usize::from(one_in(seed, 2)), 6)
    });
}
