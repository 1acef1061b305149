//! `cargo e2e`: the embedded cluster, the images, and what is run on them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use sidewinder_e2e::cluster::{self, Cluster, node, supervisor};
use sidewinder_e2e::deploy::{self, Destination};
use sidewinder_e2e::{aarch64, bench, check, demo, images, python, tools};

/// The real cluster, the images, the tests and the benchmarks of Sidewinder.
#[derive(Parser)]
#[command(name = "cargo e2e", bin_name = "cargo e2e")]
struct Arguments {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// A real one-node Kubernetes on this machine
    #[command(subcommand)]
    Cluster(ClusterCommands),
    /// Build the images and install the chart with them, or upgrade it
    Deploy {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        own: Own,
    },
    /// Build the images as tars and print their paths and names
    Images,
    /// Type-check the sidecar for aarch64, with a toolchain of its own
    Aarch64,
    /// Run every test: formatting, lints, unit, property, live-process and cluster tests
    Test {
        #[command(flatten)]
        own: Own,
    },
    /// Print the root folder of a Python, made on first use
    Python {
        /// 3.14 or 3.15
        version: String,
    },
    /// Measure, side by side with the peers, and print the tables of docs/performance.md
    Bench {
        /// One benchmark; all of them otherwise
        name: Option<bench::Name>,
        #[command(flatten)]
        operator: bench::operator::Options,
        #[command(flatten)]
        own: Own,
    },
    /// Run a command without its output and print the most memory it took, in KiB
    #[command(hide = true)]
    MaxRss {
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// A stuck service in a real Kubernetes, one DebugSession for each action, and the answers
    Demo {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        own: Own,
        /// Leave the cluster and everything in it, and say how to use it
        #[arg(long)]
        keep: bool,
    },
}

#[derive(clap::Args)]
struct Dir {
    /// The cluster's folder; clusters in different folders run side by side
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// A cluster of one's own in place of the embedded one.
#[derive(clap::Args)]
struct Own {
    /// The kubeconfig of a cluster of your own, in place of the embedded one
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// What brings an image to its nodes, for sh: the tar is $1, the image's name $2. For kind: 'kind load image-archive "$1"'
    #[arg(long, requires = "kubeconfig")]
    load: Option<String>,
}

fn destination(dir: Dir, own: Own) -> Result<Destination> {
    match own.kubeconfig {
        Some(_) if dir.dir.is_some() => bail!(
            "--dir names an embedded cluster and --kubeconfig one of your own: give one of them"
        ),
        Some(kubeconfig) => Destination::of(&kubeconfig, own.load),
        None => Ok(Destination::Embedded(Cluster::running(&dir.path()?)?)),
    }
}

impl Dir {
    fn path(self) -> Result<PathBuf> {
        self.dir.map_or_else(cluster::default_dir, Ok)
    }
}

#[derive(Subcommand)]
enum ClusterCommands {
    /// Start it and return when its node is Ready; at once if it is up
    Up(Dir),
    /// End it and remove its data; its logs stay
    Down(Dir),
    /// Print the path of a kubeconfig for any kubectl on this machine
    Kubeconfig(Dir),
    /// Load the images of a tar (docker save or OCI) into its node
    Load {
        /// The tar
        archive: PathBuf,
        #[command(flatten)]
        dir: Dir,
    },
    /// Run its kubectl
    Kubectl {
        #[command(flatten)]
        dir: Dir,
        /// What kubectl is to do
        #[arg(last = true, required = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Print the folder of Kubernetes' own binaries
    Bin,
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        linked: bool,
    },
    #[command(hide = true)]
    Node {
        #[arg(long)]
        id: String,
        #[arg(long)]
        dir: PathBuf,
        tools: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Commands) -> Result<ExitCode> {
    match command {
        Commands::Cluster(command) => return cluster(command),
        Commands::Deploy { dir, own } => {
            let destination = destination(dir, own)?;
            let images = deploy::deploy(&destination)?;
            eprintln!(
                "{} is ready: export KUBECONFIG={}",
                images.operator.name(),
                destination.kubeconfig().display()
            );
        }
        Commands::Test { own } => {
            let own = own
                .kubeconfig
                .map(|file| Destination::of(&file, own.load))
                .transpose()?;
            check::run(own)?;
        }
        Commands::Aarch64 => aarch64::check()?,
        Commands::Images => {
            let images = images::build()?;
            for image in [images.operator, images.sidecar] {
                println!("{} {}", image.archive.display(), image.name());
            }
        }
        Commands::Bench {
            name,
            operator,
            own,
        } => {
            let own = own.kubeconfig.map(|kubeconfig| (kubeconfig, own.load));
            bench::run(name, &operator, &bench::Where { own })?;
        }
        Commands::MaxRss { command } => println!("{}", bench::max_rss(&command)?),
        Commands::Demo { dir, own, keep } => demo::run(&demo::Options {
            dir: dir.dir,
            own: own.kubeconfig.map(|kubeconfig| (kubeconfig, own.load)),
            keep,
        })?,
        Commands::Python { version } => println!("{}", python::root(&version)?.display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn cluster(command: ClusterCommands) -> Result<ExitCode> {
    match command {
        ClusterCommands::Up(dir) => {
            let cluster = Cluster::up(&dir.path()?)?;
            eprintln!(
                "the cluster is up: export KUBECONFIG={}",
                cluster.kubeconfig().display()
            );
        }
        ClusterCommands::Down(dir) => cluster::down(&dir.path()?)?,
        ClusterCommands::Kubeconfig(dir) => {
            println!("{}", Cluster::running(&dir.path()?)?.kubeconfig().display());
        }
        ClusterCommands::Load { archive, dir } => {
            for name in Cluster::running(&dir.path()?)?.load(&archive)? {
                println!("{name}");
            }
        }
        ClusterCommands::Kubectl { dir, arguments } => {
            use std::os::unix::process::CommandExt as _;
            let mut kubectl = Cluster::running(&dir.path()?)?.kubectl_command()?;
            // In our place, so that its terminal, its signals and its exit code are the caller's.
            return Err(kubectl.args(arguments).exec().into());
        }
        ClusterCommands::Bin => println!("{}", tools::bin_dir()?.display()),
        ClusterCommands::Supervise { dir, linked } => supervisor::run(&dir, linked)?,
        ClusterCommands::Node { id, dir, tools } => node::run(&id, &dir, &tools)?,
    }
    Ok(ExitCode::SUCCESS)
}
