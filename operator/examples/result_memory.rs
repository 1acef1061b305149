//! How much memory large results take, from the stream of an agent to Secrets: the peak of this process.
//!
//! `cargo run -p sidewinder-operator --example result_memory -- SESSIONS MEBIBYTES [BUDGET_MEBIBYTES] [dense]`
//!
//! `dense` answers with lists of empty strings, which take the most memory for their length.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use axum::body::Body as Answer;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use sha2::{Digest, Sha256};
use sidewinder_crds::{DebugSession, TargetStatus};
use sidewinder_model::wire::Header;
use sidewinder_model::{Action, PROTOCOL, Reason, Request as Asked, ToOperator};
use sidewinder_operator::metrics::Traffic;
use sidewinder_operator::relay::budget::{Budget, Delivered};
use sidewinder_operator::relay::{Agent, Reply, Streams, frame};
use sidewinder_operator::session::plan::End;
use sidewinder_operator::session::result::{Entry, PodEnd, Sensitive};
use sidewinder_operator::session::store::store;
use tokio::io::{AsyncWriteExt, DuplexStream};

/// What is answered, written piece by piece: the answers themselves take no memory here.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Output, given as text too, as of any script.
    Output,
    /// Many small things.
    Dense,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// The process's largest resident set before, in bytes.
    pub(crate) before: u64,
    /// The process's largest resident set, in bytes.
    pub(crate) peak: u64,
    /// How long it took.
    pub(crate) took: Duration,
    /// How many results were stored.
    pub(crate) stored: usize,
}

/// The text of one answer, without its beginning and end.
struct Filler {
    kind: Kind,
    left: usize,
    state: u64,
}

impl Iterator for Filler {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let bytes = self.left.min(60 * 1024) / 3 * 3;
        if bytes == 0 {
            return None;
        }
        self.left -= bytes;
        Some(match self.kind {
            Kind::Dense => b"\"\",".repeat(bytes / 3),
            Kind::Output => (0..bytes)
                .map(|_| {
                    self.state = self
                        .state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    // Letters, blanks now and then: it compresses about as badly as text does.
                    match self.state >> 59 {
                        digit @ 0..=25 => b'a'.wrapping_add(u8::try_from(digit).unwrap_or(0)),
                        _ => b' ',
                    }
                })
                .collect(),
        })
    }
}

