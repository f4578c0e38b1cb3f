//! The driver: begins phases, keeps their limits, turns back on failure, closes the attempt.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    Action, Observed,
    phase::{self, Context, Done, Phase, Step},
};
use crate::{
    api::{
        MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        upgrade::{Category, Failure, Outcome, PhaseRecord, PhaseState, SnapshotRecord},
    },
    job::protocol::Facts,
};

/// The answer: store the journal first, then do the actions, then look again at `wake` or when something changes.
#[derive(Debug)]
pub struct Decision {
    pub journal: MemoriaUpgradeStatus,
    pub actions: Vec<Action>,
    /// When a limit runs out although nothing changes.
    pub wake: Option<Timestamp>,
}

/// How long a refused action of the way back rests before it is tried again.
const RETRY: crate::api::GoDuration = crate::api::GoDuration::from_secs(10);

/// Longest message kept in a journal, in bytes.
const MAX_MESSAGE: usize = 1024;

/// Decides the next journal and actions of one attempt. A closed attempt asks for nothing, except that a person's abort
/// releases a halted one.
pub fn decide(
    attempt: &str,
    namespace: &str,
    plan: &MemoriaUpgradeSpec,
    journal: &MemoriaUpgradeStatus,
    seen: &Observed,
    now: Timestamp,
) -> Decision {
    let driver = Driver { attempt, namespace, plan, seen, now };
    match (journal.outcome, journal.phases.last()) {
        (Some(Outcome::Halted), _) if seen.orders.abort.is_some() => driver.release(journal),
        (Some(_), _) => Decision { journal: journal.clone(), actions: Vec::new(), wake: None },
        (None, Some(record)) if record.state == PhaseState::Running => driver.continue_phase(journal, record),
        (None, _) => driver.begin_next(journal.clone()),
    }
}

struct Driver<'a> {
    attempt: &'a str,
    namespace: &'a str,
    plan: &'a MemoriaUpgradeSpec,
    seen: &'a Observed,
    now: Timestamp,
}

