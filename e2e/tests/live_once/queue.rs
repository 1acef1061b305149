//! Who waits for whom.

use std::time::Duration;

use sidewinder_model::{Reason, ThreadChoice, WakePolicy};

use crate::agent::{Agent, Script};
use crate::live::Target;
use crate::{A_WHILE, PYTHONS, World};

/// A time to start, and a longer one for which is waited: waiting does not count against the former.
const START: Duration = Duration::from_secs(2);
const LONGER: Duration = Duration::from_millis(2500);

#[test]
fn scripts_for_one_thread_run_one_after_the_other_as_they_were_asked_for() {
    for python in PYTHONS {
        let world = World::new(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        relay.begin(&world.long("a"));
        world.until_it_runs("a");
        let ids = ["b", "c", "d", "e"];
        for id in ids {
            let script = world.short(id);
            relay.begin(&Script {
                text: format!("open('/mnt/order', 'a').write('{id} ')\n{}", script.text),
                // Waiting does not count against it.
                start: START,
                ..script
            });
        }
        assert!(relay.is_silent(LONGER));
        assert!(!world.path("order").exists());
        world.enough("a");
        for _ in 0..=ids.len() {
            let end = relay.any_end();
            assert_eq!(end.reason(), Reason::Succeeded, "{end:?}");
        }
        let order = std::fs::read_to_string(world.path("order")).unwrap();
        assert_eq!(order, "b c d e ");
        world.goes_on();
    }
}

#[test]
fn eight_wait_for_a_process_and_the_next_is_turned_away() {
    let world = World::new(PYTHONS[0]);
    let agent = Agent::start();
    let mut relay = agent.connect();
    relay.begin(&world.long("a"));
    world.until_it_runs("a");
    let waiting: Vec<String> = (0..8).map(|number| format!("b{number}")).collect();
    for id in &waiting {
        relay.begin(&world.short(id));
    }
    relay.begin(&world.short("late"));
    let end = relay.end("late");
    assert_eq!(end.reason(), Reason::QueueFull, "{end:?}");
    assert!(
        end.target().message.starts_with("8 scripts wait"),
        "{end:?}"
    );
    // Who need not wait is not turned away.
    relay.begin(&in_the_other_thread(&world, "elsewhere"));
    assert_eq!(relay.end("elsewhere").reason(), Reason::Succeeded);
    world.enough("a");
    for _ in 0..=waiting.len() {
        assert_eq!(relay.any_end().reason(), Reason::Succeeded);
    }
    for id in &waiting {
        assert_eq!(world.runs(id), 1);
    }
    assert_eq!(world.runs("late"), 0);
    world.goes_on();
}

/// A script for the thread `other`.
fn in_the_other_thread(world: &World, id: &str) -> Script {
    let stacks = world.target.stacks();
    let mut threads = stacks.interpreters.iter().flat_map(|one| &one.threads);
    let other = threads.find(|thread| thread.name == "other").unwrap();
    Script {
        thread: ThreadChoice::Tid(other.tid),
        ..world.short(id)
    }
}

#[test]
fn who_waits_his_time_out_says_for_what() {
    for python in PYTHONS {
        let world = World::new(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        relay.begin(&world.long("a"));
        world.until_it_runs("a");
        relay.begin(&Script {
            timeout: Duration::from_secs(1),
            ..world.short("b")
        });
        let end = relay.end("b");
        assert_eq!(end.reason(), Reason::TargetBusy, "{end:?}");
        let message = &end.target().message;
        let place = format!("session-a has been running in thread {}", world.target.pid);
        assert!(message.contains(&place), "{message}");
        assert!(message.contains("; this script waited "), "{message}");
        world.enough("a");
        assert_eq!(relay.end("a").reason(), Reason::Succeeded);
        world.goes_on();
        assert_eq!(world.runs("b"), 0);
    }
}

#[test]
fn another_thread_takes_a_script_meanwhile() {
    for python in PYTHONS {
        let world = World::new(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        relay.begin(&world.long("a"));
        world.until_it_runs("a");
        relay.begin(&in_the_other_thread(&world, "b"));
        assert_eq!(relay.end("b").reason(), Reason::Succeeded);
        relay.begin(&Script {
            thread: ThreadChoice::Any,
            ..world.short("c")
        });
        let end = relay.end("c");
        assert_eq!(end.reason(), Reason::Succeeded, "{end:?}");
        assert_ne!(
            end.exec().thread,
            Some(u64::from(world.target.pid.unsigned_abs()))
        );
        world.enough("a");
        assert_eq!(relay.end("a").reason(), Reason::Succeeded);
        world.goes_on();
    }
}

/// Two that could start only one after the other would wait for ever.
#[test]
fn a_thread_that_does_not_come_by_keeps_no_other_waiting() {
    let world = World::blocked(PYTHONS[0]);
    let agent = Agent::start();
    let mut relay = agent.connect();
    relay.begin(&world.armed("blocked"));
    world.until_armed();
    relay.begin(&in_the_other_thread(&world, "free"));
    assert_eq!(relay.end("free").reason(), Reason::Succeeded);
    world.release();
    assert_eq!(relay.end("blocked").reason(), Reason::Succeeded);
    world.goes_on();
}

#[test]
fn processes_of_a_pod_run_scripts_side_by_side() {
    for python in PYTHONS {
        let first = World::new(python);
        let second = World::beside(&first, python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        // Each waits until the other one is there.
        let meets = |target: &Target, me: &str, other: &str| {
            let text = format!(
                "import os, time\nopen('/mnt/here-{me}', 'w').close()\nwhile not os.path.exists('/mnt/here-{other}'): \
                 time.sleep(0.005)\n'met'"
            );
            Script::new(me, target.pid, text)
        };
        relay.begin(&meets(&first.target, "a", "b"));
        relay.begin(&meets(&second.target, "b", "a"));
        for _ in 0..2 {
            let end = relay.any_end();
            assert_eq!(end.exec().value.as_deref(), Some("'met'"), "{end:?}");
        }
        first.goes_on();
        second.goes_on();
    }
}

#[test]
fn a_command_by_hand_and_an_agent_wait_for_each_other() {
    for python in PYTHONS {
        let world = World::new(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        relay.begin(&world.long("a"));
        world.until_it_runs("a");
        let (by_hand, next) = (world.long("hand"), world.short("c"));
        let command = world.target.exec_start(&by_hand.text, &[]);
        assert!(relay.is_silent(A_WHILE));
        assert_eq!(world.runs("hand"), 0);
        world.enough("a");
        assert_eq!(relay.end("a").reason(), Reason::Succeeded);
        world.until_it_runs("hand");
        relay.begin(&next);
        assert!(relay.is_silent(A_WHILE));
        world.enough("hand");
        assert_eq!(relay.end("c").reason(), Reason::Succeeded);
        assert_eq!(command.wait_with_output().unwrap().status.code(), Some(0));
        for id in ["a", "hand", "c"] {
            assert_eq!(world.runs(id), 1, "{id}");
        }
        world.goes_on();
    }
}

/// A request that another sidecar has armed is waited for, and not taken for somebody else's.
#[test]
fn a_request_of_another_sidecar_is_waited_for() {
    for python in PYTHONS {
        let world = World::blocked(python);
        let agents = [Agent::start(), Agent::start()];
        let mut relays = agents.each_ref().map(Agent::connect);
        relays[0].begin(&world.armed("a"));
        world.until_armed();
        relays[1].begin(&Script {
            start: START,
            wake: WakePolicy::Never,
            ..world.short("b")
        });
        assert!(relays[1].is_silent(LONGER));
        world.release();
        for (relay, id) in relays.iter().zip(["a", "b"]) {
            let end = relay.end(id);
            assert_eq!(end.reason(), Reason::Succeeded, "{end:?}");
            assert_eq!(world.runs(id), 1);
        }
        world.goes_on();
    }
}