/// A message's payload in pieces: the same each time.
fn payload(id: &str, kind: Kind, bytes: usize) -> impl Iterator<Item = Vec<u8>> {
    let filler = move |left| Filler {
        kind,
        left,
        state: 1,
    };
    let head = format!(
        r#"{{"type":"finished","outcome":{{"id":"{id}","instance":"i","targets":[{{"reason":"Succeeded""#
    );
    let (text, open, close) = match kind {
        Kind::Output => (bytes / 2, r#"","data":{"exec":{"stdout":""#, r#""}}}]}}"#),
        Kind::Dense => (3, r#"","data":{"exec":{"imported":["#, r#""x"]}}}]}}"#),
    };
    let text_open = br#","text":""#.to_vec();
    let text_filler = Filler {
        kind: Kind::Output,
        left: text,
        state: 1,
    };
    [head.into_bytes(), text_open]
        .into_iter()
        .chain(text_filler)
        .chain([open.as_bytes().to_vec()])
        .chain(filler(bytes - text))
        .chain([close.as_bytes().to_vec()])
}

/// Plays an agent that answers as soon as it is asked.
async fn play(
    mut to: DuplexStream,
    asked: tokio::sync::oneshot::Receiver<()>,
    id: String,
    kind: Kind,
    bytes: usize,
) -> anyhow::Result<()> {
    let hello = frame::encode(&ToOperator::Hello {
        protocol: PROTOCOL,
        version: "0".into(),
        instance: "i".into(),
    })?;
    to.write_all(&hello).await?;
    asked.await?;
    let mut digest = Sha256::new();
    let mut length = 0;
    for piece in payload(&id, kind, bytes) {
        digest.update(&piece);
        length += piece.len();
    }
    let header = Header {
        length,
        digest: digest.finalize().into(),
    };
    to.write_all(&header.encode().context("too long")?).await?;
    for piece in payload(&id, kind, bytes) {
        to.write_all(&piece).await?;
    }
    // The stream stays open, as a relay's does.
    std::future::pending::<()>().await;
    Ok(())
}

async fn one(
    client: &Client,
    budget: &Budget,
    number: usize,
    kind: Kind,
    bytes: usize,
) -> anyhow::Result<bool> {
    let id = format!("00000000-{number}");
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (ask, asked) = tokio::sync::oneshot::channel();
    let agent = tokio::spawn(play(theirs, asked, id.clone(), kind, bytes));
    let streams = Streams {
        stdin: Box::new(tokio::io::sink()),
        stdout: Box::new(ours),
        stderr: Box::new(tokio::io::empty()),
        guard: Box::new(()),
    };
    let stream = Agent::open(streams, Traffic::default(), budget.clone()).await?;
    let mut replies = stream
        .ask(&Asked {
            id: id.clone(),
            name: None,
            instance: None,
            action: Action::Processes,
            process: None,
            container_id: None,
            timeout_milliseconds: 1000,
        })
        .await?;
    let _ = ask.send(());
    let answer = replies.next().await;
    agent.abort();
    let outcome: Delivered = match answer {
        Ok(Reply::Finished(outcome)) => outcome,
        // What is refused for its size counts as not stored.
        Ok(Reply::Unreadable {
            reason: Reason::ResultNotStored,
            ..
        }) => return Ok(false),
        Ok(other) => bail!("not an outcome: {other:?}"),
        Err(error) if error.to_string().contains("memory") => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let mut session: DebugSession = serde_json::from_value(serde_json::json!({
        "apiVersion": "sidewinder.dev/v1alpha1", "kind": "DebugSession",
        "metadata": {"name": "why", "namespace": "shop", "uid": id},
        "spec": {"target": {"podName": "web-0"}, "remoteExec": {"script": "print(1)"}}
    }))?;
    session.metadata.generation = Some(1);
    let end = End {
        reason: Reason::InternalError,
        message: String::new(),
        outcome: Some(outcome),
        maybe_armed: false,
    };
    let mut pod = PodEnd::new(
        &session,
        end,
        &TargetStatus::default(),
        String::new(),
        Sensitive::Secret,
    );
    for entry in pod.entries.iter_mut().filter(|entry| entry.to_store) {
        let whole = entry.outcome.take().context("no outcome")?;
        entry.status.result = Some(store(client, &session, &whole, 16 << 20, budget).await?);
    }
    let stored = |entry: &Entry| entry.status.result.is_some();
    ensure!(pod.entries.iter().all(stored));
    Ok(true)
}

/// An API server that takes everything, after a moment.
fn server() -> Client {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let bytes = request.into_body().collect_bytes().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let taken = bytes.map_or(0, |bytes| bytes.len());
        let answer = format!(
            r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{{"name":"bytes-{taken}"}}}}"#
        );
        Ok::<_, Infallible>(Response::new(Answer::from(answer)))
    });
    Client::new(service, "shop")
}

/// The largest resident set of this process, in bytes.
fn peak() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kibibytes: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next())
        .context("/proc/self/status without VmHWM")?
        .parse()?;
    Ok(kibibytes * 1024)
}

/// Answers of `bytes` each come for so many sessions at once, and are stored.
///
/// # Errors
/// When one of them is neither stored nor refused for its size.
pub(crate) async fn measure(
    sessions: usize,
    bytes: usize,
    budget: usize,
    kind: Kind,
) -> anyhow::Result<Measured> {
    let before = peak()?;
    let client = server();
    let budget = Arc::new(Budget::new(budget));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..sessions {
        let (client, budget) = (client.clone(), Arc::clone(&budget));
        tasks.spawn(async move { one(&client, &budget, number, kind, bytes).await });
    }
    let mut stored = 0;
    while let Some(result) = tasks.join_next().await {
        stored += usize::from(result??);
    }
    Ok(Measured {
        before,
        peak: peak()?,
        took: began.elapsed(),
        stored,
    })
}

#[allow(
    dead_code,
    reason = "the test of this measurement has a main function of its own"
)]
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: usize| -> anyhow::Result<usize> {
        arguments
            .get(place)
            .map_or(Ok(default), |word| Ok(word.parse()?))
    };
    let kind = if arguments.iter().any(|word| word == "dense") {
        Kind::Dense
    } else {
        Kind::Output
    };
    let sessions = number(0, 1)?;
    let bytes = number(1, 16)? << 20;
    let budget = number(2, 128)? << 20;
    let measured = measure(sessions, bytes, budget, kind).await?;
    println!(
        "{sessions} x {} MiB {kind:?}, budget {} MiB: peak {} MiB ({} before), {} stored in {:.1} s",
        bytes >> 20,
        budget >> 20,
        measured.peak >> 20,
        measured.before >> 20,
        measured.stored,
        measured.took.as_secs_f64()
    );
    Ok(())
}
