//! The controller of `DebugSession`s.

use clap::Parser;
use sidewinder_operator::args::Args;
use sidewinder_operator::{app, telemetry};

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // Several crates of the tree could bring a provider of their own, and the exporter of traces asks for one.
    let provider = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let telemetry = telemetry::start(&args.log, args.log_format, &args.traces, runtime.handle())?;
    if provider.is_err() {
        tracing::warn!("another TLS provider was installed before");
    }
    let result = runtime.block_on(app::run(args));
    telemetry.finish();
    result
}
