//! Everything together: configuration in, until a signal or a lost lease out.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use k8s_controller::LeaderElection;
use kube::{Client, Config};
use sidewinder_crds::names::LEASE;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::Args;
use crate::events::Events;
use crate::http::{self, Health, Readiness};
use crate::leader::{Led, lead};
use crate::metrics::Metrics;
use crate::relay::connect::PodExec;
use crate::relay::pool::Pool;
use crate::session::{self, Context, Refusals};
use crate::telemetry;

/// How long ending may take; the chart's `terminationGracePeriodSeconds` is longer.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);

/// The program: reads its arguments and runs.
///
/// # Errors
/// When it cannot start, or when leadership was lost.
pub fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // Several crates of the tree could bring a provider of their own, and the exporter of traces asks for one.
    let provider = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let telemetry = telemetry::start(&args.log, args.log_format, &args.traces, runtime.handle())?;
    if provider.is_err() {
        warn!("another TLS provider was installed before");
    }
    let result = runtime.block_on(run(args));
    telemetry.finish();
    result
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or when leadership was lost.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signal(&stop)?;

    let metrics = Metrics::new();
    let readiness = Readiness::default();
    let health = Health::default();
    let listener = TcpListener::bind(args.http_address)
        .await
        .with_context(|| format!("failed to listen on {}", args.http_address))?;
    let server = tokio::spawn(http::serve(
        listener,
        http::router(metrics.clone(), readiness.clone(), health.clone()),
        stop.clone().cancelled_owned(),
    ));

    let config = Config::infer().await.context(
        "failed to find the cluster: neither a service account nor a kubeconfig is there",
    )?;
    let client = metrics
        .api
        .client(config, &args.throttle(metrics.api.throttled.clone()))
        .context("failed to set up the client")?;
    let identity = args.identity();
    let events = Events::new(client.clone(), &identity);
    let context = Arc::new(Context {
        client: client.clone(),
        pool: Pool::new(PodExec::new(client.clone()), metrics.traffic.clone())
            .within(args.budget()),
        settings: args.settings(),
        metrics: metrics.clone(),
        events: events.clone(),
        refusals: Refusals::default(),
        fences: args.fences(&client).await,
    });
    info!(
        version = env!("CARGO_PKG_VERSION"),
        identity,
        sidecar = args.sidecar_image,
        leader_election = args.leader_election,
        "started"
    );
    let reached = tokio::spawn(ready_once_reached(
        client.clone(),
        readiness.clone(),
        stop.clone(),
    ));

    let announced = tokio::spawn({
        let (context, stop) = (Arc::clone(&context), stop.clone());
        async move {
            stop.run_until_cancelled(context.fences.announce()).await;
        }
    });
    let namespace = (!args.watch_namespace.is_empty()).then(|| args.watch_namespace.clone());
    let work = Box::pin(session::run(context, namespace, stop.clone()));
    let led = if args.leader_election {
        let election = LeaderElection::new(client, &args.pod_namespace, LEASE, &identity);
        health
            .beating(Box::pin(lead(&election, &metrics, &stop, work)))
            .await
    } else {
        metrics.leader.set(1);
        health.beating(Box::pin(work)).await;
        Led::Done
    };
    stop.cancel();
    // It ends with the token at the latest; nothing may call the operator ready after this.
    let _ = reached.await;
    let _ = announced.await;
    readiness.set(false);
    let ending = async {
        events.flush().await;
        server.await
    };
    match tokio::time::timeout(SHUTDOWN_LIMIT, ending).await {
        Ok(Ok(result)) => result.context("the HTTP server failed")?,
        Ok(Err(error)) => warn!(%error, "the HTTP server did not end well"),
        Err(_) => warn!("not everything ended in time"),
    }
    info!("ended");
    match led {
        Led::Done => Ok(()),
        Led::Lost => anyhow::bail!("leadership was lost"),
    }
}

/// How long one look at the API server may take, and how long until the next.
const REACH_LIMIT: Duration = Duration::from_secs(5);

/// An operator that cannot reach the API server answers no session, so a roll-out has to show it.
async fn ready_once_reached(client: Client, readiness: Readiness, stop: CancellationToken) {
    let reach = async {
        loop {
            match tokio::time::timeout(REACH_LIMIT, client.apiserver_version()).await {
                Ok(Ok(version)) => {
                    info!(version = version.git_version, "reached the API server");
                    return;
                }
                Ok(Err(error)) => warn!(%error, "cannot reach the API server yet"),
                Err(_) => warn!("the API server does not answer yet"),
            }
            tokio::time::sleep(REACH_LIMIT).await;
        }
    };
    tokio::select! {
        () = reach => readiness.set(true),
        () = stop.cancelled() => {}
    }
}

fn stop_on_signal(stop: &CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to wait for SIGINT")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM"),
            _ = interrupt.recv() => info!("SIGINT"),
        }
        stop.cancel();
    });
    Ok(())
}
