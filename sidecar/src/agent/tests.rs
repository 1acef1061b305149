//! The protocol, spoken to a real agent over a socket pair.

use std::io::Write as _;

use sha2::Digest as _;
use sidewinder_model::wire::MAX_PAYLOAD_BYTES;
use sidewinder_model::{Action, ExecRequest};

use super::*;

struct Peer {
    stream: UnixStream,
    server: Option<std::thread::JoinHandle<()>>,
}

impl Peer {
    fn new(agent: &Arc<Agent>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let agent = agent.clone();
        let server = std::thread::spawn(move || {
            // How it ends is seen by the peer.
            let _ = serve(&agent, &theirs);
            let _ = theirs.shutdown(Shutdown::Both);
        });
        Self {
            stream: ours,
            server: Some(server),
        }
    }

    fn introduced(agent: &Arc<Agent>, protocol: u32) -> Self {
        let mut peer = Self::new(agent);
        peer.send(&ToAgent::Hello { protocol });
        let Some(ToOperator::Hello { instance, .. }) = peer.next() else {
            panic!("no hello")
        };
        assert_eq!(instance, agent.instance);
        peer
    }

    fn send(&mut self, message: &ToAgent) {
        framing::write(&mut self.stream, message).unwrap();
    }

    fn next(&mut self) -> Option<ToOperator> {
        framing::read(&mut self.stream, MAX_PAYLOAD_BYTES).unwrap()
    }

    fn run(&mut self, request: Request) {
        self.send(&ToAgent::Run { request });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

fn agent() -> Arc<Agent> {
    let instance = new_instance().unwrap();
    Arc::new(Agent {
        requests: Mutex::new(Requests::new(instance.clone(), Instant::now())),
        watches: Mutex::default(),
        instance,
        changed: Condvar::new(),
        leaving: AtomicBool::new(false),
        connections: Mutex::new(0),
    })
}

fn request(id: &str, action: Action) -> Request {
    Request {
        id: id.into(),
        name: None,
        instance: None,
        action,
        process: None,
        container_id: Some("no container has this id".into()),
        timeout_milliseconds: 10_000,
    }
}

#[test]
fn an_outcome_waits_until_it_is_acknowledged_and_is_never_made_twice() {
    let agent = agent();
    let mut peer = Peer::introduced(&agent, PROTOCOL);
    peer.run(request("a", Action::Processes));
    assert_eq!(peer.next(), Some(ToOperator::Accepted { id: "a".into() }));
    let Some(ToOperator::Finished { outcome }) = peer.next() else {
        panic!("no outcome")
    };
    assert_eq!((outcome.id.as_str(), outcome.targets.len()), ("a", 1));
    drop(peer);

    let mut peer = Peer::introduced(&agent, PROTOCOL);
    peer.run(request("a", Action::Processes));
    assert_eq!(peer.next(), Some(ToOperator::Finished { outcome }));
    peer.send(&ToAgent::Acknowledge { id: "a".into() });
    peer.run(request("a", Action::Processes));
    let Some(ToOperator::Finished { outcome }) = peer.next() else {
        panic!("no outcome")
    };
    assert_eq!(outcome.targets[0].reason, Reason::SidecarLost);
}

#[test]
fn code_runs_only_under_an_intent_that_names_this_instance() {
    let agent = agent();
    let mut peer = Peer::introduced(&agent, PROTOCOL);
    for instance in [None, Some("another".to_owned())] {
        peer.run(Request {
            instance,
            ..request("b", Action::Exec(ExecRequest::default()))
        });
        let Some(ToOperator::Refused { id, reason, .. }) = peer.next() else {
            panic!("not refused")
        };
        assert_eq!((id.as_str(), reason), ("b", Reason::SidecarLost));
    }
}

#[test]
fn another_protocol_is_named_and_nothing_is_begun() {
    let agent = agent();
    let mut peer = Peer::introduced(&agent, PROTOCOL + 1);
    peer.run(request("c", Action::Processes));
    let Some(ToOperator::Refused { reason, .. }) = peer.next() else {
        panic!("not refused")
    };
    assert_eq!(reason, Reason::SidecarVersion);
}

#[test]
fn an_agent_that_leaves_ends_its_requests_and_waits_until_their_outcomes_are_safe() {
    let agent = agent();
    *agent.connections.lock().unwrap() = 1;
    let (watcher, told) = sync_channel(8);
    let Begin::Start(cancel) = agent.requests().begin("a", &watcher, Instant::now()) else {
        panic!("not begun")
    };
    let leaving = agent.clone();
    let left = std::thread::spawn(move || {
        farewell(&leaving);
        leaving.requests().waiting()
    });
    let limit = Instant::now() + FAREWELL;
    while !cancel.load(Ordering::SeqCst) {
        assert!(Instant::now() < limit, "the request was not cancelled");
        std::thread::yield_now();
    }
    let outcome = failed(&agent.instance, "a".into(), String::new());
    finish(&agent, outcome);
    let Ok(ToOperator::Finished { outcome }) = told.recv_timeout(FAREWELL) else {
        panic!("no outcome")
    };
    let mut peer = Peer::introduced(&agent, PROTOCOL);
    peer.send(&ToAgent::Acknowledge {
        id: outcome.id.clone(),
    });
    assert_eq!(left.join().unwrap(), 0);
}

#[test]
fn who_does_not_introduce_himself_is_not_served() {
    let agent = agent();
    let mut peer = Peer::new(&agent);
    peer.send(&ToAgent::Ping);
    assert_eq!(peer.next(), None);
}

#[test]
fn a_newer_operator_s_messages_are_passed_over() {
    let agent = agent();
    let mut peer = Peer::introduced(&agent, PROTOCOL);
    framing::write(&mut peer.stream, &serde_json::json!({"type": "dance"})).unwrap();
    peer.send(&ToAgent::Ping);
    assert_eq!(peer.next(), Some(ToOperator::Pong));
}

#[test]
fn an_outcome_too_large_to_send_loses_its_data_and_says_so() {
    let huge = |name: &str| TargetOutcome {
        data: Some(sidewinder_model::Data::Processes(
            sidewinder_model::ProcessList {
                problems: vec!["x".repeat(40 * 1024)],
                ..Default::default()
            },
        )),
        text: name.into(),
        ..TargetOutcome::failed(Reason::Succeeded, String::new())
    };
    let outcome = Outcome {
        id: "d".into(),
        instance: "i".into(),
        targets: vec![huge("one"), huge("two")],
    };
    let (outcome, bytes) = fit(outcome, 64 * 1024);
    assert!(bytes < 64 * 1024);
    let cut: Vec<_> = outcome
        .targets
        .iter()
        .filter(|target| target.data.is_none())
        .collect();
    assert_eq!(cut.len(), 1);
    assert!(cut[0].message.contains("left out") && !cut[0].text.is_empty());
}

#[test]
fn a_seat_is_given_back_however_its_connection_ends() {
    let agent = agent();
    let mut seats: Vec<Seat> = (0..MAX_CONNECTIONS)
        .map(|_| Seat::take(&agent).unwrap())
        .collect();
    assert!(Seat::take(&agent).is_none());
    let seat = seats.pop().unwrap();
    let panicked = std::thread::spawn(move || {
        let _seat = seat;
        panic!("a connection that panics");
    });
    assert!(panicked.join().is_err());
    seats.push(Seat::take(&agent).unwrap());
    drop(seats);
    assert!(!agent.connected());
}

#[test]
fn a_message_has_to_arrive_as_a_whole_in_time_and_silence_has_an_end() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut incoming = Incoming {
        stream: &theirs,
        patience: Duration::ZERO,
        limit: Duration::from_millis(100),
        until: None,
    };
    let late = |error: framing::FrameError| {
        let framing::FrameError::Io(error) = error else {
            panic!("{error}")
        };
        matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        )
    };
    assert!(late(incoming.next(Duration::from_millis(20)).unwrap_err()));
    // One byte after the other, each of them in time.
    let mut bytes = Vec::new();
    framing::write(&mut bytes, &ToAgent::Ping).unwrap();
    let dripping = std::thread::spawn(move || {
        let began = Instant::now();
        for byte in bytes.iter().cycle() {
            std::thread::sleep(Duration::from_millis(10));
            if ours.write_all(&[*byte]).is_err() || began.elapsed() > Duration::from_secs(20) {
                break;
            }
        }
        began.elapsed()
    });
    assert!(late(incoming.next(Duration::from_secs(20)).unwrap_err()));
    drop(theirs);
    assert!(dripping.join().unwrap() < Duration::from_secs(20));
}

