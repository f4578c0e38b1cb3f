//! PreFlight, beside the candidate's `init-db`: gives it an ephemeral server of its own, reads the schema that it builds
//! there, and keeps that as what the migrated database must look like. Measures free space on the way.

use std::{fs, path::Path, time::Duration};

use memoria_runner::order::{CommandResult, RunnerResult};
use serde::{Deserialize, Serialize};
use sqlx::Connection;
use tokio::sync::watch;
use tracing::info;

use super::{
    context::Context,
    exchange::{Shared, Waited},
    protocol::{Facts, JobReport, ReferenceFacts, ReferenceOrder},
    report,
    retention::{self, Pruned},
};
use crate::{
    api::upgrade::{Category, Engine},
    snapshot::{
        Error, Result,
        archive::Part,
        dump,
        manifest::{self, REFERENCE},
        schema::{self, Schema},
        scratch::{SUPERUSER, ScratchServer},
        session::execute,
        sha256_hex, sqlite,
        store::Place,
        tools::Tools,
    },
};

/// Role and database that the candidate gets in the ephemeral server.
const NAME: &str = "memoria";
/// Beyond the runner's own limit, for its start and end.
pub(super) const GRACE: Duration = Duration::from_secs(120);

/// `reference.json`; `docs/formats.md` shows one. Fields are only ever added, each with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// Version of this form: 1.
    pub v: i32,
    /// The pre-flight run.
    pub attempt: String,
    pub made_at: jiff::Timestamp,
    /// `postgresql 15`, or `none`.
    pub built_on: String,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
    /// Built on an SQLite file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqlite_schema: Option<sqlite::schema::Schema>,
}

/// What `init-db` made, or why nothing can be compared.
#[derive(Default)]
pub(super) struct Built {
    schema: Option<Schema>,
    sqlite_schema: Option<sqlite::schema::Schema>,
    why: Option<String>,
}

impl Built {
    pub(super) fn none(why: String) -> Self {
        Self { why: Some(why), ..Self::default() }
    }

    pub(super) fn sqlite(schema: sqlite::schema::Schema) -> Self {
        Self { sqlite_schema: Some(schema), ..Self::default() }
    }
}

impl Reference {
    /// Nothing to compare with.
    pub(super) fn none(attempt: &str, why: &str) -> Self {
        Self {
            v: 1,
            attempt: attempt.to_owned(),
            made_at: jiff::Timestamp::now(),
            built_on: "none".to_owned(),
            why: Some(why.to_owned()),
            schema: None,
            sqlite_schema: None,
        }
    }

    /// Reads the reference; one that is missing or unreadable is an error.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(REFERENCE);
        let bytes = fs::read(&path).map_err(Error::io("reading", &path))?;
        let damaged =
            |what: String| Error::Damaged { directory: directory.to_owned(), what: format!("{REFERENCE}: {what}") };
        let reference: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        match (&reference.schema, &reference.sqlite_schema, &reference.why) {
            _ if reference.v != 1 => Err(damaged(format!("version {}, this operator reads 1", reference.v))),
            (None, None, None) => Err(damaged("neither a schema nor why there is none".to_owned())),
            _ => Ok(reference),
        }
    }
}

pub async fn run(context: &Context, order: &ReferenceOrder, mut stop: watch::Receiver<bool>) -> Result<JobReport> {
    let shared = Shared::new(&context.places.shared);
    if let Some(report) = shared.verdict()? {
        return Ok(report);
    }
    let directory = context.below_storage(&order.directory)?;
    fs::create_dir_all(&directory).map_err(Error::io("making", &directory))?;
    context.bring(&order.directory, Part::Notes).await?;
    let storage = look(context, order, &directory).await?;
    if storage.free_bytes < order.needed_bytes {
        return Ok(too_small(order, &storage));
    }
    // A run whose Job is repeated keeps the reference it has.
    if directory.join(REFERENCE).exists() {
        return answer(&directory, &Reference::read(&directory)?, &storage);
    }
    if shared.go()?.is_some_and(|go| go.proceed) {
        let message = "what init-db was to build its schema on was lost while it ran; it is tried again in another pod";
        return Ok(report::refused(Category::Transient, "Interrupted", message));
    }
    let (engine, built) = match order.engine {
        Engine::Postgresql => on_postgresql(context, order, &shared, &mut stop).await?,
        Engine::Sqlite => {
            (sqlite::library(), super::sqlite::reference::build(context, order, &shared, &mut stop).await?)
        }
    };
    let Some(Built { schema, sqlite_schema, why }) = built else { return Ok(report::interrupted()) };
    let none = schema.is_none() && sqlite_schema.is_none();
    let reference = Reference {
        v: 1,
        attempt: order.attempt.clone(),
        made_at: jiff::Timestamp::now(),
        built_on: if none { "none".to_owned() } else { engine },
        why,
        schema,
        sqlite_schema,
    };
    let mut bytes = serde_json::to_vec_pretty(&reference).map_err(|error| Error::Order { what: error.to_string() })?;
    bytes.push(b'\n');
    manifest::write_once(&directory, REFERENCE, &bytes)?;
    context.keep(&order.directory).await?;
    answer(&directory, &reference, &storage)
}

