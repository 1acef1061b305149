use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body as Answered;
use axum::response::IntoResponse;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api as KubeApi, WatchParams};
use tokio::net::TcpListener;

use super::*;
use crate::metrics::Metrics;
use crate::throttle::unlimited;

fn call(method: &str, path: &str) -> (&'static str, &'static str) {
    let call = Call::of(&method.parse().unwrap(), &path.parse().unwrap());
    (call.verb, call.resource)
}

#[test]
fn a_request_is_known_by_its_path() {
    for (method, path, verb, resource) in [
        ("GET", "/api/v1/pods", "list", "pods"),
        (
            "GET",
            "/api/v1/pods?&watch=true&resourceVersion=1",
            "watch",
            "pods",
        ),
        ("GET", "/api/v1/namespaces/a/pods/b", "get", "pods"),
        (
            "PATCH",
            "/api/v1/namespaces/a/pods/b/ephemeralcontainers?&dryRun=All",
            "patch",
            "pods/ephemeralcontainers",
        ),
        (
            "GET",
            "/api/v1/namespaces/a/pods/b/exec?command=x",
            "connect",
            "pods/exec",
        ),
        (
            "POST",
            "/api/v1/namespaces/a/pods/b/exec",
            "connect",
            "pods/exec",
        ),
        ("POST", "/api/v1/namespaces/a/secrets", "create", "secrets"),
        (
            "GET",
            "/api/v1/namespaces/a/configmaps/b",
            "get",
            "configmaps",
        ),
        ("GET", "/api/v1/namespaces/a", "get", "namespaces"),
        (
            "GET",
            "/apis/sidewinder.dev/v1alpha1/debugsessions?watch=1",
            "watch",
            "debugsessions",
        ),
        (
            "PATCH",
            "/apis/sidewinder.dev/v1alpha1/namespaces/a/debugsessions/b/status",
            "patch",
            "debugsessions/status",
        ),
        (
            "DELETE",
            "/apis/sidewinder.dev/v1alpha1/namespaces/a/debugsessions/b",
            "delete",
            "debugsessions",
        ),
        (
            "PUT",
            "/apis/coordination.k8s.io/v1/namespaces/a/leases/b",
            "update",
            "leases",
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            "create",
            "subjectaccessreviews",
        ),
        (
            "GET",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/a",
            "get",
            "validatingadmissionpolicies",
        ),
        ("GET", "/version", "get", "version"),
    ] {
        assert_eq!(call(method, path), (verb, resource), "{method} {path}");
    }
}

#[test]
fn what_is_not_known_is_other() {
    for path in [
        "/",
        "/healthz",
        "/api/v1",
        "/apis/example.com/v1/cats/tom",
        "/a/b/c/d/e/f/g/h/i",
        "/api/v1/namespaces/a/pods/b/log",
        "//",
    ] {
        assert_eq!(call("GET", path).1, "other", "{path}");
    }
    for method in ["OPTIONS", "PROPFIND", "DELETE"] {
        assert_eq!(call(method, "/api/v1/pods").0, "other", "{method}");
    }
}

/// A server that answers with `answer`, counting, and a client of it with its metrics.
async fn server<F, R>(answer: F) -> (Client, Metrics)
where
    F: Fn(usize, Request<Answered>) -> R + Clone + Send + Sync + 'static,
    R: IntoResponse,
{
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let router = Router::new().fallback(async move |request: Request<Answered>| {
        answer(asked.fetch_add(1, Ordering::Relaxed), request)
    });
    tokio::spawn(async { axum::serve(listener, router).await });
    let metrics = Metrics::new();
    let client = metrics
        .api
        .client(Config::new(url.parse().unwrap()), &unlimited())
        .unwrap();
    (client, metrics)
}

fn line(metrics: &Metrics, series: &str) -> Option<String> {
    let text = metrics.encode().unwrap();
    let line = text.lines().find(|line| line.starts_with(series))?;
    Some(line.rsplit_once(' ')?.1.to_owned())
}

#[tokio::test]
async fn each_try_counts_and_a_retry_counts_as_one() {
    let (client, metrics) = server(|number, _| match number {
        0 => (http::StatusCode::TOO_MANY_REQUESTS, "{}").into_response(),
        _ => (http::StatusCode::OK, r#"{"metadata":{"name":"web-0"}}"#).into_response(),
    })
    .await;
    let pods: KubeApi<Pod> = KubeApi::namespaced(client, "shop");
    pods.get("web-0").await.unwrap();
    let requests = |code| {
        let series = format!(
            "sidewinder_api_requests_total{{verb=\"get\",resource=\"pods\",code=\"{code}\"}}"
        );
        line(&metrics, &series)
    };
    assert_eq!(requests("4xx").as_deref(), Some("1"));
    assert_eq!(requests("2xx").as_deref(), Some("1"));
    let retries = line(&metrics, "sidewinder_api_retries_total{code=\"429\"}");
    assert_eq!(retries.as_deref(), Some("1"));
    let durations = line(
        &metrics,
        "sidewinder_api_request_duration_seconds_count{verb=\"get\",resource=\"pods\"}",
    );
    assert_eq!(durations.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_watch_is_counted_while_it_is_open_and_is_no_long_request() {
    let (client, metrics) =
        server(
            |_, _| Answered::from_stream(futures::stream::pending::<Result<String, BoxError>>()),
        )
        .await;
    let pods: KubeApi<Pod> = KubeApi::all(client);
    let watch = pods.watch(&WatchParams::default(), "0").await.unwrap();
    let open = || line(&metrics, "sidewinder_api_watches{resource=\"pods\"}");
    assert_eq!(open().as_deref(), Some("1"));
    drop(watch);
    assert_eq!(open().as_deref(), Some("0"));
    assert_eq!(
        line(
            &metrics,
            "sidewinder_api_requests_total{verb=\"watch\",resource=\"pods\",code=\"2xx\"}"
        )
        .as_deref(),
        Some("1")
    );
    assert_eq!(
        line(&metrics, "sidewinder_api_request_duration_seconds"),
        None
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let metrics = Metrics::new();
    let client = metrics
        .api
        .client(Config::new(url.parse().unwrap()), &unlimited())
        .unwrap();
    client.apiserver_version().await.unwrap_err();
    let errors = line(
        &metrics,
        "sidewinder_api_requests_total{verb=\"get\",resource=\"version\",code=\"error\"}",
    );
    assert_eq!(errors.as_deref(), Some("1"));
}
