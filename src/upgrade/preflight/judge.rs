//! What Jobs reported, turned into check results: each names object or field and the fix.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;

use super::{Question, data, target::Wanted};
use crate::{
    api::{
        release::{CheckResult, Verdict},
        upgrade::Engine,
    },
    job::{
        manifest::{Probe, RenderError},
        protocol::{Facts, InspectFacts, JobReport},
    },
    upgrade::{
        image::digest_of,
        seen::{JobSeen, JobState},
    },
};

pub(super) fn result(name: &str, result: Verdict, message: impl Into<String>) -> CheckResult {
    CheckResult { name: name.to_owned(), result, message: message.into() }
}

pub(super) fn passed(name: &str, message: impl Into<String>) -> CheckResult {
    result(name, Verdict::Passed, message)
}

pub(super) fn failed(name: &str, message: impl Into<String>) -> CheckResult {
    result(name, Verdict::Failed, message)
}

pub(super) enum JobAnswer<'a> {
    Create(Box<Job>),
    Wait(String),
    Check(CheckResult),
    Report(&'a JobReport),
}

/// Where one Job of the run stands.
pub(super) fn job<'a>(step: &str, job: Result<Job, RenderError>, seen: Option<&'a JobSeen>) -> JobAnswer<'a> {
    let Some(seen) = seen else {
        return match job {
            Ok(job) => JobAnswer::Create(Box::new(job)),
            Err(error) => JobAnswer::Check(failed(step, error.to_string())),
        };
    };
    match &seen.state {
        JobState::Running { trouble: Some(trouble) } if trouble.is_lasting().is_some() => JobAnswer::Check(failed(
            step,
            format!("its pod does not run: {}: {}; mend that, then ask again", trouble.reason, trouble.message),
        )),
        JobState::Running { trouble: Some(trouble) } => {
            JobAnswer::Wait(format!("{step} waits ({}: {})", trouble.reason, trouble.message))
        }
        JobState::Running { trouble: None } => JobAnswer::Wait(format!("{step} runs")),
        JobState::Finished { report: Some(report), .. } if report.ok => JobAnswer::Report(report),
        JobState::Finished { report: Some(report), .. } => JobAnswer::Check(failed(step, report.message.clone())),
        JobState::Finished { detail, .. } => {
            JobAnswer::Check(result(step, Verdict::Inconclusive, format!("its job ended without a result: {detail}")))
        }
        JobState::Foreign { detail } => {
            JobAnswer::Check(failed(step, format!("a job of that name is not ours ({detail}); delete it")))
        }
    }
}

/// A database that can be upgraded, and the tool image for it.
pub(super) struct Inspected {
    pub facts: InspectFacts,
    pub tools: String,
    /// Where it is a file.
    pub file: Option<data::File>,
}

pub(super) fn inspect(
    report: &JobReport,
    question: &Question<'_>,
    server: &Wanted<'_>,
    checks: &mut Vec<CheckResult>,
) -> Option<Inspected> {
    let Some(Facts::Inspect(facts)) = &report.facts else {
        checks.push(failed("inspect", "the job did not say what database it found; see its output"));
        return None;
    };
    checks.push(passed("database", report.message.clone()));
    checks.extend(facts.findings.iter().cloned());
    let lost: Vec<_> = facts.unfinished.iter().filter(|name| !question.known_attempts.contains(name)).collect();
    if let Some(name) = lost.first() {
        checks.push(failed(
            "journal",
            format!(
                "the database bears the mark of attempt {name}, which did not finish and whose MemoriaUpgrade is gone: \
                 what state the data is in is unknown. Bring the MemoriaUpgrade back, or check the data, then delete \
                 {}",
                match facts.engine {
                    Engine::Postgresql => "that attempt's rows from memoria_operator.attempt_step",
                    Engine::Sqlite => "its marker file beside the database",
                }
            ),
        ));
    }
    let file = match data::after(question, server, facts) {
        Ok(file) => file,
        Err(why) => {
            checks.push(failed("data", why));
            return None;
        }
    };
    // SQLite's own library is part of our binary.
    if facts.engine == Engine::Sqlite {
        return Some(Inspected { facts: facts.clone(), tools: question.images.operator.clone(), file });
    }
    let Some(tools) = question.images.tools.get(&facts.major) else {
        checks.push(failed(
            "tools",
            format!(
                "no tool image for PostgreSQL {}: add toolImages.\"{}\" to the operator's configuration",
                facts.major, facts.major
            ),
        ));
        return None;
    };
    Some(Inspected { facts: facts.clone(), tools: tools.clone(), file })
}

/// What kept Inspect from mounting a claim is told when it found no database.
pub(super) fn unfit(why: &[String], checks: &[CheckResult]) -> Option<CheckResult> {
    let in_vain = checks.iter().any(|check| check.name == "inspect" && check.result != Verdict::Passed);
    let message = format!("if the database is an SQLite file: {}", why.join("; "));
    (in_vain && !why.is_empty()).then(|| result("data", Verdict::Inconclusive, super::super::cut(message)))
}

pub(super) fn probe(
    step: &str,
    probe: &Probe<'_>,
    report: &JobReport,
    image_id: Option<&str>,
    digests: &mut BTreeMap<String, String>,
    checks: &mut Vec<CheckResult>,
) {
    let Some(digest) = image_id.and_then(digest_of) else {
        checks.push(result(
            step,
            Verdict::Inconclusive,
            format!("the node does not say which digest {} has, so it could not be pinned", probe.image),
        ));
        return;
    };
    if let Some((_, pinned)) = probe.image.split_once('@')
        && pinned != digest
    {
        checks.push(failed(step, format!("{} was pulled as {digest}", probe.image)));
        return;
    }
    digests.insert(probe.image.to_owned(), digest.to_owned());
    checks.push(passed(step, format!("{} is {digest}: {}", probe.image, report.message)));
}

/// True when the reference stands.
pub(super) fn reference(report: &JobReport, checks: &mut Vec<CheckResult>) -> bool {
    let Some(Facts::Reference(facts)) = &report.facts else {
        checks.push(failed("reference", "the job did not say what schema the candidate builds; see its output"));
        return false;
    };
    let verdict = if facts.built_on == "none" { Verdict::Inconclusive } else { Verdict::Passed };
    checks.push(result("reference", verdict, report.message.clone()));
    true
}
