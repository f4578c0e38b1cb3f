//! The check Job: makes all checks of a stage side by side, each until it has passed for long enough or its time is up.
//! Requests leave from the release's namespace, so they reach what its pods reach and nothing else.

mod expression;
mod request;
#[cfg(test)]
mod tests;

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep_until, timeout_at};

pub use self::expression::{EvaluationError, Expression, ExpressionError, Sample, compile_expression};
use self::request::Request;
use super::protocol::{CheckFacts, CheckOrder, Facts, HEADER_ENV_PREFIX, JobReport, MAX_REPORT_BYTES, OrderedCheck};
use crate::api::{
    GoDuration,
    release::{CheckResult, Verdict},
    upgrade::Category,
};

/// Of one result's message, where there is room.
const MAX_MESSAGE: usize = 200;

/// Makes the checks, with header values from the environment.
pub async fn run(order: &CheckOrder) -> JobReport {
    run_with(order, |check, header| std::env::var(format!("{HEADER_ENV_PREFIX}{check}_{header}")).ok()).await
}

/// The same with header values from elsewhere: of check `i` and its header `j`.
async fn run_with(order: &CheckOrder, value: impl Fn(usize, usize) -> Option<String>) -> JobReport {
    let all = order.checks.iter().enumerate().map(|(i, check)| {
        let headers: Vec<_> = check.headers.iter().enumerate().map(|(j, name)| (name.clone(), value(i, j))).collect();
        async move {
            let (result, message) = make(check, &headers).await;
            CheckResult { name: check.name.clone(), result, message }
        }
    });
    report(order, join_all(all).await)
}

/// Why one sample does not count as passed.
enum Missed {
    /// It was judged, and it does not pass.
    Failed(String),
    /// Nothing fresh could be judged.
    Inconclusive(String),
}

async fn make(check: &OrderedCheck, headers: &[(String, Option<String>)]) -> (Verdict, String) {
    let prepared = compile_expression(&check.pass_when)
        .map_err(|error| error.to_string())
        .and_then(|expression| Ok((expression, Request::new(&check.url, headers).map_err(|e| e.to_string())?)));
    let (expression, request) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return (Verdict::Inconclusive, why),
    };
    let end = Instant::now() + check.within.get();
    let every = check.every.get().max(Duration::from_secs(1));
    let mut passing_since: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        // The last sample may begin at the end of the time; it still gets its answer.
        let until = end.max(begun + Duration::from_secs(1));
        let missed = match take(&expression, &request, until).await {
            Ok(observed) => {
                let now = Instant::now();
                let passing_for = now - *passing_since.get_or_insert(now);
                if passing_for >= check.stable_for.get() {
                    return (Verdict::Passed, observed);
                }
                let seconds = GoDuration::from_secs(passing_for.as_secs());
                Missed::Failed(format!("{observed}: passes, but only since {seconds} of {}", check.stable_for))
            }
            Err(missed) => {
                passing_since = None;
                missed
            }
        };
        if begun >= end {
            let within = check.within;
            return match missed {
                Missed::Failed(why) => (Verdict::Failed, format!("not passed within {within}; last: {why}")),
                Missed::Inconclusive(why) => {
                    (Verdict::Inconclusive, format!("within {within} no verdict; last: {why}"))
                }
            };
        }
        sleep_until((begun + every).min(end)).await;
    }
}

/// One sample; what was observed when it passes.
async fn take(expression: &Expression, request: &Request, until: Instant) -> Result<String, Missed> {
    let inconclusive = |error: &dyn std::error::Error| Missed::Inconclusive(error.to_string());
    let sample = match timeout_at(until, request.sample()).await {
        Ok(Ok(sample)) => sample,
        Ok(Err(error)) => return Err(inconclusive(&error)),
        Err(_) => return Err(Missed::Inconclusive("no answer in time".to_owned())),
    };
    let observed = expression.observed(&sample);
    let expression = expression.clone();
    // It waits for another thread; the other checks go on meanwhile.
    match tokio::task::spawn_blocking(move || expression.passes(&sample)).await {
        Ok(Ok(true)) => Ok(observed),
        Ok(Ok(false)) => Err(Missed::Failed(observed)),
        Ok(Err(error)) => Err(Missed::Inconclusive(format!("{observed}: {error}"))),
        Err(error) => Err(inconclusive(&error)),
    }
}

fn report(order: &CheckOrder, results: Vec<CheckResult>) -> JobReport {
    let required = |wanted: Verdict| {
        let each = order.checks.iter().zip(&results);
        each.filter(|(check, result)| check.required && result.result == wanted)
            .map(|(_, result)| format!("{} ({})", result.name, result.message))
            .collect::<Vec<_>>()
    };
    let (failed, inconclusive) = (required(Verdict::Failed), required(Verdict::Inconclusive));
    let (reason, category, message) = if !failed.is_empty() {
        ("CheckFailed", Some(Category::Candidate), format!("required checks failed: {}", failed.join("; ")))
    } else if !inconclusive.is_empty() {
        let message = format!("required checks gave no verdict: {}", inconclusive.join("; "));
        ("CheckInconclusive", Some(Category::Environment), message)
    } else {
        let passed = results.iter().filter(|result| result.result == Verdict::Passed).count();
        ("Done", None, format!("{passed} of {} checks passed, and all that are required", results.len()))
    };
    let mut report = JobReport {
        v: 1,
        ok: category.is_none(),
        reason: reason.to_owned(),
        message: cut(&message, 2 * MAX_MESSAGE),
        category,
        facts: None,
    };
    // With many checks each gets fewer words: the answer must fit.
    let mut room = MAX_MESSAGE;
    loop {
        let checks = results.iter().map(|r| CheckResult { message: cut(&r.message, room), ..r.clone() }).collect();
        report.facts = Some(Facts::Check(CheckFacts { checks }));
        let fits = serde_json::to_string(&report).is_ok_and(|text| text.len() <= MAX_REPORT_BYTES);
        if fits || room == 0 {
            return report;
        }
        room = room * 3 / 4;
        report.message = cut(&message, room.max(100));
    }
}

/// The beginning of a text, in whole characters.
fn cut(text: &str, characters: usize) -> String {
    if text.chars().count() <= characters {
        return text.to_owned();
    }
    text.chars().take(characters.saturating_sub(1)).chain((characters > 0).then_some('…')).collect()
}
