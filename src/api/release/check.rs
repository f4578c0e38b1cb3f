//! `spec.checks`: what is asked of the installation while an upgrade runs, and what answer is good.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::KeyRef;
use crate::api::GoDuration;

/// The host name that stands for the Server's candidate pod in URLs of stage `BeforeIngestion`.
pub const CANDIDATE_HOST: &str = "candidate";

/// One check, made by a Job in the release's namespace. It has Passed once `passWhen` held for `stableFor`; it has Failed
/// when the data is fresh but does not pass at the end of `within`; without fresh and unique data it is Inconclusive, and
/// the upgrade holds and asks again instead of failing. A `job` is judged by its own end instead.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = ("duration(self.stableFor) < duration(self.within)", "stableFor has to be shorter than within, or the check can never pass"))]
#[x_kube(validation = ("[has(self.http), has(self.prometheus), has(self.sql), has(self.job)].filter(x, x).size() == 1", "set exactly one of http, prometheus, sql and job"))]
#[x_kube(validation = ("has(self.job) || has(self.passWhen)", "say what passes, e.g. passWhen: value < 100.0"))]
#[x_kube(validation = ("!has(self.job) || !has(self.passWhen)", "a job passes when it completes: leave passWhen out, and let the job end with another exit code than 0"))]
#[x_kube(validation = ("!has(self.job) || !has(self.draining)", "draining follows a number, and a job gives none: raise within instead"))]
#[x_kube(validation = ("!has(self.draining) || !has(self.http) || has(self.http.valueOf)", "draining follows a number: give http.valueOf"))]
#[x_kube(validation = ("!has(self.http) || self.stage == 'BeforeIngestion' || url(self.http.url).getHostname() != 'candidate'", "the host candidate stands for the candidate pod, which exists at stage BeforeIngestion only"))]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// The check's name in status and messages. Example: `queue-depth`.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// When it is made: `PreFlight` before anything is stopped; `BeforeIngestion` against the Server's candidate, before
    /// any client reaches the new version; `IngestionReenable` after the workers came back (the gate of the queue);
    /// `AfterIngestion` once ingestion settled (the verification of the new version).
    pub stage: Stage,
    /// Whether the upgrade fails with it. When false its result is only reported.
    #[serde(default = "yes")]
    pub required: bool,
    /// How long it may take to pass, from `1s` on. A job that has not ended by then is ended, and gave no verdict.
    #[serde(default = "check_within")]
    #[x_kube(validation = ("duration(self) >= duration('1s')", "within is the time that the check has to pass: at least 1s"))]
    pub within: GoDuration,
    /// Time between two samples, from `1s` on.
    #[serde(default = "check_every")]
    #[x_kube(validation = ("duration(self) >= duration('1s')", "every is the time between two samples: at least 1s"))]
    pub every: GoDuration,
    /// How long it must pass without a break. `0s`: one sample is enough.
    #[serde(default = "check_stable_for")]
    pub stable_for: GoDuration,
    /// A CEL expression; true passes. It may use `value` (the number that was found, always with a fraction: write
    /// `baseline * 2.0`), `baseline` (the same number before anything was stopped; it is taken in pre-flight when this is
    /// used), and for http `status` (HTTP status code) and `body` (the parsed JSON). Default: none; only `job` can do
    /// without it, which passes by its exit code. Example: `value <= 100.0 || value <= baseline * 1.2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub pass_when: Option<String>,
    /// How old the data may be that decides, by the data's own time. Needs `http.timeOf` for http; an SQL answer is
    /// always of now. Older data is Inconclusive. After the workers came back, data from before does not count either.
    #[serde(default = "fresh_within")]
    #[x_kube(validation = ("duration(self) >= duration('1s')", "freshWithin is the greatest age of the data: at least 1s"))]
    pub fresh_within: GoDuration,
    /// Time beyond `within` that is granted while `value` falls and, going on like this, will pass within it.
    /// Default: none. Example: `20m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<GoDuration>,
    /// Asks a service over HTTP. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Asks a server that speaks Prometheus' HTTP API. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusCheck>,
    /// Asks a PostgreSQL database. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlCheck>,
    /// Runs the Job of a CronJob's template. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobCheck>,
}

const fn yes() -> bool {
    true
}

const fn check_within() -> GoDuration {
    GoDuration::from_mins(10)
}

const fn check_every() -> GoDuration {
    GoDuration::from_secs(5)
}

const fn check_stable_for() -> GoDuration {
    GoDuration::from_secs(0)
}

