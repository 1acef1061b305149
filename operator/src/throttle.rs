//! How often the operator asks the API server at most: a limit of its own, so that no number of sessions makes it the
//! client that the others have to wait behind. The server's own limits (API Priority and Fairness) stand above it.
//!
//! The lease is not counted: a leader that waits for itself would lose it.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::{Request, Response};
use kube::client::Body;
use prometheus_client::metrics::counter::Counter;
use tower::{BoxError, Layer, Service, ServiceExt as _};

/// Whose requests are never held back.
const LEASES: &str = "/apis/coordination.k8s.io/";

/// A limit on requests: each takes one of so many that come each second, and `burst` of them may be saved. Clones share
/// the limit.
#[derive(Clone, Debug)]
pub struct Throttle {
    limiter: Arc<DefaultDirectRateLimiter>,
    waited: Counter,
}

impl Throttle {
    /// At most so many requests each second for long, and `burst` at once. `waited` counts those that were held back.
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32, waited: Counter) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Self {
            limiter: Arc::new(RateLimiter::direct(quota)),
            waited,
        }
    }

    /// Waits until one more request may be sent.
    async fn turn(&self) {
        if self.limiter.check().is_err() {
            self.waited.inc();
            self.limiter.until_ready().await;
        }
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
            if !request.uri().path().starts_with(LEASES) {
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

    use tower::service_fn;

    use super::*;

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
