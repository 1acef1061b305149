//! The stream between the operator and one agent.
//!
//! [`Agent`] is one open stream: requests overlap on it and are told apart by their ids. The stream is watched: an
//! agent that is silent for [`SILENCE_LIMIT`] counts as gone, so no request waits for ever on a dead line.
//! [`pool::Pool`] keeps streams open between requests, and [`connect`] opens them through `pods/exec`.

pub mod budget;
pub mod connect;
pub mod frame;
mod incoming;
pub mod pool;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sidewinder_model::{PROTOCOL, Reason, Request, ScriptEnd, ToAgent, ToOperator};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::budget::{Budget, Delivered};
use self::frame::FrameError;
use self::incoming::Incoming;
use crate::metrics::Traffic;

/// How long the handshake may take. The relay itself gives up on an absent agent after 10 s and says so.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);
/// How often an open stream is asked whether it is still there; also keeps proxies from cutting it.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A stream that carried nothing for this long, pings unanswered, is given up.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(35);
/// The same after a request was cancelled: a stream that was cut without a word must not keep a script running.
const CANCEL_SILENCE_LIMIT: Duration = Duration::from_secs(3);
/// How much of the relay's own words on stderr is kept.
const STDERR_BYTES: usize = 2048;
/// How long after the end of the output the relay's stderr may still arrive.
const STDERR_LIMIT: Duration = Duration::from_secs(1);

/// Why there is no answer over the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// The sidecar's container does not run yet, or not any more.
    #[error("the sidecar's container does not run: {0}")]
    NotRunning(String),
    /// There is no such pod any more.
    #[error("the pod is gone: {0}")]
    PodGone(String),
    /// The API server does not let the operator in.
    #[error("the operator may not enter the sidecar: {0}")]
    Forbidden(String),
    /// The API server cannot reach the pod's node.
    #[error("the pod's node cannot be reached: {0}")]
    NodeUnreachable(String),
    /// The API server could not be reached or could not do it.
    #[error("the stream could not be opened: {0}")]
    Unavailable(String),
    /// The stream ended.
    #[error("the stream to the sidecar ended{0}")]
    Ended(String),
    /// Something arrived that is no message.
    #[error("the stream to the sidecar is broken: {0}")]
    Broken(String),
    /// Nothing was heard for too long.
    #[error("the sidecar was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The other side speaks another protocol.
    #[error(
        "the sidecar (version {version:?}) speaks protocol {theirs}, the operator {PROTOCOL}: install the operator and the sidecar image of the same release"
    )]
    Version {
        /// The sidecar's protocol.
        theirs: u32,
        /// The sidecar's version.
        version: String,
    },
}

/// The three ends of a started relay, and whatever keeps it running.
pub struct Streams {
    /// Towards the agent.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// From the agent.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// The relay's own words.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// Dropped last: ends the exec.
    pub guard: Box<dyn std::any::Any + Send + Sync>,
}

/// What an agent says to one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The request is known and running.
    Accepted,
    /// It has ended.
    Finished(Delivered),
    /// It was not begun and will not be.
    Refused {
        /// Why.
        reason: Reason,
        /// Why, in a sentence.
        message: String,
    },
    /// It has ended, and its answer can never be received.
    Unreadable {
        /// Why.
        reason: Reason,
        /// Why, in a sentence.
        message: String,
    },
    /// It has ended, and its answer came too slowly. It may come faster over another stream.
    Slow {
        /// How slowly, in a sentence.
        message: String,
    },
    /// A script that outlived it has ended. There may be more of them.
    ScriptEnded(ScriptEnd),
}

#[derive(Default)]
struct State {
    pending: HashMap<String, mpsc::UnboundedSender<Reply>>,
    closed: Option<RelayError>,
    last_heard: Option<Instant>,
    last_used: Option<Instant>,
}

struct Shared {
    state: Mutex<State>,
    closed: CancellationToken,
    /// A request was cancelled.
    cancelled: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the stream for everybody; the first reason stays.
    fn close(&self, error: RelayError) {
        let mut state = self.state();
        state.closed.get_or_insert(error);
        state.pending.clear();
        drop(state);
        self.closed.cancel();
    }
}

