//! The check Job: makes all checks of a stage side by side, each until it has passed for long enough or its time is up.
//! Requests leave from the release's namespace, so they reach what its pods reach and nothing else.

mod drain;
mod expression;
mod prometheus;
mod request;
mod source;
mod sql;
#[cfg(test)]
mod tests;

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::info;

use self::{
    drain::Drain,
    source::{Around, Reading, Source},
};
pub use self::{
    expression::{
        BASELINE, EvaluationError, Expression, ExpressionError, Sample, VALUE, compile_expression, compile_field,
    },
    prometheus::derived_time_query,
    source::NO_TIME_QUERY,
};
use super::{
    context::Context,
    protocol::{CheckFacts, CheckOrder, Facts, HEADER_ENV_PREFIX, JobReport, MAX_REPORT_BYTES, OrderedCheck},
};
use crate::api::{
    GoDuration,
    release::{CheckResult, Verdict},
    upgrade::Category,
};

/// Of one result's message, where there is room.
const MAX_MESSAGE: usize = 240;
/// What the last sample gets, however short the time was: a slow answer is better than none.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// Makes the checks, with header values from the environment.
pub async fn run(context: &Context, order: &CheckOrder) -> JobReport {
    let around = Around {
        context: Some(context),
        database: order.database.as_ref(),
        candidate: context.input.candidate_address,
    };
    run_with(order, &around, |check, header| std::env::var(format!("{HEADER_ENV_PREFIX}{check}_{header}")).ok()).await
}

/// The same with header values from elsewhere: of check `i` and its header `j`.
async fn run_with(
    order: &CheckOrder,
    around: &Around<'_>,
    value: impl Fn(usize, usize) -> Option<String>,
) -> JobReport {
    let all = order.checks.iter().enumerate().map(|(i, check)| {
        let headers: Vec<_> = check.headers.iter().enumerate().map(|(j, name)| (name.clone(), value(i, j))).collect();
        async move {
            let made = make(check, i, &headers, around).await;
            info!(check = check.name, result = ?made.verdict, made.message, "checked");
            made
        }
    });
    report(order, &join_all(all).await)
}

/// What came of one check.
struct Made {
    verdict: Verdict,
    message: String,
    /// The number, where that was all that was asked for.
    baseline: Option<f64>,
}

impl Made {
    fn new(verdict: Verdict, message: String) -> Self {
        Self { verdict, message, baseline: None }
    }
}

/// Why one sample does not count as passed.
enum Missed {
    /// It was judged, and it does not pass.
    Failed { seen: String, value: Option<f64>, sample: Sample },
    /// Nothing fresh could be judged.
    Inconclusive(String),
}

async fn make(check: &OrderedCheck, number: usize, headers: &[(String, Option<String>)], around: &Around<'_>) -> Made {
    let prepared = compile_expression(&check.pass_when)
        .map_err(|error| error.to_string())
        .and_then(|expression| Ok((expression, Source::new(check, number, headers, around)?)));
    let (expression, mut source) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return Made::new(Verdict::Inconclusive, why),
    };
    let began = Instant::now();
    let end = began + check.within.get();
    let last_end = end + check.draining.map_or(Duration::ZERO, GoDuration::get);
    let every = check.every.get().max(Duration::from_secs(1));
    let mut passing_since: Option<Instant> = None;
    let mut drain = Drain::default();
    loop {
        let begun = Instant::now();
        // The last sample may begin at the end of the time; it still gets its answer.
        let until = end.max(begun + LAST_ANSWER);
        let missed = match take(check, &expression, &mut source, until).await {
            Ok(taken) => {
                drain.clear();
                let now = Instant::now();
                let passing_for = now - *passing_since.get_or_insert(now);
                if passing_for >= check.stable_for.get() || check.baseline_only {
                    return Made { verdict: Verdict::Passed, message: taken.seen, baseline: taken.value };
                }
                let seconds = GoDuration::from_secs(passing_for.as_secs());
                let seen = format!("{}: passes, but only since {seconds} of {}", taken.seen, check.stable_for);
                Missed::Failed { seen, value: None, sample: Sample::default() }
            }
            Err(missed) => {
                passing_since = None;
                missed
            }
        };
        let mut drains = None;
        match &missed {
            Missed::Failed { seen, value: Some(value), sample } => {
                drain.add(began.elapsed(), *value);
                if check.draining.is_some() {
                    // It must also have passed for long enough by then.
                    let left = last_end.saturating_duration_since(Instant::now());
                    let room = left.saturating_sub(check.stable_for.get());
                    drains = falls(&drain, room, &expression, sample).await;
                }
                info!(check = check.name, seen, drains, "not yet");
            }
            Missed::Failed { seen, .. } => info!(check = check.name, seen, "not yet"),
            Missed::Inconclusive(why) => {
                drain.clear();
                info!(check = check.name, why, "nothing to judge");
            }
        }
        let over = if drains.is_some() { last_end } else { end };
        if begun >= over {
            let took = GoDuration::from_secs(began.elapsed().as_secs().max(check.within.as_secs()));
            return match missed {
                Missed::Failed { seen, .. } => {
                    let but = if check.draining.is_some() { ", and it does not fall fast enough" } else { "" };
                    Made::new(Verdict::Failed, format!("not passed within {took}{but}; last: {seen}"))
                }
                Missed::Inconclusive(why) => {
                    Made::new(Verdict::Inconclusive, format!("within {took} no verdict; last: {why}"))
                }
            };
        }
        // Beyond `within` only a sample that still falls is awaited.
        let next = if begun < end { (begun + every).min(end) } else { begun + every };
        sleep_until(next.min(over)).await;
    }
}

