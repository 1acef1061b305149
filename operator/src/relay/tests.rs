//! The stream, against an agent that is played in memory.

use sha2::{Digest, Sha256};
use sidewinder_model::wire::Header;
use sidewinder_model::{Action, Outcome, TargetOutcome};
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::connect::{Connect, Endpoint};
use super::pool::{IDLE_LIMIT, Pool};
use super::*;

/// The agent's side of one stream.
struct Peer {
    from_operator: ReadHalf<DuplexStream>,
    to_operator: WriteHalf<DuplexStream>,
    stderr: DuplexStream,
}

impl Peer {
    fn pair() -> (Streams, Self) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (stdout, stdin) = tokio::io::split(ours);
        let (from_operator, to_operator) = tokio::io::split(theirs);
        let (stderr_ours, stderr) = tokio::io::duplex(4096);
        let streams = Streams {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr_ours),
            guard: Box::new(()),
        };
        (
            streams,
            Self {
                from_operator,
                to_operator,
                stderr,
            },
        )
    }

    async fn next(&mut self) -> Option<ToAgent> {
        loop {
            let budget = Budget::default();
            let read = frame::read(&mut self.from_operator, &budget, |_| ());
            match read.await.unwrap().map(|received| received.message) {
                Some(ToAgent::Ping) => self.send(&ToOperator::Pong).await,
                other => return other,
            }
        }
    }

    async fn send(&mut self, message: &ToOperator) {
        let frame = frame::encode(message).unwrap();
        self.raw(&frame).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.to_operator.write_all(bytes).await.unwrap();
        self.to_operator.flush().await.unwrap();
    }

    async fn greet(&mut self, instance: &str) {
        assert_eq!(
            self.next().await,
            Some(ToAgent::Hello { protocol: PROTOCOL })
        );
        self.send(&ToOperator::Hello {
            protocol: PROTOCOL,
            version: "0.1.0".into(),
            instance: instance.into(),
        })
        .await;
    }

    /// Ends the stream, as a relay does that has said `words` on stderr.
    async fn hang_up(self, words: &str) {
        let Self {
            from_operator,
            mut to_operator,
            mut stderr,
        } = self;
        stderr.write_all(words.as_bytes()).await.unwrap();
        drop(stderr);
        to_operator.shutdown().await.unwrap();
        drop(from_operator);
    }
}

async fn open() -> (Agent, Peer) {
    let (streams, mut peer) = Peer::pair();
    let (agent, ()) = tokio::join!(
        Agent::open(streams, Traffic::default(), Budget::default()),
        peer.greet("instance-1")
    );
    (agent.unwrap(), peer)
}

fn request(id: &str) -> Request {
    Request {
        id: id.into(),
        name: None,
        instance: None,
        action: Action::Processes,
        process: None,
        container_id: None,
        timeout_milliseconds: 1000,
    }
}

fn outcome(id: &str, text: &str) -> Outcome {
    Outcome {
        id: id.into(),
        instance: "instance-1".into(),
        targets: vec![TargetOutcome {
            text: text.into(),
            ..TargetOutcome::failed(Reason::Succeeded, "")
        }],
    }
}

#[tokio::test]
async fn requests_overlap_and_each_gets_its_own_answer() {
    let (agent, mut peer) = open().await;
    assert_eq!(agent.instance, "instance-1");
    let mut first = agent.ask(&request("a")).await.unwrap();
    let mut second = agent.ask(&request("b")).await.unwrap();
    assert!(agent.is_busy());
    for _ in 0..2 {
        let Some(ToAgent::Run { request }) = peer.next().await else {
            panic!("no request")
        };
        peer.send(&ToOperator::Accepted { id: request.id }).await;
    }
    for id in ["b", "a"] {
        peer.send(&ToOperator::Finished {
            outcome: outcome(id, &id.repeat(200_000)).into(),
        })
        .await;
    }
    for (id, replies) in [("a", &mut first), ("b", &mut second)] {
        assert_eq!(replies.next().await, Ok(Reply::Accepted));
        assert_eq!(
            replies.next().await,
            Ok(Reply::Finished(outcome(id, &id.repeat(200_000)).into()))
        );
    }
    assert!(!agent.is_busy());
    agent.acknowledge("a").await.unwrap();
    agent.cancel("b").await.unwrap();
    assert_eq!(
        peer.next().await,
        Some(ToAgent::Acknowledge { id: "a".into() })
    );
    assert_eq!(peer.next().await, Some(ToAgent::Cancel { id: "b".into() }));
}