const fn fresh_within() -> GoDuration {
    GoDuration::from_mins(2)
}

/// When a check is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Stage {
    /// Before anything is stopped.
    PreFlight,
    /// Against the Server's candidate, which no Service selects.
    BeforeIngestion,
    /// After the workers came back: the gate of the queue.
    IngestionReenable,
    /// After ingestion settled: the verification of the new version.
    AfterIngestion,
}

/// A GET request that follows no redirects.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// What is asked. At stage `BeforeIngestion` the host `candidate` is the Server's candidate pod, with the port of its
    /// container. Example: `http://memoria-server:8000/settings`.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = ("isURL(self) && (self.startsWith('http://') || self.startsWith('https://'))", "write a whole URL, e.g. http://memoria-server:8000/settings"))]
    #[x_kube(validation = ("!self.contains('@')", "URLs carry no credentials; use headersFrom"))]
    pub url: String,
    /// Headers whose values come from Secrets. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub headers_from: Vec<HeaderFrom>,
    /// A CEL expression over `body` and `status` that gives `value`, a number. Default: there is no `value`.
    /// Example: `body.depth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub value_of: Option<String>,
    /// A CEL expression over `body` that gives the data's own time, as RFC 3339 text (UTC when it has no offset) or as
    /// seconds since 1970. Default: the answer counts as fresh. Example: `body.updated_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub time_of: Option<String>,
}

/// An instant query that gives exactly one series.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusCheck {
    /// The server; `/api/v1/query` is added. Example: `http://prometheus.monitoring:9090`.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = ("isURL(self) && (self.startsWith('http://') || self.startsWith('https://'))", "write a whole URL, e.g. http://prometheus.monitoring:9090"))]
    #[x_kube(validation = ("!self.contains('@')", "URLs carry no credentials; use headersFrom"))]
    pub url: String,
    /// PromQL that gives a scalar or one series. Example: `sum(memoria_queue_depth)`.
    #[schemars(length(min = 1, max = 1024))]
    pub query: String,
    /// PromQL that gives the time of the oldest sample behind `query`, in seconds since 1970. The query API itself tells
    /// only when it evaluated. Default: `min(timestamp(S))`, when `query` is a selector S or one aggregation of it, such
    /// as `sum(S)`; any other query needs this field. Example: `min(timestamp(memoria_queue_depth))`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub time_query: Option<String>,
    /// Headers whose values come from Secrets. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub headers_from: Vec<HeaderFrom>,
}

/// A query in a read-only transaction of a PostgreSQL database.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SqlCheck {
    /// A SELECT that gives one row with one number (or boolean: 1 and 0); it may take 10 s.
    /// Example: `SELECT count(*) FROM ingestion_jobs WHERE done_at IS NULL`.
    #[schemars(length(min = 1, max = 1024))]
    pub query: String,
    /// Another database than Memoria's. Default: Memoria's own, which must be PostgreSQL: an SQLite file cannot be
    /// opened beside its server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_from: Option<SqlUrlFrom>,
}

/// Where the URL of another database comes from.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SqlUrlFrom {
    /// A key of a Secret in this namespace that holds a `postgresql://` URL.
    pub secret_key_ref: KeyRef,
}

/// A Job made from a CronJob's template, once: it has Passed when it completes and Failed when a container of it ends with
/// another exit code than 0. One that does not end within `within`, is never scheduled, evicted or killed gave no verdict.
/// `every`, `stableFor` and `freshWithin` mean nothing to it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobCheck {
    /// Whose template it is.
    pub template_ref: TemplateRef,
}

/// A CronJob in the release's namespace, as a rule a suspended one. Whoever may write it allows that its template is run
/// for a release, by the annotation `memoria.arca.run/check-template: "true"`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateRef {
    /// Its `metadata.name`. It may not be one of `ingestion.workers`, whose Jobs write. Example: `memoria-smoke-test`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A header whose value is a key of a Secret.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderFrom {
    /// The header's name. Example: `X-API-Key`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[0-9A-Za-z-]+$"))]
    pub name: String,
    /// The Secret and the key that holds its value.
    pub secret_key_ref: KeyRef,
}

impl Check {
    /// The headers that its requests carry.
    pub fn headers_from(&self) -> &[HeaderFrom] {
        match (&self.http, &self.prometheus) {
            (Some(http), _) => &http.headers_from,
            (None, Some(prometheus)) => &prometheus.headers_from,
            (None, None) => &[],
        }
    }
}
