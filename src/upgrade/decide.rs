//! The driver: begins phases, keeps their limits, turns back on failure, closes the attempt.

use std::borrow::Cow;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    Action, Observed, at_risk, hold,
    phase::{self, Context, Done, Phase, Step},
    retry,
};
use crate::{
    api::{
        MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        decision::DecisionAction,
        upgrade::{
            Category, DecisionRecord, Failure, Outcome, PhaseRecord, PhaseState, RollbackRecord, SnapshotRecord,
        },
    },
    commands::Command,
    job::protocol::{Facts, RestoreFacts},
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
pub(super) const RETRY: crate::api::GoDuration = crate::api::GoDuration::from_secs(10);

/// Longest message kept in a journal, in bytes.
const MAX_MESSAGE: usize = 1024;

/// At most so many steps of bookkeeping are decided on one observation.
const MAX_STEPS: usize = 16;

/// Decides the next journal and actions of one attempt. A closed attempt asks for nothing, except that a person's
/// decision takes it back, or releases one that stopped with writers off.
///
/// Steps that only keep books (a phase ends, the next one begins, something is remembered) are decided one after the other
/// on the same observation: stored at once, they cost one write instead of several, and nothing is done before that.
pub fn decide(
    attempt: &str,
    namespace: &str,
    plan: &MemoriaUpgradeSpec,
    journal: &MemoriaUpgradeStatus,
    seen: &Observed,
    now: Timestamp,
) -> Decision {
    let mut decision = decide_step(attempt, namespace, plan, journal, seen, now);
    // A refusal, and a person's order, are answered by one step; the next one must not take them for its own.
    let orders = &seen.orders;
    let ordered = [&orders.abort, &orders.rollback, &orders.accept_data_loss, &orders.retry];
    if seen.refusal.is_some() || ordered.into_iter().any(Option::is_some) {
        return at_risk::watch(plan, seen, now, decision);
    }
    for _ in 1..MAX_STEPS {
        let keeps_books = decision.actions.is_empty() && decision.wake.is_some_and(|wake| wake <= now);
        if !keeps_books || decision.journal.outcome.is_some() {
            break;
        }
        decision = decide_step(attempt, namespace, plan, &decision.journal, seen, now);
    }
    at_risk::watch(plan, seen, now, decision)
}

fn decide_step(
    attempt: &str,
    namespace: &str,
    plan: &MemoriaUpgradeSpec,
    journal: &MemoriaUpgradeStatus,
    seen: &Observed,
    now: Timestamp,
) -> Decision {
    let driver = Driver { attempt, namespace, plan, seen, now };
    let heard = match journal.outcome {
        None => driver.ask_now(journal),
        Some(_) => Cow::Borrowed(journal),
    };
    let journal = heard.as_ref();
    match (journal.outcome, journal.phases.last()) {
        (Some(outcome), _) if driver.may_go_back(outcome, journal) => driver.go_back(journal.clone()),
        (Some(Outcome::Halted | Outcome::RollbackFailed), _) if seen.orders.abort.is_some() => driver.release(journal),
        (Some(outcome), _) if seen.orders.retry.is_some() => driver.retry_ended(outcome, journal),
        (Some(_), _) => Decision { journal: journal.clone(), actions: Vec::new(), wake: None },
        (None, Some(record)) if record.state == PhaseState::Running => driver.continue_phase(journal, record),
        (None, _) => driver.begin_next(journal.clone()),
    }
}

/// One question: its arguments but for the journal, which changes on the way to the answer.
pub(super) struct Driver<'a> {
    pub attempt: &'a str,
    pub namespace: &'a str,
    pub plan: &'a MemoriaUpgradeSpec,
    pub seen: &'a Observed,
    pub now: Timestamp,
}

impl<'a> Driver<'a> {
    pub fn context(&self, journal: &'a MemoriaUpgradeStatus, record: &'a PhaseRecord) -> Context<'a> {
        Context {
            attempt: self.attempt,
            namespace: self.namespace,
            plan: self.plan,
            journal,
            record,
            seen: self.seen,
            now: self.now,
        }
    }
}

