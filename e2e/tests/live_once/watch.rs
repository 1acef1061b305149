//! Scripts that cannot be stopped.

use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidewinder_model::{Reason, ScriptEnd, ThreadChoice, ToAgent, ToOperator};

use crate::agent::{Agent, End, Relay, Script, until};
use crate::live::LIMIT;
use crate::{A_WHILE, PYTHONS, World};

/// Spins in C for a lock that the test has, without the GIL and without a system call: nothing from outside can end that.
fn unstoppable(world: &World, id: &str) -> Script {
    let text = format!(
        "import ctypes, mmap\nwith open('/mnt/runs-{id}', 'a') as runs: runs.write('run\\n')\nprint('begun')\nlibc = \
         ctypes.CDLL(None)\nwith open('/mnt/lock-{id}', 'w+b') as file:\n    file.truncate(4096)\n    memory = \
         mmap.mmap(file.fileno(), 4096)\nlock = ctypes.byref(ctypes.c_int.from_buffer(memory))\n\
         libc.pthread_spin_init(lock, 0)\nopen('/mnt/free-{id}', 'wb').write(memory[:4])\n\
         libc.pthread_spin_lock(lock)\nlibc.pthread_spin_lock(lock)\nopen('/mnt/done-{id}', 'w').close()"
    );
    Script {
        timeout: Duration::from_secs(2),
        ..Script::new(id, world.target.pid, text)
    }
}

/// Gives it the lock.
fn release(world: &World, id: &str) {
    let free = std::fs::read(world.path(&format!("free-{id}"))).unwrap();
    let lock = std::fs::File::options()
        .write(true)
        .open(world.path(&format!("lock-{id}")))
        .unwrap();
    lock.write_all_at(&free, 0).unwrap();
}

/// Asks for it, and sees that it outlives its request.
fn begin(relay: &mut Relay, world: &World) -> End {
    relay.begin(&unstoppable(world, "a"));
    let end = relay.end("a");
    assert_eq!(end.reason(), Reason::ScriptTimeout, "{end:?}");
    let exec = end.exec();
    assert!(
        exec.still_running && exec.watched && exec.disarmed,
        "{exec:?}"
    );
    assert_eq!(exec.stdout, "begun\n");
    end
}

fn watch(relay: &mut Relay, id: &str) {
    assert!(relay.send(&ToAgent::Watch { id: id.into() }));
}

fn told(relay: &Relay) -> ScriptEnd {
    match relay.next(LIMIT) {
        Some(ToOperator::ScriptEnded { end, .. }) => end,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_script_that_cannot_be_stopped_keeps_its_thread_until_its_end_is_told() {
    for python in PYTHONS {
        let world = World::new(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        let end = begin(&mut relay, &world);
        assert!(
            end.target().message.contains("its end will be told"),
            "{end:?}"
        );
        relay.acknowledge("a");

        // Nobody waits for what no time limit ends.
        let asked = Instant::now();
        relay.begin(&world.short("b"));
        let busy = relay.end("b");
        assert_eq!(busy.reason(), Reason::TargetBusy, "{busy:?}");
        assert!(asked.elapsed() < Duration::from_secs(10));
        let message = &busy.target().message;
        let place = format!("session-a is still running in thread {}", world.target.pid);
        assert!(
            message.contains(&place) && message.contains("s after it started"),
            "{message}"
        );
        relay.begin(&Script {
            thread: ThreadChoice::Any,
            ..world.short("c")
        });
        assert_eq!(relay.end("c").reason(), Reason::Succeeded);

        // Whoever loses the connection asks again.
        watch(&mut relay, "a");
        assert!(relay.is_silent(A_WHILE));
        relay.kill();
        relay = agent.connect();
        watch(&mut relay, "a");
        release(&world, "a");
        let end = told(&relay);
        assert_eq!(
            (end.pid, end.reason),
            (world.target.pid, Reason::ScriptEnded)
        );
        // Its time, and what trying to stop it took.
        assert!((2_000..60_000).contains(&end.after_milliseconds), "{end:?}");
        world.until_it_is_done("a");
        watch(&mut relay, "a");
        assert_eq!(told(&relay), end);
        relay.begin(&world.short("d"));
        assert_eq!(relay.end("d").reason(), Reason::Succeeded);
        watch(&mut relay, "d");
        let End::Refused(Reason::SidecarLost, _) = relay.end("d") else {
            panic!("d was not watched")
        };
        world.goes_on();
        let runs = ["a", "b", "c", "d"].map(|id| world.runs(id));
        assert_eq!(runs, [1, 0, 1, 1]);
    }
}

#[test]
fn an_idle_agent_stays_for_what_it_watches() {
    let world = World::new(PYTHONS[0]);
    let mut agent = Agent::start_with(2);
    let mut relay = agent.connect();
    begin(&mut relay, &world);
    relay.acknowledge("a");
    drop(relay);
    assert!(!agent.left(Duration::from_secs(4)), "it left");
    release(&world, "a");
    world.until_it_is_done("a");
    let mut relay = agent.connect();
    watch(&mut relay, "a");
    assert_eq!(told(&relay).reason, Reason::ScriptEnded);
    drop(relay);
    assert!(agent.left(LIMIT), "it stays for ever");
    world.goes_on();
}

#[test]
fn a_process_that_ends_is_told_as_well() {
    let world = World::new(PYTHONS[1]);
    let agent = Agent::start();
    let mut relay = agent.connect();
    begin(&mut relay, &world);
    watch(&mut relay, "a");
    kill(Pid::from_raw(world.target.pid), Signal::SIGKILL).unwrap();
    assert_eq!(told(&relay).reason, Reason::TargetExited);
    until("the carrier is gone", || agent.carriers().is_empty());
}

#[test]
fn an_agent_that_is_killed_while_it_watches_leaves_the_target_alone() {
    let world = World::new(PYTHONS[0]);
    let mut agent = Agent::start();
    let mut relay = agent.connect();
    begin(&mut relay, &world);
    agent.kill();
    let next = Agent::start();
    let mut relay = next.connect();
    watch(&mut relay, "a");
    let End::Refused(Reason::SidecarLost, _) = relay.end("a") else {
        panic!("another run of the agent knows of it")
    };
    // That one is seen on the stack.
    relay.begin(&world.short("b"));
    assert!(relay.is_silent(A_WHILE));
    release(&world, "a");
    assert_eq!(relay.end("b").reason(), Reason::Succeeded);
    world.until_it_is_done("a");
    world.goes_on();
    assert_eq!((world.runs("a"), world.runs("b")), (1, 1));
}

/// `execve` leaves process, start time and thread as they were.
#[test]
fn a_process_that_executes_another_program_takes_the_script_along() {
    for python in PYTHONS {
        let world = World::new(python);
        let agent = Agent::start();
        let mut relay = agent.connect();
        let text = "with open('/mnt/runs-a', 'a') as runs: runs.write('run\\n')\nimport os\nos.execv('/bin/sleep', ['sleep', \
                    '1000'])";
        relay.begin(&Script::new("a", world.target.pid, text));
        let end = relay.end("a");
        assert_eq!(end.reason(), Reason::TargetExited, "{end:?}");
        assert!(end.target().message.contains("another program"), "{end:?}");
        assert!(!end.exec().still_running);
        assert_eq!(world.runs("a"), 1);
        relay.begin(&world.short("b"));
        assert_eq!(relay.end("b").reason(), Reason::NoPythonProcess);
    }
}
