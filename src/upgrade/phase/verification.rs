//! Verification: a sample `memoria bootstrap` and the comparison of export and import in the new image, and the checks of
//! stage AfterIngestion; then the attempt's marks go.

use super::{Context, Done, Phase, Step, arm_jobs, both, chain, intruder::images, take, unmark};
use crate::{api::release::Stage, job::protocol::JobInput};

pub const PHASE: Phase =
    Phase { name: "Verification", limit: |plan| Some(plan.timeouts.verification), step, uninterruptible: false };

fn step(cx: &Context<'_>) -> Step {
    chain!(images(cx, |target| &target.to_image));
    let planned = |step: &str| cx.plan.jobs.iter().any(|job| job.step == step);
    // Side by side: none of them touches what the other does.
    let bootstrap = cx.job("bootstrap", JobInput::default()).map(|report| report.message.clone());
    let parity = match planned("parity") {
        true => cx.job("parity", JobInput::default()).map(|report| Some(report.message.clone())),
        false => Ok(None),
    };
    let (bootstrap, parity) = take!(both(bootstrap, parity));
    let message = [Some(bootstrap), parity].into_iter().flatten().collect::<Vec<_>>().join("; ");
    let mut done = Done { message, facts: None };
    if let Some(verify) = take!(cx.checks(Stage::AfterIngestion, &JobInput::default())) {
        done = Done { message: format!("{}; {}", done.message, verify.message), facts: verify.facts };
    }
    chain!(both(arm_jobs(cx), unmark(&take!(cx.writers()))));
    Step::Done(Box::new(done))
}
