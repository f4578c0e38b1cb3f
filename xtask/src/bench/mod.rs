//! `cargo xtask bench`: measurements of the operator as users get it, beside the ways that people upgrade Memoria without
//! it.

mod by_hand;
mod client;
mod event;
mod figures;
mod idle;
mod memory;
mod recorder;
mod remains;
mod report;
mod rollback;
mod rollback_report;
mod snapshot;
mod stage;
mod timeline;
mod upgrade;

use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// The same upgrade by the operator and by the announcement's steps with kubectl, in turns
    Upgrade(upgrade::Options),
    /// Memory and writes of an operator that has nothing to do
    Idle(idle::Options),
    /// The way back from the same failed upgrade by the operator and by the announcement's commands, in turns
    Rollback(rollback::Options),
    /// The portable export and import beside pg_dump, pg_restore and Memoria's own command line; needs no cluster
    Snapshot(snapshot::Options),
}

pub fn run(args: Args) -> Result<()> {
    match args.action {
        Action::Upgrade(options) => upgrade::run(&options),
        Action::Idle(options) => idle::run(&options),
        Action::Rollback(options) => rollback::run(&options),
        Action::Snapshot(options) => snapshot::run(&options),
    }
}
