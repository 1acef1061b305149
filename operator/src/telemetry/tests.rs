use std::io;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tracing::Instrument as _;
use tracing::subscriber::with_default;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::testing;
use crate::throttle::unlimited;

const SCRIPT: &str = "print('a secret of the script')";

/// A session that has ended, with everything that a line may say.
fn session() -> DebugSession {
    let mut session = testing::session(json!({
        "remoteExec": {"script": SCRIPT},
        "reason": "INC-1\n{\"level\":\"forged\"}",
        "requestedBy": {"username": "alice", "groups": ["ops"]},
    }));
    session.status = serde_json::from_value(json!({
        "scriptSha256": "ab12",
        "targets": [
            {"podName": "web-0", "podUID": "u2", "pid": 7},
            {"podName": "web-0", "podUID": "u2", "pid": 8},
            {"podName": "web-1", "podUID": "u1", "pid": 7},
        ],
    }))
    .unwrap();
    session
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Written {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The lines that `work` logs under `filter`.
fn lines(filter: &str, work: impl FnOnce()) -> Vec<Value> {
    let written = Written::default();
    let layer = fmt::layer()
        .with_writer(written.clone())
        .fmt_fields(fmt::format::JsonFields::new())
        .event_format(json::Flat)
        .with_filter(log_filter(filter).unwrap());
    with_default(tracing_subscriber::registry().with(layer), work);
    let bytes = written.0.lock().unwrap().clone();
    String::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_line_of_a_session_says_whose_it_is() {
    let lines = lines("info", || {
        session_span(&session()).in_scope(|| {
            step_span("open").in_scope(|| {
                tracing::warn!(sidecar = "sidewinder-1", "a \"line\"\nof two");
            });
            pod_span("web-1").in_scope(|| info!("of another pod"));
        });
        info!("of no session");
    });
    let [first, second, third] = lines.as_slice() else {
        panic!("{lines:#?}");
    };
    for (key, value) in [
        ("level", "WARN"),
        ("message", "a \"line\"\nof two"),
        ("namespace", "shop"),
        ("name", "why"),
        ("uid", "5e55-1"),
        ("pod", "web-0"),
        ("action", "remoteExec"),
        ("sidecar", "sidewinder-1"),
    ] {
        assert_eq!(first[key], value, "{first}");
    }
    assert!(first["timestamp"].as_str().unwrap().ends_with('Z'));
    // The innermost word counts.
    assert_eq!(second["pod"], "web-1");
    assert!(third.get("uid").is_none(), "{third}");
}

#[test]
fn the_first_and_the_last_line_say_what_an_audit_asks() {
    let session = session();
    let lines = lines("info", || {
        session_span(&session).in_scope(|| {
            session_started(&session, true);
            session_ended(
                &session,
                Reason::ScriptTimeout,
                false,
                Duration::from_millis(1500),
            );
        });
    });
    let [first, last] = lines.as_slice() else {
        panic!("{lines:#?}");
    };
    for line in [first, last] {
        assert_eq!(line["requester"], "alice");
        assert_eq!(line["purpose"], "INC-1\n{\"level\":\"forged\"}");
        assert_eq!(line["script_sha256"], "ab12");
        assert_eq!(line["pod_uids"], "u1,u2");
        assert_eq!(line["uid"], "5e55-1");
        assert!(!line.to_string().contains("secret"), "{line}");
    }
    assert_eq!(first["message"], "session started");
    assert_eq!(first["resumed"], true);
    assert_eq!(last["message"], "session ended");
    assert_eq!(last["result"], "Failed");
    assert_eq!(last["reason"], "ScriptTimeout");
    assert_eq!(last["duration_seconds"], 1.5);
    assert_eq!(last["targets"], 3);
}

#[test]
fn a_line_names_some_pods_and_counts_the_rest() {
    let mut session = session();
    let status = session.status.as_mut().unwrap();
    let one = status.targets[0].clone();
    status.targets = (0..256)
        .map(|number| sidewinder_crds::TargetStatus {
            pod_uid: Some(format!("u{number:03}")),
            ..one.clone()
        })
        .collect();
    let text = pod_uids(&session);
    assert_eq!(text.split(',').count(), MAX_POD_UIDS + 1);
    assert!(
        text.starts_with("u000,") && text.ends_with(",+192"),
        "{text}"
    );
}

#[test]
fn a_filter_that_is_none_is_refused_in_words() {
    let error = log_filter("sidewinder=loud").unwrap_err().to_string();
    assert!(error.contains("\"sidewinder=loud\""), "{error}");
}

#[test]
fn where_traces_go_must_be_a_url_that_is_spoken_with() {
    let start = |endpoint: &str, protocol: &str| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let args = TraceArgs {
            endpoint: endpoint.into(),
            protocol: protocol.into(),
        };
        Traces::start(&args, runtime.handle()).map(|traces| traces.is_some())
    };
    assert!(!start("", "grpc").unwrap());
    for (endpoint, protocol, words) in [
        (
            "http://collector:4317",
            "grpc",
            "use the collector's HTTP port",
        ),
        ("collector:4318", "http/protobuf", "is not a URL"),
        ("ftp://collector", "http/protobuf", "is not a URL"),
        ("http://", "http/protobuf", "is not a URL"),
    ] {
        let error = format!("{:#}", start(endpoint, protocol).unwrap_err());
        assert!(error.contains(words), "{endpoint}: {error}");
    }
}

/// A collector, and what it is sent.
async fn collector() -> (String, mpsc::UnboundedReceiver<(String, Vec<u8>)>) {
    let (sender, received) = mpsc::unbounded_channel();
    let router = Router::new().fallback(async move |request: Request| {
        let path = request.uri().path().to_owned();
        let kind = request.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        let body = axum::body::to_bytes(request.into_body(), 1 << 20)
            .await
            .unwrap();
        sender
            .send((format!("{path} {kind}"), body.to_vec()))
            .unwrap();
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await });
    (url, received)
}

fn attribute(span: &Sent, key: &str) -> Option<String> {
    let found = span
        .attributes
        .iter()
        .find(|attribute| attribute.key == key);
    Some(format!("{:?}", found?.value.as_ref()?.value.as_ref()?))
}

/// A client of an API server that says its version, with the layers that the operator's own client has.
async fn api_client() -> kube::Client {
    let version = json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
    let router = Router::new().fallback(async move || axum::body::Body::from(version.to_string()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await });
    let config = kube::Config::new(url.parse().unwrap());
    crate::metrics::Metrics::new()
        .api
        .client(config, &unlimited())
        .unwrap()
}

/// On one thread, since the subscriber is that thread's.
#[tokio::test]
async fn a_collector_is_sent_a_sessions_spans_and_no_script() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (endpoint, mut received) = collector().await;
    let args = TraceArgs {
        endpoint,
        protocol: "http/protobuf".into(),
    };
    let traces = Traces::start(&args, &Handle::current()).unwrap().unwrap();
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    let session = session();
    let client = api_client().await;
    let guard = tracing::subscriber::set_default(subscriber);
    async {
        async { client.apiserver_version().await.unwrap() }
            .instrument(step_span("record"))
            .await;
        session_ended(&session, Reason::ScriptError, false, Duration::ZERO);
        info!(script = SCRIPT, "a line is no part of a trace");
    }
    .instrument(session_span(&session))
    .await;
    // Of no session, as a renewal of the Lease is.
    client.apiserver_version().await.unwrap();
    drop(guard);
    tokio::task::spawn_blocking(move || traces.finish())
        .await
        .unwrap();

    let (request, body) = tokio::time::timeout(Duration::from_secs(30), received.recv())
        .await
        .expect("nothing was sent")
        .unwrap();
    assert_eq!(request, "/v1/traces application/x-protobuf");
    let sent = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    let resource = format!("{:?}", sent.resource_spans[0].resource);
    assert!(resource.contains("sidewinder-operator"), "{resource}");
    let spans: Vec<&Sent> = sent
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans)
        .flat_map(|scope| &scope.spans)
        .collect();
    assert_eq!(spans.len(), 3, "{spans:#?}");
    let named = |name: &str| {
        *spans
            .iter()
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("{name} is not in {spans:#?}"))
    };
    let (root, step, api) = (named("session"), named("record"), named("api"));
    assert!(root.parent_span_id.is_empty());
    assert_eq!(step.parent_span_id, root.span_id);
    assert_eq!(api.parent_span_id, step.span_id);
    for (span, key, value) in [
        (root, "namespace", "shop"),
        (root, "uid", "5e55-1"),
        (root, "reason", "ScriptError"),
        (api, "resource", "version"),
        (api, "code", "2xx"),
    ] {
        let found = attribute(span, key).unwrap_or_default();
        assert!(found.contains(value), "{key}: {found}");
    }
    // 2 is an error.
    assert_eq!(root.status.as_ref().unwrap().code, 2);
    assert!(
        spans.iter().all(|span| span.events.is_empty()),
        "{spans:#?}"
    );
    let whole = String::from_utf8_lossy(&body);
    assert!(
        !whole.contains("secret") && !whole.contains("alice"),
        "{whole}"
    );
}

/// A collector that takes the connection and never answers keeps the operator's end waiting for a limit only.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_delays_the_end_by_its_limit_at_most() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let args = TraceArgs {
        endpoint: format!("http://{}", listener.local_addr().unwrap()),
        protocol: "http/protobuf".into(),
    };
    let traces = Traces::start(&args, &Handle::current()).unwrap().unwrap();
    with_default(tracing_subscriber::registry().with(traces.layer()), || {
        session_span(&session()).in_scope(|| ());
    });
    let began = std::time::Instant::now();
    let asked = listener.accept();
    tokio::task::spawn_blocking(move || traces.finish())
        .await
        .unwrap();
    let took = began.elapsed();
    // It was asked, and it was waited for.
    let asked = tokio::time::timeout(Duration::from_secs(30), asked).await;
    assert!(
        asked.expect("nobody asked").is_ok() && took >= Duration::from_secs(4),
        "{took:?}"
    );
    assert!(took < Duration::from_secs(8), "{took:?}");
}