/// One open stream to one agent.
pub struct Agent {
    /// The random id of the agent's run.
    pub instance: String,
    /// The sidecar's version.
    pub version: String,
    outbox: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// A request's replies, until the stream closes.
pub struct Replies {
    id: String,
    receiver: mpsc::UnboundedReceiver<Reply>,
    shared: Arc<Shared>,
}

impl Replies {
    /// The next reply, or why there will be none.
    ///
    /// # Errors
    /// When the stream has closed.
    pub async fn next(&mut self) -> Result<Reply, RelayError> {
        match self.receiver.recv().await {
            Some(reply) => Ok(reply),
            None => Err(self
                .shared
                .state()
                .closed
                .clone()
                .unwrap_or_else(|| RelayError::Ended(String::new()))),
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        // What is in the table may be the sender of somebody who asked for the same later.
        self.receiver.close();
        let mut state = self.shared.state();
        if state
            .pending
            .get(&self.id)
            .is_some_and(mpsc::UnboundedSender::is_closed)
        {
            state.pending.remove(&self.id);
        }
        state.last_used = Some(Instant::now());
    }
}

impl Agent {
    /// Shakes hands on a freshly opened stream.
    ///
    /// # Errors
    /// When the relay ends (its stderr is quoted), answers something else, speaks another protocol, or says nothing
    /// within [`HANDSHAKE_LIMIT`].
    pub async fn open(
        streams: Streams,
        traffic: Traffic,
        budget: Budget,
    ) -> Result<Self, RelayError> {
        let Streams {
            mut stdin,
            mut stdout,
            stderr,
            guard,
        } = streams;
        let words = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let stderr_ended = CancellationToken::new();
        tasks.spawn(keep_stderr(
            stderr,
            Arc::clone(&words),
            stderr_ended.clone(),
        ));

        let handshake = async {
            let hello = frame::encode(&ToAgent::Hello { protocol: PROTOCOL })
                .map_err(|error| RelayError::Broken(describe(&error)))?;
            frame::write(&mut stdin, &hello)
                .await
                .map_err(|error| RelayError::Ended(format!(": {}", describe(&error))))?;
            loop {
                let said = frame::read::<_, Incoming>(&mut stdout, &budget, |_| ()).await;
                match said.map(|received| received.map(|received| received.message.0)) {
                    Ok(Some(ToOperator::Hello {
                        protocol,
                        version,
                        instance,
                    })) => {
                        if protocol != PROTOCOL {
                            return Err(RelayError::Version {
                                theirs: protocol,
                                version: clip(&version),
                            });
                        }
                        if instance.is_empty() || instance.len() > 128 {
                            return Err(RelayError::Broken(
                                "the agent named no usable instance".into(),
                            ));
                        }
                        return Ok((instance, version));
                    }
                    Ok(Some(ToOperator::Refused {
                        reason, message, ..
                    })) => {
                        return Err(if reason == Reason::SidecarVersion {
                            RelayError::Version {
                                theirs: 0,
                                version: clip(&message),
                            }
                        } else {
                            RelayError::Broken(clip(&message))
                        });
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(RelayError::Ended(String::new())),
                    Err(error) => return Err(RelayError::Broken(describe(&error))),
                }
            }
        };
        let greeted = tokio::time::timeout(HANDSHAKE_LIMIT, handshake)
            .await
            .unwrap_or(Err(RelayError::Silent(HANDSHAKE_LIMIT)));
        let (instance, version) = match greeted {
            Ok(hello) => hello,
            Err(error) => return Err(with_stderr(error, &words, &stderr_ended).await),
        };

        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                last_heard: Some(Instant::now()),
                last_used: Some(Instant::now()),
                ..State::default()
            }),
            closed: CancellationToken::new(),
            cancelled: Notify::new(),
        });
        let open = traffic.opened();
        let (outbox, inbox) = mpsc::channel(64);
        tasks.spawn(send_all(stdin, inbox, Arc::clone(&shared), traffic.clone()));
        tasks.spawn(watch(outbox.clone(), Arc::clone(&shared)));
        tasks.spawn(receive_all(
            stdout,
            Arc::clone(&shared),
            (traffic, budget),
            words,
            stderr_ended,
            Box::new((open, guard)),
        ));
        Ok(Self {
            instance,
            version: clip(&version),
            outbox,
            shared,
            _tasks: tasks,
        })
    }

    /// Whether the stream has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.is_cancelled()
    }

    /// Whether a request waits for its answer.
    pub fn is_busy(&self) -> bool {
        !self.shared.state().pending.is_empty()
    }

    /// When a request was last asked or ended.
    pub fn last_used(&self) -> Option<Instant> {
        self.shared.state().last_used
    }

    /// Asks for a request, or attaches to the one with the same id.
    ///
    /// # Errors
    /// When the stream has closed or the request is too large for a message.
    pub async fn ask(&self, request: &Request) -> Result<Replies, RelayError> {
        let replies = self.replies(&request.id)?;
        self.send(&ToAgent::Run {
            request: request.clone(),
        })
        .await?;
        Ok(replies)
    }

    /// Asks to be told of the end of scripts that outlived a request.
    ///
    /// # Errors
    /// When the stream has closed.
    pub async fn watch(&self, id: &str) -> Result<Replies, RelayError> {
        let replies = self.replies(id)?;
        self.send(&ToAgent::Watch { id: id.to_owned() }).await?;
        Ok(replies)
    }

    /// What is said of a request from now on.
    fn replies(&self, id: &str) -> Result<Replies, RelayError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.shared.state();
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        state.pending.insert(id.to_owned(), sender);
        state.last_used = Some(Instant::now());
        drop(state);
        Ok(Replies {
            id: id.to_owned(),
            receiver,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Asks the agent to end a request early.
    ///
    /// # Errors
    /// When the stream has closed.
    pub async fn cancel(&self, id: &str) -> Result<(), RelayError> {
        self.send(&ToAgent::Cancel { id: id.to_owned() }).await?;
        self.shared.cancelled.notify_one();
        Ok(())
    }

    /// Tells the agent that an outcome is safe.
    ///
    /// # Errors
    /// When the stream has closed.
    pub async fn acknowledge(&self, id: &str) -> Result<(), RelayError> {
        self.send(&ToAgent::Acknowledge { id: id.to_owned() }).await
    }

    async fn send(&self, message: &ToAgent) -> Result<(), RelayError> {
        let frame = frame::encode(message).map_err(|error| RelayError::Broken(describe(&error)))?;
        if self.outbox.send(frame).await.is_err() || self.is_closed() {
            return Err(self
                .shared
                .state()
                .closed
                .clone()
                .unwrap_or_else(|| RelayError::Ended(String::new())));
        }
        Ok(())
    }
}

/// Keeps the last words of the relay, which say why it ended.
async fn keep_stderr(
    mut stderr: Box<dyn AsyncRead + Send + Unpin>,
    words: Arc<Mutex<Vec<u8>>>,
    ended: CancellationToken,
) {
    let mut chunk = [0; 1024];
    while let Ok(count) = stderr.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let mut kept = words.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(chunk.iter().take(count));
        let surplus = kept.len().saturating_sub(STDERR_BYTES);
        kept.drain(..surplus);
    }
    ended.cancel();
}

