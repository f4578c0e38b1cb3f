//! SnapshotExport: the exact snapshot at one read point, stored, read back and restored into scratch.

use super::{Context, Done, Phase, Step, chain, config_refresh, take};
use crate::{
    api::upgrade::Category,
    job::protocol::{Facts, JobInput},
};

pub const PHASE: Phase =
    Phase { name: "SnapshotExport", limit: |plan| Some(plan.timeouts.snapshot), step, uninterruptible: false };

fn step(cx: &Context<'_>) -> Step {
    // A plan that cannot be carried out to its end had better fail while nothing was moved.
    chain!(cx.breach(), config_refresh::unchanged(cx));
    let report = take!(cx.job("snapshot", JobInput::default()));
    match &report.facts {
        Some(Facts::Snapshot(facts)) if facts.restored_in_scratch => {
            Step::Done(Box::new(Done { message: report.message.clone(), facts: report.facts.clone() }))
        }
        Some(Facts::Snapshot(_)) => Step::fail(
            Category::Environment,
            "SnapshotUnproved",
            "the snapshot was stored but not restored into scratch, so it proves nothing; see the job's output",
        ),
        _ => Step::fail(Category::Bug, "NoSnapshotFacts", "the snapshot job succeeded without naming its snapshot"),
    }
}
