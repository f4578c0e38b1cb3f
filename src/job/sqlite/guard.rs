//! Migrate, beside the runner: lets it begin only when the file is exactly the snapshot's, makes sure that it begins at
//! most once, and judges afterwards by the schema. The database is closed while the runner works.

use std::{path::Path, time::Duration};

use memoria_runner::order::RunnerResult;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    super::{
        context::Context,
        exchange::{Shared, Waited},
        guard::{GRACE, STEP, Standing, changed, standing, unknown, verdict},
        protocol::{GuardOrder, JobReport},
        reference::Reference,
        report, snapshot,
    },
    place::Place,
};
use crate::{
    api::upgrade::Category,
    snapshot::{
        Error, Result,
        archive::{Archive, Part},
        manifest::{self, Stored},
        markers::Marker,
        schema::Comparison,
        sqlite::{
            self, KIND, beside,
            content::{self, Content, Header},
            hold::Hold,
            markers::{Lock, MARKERS},
            schema,
        },
    },
};

/// How long another Job of ours, and another process, may have the file.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(context: &Context, order: &GuardOrder, mut stop: watch::Receiver<bool>) -> Result<JobReport> {
    let shared = Shared::new(&context.places.shared);
    if let Some(report) = shared.verdict()? {
        return Ok(report);
    }
    let token = shared.token()?;
    context.bring(&order.reference_directory, Part::Notes).await?;
    let reference = Reference::read(&context.below_storage(&order.reference_directory)?)?;
    // Held while the runner works: it keeps the operator's own Jobs out, not the runner.
    let lock = if shared.go()?.is_some_and(|go| go.proceed) {
        info!("this container was restarted after it let the runner begin; waiting for its result");
        let path = Place::of(context, &order.database)?.path;
        sqlite::blocking(move || Lock::take(&path, PATIENCE)).await.ok()
    } else {
        match begin(context, order, token).await? {
            Ok(lock) => {
                shared.proceed(None)?;
                info!("the data is the snapshot's; the runner may begin");
                Some(lock)
            }
            Err(report) => return Ok(*report),
        }
    };
    let limit = Duration::from_secs(order.limit_seconds) + GRACE;
    let result = match shared.wait(limit, &mut stop).await? {
        Waited::Result(result) => result,
        Waited::TimeUp => return Ok(unknown(order, "the runner left no result in time")),
        Waited::Stopped => return Ok(unknown(order, "the pod was ended while migrations ran")),
    };
    let interrupted = *stop.borrow();
    match finish(context, order, reference, result, interrupted, lock).await {
        Ok(report) => Ok(report),
        Err(error) => Ok(unknown(order, &format!("the runner ended, but {error}"))),
    }
}

pub(in super::super) type Begun = Result<Lock, Box<JobReport>>;

/// Everything that must hold before the first migration; `Err` holds the answer when nothing is to be run.
pub(in super::super) async fn begin(context: &Context, order: &GuardOrder, token: String) -> Result<Begun> {
    let place = Place::of(context, &order.database)?;
    let directory = context.below_storage(&order.directory)?;
    context.bring(&order.directory, Part::Notes).await?;
    let (order, stored) = (order.clone(), snapshot::stored(context, &directory));
    let archive = context.archive.clone();
    sqlite::blocking(move || {
        let path = &place.path;
        let decided = |markers: Vec<Marker>| match standing(&order, &markers, &token, |marker| advice(path, marker)) {
            Standing::Decided(report) => Err(report),
            other => Ok(other),
        };
        // Asked before the lock too: another pod may hold that for as long as its migrations take.
        if let Err(report) = decided(sqlite::markers::Markers::read(path)?.all()) {
            return Ok(Err(report));
        }
        let lock = Lock::take(path, PATIENCE)?;
        let standing = match decided(lock.markers()?.all()) {
            Ok(standing) => standing,
            Err(report) => return Ok(Err(report)),
        };
        let stored = match stored? {
            Ok(stored) => stored,
            Err(report) => return Ok(Err(Box::new(report))),
        };
        let differences = compare_with_snapshot(&lock, (&archive, &order.directory), &directory, &stored)?;
        if !differences.is_empty() {
            return Ok(Err(Box::new(changed(&differences))));
        }
        if matches!(standing, Standing::New) {
            let task = &order.database;
            lock.begin(&task.release_uid, &task.attempt, STEP, &token)?;
        }
        Ok(Ok(lock))
    })
    .await
}

/// What a person does about another attempt's unfinished step.
pub(super) fn advice(path: &Path, marker: &Marker) -> String {
    format!(
        "set \"finishedAt\" and \"outcome\": \"Abandoned\" of attempt {} in {}",
        marker.attempt,
        beside(path, MARKERS).display()
    )
}

/// The file holds exactly what the manifest says, and its journal mode is put back before anything runs.
fn compare_with_snapshot(
    lock: &Lock,
    (archive, name): (&Archive, &str),
    directory: &Path,
    stored: &Stored,
) -> Result<Vec<String>> {
    let manifest = &stored.manifest;
    if manifest.kind != KIND {
        let what = format!("it is of kind {}, the database is an SQLite file", manifest.kind);
        return Err(Error::Damaged { directory: directory.to_owned(), what });
    }
    // A snapshot that could not be taken back must not let anything begin.
    archive.verify(name, &manifest.files)?;
    let header = manifest.sqlite.as_ref().map_or_else(Header::default, |file| file.header.clone());
    let schema = manifest::read_schema(directory, manifest)?;
    let expected = Content { schema, data: manifest.data(), header };
    let hold = Hold::take(lock, PATIENCE)?;
    let found = content::read(hold.connection()?, lock.database());
    hold.release()?;
    Ok(expected.differences(&found?))
}

/// The runner is done: what its commands said, then what the file and its schema say, then the marker.
pub(in super::super) async fn finish(
    context: &Context,
    order: &GuardOrder,
    reference: Reference,
    result: RunnerResult,
    interrupted: bool,
    lock: Option<Lock>,
) -> Result<JobReport> {
    let place = Place::of(context, &order.database)?;
    let task = order.database.clone();
    sqlite::blocking(move || {
        let lock = lock.map_or_else(|| Lock::take(&place.path, PATIENCE), Ok)?;
        let hold = Hold::take(&lock, PATIENCE)?;
        let connection = hold.connection()?;
        let damage = content::damage(connection, &place.path)?;
        let actual = schema::read(connection, &place.path)?;
        if let Err(error) = hold.release() {
            warn!(%error, "the journal mode is not put back yet; the next Job does it");
        }
        let comparison = compare(&reference, &actual);
        let mut report = verdict(&result, comparison, reference.why.as_deref(), interrupted);
        if let (true, Some(first)) = (report.ok, damage.first()) {
            let message = format!("after the migrations SQLite's integrity check says: {first}");
            let facts = report.facts.take();
            report = JobReport { facts, ..report::refused(Category::Candidate, "DatabaseDamaged", message) };
        }
        let report = report::fit(report);
        let detail = serde_json::to_string(&report).map_err(|error| Error::Order { what: error.to_string() })?;
        lock.finish((&task.release_uid, &task.attempt, STEP), &report.reason, &detail)?;
        Ok(report)
    })
    .await
}

fn compare(reference: &Reference, actual: &schema::Schema) -> Option<Comparison> {
    reference.sqlite_schema.as_ref().map(|expected| schema::compare(expected, actual))
}
