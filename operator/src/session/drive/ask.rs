//! Asking the agent: the intent is written before a script is sent, the request goes out once per stream, and what ends
//! the wait is its answer, a lost stream, a signal or the time. An agent that lets the time pass is told to stop first.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use sidewinder_crds::Phase;
use sidewinder_model::{Reason, Request};
use tokio::time::Instant;
use tracing::{info, warn};

use super::Flow;
use super::run::{Run, deadline};
use crate::error::Error;
use crate::faults::{self, Point};
use crate::inject::Refusal;
use crate::relay::connect::Connect;
use crate::relay::{Agent, RelayError, Reply};
use crate::session::plan::{Answer, Intent};

/// The pause before a stream is opened again on which something arrived that is no message.
const BROKEN_PAUSE: Duration = Duration::from_secs(1);
/// Waiting longer than this is worth a write, so that people see how far a session is. Shorter, and sessions that wait
/// because the API server is busy would give it half as much again to do.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
/// How often an answer may come too slowly: over another stream it may be faster, and after that it is not waited for.
const MAX_SLOW: u32 = 2;
/// How long an agent that let its deadline pass may take to answer after all when it is told to stop.
const LAST_CALL: Duration = Duration::from_secs(5);

impl<C: Connect> Run<'_, C> {
    pub(super) async fn record(&mut self, intent: Intent) -> Result<Flow, Error> {
        self.entry.sidecar = Some(intent.sidecar.clone());
        self.entry.attach = Some(intent.attach);
        self.entry.agent = Some(intent.instance.clone());
        self.entry.container_id = Some(intent.container_id.clone());
        self.entry.phase = Some(Phase::Running);
        let entry = self.entry.clone();
        if let Flow::Stop(outcome) = self.board.commit(self.place, entry).await? {
            return Ok(Flow::Stop(outcome));
        }
        self.observed.intent = Some(intent);
        Ok(Flow::Continue)
    }

    pub(super) async fn ask(
        &mut self,
        request: &Request,
        until: Timestamp,
        cancel: bool,
    ) -> Result<Flow, Error> {
        let Some(agent) = self.agent.clone() else {
            self.observed.link = None;
            return Ok(Flow::Continue);
        };
        if let Err(error) = self.send(&agent, request, cancel).await {
            return self.lose(error).await;
        }
        faults::at(Point::Sent).await;
        let deadline = deadline(until);
        let mut last_call: Option<Instant> = None;
        let mut progress = Some(Instant::now() + PROGRESS_AFTER);
        loop {
            let mut signals = self.signals.clone();
            let Some(replies) = &mut self.replies else {
                return Ok(Flow::Continue);
            };
            tokio::select! {
                // What the agent has said counts, however late it is looked at.
                biased;
                reply = replies.next() => match reply {
                    Ok(Reply::Accepted) => faults::at(Point::Accepted).await,
                    Ok(Reply::ScriptEnded(_)) => {}
                    Ok(Reply::Finished(outcome)) => {
                        faults::at(Point::Answered).await;
                        self.observed.answer = Some(Answer::Finished(outcome));
                        return Ok(Flow::Continue);
                    }
                    Ok(Reply::Refused { reason, message }) => {
                        self.observed.answer = Some(Answer::Refused(Refusal::new(reason, message)));
                        return Ok(Flow::Continue);
                    }
                    Ok(Reply::Unreadable { reason, message }) => {
                        self.observed.answer = Some(Answer::Unreadable(Refusal::new(reason, message)));
                        return Ok(Flow::Continue);
                    }
                    Ok(Reply::Slow { message }) => return self.came_slowly(message).await,
                    Err(error) => return self.lose(error).await,
                },
                () = tokio::time::sleep_until(last_call.unwrap_or(deadline)) => {
                    if cancel || last_call.is_some() {
                        self.observed.answer = Some(Answer::Silent);
                        return Ok(Flow::Continue);
                    }
                    warn!("the agent let the deadline pass; it is told to stop");
                    // A lost stream shows in the replies.
                    let _ = agent.cancel(&request.id).await;
                    last_call = Some(Instant::now() + LAST_CALL);
                }
                () = tokio::time::sleep_until(progress.unwrap_or(deadline)), if progress.is_some() => {
                    progress = None;
                    if let Flow::Stop(outcome) = self.progress(Phase::Running).await? {
                        return Ok(Flow::Stop(outcome));
                    }
                }
                changed = signals.changed() => {
                    if changed.is_err() {
                        self.gone = true;
                    }
                    let before = (self.gone, self.observed.cancelled_since);
                    self.take_signal();
                    if before != (self.gone, self.observed.cancelled_since) {
                        return Ok(Flow::Continue);
                    }
                }
            }
        }
    }

    /// Sends the request once per stream, and its cancellation once per stream. A cancellation goes before and after
    /// the request that fetches the outcome: before, so that what runs is stopped; after, so that a request which
    /// never arrived does not begin.
    async fn send(
        &mut self,
        agent: &Agent,
        request: &Request,
        cancel: bool,
    ) -> Result<(), RelayError> {
        if cancel {
            faults::at(Point::Cancel).await;
        }
        if self.replies.is_none() {
            if cancel {
                agent.cancel(&request.id).await?;
            }
            let now = Timestamp::now();
            self.observed.asked_since.get_or_insert(now);
            if let Some(link) = &self.observed.link {
                self.observed.asked.insert(link.sidecar.clone());
            }
            self.replies = Some(agent.ask(request).await?);
        }
        if cancel && !self.cancel_sent {
            agent.cancel(&request.id).await?;
            self.cancel_sent = true;
            faults::at(Point::CancelSent).await;
        }
        Ok(())
    }

    /// The agent has the answer, and the line to it is slow.
    async fn came_slowly(&mut self, message: String) -> Result<Flow, Error> {
        self.slow += 1;
        if self.slow < MAX_SLOW {
            return self.lose(RelayError::Broken(message)).await;
        }
        let times = self.slow;
        self.observed.answer = Some(Answer::Unreadable(Refusal::new(
            Reason::ResultNotStored,
            format!(
                "the sidecar has the answer, and the line to it is too slow to fetch it, tried {times} times: {message}"
            ),
        )));
        Ok(Flow::Continue)
    }

    /// The stream broke: look at the pod, and let the plan decide where to go.
    async fn lose(&mut self, error: RelayError) -> Result<Flow, Error> {
        info!(%error, "the stream to the sidecar was lost");
        if matches!(error, RelayError::Broken(_)) {
            // What cannot be understood is likely to come again.
            tokio::time::sleep(BROKEN_PAUSE).await;
        }
        if let Some(link) = self.observed.link.take() {
            let endpoint = self.endpoint(&link.sidecar);
            self.context.pool.forget(&endpoint);
        }
        self.agent = None;
        self.replies = None;
        self.observed.link_error = Some(error);
        self.observed.entering_since = Some(Timestamp::now());
        let pod = self.read_pod().await?;
        self.set_pod(pod);
        Ok(Flow::Continue)
    }
}
