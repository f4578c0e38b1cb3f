//! ResumeIngestion: the last step of the way back: the flag is off and the workers run again.

use super::{Context, Phase, Step, arm_jobs, both, chain, flag, intruder::images, take, to_prior, unmark, wait_only};

pub const PHASE: Phase = Phase { name: "ResumeIngestion", limit: |_| None, step, uninterruptible: true };

fn step(cx: &Context<'_>) -> Step {
    chain!(images(cx, |target| &target.from_image));
    chain!(both(flag(cx, false), wait_only(to_prior(&take!(cx.workers())))));
    chain!(both(arm_jobs(cx), unmark(&take!(cx.writers()))));
    Step::done("ingestion runs again")
}
