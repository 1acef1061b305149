//! How much memory outcomes may take, all sessions together. Whoever receives a large message takes its share before
//! reading on, and it is given back when the last copy of the outcome is dropped: large outcomes wait for each other
//! instead of filling the operator's memory, and while they wait they stand in the pods, whose agents keep them.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use sidewinder_model::Outcome;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What outcomes may take in memory unless a setting says otherwise, in bytes.
pub const DEFAULT_BYTES: usize = 128 * 1024 * 1024;
/// How much of the budget one permit of the semaphore is, whose permits are counted in 32 bits.
const UNIT: usize = 1024;
/// How many large outcomes are stored at once: each takes a compressor and the parts on their way, about 12 MiB.
const STORES: usize = 4;
/// How long a message waits for its share, a little less than an agent waits for a reader. Then its stream is closed:
/// the agent keeps the outcome, and whoever still wants it asks again, until the session's own deadline.
const WAIT_LIMIT: Duration = Duration::from_secs(45);
/// How often a stream that waits counts as alive: nobody reads from it meanwhile.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// The memory that is there for outcomes. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: usize,
    memory: Arc<Semaphore>,
    dense: Arc<Semaphore>,
    stores: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(DEFAULT_BYTES)
    }
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes,
            memory: Arc::new(Semaphore::new(units(bytes) as usize)),
            dense: Arc::new(Semaphore::new(1)),
            stores: Arc::new(Semaphore::new(STORES)),
        }
    }

    /// The whole of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A share of `bytes`, at most the whole budget: a message that is larger than it takes all of it alone. `None`
    /// when there was none for too long.
    pub async fn share(&self, bytes: usize, alive: impl FnMut()) -> Option<Share> {
        let permits = units(bytes.min(self.bytes));
        let memory = Arc::clone(&self.memory).acquire_many_owned(permits);
        Some(Share(vec![wait(memory, alive).await?]))
    }

    /// Lets one message at a time take up to the whole budget beyond its share. Nobody who has this waits for anything
    /// else, so it cannot end in a deadlock. `None` when somebody else had it for too long.
    pub(super) async fn widen(&self, share: Option<Share>, alive: impl FnMut()) -> Option<Share> {
        let dense = wait(Arc::clone(&self.dense).acquire_owned(), alive).await?;
        let Share(mut permits) = share.unwrap_or(Share(Vec::new()));
        permits.push(dense);
        Some(Share(permits))
    }

    /// A place among those that store a large outcome.
    pub async fn place_to_store(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.stores).acquire_owned().await.ok()
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).max(1))
        .unwrap_or(u32::MAX)
        .min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX))
}

async fn wait<E>(
    permit: impl Future<Output = Result<OwnedSemaphorePermit, E>>,
    mut alive: impl FnMut(),
) -> Option<OwnedSemaphorePermit> {
    let mut permit = std::pin::pin!(permit);
    let until = tokio::time::Instant::now() + WAIT_LIMIT;
    while tokio::time::Instant::now() < until {
        // In this order: a permit that is there counts, however late it is looked at.
        tokio::select! {
            biased;
            permit = &mut permit => return permit.ok(),
            () = tokio::time::sleep(SIGN_OF_LIFE) => alive(),
        }
    }
    None
}

/// Memory that a message may take; given back when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Share(Vec<OwnedSemaphorePermit>);

/// An outcome as it came from an agent, with its share of the memory. Clones are the same outcome.
#[derive(Clone, Debug)]
pub struct Delivered(Arc<Held>);

#[derive(Debug)]
struct Held {
    // Dropped in this order.
    outcome: Outcome,
    share: Option<Share>,
}

impl Delivered {
    /// An outcome that holds its share until the last clone is dropped.
    pub fn new(outcome: Outcome, share: Option<Share>) -> Self {
        Self(Arc::new(Held { outcome, share }))
    }

    /// Whether somebody else holds it, too.
    #[cfg(test)]
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Whether it came as a large message.
    pub fn is_large(&self) -> bool {
        self.0.share.is_some()
    }
}

impl From<Outcome> for Delivered {
    fn from(outcome: Outcome) -> Self {
        Self::new(outcome, None)
    }
}

impl Deref for Delivered {
    type Target = Outcome;

    fn deref(&self) -> &Outcome {
        &self.0.outcome
    }
}

impl PartialEq for Delivered {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn shares_wait_for_each_other_and_one_that_is_too_large_takes_all() {
        let budget = Budget::new(100 * UNIT);
        let all = budget.share(usize::MAX, || ()).await.unwrap();
        assert!(budget.share(UNIT, || ()).now_or_never().is_none());
        drop(all);
        let first = budget.share(60 * UNIT, || ()).await.unwrap();
        let outcome = Delivered::new(Outcome::default(), Some(first));
        let copy = outcome.clone();
        drop(outcome);
        assert!(budget.share(60 * UNIT, || ()).now_or_never().is_none());
        drop(copy);
        assert!(budget.share(60 * UNIT, || ()).now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_at_a_time_goes_beyond_its_share() {
        let budget = Budget::new(100 * UNIT);
        let share = budget.share(UNIT, || ()).await;
        let wide = budget.widen(share, || ()).await.unwrap();
        assert!(budget.widen(None, || ()).now_or_never().is_none());
        drop(wide);
        assert!(budget.widen(None, || ()).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_has_an_end_and_shows_signs_of_life() {
        let budget = Budget::new(UNIT);
        let all = budget.share(UNIT, || ()).await;
        let mut signs = 0;
        let began = tokio::time::Instant::now();
        assert!(budget.share(1, || signs += 1).await.is_none());
        assert_eq!(began.elapsed(), WAIT_LIMIT);
        assert_eq!(signs, 9);
        drop(all);
    }
}
