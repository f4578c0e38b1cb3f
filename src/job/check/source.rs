//! Where a check's number comes from, and whether it is fresh enough to be judged.

use std::net::IpAddr;

use super::{
    expression::{Expression, Sample, compile_field},
    prometheus::{derived_time_query, point},
    request::{Request, now},
    sql::Database,
};
use crate::{
    api::GoDuration,
    job::{
        context::Context,
        protocol::{CheckSource, DatabaseTask, OrderedCheck},
    },
};

/// A clock that is ahead by no more than this is no reason to doubt the data.
const AHEAD_SECONDS: f64 = 5.0;
/// HTTP dates have whole seconds.
const ROUNDING_SECONDS: f64 = 1.0;

/// What surrounds the checks of a Job.
pub struct Around<'a> {
    /// Absent only in tests that open no database.
    pub context: Option<&'a Context>,
    pub database: Option<&'a DatabaseTask>,
    pub candidate: Option<IpAddr>,
}

/// What is asked, ready to be asked again and again.
pub struct Source<'a> {
    asked: Asked<'a>,
    /// Who answers, for people: never with credentials, path or query.
    pub name: String,
    fresh_within: Option<GoDuration>,
    since_start: bool,
    baseline: Option<f64>,
    /// By the source's own clock: the first answer's.
    began: Option<f64>,
}

enum Asked<'a> {
    Http { request: Request, value_of: Option<Expression>, time_of: Option<Expression> },
    Prometheus { value: Request, time: Request },
    Sql { context: &'a Context, database: Database, query: String },
}

/// One answer, fresh enough to be judged.
pub struct Reading {
    pub sample: Sample,
    /// The data's own time, or when it was answered; in seconds since 1970.
    pub at: f64,
}

impl<'a> Source<'a> {
    /// Check `number` of its order, with its headers.
    ///
    /// # Errors
    /// In words: what no later answer can mend.
    pub fn new(
        check: &OrderedCheck,
        number: usize,
        headers: &[(String, Option<String>)],
        around: &Around<'a>,
    ) -> Result<Self, String> {
        let (asked, name) = match check.source {
            CheckSource::Http => {
                let compiled = |field, text: &Option<String>| {
                    text.as_deref().map(|text| compile_field(field, text)).transpose().map_err(|e| e.to_string())
                };
                let value_of = compiled("http.valueOf", &check.value_of)?;
                let time_of = compiled("http.timeOf", &check.time_of)?;
                let request = Request::new(&check.url, headers, around.candidate);
                let request = request.map_err(|error| error.to_string())?;
                let name = format!("http {}", request.host());
                (Asked::Http { request, value_of, time_of }, name)
            }
            CheckSource::Prometheus => {
                let time_query = match check.time_query.as_str() {
                    "" => derived_time_query(&check.query).ok_or(NO_TIME_QUERY)?,
                    given => given.to_owned(),
                };
                let query = |text: &str| Request::query(&check.url, text, headers).map_err(|error| error.to_string());
                let (value, time) = (query(&check.query)?, query(&time_query)?);
                let name = format!("prometheus {}", value.host());
                (Asked::Prometheus { value, time }, name)
            }
            CheckSource::Sql => {
                let context = around.context.ok_or("this Job cannot open databases")?;
                let database = Database::new(around.database, check.own_database, number).map_err(|e| e.to_string())?;
                let name = format!("sql {}", database.place(context));
                (Asked::Sql { context, database, query: check.query.clone() }, name)
            }
        };
        Ok(Self {
            asked,
            name,
            fresh_within: check.fresh_within,
            since_start: check.since_start,
            baseline: check.baseline.as_ref().and_then(serde_json::Number::as_f64),
            began: None,
        })
    }

    /// Asks once.
    ///
    /// # Errors
    /// In words: why there is nothing fresh to judge.
    pub async fn read(&mut self) -> Result<Reading, String> {
        // The answer's time by the source's clock, the data's own time where it tells one, and the sample.
        let (answered, own, mut sample) = match &self.asked {
            Asked::Http { request, value_of, time_of } => {
                let answer = request.ask().await.map_err(|error| error.to_string())?;
                let at = answer.at;
                let (value_of, time_of) = (value_of.clone(), time_of.clone());
                let evaluated = tokio::task::spawn_blocking(move || {
                    let mut sample =
                        Sample { status: Some(answer.status), body: answer.body, value: None, baseline: None };
                    let own = time_of.map(|expression| expression.time(&sample)).transpose();
                    let value = value_of.map(|expression| expression.number(&sample)).transpose();
                    sample.value = value.clone().ok().flatten();
                    match (own, value) {
                        (Ok(own), Ok(_)) => Ok((own, sample)),
                        // A status tells more than what is missing from an error's body.
                        (Err(error), _) | (_, Err(error)) => {
                            Err(format!("status {}: {error}", sample.status.unwrap_or_default()))
                        }
                    }
                });
                let (own, sample) = evaluated.await.map_err(|error| error.to_string())??;
                (at, own, sample)
            }
            Asked::Prometheus { value, time } => {
                let ask = async |request: &Request, what: &str| {
                    let answer = request.ask().await.map_err(|error| error.to_string())?;
                    point(&answer).map_err(|error| format!("{what}{error}"))
                };
                let (value, time) = tokio::try_join!(ask(value, ""), ask(time, "the query for the samples' time: "))?;
                let sample = Sample { value: Some(value.value), ..Sample::default() };
                (value.evaluated_at, Some(time.value), sample)
            }
            Asked::Sql { context, database, query } => {
                let value = database.number(context, query).await;
                let value = value.map_err(|error| database.redact(error.to_string()))?;
                (now(), None, Sample { value: Some(value), ..Sample::default() })
            }
        };
        sample.baseline = self.baseline;
        let began = *self.began.get_or_insert(answered);
        if let Some(own) = own {
            let age = answered - own;
            if self.fresh_within.is_some_and(|most| age > most.get().as_secs_f64() + ROUNDING_SECONDS) {
                let most = self.fresh_within.unwrap_or(GoDuration::from_secs(0));
                return Err(format!("the data is stale: {} old, and freshWithin is {most}", seconds(age)));
            }
            if self.since_start && own < began - ROUNDING_SECONDS {
                return Err(format!("the data is from {} before the check began", seconds(began - own)));
            }
            if age < -AHEAD_SECONDS {
                return Err(format!("the data's time lies {} ahead of the clock of who answers", seconds(-age)));
            }
        }
        Ok(Reading { sample, at: own.unwrap_or(answered) })
    }
}

/// Said before anything is stopped, and by the Job.
pub const NO_TIME_QUERY: &str = "how old the samples behind this query are cannot be told from its text; give \
                                 prometheus.timeQuery, e.g. min(timestamp(memoria_queue_depth))";

fn seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1}s") } else { format!("{seconds:.0}s") }
}
