//! Halt: where image and data are not taken back (that was not asked for, or it failed), the attempt stops in the safest
//! place: no writer runs, the database stays as it is, and the snapshot is kept.

use super::{Context, Member, Phase, Step, arm_jobs, chain, intruder, take, to_zero};
use crate::{
    api::{release::WorkerKind, upgrade::PhaseRecord},
    upgrade::Action,
};

pub const PHASE: Phase = Phase { name: "Halt", limit: |_| None, step, uninterruptible: true };

/// Remembered of each writer once all are stopped: its generation, which grows with whatever is asked of it.
pub const STILL: &str = "still-";

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
    chain!(intruder::unasked(cx));
    let writers = take!(cx.writers());
    chain!(to_zero(&writers), arm_jobs(cx));
    if let Some(moved) = writers.iter().find(|writer| !stood_still(cx.record, writer)) {
        return Step::Remember { key: key(moved), value: unmarked(moved).to_string() };
    }
    Step::done("writers are stopped; the database is as the failure left it, and the snapshot is kept")
}

fn key(writer: &Member<'_>) -> String {
    format!("{STILL}{}", writer.reference)
}

/// Whether something was asked of a writer since it was stopped, as far as this record remembers that.
pub fn moved(record: &PhaseRecord, writer: &Member<'_>) -> bool {
    remembered(record, writer).is_some_and(|generation| generation != unmarked(writer))
}

/// Whether nothing was asked of a writer since it was stopped in the phase with this record: then nothing of it ran.
pub fn stood_still(halt: &PhaseRecord, writer: &Member<'_>) -> bool {
    remembered(halt, writer).is_some_and(|generation| generation == unmarked(writer))
}

fn remembered(record: &PhaseRecord, writer: &Member<'_>) -> Option<i64> {
    record.done.get(&key(writer))?.parse().ok()
}

/// The writer's generation without our own mark that it goes back, which Kubernetes counts on a Deployment: there, and of
/// these kinds only there, changed annotations make a new generation.
fn unmarked(writer: &Member<'_>) -> i64 {
    let counted = writer.seen.goes_back && writer.reference.kind == WorkerKind::Deployment;
    writer.seen.generation - i64::from(counted)
}
