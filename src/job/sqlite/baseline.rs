//! Start, before clients write again: a copy of the database as the new version found it, so that later writes can be
//! told apart. The candidate has the file open, so the copy is read in one transaction beside it.

use std::{path::Path, time::Duration};

use tracing::info;

use super::{
    super::{
        context::Context,
        protocol::{BaselineFacts, BaselineOrder, Facts, JobReport},
        report,
        snapshot::{clear, make_directory},
    },
    place::Place,
    snapshot::{About, store},
};
use crate::snapshot::{
    Error, Result,
    archive::{Archive, Part},
    identity,
    manifest::{self, SCHEMA, Stored},
    sqlite::{self, DATABASE, KIND, hold::ask, markers::Lock},
};

pub async fn run(context: &Context, order: &BaselineOrder) -> Result<JobReport> {
    let place = Place::of(context, &order.database)?;
    let directory = context.below_storage(&order.directory)?;
    let (order, scratch, archive) = (order.clone(), context.places.scratch.clone(), context.archive.clone());
    sqlite::blocking(move || {
        archive.bring(&order.directory, Part::Files)?;
        if let Some(stored) = manifest::read(&directory)? {
            return again(&directory, &order, &stored, &archive);
        }
        make_directory(&directory)?;
        clear(&directory, &[DATABASE, SCHEMA])?;
        keep(&place, &order, &directory, &scratch, &archive)
    })
    .await
}

fn again(directory: &Path, order: &BaselineOrder, stored: &Stored, archive: &Archive) -> Result<JobReport> {
    let (task, found) = (&order.database, &stored.manifest);
    if (&found.release_uid, &found.attempt, found.kind.as_str()) != (&task.release_uid, &task.attempt, KIND) {
        return Err(Error::Occupied {
            directory: directory.to_owned(),
            expected: format!("attempt {}", task.attempt),
            found: format!("attempt {} of release {}", found.attempt, found.release_uid),
        });
    }
    if let Some(expected) = &task.identity {
        identity::prove(expected, &found.identity)?;
    }
    manifest::verify_files(directory, found)?;
    archive.keep(&order.directory)?;
    info!("the baseline is there already, and its bytes are as written");
    Ok(answer(stored))
}

fn keep(
    place: &Place,
    order: &BaselineOrder,
    directory: &Path,
    scratch: &Path,
    archive: &Archive,
) -> Result<JobReport> {
    let (path, task) = (&place.path, &order.database);
    let started_at = jiff::Timestamp::now();
    let lock = Lock::take(path, Duration::from_secs(order.limit_seconds))?;
    let connection = sqlite::open_live(path)?;
    let journal_mode: String = ask(&connection, path, "PRAGMA journal_mode")?;
    let begin = "PRAGMA query_only=ON; BEGIN";
    connection.execute_batch(begin).map_err(Error::sqlite("beginning to read", path))?;
    let about = About {
        release: String::new(),
        release_uid: task.release_uid.clone(),
        attempt: task.attempt.clone(),
        from_version: String::new(),
        operator_version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: place.identity(),
        started_at,
        read_at: jiff::Timestamp::now(),
        rescue: None,
        portable: false,
        recipients: archive.recipients(),
    };
    // The content is read from the copy, so that a rollback journal's writers wait for no longer than the copying.
    let stored = store((&connection, path, &journal_mode), None, about, directory, scratch)?;
    drop(connection);
    archive.keep(&order.directory)?;
    drop(lock);
    Ok(answer(&stored))
}

fn answer(stored: &Stored) -> JobReport {
    let rows = stored.manifest.data().rows();
    let tables = i32::try_from(stored.manifest.tables.len()).unwrap_or(i32::MAX);
    let message = format!("a copy of {rows} rows in {tables} tables is kept; later writes can be told apart");
    report::done(message, Facts::Baseline(BaselineFacts { tables, rows, sha256: stored.sha256.clone() }))
}
