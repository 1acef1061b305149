//! Storing one target's whole outcome in Secrets. It is written on a thread of its own and stored part by part: while a
//! part is on its way to the API server the next one is being filled, and no more of it is in memory.

use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use sidewinder_crds::{DebugSession, DebugSessionStatus, ResultRef};
use tokio::sync::mpsc;
use tracing::warn;

use super::result::{self, Entry, Whole, spill};
use super::{Context, apply};
use crate::error::{Error, describe};
use crate::relay::budget::Budget;

/// Why an outcome could not be stored. What was stored of it before is the session's and goes with it.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// A Secret was refused.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The outcome could not be written.
    #[error("failed to write the result")]
    Write(#[from] std::io::Error),
}

impl NotStored {
    /// Why, for the status: the API server's own words where it said something.
    pub fn words(&self) -> String {
        match self {
            Self::Refused(error) => error
                .api()
                .map_or_else(|| describe(self), |status| status.message.clone()),
            Self::Write(_) => describe(self),
        }
    }
}

/// What it means that the API server does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Nothing is written, and the agents keep what they have: it is tried again.
    Fails,
    /// It was tried often enough: the status says so.
    IsSaid,
}

/// Chooses the entries of `pods` that a status may have, makes it fit, of which `base` is the rest, and stores the whole
/// outcomes of which something was cut or kept back.
///
/// # Errors
/// When nobody refused one, but the API server stays away, and that is not to be said.
pub async fn fit_and_store<C>(
    context: &Context<C>,
    session: &DebugSession,
    base: &DebugSessionStatus,
    mut pods: Vec<&mut [Entry]>,
    silence: Silence,
) -> Result<(), Error> {
    result::choose(&mut pods);
    let all = pods.into_iter().flatten();
    let mut entries: Vec<_> = all.filter(|entry| !entry.left_out).collect();
    result::fit(base, &mut entries);
    for entry in entries.iter_mut().filter(|entry| entry.to_store) {
        entry.to_store = false;
        let Some(outcome) = entry.outcome.take() else {
            continue;
        };
        let limit = context.settings.result_max_bytes;
        let budget = context.pool.budget();
        match store(&context.client, session, &outcome, limit, budget).await {
            Ok(reference) => {
                let size = u32::try_from(reference.size_bytes).unwrap_or(u32::MAX);
                context.metrics.result_bytes.observe(f64::from(size));
                entry.status.result = Some(reference);
            }
            Err(NotStored::Refused(error)) if silence == Silence::Fails && error.is_silence() => {
                return Err(error);
            }
            Err(error) => {
                warn!(error = %describe(&error), "a result could not be stored");
                entry.not_stored = Some(error.words());
            }
        }
    }
    result::fit_stored(base, &mut entries);
    Ok(())
}

/// Stores the whole answer of one process, at most `limit` bytes of JSON. May be repeated: the
/// same outcome is stored once. A dropped call stops at the part it has come to.
///
/// # Errors
/// When the API server does not take a part.
pub async fn store(
    client: &Client,
    session: &DebugSession,
    whole: &Whole,
    limit: usize,
    budget: &Budget,
) -> Result<ResultRef, NotStored> {
    let _place = if whole.outcome.is_large() {
        budget.place_to_store().await
    } else {
        None
    };
    let (parts, mut inbox) = mpsc::channel(1);
    let Whole { outcome, place } = whole.clone();
    // It ends when `inbox` is dropped, at the latest.
    let writer = tokio::task::spawn_blocking(move || {
        let target = outcome
            .targets
            .get(place)
            .ok_or_else(|| std::io::Error::other("there is no such answer"))?;
        spill::write(target, limit, |part| {
            parts
                .blocking_send(part)
                .map_err(|_| std::io::ErrorKind::BrokenPipe.into())
        })
    });
    let mut references = Vec::new();
    while let Some(bytes) = inbox.recv().await {
        let (secret, reference): (Secret, _) = spill::part(session, references.len(), bytes);
        apply::secret(client, secret).await?;
        references.push(reference);
    }
    let written = writer.await.map_err(std::io::Error::other)??;
    Ok(spill::reference(written, references))
}

#[cfg(test)]
mod tests;
