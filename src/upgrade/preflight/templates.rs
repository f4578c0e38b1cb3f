//! Checks that run a CronJob's template: whether each may be run, those of stage PreFlight, and the Jobs that a plan pins.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    batch::v1::{Job, JobTemplateSpec},
    core::v1::Container,
};

use super::{
    Question,
    judge::{JobAnswer, failed, job, passed},
    plan::PlanError,
    stages,
};
use crate::{
    api::{
        release::{Check, CheckResult, Stage, Verdict, WorkerKind},
        upgrade::PlannedCheck,
    },
    cluster::{
        adopt::{AdoptedWorkload, CheckTemplate},
        candidate::{selecting, selects},
    },
    commands::Command,
    job::manifest::{self, JobContext},
    upgrade::seen::Switch,
};

/// What keeps a template from being run, by check.
pub(super) fn findings(question: &Question<'_>) -> Vec<CheckResult> {
    let each = question.release.spec.checks.iter().filter_map(|check| Some((check, name_of(check)?)));
    each.filter_map(|(check, name)| {
        let why = problem(question, name)?;
        Some(failed(&check.name, format!("checks[{}].job.templateRef.name: cronjob/{name} {why}", check.name)))
    })
    .collect()
}

fn name_of(check: &Check) -> Option<&str> {
    check.job.as_ref().map(|job| job.template_ref.name.as_str())
}

fn problem(question: &Question<'_>, name: &str) -> Option<String> {
    let spec = &question.release.spec;
    if spec.ingestion.workers.iter().any(|worker| worker.kind == WorkerKind::CronJob && worker.name == name) {
        return Some("is one of ingestion.workers, whose Jobs write; name another CronJob".to_owned());
    }
    let Some(CheckTemplate { allowed, template }) = question.adopted.check_templates.get(name) else {
        return Some(
            "does not exist in this namespace; create it (with suspend: true, if it shall run for checks alone), or \
             correct the name"
                .to_owned(),
        );
    };
    if !allowed {
        let namespace = question.release.metadata.namespace.as_deref().unwrap_or_default();
        let allow = Command::AllowTemplate { cron_job: name }.in_namespace(namespace);
        return Some(format!("does not let releases run its template; whoever may write it can say so: {allow}"));
    }
    found_by(question, template).or_else(|| {
        literal_password(template).map(|(container, entry)| {
            format!(
                "has a password in environment entry {entry} of container {container}, which would be copied into the \
                 plan; take it from a Secret with valueFrom.secretKeyRef"
            )
        })
    })
}

/// Who would take the check's pod for one of its own, or send clients to it.
fn found_by(question: &Question<'_>, template: &JobTemplateSpec) -> Option<String> {
    let pod = template.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let labels = pod.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let adopted = question.adopted;
    let workloads = adopted.targets.iter().map(|target| &target.workload).chain(&adopted.workers);
    let finds =
        |w: &&AdoptedWorkload| w.seen.switch == Switch::Replicas && !labels.is_empty() && selects(&w.selector, &labels);
    let finder = workloads.into_iter().find(finds).map(|w| w.workload.to_string());
    let service = || selecting(&labels, adopted.services.iter().cloned()).into_iter().next();
    let finder = finder.or_else(|| service().map(|name| format!("service/{name}")))?;
    Some(format!(
        "gives its pods labels by which {finder} finds its own; give jobTemplate.spec.template.metadata.labels other ones"
    ))
}

/// A URL with a password that stands in the template itself: its container and entry.
fn literal_password(template: &JobTemplateSpec) -> Option<(String, String)> {
    let pod = template.spec.as_ref()?.template.spec.as_ref()?;
    let mut containers = pod.init_containers.iter().flatten().chain(&pod.containers);
    containers.find_map(|container: &Container| {
        let mut entries = container.env.iter().flatten();
        let entry = entries.find(|entry| {
            let url = entry.value.as_deref().and_then(|value| url::Url::parse(value).ok());
            url.is_some_and(|url| url.password().is_some_and(|password| !password.starts_with("$(")))
        })?;
        Some((container.name.clone(), entry.name.clone()))
    })
}

/// Where the checks of stage PreFlight stand: Jobs to make, Jobs that run, and verdicts.
pub(super) fn pre_flight(
    question: &Question<'_>,
    context: &JobContext,
    missing: &mut Vec<Job>,
    waiting: &mut Vec<String>,
) -> Vec<CheckResult> {
    let mut verdicts = Vec::new();
    for (check, template) in of_stage(question, Stage::PreFlight) {
        let Some(template) = template else { continue };
        let step = manifest::check_step(&check.name);
        let seen = question.jobs.get(&step);
        match job(&step, manifest::from_template(context, check, template), seen) {
            JobAnswer::Create(job) => missing.push(*job),
            JobAnswer::Wait(what) => waiting.push(what),
            answer => verdicts.extend(stages::judge(answer, seen, &[manifest::Ordered::plain(check)]).into_iter().map(
                |told| match told.result {
                    // Its pod does not run, which no report tells.
                    Verdict::Failed | Verdict::Inconclusive if !check.required => {
                        passed(&check.name, format!("{:?}, but it is not required: {}", told.result, told.message))
                    }
                    _ => CheckResult { name: check.name.clone(), ..told },
                },
            )),
        }
    }
    verdicts
}

/// The Jobs of the later stages' checks, as the plan pins them.
pub(super) fn planned(
    question: &Question<'_>,
    context: &JobContext,
    stage: Stage,
) -> Result<Vec<(String, Job, PlannedCheck)>, PlanError> {
    let each = of_stage(question, stage).map(|(check, template)| {
        let template = template.ok_or_else(|| PlanError::NoTemplate(check.name.clone()))?;
        let job = manifest::from_template(context, check, template)?;
        Ok((manifest::check_step(&check.name), job, PlannedCheck { stage, required: check.required }))
    });
    each.collect()
}

fn of_stage<'a>(
    question: &'a Question<'_>,
    stage: Stage,
) -> impl Iterator<Item = (&'a Check, Option<&'a JobTemplateSpec>)> {
    let templates: &'a BTreeMap<String, CheckTemplate> = &question.adopted.check_templates;
    let mine = question.release.spec.checks.iter().filter(move |check| check.stage == stage);
    mine.filter_map(move |check| Some((check, templates.get(name_of(check)?).map(|found| &found.template))))
}
