//! The Job of a check that runs a CronJob's template: the template as its author wrote it, but run once, named and marked
//! as one of ours, and without what the operator does not hand out.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec, JobTemplateSpec},
        core::v1::{Container, EnvVar},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{JobContext, RenderError, job_name, longest};
use crate::{
    api::{
        marks::{ATTEMPT_LABEL, RELEASE_LABEL, STEP_LABEL},
        release::{Check, Stage},
    },
    job::protocol::CANDIDATE_ENV,
};

/// What begins the step of such a check; its name follows.
const STEP_PREFIX: &str = "check-";
/// Labels and annotations that begin so are the operator's.
const OUR_MARKS: &str = "memoria.arca.run/";

/// What the pod may take to be scheduled and to begin, in seconds, beside the check's own time.
pub(super) const TO_BEGIN_SECONDS: u64 = 60;

/// The step of the check of that name.
pub fn check_step(check: &str) -> String {
    format!("{STEP_PREFIX}{check}")
}

/// The name of the check whose step this is; nothing when it is another Job's.
pub fn check_of(step: &str) -> Option<&str> {
    step.strip_prefix(STEP_PREFIX)
}

/// The Job of one check, from the template as it was read.
///
/// What is the author's stays: images, commands, environment, volumes, ServiceAccount, security, labels, counts. Set aside
/// is what would make another verdict of one run, or of one Job another: retries, suspension, lifetime, selectors.
///
/// # Errors
/// [`RenderError::Name`]
pub fn from_template(ctx: &JobContext, check: &Check, template: &JobTemplateSpec) -> Result<Job, RenderError> {
    let step = check_step(&check.name);
    let name = job_name(&ctx.attempt, &step)?;
    let ours: BTreeMap<String, String> =
        [(RELEASE_LABEL, ctx.release.as_str()), (ATTEMPT_LABEL, &ctx.attempt), (STEP_LABEL, &step)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    let written = template.metadata.clone().unwrap_or_default();
    let mut spec = template.spec.clone().unwrap_or_default();
    let seconds = |some: u64| i64::try_from(some).unwrap_or(i64::MAX);
    let (within, longest) = (seconds(check.within.as_secs()), seconds(longest(check)));
    let pod_written = spec.template.metadata.take().unwrap_or_default();
    spec.template.metadata = Some(marked(pod_written, &ours));
    let mut pod = spec.template.spec.take().unwrap_or_default();
    // The pod that ended stays, and its exit code can be read.
    pod.restart_policy = Some("Never".to_owned());
    // The kubelet ends it, and what it printed stays; the Job's own limit would take the pod away.
    pod.active_deadline_seconds = Some(pod.active_deadline_seconds.map_or(within, |own| own.min(within)));
    // A token only where the author asks for one in so many words.
    pod.automount_service_account_token.get_or_insert(false);
    if check.stage == Stage::BeforeIngestion {
        for container in pod.init_containers.iter_mut().flatten().chain(&mut pod.containers) {
            ask_candidate(container);
        }
    }
    spec.template.spec = Some(pod);
    let spec = JobSpec {
        active_deadline_seconds: Some(spec.active_deadline_seconds.map_or(longest, |own| own.min(longest))),
        backoff_limit: Some(0),
        backoff_limit_per_index: None,
        max_failed_indexes: None,
        pod_failure_policy: None,
        pod_replacement_policy: Some("Failed".to_owned()),
        suspend: None,
        ttl_seconds_after_finished: None,
        selector: None,
        manual_selector: None,
        ..spec
    };
    let metadata = ObjectMeta { name: Some(name), namespace: Some(ctx.namespace.clone()), ..marked(written, &ours) };
    Ok(Job { metadata, spec: Some(spec), status: None })
}

/// Labels and annotations, and nothing else, with our labels in the place of what only looks like ours.
fn marked(written: ObjectMeta, ours: &BTreeMap<String, String>) -> ObjectMeta {
    let theirs = |marks: Option<BTreeMap<String, String>>| {
        marks.unwrap_or_default().into_iter().filter(|(key, _)| !key.starts_with(OUR_MARKS)).collect()
    };
    let mut labels: BTreeMap<String, String> = theirs(written.labels);
    labels.extend(ours.clone());
    let annotations: BTreeMap<String, String> = theirs(written.annotations);
    ObjectMeta {
        labels: Some(labels),
        annotations: Some(annotations).filter(|some| !some.is_empty()),
        ..ObjectMeta::default()
    }
}

/// A place for the candidate's address, before all other entries so that they can refer to it.
fn ask_candidate(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    env.retain(|entry| entry.name != CANDIDATE_ENV);
    env.insert(0, EnvVar { name: CANDIDATE_ENV.to_owned(), value: Some(String::new()), value_from: None });
}
