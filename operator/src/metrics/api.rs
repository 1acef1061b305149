//! Requests of the API server, counted where each try leaves the operator.
//!
//! kube tries refused requests again by itself, up to 15 times, beneath every layer that a client can be given. Here
//! the same policy stands above the counting, so that a server that sheds load is seen.

use std::pin::Pin;
use std::sync::atomic::AtomicI64;
use std::task::{Context, Poll};

use http::{Method, Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;
use tower::buffer::BufferLayer;
use tower::retry::{Policy, RetryLayer};
use tower::{BoxError, Layer, Service};
use tracing::Instrument;

use crate::telemetry;
use crate::throttle::Throttle;

/// How many requests may wait for their turn to be sent.
const BUFFER: usize = 1024;

/// What the operator asks for, and everything else as `other`: a label must not grow with what is in the cluster.
const RESOURCES: &[&str] = &[
    "configmaps",
    "customresourcedefinitions",
    "debugsessions",
    "debugsessions/status",
    "events",
    "leases",
    "localsubjectaccessreviews",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "namespaces",
    "nodes",
    "pods",
    "pods/ephemeralcontainers",
    "pods/exec",
    "secrets",
    "selfsubjectaccessreviews",
    "subjectaccessreviews",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "version",
];

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    verb: &'static str,
    resource: &'static str,
}

impl Call {
    fn of(method: &Method, uri: &Uri) -> Self {
        let parts: Vec<&str> = uri
            .path()
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        let rest = match parts.as_slice() {
            ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
            // The only path of another form that is asked for.
            whole @ ["version"] => whole,
            _ => &[],
        };
        let (plural, name, sub) = match *rest {
            ["namespaces", _, plural] | [plural] => (plural, None, None),
            ["namespaces", _, plural, name] | [plural, name] => (plural, Some(name), None),
            ["namespaces", _, plural, name, sub] | [plural, name, sub] => {
                (plural, Some(name), Some(sub))
            }
            _ => ("", None, None),
        };
        let asked = match sub {
            Some(sub) => format!("{plural}/{sub}"),
            None => plural.to_owned(),
        };
        let resource = RESOURCES
            .iter()
            .find(|known| **known == asked)
            .copied()
            .unwrap_or("other");
        let watch = uri.query().is_some_and(|query| {
            query
                .split('&')
                .any(|pair| matches!(pair, "watch=true" | "watch=1" | "watch"))
        });
        let verb = match *method {
            _ if resource == "pods/exec" => "connect",
            Method::GET if watch => "watch",
            Method::GET if name.is_some() || resource == "version" => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if name.is_some() => "delete",
            _ => "other",
        };
        Self { verb, resource }
    }

    /// A watch is answered when it begins, and an exec when its stream stands: neither says how long the server worked.
    fn is_stream(self) -> bool {
        matches!(self.verb, "watch" | "connect")
    }
}

/// Labels of a request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: &'static str,
    resource: &'static str,
    code: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watched {
    resource: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Retried {
    code: &'static str,
}

/// What is counted of requests. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct Api {
    requests: Family<Answered, Counter>,
    duration: Family<Call, Histogram, fn() -> Histogram>,
    watches: Family<Watched, Gauge<i64, AtomicI64>>,
    retries: Family<Retried, Counter>,
    /// Requests that waited for the operator's own limit.
    pub throttled: Counter,
}

