//! `/healthz`, `/readyz` and `/metrics`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::time::{Instant, MissedTickBehavior};

use crate::metrics::Metrics;

/// How often the main loop shows that it runs.
const BEAT: Duration = Duration::from_secs(1);
/// After how long without a sign the main loop counts as stuck. The chart's liveness probe waits some more.
const STUCK: Duration = Duration::from_secs(30);

/// Whether the main loop still turns. A replica on standby turns, too.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<Instant>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Health {
    /// Runs `work` and shows that it is being run. Both are one task: what blocks `work` blocks the sign.
    pub async fn beating<T>(&self, work: impl Future<Output = T>) -> T {
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let beats = async {
            loop {
                ticks.tick().await;
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
        };
        tokio::select! {
            result = work => result,
            () = beats => unreachable!("it beats for ever"),
        }
    }

    fn silence(&self) -> Duration {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }
}

/// Whether the replica may serve: true once it runs, also on standby, and false while it shuts down.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Changes it.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Reads it.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The routes.
pub fn router(metrics: Metrics, readiness: Readiness, health: Health) -> Router {
    Router::new()
        .route("/healthz", get(healthy).with_state(health))
        .route("/readyz", get(ready).with_state(readiness))
        .route("/metrics", get(scrape).with_state(metrics))
}

/// Serves the routes on `listener` until `shutdown` resolves.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown)
        .await
}

async fn healthy(State(health): State<Health>) -> Response {
    let silence = health.silence();
    if silence < STUCK {
        return "ok\n".into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("the main loop has not run for {} s\n", silence.as_secs()),
    )
        .into_response()
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    if readiness.get() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

async fn scrape(State(metrics): State<Metrics>) -> Response {
    match metrics.encode() {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn get(router: &Router, path: &str) -> Response {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap()
    }

    async fn text(response: Response) -> String {
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn readiness_follows_the_replica_and_health_does_not() {
        let readiness = Readiness::default();
        let router = router(Metrics::new(), readiness.clone(), Health::default());
        let status = async |path| get(&router, path).await.status();
        assert_eq!(status("/healthz").await, StatusCode::OK);
        assert_eq!(status("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        readiness.set(true);
        assert_eq!(status("/readyz").await, StatusCode::OK);
        assert_eq!(status("/metrics").await, StatusCode::OK);
        assert_eq!(status("/other").await, StatusCode::NOT_FOUND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_main_loop_that_does_not_turn_is_unhealthy_and_one_that_waits_is_not() {
        let health = Health::default();
        let router = router(Metrics::new(), Readiness::default(), health.clone());
        // Waits for an hour, as a standby replica does.
        health
            .beating(tokio::time::sleep(Duration::from_hours(1)))
            .await;
        assert_eq!(get(&router, "/healthz").await.status(), StatusCode::OK);
        // Nobody turns it any more.
        tokio::time::advance(STUCK).await;
        let answer = get(&router, "/healthz").await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        // Its last sign is up to a second older.
        let words = text(answer).await;
        assert!(
            words.starts_with("the main loop has not run for 3"),
            "{words}"
        );
    }

    #[tokio::test]
    async fn a_scrape_names_its_format_and_ends_as_that_format_demands() {
        let router = router(Metrics::new(), Readiness::default(), Health::default());
        let answer = get(&router, "/metrics").await;
        assert_eq!(
            answer.headers()[header::CONTENT_TYPE],
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        );
        assert!(text(answer).await.ends_with("# EOF\n"));
    }
}
