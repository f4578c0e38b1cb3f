//! Leave: an attempt that failed after ingestion was back keeps the new version running: its data was verified, and
//! users already write to it. Workers that were not back yet are asked for, and the attempt's marks go.

use super::{Context, Phase, Step, arm_jobs, both, chain, flag, intruder::images, scale_back, take, unmark};

pub const PHASE: Phase = Phase { name: "Leave", limit: |_| None, step, uninterruptible: true };

fn step(cx: &Context<'_>) -> Step {
    chain!(flag(cx, false));
    // Beside another image than the data's, workers stay as they are.
    if images(cx, |target| &target.to_image).is_ok() {
        chain!(scale_back(&take!(cx.workers())));
    }
    chain!(both(arm_jobs(cx), unmark(&take!(cx.writers()))));
    Step::done("the new version keeps running; the snapshot is kept")
}
