//! The project's chores: `cargo xtask --help`.

mod bench;
mod checkers;
mod clock;
mod cluster;
mod demo;
mod fuzz;
mod images;
mod kube;
mod memoria;
mod operator;
mod place;
mod test;

use std::process::ExitCode;

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
    /// Upgrade a Memoria with data, live, and prove that nothing was lost
    Demo(demo::Args),
    /// Manage the local two-node Kubernetes that the demo and the tests run on
    Cluster(cluster::Args),
    /// Build the images and push them to the test cluster's registry
    Images(images::Args),
    /// Install a Memoria to operate, with data, into a namespace of its own
    Memoria(memoria::Args),
    /// Measure the operator beside the ways that people upgrade without it
    Bench(bench::Args),
    /// Fuzz the readers of exports and manifests
    Fuzz(fuzz::Args),
    /// Run the tests, as CI does: quick ones first
    Test(test::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes alone: a backtrace of a chore tells its user nothing.
            eprintln!("error: {error}");
            error.chain().skip(1).for_each(|cause| eprintln!("  because: {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Bench(args) => bench::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Fuzz(args) => fuzz::run(args),
        Command::Cluster(args) => cluster::run(args),
        Command::Images(args) => images::run(args),
        Command::Memoria(args) => memoria::run(args),
        Command::Test(args) => test::run(args),
    }
}