/// Removes old snapshots, and tries whether the storage can take a new one.
async fn look(context: &Context, order: &ReferenceOrder, directory: &Path) -> Result<Storage> {
    let (archive, retention) = (context.archive.clone(), order.retention.clone());
    let (name, own) = (order.directory.clone(), directory.to_owned());
    let done = tokio::task::spawn_blocking(move || {
        let Some(retention) = retention else { return Ok::<_, Error>((Pruned::default(), i64::MAX)) };
        archive.try_out()?;
        let pruned = retention::prune(&archive.stays(&name), &retention)?;
        let free = match archive.place() {
            Some(Place::Directory(path)) => free_bytes(path)?,
            _ => i64::MAX,
        };
        Ok((pruned, free))
    });
    let (pruned, free) = done.await.map_err(|error| Error::io("looking at", own)(error.into()))??;
    Ok(Storage { free_bytes: free_bytes(directory)?.min(free), pruned })
}

/// The volume, once old snapshots are gone.
struct Storage {
    free_bytes: i64,
    pruned: Pruned,
}

impl Storage {
    fn facts(&self) -> ReferenceFacts {
        ReferenceFacts {
            built_on: "none".to_owned(),
            schema_sha256: String::new(),
            tables: 0,
            free_bytes: self.free_bytes,
            removed: self.pruned.removed.iter().take(report::LIST_LIMIT).cloned().collect(),
        }
    }

    /// What else is to be said; begins with a semicolon.
    fn in_words(&self) -> String {
        let Pruned { removed, stayed } = &self.pruned;
        let gone = match removed.len() {
            0 => String::new(),
            count => format!("; {count} past spec.snapshot.retention removed: {}", dump::first(removed)),
        };
        let failed = match stayed.len() {
            0 => String::new(),
            count => format!("; {count} past spec.snapshot.retention could not be removed: {}", dump::first(stayed)),
        };
        gone + &failed
    }
}

async fn on_postgresql(
    context: &Context,
    order: &ReferenceOrder,
    shared: &Shared,
    stop: &mut watch::Receiver<bool>,
) -> Result<(String, Option<Built>)> {
    let tools = Tools::newest().await?;
    let place = context.places.scratch.join("reference");
    let server = ScratchServer::start(&tools, &place, Some(NAME)).await?;
    let built = build(&server, &tools, order, shared, stop).await;
    server.stop().await;
    Ok((format!("postgresql {}", tools.major), built?))
}

