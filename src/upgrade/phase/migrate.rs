//! Migrate: one pod, the only client of the database. The guard beside the runner proves the data first and the schema
//! afterwards; a migrate whose outcome is unknown is never run again.

use super::{Context, Done, Phase, Step, chain, take};
use crate::{api::upgrade::Category, job::protocol::JobInput};

pub const PHASE: Phase = Phase {
    name: "Migrate",
    limit: |plan| Some(plan.timeouts.migrate),
    step,
    // Stopping a migration in the middle leaves what only a restore can mend.
    uninterruptible: true,
};

/// The step of the plan that migrates.
pub const STEP: &str = "migrate";

fn step(cx: &Context<'_>) -> Step {
    chain!(cx.breach());
    let Some(snapshot) = &cx.journal.snapshot else {
        return Step::fail(
            Category::Bug,
            "NoSnapshot",
            "no verified snapshot is in the journal; nothing is migrated without one",
        );
    };
    if cx.plan.jobs.iter().all(|job| job.step != STEP) {
        return Step::done("no migrations were asked for");
    }
    let input = JobInput { manifest_sha256: Some(snapshot.manifest_sha256.clone()), ..JobInput::default() };
    let report = take!(cx.job(STEP, input));
    Step::Done(Box::new(Done { message: report.message.clone(), facts: report.facts.clone() }))
}