impl Driver<'_> {
    fn continue_phase(&self, journal: &MemoriaUpgradeStatus, record: &PhaseRecord) -> Decision {
        let Some(phase) = phase::by_name(&record.name) else {
            // A phase of a newer operator; the controller's version check comes before this.
            return Decision { journal: journal.clone(), actions: Vec::new(), wake: None };
        };
        let turning = journal.failure.is_some();
        if !turning
            && !phase.uninterruptible
            && let Some(failure) = self.ordered_end(phase.name)
        {
            return self.turn_back(journal.clone(), failure);
        }
        let wake = if turning { None } else { self.deadline(phase, record) };
        let cx = Context {
            attempt: self.attempt,
            namespace: self.namespace,
            plan: self.plan,
            journal,
            record,
            seen: self.seen,
            now: self.now,
        };
        let step = (phase.step)(&cx);
        if let Some(deadline) = wake
            && self.now >= deadline
            && let Step::Act { message, .. } | Step::Wait { message } = &step
        {
            return self.turn_back(
                journal.clone(),
                Failure {
                    phase: phase.name.to_owned(),
                    category: Category::Environment,
                    reason: "LimitExceeded".to_owned(),
                    message: format!(
                        "{} took longer than its limit of {}: {message}",
                        phase.name,
                        (phase.limit)(self.plan).unwrap_or(crate::api::GoDuration::from_secs(0))
                    ),
                },
            );
        }
        let mut next = journal.clone();
        match (step, &self.seen.refusal) {
            (Step::Act { .. }, Some(refusal)) if !turning => {
                let failure = Failure {
                    phase: phase.name.to_owned(),
                    category: refusal.category,
                    reason: refusal.reason.clone(),
                    message: refusal.message.clone(),
                };
                self.turn_back(next, failure)
            }
            (Step::Act { .. }, Some(refusal)) => {
                // There is nothing further back to turn to: say it, and try again after a while.
                self.say(&mut next, refusal.message.clone(), None);
                let wake = self.now.checked_add(RETRY.signed()).ok();
                Decision { journal: next, actions: Vec::new(), wake }
            }
            (step, _) => self.follow(next, phase, step, turning, wake),
        }
    }

    fn follow(
        &self,
        mut next: MemoriaUpgradeStatus,
        phase: &Phase,
        step: Step,
        turning: bool,
        wake: Option<Timestamp>,
    ) -> Decision {
        match step {
            Step::Act { actions, message } => {
                if next.writers_stopped_at.is_none() && actions.iter().any(|a| matches!(a, Action::Scale { .. })) {
                    next.writers_stopped_at = Some(Time(self.now));
                }
                self.say(&mut next, message, wake);
                Decision { journal: next, actions, wake }
            }
            Step::Wait { message } => {
                self.say(&mut next, message, wake);
                Decision { journal: next, actions: Vec::new(), wake }
            }
            Step::Remember { key, value } => {
                if phase.name == phase::INGESTION_REENABLE && next.writers_back_at.is_none() {
                    next.writers_back_at = Some(Time(self.now));
                }
                if let Some(last) = next.phases.last_mut() {
                    last.done.insert(key, value);
                }
                Decision { journal: next, actions: Vec::new(), wake: Some(self.now) }
            }
            Step::Fail { message, .. } if turning => {
                // There is nothing further back to turn to: wait, and say what for.
                self.say(&mut next, message, None);
                Decision { journal: next, actions: Vec::new(), wake: None }
            }
            Step::Fail { category, reason, message } => {
                let failure = Failure { phase: phase.name.to_owned(), category, reason, message: cut(message) };
                self.turn_back(next, failure)
            }
            Step::Done(done) => {
                self.finish_phase(&mut next, phase, *done);
                if turning { self.close_turned(next, phase) } else { self.begin_next(next) }
            }
        }
    }

    /// Begins the next phase of the way forward, or closes the attempt when there is none.
    fn begin_next(&self, mut journal: MemoriaUpgradeStatus) -> Decision {
        let last = journal.phases.last().map(|record| record.name.as_str());
        let next = match last {
            None => phase::FORWARD.first(),
            Some(last) => {
                let at = phase::FORWARD.iter().position(|phase| phase.name == last);
                at.and_then(|at| phase::FORWARD.get(at + 1))
            }
        };
        let Some(next) = next else {
            return self.close(journal, Outcome::Succeeded, format!("{} runs, verified", self.plan.to));
        };
        if let Some(failure) = self.ordered_end(next.name) {
            return self.turn_back(journal, failure);
        }
        if self.seen.orders.suspend {
            let stopped = match (&journal.writers_stopped_at, &journal.writers_back_at) {
                (Some(_), None) => "writers are stopped meanwhile",
                _ => "writers run meanwhile",
            };
            journal.message = Some(format!("suspended before {} by spec.suspend; {stopped}", next.name));
            return Decision { journal, actions: Vec::new(), wake: None };
        }
        self.begin(&mut journal, next);
        Decision { journal, actions: Vec::new(), wake: Some(self.now) }
    }

    fn begin(&self, journal: &mut MemoriaUpgradeStatus, phase: &Phase) {
        journal.phases.push(PhaseRecord {
            name: phase.name.to_owned(),
            state: PhaseState::Running,
            started_at: Time(self.now),
            finished_at: None,
            message: String::new(),
            done: Default::default(),
        });
        journal.phase = Some(phase.name.to_owned());
        journal.message = Some(format!("{} begins", phase.name));
    }

    fn finish_phase(&self, journal: &mut MemoriaUpgradeStatus, phase: &Phase, done: Done) {
        if let Some(record) = journal.phases.last_mut() {
            record.state = PhaseState::Passed;
            record.finished_at = Some(Time(self.now));
            record.message = cut(done.message);
        }
        if phase.name == phase::RESUME.name {
            journal.writers_back_at = journal.writers_stopped_at.as_ref().map(|_| Time(self.now));
        }
        match done.facts {
            Some(Facts::Snapshot(facts)) => {
                journal.snapshot = Some(SnapshotRecord {
                    claim_name: self.plan.storage.claim_name.clone(),
                    directory: self.plan.storage.directory.clone(),
                    bytes: facts.bytes,
                    tables: facts.tables,
                    rows: facts.rows,
                    manifest_sha256: facts.manifest_sha256,
                    data_digest: facts.data_digest,
                    verified_at: Time(self.now),
                });
            }
            Some(Facts::Migrate(facts)) => journal.migrations = facts.migrations,
            Some(Facts::Check(facts)) => {
                for check in facts.checks {
                    journal.checks.retain(|known| known.name != check.name);
                    journal.checks.push(check);
                }
            }
            _ => {}
        }
    }

    /// Records why, and begins the way back that fits how far the attempt came.
    fn turn_back(&self, mut journal: MemoriaUpgradeStatus, mut failure: Failure) -> Decision {
        failure.message = cut(failure.message);
        let began = |name: &str| journal.phases.iter().any(|record| record.name == name);
        let (moved, ingesting) = (began(phase::IMAGE_BUMP), began(phase::INGESTION_REENABLE));
        let untouched = !began(phase::QUIESCE);
        if let Some(record) = journal.phases.last_mut().filter(|record| record.state == PhaseState::Running) {
            record.state = PhaseState::Failed;
            record.finished_at = Some(Time(self.now));
            record.message.clone_from(&failure.message);
        }
        let message = failure.message.clone();
        journal.failure = Some(failure);
        if untouched {
            return self.close(journal, Outcome::Aborted, message);
        }
        let back = match (moved, ingesting) {
            (_, true) => phase::LEAVE,
            (true, false) => phase::HALT,
            (false, false) => phase::RESUME,
        };
        self.begin(&mut journal, back);
        Decision { journal, actions: Vec::new(), wake: Some(self.now) }
    }

    fn close_turned(&self, journal: MemoriaUpgradeStatus, phase: &Phase) -> Decision {
        let cause = journal.failure.as_ref().map(|f| format!("{} failed: {}", f.phase, f.message)).unwrap_or_default();
        let outcome = match phase.name {
            name if name == phase::HALT.name => Outcome::Halted,
            name if name == phase::LEAVE.name => Outcome::Unverified,
            _ => Outcome::Resumed,
        };
        self.close(journal, outcome, cause)
    }

    fn close(&self, mut journal: MemoriaUpgradeStatus, outcome: Outcome, message: String) -> Decision {
        journal.outcome = Some(outcome);
        journal.finished_at = Some(Time(self.now));
        journal.phase = Some(format!("{outcome:?}"));
        journal.message = Some(cut(message));
        Decision { journal, actions: Vec::new(), wake: None }
    }

    /// A halted attempt that a person aborts: the marks go, everything else stays as it is.
    fn release(&self, journal: &MemoriaUpgradeStatus) -> Decision {
        let marked = |seen: &super::seen::Workload| seen.attempt.as_deref() == Some(self.attempt);
        let targets = self.plan.targets.iter().filter_map(|t| {
            let seen = self.seen.targets.get(&t.name).filter(|seen| seen.uid == t.uid && marked(seen))?;
            Some(Action::Unmark { workload: t.workload.clone(), uid: seen.uid.clone() })
        });
        let workers = self.plan.workers.iter().filter_map(|w| {
            let seen = self.seen.workers.get(&w.workload).filter(|seen| seen.uid == w.uid && marked(seen))?;
            Some(Action::Unmark { workload: w.workload.clone(), uid: seen.uid.clone() })
        });
        let actions: Vec<_> = targets.chain(workers).collect();
        if actions.is_empty() {
            let who = self.seen.orders.abort.clone().unwrap_or_default();
            return self.close(
                journal.clone(),
                Outcome::Aborted,
                format!("released by decision {who}; replicas, images and data were left as they are"),
            );
        }
        Decision { journal: journal.clone(), actions, wake: None }
    }

    fn ordered_end(&self, phase: &str) -> Option<Failure> {
        let why = match (&self.seen.orders.abort, self.seen.orders.deleting) {
            (Some(decision), _) => format!("aborted by decision {decision}"),
            (None, true) => "the release is being deleted".to_owned(),
            (None, false) => return None,
        };
        Some(Failure {
            phase: phase.to_owned(),
            category: Category::Decision,
            reason: "Aborted".to_owned(),
            message: why,
        })
    }

    fn deadline(&self, phase: &Phase, record: &PhaseRecord) -> Option<Timestamp> {
        let limit = (phase.limit)(self.plan)?;
        record.started_at.0.checked_add(limit.signed()).ok()
    }

    /// Puts what is awaited, and until when, into record and journal; unchanged words change nothing.
    fn say(&self, journal: &mut MemoriaUpgradeStatus, message: String, until: Option<Timestamp>) {
        let message = match until {
            Some(until) => format!("{message}; limit {}", until.strftime("%Y-%m-%dT%H:%M:%SZ")),
            None => message,
        };
        let message = cut(message);
        if let Some(record) = journal.phases.last_mut() {
            record.message.clone_from(&message);
        }
        journal.message = Some(message);
    }
}

/// At most [`MAX_MESSAGE`] bytes, cut between characters.
pub(crate) fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = message.floor_char_boundary(MAX_MESSAGE - 3);
        message.truncate(end);
        message.push('…');
    }
    message
}