/// How a number that does not pass yet falls, when it will pass within `room`.
async fn falls(drain: &Drain, room: Duration, expression: &Expression, sample: &Sample) -> Option<String> {
    let (drain, expression, sample) = (drain.clone(), expression.clone(), sample.clone());
    let passes = move |value: f64| expression.passes(&Sample { value: Some(value), ..sample.clone() });
    let project = move || drain.projection(room, |value| passes(value).unwrap_or(false));
    let found = tokio::task::spawn_blocking(project).await.ok().flatten()?;
    let left = GoDuration::from_secs(found.passes_in.as_secs());
    Some(format!("falls by {:.2} a second and passes in about {left}", found.per_second))
}

/// A sample that passes.
struct Taken {
    /// Observed value, time and source in words.
    seen: String,
    value: Option<f64>,
}

/// One sample.
async fn take(
    check: &OrderedCheck,
    expression: &Expression,
    source: &mut Source<'_>,
    until: Instant,
) -> Result<Taken, Missed> {
    let name = source.name.clone();
    let inconclusive = |why: String| Missed::Inconclusive(format!("{name}: {why}"));
    let Reading { sample, at } = match timeout_at(until, source.read()).await {
        Ok(Ok(reading)) => reading,
        Ok(Err(why)) => return Err(inconclusive(why)),
        Err(_) => return Err(inconclusive("no answer in time".to_owned())),
    };
    let seen = format!("{}; {name} at {}", expression.observed(&sample), clock(at));
    let value = sample.value;
    if check.baseline_only {
        return match value {
            Some(_) => Ok(Taken { seen, value }),
            None => Err(inconclusive("there is no number; give http.valueOf".to_owned())),
        };
    }
    let (expression, judged) = (expression.clone(), sample.clone());
    // It waits for another thread; the other checks go on meanwhile.
    match tokio::task::spawn_blocking(move || expression.passes(&judged)).await {
        Ok(Ok(true)) => Ok(Taken { seen, value }),
        Ok(Ok(false)) => Err(Missed::Failed { seen, value, sample }),
        Ok(Err(error)) => Err(Missed::Inconclusive(format!("{seen}: {error}"))),
        Err(error) => Err(inconclusive(error.to_string())),
    }
}

/// Seconds since 1970 as a time of day, in UTC.
fn clock(at: f64) -> String {
    let moment = jiff::SignedDuration::try_from_secs_f64(at).ok().and_then(|d| jiff::Timestamp::from_duration(d).ok());
    moment.map_or_else(|| "an unknown time".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn report(order: &CheckOrder, made: &[Made]) -> JobReport {
    let results: Vec<CheckResult> = order
        .checks
        .iter()
        .zip(made)
        .map(|(check, made)| CheckResult {
            name: check.name.clone(),
            result: made.verdict,
            message: made.message.clone(),
        })
        .collect();
    let baselines: std::collections::BTreeMap<_, _> = order
        .checks
        .iter()
        .zip(made)
        .filter_map(|(check, made)| Some((check.name.clone(), serde_json::Number::from_f64(made.baseline?)?)))
        .filter(|(name, _)| order.checks.iter().any(|check| check.baseline_only && check.name == *name))
        .collect();
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
        report.facts = Some(Facts::Check(CheckFacts { checks, baselines: baselines.clone() }));
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
