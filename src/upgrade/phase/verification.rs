//! Verification: a sample `memoria bootstrap` in the new image and the checks of stage AfterIngestion; then the
//! attempt's marks go.

use super::{Context, Done, Phase, Step, arm_jobs, chain, take, unmark};
use crate::job::protocol::JobInput;

pub const PHASE: Phase =
    Phase { name: "Verification", limit: |plan| Some(plan.timeouts.verification), step, uninterruptible: false };

fn step(cx: &Context<'_>) -> Step {
    let bootstrap = take!(cx.job("bootstrap", JobInput::default()));
    let mut done = Done { message: bootstrap.message.clone(), facts: None };
    if cx.plan.jobs.iter().any(|job| job.step == "verify") {
        let verify = take!(cx.job("verify", JobInput::default()));
        done = Done { message: format!("{}; {}", done.message, verify.message), facts: verify.facts.clone() };
    }
    chain!(arm_jobs(cx), unmark(&take!(cx.writers())));
    Step::Done(Box::new(done))
}
