//! What dies at a known step.

use nix::sys::signal::Signal;
use sidewinder_linux::write::{RequestSlot, arm};
use sidewinder_model::{Reason, ScriptEnd, ToAgent, ToOperator};

use crate::agent::{Agent, End, Relay, Script, until};
use crate::live::LIMIT;
use crate::{A_WHILE, PYTHONS, World};

/// A new agent runs nothing that was meant for the one before.
fn is_lost(script: &Script, instance: &str) {
    let agent = Agent::start();
    let mut relay = agent.connect();
    relay.ask_of(script, instance);
    let End::Refused(Reason::SidecarLost, message) = relay.end(&script.id) else {
        panic!("not refused")
    };
    assert!(message.contains("not run again"), "{message}");
}

#[test]
fn an_agent_that_is_killed_while_a_script_waits_never_runs_it() {
    for python in PYTHONS {
        let world = World::new(python);
        let mut agent = Agent::start();
        let mut relay = agent.connect();
        relay.begin(&world.long("a"));
        world.until_it_runs("a");
        let waiting = world.short("b");
        relay.begin(&waiting);
        agent.kill();
        world.enough("a");
        world.until_it_is_done("a");
        is_lost(&waiting, &relay.instance);
        world.goes_on();
        assert_eq!((world.runs("a"), world.runs("b")), (1, 0));
    }
}

#[test]
fn an_agent_that_is_killed_while_a_request_is_armed_leaves_nothing_armed() {
    for python in PYTHONS {
        let world = World::blocked(python);
        let mut agent = Agent::start();
        let mut relay = agent.connect();
        let script = world.armed("a");
        relay.begin(&script);
        world.until_armed();
        agent.kill();
        // By the child that carries the script, long before the deadline.
        world.target.until("disarmed", |target| !target.armed());
        world.release();
        is_lost(&script, &relay.instance);
        world.goes_on();
        assert_eq!(world.runs("a"), 0);
    }
}

#[test]
fn a_script_outlives_its_agent_and_is_waited_for_by_the_next_one() {
    for python in PYTHONS {
        let world = World::new(python);
        let mut agent = Agent::start();
        let mut relay = agent.connect();
        let script = world.long("a");
        relay.begin(&script);
        world.until_it_runs("a");
        agent.kill();
        is_lost(&script, &relay.instance);
        let next = Agent::start();
        let mut relay = next.connect();
        relay.begin(&world.short("b"));
        assert!(relay.is_silent(A_WHILE), "two scripts in one thread");
        assert_eq!(world.runs("b"), 0);
        world.enough("a");
        assert_eq!(relay.end("b").reason(), Reason::Succeeded);
        world.until_it_is_done("a");
        world.goes_on();
        assert_eq!((world.runs("a"), world.runs("b")), (1, 1));
    }
}

#[test]
fn an_outcome_that_dies_with_its_agent_is_not_made_again() {
    for python in PYTHONS {
        let world = World::new(python);
        for fetched in [false, true] {
            let id = format!("fetched-{fetched}");
            let mut agent = Agent::start();
            let mut relay = agent.connect();
            let instance = relay.instance.clone();
            let script = world.long(&id);
            relay.begin(&script);
            world.until_it_runs(&id);
            if !fetched {
                relay.kill();
            }
            world.enough(&id);
            if fetched {
                assert_eq!(relay.end(&id).reason(), Reason::Succeeded);
            } else {
                until("the script's end to be seen", || {
                    agent.carriers().is_empty()
                });
            }
            agent.kill();
            is_lost(&script, &instance);
            assert_eq!(world.runs(&id), 1);
        }
        world.goes_on();
    }
}

/// Kills the relay and comes back: whatever is asked for again is attached to.
fn come_back(agent: &Agent, relay: &mut Relay, script: &Script) {
    relay.kill();
    let instance = relay.instance.clone();
    *relay = agent.connect();
    assert_eq!(relay.instance, instance);
    relay.ask(script);
}

