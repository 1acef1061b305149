//! Agents in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use sidewinder_model::{
    Outcome as Answered, PROTOCOL, Reason, ScriptEnd, TargetOutcome, ToAgent, ToOperator,
};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

use crate::relay::budget::Budget;
use crate::relay::connect::{Connect, Endpoint};
use crate::relay::{RelayError, Streams, frame};

/// Agents behind relays: every exec reaches the one run of the agent.
#[derive(Clone)]
pub(crate) struct Agents {
    instance: &'static str,
    /// What each request is answered with; nothing for one that is only accepted.
    answer: Option<Reason>,
    heard: Arc<Mutex<Vec<ToAgent>>>,
    hung_up: Arc<Notify>,
    /// Whether of each outcome only a part comes.
    stalls: Arc<AtomicBool>,
    /// The text of each outcome.
    text: Arc<Mutex<String>>,
    /// How many streams end right after their first request.
    cuts: Arc<Mutex<u32>>,
    /// How many streams cannot be opened.
    away: Arc<Mutex<u32>>,
    /// Scripts that outlived their requests: their ends, or nothing where they are not known of.
    ends: Arc<Mutex<Option<Vec<ScriptEnd>>>>,
}

impl Agents {
    pub(crate) fn new(instance: &'static str, answer: Option<Reason>) -> Self {
        Self {
            instance,
            answer,
            heard: Arc::default(),
            hung_up: Arc::default(),
            stalls: Arc::default(),
            text: Arc::default(),
            cuts: Arc::default(),
            away: Arc::default(),
            ends: Arc::default(),
        }
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Vec<ToAgent>> {
        self.heard.lock().unwrap()
    }

    /// Cuts the next streams right after their first request.
    pub(crate) fn cut(&self, streams: u32) {
        *self.cuts.lock().unwrap() = streams;
    }

    /// Outcomes come in part, and no more of them.
    pub(crate) fn stall(&self) {
        self.stalls.store(true, Ordering::Relaxed);
    }

    /// What each outcome says from now on.
    pub(crate) fn say(&self, text: &str) {
        text.clone_into(&mut self.text.lock().unwrap());
    }

    /// Ends the streams that are open.
    pub(crate) fn hang_up(&self) {
        self.hung_up.notify_waiters();
    }

    /// The next streams cannot be opened.
    pub(crate) fn away(&self, streams: u32) {
        *self.away.lock().unwrap() = streams;
    }

    /// Whoever watches is told these ends.
    pub(crate) fn tell(&self, ends: Vec<ScriptEnd>) {
        *self.ends.lock().unwrap() = Some(ends);
    }

    /// Whether it was asked for this request before, with time to do it.
    fn knows(&self, id: &str) -> bool {
        self.heard().iter().any(|message| {
            matches!(message, ToAgent::Run { request } if request.id == id && request.timeout_milliseconds > 0)
        })
    }

    /// Whether a stream ends instead of answering.
    fn cuts(&self) -> bool {
        one_of(&self.cuts)
    }

    /// Fails where a stream cannot be opened.
    fn reached(&self) -> Result<(), RelayError> {
        if one_of(&self.away) {
            return Err(RelayError::Unavailable("away".to_owned()));
        }
        Ok(())
    }

    pub(crate) fn runs(&self) -> Vec<Option<String>> {
        self.heard()
            .iter()
            .filter_map(|message| match message {
                ToAgent::Run { request } => Some(request.instance.clone()),
                _ => None,
            })
            .collect()
    }
}

/// Takes one, where one is left.
fn one_of(left: &Mutex<u32>) -> bool {
    let mut left = left.lock().unwrap();
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

impl Connect for Agents {
    async fn connect(&self, _: &Endpoint) -> Result<Streams, RelayError> {
        self.reached()?;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (stdout, stdin) = tokio::io::split(ours);
        let (mut from, mut to) = tokio::io::split(theirs);
        let agents = self.clone();
        tokio::spawn(async move {
            let budget = Budget::default();
            loop {
                let received = tokio::select! {
                    received = frame::read::<_, ToAgent>(&mut from, &budget, |_| ()) => received,
                    () = agents.hung_up.notified() => return,
                };
                let Ok(Some(received)) = received else {
                    return;
                };
                let message = received.message;
                if !matches!(message, ToAgent::Ping) {
                    agents.heard().push(message.clone());
                }
                let finished = |id: String, reason| ToOperator::Finished {
                    outcome: Answered {
                        id,
                        instance: agents.instance.into(),
                        targets: vec![TargetOutcome {
                            text: agents.text.lock().unwrap().clone(),
                            ..TargetOutcome::failed(reason, "")
                        }],
                    }
                    .into(),
                };
                let reply = match message {
                    ToAgent::Hello { .. } => ToOperator::Hello {
                        protocol: PROTOCOL,
                        version: "0.1.0".into(),
                        instance: agents.instance.into(),
                    },
                    ToAgent::Run { request } => {
                        if agents.cuts() {
                            return;
                        }
                        match agents.answer {
                            // As the real ones: without time nothing new begins.
                            _ if request.timeout_milliseconds == 0
                                && !agents.knows(&request.id) =>
                            {
                                finished(request.id, Reason::Timeout)
                            }
                            Some(reason) => finished(request.id, reason),
                            None => ToOperator::Accepted { id: request.id },
                        }
                    }
                    ToAgent::Cancel { id } => finished(id, Reason::Cancelled),
                    ToAgent::Watch { id } => {
                        if agents.cuts() {
                            return;
                        }
                        let ends = agents.ends.lock().unwrap().clone();
                        for end in ends.iter().flatten() {
                            let told = ToOperator::ScriptEnded {
                                id: id.clone(),
                                end: end.clone(),
                            };
                            let frame = frame::encode(&told).unwrap();
                            if to.write_all(&frame).await.is_err() {
                                return;
                            }
                        }
                        if ends.is_some() {
                            continue;
                        }
                        ToOperator::Refused {
                            id,
                            reason: Reason::SidecarLost,
                            message: "it knows of no such script".into(),
                        }
                    }
                    ToAgent::Ping => ToOperator::Pong,
                    ToAgent::Acknowledge { .. } | ToAgent::Unknown => continue,
                };
                let mut frame = frame::encode(&reply).unwrap();
                if matches!(reply, ToOperator::Finished { .. })
                    && agents.stalls.load(Ordering::Relaxed)
                {
                    frame.pop();
                    let _ = to.write_all(&frame).await;
                    // A pong would be taken for the rest.
                    return std::future::pending().await;
                }
                if to.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
        Ok(Streams {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(tokio::io::empty()),
            guard: Box::new(()),
        })
    }
}
