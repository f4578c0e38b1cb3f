//! `cargo xtask bench`: measurements that compare the operator with the ways that people upgrade Memoria without it.

mod by_hand;
mod client;
mod event;
mod recorder;
mod report;
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
}

pub fn run(args: Args) -> Result<()> {
    match args.action {
        Action::Upgrade(options) => upgrade::run(&options),
    }
}
