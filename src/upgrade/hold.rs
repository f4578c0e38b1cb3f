//! Holds: an attempt that can neither go on nor has failed waits, says why and since when, what a person can type, and
//! what becomes of it at its deadline. It leaves by itself when what it waits for is there.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Action, phase};
use crate::api::{
    GoDuration, MemoriaUpgradeSpec, MemoriaUpgradeStatus,
    release::OnHold,
    upgrade::{Category, Failure, Hold, HoldOutcome},
};

/// How long a check rests before it is asked again.
const REST: GoDuration = GoDuration::from_secs(30);

/// Why a phase holds.
#[derive(Clone, Debug)]
pub struct Reason {
    /// The phase that waits, or that is not begun.
    pub phase: String,
    /// CamelCase, e.g. `CheckInconclusive`.
    pub reason: String,
    pub message: String,
    pub next_command: String,
}

/// Whether the attempt keeps writers stopped.
fn stopped(journal: &MemoriaUpgradeStatus) -> bool {
    journal.writers_stopped_at.is_some() && journal.writers_back_at.is_none()
}

/// Holds from now on, or goes on holding. Equal words change nothing.
pub fn enter(plan: &MemoriaUpgradeSpec, journal: &mut MemoriaUpgradeStatus, why: Reason, now: Timestamp) {
    let began = journal.phases.iter().any(|record| record.name == phase::IMAGE_BUMP);
    // There is nothing further back to turn to.
    let forward = journal.failure.is_none();
    let outcome = match (stopped(journal) && forward, began, plan.timeouts.on_hold) {
        (true, false, _) => HoldOutcome::Resume,
        (true, true, OnHold::Rollback) => HoldOutcome::Rollback,
        _ => HoldOutcome::Keep,
    };
    let deadline = stopped(journal).then(|| now.checked_add(plan.timeouts.hold.signed()).ok().map(Time)).flatten();
    let known = journal.hold.take().filter(|known| known.phase == why.phase);
    let fresh = || Hold {
        since: Time(now),
        phase: String::new(),
        reason: String::new(),
        message: String::new(),
        next_command: String::new(),
        deadline,
        outcome,
        expired: false,
        next_try: None,
        tries: 0,
    };
    let hold = known.unwrap_or_else(fresh);
    journal.hold = Some(Hold {
        phase: why.phase,
        reason: why.reason,
        message: super::cut(why.message),
        next_command: why.next_command,
        ..hold
    });
}

/// A check without a verdict rests, then is asked again by these actions.
pub fn ask_again(journal: &mut MemoriaUpgradeStatus, retry: Vec<Action>, now: Timestamp) -> Vec<Action> {
    let Some(hold) = &mut journal.hold else { return Vec::new() };
    match &hold.next_try {
        None => {
            hold.next_try = now.checked_add(REST.signed()).ok().map(Time);
            Vec::new()
        }
        Some(at) if now < at.0 => Vec::new(),
        Some(_) => retry,
    }
}

/// The check is asked again: what it says next is another answer.
pub fn asked(journal: &mut MemoriaUpgradeStatus) {
    if let Some(hold) = &mut journal.hold
        && hold.next_try.take().is_some()
    {
        hold.tries += 1;
    }
}

/// What it waited for is there. The time that it took does not count against the phase's limit.
pub fn leave(journal: &mut MemoriaUpgradeStatus, now: Timestamp) {
    let Some(hold) = journal.hold.take() else { return };
    if let Some(record) = journal.phases.last_mut().filter(|record| record.name == hold.phase) {
        record.held_seconds += now.duration_since(hold.since.0).as_secs().max(0);
    }
}

/// What a hold past its deadline becomes: a failure that turns the attempt back, or a hold that says so.
pub fn expire(journal: &mut MemoriaUpgradeStatus, now: Timestamp) -> Option<Failure> {
    let hold = journal.hold.as_mut()?;
    let deadline = hold.deadline.as_ref()?;
    if now < deadline.0 {
        return None;
    }
    match hold.outcome {
        HoldOutcome::Keep => {
            hold.expired = true;
            None
        }
        HoldOutcome::Resume | HoldOutcome::Rollback => Some(Failure {
            phase: hold.phase.clone(),
            category: Category::Environment,
            reason: "HoldExpired".to_owned(),
            message: format!("held since {} without an end: {}", clock(hold.since.0), hold.message),
        }),
    }
}

/// When to look again although nothing changes.
pub fn wake(journal: &MemoriaUpgradeStatus) -> Option<Timestamp> {
    let hold = journal.hold.as_ref()?;
    let deadline = hold.deadline.as_ref().filter(|_| !hold.expired).map(|at| at.0);
    let next_try = hold.next_try.as_ref().map(|at| at.0);
    deadline.into_iter().chain(next_try).min()
}

/// The hold in one sentence.
pub fn sentence(hold: &Hold) -> String {
    let then = match (&hold.deadline, hold.outcome) {
        (Some(at), _) if hold.expired => format!("its deadline {} is past: writers stay stopped", clock(at.0)),
        (Some(at), HoldOutcome::Resume) => format!("at {} what ran before is brought back", clock(at.0)),
        (Some(at), HoldOutcome::Rollback) => format!("at {} it counts as failed and is taken back", clock(at.0)),
        (Some(at), HoldOutcome::Keep) => format!("deadline {}, after which it goes on holding", clock(at.0)),
        (None, _) => "writers run meanwhile, so it has no deadline".to_owned(),
    };
    format!("{} holds since {}: {}; {then}", hold.phase, clock(hold.since.0), hold.message)
}

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