#[tokio::test]
async fn ends_of_scripts_are_told_as_long_as_somebody_listens() {
    let (agent, mut peer) = open().await;
    let mut replies = agent.watch("a").await.unwrap();
    assert_eq!(peer.next().await, Some(ToAgent::Watch { id: "a".into() }));
    for pid in [1, 7] {
        let end = ScriptEnd {
            pid,
            reason: Reason::ScriptEnded,
            after_milliseconds: 73_000,
        };
        peer.send(&ToOperator::ScriptEnded {
            id: "a".into(),
            end: end.clone(),
        })
        .await;
        assert_eq!(replies.next().await, Ok(Reply::ScriptEnded(end)));
    }
    assert!(agent.is_busy());
    drop(replies);
    assert!(!agent.is_busy());
}

#[tokio::test]
async fn a_refused_request_says_why() {
    let (agent, mut peer) = open().await;
    let mut replies = agent.ask(&request("a")).await.unwrap();
    peer.next().await;
    peer.send(&ToOperator::Refused {
        id: "a".into(),
        reason: Reason::QueueFull,
        message: "32 requests run".into(),
    })
    .await;
    assert_eq!(
        replies.next().await,
        Ok(Reply::Refused {
            reason: Reason::QueueFull,
            message: "32 requests run".into()
        })
    );
}

#[tokio::test]
async fn a_message_with_a_wrong_digest_ends_the_stream_for_everybody() {
    let (agent, mut peer) = open().await;
    let mut first = agent.ask(&request("a")).await.unwrap();
    let mut second = agent.ask(&request("b")).await.unwrap();
    let mut frame = frame::encode(&ToOperator::Finished {
        outcome: outcome("a", "the answer").into(),
    })
    .unwrap();
    let last = frame.len() - 5;
    frame[last] ^= 4;
    peer.raw(&frame).await;
    for replies in [&mut first, &mut second] {
        let Err(RelayError::Broken(words)) = replies.next().await else {
            panic!("a broken message was taken")
        };
        assert!(words.contains("digest"), "{words}");
    }
    assert!(agent.is_closed());
    assert!(agent.ask(&request("c")).await.is_err());
}

/// Any words as a frame, in their order.
fn framed(json: &str) -> Vec<u8> {
    let header = Header {
        length: json.len(),
        digest: Sha256::digest(json).into(),
    };
    [&header.encode().unwrap()[..], json.as_bytes()].concat()
}

#[tokio::test]
async fn an_answer_that_can_never_be_understood_ends_its_request_and_others_ask_again() {
    let (agent, mut peer) = open().await;
    let mut first = agent.ask(&request("a")).await.unwrap();
    let mut second = agent.ask(&request("b")).await.unwrap();
    let strange = r#"{"type":"finished","outcome":{"id":"a","targets":7}}"#;
    peer.raw(&framed(strange)).await;
    let Ok(Reply::Unreadable { reason, message }) = first.next().await else {
        panic!("it would be asked for until its deadline")
    };
    assert_eq!(reason, Reason::InternalError);
    assert!(message.contains("cannot be received"), "{message}");
    assert!(matches!(second.next().await, Err(RelayError::Broken(_))));
}

