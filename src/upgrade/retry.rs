//! Retry: a person says that the cause is mended, and what waits, or what failed, is tried once more under the same plan.
//! What may not be tried again is refused, with what to do instead.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    Action, Decision,
    decide::{Driver, RETRY},
    phase::{self, Member, Phase, Step},
    seen::{JobSeen, JobState, Switch},
};
use crate::{
    api::{
        MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        decision::DecisionAction,
        upgrade::{Category, Failure, Outcome, PhaseRecord},
    },
    commands::Command,
};

/// A journal takes 64 phases: this leaves room for the whole way back, twice.
const MAX_PHASES: usize = 48;

/// What the guard answers only while no migration has begun. Its marker refuses to begin a second time in any case.
const NOT_BEGUN: [&str; 4] = ["UnfinishedAttempt", "WrongDatabase", "SnapshotMissing", "ManifestMismatch"];

/// The phase that an attempt which ended as Halted can begin again, by its journal alone; or why it cannot, and what is
/// to be done instead. Whether the world is still as it was left is looked at when the order is carried out.
pub fn forward(plan: &MemoriaUpgradeSpec, journal: &MemoriaUpgradeStatus) -> Result<&'static Phase, String> {
    let back = "take the attempt back by a decision with action Rollback";
    let Some(failure) = &journal.failure else { return Err(format!("it says no failure; {back}")) };
    let Failure { phase, category, reason, .. } = failure;
    let at = phase::FORWARD.iter().position(|known| known.name == *phase);
    let start = phase::FORWARD.iter().position(|known| known.name == phase::START);
    // Halt has stopped the servers: whatever comes after Start begins there again.
    let Some(phase) = at.zip(start).and_then(|(at, start)| phase::FORWARD.get(at.min(start))) else {
        return Err(format!("{phase} is no phase of the way forward; {back}"));
    };
    match category {
        Category::Candidate => {
            return Err(format!(
                "{} failed by the new version's own fault ({reason}), and would again; {back}, then set a mended version",
                failure.phase
            ));
        }
        Category::Decision => return Err(format!("a person has ended it; {back}")),
        _ => {}
    }
    if phase::wrote_unasked(journal) {
        return Err(format!("something wrote to the database after its snapshot ({reason}); {back}"));
    }
    if journal.snapshot.is_none() || journal.rollback.is_some() {
        return Err(
            "its data is no longer that of the way forward; release it by a decision with action Abort".to_owned()
        );
    }
    let began = journal.phases.iter().any(|record| record.name == phase.name);
    let begun = phase.name == phase::MIGRATE && began && *category != Category::Transient;
    if begun && !NOT_BEGUN.contains(&reason.as_str()) && plan.jobs.iter().any(|job| job.step == phase::MIGRATE_STEP) {
        return Err(format!(
            "its migrations were begun, or nobody knows whether they were ({reason}), and are never run again; {back}"
        ));
    }
    if is_worn_out(journal) {
        return Err(format!("it was tried too often; {back}"));
    }
    Ok(phase)
}

/// Whether the journal has no room for another try beside a way back.
pub fn is_worn_out(journal: &MemoriaUpgradeStatus) -> bool {
    journal.phases.len() > MAX_PHASES
}

