//! What is worth an event: transitions only, found by comparing two journals. Pure.

use crate::{
    api::{
        MemoriaUpgradeStatus,
        upgrade::{Hold, Outcome, PhaseState},
    },
    cluster::events::Notice,
    upgrade::hold::sentence,
};

fn notice(warning: bool, reason: impl Into<String>, action: &str, message: impl Into<String>) -> Notice {
    Notice { warning, reason: reason.into(), action: action.to_owned(), message: message.into() }
}

/// The events between two states of a journal.
pub fn between(before: &MemoriaUpgradeStatus, after: &MemoriaUpgradeStatus) -> Vec<Notice> {
    let mut notices = Vec::new();
    for (at, record) in after.phases.iter().enumerate() {
        let old = before.phases.get(at).map(|record| record.state);
        if old == Some(record.state) {
            continue;
        }
        if old.is_none() {
            let begins = format!("{} begins", record.name);
            notices.push(notice(false, format!("{}Started", record.name), &record.name, begins));
        }
        match record.state {
            PhaseState::Running => {}
            PhaseState::Passed => {
                notices.push(notice(false, format!("{}Passed", record.name), &record.name, record.message.clone()))
            }
            PhaseState::Failed => {
                let reason = after.failure.as_ref().map_or("PhaseFailed", |failure| failure.reason.as_str());
                notices.push(notice(true, reason, &record.name, record.message.clone()));
            }
        }
    }
    let told = |name: &str| before.decisions.iter().any(|known| known.name == name);
    for decision in after.decisions.iter().filter(|decision| !told(&decision.name)) {
        if let Some(why) = &decision.refused {
            let message = format!("decision {} ({:?}) is refused: {why}", decision.name, decision.action);
            notices.push(notice(true, "DecisionRefused", "Decide", message));
        }
    }
    notices.extend(hold(before.hold.as_ref(), after.hold.as_ref()));
    if let (None, Some(outcome)) = (before.outcome, after.outcome) {
        let message = after.message.clone().unwrap_or_default();
        notices.push(notice(outcome != Outcome::Succeeded, format!("{outcome:?}"), "Upgrade", message));
    }
    notices
}

/// Entered, past its deadline, or left.
fn hold(before: Option<&Hold>, after: Option<&Hold>) -> Option<Notice> {
    match (before, after) {
        (None, Some(hold)) => Some(notice(true, "Held", &hold.phase, sentence(hold))),
        (Some(old), Some(new)) if !old.expired && new.expired => {
            Some(notice(true, "HoldExpired", &new.phase, sentence(new)))
        }
        (Some(old), None) => Some(notice(false, "HoldLeft", &old.phase, format!("{} no longer holds", old.phase))),
        _ => None,
    }
}