#[tokio::test]
async fn what_cannot_be_understood_and_is_no_answer_ends_no_request() {
    for kind in ["accepted", "scriptEnded"] {
        let (agent, mut peer) = open().await;
        let mut replies = agent.ask(&request("a")).await.unwrap();
        let strange = format!("{{\"type\":\"{kind}\",\"id\":\"a\",\"end\":7,\"reason\":7}}");
        peer.raw(&framed(&strange)).await;
        // Its outcome may still come over another stream.
        let reply = replies.next().await;
        assert!(matches!(reply, Err(RelayError::Broken(_))), "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_slowly_is_told_to_whoever_asked_for_it() {
    let (agent, mut peer) = open().await;
    let mut first = agent.ask(&request("a")).await.unwrap();
    let mut second = agent.ask(&request("b")).await.unwrap();
    let outcome = outcome("a", "the answer").into();
    let frame = frame::encode(&ToOperator::Finished { outcome }).unwrap();
    peer.raw(&frame[..frame.len() - 1]).await;
    let reply = first.next().await;
    let Ok(Reply::Slow { message }) = reply else {
        panic!("{reply:?}")
    };
    assert!(message.contains("too slowly"), "{message}");
    assert!(matches!(second.next().await, Err(RelayError::Broken(_))));
}

#[tokio::test]
async fn a_stream_cut_inside_an_answer_is_no_answer() {
    let (agent, mut peer) = open().await;
    let mut replies = agent.ask(&request("a")).await.unwrap();
    let frame = frame::encode(&ToOperator::Finished {
        outcome: outcome("a", "the answer").into(),
    })
    .unwrap();
    peer.raw(&frame[..frame.len() - 1]).await;
    peer.hang_up("").await;
    let Err(RelayError::Broken(words)) = replies.next().await else {
        panic!("a cut message was taken")
    };
    assert!(words.contains("cut"), "{words}");
}

#[tokio::test]
async fn a_relay_that_ends_is_quoted() {
    let (streams, peer) = Peer::pair();
    let (opened, ()) = tokio::join!(
        Agent::open(streams, Traffic::default(), Budget::default()),
        peer.hang_up("sidewinder-sidecar: no agent answers at /run/sidewinder/agent.sock\n")
    );
    let Err(RelayError::Ended(words)) = opened else {
        panic!("{opened:?}")
    };
    assert!(words.contains("no agent answers"), "{words}");

    let (agent, peer) = open().await;
    let mut replies = agent.ask(&request("a")).await.unwrap();
    peer.hang_up("killed").await;
    let Err(RelayError::Ended(words)) = replies.next().await else {
        panic!("an ended stream answered")
    };
    assert!(words.contains("killed"), "{words}");
}

#[tokio::test]
async fn another_protocol_is_named() {
    let (streams, mut peer) = Peer::pair();
    let (opened, ()) = tokio::join!(
        Agent::open(streams, Traffic::default(), Budget::default()),
        async {
            peer.next().await;
            peer.send(&ToOperator::Hello {
                protocol: PROTOCOL + 1,
                version: "9.0.0".into(),
                instance: "i".into(),
            })
            .await;
        }
    );
    assert_eq!(
        opened.unwrap_err(),
        RelayError::Version {
            theirs: PROTOCOL + 1,
            version: "9.0.0".into()
        }
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_greets_is_given_up() {
    let (streams, _peer) = Peer::pair();
    assert_eq!(
        Agent::open(streams, Traffic::default(), Budget::default())
            .await
            .unwrap_err(),
        RelayError::Silent(HANDSHAKE_LIMIT)
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_falls_silent_is_given_up() {
    let (agent, _peer) = open().await;
    let mut replies = agent.ask(&request("a")).await.unwrap();
    let Err(RelayError::Silent(silent)) = replies.next().await else {
        panic!("a silent agent answered")
    };
    assert!(silent >= SILENCE_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_on_a_dead_line_ends_soon_and_on_a_living_one_goes_on() {
    let (agent, _dead) = open().await;
    let mut replies = agent.ask(&request("a")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let cancelled = tokio::time::Instant::now();
    agent.cancel("a").await.unwrap();
    let Err(RelayError::Silent(_)) = replies.next().await else {
        panic!("a silent agent answered")
    };
    assert!(cancelled.elapsed() <= Duration::from_secs(4));

    let (agent, mut peer) = open().await;
    let mut replies = agent.ask(&request("a")).await.unwrap();
    let play = async {
        peer.next().await;
        assert!(matches!(peer.next().await, Some(ToAgent::Cancel { .. })));
        // It answers pings while it stops what runs.
        let done = tokio::time::sleep(Duration::from_secs(9));
        tokio::pin!(done);
        tokio::select! {
            () = &mut done => {}
            other = peer.next() => panic!("{other:?}"),
        }
        peer.send(&ToOperator::Finished {
            outcome: outcome("a", "stopped").into(),
        })
        .await;
    };
    agent.cancel("a").await.unwrap();
    let (reply, ()) = tokio::join!(replies.next(), play);
    assert_eq!(reply, Ok(Reply::Finished(outcome("a", "stopped").into())));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_answers_pings_may_work_for_long() {
    let (agent, mut peer) = open().await;
    let mut replies = agent.ask(&request("a")).await.unwrap();
    let play = async {
        peer.next().await;
        let done = tokio::time::sleep(SILENCE_LIMIT * 10);
        tokio::pin!(done);
        tokio::select! {
            () = &mut done => {}
            other = peer.next() => panic!("{other:?}"),
        }
        peer.send(&ToOperator::Finished {
            outcome: outcome("a", "late").into(),
        })
        .await;
    };
    let (reply, ()) = tokio::join!(replies.next(), play);
    assert_eq!(reply, Ok(Reply::Finished(outcome("a", "late").into())));
}

/// Hands out streams whose other ends wait in a list.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<Peer>>>);

impl Connect for Lines {
    async fn connect(&self, endpoint: &Endpoint) -> Result<Streams, RelayError> {
        if endpoint.container == "sidewinder-none-1" {
            return Err(RelayError::NotRunning("container not found".into()));
        }
        let (streams, peer) = Peer::pair();
        self.0.lock().unwrap().push(peer);
        Ok(streams)
    }
}

impl Lines {
    async fn greet_next(&self, instance: &str) -> Peer {
        let mut peer = loop {
            if let Some(peer) = self.0.lock().unwrap().pop() {
                break peer;
            }
            tokio::task::yield_now().await;
        };
        peer.greet(instance).await;
        peer
    }
}

fn endpoint(container: &str) -> Endpoint {
    Endpoint {
        namespace: "shop".into(),
        pod: "web-0".into(),
        pod_uid: "uid-1".into(),
        container: container.into(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_shared_kept_for_a_while_and_opened_again_after_its_end() {
    let lines = Lines::default();
    let pool = Pool::new(lines.clone(), Traffic::default());
    let there = endpoint("sidewinder-app-1");
    let (first, second, peer) = tokio::join!(
        pool.agent(&there),
        pool.agent(&there),
        lines.greet_next("one")
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(Arc::ptr_eq(&first, &second), "two streams to one agent");
    drop((first, second));
    pool.sweep();
    assert_eq!(pool.len(), 1);

    peer.hang_up("").await;
    let again = loop {
        // The end is noticed by the stream's own task.
        tokio::task::yield_now().await;
        let open = pool.slots().values().next().cloned();
        let closed = match open {
            Some(slot) => slot
                .lock()
                .await
                .as_ref()
                .is_none_or(|agent| agent.is_closed()),
            None => true,
        };
        if closed {
            let (agent, peer) = tokio::join!(pool.agent(&there), lines.greet_next("two"));
            break (agent.unwrap(), peer);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let (agent, mut peer) = again;
    assert_eq!(agent.instance, "two");
    drop(agent);
    let answering = tokio::spawn(async move { while peer.next().await.is_some() {} });
    tokio::time::sleep(IDLE_LIMIT + Duration::from_secs(1)).await;
    pool.sweep();
    assert!(pool.is_empty(), "an idle stream stayed open");
    answering.await.unwrap();
}

#[tokio::test]
async fn a_container_that_does_not_run_is_not_kept() {
    let pool = Pool::new(Lines::default(), Traffic::default());
    let missing = endpoint("sidewinder-none-1");
    assert!(matches!(
        pool.agent(&missing).await,
        Err(RelayError::NotRunning(_))
    ));
    pool.sweep();
    assert!(pool.is_empty());
}