/// An ended stream, with what the relay said on stderr. Waits a moment for it: it travels beside the output.
async fn with_stderr(
    error: RelayError,
    words: &Mutex<Vec<u8>>,
    ended: &CancellationToken,
) -> RelayError {
    let RelayError::Ended(said) = error else {
        return error;
    };
    let _ = tokio::time::timeout(STDERR_LIMIT, ended.cancelled()).await;
    let words = words.lock().unwrap_or_else(PoisonError::into_inner);
    let words = String::from_utf8_lossy(&words);
    let words = words.trim();
    RelayError::Ended(if words.is_empty() {
        said
    } else {
        format!("{said}: {}", clip(words))
    })
}

async fn send_all(
    mut stdin: Box<dyn AsyncWrite + Send + Unpin>,
    mut inbox: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
    traffic: Traffic,
) {
    while let Some(frame) = inbox.recv().await {
        if let Err(error) = frame::write(&mut stdin, &frame).await {
            // What can still be read says more: an answer that was on its way, or the relay's last words.
            let _ = tokio::time::timeout(STDERR_LIMIT * 2, shared.closed.cancelled()).await;
            shared.close(RelayError::Ended(format!(": {}", describe(&error))));
            return;
        }
        traffic.sent.inc_by(frame.len() as u64);
    }
}