impl Driver<'_> {
    fn continue_phase(&self, journal: &MemoriaUpgradeStatus, record: &PhaseRecord) -> Decision {
        let Some(phase) = phase::by_name(&record.name) else {
            // A phase of a newer operator; the controller's version check comes before this.
            return Decision { journal: journal.clone(), actions: Vec::new(), wake: None };
        };
        let turning = journal.failure.is_some();
        let mut held = journal.clone();
        if let Some(failure) = hold::expire(&mut held, self.now) {
            return self.turn_back(held, failure);
        }
        // An attempt that goes back already does what an abort asks for. Left open, the decision would release the
        // attempt at the moment when the way back fails, which is not what anybody meant.
        if let (true, Some(decision)) = (turning && phase.name != phase::HALT.name, &self.seen.orders.abort) {
            self.decided(&mut held, decision, DecisionAction::Abort);
        }
        let journal = &held;
        if !turning
            && !phase.uninterruptible
            && let Some(failure) = self.ordered_end(phase.name)
        {
            return self.turn_back(journal.clone(), failure);
        }
        let wake = match &journal.hold {
            Some(_) => hold::wake(journal),
            None if turning && !is_back(phase) => None,
            None => self.deadline(phase, record),
        };
        let cx = self.context(journal, record);
        let step = (phase.step)(&cx);
        if let Some(deadline) = wake.filter(|_| journal.hold.is_none())
            && self.now >= deadline
            && let Step::Act { message, .. } | Step::Wait { message } = &step
        {
            let failure = Failure {
                phase: phase.name.to_owned(),
                category: Category::Environment,
                reason: "LimitExceeded".to_owned(),
                message: cut(format!(
                    "{} took longer than its limit of {}: {message}",
                    phase.name,
                    (phase.limit)(self.plan).unwrap_or(crate::api::GoDuration::from_secs(0))
                )),
            };
            return match turning {
                true => self.stop_back(journal.clone(), failure),
                false => self.turn_back(journal.clone(), failure),
            };
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
                hold::asked(&mut next);
                if next.writers_stopped_at.is_none() && actions.iter().any(Action::moves_writers) {
                    next.writers_stopped_at = Some(Time(self.now));
                }
                self.say(&mut next, message, wake);
                Decision { journal: next, actions, wake }
            }
            Step::Hold { why, retry } => {
                hold::enter(self.plan, &mut next, why, self.now);
                let actions = hold::ask_again(&mut next, retry, self.now);
                if let Some(hold) = &next.hold {
                    let sentence = hold::sentence(hold);
                    self.say(&mut next, sentence, None);
                }
                let wake = hold::wake(&next);
                Decision { journal: next, actions, wake }
            }
            Step::Wait { message } => {
                let asked = phase::asked(self.seen.jobs.get(phase::RESTORE)).filter(|_| turning && !accepted(&next));
                if let Some(report) = asked.filter(|_| phase.name == phase::IMPORT_SNAPSHOT) {
                    let record = rollback(&mut next);
                    record.awaiting = Some(format!("{:?}", DecisionAction::AcceptDataLoss));
                    // Whoever decides sees of which tables the rows are.
                    if let Some(Facts::Restore(facts)) = &report.facts {
                        note_late(record, facts.clone());
                    }
                }
                self.say(&mut next, message, wake);
                // A pod that outlives its grace period is worth saying although nothing changes.
                let due = self.seen.next_due(self.now);
                Decision { journal: next, actions: Vec::new(), wake: wake.into_iter().chain(due).min() }
            }
            Step::Remember { key, value } => {
                hold::leave(&mut next, self.now);
                if phase.name == phase::INGESTION_REENABLE && next.writers_back_at.is_none() {
                    next.writers_back_at = Some(Time(self.now));
                }
                if phase.name == phase::IMPORT_SNAPSHOT && key == phase::ACCEPTED {
                    self.decided(&mut next, &value, DecisionAction::AcceptDataLoss);
                    rollback(&mut next).awaiting = None;
                }
                if let Some(last) = next.phases.last_mut() {
                    last.done.insert(key, value);
                }
                Decision { journal: next, actions: Vec::new(), wake: Some(self.now) }
            }
            Step::Fail { category, reason, message } if is_back(phase) => {
                let failure = Failure { phase: phase.name.to_owned(), category, reason, message: cut(message) };
                self.stop_back(next, failure)
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
                hold::leave(&mut next, self.now);
                self.finish_phase(&mut next, phase, *done);
                if turning { self.close_turned(next, phase) } else { self.begin_next(next) }
            }
        }
    }

    /// Begins the next phase of the way forward, or closes the attempt when there is none.
    fn begin_next(&self, mut journal: MemoriaUpgradeStatus) -> Decision {
        let last = journal.phases.last().map(|record| record.name.as_str());
        if journal.failure.is_some() {
            return self.go_on_back(journal);
        }
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
            return self.suspended(journal, next);
        }
        self.begin(&mut journal, next);
        Decision { journal, actions: Vec::new(), wake: Some(self.now) }
    }

    fn suspended(&self, mut journal: MemoriaUpgradeStatus, next: &Phase) -> Decision {
        let stopped = match (&journal.writers_stopped_at, &journal.writers_back_at) {
            (Some(_), None) => "writers are stopped meanwhile",
            _ => "writers run meanwhile",
        };
        let message = format!("suspended before {} by spec.suspend; {stopped}", next.name);
        let why = hold::Reason {
            phase: next.name.to_owned(),
            reason: "Suspended".to_owned(),
            message: message.clone(),
            next_command: unsuspend(self.namespace, &self.plan.release_name),
        };
        hold::enter(self.plan, &mut journal, why, self.now);
        journal.message = Some(message);
        match hold::expire(&mut journal, self.now) {
            Some(failure) => self.turn_back(journal, failure),
            None => {
                let wake = hold::wake(&journal);
                Decision { journal, actions: Vec::new(), wake }
            }
        }
    }

    pub fn begin(&self, journal: &mut MemoriaUpgradeStatus, phase: &Phase) {
        journal.hold = None;
        journal.phases.push(PhaseRecord {
            name: phase.name.to_owned(),
            state: PhaseState::Running,
            started_at: Time(self.now),
            finished_at: None,
            message: String::new(),
            done: Default::default(),
            held_seconds: 0,
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
        if phase.name == phase::RESUME.name || phase.name == phase::RESUME_INGESTION {
            journal.writers_back_at = journal.writers_stopped_at.as_ref().map(|_| Time(self.now));
        }
        if let Some(config) = phase::config_record(phase.name, self.plan, journal) {
            journal.config = Some(config);
        }
        match done.facts {
            Some(Facts::Snapshot(facts)) => {
                journal.snapshot = Some(SnapshotRecord {
                    claim_name: self.plan.storage.claim_name.clone(),
                    url: self.plan.storage.url.clone(),
                    directory: self.plan.storage.directory.clone(),
                    encrypted: self.plan.storage.encrypted,
                    bytes: facts.bytes,
                    tables: facts.tables,
                    rows: facts.rows,
                    manifest_sha256: facts.manifest_sha256,
                    data_digest: facts.data_digest,
                    portable_directory: facts.portable_directory,
                    verified_at: Time(self.now),
                    scratch_restore_seconds: facts.scratch_restore_millis.map(|millis| (millis + 999) / 1000),
                });
            }
            Some(Facts::Migrate(facts)) => journal.migrations = facts.migrations,
            Some(Facts::Restore(facts)) => {
                let record = rollback(journal);
                record.awaiting = None;
                record.restored = Some(facts.restored);
                record.data_digest = Some(facts.data_digest.clone());
                record.rows = Some(facts.rows);
                note_late(record, facts);
            }
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
        let (message, category) = (failure.message.clone(), failure.category);
        journal.failure = Some(failure);
        if let (Category::Decision, Some(decision)) = (category, &self.seen.orders.abort) {
            self.decided(&mut journal, decision, DecisionAction::Abort);
        }
        journal.hold = None;
        if untouched {
            return self.close(journal, Outcome::Aborted, message);
        }
        // What a person ends is taken back whatever `automatic` says: it asks about failures.
        let wanted = self.plan.rollback.automatic || category == Category::Decision;
        let can = self.plan.jobs.iter().any(|job| job.step == phase::RESTORE) && journal.snapshot.is_some();
        let back = match (moved, ingesting) {
            (false, _) => phase::RESUME,
            (true, _) if wanted && can => return self.go_on_back(journal),
            (true, true) => phase::LEAVE,
            (true, false) => phase::HALT,
        };
        self.begin(&mut journal, back);
        Decision { journal, actions: Vec::new(), wake: Some(self.now) }
    }

    /// Begins the next phase of the way back, or closes the attempt when there is none.
    fn go_on_back(&self, mut journal: MemoriaUpgradeStatus) -> Decision {
        let last = journal.phases.last().filter(|record| record.state == PhaseState::Passed);
        let at = last.and_then(|last| phase::BACK.iter().position(|phase| phase.name == last.name));
        let Some(next) = phase::BACK.get(at.map_or(0, |at| at + 1)) else {
            let cause = cause(&journal);
            return self.close(journal, Outcome::RolledBack, cause);
        };
        if at.is_some() && self.seen.orders.suspend {
            return self.suspended(journal, next);
        }
        rollback(&mut journal);
        if at.is_none() && journal.writers_back_at.is_some() {
            // They are stopped a second time.
            (journal.writers_stopped_at, journal.writers_back_at) = (None, None);
        }
        self.begin(&mut journal, next);
        Decision { journal, actions: Vec::new(), wake: Some(self.now) }
    }

    /// The way back failed: writers stay stopped, both copies of the data are kept.
    fn stop_back(&self, mut journal: MemoriaUpgradeStatus, failure: Failure) -> Decision {
        if let Some(record) = journal.phases.last_mut() {
            record.state = PhaseState::Failed;
            record.finished_at = Some(Time(self.now));
            record.message.clone_from(&failure.message);
        }
        let record = rollback(&mut journal);
        record.awaiting = None;
        record.failure = Some(failure);
        journal.writers_back_at = None;
        self.begin(&mut journal, phase::HALT);
        Decision { journal, actions: Vec::new(), wake: Some(self.now) }
    }

    /// Whether a person's decision can take this ended attempt back.
    fn may_go_back(&self, outcome: Outcome, journal: &MemoriaUpgradeStatus) -> bool {
        let (rollback, retry) = (self.seen.orders.rollback.is_some(), self.seen.orders.retry.is_some());
        let ordered = match outcome {
            Outcome::Succeeded | Outcome::Unverified | Outcome::Halted => rollback,
            // Either way the whole way back begins anew: nobody has looked since it failed.
            Outcome::RollbackFailed => rollback || retry && !retry::is_worn_out(journal),
            Outcome::Resumed | Outcome::Aborted | Outcome::RolledBack => false,
        };
        ordered && journal.snapshot.is_some() && self.plan.jobs.iter().any(|job| job.step == phase::RESTORE)
    }

    /// Opens an ended attempt again, to take it back.
    fn go_back(&self, mut journal: MemoriaUpgradeStatus) -> Decision {
        let orders = &self.seen.orders;
        let (decision, action) = match (&orders.rollback, &orders.retry) {
            (None, Some(retry)) => (retry.clone(), DecisionAction::Retry),
            (rollback, _) => (rollback.clone().unwrap_or_default(), DecisionAction::Rollback),
        };
        self.decided(&mut journal, &decision, action);
        let failure = Failure {
            phase: journal.phases.last().map(|record| record.name.clone()).unwrap_or_default(),
            category: Category::Decision,
            reason: "TakenBack".to_owned(),
            message: format!("taken back by decision {decision}"),
        };
        journal.failure.get_or_insert(failure);
        let halted = journal.outcome == Some(Outcome::Halted);
        let known = phase::still_true(phase::ROLLBACK_QUIESCE, self.plan, &journal, self.seen);
        journal.rollback = None;
        journal.outcome = None;
        journal.finished_at = None;
        let mut decision = self.go_on_back(journal);
        // A writer that came and went since it halted is found by these, and the restore then looks for its rows.
        if let Some(record) = decision.journal.phases.last_mut().filter(|_| halted) {
            record.done = known;
        }
        decision
    }

    fn close_turned(&self, journal: MemoriaUpgradeStatus, phase: &Phase) -> Decision {
        if is_back(phase) {
            return self.go_on_back(journal);
        }
        let failed_back = journal.rollback.as_ref().and_then(|rollback| rollback.failure.as_ref());
        let (outcome, message) = match (phase.name, failed_back) {
            (name, Some(back)) if name == phase::HALT.name => {
                let message = format!("{} failed: {}; before that, {}", back.phase, back.message, cause(&journal));
                (Outcome::RollbackFailed, message)
            }
            (name, None) if name == phase::HALT.name => (Outcome::Halted, cause(&journal)),
            (name, _) if name == phase::LEAVE.name => (Outcome::Unverified, cause(&journal)),
            _ => (Outcome::Resumed, cause(&journal)),
        };
        self.close(journal, outcome, message)
    }

    /// Notes that a decision was acted on; it is not acted on twice.
    pub fn decided(&self, journal: &mut MemoriaUpgradeStatus, name: &str, action: DecisionAction) {
        self.answered(journal, name, action, None);
    }

    /// The same, or why nothing is done.
    pub fn answered(
        &self,
        journal: &mut MemoriaUpgradeStatus,
        name: &str,
        action: DecisionAction,
        refused: Option<String>,
    ) {
        if journal.decisions.iter().all(|known| known.name != name) {
            let decided_by = self.seen.orders.decided_by.get(name).cloned();
            let (name, at, refused) = (name.to_owned(), Time(self.now), refused.map(cut));
            journal.decisions.push(DecisionRecord { name, action, at, decided_by, refused });
        }
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
            Some(Action::Unmark { workload: (&t.workload).into(), uid: seen.uid.clone() })
        });
        let workers = self.plan.workers.iter().filter_map(|w| {
            let seen = self.seen.workers.get(&w.workload).filter(|seen| seen.uid == w.uid && marked(seen))?;
            Some(Action::Unmark { workload: w.workload.clone(), uid: seen.uid.clone() })
        });
        let actions: Vec<_> = targets.chain(workers).collect();
        if actions.is_empty() {
            let who = self.seen.orders.abort.clone().unwrap_or_default();
            let mut journal = journal.clone();
            self.decided(&mut journal, &who, DecisionAction::Abort);
            return self.close(
                journal,
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
            (None, false) if self.seen.orders.returned => format!("spec.version is {} again", self.plan.from),
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
        let held = jiff::SignedDuration::from_secs(record.held_seconds);
        record.started_at.0.checked_add(limit.signed()).ok()?.checked_add(held).ok()
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

/// Whether it is a phase of the way back, which can itself fail.
fn is_back(phase: &Phase) -> bool {
    phase::BACK.iter().any(|back| back.name == phase.name)
}

fn rollback(journal: &mut MemoriaUpgradeStatus) -> &mut RollbackRecord {
    journal.rollback.get_or_insert_default()
}

/// What clients wrote late, and where it is kept.
fn note_late(record: &mut RollbackRecord, facts: RestoreFacts) {
    record.failed_state = facts.failed_state;
    record.late_inserted = facts.late_inserted;
    record.late_updated = facts.late_updated;
    record.late_deleted = facts.late_deleted;
    record.late_carried = facts.late_carried;
    record.late_tables = facts.late_tables;
}

fn accepted(journal: &MemoriaUpgradeStatus) -> bool {
    journal.phases.last().is_some_and(|record| record.done.contains_key(phase::ACCEPTED))
}

/// Why the attempt turned back, in words.
fn cause(journal: &MemoriaUpgradeStatus) -> String {
    journal.failure.as_ref().map(|f| format!("{} failed: {}", f.phase, f.message)).unwrap_or_default()
}

/// The command that ends `spec.suspend`.
pub(crate) fn unsuspend(namespace: &str, release: &str) -> String {
    Command::Unsuspend { release }.in_namespace(namespace)
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