#[test]
fn who_does_not_read_answers_is_let_go() {
    let agent = agent();
    let mut peer = Peer::introduced(&agent, PROTOCOL);
    let mut asked = 0_u32;
    while framing::write(&mut peer.stream, &ToAgent::Ping).is_ok() {
        asked += 1;
        assert!(asked < 1_000_000, "answers pile up");
    }
}

#[test]
fn what_is_no_request_ends_its_connection_and_nothing_else() {
    let agent = agent();
    let mut deep = "[".repeat(100_000).into_bytes();
    deep.extend("]".repeat(100_000).bytes());
    let framed = |payload: &[u8], length: usize| {
        let digest = sha2::Sha256::digest(payload).into();
        let header = sidewinder_model::wire::Header { length, digest };
        let mut frame = header.encode().unwrap().to_vec();
        frame.extend(payload);
        frame
    };
    let long = ToAgent::Run {
        request: request(&"i".repeat(ID_BYTES + 1), Action::Processes),
    };
    let mut long_id = Vec::new();
    framing::write(&mut long_id, &long).unwrap();
    for (what, bytes) in [
        ("deep", framed(&deep, deep.len())),
        ("huge", framed(b"{}", REQUEST_BYTES + 1)),
        ("no JSON", framed(b"\xff\xfe", 2)),
        ("no frame", vec![0xff; 4096]),
        ("a long id", long_id),
    ] {
        let mut peer = Peer::introduced(&agent, PROTOCOL);
        // It may be refused before it has all arrived.
        let _ = peer.stream.write_all(&bytes);
        let answer = framing::read::<ToOperator>(&mut peer.stream, MAX_PAYLOAD_BYTES);
        assert!(!matches!(answer, Ok(Some(_))), "{what}: {answer:?}");
    }
    let mut peer = Peer::introduced(&agent, PROTOCOL);
    peer.send(&ToAgent::Ping);
    assert_eq!(peer.next(), Some(ToOperator::Pong));
}

#[test]
fn connections_that_end_while_their_request_runs_leave_no_thread_behind() {
    let agent = agent();
    let (first, _told) = sync_channel(8);
    let begun = agent.requests().begin("long", &first, Instant::now());
    assert!(matches!(begun, Begin::Start(_)));
    for _ in 0..200 {
        let mut peer = Peer::introduced(&agent, PROTOCOL);
        peer.run(request("long", Action::Processes));
        assert_eq!(
            peer.next(),
            Some(ToOperator::Accepted { id: "long".into() })
        );
    }
    let waiting = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name == "answers\n").count()
    };
    let limit = Instant::now() + Duration::from_secs(20);
    // Those of the tests that run beside this one are some.
    while waiting() > 20 {
        assert!(Instant::now() < limit, "{} threads wait", waiting());
        std::thread::yield_now();
    }
}
