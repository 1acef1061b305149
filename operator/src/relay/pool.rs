//! Open streams, kept between requests on the same sidecar.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::budget::Budget;
use super::connect::{Connect, Endpoint};
use super::{Agent, RelayError};
use crate::metrics::Traffic;

/// How long a stream that nobody uses stays open.
pub const IDLE_LIMIT: Duration = Duration::from_mins(5);
/// How many streams stay open at most; each costs a connection, a process in the pod and its buffers.
pub const MAX_OPEN: usize = 256;

type Key = (String, String);
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Agent>>>>;

/// Open streams by pod UID and container.
pub struct Pool<C> {
    connector: C,
    traffic: Traffic,
    budget: Budget,
    slots: Mutex<HashMap<Key, Slot>>,
}

impl<C> Pool<C> {
    /// The memory that is there for what agents answer.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

impl<C: Connect> Pool<C> {
    /// An empty pool that opens streams with `connector`.
    pub fn new(connector: C, traffic: Traffic) -> Self {
        Self {
            connector,
            traffic,
            budget: Budget::default(),
            slots: Mutex::default(),
        }
    }

    /// The same pool with another budget for what agents answer.
    #[must_use]
    pub fn within(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open stream to the agent at `endpoint`, or a new one. Callers for the same endpoint share one attempt.
    ///
    /// # Errors
    /// When the relay cannot be started or the agent does not answer; nothing is retried here.
    pub async fn agent(&self, endpoint: &Endpoint) -> Result<Arc<Agent>, RelayError> {
        let key = (endpoint.pod_uid.clone(), endpoint.container.clone());
        let slot = Arc::clone(self.slots().entry(key).or_default());
        let mut open = slot.lock().await;
        if let Some(agent) = open.as_ref().filter(|agent| !agent.is_closed()) {
            return Ok(Arc::clone(agent));
        }
        *open = None;
        let streams = self.connector.connect(endpoint).await?;
        let agent =
            Arc::new(Agent::open(streams, self.traffic.clone(), self.budget.clone()).await?);
        *open = Some(Arc::clone(&agent));
        Ok(agent)
    }

    /// Forgets a stream, so that the next request opens another one.
    pub fn forget(&self, endpoint: &Endpoint) {
        self.slots()
            .remove(&(endpoint.pod_uid.clone(), endpoint.container.clone()));
    }

    /// Closes streams that have ended, that nobody used for [`IDLE_LIMIT`], and the longest unused above [`MAX_OPEN`].
    pub fn sweep(&self) {
        let mut slots = self.slots();
        let mut idle: Vec<(Instant, Key)> = Vec::new();
        slots.retain(|key, slot| {
            // A slot that is being opened, or that a caller holds, stays.
            let Ok(open) = slot.try_lock() else {
                return true;
            };
            let Some(agent) = open.as_ref().filter(|agent| !agent.is_closed()) else {
                return Arc::strong_count(slot) > 1;
            };
            if agent.is_busy() || Arc::strong_count(agent) > 1 {
                return true;
            }
            let used = agent.last_used().unwrap_or_else(Instant::now);
            idle.push((used, key.clone()));
            used.elapsed() < IDLE_LIMIT
        });
        let surplus = slots.len().saturating_sub(MAX_OPEN);
        idle.sort();
        for (_, key) in idle.into_iter().take(surplus) {
            slots.remove(&key);
        }
    }

    /// How many streams the pool knows.
    pub fn len(&self) -> usize {
        self.slots().len()
    }

    /// Whether no stream is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
