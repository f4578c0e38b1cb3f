//! Halt: where image and data are not taken back (that was not asked for, or it failed), the attempt stops in the safest
//! place: no writer runs, the database stays as it is, and the snapshot is kept.

use super::{Context, Phase, Step, arm_jobs, chain, take, to_zero};
use crate::upgrade::Action;

pub const PHASE: Phase = Phase { name: "Halt", limit: |_| None, step, uninterruptible: true };

fn step(cx: &Context<'_>) -> Step {
    let candidates: Vec<_> = cx
        .seen
        .candidates
        .iter()
        .filter(|(_, pod)| !pod.deleting)
        .map(|(target, pod)| Action::DeleteCandidate { target: target.clone(), uid: pod.uid.clone() })
        .collect();
    if !candidates.is_empty() {
        return Step::act(candidates, "ending the candidates");
    }
    chain!(to_zero(&take!(cx.writers())), arm_jobs(cx));
    Step::done("writers are stopped; the database is as the failure left it, and the snapshot is kept")
}
