//! Resume: an attempt that failed before the image moved brings back what ran before; nothing else was touched.

use super::{Context, Phase, Step, arm_jobs, both, chain, flag, intruder::images, take, to_prior, unmark, wait_only};
use crate::upgrade::{Action, seen::JobState};

pub const PHASE: Phase = Phase { name: "Resume", limit: |_| None, step, uninterruptible: true };

fn step(cx: &Context<'_>) -> Step {
    // A snapshot that still runs holds locks that would keep the servers waiting.
    let running: Vec<_> = cx
        .seen
        .jobs
        .iter()
        .filter(|(_, job)| matches!(job.state, JobState::Running { .. }))
        .map(|(step, job)| Action::DeleteJob { step: step.clone(), uid: job.uid.clone() })
        .collect();
    if !running.is_empty() {
        return Step::act(running, "ending the attempt's jobs");
    }
    let servers: Vec<_> = take!(cx.servers()).into_iter().filter(|m| m.seen.attempt.is_some()).collect();
    let workers: Vec<_> = take!(cx.workers()).into_iter().filter(|m| m.seen.attempt.is_some()).collect();
    if !servers.is_empty() || !workers.is_empty() {
        // Where another hand has moved an image, the servers are not those that the data belongs to.
        if servers.iter().chain(&workers).any(|member| member.start().is_some()) {
            chain!(wait_only(images(cx, |target| &target.from_image)));
        }
        chain!(wait_only(to_prior(&servers)), both(flag(cx, false), wait_only(to_prior(&workers))));
    }
    chain!(both(arm_jobs(cx), unmark(&take!(cx.writers()))));
    Step::done("what ran before runs again; database, images and configuration were not touched")
}
