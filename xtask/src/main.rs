//! The project's chores: `cargo xtask --help`.

mod cluster;
mod images;
mod place;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The project's chores.
#[derive(Parser)]
#[command(name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Manage the local two-node Kubernetes that the demo and the tests run on
    Cluster(cluster::Args),
    /// Build the images and push them to the test cluster's registry
    Images(images::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Cluster(args) => cluster::run(args),
        Command::Images(args) => images::run(args),
    }
}
