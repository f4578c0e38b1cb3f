//! Migrate, beside the runner: lets it begin only when the data is exactly the snapshot's, makes sure that it begins at most
//! once, and judges afterwards by the schema. The marker in the database decides what happened, no exit code of ours.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use memoria_runner::order::{CommandResult, RunnerResult};
use sqlx::PgConnection;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    context::Context,
    exchange::{Shared, Waited},
    protocol::{Facts, GuardOrder, JobReport, MigrateFacts},
    reference::{Reference, how_it_ended},
    report,
};
use crate::{
    api::upgrade::{Category, MigrationRecord, MigrationState},
    commands,
    snapshot::{
        Error, Result,
        archive::Part,
        digest, dump, freeze, manifest, markers,
        markers::Marker,
        peers,
        schema::{self, Comparison, compare},
        session::{application_name, session_prefix},
        sqlite::schema::{Neutral, compare_neutral},
    },
};

/// The step's name in the markers.
pub(super) const STEP: &str = "migrate";
/// `application_name` of this Job's own sessions ends so.
const GUARD: &str = "guard";
/// Beyond the runner's own limit, for its start and end.
pub(super) const GRACE: Duration = Duration::from_secs(120);
/// How long a database that went away may take to come back once migrations ran.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the markers say before anything is begun.
pub(super) enum Standing {
    /// Not begun.
    New,
    /// Begun in this very pod, by this container's earlier life.
    Ours,
    /// Finished, or not to be begun.
    Decided(Box<JobReport>),
}

pub async fn run(context: &Context, order: &GuardOrder, mut stop: watch::Receiver<bool>) -> Result<JobReport> {
    let shared = Shared::new(&context.places.shared);
    if let Some(report) = shared.verdict()? {
        return Ok(report);
    }
    let token = shared.token()?;
    context.bring(&order.reference_directory, Part::Notes).await?;
    let reference = Reference::read(&context.below_storage(&order.reference_directory)?)?;
    let mut session = if shared.go()?.is_some_and(|go| go.proceed) {
        info!("this container was restarted after it let the runner begin; waiting for its result");
        None
    } else {
        match begin(context, order, &token).await? {
            Ok(session) => {
                shared.proceed(None)?;
                info!("the data is the snapshot's; the runner may begin");
                Some(session)
            }
            Err(report) => return Ok(*report),
        }
    };
    let limit = Duration::from_secs(order.limit_seconds) + GRACE;
    let waited = {
        let waiting = shared.wait(limit, &mut stop);
        tokio::select! {
            waited = waiting => waited?,
            // The session holds the lock while the runner works; it is had again at once when it is lost.
            never = keep(context, order, &mut session) => never,
        }
    };
    let result = match waited {
        Waited::Result(result) => result,
        Waited::TimeUp => return Ok(unknown(order, "the runner left no result in time")),
        Waited::Stopped => return Ok(unknown(order, "the pod was ended while migrations ran")),
    };
    let interrupted = *stop.borrow();
    drop(session);
    match finish(context, order, &reference, &result, interrupted).await {
        Ok(report) => Ok(report),
        Err(error) => Ok(unknown(order, &format!("the runner ended, but {error}"))),
    }
}

/// Everything that must hold before the first migration; `Err` holds the answer when nothing is to be run.
pub(super) async fn begin(
    context: &Context,
    order: &GuardOrder,
    token: &str,
) -> Result<Result<PgConnection, Box<JobReport>>> {
    let task = &order.database;
    let directory = context.below_storage(&order.directory)?;
    context.bring(&order.directory, Part::Notes).await?;
    let mut session = context.patient_session(task, GUARD, Duration::from_secs(60)).await?;
    // Asked before the lock too: a lost node's session may hold that for hours, and the answer is the same.
    if let Standing::Decided(report) = standing(order, &markers::all(&mut session).await?, token, advice) {
        return Ok(Err(report));
    }
    markers::lock(&mut session, &task.release_uid, Duration::from_secs(60)).await?;
    let standing = standing(order, &markers::all(&mut session).await?, token, advice);
    if let Standing::Decided(report) = standing {
        return Ok(Err(report));
    }
    end_leftovers(order, &mut session).await?;
    if let Err(report) = same_as_snapshot(context, &directory, &mut session).await? {
        return Ok(Err(Box::new(report)));
    }
    if matches!(standing, Standing::New) {
        markers::ensure(&mut session).await?;
        markers::begin(&mut session, &task.release_uid, &task.attempt, STEP, token).await?;
    }
    Ok(Ok(session))
}

