//! How often the operator asks the API server at most: a limit of its own, so that no number of sessions makes it the
//! client that the others have to wait behind. The server's own limits (API Priority and Fairness) stand above it.
//!
//! Requests go in the order in which they come, so that none waits for ever behind newer ones: each wait counts within the
//! limit that its caller sets.
//!
//! Two are not counted: the lease, since a leader that waits for itself would lose it, and the watch of the settings, since
//! the kill switch must reach an operator that is busy.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::{Request, Response};
use kube::client::Body;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Mutex;
use tower::{BoxError, Layer, Service, ServiceExt as _};

/// The fewest requests each second, and at once, that the operator can work with: each waits within a limit of seconds,
/// and those that come together are some per session.
pub const FEWEST: u32 = 20;

/// Whose requests are never held back.
const LEASES: &str = "/apis/coordination.k8s.io/";

/// Whether a request is one that is never held back.
fn is_exempt(path: &str) -> bool {
    if path.starts_with(LEASES) {
        return true;
    }
    // Only the settings are listed and watched; a script's ConfigMap is read by name.
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    matches!(words[..], ["api", "v1", "namespaces", _, "configmaps"])
}

/// A limit on requests: each takes one of so many that come each second, and `burst` of them may be saved. Clones share
/// the limit.
#[derive(Clone, Debug)]
pub struct Throttle {
    limiter: Arc<DefaultDirectRateLimiter>,
    /// Held by whoever is first among those that wait. It is fair: the others follow in their order.
    line: Arc<Mutex<()>>,
    waited: Counter,
}

impl Throttle {
    /// At most so many requests each second for long, and `burst` at once. `waited` counts those that were held back.
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32, waited: Counter) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Self {
            limiter: Arc::new(RateLimiter::direct(quota)),
            line: Arc::default(),
            waited,
        }
    }

    /// Waits until one more request may be sent.
    async fn turn(&self) {
        // The limiter itself keeps no order: all that sleep there wake together, and whoever comes then is as good.
        let first = self.line.try_lock();
        if first.is_ok() && self.limiter.check().is_ok() {
            return;
        }
        self.waited.inc();
        let _first = match first {
            Ok(first) => first,
            Err(_) => self.line.lock().await,
        };
        self.limiter.until_ready().await;
    }
}

impl<S> Layer<S> for Throttle {
    type Service = Throttled<S>;

    fn layer(&self, inner: S) -> Throttled<S> {
        Throttled {
            inner,
            throttle: self.clone(),
        }
    }
}

/// A service that is called no more often than its limit allows.
#[derive(Clone, Debug)]
pub struct Throttled<S> {
    inner: S,
    throttle: Throttle,
}

impl<S, B> Service<Request<Body>> for Throttled<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Each request waits by itself: a place that is held here would be held before those of the lease.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.inner.clone();
        let throttle = self.throttle.clone();
        Box::pin(async move {
            if !is_exempt(request.uri().path()) {
                throttle.turn().await;
            }
            inner.oneshot(request).await
        })
    }
}

/// A limit that no test reaches.
#[cfg(test)]
pub(crate) fn unlimited() -> Throttle {
    Throttle::new(NonZeroU32::MAX, NonZeroU32::MAX, Counter::default())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use futures::StreamExt as _;
    use tower::service_fn;

    use super::*;

    #[test]
    fn the_lease_and_the_settings_alone_are_not_held_back() {
        for path in [
            "/apis/coordination.k8s.io/v1/namespaces/a/leases/b",
            "/api/v1/namespaces/sidewinder-system/configmaps",
        ] {
            assert!(is_exempt(path), "{path}");
        }
        for path in [
            "/api/v1/namespaces/a/configmaps/scripts",
            "/api/v1/namespaces/configmaps",
            "/api/v1/namespaces/a/pods/configmaps",
            "/api/v1/configmaps",
            "/api/v1/namespaces/a/pods",
        ] {
            assert!(!is_exempt(path), "{path}");
        }
    }

    #[tokio::test]
    async fn requests_go_in_the_order_in_which_they_come() {
        let throttle = Throttle::new(number(20), number(1), Counter::default());
        throttle.turn().await;
        let gone = std::sync::Mutex::new(Vec::new());
        let waiting: Vec<_> = (0..8)
            .map(|place| {
                let (throttle, gone) = (&throttle, &gone);
                async move {
                    throttle.turn().await;
                    gone.lock().unwrap().push(place);
                }
            })
            .collect();
        let mut waiting: futures::stream::FuturesUnordered<_> = waiting.into_iter().collect();
        // All of them stand in line.
        assert!(futures::poll!(waiting.next()).is_pending());
        // One that gives up holds nobody back.
        let given_up = tokio::time::timeout(Duration::from_millis(1), throttle.turn());
        assert!(given_up.await.is_err());
        // Whoever comes at the moment at which one may go is behind them all the same.
        std::thread::sleep(Duration::from_millis(60));
        let late = async {
            throttle.turn().await;
            gone.lock().unwrap().push(8);
        };
        let all = async { while waiting.next().await.is_some() {} };
        tokio::join!(late, all);
        assert!(gone.lock().unwrap().iter().copied().eq(0..9));
    }

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[tokio::test]
    async fn no_more_than_the_rate_and_the_burst_and_the_lease_at_once() {
        let sent = Arc::new(AtomicUsize::new(0));
        let waited = Counter::default();
        let counting = Arc::clone(&sent);
        let service =
            Throttle::new(number(20), number(4), waited.clone()).layer(tower::util::MapErr::new(
                service_fn(move |_: Request<Body>| {
                    counting.fetch_add(1, Ordering::Relaxed);
                    async { Ok::<_, Infallible>(Response::new(())) }
                }),
                |never| match never {},
            ));
        let ask = |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            service.clone().oneshot(request)
        };
        let began = Instant::now();
        for _ in 0..4 {
            ask("/api/v1/pods").await.unwrap();
        }
        assert_eq!(waited.get(), 0);
        let fifth = tokio::spawn(ask("/api/v1/pods"));
        ask("/apis/coordination.k8s.io/v1/namespaces/a/leases/b")
            .await
            .unwrap();
        assert_eq!(waited.get(), 0, "a lease waits for nobody");
        fifth.await.unwrap().unwrap();
        for _ in 0..4 {
            ask("/api/v1/pods").await.unwrap();
        }
        // Four were saved; each of the other five took a twentieth of a second to come.
        assert!(began.elapsed() >= Duration::from_millis(240));
        assert!(waited.get() >= 4, "{} waited", waited.get());
        assert_eq!(sent.load(Ordering::Relaxed), 10);
    }
}
