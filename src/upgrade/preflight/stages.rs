//! The release's own checks: whether they can ever be answered, those of stage PreFlight, and the baselines of later ones.

use std::collections::BTreeMap;

use super::judge::{JobAnswer, failed, passed, result};
use crate::{
    api::{
        release::{CANDIDATE_HOST, Check, CheckResult, Role, Stage, Verdict},
        upgrade::Engine,
    },
    job::{
        check::{BASELINE, NO_TIME_QUERY, Sample, VALUE, compile_expression, compile_field, derived_time_query},
        manifest::Ordered,
        protocol::{Facts, JobReport},
    },
    upgrade::{
        preflight::Wanted,
        seen::{JobSeen, JobState},
    },
};

/// The step of the pre-flight Job that makes them.
pub(super) const STEP: &str = "checks";

/// Every expression compiles, and speaks of what its check has, before anything is stopped.
pub(super) fn expressions(checks: &[Check]) -> Vec<CheckResult> {
    let wrong = |check: &Check| problem(check).map(|why| failed(&check.name, format!("checks[{}].{why}", check.name)));
    checks.iter().filter_map(wrong).collect()
}

fn problem(check: &Check) -> Option<String> {
    if check.job.is_some() {
        return None;
    }
    let pass_when = match compile_expression(check.pass_when.as_deref().unwrap_or_default()) {
        Ok(expression) => expression,
        Err(error) => return Some(error.to_string()),
    };
    let numeric = check.http.as_ref().is_none_or(|http| http.value_of.is_some());
    if let Some(http) = &check.http {
        for (field, text) in [("http.valueOf", &http.value_of), ("http.timeOf", &http.time_of)] {
            if let Some(error) = text.as_deref().and_then(|text| compile_field(field, text).err()) {
                return Some(error.to_string());
            }
        }
        if !numeric && (pass_when.uses(VALUE) || pass_when.uses(BASELINE)) {
            return Some("passWhen uses value or baseline, but nothing gives the number: add http.valueOf".to_owned());
        }
    } else if pass_when.uses("body") || pass_when.uses("status") {
        return Some("passWhen uses body or status, which only http has; use value".to_owned());
    }
    if check.draining.is_some() && !pass_when.uses(VALUE) {
        return Some("draining follows value, which passWhen does not use".to_owned());
    }
    if check.stage == Stage::PreFlight && pass_when.uses(BASELINE) {
        return Some("passWhen uses baseline, which is taken in this very stage; use a later stage".to_owned());
    }
    if let Some(prometheus) = &check.prometheus
        && prometheus.time_query.is_none()
        && derived_time_query(&prometheus.query).is_none()
    {
        return Some(format!("prometheus.query: {NO_TIME_QUERY}"));
    }
    let only_numbers = !pass_when.uses("body") && !pass_when.uses("status");
    let trial = Sample { value: Some(1.0), baseline: Some(1.0), ..Sample::default() };
    let tried = only_numbers.then(|| pass_when.passes(&trial).err()).flatten();
    tried.map(|error| format!("passWhen: {error}"))
}

/// A check that asks the candidate needs one.
pub(super) fn candidates(checks: &[Check], wanted: &[Wanted<'_>], server_is_worker: bool) -> Vec<CheckResult> {
    let server = wanted.iter().find(|wanted| wanted.role == Role::Server);
    let runs = server.is_some_and(|server| server.found.workload.seen.replicas > 0);
    if runs && !server_is_worker {
        return Vec::new();
    }
    let asks = |check: &&Check| {
        let host = check.http.as_ref().and_then(|http| url::Url::parse(&http.url).ok());
        check.stage == Stage::BeforeIngestion && host.is_some_and(|url| url.host_str() == Some(CANDIDATE_HOST))
    };
    let why = if server_is_worker { "it is one of ingestion.workers" } else { "it has no replicas" };
    let each = checks.iter().filter(asks);
    each.map(|check| {
        let message = format!("checks[{}].http.url asks the candidate, but the Server has none: {why}", check.name);
        failed(&check.name, message)
    })
    .collect()
}

/// An SQLite file is opened by its server alone, so no check can ask it.
pub(super) fn engines(checks: &[Check], engine: Engine) -> Vec<CheckResult> {
    let asks = |check: &&Check| check.sql.as_ref().is_some_and(|sql| sql.url_from.is_none());
    let each = checks.iter().filter(|check| !engine.is_postgresql() && asks(check));
    each.map(|check| {
        let message = format!(
            "checks[{}].sql: Memoria's database is an SQLite file, which cannot be opened beside its server; ask Memoria \
             with http, or name a PostgreSQL database in sql.urlFrom",
            check.name
        );
        failed(&check.name, message)
    })
    .collect()
}

/// What the pre-flight Job asks: the checks of stage PreFlight, and the numbers that later ones compare with.
pub(super) fn ordered(checks: &[Check]) -> Vec<Ordered<'_>> {
    let uses = |text: &String| compile_expression(text).is_ok_and(|e| e.uses(BASELINE));
    let compares = |check: &Check| check.pass_when.as_ref().is_some_and(uses);
    checks
        .iter()
        .filter(|check| check.job.is_none())
        .filter_map(|check| match check.stage {
            Stage::PreFlight => Some(Ordered::plain(check)),
            _ => compares(check).then(|| Ordered { baseline_only: true, ..Ordered::plain(check) }),
        })
        .collect()
}

/// What the Job said. Its checks are told one by one, whether all passed or not.
pub(super) fn judge(answer: JobAnswer<'_>, seen: Option<&JobSeen>, asked: &[Ordered<'_>]) -> Vec<CheckResult> {
    let report = match (&answer, seen.and_then(report_of)) {
        (JobAnswer::Report(report), _) => Some(*report),
        (JobAnswer::Check(_), found) => found,
        (JobAnswer::Create(_) | JobAnswer::Wait(_), _) => None,
    };
    let Some(Facts::Check(facts)) = report.and_then(|report| report.facts.as_ref()) else {
        return match answer {
            JobAnswer::Check(check) => vec![check],
            _ => Vec::new(),
        };
    };
    let each = facts.checks.iter().map(|check| {
        let ordered = asked.iter().find(|ordered| ordered.check.name == check.name);
        match ordered {
            Some(ordered) if ordered.baseline_only => {
                let name = format!("{}-baseline", check.name);
                result(&name, check.result, format!("taken before anything is stopped: {}", check.message))
            }
            Some(ordered) if !ordered.check.required && check.result != Verdict::Passed => {
                passed(&check.name, format!("{:?}, but it is not required: {}", check.result, check.message))
            }
            _ => check.clone(),
        }
    });
    each.collect()
}

/// The numbers that were taken, by check.
pub(super) fn baselines(jobs: &BTreeMap<String, JobSeen>) -> BTreeMap<String, serde_json::Number> {
    match jobs.get(STEP).and_then(report_of).and_then(|report| report.facts.as_ref()) {
        Some(Facts::Check(facts)) => facts.baselines.clone(),
        _ => BTreeMap::new(),
    }
}

fn report_of(seen: &JobSeen) -> Option<&JobReport> {
    match &seen.state {
        JobState::Finished { report, .. } => report.as_ref(),
        _ => None,
    }
}
