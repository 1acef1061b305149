//! Traces by OTLP over HTTP, where an endpoint is given.
//!
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_TIMEOUT`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_SERVICE_NAME` and
//! `OTEL_RESOURCE_ATTRIBUTES` are read by the libraries as the specification says,
//! see <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use clap::Args;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::{Level, Subscriber, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

use super::is_ours;

/// How long one batch may take: a collector that hangs must not keep the next one waiting for long.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// How much of a collector's answer is read; it says what was refused.
const ANSWER_LIMIT: usize = 64 * 1024;
/// How long the last batch may take.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

/// Where traces go.
#[derive(Args, Clone, Debug, Default)]
pub struct TraceArgs {
    /// The OTLP collector that traces of sessions are sent to over HTTP, for example `http://collector.observability:4318`;
    /// empty for none.
    #[arg(
        long = "otlp-endpoint",
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        default_value = ""
    )]
    pub endpoint: String,
    /// Only `http/protobuf` is spoken.
    #[arg(
        long = "otlp-protocol",
        env = "OTEL_EXPORTER_OTLP_PROTOCOL",
        default_value = "http/protobuf"
    )]
    pub protocol: String,
}

/// A running exporter.
pub(super) struct Traces {
    endpoint: String,
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl fmt::Debug for Traces {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Traces")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// The URL of traces at a collector.
fn url(args: &TraceArgs) -> anyhow::Result<String> {
    let given = &args.endpoint;
    ensure!(
        args.protocol == "http/protobuf",
        "OTEL_EXPORTER_OTLP_PROTOCOL is {:?}, and only http/protobuf is spoken: use the collector's HTTP port, usually 4318",
        args.protocol
    );
    let uri: Uri = given
        .parse()
        .with_context(|| format!("OTEL_EXPORTER_OTLP_ENDPOINT {given:?} is not a URL"))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some() => {}
        _ => bail!(
            "OTEL_EXPORTER_OTLP_ENDPOINT {given:?} is not a URL: give one such as http://collector.observability:4318"
        ),
    }
    Ok(format!("{}/v1/traces", given.trim_end_matches('/')))
}

impl Traces {
    /// Nothing where no endpoint is given.
    pub(super) fn start(args: &TraceArgs, runtime: &Handle) -> anyhow::Result<Option<Self>> {
        if args.endpoint.is_empty() {
            return Ok(None);
        }
        let endpoint = url(args)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client(&endpoint, runtime)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&endpoint)
            .build()
            .context("traces cannot be set up")?;
        let mut resource = Resource::builder()
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("sidewinder-operator");
        }
        // Batches are made on a thread of their own, with a bounded queue: what does not fit is dropped.
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("sidewinder-operator");
        Ok(Some(Self {
            endpoint,
            provider,
            tracer,
        }))
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Turns our own spans into traces, and no events: what is logged stays in the logs.
    pub(super) fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = FilterFn::new(|metadata| {
            metadata.is_span() && *metadata.level() <= Level::INFO && is_ours(metadata)
        });
        tracing_opentelemetry::layer()
            .with_tracer(self.tracer.clone())
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(ours)
            .boxed()
    }

    pub(super) fn finish(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FINISH_LIMIT) {
            warn!(%error, "the last traces were not sent");
        }
    }
}

fn client(endpoint: &str, runtime: &Handle) -> anyhow::Result<OnRuntime> {
    let connector = HttpsConnectorBuilder::new();
    let connector = if endpoint.starts_with("https:") {
        connector.with_native_roots().context(
            "traces by https need root certificates: mount them and name the file in SSL_CERT_FILE",
        )?
    } else {
        connector.with_tls_config(
            rustls::ClientConfig::builder()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth(),
        )
    };
    let connector = connector.https_or_http().enable_http1().build();
    Ok(OnRuntime {
        client: Client::builder(TokioExecutor::new()).build(connector),
        runtime: runtime.clone(),
    })
}

/// Sends from the runtime: the exporter's own thread has none, which hyper needs.
#[derive(Clone)]
struct OnRuntime {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OnRuntime").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let send = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER_LIMIT).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        // A timer, too, wants to be made on the runtime.
        self.runtime
            .spawn(async move { tokio::time::timeout(SEND_LIMIT, send).await })
            .await??
    }
}