/// Lets `init-db` run and reads what it made; `None` when the pod is ended meanwhile.
async fn build(
    server: &ScratchServer,
    tools: &Tools,
    order: &ReferenceOrder,
    shared: &Shared,
    stop: &mut watch::Receiver<bool>,
) -> Result<Option<Built>> {
    let mut admin = server.session(SUPERUSER, "postgres").await?;
    // A plain owner, as in production: what needs more than that fails here first.
    execute(&mut admin, "making a role for init-db", format!("CREATE ROLE {NAME} LOGIN")).await?;
    execute(&mut admin, "making a database for init-db", format!("CREATE DATABASE {NAME} OWNER {NAME}")).await?;
    let _ = admin.close().await;
    shared.proceed(Some(format!("postgresql://{NAME}@127.0.0.1:{}/{NAME}", server.port)))?;
    info!(major = tools.major, "an empty server waits for init-db");
    let result = match shared.wait(Duration::from_secs(order.limit_seconds) + GRACE, stop).await? {
        Waited::Stopped => return Ok(None),
        Waited::TimeUp => {
            return Ok(Some(Built::none(format!("init-db did not end within {} s", order.limit_seconds))));
        }
        Waited::Result(result) => result,
    };
    if let Some(why) = failure(&result) {
        return Ok(Some(Built::none(why)));
    }
    let mut session = server.session(SUPERUSER, NAME).await?;
    let mut schema = schema::read(&mut session).await?;
    let _ = session.close().await;
    if schema.relations.is_empty() {
        let why = "init-db ended with exit code 0 and made no table; it may not read the URL that it is given";
        return Ok(Some(Built::none(why.to_owned())));
    }
    // Owners and grants of a scratch server say nothing about production.
    schema.access = schema::Access::default();
    Ok(Some(Built { schema: Some(schema), ..Built::default() }))
}

pub(super) fn failure(result: &RunnerResult) -> Option<String> {
    match result.commands.last() {
        None => Some("init-db was not run".to_owned()),
        Some(command) if !command.exited_well() => Some(how_it_ended(command)),
        Some(_) => None,
    }
}

/// A failed command in words: its name, how it ended, and the last line of its redacted output.
pub fn how_it_ended(command: &CommandResult) -> String {
    let how = match command {
        CommandResult { timed_out: true, .. } => "did not end in time".to_owned(),
        CommandResult { exit_code: Some(code), .. } => format!("ended with exit code {code}"),
        CommandResult { signal: Some(signal), .. } => format!("was ended by signal {signal}"),
        _ => "did not start".to_owned(),
    };
    let mut last =
        command.tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    report::cut(&mut last, 300);
    if last.is_empty() { format!("{} {how}", command.name) } else { format!("{} {how}: {last}", command.name) }
}

fn answer(directory: &Path, reference: &Reference, storage: &Storage) -> Result<JobReport> {
    let path = directory.join(REFERENCE);
    let schema_sha256 = sha256_hex(fs::read(&path).map_err(Error::io("reading", &path))?);
    let built_on = reference.built_on.clone();
    let tables = match (&reference.schema, &reference.sqlite_schema) {
        (Some(schema), _) => Some(schema.tables().count()),
        (None, Some(schema)) => Some(schema.tables.values().filter(|table| !table.shadow).count()),
        (None, None) => None,
    };
    let (message, facts) = match (tables, &reference.why) {
        (Some(tables), why) => {
            let tables = i32::try_from(tables).unwrap_or(i32::MAX);
            let why = why.as_deref().map(|why| format!("; {why}")).unwrap_or_default();
            let message =
                format!("the candidate's init-db built {tables} tables on an empty database of {built_on}{why}");
            (message, ReferenceFacts { built_on, schema_sha256, tables, ..storage.facts() })
        }
        (None, why) => {
            let why = why.as_deref().unwrap_or("the reason was not recorded");
            let message = format!("no reference schema, so the schema after the migration cannot be judged: {why}");
            (message, ReferenceFacts { built_on, ..storage.facts() })
        }
    };
    Ok(report::done(message + &storage.in_words(), Facts::Reference(facts)))
}

pub(super) fn free_bytes(directory: &Path) -> Result<i64> {
    let found = rustix::fs::statvfs(directory).map_err(|error| Error::io("measuring", directory)(error.into()))?;
    Ok(i64::try_from(found.f_bavail.saturating_mul(found.f_frsize)).unwrap_or(i64::MAX))
}

fn too_small(order: &ReferenceOrder, storage: &Storage) -> JobReport {
    let message = format!(
        "the snapshot storage has {} bytes free, {} are needed; enlarge the claim, keep fewer snapshots \
         (spec.snapshot.retention.keepLast), or lower spec.snapshot.capacityFactor{}",
        storage.free_bytes,
        order.needed_bytes,
        storage.in_words()
    );
    JobReport {
        facts: Some(Facts::Reference(storage.facts())),
        ..report::refused(Category::Environment, "StorageTooSmall", message)
    }
}
