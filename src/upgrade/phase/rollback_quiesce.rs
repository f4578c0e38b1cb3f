//! RollbackQuiesce: the first step of the way back. What the attempt started ends, the flag is on, and nothing that can
//! write is left.

use super::{
    Context, Phase, RESTORE, RESTORE_ACCEPTED, Step, both, chain, flag, intruder, mark, restore_image, take, to_zero,
};
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
        .filter(|(step, job)| matches!(job.state, JobState::Running { .. }) || is_void_restore(cx, step, job))
        .map(|(step, job)| Action::DeleteJob { step: step.clone(), uid: job.uid.clone() });
    let ends: Vec<_> = candidates.chain(jobs).collect();
    if !ends.is_empty() {
        return Step::act(ends, "ending the attempt's candidates and jobs");
    }
    if !cx.seen.candidates.is_empty() {
        return Step::wait("the candidates end");
    }
    chain!(intruder::writers(cx));
    // The marks are gone where the attempt had succeeded before a person took it back. Where they are not, they change,
    // and with them the version of every writer: what a former leader decided on the way forth cannot reach them.
    chain!(mark(cx.attempt, &take!(cx.writers()), true));
    chain!(both(flag(cx, true), to_zero(&take!(cx.workers()))), to_zero(&take!(cx.servers())));
    Step::done("nothing that can write is left")
}

/// Left by an earlier try to go back, which a person has ordered again. One that went well stands once the old servers
/// were let in to what it had proved; before that, something else may have written, and it has to prove it anew.
fn is_void_restore(cx: &Context<'_>, step: &str, job: &JobSeen) -> bool {
    let went_well = matches!(&job.state, JobState::Finished { report: Some(report), .. } if report.ok);
    let last = cx.journal.phases.iter().rfind(|record| record.name == restore_image::PHASE.name);
    let let_in = last.is_some_and(|record| record.done.contains_key(restore_image::IMAGES_BACK));
    [RESTORE, RESTORE_ACCEPTED].contains(&step) && !(went_well && let_in)
}
