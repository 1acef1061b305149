//! The controller of `DebugSession`s.

use clap::Parser;
use sidewinder_operator::args::Args;
use sidewinder_operator::{app, telemetry};

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    telemetry::start(&args.log, args.log_format)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(app::run(args))
}