impl Api {
    /// All at zero, and known to `registry`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let requests = Family::<Answered, Counter>::default();
        registry.register(
            "api_requests",
            "Requests of the API server by the class of the answer's code; error: no answer, cancelled: nobody waited for it",
            requests.clone(),
        );
        let duration = Family::<Call, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 2.0, 15))
        });
        registry.register_with_unit(
            "api_request_duration",
            "From a request of the API server to the head of its answer, without watches and execs",
            Unit::Seconds,
            duration.clone(),
        );
        let watches = Family::<Watched, Gauge<i64, AtomicI64>>::default();
        registry.register("api_watches", "Watches that are open", watches.clone());
        let retries = Family::<Retried, Counter>::default();
        registry.register(
            "api_retries",
            "Requests that were sent again because the API server was not ready, by the code of its answer",
            retries.clone(),
        );
        let throttled = Counter::default();
        registry.register(
            "api_throttled",
            "Requests that waited because the operator had made as many as it may (api.requestsPerSecond, api.burst)",
            throttled.clone(),
        );
        Self {
            requests,
            duration,
            watches,
            retries,
            throttled,
        }
    }

    /// A client whose requests are counted, and no more than `throttle` lets through.
    ///
    /// # Errors
    /// When `config` cannot be used.
    pub fn client(&self, mut config: Config, throttle: &Throttle) -> kube::Result<Client> {
        let again = config.default_retry;
        config.default_retry = false;
        // What waits, or tries again, needs a service that can be cloned.
        let builder = ClientBuilder::try_from(config)?
            .with_layer(self)
            .with_layer(&BufferLayer::new(BUFFER))
            .with_layer(throttle);
        if !again {
            return Ok(builder.build());
        }
        Ok(builder.with_layer(&RetryLayer::new(self.retry())).build())
    }

    /// kube's own policy, counted.
    pub(super) fn retry(&self) -> CountedRetry {
        CountedRetry {
            policy: RetryPolicy::server_retry(),
            retries: self.retries.clone(),
        }
    }
}

impl<S> Layer<S> for Api {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            api: self.clone(),
        }
    }
}

/// kube's own policy, with a counter.
#[derive(Clone)]
pub(super) struct CountedRetry {
    policy: RetryPolicy,
    retries: Family<Retried, Counter>,
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for CountedRetry {
    type Future = tokio::time::Sleep;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Self::Future> {
        let pause = self.policy.retry(request, result)?;
        let code = match result {
            Ok(answer) => match answer.status().as_u16() {
                429 => "429",
                503 => "503",
                504 => "504",
                _ => "other",
            },
            Err(_) => "other",
        };
        self.retries.get_or_create(&Retried { code }).inc();
        Some(pause)
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Policy::<_, Response<B>, BoxError>::clone_request(&mut self.policy, request)
    }
}

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    api: Api,
}

/// A request under way. Dropped without an answer it counts as cancelled.
struct Pending {
    api: Api,
    call: Call,
    began: Instant,
    code: &'static str,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Call { verb, resource } = self.call;
        self.api
            .requests
            .get_or_create(&Answered {
                verb,
                resource,
                code: self.code,
            })
            .inc();
        if !self.call.is_stream() && self.code != "cancelled" {
            self.api
                .duration
                .get_or_create(&self.call)
                .observe(self.began.elapsed().as_secs_f64());
        }
    }
}

fn class(code: u16) -> &'static str {
    match code {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<Answer<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Call::of(request.method(), request.uri());
        let span = telemetry::api_span(call.verb, call.resource);
        let mut pending = Pending {
            api: self.api.clone(),
            call,
            began: Instant::now(),
            code: "cancelled",
        };
        let answer = span.in_scope(|| self.inner.call(request));
        let record = span.clone();
        let counted = async move {
            let answer = answer.await;
            pending.code = answer
                .as_ref()
                .map_or("error", |answer| class(answer.status().as_u16()));
            record.record("code", pending.code);
            let streams = pending.code == "2xx" && call.verb == "watch";
            let open = streams.then(|| Open::new(&pending.api, call.resource));
            answer.map(|answer| answer.map(|body| Answer { body, open }))
        };
        Box::pin(counted.instrument(span))
    }
}

/// An open watch.
#[derive(Debug)]
struct Open(Gauge<i64, AtomicI64>);

impl Open {
    fn new(api: &Api, resource: &'static str) -> Self {
        let gauge = api.watches.get_or_create(&Watched { resource }).clone();
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// An answer's body: a watch is open as long as it is there.
#[derive(Debug)]
pub struct Answer<B> {
    body: B,
    open: Option<Open>,
}

impl<B: HttpBody + Unpin> HttpBody for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) {
            this.open = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
