//! Whether the upgrade of the data is rehearsed on a copy, and what its answer means: a failure refuses the version, no
//! answer is a warning or a wait, and the measured times are the plan's estimates.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use super::judge::result;
use crate::{
    api::{
        release::{CheckResult, Rehearse, Verdict},
        upgrade::Estimates,
    },
    job::{
        manifest::RenderError,
        protocol::{Facts, JobReport, RehearsalFacts},
    },
    upgrade::seen::{JobSeen, JobState},
};

/// The step of its Job, and the name of its check.
pub(super) const STEP: &str = "rehearsal";

/// Where the rehearsal stands.
#[derive(Debug)]
pub(super) enum Rehearsed {
    Create(Box<Job>),
    Wait(String),
    /// Its check, and what it measured.
    Done(CheckResult, Option<Estimates>),
}

/// `over`: the time of all pre-flight Jobs is up.
pub(super) fn judge(job: Result<Job, RenderError>, seen: Option<&JobSeen>, over: bool, limit: &str) -> Rehearsed {
    let inconclusive = |message: String| Rehearsed::Done(result(STEP, Verdict::Inconclusive, message), None);
    let late = |what: &str| {
        inconclusive(format!("{what} after {limit}; raise timeouts.preFlight, or set rollback.rehearse: Never"))
    };
    let Some(seen) = seen else {
        return match job {
            Ok(_) if over => late("its job could not be begun"),
            Ok(job) => Rehearsed::Create(Box::new(job)),
            Err(error) => Rehearsed::Done(result(STEP, Verdict::Failed, error.to_string()), None),
        };
    };
    match &seen.state {
        JobState::Running { trouble: Some(trouble) } if over || trouble.is_lasting().is_some() => inconclusive(
            format!("its pod does not run: {}: {}; mend that, then ask again", trouble.reason, trouble.message),
        ),
        JobState::Running { .. } if over => late("it still ran"),
        JobState::Running { trouble: Some(trouble) } => {
            Rehearsed::Wait(format!("{STEP} waits ({}: {})", trouble.reason, trouble.message))
        }
        JobState::Running { trouble: None } => Rehearsed::Wait(format!("{STEP} runs")),
        JobState::Finished { report: Some(report), .. } => told(report),
        JobState::Finished { detail, .. } => inconclusive(format!("its job ended without a result: {detail}")),
        JobState::Foreign { detail } => {
            inconclusive(format!("a job of that name is not ours ({detail}); delete it, then ask again"))
        }
    }
}

fn told(report: &JobReport) -> Rehearsed {
    let facts = match &report.facts {
        Some(Facts::Rehearsal(facts)) => Some(facts),
        _ => None,
    };
    let verdict = match (report.ok, facts) {
        (true, Some(_)) => Verdict::Passed,
        (false, Some(facts)) if facts.conclusive => Verdict::Failed,
        _ => Verdict::Inconclusive,
    };
    let estimates = facts.filter(|_| verdict == Verdict::Passed).map(estimates);
    Rehearsed::Done(result(STEP, verdict, report.message.clone()), estimates)
}

fn estimates(facts: &RehearsalFacts) -> Estimates {
    let seconds = |millis: i64| millis.max(0).saturating_add(999).div_euclid(1000);
    Estimates {
        snapshot_seconds: seconds(facts.snapshot_millis),
        migrate_seconds: seconds(facts.migrate_millis),
        restore_seconds: seconds(facts.restore_millis),
    }
}

/// When the Job must have ended: a tenth of the limit remains for its answer.
pub(super) fn until(started_at: Timestamp, limit: std::time::Duration) -> Timestamp {
    started_at.checked_add(limit.mul_f64(0.9)).unwrap_or(started_at)
}

/// Whether a check keeps the plan from standing.
pub(super) fn stops(check: &CheckResult, rehearse: Rehearse) -> bool {
    match check.result {
        Verdict::Passed => false,
        Verdict::Failed => true,
        Verdict::Inconclusive => check.name != STEP || rehearse == Rehearse::Required,
    }
}

/// What the plan says of checks that did not pass and do not stop it.
pub(super) fn warnings(checks: &[CheckResult]) -> Vec<String> {
    let left = checks.iter().filter(|check| check.result != Verdict::Passed);
    left.map(|check| super::super::cut(format!("{}: {}", check.name, check.message))).take(8).collect()
}
