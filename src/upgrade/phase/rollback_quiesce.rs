//! RollbackQuiesce: the first step of the way back. What the attempt started ends, the flag is on, and nothing that can
//! write is left.

use super::{Context, Phase, RESTORE, RESTORE_ACCEPTED, Step, chain, flag, mark, take, to_zero};
use crate::upgrade::{
    Action,
    seen::{JobSeen, JobState},
};

pub const PHASE: Phase =
    Phase { name: "RollbackQuiesce", limit: |plan| Some(plan.timeouts.rollback), step, uninterruptible: true };

fn step(cx: &Context<'_>) -> Step {
    let candidates = cx
        .seen
        .candidates
        .iter()
        .filter(|(_, pod)| !pod.deleting)
        .map(|(target, pod)| Action::DeleteCandidate { target: target.clone(), uid: pod.uid.clone() });
    // A migration that hangs holds locks, and would go on writing.
    let jobs = cx
        .seen
        .jobs
        .iter()
        .filter(|(step, job)| matches!(job.state, JobState::Running { .. }) || is_failed_restore(step, job))
        .map(|(step, job)| Action::DeleteJob { step: step.clone(), uid: job.uid.clone() });
    let ends: Vec<_> = candidates.chain(jobs).collect();
    if !ends.is_empty() {
        return Step::act(ends, "ending the attempt's candidates and jobs");
    }
    if !cx.seen.candidates.is_empty() {
        return Step::wait("the candidates end");
    }
    // The marks are gone where the attempt had succeeded before a person took it back.
    chain!(mark(cx.attempt, &take!(cx.writers())));
    chain!(flag(cx, true));
    chain!(to_zero(&take!(cx.workers())), to_zero(&take!(cx.servers())));
    Step::done("nothing that can write is left")
}

/// Left by an earlier try to go back, which a person has ordered again.
fn is_failed_restore(step: &str, job: &JobSeen) -> bool {
    let answered = matches!(&job.state, JobState::Finished { report: Some(report), .. } if report.ok);
    [RESTORE, RESTORE_ACCEPTED].contains(&step) && !answered
}
