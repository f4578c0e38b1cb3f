//! Rows at risk: once clients write to the new version, and as long as it may still be taken back by itself, a Job counts from
//! time to time what a restore would lose. It goes beside the phases and never through them: no phase waits for it, and
//! whatever becomes of it, or of the writes that make and remove it, fails and holds nothing.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    Action, Decision, Observed, phase,
    seen::{JobSeen, JobState},
};
use crate::{
    api::{
        MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        upgrade::{AtRisk, PhaseState},
    },
    job::protocol::{Facts, JobInput, JobReport},
};

/// The plan's Job.
pub const STEP: &str = "at-risk";
/// How long it rests at least, also before the first one: most upgrades end before that.
const EVERY: SignedDuration = SignedDuration::from_mins(3);
/// It reads all of the database, so it rests so many times as long as it took.
const REST: i64 = 10;
/// Tables that are named at most.
const TABLES: usize = 10;

/// The decision, and what is to be done for the count beside it. An intent is in the journal before its Job is made; where that
/// gets lost the next count is as far away as if it had been made.
pub fn watch(plan: &MemoriaUpgradeSpec, seen: &Observed, now: Timestamp, mut decision: Decision) -> Decision {
    let Some((baseline, let_in)) = watched(plan, &decision.journal) else { return decision };
    let known = decision.journal.at_risk.clone();
    match seen.jobs.get(STEP) {
        None => {
            let due = due(known.as_ref(), let_in);
            let next = if now < due {
                due
            } else {
                let input = JobInput { baseline_sha256: Some(baseline), ..JobInput::default() };
                decision.actions.push(Action::CreateJob { step: STEP.to_owned(), input });
                let asked = AtRisk { asked_at: Time(now), ..known.unwrap_or_else(|| nothing_yet(now)) };
                let next = self::due(Some(&asked), let_in);
                decision.journal.at_risk = Some(asked);
                next
            };
            decision.wake = decision.wake.into_iter().chain([next]).min();
        }
        Some(JobSeen { uid, state: JobState::Finished { report, detail, .. }, .. }) => {
            let mut record = known.unwrap_or_else(|| nothing_yet(now));
            if record.job.as_ref() != Some(uid) {
                note(&mut record, uid, report.as_ref(), detail, now);
                decision.journal.at_risk = Some(record);
            }
            decision.actions.push(Action::DeleteJob { step: STEP.to_owned(), uid: uid.clone() });
        }
        // One that hangs is ended by its own limit.
        Some(JobSeen { state: JobState::Running { .. } | JobState::Foreign { .. }, .. }) => {}
    }
    decision
}

/// The baseline to count against, and since when clients write; nothing where no count is wanted.
fn watched(plan: &MemoriaUpgradeSpec, journal: &MemoriaUpgradeStatus) -> Option<(String, Timestamp)> {
    let phase = journal.phases.last().filter(|record| record.state == PhaseState::Running)?;
    let serves = [phase::INGESTION_REENABLE, phase::VERIFICATION].contains(&phase.name.as_str());
    let goes_on = journal.outcome.is_none() && journal.failure.is_none();
    let planned = plan.jobs.iter().any(|job| job.step == STEP);
    if !(serves && goes_on && planned) || phase::wrote_unasked(journal) {
        return None;
    }
    let start = journal.phases.iter().rfind(|record| record.name == phase::START)?;
    let let_in = start.done.get(phase::CLIENTS_MAY_WRITE)?.parse().ok()?;
    Some((start.done.get(phase::BASELINE)?.clone(), let_in))
}

fn due(known: Option<&AtRisk>, let_in: Timestamp) -> Timestamp {
    let (since, rest) = match known {
        None => (let_in, EVERY),
        Some(known) => {
            let rest = SignedDuration::from_secs(known.took_seconds.saturating_mul(REST));
            (known.asked_at.0, rest.max(EVERY))
        }
    };
    since.saturating_add(rest).unwrap_or(Timestamp::MAX)
}

fn nothing_yet(now: Timestamp) -> AtRisk {
    AtRisk {
        asked_at: Time(now),
        took_seconds: 0,
        job: None,
        measured_at: None,
        inserted: 0,
        updated: 0,
        deleted: 0,
        tables: Vec::new(),
        failure: None,
    }
}

/// What a Job that ended says. Without a count the last one stays, with its time.
fn note(record: &mut AtRisk, uid: &str, report: Option<&JobReport>, detail: &str, now: Timestamp) {
    record.job = Some(uid.to_owned());
    match report {
        Some(JobReport { ok: true, facts: Some(Facts::AtRisk(facts)), .. }) => {
            record.took_seconds = facts.millis / 1000;
            record.measured_at = Some(Time(facts.read_at));
            (record.inserted, record.updated, record.deleted) = (facts.inserted, facts.updated, facts.deleted);
            record.tables = facts.tables.iter().take(TABLES).cloned().collect();
            record.failure = None;
        }
        _ => {
            record.took_seconds = now.duration_since(record.asked_at.0).as_secs().max(0);
            record.failure = Some(super::cut(report.map_or(detail, |report| &report.message).to_owned()));
        }
    }
}
