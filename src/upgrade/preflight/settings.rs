//! The settings that the attempt will write: defaults of both images, the installation's own texts, one merge.

use std::collections::BTreeMap;

use memoria_runner::pack::unpack;

use super::{Question, judge, target::Wanted};
use crate::{
    api::{
        release::{CheckResult, Config},
        settings::{ConfigReport, PlannedConfig},
        upgrade::Category,
    },
    cluster::settings::refers,
    job::{
        manifest::{self, JobContext, RenderError},
        protocol::{DefaultsFacts, Facts, JobReport},
    },
    upgrade::{
        seen::{JobSeen, JobState},
        settings::{MAX_DEFAULTS_BYTES, MergeError, Source, Texts, merge, sha256},
    },
};

const NAME: &str = "config";
/// Steps of the run: the Server's new image, and its prior one.
pub(super) const NEW: &str = "defaults";
pub(super) const PRIOR: &str = "defaults-prior";

/// The Jobs that read the defaults out of the pinned images; none without `spec.config`.
pub(super) fn jobs(
    question: &Question<'_>,
    context: &JobContext,
    wanted: &[Wanted<'_>],
    digests: &BTreeMap<String, String>,
) -> Vec<(&'static str, Result<k8s_openapi::api::batch::v1::Job, RenderError>)> {
    let Some(config) = &question.release.spec.config else { return Vec::new() };
    let Some(server) = wanted.iter().find(|wanted| wanted.is_server) else { return Vec::new() };
    let path = config.baseline_path.as_deref();
    let images = [(NEW, server.pinned(digests)), (PRIOR, server.prior(digests))];
    let known = images.into_iter().filter_map(|(step, image)| Some((step, image?)));
    known.map(|(step, image)| (step, manifest::defaults(context, step, &image, path))).collect()
}

/// A prior image without such a file, or with one that is too large, is none to compare with; everything else counts.
pub(super) fn is_optional(step: &str, seen: Option<&JobSeen>) -> bool {
    let report = match seen.map(|seen| &seen.state) {
        Some(JobState::Finished { report: Some(report), .. }) => report,
        _ => return false,
    };
    step == PRIOR && !report.ok && report.category == Some(Category::Environment)
}

/// What will be written, once both Jobs have answered. A failed check when it cannot be, or would lose a setting.
pub(super) fn plan(question: &Question<'_>) -> Result<Option<PlannedConfig>, CheckResult> {
    let Some(config) = &question.release.spec.config else { return Ok(None) };
    let failed = |message: String| judge::failed(NAME, crate::upgrade::cut(message));
    // Its absence stands in a check of its own.
    let Some(found) = &question.adopted.config else { return Ok(None) };
    let output = &config.output.config_map_key_ref;
    if !question.adopted.targets.iter().any(|target| refers(&target.workload.template, &output.name)) {
        return Err(failed(format!(
            "no target reads configmap/{}, as a volume or as environment, so the new settings would not be seen; \
             correct spec.config.output.configMapKeyRef, or mount it",
            output.name
        )));
    }
    let Some(new) = defaults(question, NEW) else {
        return Err(failed("the job did not say which settings the new image comes with; see its output".to_owned()));
    };
    let baseline = unpack(&new.packed, MAX_DEFAULTS_BYTES)
        .map_err(|error| failed(format!("the new image's {} did not arrive whole: {error}", new.path)))?;
    let prior = defaults(question, PRIOR).and_then(|facts| unpack(&facts.packed, MAX_DEFAULTS_BYTES).ok());
    let texts = Texts {
        baseline: &baseline,
        prior_baseline: prior.as_deref(),
        output: &found.output,
        overrides: found.overrides.as_deref(),
    };
    let merged = merge(&texts).map_err(|error| failed(explained(&error, config, &new.path)))?;
    if !merged.report.lost.is_empty() {
        let some: Vec<&str> = merged.report.lost.iter().take(10).map(String::as_str).collect();
        let more = if merged.report.lost.len() > 10 { ", …" } else { "" };
        return Err(failed(format!(
            "configmap/{} key {:?} sets {}{more}, which are no defaults of the prior version and no overrides, and \
             would be lost; add them to the overrides, or set them back to the defaults",
            output.name,
            output.key,
            some.join(", ")
        )));
    }
    let report = merged.report;
    Ok(Some(PlannedConfig {
        output: output.clone(),
        output_uid: found.output_uid.clone(),
        overrides: config.overrides.as_ref().map(|overrides| overrides.config_map_key_ref.clone()),
        baseline: new.packed.clone(),
        prior_sha256: sha256(&found.output),
        overrides_sha256: found.overrides.as_deref().map(sha256),
        new_sha256: sha256(&merged.text),
        kept_in: format!("{}-config", question.attempt),
        report: ConfigReport::new(report.adopted, report.kept, report.obsolete),
    }))
}

/// The check of a merge that stands.
pub(super) fn passed(question: &Question<'_>, planned: &PlannedConfig) -> CheckResult {
    let note = match (defaults(question, PRIOR), planned.prior_sha256 == planned.new_sha256) {
        (_, true) => "; nothing is to be written",
        (Some(_), false) => "; comments are lost",
        (None, false) => {
            "; comments are lost; the prior image does not tell its defaults, so settings that are no overrides could \
             not be told from them"
        }
    };
    judge::passed(NAME, format!("configmap/{}: {}{note}", planned.output.name, planned.report))
}

fn defaults<'a>(question: &'a Question<'_>, step: &str) -> Option<&'a DefaultsFacts> {
    match &question.jobs.get(step)?.state {
        JobState::Finished {
            report: Some(JobReport { ok: true, facts: Some(Facts::Defaults(facts)), .. }), ..
        } => Some(facts),
        _ => None,
    }
}

fn explained(error: &MergeError, config: &Config, path: &str) -> String {
    let place = |key: &crate::api::release::KeyRef| format!("configmap/{} key {:?}", key.name, key.key);
    match error {
        MergeError::Yaml { source_of, error } => {
            let whose = match source_of {
                Source::Baseline => format!("the new image's {path}"),
                Source::PriorBaseline => "the prior image's file of defaults".to_owned(),
                Source::Output => place(&config.output.config_map_key_ref),
                Source::Overrides => {
                    config.overrides.as_ref().map_or_else(String::new, |from| place(&from.config_map_key_ref))
                }
            };
            format!("{whose}: {error}")
        }
        MergeError::RoundTrip => error.to_string(),
    }
}
