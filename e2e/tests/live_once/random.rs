//! Kills at random moments.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidewinder_model::{Reason, ToAgent, ToOperator};

use crate::agent::{Agent, End, Script};
use crate::live::{LIMIT, Python};
use crate::{PYTHONS, World};

/// How many kills in each target.
const KILLS: usize = 60;

/// Numbers that look random; <https://en.wikipedia.org/wiki/Xorshift>.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Agent,
    Relay,
    Carrier,
}

/// What came of one round, for the figures.
fn round(
    world: &World,
    agent: &mut Agent,
    random: &mut Random,
    number: usize,
) -> (Victim, Option<Reason>, String) {
    let id = number.to_string();
    let text = format!(
        "with open('/mnt/runs-{id}', 'a') as runs: runs.write('run\\n')\nimport time\ntime.sleep({})\n'{id}'",
        // Sometimes it is over before anything is killed.
        f64::from(u32::try_from(random.below(40)).unwrap()) / 1000.0
    );
    let script = Script::new(&id, world.target.pid, text);
    let mut relay = agent.connect();
    let instance = relay.instance.clone();
    relay.begin(&script);
    std::thread::sleep(Duration::from_micros(random.below(80_000)));
    let victim =
        [Victim::Agent, Victim::Relay, Victim::Carrier][usize::try_from(random.below(3)).unwrap()];
    let end = match victim {
        Victim::Agent => {
            agent.kill();
            let end = relay.end(&id);
            *agent = Agent::start();
            relay = agent.connect();
            relay.ask_of(&script, &instance);
            // The next run of the agent takes nothing that was meant for the one before.
            assert_eq!(relay.end(&id).reason(), Reason::SidecarLost);
            end
        }
        Victim::Relay => {
            relay.kill();
            relay = agent.connect();
            relay.ask(&script);
            relay.end(&id)
        }
        Victim::Carrier => {
            for carrier in agent.carriers() {
                // It may have ended meanwhile.
                let _ = kill(Pid::from_raw(carrier), Signal::SIGKILL);
            }
            relay.end(&id)
        }
    };
    let reason = match &end {
        End::Cut => return (victim, None, String::new()),
        end => end.reason(),
    };
    if reason == Reason::SidecarFailed && end.exec().still_running {
        // Until its end the thread takes no other.
        assert!(relay.send(&ToAgent::Watch { id }));
        let told = relay.next(LIMIT);
        assert!(
            matches!(told, Some(ToOperator::ScriptEnded { .. })),
            "{told:?}"
        );
    }
    (victim, Some(reason), format!("{end:?}"))
}

#[test]
fn whatever_is_killed_at_any_moment_no_script_runs_twice() {
    for python in PYTHONS {
        let world = World::new(python);
        rounds(&world, python, "comes by");
        world.goes_on();
    }
}

/// The kills hit what makes a blocked thread answer as well.
#[test]
fn whatever_is_killed_at_any_moment_a_blocked_thread_goes_on_waiting() {
    for python in PYTHONS {
        let world = World::blocked(python);
        rounds(&world, python, "is blocked in a lock");
        world.goes_on();
        // It still waits for its lock, and gets it.
        world.release();
        world.goes_on();
    }
}

fn rounds(world: &World, python: Python, main: &str) {
    let seed = std::process::id();
    let mut random = Random(u64::from(seed) << 16 | 1);
    let mut agent = Agent::start();
    let mut ends: BTreeMap<(Victim, String), [usize; 2]> = BTreeMap::new();
    for number in 0..KILLS {
        let (victim, reason, message) = round(world, &mut agent, &mut random, number);
        let round = format!("round {number} of seed {seed}, {victim:?} killed");
        world
            .target
            .until("nothing armed", |target| !target.armed());
        let runs = world.runs(&number.to_string());
        assert!(runs <= 1, "{round}: {runs} runs: {message}");
        match reason {
            Some(Reason::Succeeded) => assert_eq!(runs, 1, "{round}"),
            Some(Reason::SidecarFailed) | None => {}
            Some(other) => panic!("{round}: {other}: {message}"),
        }
        let name = reason.map_or_else(|| "cut".to_owned(), |reason| reason.to_string());
        ends.entry((victim, name)).or_default()[runs] += 1;
    }
    // Also what was under way has come to its end now.
    world.goes_on();
    let twice = (0..KILLS).filter(|number| world.runs(&number.to_string()) > 1);
    let twice = twice.count();
    println!(
        "CPython {}, main thread {main}, seed {seed}, {KILLS} kills; by victim and end, [not run, run once]:",
        python.version()
    );
    for ((victim, end), count) in ends {
        println!("  {victim:?} {end}: {count:?}");
    }
    println!(
        "  run twice: {twice}; armed at the end: {}",
        world.target.armed()
    );
    assert_eq!(twice, 0);
}
