//! The Job that makes the checks of one stage.

use k8s_openapi::api::batch::v1::Job;

use super::{
    JobContext, RenderError,
    archive::from_secret,
    ours,
    pod::{ContainerExt as _, Draft, MAIN},
    task,
    template::TO_BEGIN_SECONDS,
};
use crate::{
    api::release::{Check, Stage},
    job::protocol::{CHECK_URL_ENV_PREFIX, CheckOrder, CheckSource, HEADER_ENV_PREFIX, JobOrder, OrderedCheck},
};

/// Which stage's checks a Job makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckStep {
    /// Of pre-flight, with the baselines of later stages.
    PreFlight,
    /// Against the candidate.
    Candidate,
    Gate,
    Verify,
}

impl CheckStep {
    /// The Job that makes the checks of that stage.
    pub const fn of(stage: Stage) -> Self {
        match stage {
            Stage::PreFlight => Self::PreFlight,
            Stage::BeforeIngestion => Self::Candidate,
            Stage::IngestionReenable => Self::Gate,
            Stage::AfterIngestion => Self::Verify,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PreFlight => "checks",
            Self::Candidate => "candidate",
            Self::Gate => "gate",
            Self::Verify => "verify",
        }
    }
}

/// One check as it is ordered.
#[derive(Clone, Debug)]
pub struct Ordered<'a> {
    pub check: &'a Check,
    /// Only take its number.
    pub baseline_only: bool,
    /// The number that was taken.
    pub baseline: Option<serde_json::Number>,
}

impl<'a> Ordered<'a> {
    /// A check without a baseline.
    pub const fn plain(check: &'a Check) -> Self {
        Self { check, baseline_only: false, baseline: None }
    }
}

/// Operator image: these checks, side by side.
///
/// # Errors
/// [`RenderError`]
pub fn checks(ctx: &JobContext, step: CheckStep, checks: &[Ordered<'_>]) -> Result<Job, RenderError> {
    let sql = checks.iter().any(|ordered| ordered.check.sql.is_some());
    let order = CheckOrder {
        checks: checks.iter().map(|ordered| ordered_check(ordered)).collect(),
        database: sql.then(|| task(ctx)),
    };
    let mut main = ours(ctx, MAIN, &ctx.operator_image, &JobOrder::Check(order))?;
    if checks.iter().any(|o| o.check.sql.as_ref().is_some_and(|sql| sql.url_from.is_none())) {
        main = main.envs(&ctx.shape.database_env);
    }
    for (i, Ordered { check, .. }) in checks.iter().enumerate() {
        for (j, header) in check.headers_from().iter().enumerate() {
            main = main.envs(&[from_secret(format!("{HEADER_ENV_PREFIX}{i}_{j}"), &header.secret_key_ref)]);
        }
        if let Some(url) = check.sql.as_ref().and_then(|sql| sql.url_from.as_ref()) {
            main = main.envs(&[from_secret(format!("{CHECK_URL_ENV_PREFIX}{i}"), &url.secret_key_ref)]);
        }
    }
    let limit_seconds = checks.iter().map(|ordered| longest(ordered.check)).max().unwrap_or_default();
    Draft { step: step.as_str(), init: Vec::new(), main, limit_seconds, precious: false }.into_job(ctx)
}

/// How long a check may take, in seconds.
pub fn longest(check: &Check) -> u64 {
    let to_begin = check.job.as_ref().map_or(0, |_| TO_BEGIN_SECONDS);
    check.within.as_secs() + check.draining.map_or(0, |more| more.as_secs()) + to_begin
}

fn ordered_check(ordered: &Ordered<'_>) -> OrderedCheck {
    let check = ordered.check;
    let (source, url) = match (&check.http, &check.prometheus) {
        (Some(http), _) => (CheckSource::Http, http.url.clone()),
        (None, Some(prometheus)) => (CheckSource::Prometheus, prometheus.url.clone()),
        (None, None) => (CheckSource::Sql, String::new()),
    };
    let (prometheus, sql, http) = (check.prometheus.as_ref(), check.sql.as_ref(), check.http.as_ref());
    let query = prometheus.map(|p| &p.query).or(sql.map(|sql| &sql.query));
    OrderedCheck {
        name: check.name.clone(),
        required: check.required || ordered.baseline_only,
        within: check.within,
        every: check.every,
        stable_for: check.stable_for,
        pass_when: check.pass_when.clone().unwrap_or_default(),
        source,
        url,
        headers: check.headers_from().iter().map(|header| header.name.clone()).collect(),
        query: query.cloned().unwrap_or_default(),
        time_query: prometheus.and_then(|p| p.time_query.clone()).unwrap_or_default(),
        own_database: sql.is_some_and(|sql| sql.url_from.is_some()),
        value_of: http.and_then(|http| http.value_of.clone()),
        time_of: http.and_then(|http| http.time_of.clone()),
        fresh_within: Some(check.fresh_within),
        since_start: matches!(check.stage, Stage::IngestionReenable | Stage::AfterIngestion) && !ordered.baseline_only,
        draining: check.draining,
        baseline: ordered.baseline.clone(),
        baseline_only: ordered.baseline_only,
    }
}
