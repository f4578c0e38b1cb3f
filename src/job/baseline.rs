//! Start, before clients write again: keeps keys and row hashes of every table at one read point. Repeating it is harmless:
//! a baseline that is whole is only checked again.

use std::{path::Path, time::Duration};

use sqlx::Connection;
use tracing::info;

use super::{
    context::Context,
    protocol::{BaselineFacts, BaselineOrder, Facts, JobReport},
    report,
};
use crate::{
    api::upgrade::Category,
    snapshot::{
        Error, Result,
        archive::Part,
        dump, identity,
        late::{self, Baseline},
        markers, schema,
        session::execute,
    },
};

const STEP: &str = "baseline";

pub async fn run(context: &Context, order: &BaselineOrder) -> Result<JobReport> {
    let limit = Duration::from_secs(order.limit_seconds);
    match tokio::time::timeout(limit, keep(context, order)).await {
        Ok(done) => done,
        Err(_) => {
            let message = format!(
                "the baseline was not read within {} s; give the start more time, or look for what slows the database",
                order.limit_seconds
            );
            Ok(report::refused(Category::Environment, "BaselineTimedOut", message))
        }
    }
}

async fn keep(context: &Context, order: &BaselineOrder) -> Result<JobReport> {
    let task = &order.database;
    let directory = context.below_storage(&order.directory)?;
    let mut session = context.patient_session(task, STEP, Duration::from_secs(60)).await?;
    // A twin would write the same files.
    markers::lock(&mut session, &task.release_uid, Duration::from_secs(order.limit_seconds)).await?;
    context.bring(&order.directory, Part::Files).await?;
    if let Some(found) = late::read(&directory)? {
        return again(context, order, &directory, found).await;
    }
    let identity = identity::read(&mut session, context.url()?).await?;
    execute(&mut session, "beginning the read", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let schema = schema::read(&mut session).await?;
    let baseline = Baseline {
        v: 1,
        release_uid: task.release_uid.clone(),
        attempt: task.attempt.clone(),
        identity,
        read_at: jiff::Timestamp::now(),
        session_settings: dump::settings(),
        tables: Default::default(),
    };
    let (baseline, sha256) = late::keep(&mut session, &directory, &schema, baseline).await?;
    context.keep(&order.directory).await?;
    let _ = session.close().await;
    Ok(answer(&baseline, sha256))
}

async fn again(
    context: &Context,
    order: &BaselineOrder,
    directory: &Path,
    (baseline, sha256): (Baseline, String),
) -> Result<JobReport> {
    let task = &order.database;
    if (&baseline.release_uid, &baseline.attempt) != (&task.release_uid, &task.attempt) {
        return Err(Error::Occupied {
            directory: directory.to_owned(),
            expected: format!("the baseline of attempt {}", task.attempt),
            found: format!("the baseline of attempt {} of release {}", baseline.attempt, baseline.release_uid),
        });
    }
    if let Some(expected) = &task.identity {
        identity::prove(expected, &baseline.identity)?;
    }
    late::verify(directory, &baseline)?;
    context.keep(&order.directory).await?;
    info!("the baseline is there already, and its bytes are as written");
    Ok(answer(&baseline, sha256))
}

fn answer(baseline: &Baseline, sha256: String) -> JobReport {
    let rows = baseline.tables.values().map(|table| table.rows).sum();
    let tables = i32::try_from(baseline.tables.len()).unwrap_or(i32::MAX);
    let message = format!("keys and hashes of {rows} rows in {tables} tables are kept; later writes can be told apart");
    report::done(message, Facts::Baseline(BaselineFacts { tables, rows, sha256 }))
}