/// Pings, and closes a stream that says nothing any more.
async fn watch(outbox: mpsc::Sender<Vec<u8>>, shared: Arc<Shared>) {
    let Ok(ping) = frame::encode(&ToAgent::Ping) else {
        return;
    };
    loop {
        let cancelled = tokio::select! {
            () = tokio::time::sleep(PING_INTERVAL) => false,
            () = shared.cancelled.notified() => true,
        };
        let since = Instant::now();
        if cancelled {
            let _ = outbox.try_send(ping.clone());
            tokio::time::sleep(CANCEL_SILENCE_LIMIT).await;
        }
        let heard = shared.state().last_heard.unwrap_or(since);
        let dead = if cancelled {
            heard < since
        } else {
            heard.elapsed() >= SILENCE_LIMIT
        };
        if dead {
            shared.close(RelayError::Silent(heard.elapsed()));
            return;
        }
        // A full outbox means that something is being sent; the next round asks again.
        let _ = outbox.try_send(ping.clone());
    }
}

async fn receive_all(
    mut stdout: Box<dyn AsyncRead + Send + Unpin>,
    shared: Arc<Shared>,
    (traffic, budget): (Traffic, Budget),
    words: Arc<Mutex<Vec<u8>>>,
    stderr_ended: CancellationToken,
    guard: Box<dyn std::any::Any + Send + Sync>,
) {
    let closed = shared.closed.clone();
    let receive = async {
        loop {
            let received = frame::read::<_, Incoming>(&mut stdout, &budget, |count| {
                traffic.received.inc_by(count as u64);
                shared.state().last_heard = Some(Instant::now());
            })
            .await;
            let (message, share) = match received {
                Ok(Some(received)) => (Ok(Some(received.message.0)), received.share),
                Ok(None) => (Ok(None), None),
                Err(error) => (Err(error), None),
            };
            let (id, reply) = match message {
                Ok(Some(ToOperator::Accepted { id })) => (id, Reply::Accepted),
                Ok(Some(ToOperator::Finished { outcome })) => {
                    let outcome = Delivered::new(Arc::unwrap_or_clone(outcome), share);
                    (outcome.id.clone(), Reply::Finished(outcome))
                }
                Ok(Some(ToOperator::Refused {
                    id,
                    reason,
                    message,
                })) => (id, Reply::Refused { reason, message }),
                Ok(Some(ToOperator::ScriptEnded { id, end })) => (id, Reply::ScriptEnded(end)),
                Ok(Some(ToOperator::Pong | ToOperator::Unknown | ToOperator::Hello { .. })) => {
                    continue;
                }
                Ok(None) => {
                    break with_stderr(RelayError::Ended(String::new()), &words, &stderr_ended)
                        .await;
                }
                // The agent keeps it; whoever asks again waits again.
                Err(error @ FrameError::Busy(_)) => {
                    break RelayError::Unavailable(describe(&error));
                }
                Err(error) => {
                    let asker = |id: &str| shared.state().pending.remove(id);
                    if let Some(asker) = error.hopeless().and_then(asker) {
                        // It would come again, as often as it is asked for.
                        let _ = asker.send(unreadable(&error));
                    }
                    if let Some(asker) = error.slow().and_then(asker) {
                        let message = describe(&error);
                        let _ = asker.send(Reply::Slow { message });
                    }
                    break RelayError::Broken(describe(&error));
                }
            };
            let mut state = shared.state();
            let ends = !matches!(reply, Reply::Accepted | Reply::ScriptEnded(_));
            if let Some(sender) = state.pending.get(&id) {
                // Nobody may be listening any more; the agent keeps the outcome until it is acknowledged.
                let _ = sender.send(reply);
            }
            if ends {
                state.pending.remove(&id);
                state.last_used = Some(Instant::now());
            }
        }
    };
    tokio::select! {
        error = receive => shared.close(error),
        () = closed.cancelled() => {}
    }
    drop(guard);
}

/// What whoever asked hears of an answer that will never be understood.
fn unreadable(error: &FrameError) -> Reply {
    let reason = match error {
        FrameError::TooDense { .. } => Reason::ResultNotStored,
        _ => Reason::InternalError,
    };
    let message = format!(
        "the sidecar answered, and its answer cannot be received: {}",
        describe(error)
    );
    Reply::Unreadable { reason, message }
}

/// An error with its causes, short enough for a message.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    clip(&crate::error::describe(error))
}

/// Foreign words, short enough for a message and without control characters.
fn clip(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(600)
        .collect()
}

#[cfg(test)]
mod tests;