/// What a person does about another attempt's unfinished step.
fn advice(marker: &Marker) -> String {
    format!("run {}", commands::abandon(&marker.release_uid, &marker.attempt))
}

pub(super) fn standing(
    order: &GuardOrder,
    markers: &[Marker],
    token: &str,
    advice: impl Fn(&Marker) -> String,
) -> Standing {
    let task = &order.database;
    let ours = |m: &&Marker| m.release_uid == task.release_uid && m.attempt == task.attempt && m.step == STEP;
    let own = markers.iter().find(ours);
    if let Some(other) = markers.iter().find(|marker| !marker.finished && !ours(marker)) {
        let message = format!(
            "{} of attempt {} began {} on this database and never finished; find out what became of it, then {}",
            other.step,
            other.attempt,
            other.started_at,
            advice(other)
        );
        return Standing::Decided(Box::new(report::refused(Category::Conflict, "UnfinishedAttempt", message)));
    }
    match own {
        None => Standing::New,
        Some(marker) if !marker.finished && marker.detail.as_deref() == Some(token) => Standing::Ours,
        Some(marker) if marker.finished => {
            let kept = marker.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
            let kept = kept.unwrap_or_else(|| unknown(order, "the marker is finished but holds no report"));
            Standing::Decided(Box::new(kept))
        }
        Some(marker) => {
            let why = format!("another pod began at {} and nobody knows how far it came", marker.started_at);
            Standing::Decided(Box::new(unknown(order, &why)))
        }
    }
}

/// Never run again: the database must be taken back to the snapshot, or judged by a person.
pub(super) fn unknown(order: &GuardOrder, why: &str) -> JobReport {
    let message = format!(
        "what the migrations of attempt {} did is unknown ({why}); they are not run again. Compare the database with the \
         snapshot, and take it back from there if it differs",
        order.database.attempt
    );
    report::refused(Category::Environment, "MigrateOutcomeUnknown", message)
}

/// Sessions of this attempt's earlier pods, whose commands may still be running in the server.
async fn end_leftovers(order: &GuardOrder, session: &mut PgConnection) -> Result<()> {
    let task = &order.database;
    let (prefix, own) = (session_prefix(&task.attempt), application_name(&task.attempt, GUARD));
    let wanted = |peer: &peers::Peer| peer.application.starts_with(&prefix) && peer.application != own;
    let ended = peers::end(session, Duration::from_secs(60), wanted).await?;
    if ended > 0 {
        warn!(ended, "ended sessions that an earlier step of this attempt had left");
    }
    Ok(())
}

/// The stored manifest is the journal's, and schema and data of the database are the manifest's.
async fn same_as_snapshot(
    context: &Context,
    directory: &Path,
    session: &mut PgConnection,
) -> Result<Result<(), JobReport>> {
    let stored = match super::snapshot::stored(context, directory)? {
        Ok(stored) => stored,
        Err(report) => return Ok(Err(report)),
    };
    let expected: schema::Schema = manifest::read_schema(directory, &stored.manifest)?;
    let actual = freeze::freeze(session).await?;
    let mut differences = Vec::new();
    let structure = dump::structure(&expected, &actual);
    if structure.is_empty() {
        let data = digest::all(session, &actual, |_, _| {}).await?;
        differences = stored.manifest.data().differences(&data, &actual);
    } else {
        differences.push(structure);
    }
    freeze::release(session).await?;
    if differences.is_empty() {
        return Ok(Ok(()));
    }
    Ok(Err(changed(&differences)))
}

/// The answer when the database is not the snapshot.
pub(super) fn changed(differences: &[String]) -> JobReport {
    let message = format!(
        "the database changed after its snapshot, so no migration was run: {}; find what still writes, then begin another attempt",
        dump::first(differences)
    );
    report::refused(Category::Conflict, "DataChangedSinceSnapshot", message)
}