#[test]
fn a_relay_that_is_killed_at_any_step_changes_nothing() {
    for python in PYTHONS {
        let world = World::blocked(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        // Armed.
        let armed = world.armed("armed");
        relay.begin(&armed);
        world.until_armed();
        come_back(&agent, &mut relay, &armed);
        world.release();
        assert_eq!(relay.end("armed").reason(), Reason::Succeeded);
        // Running, and waiting behind it.
        let (running, waiting) = (world.long("running"), world.short("waiting"));
        relay.begin(&running);
        world.until_it_runs("running");
        come_back(&agent, &mut relay, &running);
        relay.accepted(&running);
        relay.begin(&waiting);
        come_back(&agent, &mut relay, &waiting);
        relay.accepted(&waiting);
        // Its end comes while nobody listens.
        relay.kill();
        world.enough("running");
        world.until_it_runs("waiting");
        until("both ends to be seen", || agent.carriers().is_empty());
        relay = agent.connect();
        for script in [&running, &waiting] {
            relay.ask(script);
            assert_eq!(relay.end(&script.id).reason(), Reason::Succeeded);
        }
        // Fetched, and not acknowledged.
        come_back(&agent, &mut relay, &running);
        let again = relay.end("running");
        assert_eq!(again.exec().value.as_deref(), Some("'running'"));
        relay.acknowledge("running");
        come_back(&agent, &mut relay, &running);
        assert_eq!(relay.end("running").reason(), Reason::SidecarLost);
        world.goes_on();
        for id in ["armed", "running", "waiting"] {
            assert_eq!(world.runs(id), 1, "{id}");
        }
    }
}

#[test]
fn a_carrier_that_is_killed_before_it_is_needed_ends_the_request() {
    for python in PYTHONS {
        let world = World::blocked(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        // Somebody else's request keeps ours from being armed.
        let support = world.target.support();
        let main = support.interpreters[0].threads[0];
        let slot = RequestSlot {
            pending: main.pending,
            path: main.path,
            path_size: main.path_size,
            eval_breaker: main.eval_breaker,
        };
        let process = world.target.process();
        let tid = main.tid.unwrap();
        let foreign = arm(
            &process,
            tid,
            slot,
            "/mnt/somebody-else.py",
            Some(&mut |_| {}),
        )
        .unwrap();
        relay.begin(&world.armed("a"));
        agent.kill_carrier();
        let end = relay.end("a");
        assert_eq!(end.reason(), Reason::SidecarFailed, "{end:?}");
        drop(foreign.disarm(&mut |_| {}));
        world.release();
        world.goes_on();
        assert_eq!(world.runs("a"), 0);
    }
}

#[test]
fn a_carrier_that_is_killed_while_its_request_is_armed_is_missed_at_once() {
    for python in PYTHONS {
        let world = World::blocked(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        relay.begin(&world.armed("a"));
        world.until_armed();
        let killed = std::time::Instant::now();
        agent.kill_carrier();
        let end = relay.end("a");
        // The request would have been armed for 20 s.
        assert!(killed.elapsed().as_secs() < 5, "{:?}", killed.elapsed());
        assert_eq!(end.reason(), Reason::SidecarFailed, "{end:?}");
        assert_eq!(end.target().disarmed, Some(true));
        assert!(!world.target.armed());
        world.release();
        world.goes_on();
        assert_eq!(world.runs("a"), 0);
    }
}

#[test]
fn a_script_whose_carrier_is_killed_ends_by_itself_and_its_end_is_told() {
    for python in PYTHONS {
        let world = World::new(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        relay.begin(&world.long("a"));
        world.until_it_runs("a");
        agent.kill_carrier();
        let end = relay.end("a");
        assert_eq!(end.reason(), Reason::SidecarFailed, "{end:?}");
        let exec = end.exec();
        assert!(exec.still_running && exec.watched, "{exec:?}");
        assert_eq!(exec.stdout, "begun\n");
        assert!(relay.send(&ToAgent::Watch { id: "a".into() }));
        assert!(relay.is_silent(A_WHILE));
        world.enough("a");
        let told = relay.next(LIMIT);
        assert!(
            matches!(
                &told,
                Some(ToOperator::ScriptEnded { id, end: ScriptEnd { reason: Reason::ScriptEnded, .. } }) if id == "a"
            ),
            "{told:?}"
        );
        world.goes_on();
        assert_eq!(world.runs("a"), 1);
    }
}

#[test]
fn an_awaiting_script_whose_carrier_is_killed_keeps_nobody_from_its_thread() {
    let program = "import asyncio\nasync def main():\n    print('ready', flush=True)\n    while True: await \
                   asyncio.sleep(0.005)\nasyncio.run(main())";
    for python in PYTHONS {
        let world = World::of(python, program);
        let agent = Agent::start();
        let mut relay = agent.connect();
        let text = "import asyncio\nwith open('/mnt/runs-a', 'a') as runs: runs.write('run\\n')\nwhile True: await \
                    asyncio.sleep(0.01)";
        relay.begin(&Script::new("a", world.target.pid, text));
        world.until_it_runs("a");
        agent.kill_carrier();
        let end = relay.end("a");
        assert_eq!(end.reason(), Reason::SidecarFailed, "{end:?}");
        assert!(end.exec().still_running && !end.exec().watched, "{end:?}");
        assert!(end.target().message.contains("is not known"), "{end:?}");
        relay.begin(&world.short("b"));
        assert_eq!(relay.end("b").reason(), Reason::Succeeded);
        assert_eq!((world.runs("a"), world.runs("b")), (1, 1));
    }
}

#[test]
fn what_is_cancelled_at_any_step_never_runs_later() {
    for python in PYTHONS {
        let world = World::blocked(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        let cancel = |relay: &mut Relay, id: &str| {
            assert!(relay.send(&ToAgent::Cancel { id: id.into() }));
            let end = relay.end(id);
            assert_eq!(end.reason(), Reason::Cancelled, "{end:?}");
            end
        };
        relay.begin(&world.armed("armed"));
        world.until_armed();
        let end = cancel(&mut relay, "armed");
        assert_eq!(end.target().disarmed, Some(true));
        assert!(!world.target.armed());
        world.release();
        relay.begin(&world.long("running"));
        world.until_it_runs("running");
        relay.begin(&world.short("waiting"));
        let end = cancel(&mut relay, "waiting");
        assert_eq!(end.target().disarmed, None, "it was never armed");
        let end = cancel(&mut relay, "running");
        assert!(!end.exec().still_running, "{end:?}");
        world.goes_on();
        let runs = ["armed", "running", "waiting"].map(|id| world.runs(id));
        assert_eq!(runs, [0, 1, 0]);
        assert!(!world.path("done-running").exists());
    }
}

/// A target that is stopped by a signal and killed while it is asked.
#[test]
fn a_target_that_dies_is_said_to_have_ended() {
    for python in PYTHONS {
        let world = World::blocked(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        relay.begin(&world.armed("a"));
        world.until_armed();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(world.target.pid),
            Signal::SIGKILL,
        )
        .unwrap();
        assert_eq!(relay.end("a").reason(), Reason::TargetExited);
        until("the carrier is gone", || agent.carriers().is_empty());
    }
}