impl Driver<'_> {
    /// What Retry means to an open attempt: a check that rests is asked now, and anything else is refused.
    pub(super) fn ask_now<'a>(&self, journal: &'a MemoriaUpgradeStatus) -> Cow<'a, MemoriaUpgradeStatus> {
        let Some(decision) = &self.seen.orders.retry else { return Cow::Borrowed(journal) };
        let mut next = journal.clone();
        let awaits = journal.rollback.as_ref().and_then(|rollback| rollback.awaiting.as_ref());
        let refusal = match &mut next.hold {
            Some(hold) if hold.reason == "Suspended" => {
                Some(format!("spec.suspend holds it; to go on: {}", hold.next_command))
            }
            Some(hold) => {
                // One that is being asked just now has no next try.
                hold.next_try = hold.next_try.take().map(|_| Time(self.now));
                None
            }
            None if awaits.is_some() => Some(format!(
                "it waits for a decision about the data; to go on: {}",
                self.order(DecisionAction::AcceptDataLoss)
            )),
            None => Some("it is under way, and nothing of it rests; look again when it holds or has ended".to_owned()),
        };
        self.answered(&mut next, decision, DecisionAction::Retry, refusal);
        Cow::Owned(next)
    }

    /// What Retry means to an attempt that has ended.
    pub(super) fn retry_ended(&self, outcome: Outcome, journal: &MemoriaUpgradeStatus) -> Decision {
        let answer = match outcome {
            Outcome::Halted => self.begin_again(journal),
            Outcome::RollbackFailed if is_worn_out(journal) => {
                Err("it was tried too often; see docs/runbooks/rescue.md".to_owned())
            }
            Outcome::RollbackFailed => {
                Err("no verified snapshot is there to take it back to; see docs/runbooks/rescue.md".to_owned())
            }
            Outcome::Succeeded => Err("the attempt has succeeded, there is nothing to try again".to_owned()),
            Outcome::Unverified => Err("the new version runs and has taken writes; mend the cause and ask for pre-flight \
                                        again (annotation memoria.arca.run/requested-at), or order Rollback"
                .to_owned()),
            Outcome::Resumed | Outcome::Aborted | Outcome::RolledBack => Err("the attempt is over, and a new one makes a \
                                                                              new plan: ask for pre-flight again \
                                                                              (annotation memoria.arca.run/requested-at)"
                .to_owned()),
        };
        answer.unwrap_or_else(|why| {
            let mut next = journal.clone();
            if let Some(decision) = &self.seen.orders.retry {
                self.answered(&mut next, decision, DecisionAction::Retry, Some(why));
            }
            Decision { journal: next, actions: Vec::new(), wake: None }
        })
    }

    /// Opens a halted attempt again at the phase that failed, once nothing of its last try is left.
    fn begin_again(&self, journal: &MemoriaUpgradeStatus) -> Result<Decision, String> {
        let phase = forward(self.plan, journal)?;
        let Some(halt) = journal.phases.last() else { return Err("its journal is empty".to_owned()) };
        self.is_as_left(journal, halt, phase)?;
        let foreign = self.seen.jobs.iter().find(|(_, job)| matches!(job.state, JobState::Foreign { .. }));
        if let Some((step, _)) = foreign {
            return Err(format!(
                "a job named {}-{step} is not this attempt's; delete it, then order it again",
                self.attempt
            ));
        }
        let failed = self.seen.jobs.iter().filter(|(_, job)| !went_well(job));
        let jobs = failed.map(|(step, job)| Action::DeleteJob { step: step.clone(), uid: job.uid.clone() });
        let pods = self.seen.candidates.iter().filter(|(_, pod)| !pod.deleting);
        let pods = pods.map(|(target, pod)| Action::DeleteCandidate { target: target.clone(), uid: pod.uid.clone() });
        let actions: Vec<_> = jobs.chain(pods).collect();
        if !actions.is_empty() || !self.seen.candidates.is_empty() {
            let rest = if actions.is_empty() { self.now.checked_add(RETRY.signed()).ok() } else { Some(self.now) };
            return Ok(Decision { journal: journal.clone(), actions, wake: rest });
        }
        let mut next = journal.clone();
        if let Some(decision) = &self.seen.orders.retry {
            self.decided(&mut next, decision, DecisionAction::Retry);
        }
        (next.failure, next.outcome, next.finished_at) = (None, None, None);
        let known = phase::still_true(phase.name, self.plan, journal, self.seen);
        self.begin(&mut next, phase);
        if let Some(record) = next.phases.last_mut() {
            record.done = known;
        }
        Ok(Decision { journal: next, actions: Vec::new(), wake: Some(self.now) })
    }

    /// Nobody has looked since it halted: the marks must be there, nothing may run, and where no digest will be compared
    /// any more, nothing may have run.
    fn is_as_left(&self, journal: &MemoriaUpgradeStatus, halt: &PhaseRecord, phase: &Phase) -> Result<(), String> {
        let writers = self.context(journal, halt).writers().map_err(|step| match step {
            Step::Fail { message, .. } => message,
            other => format!("{other:?}"),
        })?;
        let compared = [phase::IMAGE_BUMP, phase::MIGRATE].contains(&phase.name);
        for writer in &writers {
            let Member { reference, seen, .. } = writer;
            if seen.attempt.as_deref() != Some(self.attempt) {
                return Err(format!("{reference} does not bear the attempt's mark any more; order Abort or Rollback"));
            }
            if !seen.is_gone() {
                return Err(format!(
                    "{reference} runs although the attempt keeps it stopped, so the data is not proved any more; find what \
                     starts it, then order Rollback"
                ));
            }
            // What KEDA scales leaves no trace on the ScaledObject.
            let unwatched = matches!(seen.switch, Switch::Paused { .. }) || !phase::stood_still(halt, writer);
            if unwatched && !compared {
                return Err(format!(
                    "{reference} may have run while nobody watched it, so the data is not proved any more; order Rollback"
                ));
            }
        }
        Ok(())
    }

    fn order(&self, action: DecisionAction) -> String {
        Command::Decide { release: &self.plan.release_name, attempt: self.attempt, action }.in_namespace(self.namespace)
    }
}

fn went_well(job: &JobSeen) -> bool {
    matches!(&job.state, JobState::Finished { report: Some(report), .. } if report.ok)
}
