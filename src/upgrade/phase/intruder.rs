//! What another hand did in the meantime: an image that moved, a writer that came back.

use super::{Context, RESTORE, RESTORE_ACCEPTED, START, Step, import_snapshot::CLIENTS_MAY_WRITE};
use crate::{
    api::{
        MemoriaUpgradeStatus,
        upgrade::{Category, PhaseRecord, PlannedTarget},
    },
    upgrade::seen::JobState,
};

/// Remembered on the way back when a writer was there that nobody let in: rows may be its.
pub const WRITER_CAME_BACK: &str = "writer-came-back";

/// Failures that tell of writes after the snapshot.
const TELLS_OF_WRITES: [&str; 2] = ["WriterCameBack", "DataChangedSinceSnapshot"];

/// `Ok` while every target has the image that it was given: the other one does not fit the data.
pub fn images(cx: &Context<'_>, given: fn(&PlannedTarget) -> &String) -> Result<(), Step> {
    for planned in &cx.plan.targets {
        let seen = cx.target(planned)?.seen;
        if seen.image != *given(planned) {
            return Err(Step::fail(
                Category::Conflict,
                "ImageChanged",
                format!(
                    "{} container {} was set to {} and now has {}; something else moves it: pause that for the upgrade",
                    planned.workload,
                    planned.container,
                    given(planned),
                    seen.image
                ),
            ));
        }
    }
    Ok(())
}

/// Before the data is taken back: whoever writes now is remembered, so that the restore looks for its rows.
/// After that: nothing that wrote is proved any more, and the way back stops.
pub fn writers(cx: &Context<'_>) -> Result<(), Step> {
    let Err(breach) = cx.breach() else { return Ok(()) };
    let restoring =
        [RESTORE, RESTORE_ACCEPTED].iter().any(|step| match cx.seen.jobs.get(*step).map(|job| &job.state) {
            None => false,
            Some(JobState::Finished { report: Some(report), .. }) => report.ok,
            Some(_) => true,
        });
    match breach {
        breach if restoring => Err(breach),
        Step::Fail { message, .. } if !may_have_written(cx) => {
            Err(Step::Remember { key: WRITER_CAME_BACK.to_owned(), value: crate::upgrade::cut(message) })
        }
        Step::Fail { .. } => Ok(()),
        other => Err(other),
    }
}

/// Where an attempt stops without going back: a writer that nobody let in is stopped like all others, but first it is
/// remembered.
pub fn unasked(cx: &Context<'_>) -> Result<(), Step> {
    match cx.breach() {
        Err(Step::Fail { message, .. }) if cx.journal.rollback.is_none() && !may_have_written(cx) => {
            Err(Step::Remember { key: WRITER_CAME_BACK.to_owned(), value: crate::upgrade::cut(message) })
        }
        _ => Ok(()),
    }
}

/// Whether rows may be in the database that the snapshot does not hold, beside those of the upgrade itself.
pub fn may_have_written(cx: &Context<'_>) -> bool {
    let let_in = |record: &PhaseRecord| record.name == START && record.done.contains_key(CLIENTS_MAY_WRITE);
    cx.journal.phases.iter().any(let_in) || wrote(cx)
}

/// Whether some of them may be of a writer that nobody let in.
pub fn wrote(cx: &Context<'_>) -> bool {
    wrote_unasked(cx.journal)
}

/// The same, by the journal alone.
pub fn wrote_unasked(journal: &MemoriaUpgradeStatus) -> bool {
    journal.phases.iter().any(|record| record.done.contains_key(WRITER_CAME_BACK))
        || journal.failure.as_ref().is_some_and(|failure| TELLS_OF_WRITES.contains(&failure.reason.as_str()))
}
