//! Watches, observes what the current phase needs, asks [`crate::upgrade`] what to do, carries it out and records it.
//! It decides nothing by itself.

mod attempt;
mod dry_runs;
mod metrics;
mod notices;
mod preflight;
mod reconcile;
mod retries;
mod serve;
mod status;

pub use serve::{RunError, run};