/// Holds session and lock until dropped. Losing them is no reason to stop what runs.
async fn keep(context: &Context, order: &GuardOrder, session: &mut Option<PgConnection>) -> Waited {
    let task = &order.database;
    loop {
        let alive = match session {
            Some(held) => sqlx::query("SELECT 1").execute(held).await.is_ok(),
            None => false,
        };
        if !alive {
            *session = None;
            match context.session(task, GUARD).await {
                Ok(mut fresh) => match markers::lock(&mut fresh, &task.release_uid, Duration::ZERO).await {
                    Ok(()) => *session = Some(fresh),
                    Err(error) => warn!(%error, "the advisory lock is lost for now"),
                },
                Err(error) => warn!(%error, "the session is lost for now"),
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// The runner is done: what its commands said, then what the schema says, then the marker.
pub(super) async fn finish(
    context: &Context,
    order: &GuardOrder,
    reference: &Reference,
    result: &RunnerResult,
    interrupted: bool,
) -> Result<JobReport> {
    let started = Instant::now();
    loop {
        match judge(context, order, reference, result, interrupted).await {
            Err(error) if error.category() == Category::Transient && started.elapsed() < PATIENCE => {
                warn!(%error, "trying again");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            other => return other,
        }
    }
}

async fn judge(
    context: &Context,
    order: &GuardOrder,
    reference: &Reference,
    result: &RunnerResult,
    interrupted: bool,
) -> Result<JobReport> {
    let task = &order.database;
    let mut session = context.session(task, GUARD).await?;
    markers::lock(&mut session, &task.release_uid, Duration::from_secs(60)).await?;
    end_leftovers(order, &mut session).await?;
    let actual = schema::read(&mut session).await?;
    let comparison = match (&reference.schema, &reference.sqlite_schema) {
        (Some(expected), _) => Some(compare(expected, &actual)),
        (None, Some(expected)) => Some(compare_neutral(&Neutral::from(expected), &Neutral::from(&actual))),
        (None, None) => None,
    };
    let report = context.redact(report::fit(verdict(result, comparison, reference.why.as_deref(), interrupted)));
    let detail = serde_json::to_string(&report).map_err(|error| Error::Order { what: error.to_string() })?;
    markers::finish(&mut session, (&task.release_uid, &task.attempt, STEP), &report.reason, &detail).await?;
    Ok(report)
}

/// Exit codes first; where they are all 0, the schema. What a command printed decides nothing.
pub(super) fn verdict(
    result: &RunnerResult,
    comparison: Option<Comparison>,
    why: Option<&str>,
    interrupted: bool,
) -> JobReport {
    let migrations: Vec<MigrationRecord> = result.commands.iter().map(record).collect();
    let Comparison { differences, extra } = comparison.clone().unwrap_or_default();
    let facts = |migrations| {
        Some(Facts::Migrate(MigrateFacts { migrations, differences: differences.clone(), extra: extra.clone() }))
    };
    if let Some(failed) = result.commands.iter().find(|command| !command.exited_well()) {
        let how = how_it_ended(failed);
        let report = if interrupted {
            let message =
                format!("the pod was ended while migrations ran: {how}; the database is between two versions");
            report::refused(Category::Environment, "MigrateInterrupted", message)
        } else {
            report::refused(Category::Candidate, "MigrateFailed", format!("migration {how}"))
        };
        return JobReport { facts: facts(migrations), ..report };
    }
    if !differences.is_empty() {
        let message = format!(
            "after the migrations the schema is not what the new version's init-db builds: {}",
            dump::first(&differences)
        );
        let report = report::refused(Category::Candidate, "SchemaMismatch", message);
        return JobReport { facts: facts(migrations), ..report };
    }
    let count = migrations.len();
    let schema = match (&comparison, why) {
        (Some(_), _) if extra.is_empty() => "the schema is what the new version's init-db builds".to_owned(),
        (Some(_), _) => {
            format!("the schema has all that the new version's init-db builds, and {} objects more", extra.len())
        }
        (None, why) => format!("the schema was not compared: {}", why.unwrap_or("no reference")),
    };
    let facts = MigrateFacts { migrations, differences, extra };
    report::done(format!("{count} migrations ran, and {schema}"), Facts::Migrate(facts))
}

fn record(command: &CommandResult) -> MigrationRecord {
    let state = match command {
        command if !command.exited_well() => MigrationState::Failed,
        CommandResult { reported_failure: true, .. } => MigrationState::ReportedFailure,
        _ => MigrationState::Ran,
    };
    MigrationRecord { name: command.name.clone(), state }
}
