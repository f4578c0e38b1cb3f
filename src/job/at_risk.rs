//! IngestionReenable and Verification, from time to time: counts what differs from the baseline at one read point, while
//! clients write. It reads only, holds no lock that keeps anybody from writing, and sets nothing aside.

use std::time::{Duration, Instant};

use sqlx::Connection;
use tracing::info;

use super::{
    context::Context,
    protocol::{AtRiskFacts, AtRiskOrder, Facts, JobReport},
    report,
    snapshot::millis,
};
use crate::{
    api::upgrade::{Category, TableLate},
    snapshot::{Result, archive::Part, late, schema, session::execute, sqlite::blocking},
};

const STEP: &str = "at-risk";

pub async fn run(context: &Context, order: &AtRiskOrder) -> Result<JobReport> {
    let limit = Duration::from_secs(order.limit_seconds);
    match tokio::time::timeout(limit, count(context, order)).await {
        Ok(done) => done,
        Err(_) => {
            let message =
                format!("the rows at risk were not counted within {} s; nothing waits for it", order.limit_seconds);
            Ok(report::refused(Category::Environment, "AtRiskTimedOut", message))
        }
    }
}

/// No plan has this Job for an SQLite file.
pub fn not_of_files() -> JobReport {
    let message = "rows at risk cannot be counted beside the Server that holds its file";
    report::refused(Category::Bug, "OrderInvalid", message)
}

async fn count(context: &Context, order: &AtRiskOrder) -> Result<JobReport> {
    let started = Instant::now();
    let directory = context.below_storage(&order.baseline_directory)?;
    context.bring(&order.baseline_directory, Part::Files).await?;
    let kept = directory.clone();
    let found = blocking(move || {
        let found = late::read(&kept)?;
        found.as_ref().map_or(Ok(()), |(baseline, _)| late::verify(&kept, baseline))?;
        Ok(found)
    });
    let Some((baseline, sha256)) = found.await? else {
        let message = format!("there is no baseline in {}", order.baseline_directory);
        return Ok(report::refused(Category::Environment, "BaselineMissing", message));
    };
    if context.input.baseline_sha256.as_ref() != Some(&sha256) {
        let message = format!("the baseline in {} is not the one that the journal names", order.baseline_directory);
        return Ok(report::refused(Category::Environment, "BaselineMismatch", message));
    }
    let mut session = context.session(&order.database, STEP).await?;
    execute(&mut session, "beginning the read", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let read_at = jiff::Timestamp::now();
    let schema = schema::read(&mut session).await?;
    let tables = late::count(&mut session, &schema, (&directory, &baseline)).await?;
    let _ = session.close().await;
    let sum = |of: fn(&TableLate) -> i64| tables.iter().map(of).sum::<i64>();
    let (inserted, updated, deleted) = (sum(|t| t.inserted), sum(|t| t.updated), sum(|t| t.deleted));
    info!(inserted, updated, deleted, "counted against the baseline");
    let message = format!("since the baseline {inserted} rows were inserted, {updated} updated, {deleted} deleted");
    let facts = AtRiskFacts { read_at, millis: millis(started), inserted, updated, deleted, tables };
    Ok(report::done(message, Facts::AtRisk(facts)))
}
