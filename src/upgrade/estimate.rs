//! What the way back would cost now: how long writers would be stopped, and how many rows would be lost. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::phase;
use crate::api::{
    MemoriaUpgradeSpec, MemoriaUpgradeStatus,
    upgrade::{PhaseRecord, PhaseState},
};

/// Whole seconds: a restore as it was measured (by the rehearsal, else into scratch by the snapshot Job), and this attempt's own
/// Quiesce and Start without their holds, as far as they are done. `None` where no restore was measured.
pub fn seconds(plan: &MemoriaUpgradeSpec, journal: &MemoriaUpgradeStatus) -> Option<i64> {
    let rehearsed = plan.estimates.map(|estimates| estimates.restore_seconds);
    let in_scratch = || journal.snapshot.as_ref().and_then(|snapshot| snapshot.scratch_restore_seconds);
    let restore = rehearsed.or_else(in_scratch)?;
    let around = [phase::QUIESCE, phase::START].map(|name| {
        let passed = |record: &&PhaseRecord| record.name == name && record.state == PhaseState::Passed;
        journal.phases.iter().rfind(passed).map_or(0, took)
    });
    Some(restore + around.iter().sum::<i64>())
}

/// How long a phase took without its holds, in whole seconds, rounded up.
fn took(record: &PhaseRecord) -> i64 {
    let Some(finished) = &record.finished_at else { return 0 };
    let millis = finished.0.duration_since(record.started_at.0).as_millis();
    let whole = i64::try_from(millis.saturating_add(999) / 1000).unwrap_or(i64::MAX);
    whole.saturating_sub(record.held_seconds).max(0)
}

/// Rows that a restore would lose, and when they were counted. None are before clients are let in: nothing else writes
/// then, which needs no count and has no time. `None` where nobody knows.
pub fn rows_at_risk(journal: &MemoriaUpgradeStatus) -> Option<(i64, Option<Time>)> {
    if phase::wrote_unasked(journal) {
        return None;
    }
    let let_in =
        |record: &PhaseRecord| record.name == phase::START && record.done.contains_key(phase::CLIENTS_MAY_WRITE);
    if !journal.phases.iter().any(let_in) {
        return Some((0, None));
    }
    let known = journal.at_risk.as_ref()?;
    let at = known.measured_at.clone()?;
    Some((known.rows(), Some(at)))
}
