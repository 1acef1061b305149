//! The controller of sessions: watches them, and keeps one task at work on each that has not ended.
//!
//! The controller's own reconciler only hands over: it starts a session's task and tells a running task what changed.
//! A task lasts until its session's end, so nothing is polled. Sessions that have ended are in no cache.

pub mod afterwards;
pub mod apply;
mod controller;
pub mod drive;
mod finished;
mod light;
pub mod observe;
pub mod plan;
pub mod result;
pub mod store;
mod supervisor;
pub mod targets;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;
use tokio::time::Instant;

pub use self::controller::run;
use self::result::Sensitive;
use crate::events::Events;
use crate::fences::Fences;
use crate::inject::{Refusal, SidecarImage};
use crate::metrics::Metrics;
use crate::relay::pool::Pool;

/// How long a refusal by admission is believed before it is tried again.
const REFUSAL_LIMIT: Duration = Duration::from_mins(1);
/// How many refusals are remembered.
const MAX_REFUSALS: usize = 4096;

/// What the operator's configuration says about sessions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sidecar.
    pub sidecar: SidecarImage,
    /// Where script output and values may appear.
    pub sensitive: Sensitive,
    /// The largest result of one process, in bytes of JSON.
    pub result_max_bytes: usize,
    /// How many sessions are worked on at once.
    pub max_concurrent: usize,
}

/// What every session's task needs.
pub struct Context<C> {
    /// The API server.
    pub client: Client,
    /// Open streams.
    pub pool: Pool<C>,
    /// Settings.
    pub settings: Settings,
    /// Metrics.
    pub metrics: Metrics,
    /// Events.
    pub events: Events,
    /// Recent refusals.
    pub refusals: Refusals,
    /// What refuses sessions.
    pub fences: Fences,
}

/// Pods in which admission refused the preferred way a moment ago.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<String, (Refusal, Instant)>>);

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Refusal, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a refusal for the pod with this UID.
    pub fn remember(&self, pod_uid: &str, refusal: &Refusal) {
        let mut known = self.lock();
        if known.len() >= MAX_REFUSALS {
            known.retain(|_, (_, since)| since.elapsed() < REFUSAL_LIMIT);
        }
        if known.len() < MAX_REFUSALS {
            known.insert(pod_uid.to_owned(), (refusal.clone(), Instant::now()));
        }
    }

    /// The refusal for the pod with this UID, where it is fresh.
    pub fn recall(&self, pod_uid: &str) -> Option<Refusal> {
        self.lock()
            .get(pod_uid)
            .filter(|(_, since)| since.elapsed() < REFUSAL_LIMIT)
            .map(|(refusal, _)| refusal.clone())
    }
}
