//! ConfigRefresh: Memoria's settings for the new version, before anything of it starts. What was there is kept in an
//! immutable ConfigMap first; then exactly one key is written.

use super::{Context, Phase, Step, chain};
use crate::{
    api::{settings::PlannedConfig, upgrade::Category},
    upgrade::{
        Action, Precondition,
        seen::{ConfigSeen, OutputSeen},
    },
};

pub const PHASE: Phase =
    Phase { name: "ConfigRefresh", limit: |plan| Some(plan.timeouts.rollout), step, uninterruptible: false };

/// Remembered before each write of the output: its resourceVersion at that moment.
pub const WRITE: &str = "write-";
/// One write, and one more where somebody else's came right after it.
pub const MAX_WRITES: usize = 2;

fn step(cx: &Context<'_>) -> Step {
    let Some(config) = &cx.plan.config else { return Step::done("no configuration was asked for") };
    chain!(cx.breach());
    let (seen, output) = match found(cx, config) {
        Ok(found) => found,
        Err(step) => return step,
    };
    let writes: Vec<_> = cx.record.done.iter().filter(|(key, _)| key.starts_with(WRITE)).collect();
    if config.new_sha256 == config.prior_sha256 {
        return match unchanged(cx) {
            Ok(()) => Step::done(format!("{} already; {}", place(config), config.report)),
            Err(step) => step,
        };
    }
    if output.sha256.as_ref() == Some(&config.new_sha256) && !writes.is_empty() {
        return Step::done(format!("{} written: {}; its comments are lost", place(config), config.report));
    }
    chain!(unchanged(cx));
    match &seen.kept {
        None => {
            let message = format!("keeping the prior configuration in configmap/{}", config.kept_in);
            return Step::act(vec![Action::KeepConfig], message);
        }
        Some(kept) if !kept.is_of(config) => {
            return Step::fail(
                Category::Conflict,
                "ForeignConfigMap",
                format!(
                    "configmap/{} is not what this attempt would keep there; look at it and delete it, then start again",
                    config.kept_in
                ),
            );
        }
        Some(_) => {}
    }
    // The last intended write is still to be done where the object is as it was when that was written down.
    if writes.last().is_none_or(|(_, at)| **at != output.resource_version) {
        if writes.len() >= MAX_WRITES {
            return Step::fail(
                Category::Conflict,
                "ConfigReverted",
                format!(
                    "{} was written and has its prior content again{}; something else sets it: pause that for the \
                     upgrade, or let it ignore this key",
                    place(config),
                    output.by()
                ),
            );
        }
        return Step::Remember { key: format!("{WRITE}{}", writes.len() + 1), value: output.resource_version.clone() };
    }
    Step::act(vec![set(config, output, false)], format!("writing {}", place(config)))
}

/// `Ok` while settings and overrides are what the plan was made of, or when it has none.
pub fn unchanged(cx: &Context<'_>) -> Result<(), Step> {
    let Some(config) = &cx.plan.config else { return Ok(()) };
    let (seen, output) = found(cx, config)?;
    let changed = |what: &str, by: String| {
        Err(Step::fail(
            Category::Conflict,
            "ConfigChanged",
            format!("{what} was changed since the plan was made{by}; start again, so that the plan is made of it"),
        ))
    };
    if output.sha256.as_ref() != Some(&config.prior_sha256) {
        return changed(&place(config), output.by());
    }
    match &config.overrides {
        Some(overrides) if seen.overrides_sha256 != config.overrides_sha256 => {
            changed(&format!("configmap/{} key {:?}", overrides.name, overrides.key), String::new())
        }
        _ => Ok(()),
    }
}

/// The output's ConfigMap, when it is the planned object.
pub fn found<'a>(cx: &Context<'a>, config: &PlannedConfig) -> Result<(&'a ConfigSeen, &'a OutputSeen), Step> {
    let seen = cx.seen.config.as_ref();
    let output = seen.and_then(|seen| seen.output.as_ref()).filter(|output| output.uid == config.output_uid);
    seen.zip(output).ok_or_else(|| {
        Step::fail(
            Category::Conflict,
            "ConfigReplaced",
            format!(
                "configmap/{} is not the object that was planned: it was deleted or made anew; bring it back as it \
                 was, then start again",
                config.output.name
            ),
        )
    })
}

pub fn set(config: &PlannedConfig, output: &OutputSeen, prior: bool) -> Action {
    let precondition =
        Precondition { uid: config.output_uid.clone(), resource_version: output.resource_version.clone() };
    Action::SetConfig { precondition, prior }
}

pub fn place(config: &PlannedConfig) -> String {
    format!("configmap/{} key {:?}", config.output.name, config.output.key)
}
