//! RestoreConfig: the settings from before the attempt, before the prior version starts. Only what the attempt itself wrote
//! is overwritten: settings that somebody else put there meanwhile stay, and the record says so.

use super::{
    Context, Phase, Step,
    config_refresh::{self, MAX_WRITES, WRITE, place, set},
};
use crate::{
    api::{
        MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        settings::{ConfigRecord, ConfigState, PlannedConfig},
    },
    commands::Command,
};

pub const PHASE: Phase =
    Phase { name: "RestoreConfig", limit: |plan| Some(plan.timeouts.rollback), step, uninterruptible: true };

/// Remembered when the settings are left as they were found: why.
const LEFT: &str = "left-as-found";

fn step(cx: &Context<'_>) -> Step {
    let Some(config) = &cx.plan.config else { return Step::done("no configuration was asked for") };
    if !written(cx.journal) {
        return Step::done(format!("{} was not touched", place(config)));
    }
    if let Some(why) = cx.record.done.get(LEFT) {
        return Step::done(why.clone());
    }
    let Some((seen, output)) = cx.seen.config.as_ref().and_then(|seen| Some((seen, seen.output.as_ref()?))) else {
        return leave(cx, config, "is gone");
    };
    if output.uid != config.output_uid {
        return leave(cx, config, "was made anew");
    }
    let kept = seen.kept.as_ref().is_some_and(|kept| kept.is_of(config));
    if output.sha256.as_ref() == Some(&config.prior_sha256) {
        // An intended write that never came may still be on its way, from a leader that was paused. It bears the version
        // that it was decided on, so another version shuts it out.
        if intended(cx.journal).last() == Some(&output.resource_version) && kept && !output.immutable {
            return Step::act(
                vec![set(config, output, true)],
                format!("shutting late writes out of {}", place(config)),
            );
        }
        return Step::done(format!("{} is as it was before", place(config)));
    }
    if output.sha256.as_ref() != Some(&config.new_sha256) {
        return leave(cx, config, &format!("was changed meanwhile{}", output.by()));
    }
    if output.immutable {
        return leave(cx, config, "was made immutable");
    }
    if !kept {
        return leave(cx, config, &format!("cannot be put back, because configmap/{} is gone", config.kept_in));
    }
    let writes: Vec<_> = cx.record.done.iter().filter(|(key, _)| key.starts_with(WRITE)).collect();
    if writes.last().is_none_or(|(_, at)| **at != output.resource_version) {
        if writes.len() >= MAX_WRITES {
            return leave(cx, config, &format!("was put back and is set again{}", output.by()));
        }
        return Step::Remember { key: format!("{WRITE}{}", writes.len() + 1), value: output.resource_version.clone() };
    }
    Step::act(vec![set(config, output, true)], format!("putting {} back", place(config)))
}

/// Going back with somebody else's settings is better than not going back.
fn leave(cx: &Context<'_>, config: &PlannedConfig, why: &str) -> Step {
    let show = Command::ShowPriorSettings { config_map: &config.kept_in }.in_namespace(cx.namespace);
    let value = format!("{} {why}; it is left as it is. What was there before: {show}", place(config));
    Step::Remember { key: LEFT.to_owned(), value: crate::upgrade::cut(value) }
}

/// Whether the attempt wrote, or may have written, the settings.
fn written(journal: &MemoriaUpgradeStatus) -> bool {
    intended(journal).next().is_some()
}

/// Of each intended write of the new settings, the version that it was decided on.
fn intended(journal: &MemoriaUpgradeStatus) -> impl Iterator<Item = &String> {
    let refreshes = journal.phases.iter().filter(|record| record.name == config_refresh::PHASE.name);
    refreshes.flat_map(|record| &record.done).filter(|(key, _)| key.starts_with(WRITE)).map(|(_, at)| at)
}

/// What became of the settings, once the phase of that name, the journal's last one, has passed; `None`: nothing new.
pub fn config_record(phase: &str, plan: &MemoriaUpgradeSpec, journal: &MemoriaUpgradeStatus) -> Option<ConfigRecord> {
    let config = plan.config.as_ref()?;
    let wrote = written(journal);
    let left = journal.phases.last().is_some_and(|record| record.done.contains_key(LEFT));
    let state = match (phase, wrote, left) {
        (name, false, _) if name == config_refresh::PHASE.name => ConfigState::Unchanged,
        (name, true, _) if name == config_refresh::PHASE.name => ConfigState::Refreshed,
        (name, true, false) if name == PHASE.name => ConfigState::Restored,
        (name, true, true) if name == PHASE.name => ConfigState::LeftAsFound,
        _ => return None,
    };
    let kept_in = wrote.then(|| config.kept_in.clone());
    Some(ConfigRecord { state, kept_in, report: config.report.clone() })
}
