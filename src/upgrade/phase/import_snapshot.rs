//! ImportSnapshot: one Job saves the failed state, restores the snapshot with its proof, and files the evidence, before
//! any old server starts. It is safe to repeat: a marker that is written with the data tells what was done.

use super::{Context, Done, Phase, START, Step, chain, intruder, take, to_zero};
use crate::{
    api::upgrade::Category,
    job::protocol::{Facts, JobInput, JobReport},
    upgrade::{
        Action,
        seen::{JobSeen, JobState},
    },
};

pub const PHASE: Phase = Phase {
    name: "ImportSnapshot",
    // The Job has its own limit, and a person may have to be waited for.
    limit: |_| None,
    step,
    uninterruptible: true,
};

/// Remembered in Start before clients are let in again: from then on rows may be theirs.
pub const CLIENTS_MAY_WRITE: &str = "clients-may-write";
/// Remembered in Start once the baseline lies in storage: its hash.
pub const BASELINE: &str = "baseline";
/// Remembered here when a person accepted the loss: the decision's name.
pub const ACCEPTED: &str = "accepted";
/// Remembered here for each Job that ended without an answer.
const LOST: &str = "lost-";
/// How many Jobs may be lost before the way back counts as failed. Each costs half a minute and nothing else, because a
/// restore that is not committed has not happened; a way back that gives up keeps writers stopped until a person comes.
const MAX_LOST: usize = 20;

/// Steps of the plan: the second one is the same order after a person accepted the loss.
pub const RESTORE: &str = "restore";
pub const RESTORE_ACCEPTED: &str = "restore-accepted";

/// What a restore Job answers when it needs a person's word first.
const ASKS: [&str; 2] = ["DataLossOverBudget", "LateWritesUnknown"];

fn step(cx: &Context<'_>) -> Step {
    // Whatever comes back meanwhile is stopped again.
    chain!(intruder::writers(cx));
    chain!(to_zero(&take!(cx.writers())));
    let Some(snapshot) = &cx.journal.snapshot else {
        return Step::fail(
            Category::Bug,
            "NoSnapshot",
            "no verified snapshot is in the journal; nothing can be restored",
        );
    };
    let accepted = cx.record.done.contains_key(ACCEPTED);
    let remembered = |key: &str| {
        let starts = cx.journal.phases.iter().filter(|record| record.name == START);
        starts.filter_map(|record| record.done.get(key)).next_back().cloned()
    };
    let input = JobInput {
        manifest_sha256: Some(snapshot.manifest_sha256.clone()),
        late_writes_possible: intruder::may_have_written(cx),
        accept_data_loss: accepted,
        // What was written before it by a writer that nobody let in is in it, and would not be told apart.
        baseline_sha256: remembered(BASELINE).filter(|_| !intruder::wrote(cx)),
        ..JobInput::default()
    };
    let name = if accepted { RESTORE_ACCEPTED } else { RESTORE };
    if let Some(again) = lost(cx, name) {
        return again;
    }
    match asked(cx.seen.jobs.get(name)).filter(|_| !accepted) {
        Some(report) => match &cx.seen.orders.accept_data_loss {
            Some(decision) => Step::Remember { key: ACCEPTED.to_owned(), value: decision.clone() },
            None => Step::wait(report.message.clone()),
        },
        None => {
            let report = take!(cx.job(name, input));
            match &report.facts {
                Some(Facts::Restore(_)) => {
                    Step::Done(Box::new(Done { message: report.message.clone(), facts: report.facts.clone() }))
                }
                _ => {
                    Step::fail(Category::Bug, "NoRestoreFacts", "the restore job succeeded without saying what it did")
                }
            }
        }
    }
}

/// The report of a Job that waits for a person.
pub fn asked(job: Option<&JobSeen>) -> Option<&JobReport> {
    match &job?.state {
        JobState::Finished { report: Some(report), .. } if !report.ok && ASKS.contains(&report.reason.as_str()) => {
            Some(report)
        }
        _ => None,
    }
}

/// A Job that was killed, or that only met what goes away by itself, is made anew, a few times.
fn lost(cx: &Context<'_>, name: &str) -> Option<Step> {
    let job = cx.seen.jobs.get(name)?;
    let detail = match &job.state {
        JobState::Finished { report: None, detail, .. } => detail.clone(),
        JobState::Finished { report: Some(report), .. } if report.category == Some(Category::Transient) => {
            report.message.clone()
        }
        _ => return None,
    };
    let key = format!("{LOST}{}", job.uid);
    if cx.record.done.contains_key(&key) {
        let delete = Action::DeleteJob { step: name.to_owned(), uid: job.uid.clone() };
        return Some(Step::act(
            vec![delete],
            format!("job {}-{name} ended without an answer; it is made anew", cx.attempt),
        ));
    }
    if cx.record.done.keys().filter(|key| key.starts_with(LOST)).count() >= MAX_LOST {
        return Some(Step::fail(
            Category::Environment,
            "RestoreLost",
            format!("{} restore jobs ended without an answer, the last one: {detail}", MAX_LOST + 1),
        ));
    }
    Some(Step::Remember { key, value: crate::upgrade::cut(detail) })
}
