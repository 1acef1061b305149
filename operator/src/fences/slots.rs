//! How many targets are worked on at once in one pod and on one node; more wait in turn.
//!
//! Memory is bounded by who works or waits: a pod or node that nobody uses any more leaves nothing behind. Waiting has no
//! limit of its own: whoever waits has one, and dropping the wait gives up the place in the queue.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many sidecars are brought up on one node at once. A kubelet starts a few containers as fast as one; many at the same
/// time keep each other from their processors until none is up in time.
const ENTERING_PER_NODE: usize = 8;

/// The semaphores of the pods and of the nodes that are in use.
#[derive(Clone, Debug)]
pub struct Slots {
    pods: Keyed,
    nodes: Keyed,
    entering: Keyed,
}

/// A place among those whose sidecar is brought up on a node, until it is dropped.
#[derive(Debug)]
pub struct Entering {
    _place: Place,
}

/// A place in a pod and on a node, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    _node: Option<Place>,
    _pod: Place,
}

impl Slots {
    /// At most `per_pod` at once in a pod, and `per_node` on a node; at least one.
    pub fn new(per_pod: usize, per_node: usize) -> Self {
        Self {
            pods: Keyed::new(per_pod),
            nodes: Keyed::new(per_node),
            entering: Keyed::new(ENTERING_PER_NODE),
        }
    }

    /// Waits until one more sidecar may be brought up on the node. First come, first served.
    pub async fn enter(&self, node: &str) -> Entering {
        Entering {
            _place: self.entering.acquire(node).await,
        }
    }

    /// Waits for a place in the pod with this UID, and then on its node where one is known. First come, first served; the
    /// order keeps those who wait for a crowded pod from holding places on its node, and nobody can wait for each other.
    pub async fn acquire(&self, node: Option<&str>, pod_uid: &str) -> Permit {
        let pod = self.pods.acquire(pod_uid).await;
        let node = match node {
            Some(node) => Some(self.nodes.acquire(node).await),
            None => None,
        };
        Permit {
            _node: node,
            _pod: pod,
        }
    }

    /// How many pods and nodes are in use or waited for.
    pub fn in_use(&self) -> (usize, usize) {
        (self.pods.lock().len(), self.nodes.lock().len())
    }
}

/// The semaphore of one key, and how many hold or wait for it.
#[derive(Debug)]
struct Used {
    semaphore: Arc<Semaphore>,
    users: usize,
}

#[derive(Clone, Debug)]
struct Keyed {
    limit: usize,
    used: Arc<Mutex<HashMap<String, Used>>>,
}

/// Counts as a user of its key from before the wait until it is dropped.
#[derive(Debug)]
struct User {
    keyed: Keyed,
    key: String,
}

/// The permit is given back before its user leaves: fields are dropped in this order.
#[derive(Debug)]
struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    _user: User,
}

impl Keyed {
    fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            used: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Used>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn acquire(&self, key: &str) -> Place {
        let (semaphore, user) = self.join(key);
        // It is never closed; were it, nobody would be kept waiting for ever.
        let permit = semaphore.acquire_owned().await.ok();
        Place {
            _permit: permit,
            _user: user,
        }
    }

    fn join(&self, key: &str) -> (Arc<Semaphore>, User) {
        let user = User {
            keyed: self.clone(),
            key: key.to_owned(),
        };
        let mut all = self.lock();
        let entry = all.entry(key.to_owned()).or_insert_with(|| Used {
            semaphore: Arc::new(Semaphore::new(self.limit)),
            users: 0,
        });
        entry.users += 1;
        (Arc::clone(&entry.semaphore), user)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let key = std::mem::take(&mut self.key);
        if let Entry::Occupied(mut entry) = self.keyed.lock().entry(key) {
            let users = &mut entry.get_mut().users;
            *users = users.saturating_sub(1);
            if *users == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn no_more_than_the_limit_at_once_and_nothing_stays() {
        let slots = Slots::new(4, 8);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for number in 0..200 {
            let (slots, now, most) = (slots.clone(), Arc::clone(&now), Arc::clone(&most));
            tasks.spawn(async move {
                let pod = format!("pod-{}", number % 5);
                let _permit = slots.acquire(Some("node"), &pod).await;
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        // The node's eight are fewer than the twenty of five pods, and are used up.
        assert_eq!(most.load(Ordering::SeqCst), 8);
        assert_eq!(slots.in_use(), (0, 0));
    }

    #[tokio::test]
    async fn first_come_first_served_and_one_pod_does_not_wait_for_another() {
        let slots = Slots::new(1, 8);
        let first = slots.acquire(Some("node"), "a").await;
        let mut second = Box::pin(slots.acquire(Some("node"), "a"));
        let mut third = Box::pin(slots.acquire(Some("node"), "a"));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        let other = slots.acquire(Some("node"), "b").now_or_never();
        assert!(other.is_some());
        drop(first);
        assert!(
            third.as_mut().now_or_never().is_none(),
            "it jumped the queue"
        );
        let second = second.now_or_never().unwrap();
        drop(second);
        assert!(third.now_or_never().is_some());
    }

    #[tokio::test]
    async fn whoever_gives_up_waiting_leaves_nothing() {
        let slots = Slots::new(1, 1);
        let held = slots.acquire(Some("node"), "a").await;
        {
            let mut in_pod = Box::pin(slots.acquire(Some("node"), "a"));
            let mut on_node = Box::pin(slots.acquire(Some("node"), "b"));
            assert!(in_pod.as_mut().now_or_never().is_none());
            assert!(on_node.as_mut().now_or_never().is_none());
            assert_eq!(slots.in_use(), (2, 1));
        }
        assert_eq!(slots.in_use(), (1, 1));
        drop(held);
        assert_eq!(slots.in_use(), (0, 0));
        let again = slots.acquire(Some("node"), "a").now_or_never();
        assert!(again.is_some());
    }

    #[tokio::test]
    async fn a_pod_on_no_node_takes_a_place_in_the_pod_alone() {
        let slots = Slots::new(1, 1);
        let _first = slots.acquire(None, "a").await;
        assert!(slots.acquire(None, "b").now_or_never().is_some());
        assert!(slots.acquire(None, "a").now_or_never().is_none());
    }

    #[tokio::test]
    async fn so_many_sidecars_come_up_on_a_node_at_once_and_the_next_one_when_one_is_up() {
        let slots = Slots::new(1, 1);
        let mut places = Vec::new();
        for _ in 0..ENTERING_PER_NODE {
            places.push(slots.enter("node").now_or_never().unwrap());
        }
        let next = slots.enter("node");
        tokio::pin!(next);
        assert!(next.as_mut().now_or_never().is_none());
        assert!(slots.enter("other").now_or_never().is_some());
        places.pop();
        assert!(next.as_mut().now_or_never().is_some());
    }
}
