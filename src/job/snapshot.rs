//! SnapshotExport: one read point under SHARE locks, digests and dump of it, read back, restored into an empty server, and
//! the manifest last. Repeating it is harmless: what has a manifest is only checked again, what has none is made anew.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;
use sqlx::{Connection, PgConnection};
use tokio::sync::watch;
use tracing::info;

use super::{
    context::Context,
    portable,
    protocol::{Facts, JobReport, SnapshotFacts, SnapshotOrder},
    report,
};
use crate::{
    api::upgrade::Category,
    rescue::RescueState,
    snapshot::{
        Error, Result,
        archive::Part,
        digest, dump, erase, freeze, identity,
        manifest::{self, DUMP, MANIFEST, Manifest, PortableExport, RESCUE, SCHEMA, Stored, StoredFile},
        markers, peers,
        schema::{self, Schema},
        session::application_name,
        sha256_hex,
        tools::Tools,
    },
};

const STEP: &str = "snapshot";

pub async fn run(context: &Context, order: &SnapshotOrder) -> Result<JobReport> {
    let directory = context.below_storage(&order.directory)?;
    context.bring(&order.directory, Part::All).await?;
    if let Some(stored) = manifest::read(&directory)? {
        return again(context, order, &directory, stored).await;
    }
    make_directory(&directory)?;
    clear(&directory, &[DUMP, SCHEMA, RESCUE])?;
    fresh(context, order, &directory).await
}

pub(super) fn make_directory(directory: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o770).create(directory).map_err(Error::io("making", directory))
}

/// A snapshot that is whole already: its bytes are read again, nothing else is done.
pub(super) async fn again(
    context: &Context,
    order: &SnapshotOrder,
    directory: &Path,
    stored: Stored,
) -> Result<JobReport> {
    let task = &order.database;
    let found = (&stored.manifest.release_uid, &stored.manifest.attempt);
    if found != (&task.release_uid, &task.attempt) {
        return Err(Error::Occupied {
            directory: directory.to_owned(),
            expected: format!("attempt {}", task.attempt),
            found: format!("attempt {} of release {}", found.1, found.0),
        });
    }
    if let Some(expected) = &task.identity {
        identity::prove(expected, &stored.manifest.identity)?;
    }
    verify(directory, &stored.manifest).await?;
    read_back(directory, &stored.manifest, portable::verify).await?;
    // A container that was restarted may have come no further than the workplace.
    context.keep(&order.directory).await?;
    info!("the snapshot is there already, and its bytes are as its manifest says");
    Ok(answer(&stored.manifest, stored.sha256))
}

/// The manifest that the journal names; `Err` holds the answer when another one, or none, lies there.
pub(super) fn stored(context: &Context, directory: &Path) -> Result<Result<Stored, JobReport>> {
    let refused = |reason, message: String| Ok(Err(report::refused(Category::Environment, reason, message)));
    erase::refuse(directory)?;
    let Some(stored) = manifest::read(directory)? else {
        let message = format!("no manifest in {}; check that the volume is the attempt's", directory.display());
        return refused("SnapshotMissing", message);
    };
    if context.input.manifest_sha256.as_deref() != Some(stored.sha256.as_str()) {
        let message = format!(
            "the manifest in {} hashes to {}, the journal says {}; nothing was run, check who changed it",
            directory.display(),
            stored.sha256,
            context.input.manifest_sha256.as_deref().unwrap_or("nothing")
        );
        return refused("ManifestMismatch", message);
    }
    Ok(Ok(stored))
}

pub(super) async fn verify(directory: &Path, manifest: &Manifest) -> Result<()> {
    read_back(directory, manifest, manifest::verify_files).await
}

/// Reads files back on a thread of their own.
async fn read_back(
    directory: &Path,
    manifest: &Manifest,
    verify: impl FnOnce(&Path, &Manifest) -> Result<()> + Send + 'static,
) -> Result<()> {
    let (directory, manifest) = (directory.to_owned(), manifest.clone());
    let path = directory.clone();
    tokio::task::spawn_blocking(move || verify(&directory, &manifest))
        .await
        .map_err(|error| Error::io("reading back", &path)(error.into()))?
}

/// Removes what a killed run left. Only files of our own names; a directory of a whole snapshot never comes here.
pub(super) fn clear(directory: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        for path in [directory.join(name), directory.join(format!("{name}.tmp"))] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("removing", &path)(error));
                }
                Err(_) => {}
                Ok(()) => info!(path = %path.display(), "removed what an unfinished run left"),
            }
        }
    }
    Ok(())
}

/// What was read while the database stood still.
struct Frozen {
    schema: Schema,
    data: digest::DataDigest,
    portable: Option<PortableExport>,
    read_at: jiff::Timestamp,
    encoding: String,
    roles: Vec<String>,
}

async fn fresh(context: &Context, order: &SnapshotOrder, directory: &Path) -> Result<JobReport> {
    let started_at = jiff::Timestamp::now();
    let task = &order.database;
    let url = context.url()?;
    let mut session = context.patient_session(task, STEP, Duration::from_secs(60)).await?;
    markers::lock(&mut session, &task.release_uid, Duration::from_secs(60)).await?;
    let prepared = peers::prepared(&mut session).await?;
    if !prepared.is_empty() {
        return Ok(super::fence::prepared_transactions(&prepared));
    }
    let identity = identity::read(&mut session, url).await?;
    let major = session.server_version_num().unwrap_or_default() / 10_000;
    let tools = Tools::of(major).await?;
    let (server_version,) = sqlx::query_as("SELECT current_setting('server_version')")
        .fetch_one(&mut session)
        .await
        .map_err(Error::query("reading the server's version"))?;

    let frozen = read_frozen(context, order, &tools, directory, &mut session).await?;
    let dumped = dump::read_back(directory).await?;
    info!(bytes = dumped.bytes, sha256 = dumped.sha256, "the dump was read back");
    dump::check_contents(&tools, directory, &context.places.scratch, &frozen.schema).await?;
    let original = dump::Original {
        schema: &frozen.schema,
        data: &frozen.data,
        encoding: frozen.encoding.clone(),
        roles: frozen.roles.clone(),
    };
    let proving = Instant::now();
    dump::prove(&tools, directory, &context.places.scratch, &original).await?;
    let scratch_restore_millis = Some(millis(proving));

    let mut files: BTreeMap<_, _> = keep_rescue(directory, order.rescue.as_deref())?.into_iter().collect();
    files.extend([(DUMP.to_owned(), dumped), (SCHEMA.to_owned(), keep_schema(directory, &frozen.schema)?)]);
    let fingerprint = frozen.schema.fingerprint();
    let manifest = Manifest {
        v: 1,
        kind: "postgresql".to_owned(),
        release: order.release.clone(),
        release_uid: task.release_uid.clone(),
        attempt: task.attempt.clone(),
        from_version: order.from_version.clone(),
        operator_version: order.operator_version.clone(),
        identity,
        server_version,
        tool_version: tools.version.clone(),
        session_settings: dump::settings(),
        started_at,
        read_at: frozen.read_at,
        finished_at: jiff::Timestamp::now(),
        data_digest: frozen.data.total(&fingerprint),
        schema_fingerprint: fingerprint,
        access_fingerprint: frozen.schema.access_fingerprint(),
        tables: frozen.data.tables,
        sequences: frozen.data.sequences,
        restored_in_scratch: true,
        scratch_restore_millis,
        files,
        portable: frozen.portable,
        encryption: context.archive.recipients().described(),
        sqlite: None,
    };
    let sha256 = manifest::write(directory, &manifest)?;
    // What counts is what lies in storage, not what was meant to.
    let stored = manifest::read(directory)?.filter(|stored| stored.sha256 == sha256 && stored.manifest == manifest);
    let damaged =
        || Error::Damaged { directory: directory.to_owned(), what: format!("{MANIFEST} reads back differently") };
    let stored = stored.ok_or_else(damaged)?;
    // With the lock still held: a twin finds what is kept, and makes none of its own.
    context.keep(&order.directory).await?;
    let _ = session.close().await;
    Ok(answer(&stored.manifest, stored.sha256))
}

/// Digests and dump of one moment, with every table locked against writers meanwhile.
async fn read_frozen(
    context: &Context,
    order: &SnapshotOrder,
    tools: &Tools,
    directory: &Path,
    session: &mut PgConnection,
) -> Result<Frozen> {
    let task = &order.database;
    let schema = freeze::freeze(session).await?;
    let read_at = jiff::Timestamp::now();
    let (encoding, roles) = dump::surroundings(session).await?;
    let snapshot = dump::export(session).await?;
    info!(tables = schema.tables().count(), "every table is locked against writers; reading begins");
    let application = application_name(&task.attempt, STEP);
    let dumping = dump::dump(tools, context.url()?, &application, &snapshot, (directory, &context.places.scratch));
    let (told, known) = watch::channel(None);
    let digesting = async {
        let data = digest::all(session, &schema, |table, digest| info!(table, rows = digest.rows, "digested")).await?;
        told.send_replace(Some(data.clone()));
        Ok(data)
    };
    let exporting = portable::of_postgres(context, order, (directory, &snapshot, &application), known);
    let ((), data, portable) = tokio::try_join!(dumping, digesting, exporting)?;
    // New tables, and objects other than tables, can come under the locks; the transaction's own snapshot hides them.
    let mut other = context.session(task, STEP).await?;
    let after = schema::read(&mut other).await?;
    let _ = other.close().await;
    let differences = dump::structure(&schema, &after);
    if !differences.is_empty() {
        return Err(Error::SchemaMoved { differences });
    }
    freeze::release(session).await?;
    Ok(Frozen { schema, data, portable, read_at, encoding, roles })
}

/// Whole milliseconds since then.
pub(super) fn millis(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn keep_schema(directory: &Path, schema: &impl Serialize) -> Result<StoredFile> {
    keep(directory, SCHEMA, schema)
}

/// What a person needs without the operator, as the plan has it: name and hash for the manifest.
pub(super) fn keep_rescue(directory: &Path, rescue: Option<&RescueState>) -> Result<Option<(String, StoredFile)>> {
    rescue.map(|state| Ok((RESCUE.to_owned(), keep(directory, RESCUE, state)?))).transpose()
}

fn keep(directory: &Path, name: &str, value: &impl Serialize) -> Result<StoredFile> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| Error::Order { what: error.to_string() })?;
    bytes.push(b'\n');
    manifest::write_once(directory, name, &bytes)?;
    let path = directory.join(name);
    File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("syncing", &path))?;
    Ok(StoredFile { bytes: bytes.len() as u64, sha256: sha256_hex(bytes) })
}

pub(super) fn answer(manifest: &Manifest, manifest_sha256: String) -> JobReport {
    if !manifest.restored_in_scratch {
        let message =
            "the stored snapshot was never restored into scratch, so it proves nothing; begin another attempt";
        return report::refused(Category::Environment, "SnapshotNotRestorable", message);
    }
    let facts = SnapshotFacts {
        bytes: i64::try_from(manifest.bytes()).unwrap_or(i64::MAX),
        tables: i32::try_from(manifest.tables.len()).unwrap_or(i32::MAX),
        rows: manifest.data().rows(),
        manifest_sha256,
        data_digest: manifest.data_digest.clone(),
        restored_in_scratch: manifest.restored_in_scratch,
        scratch_restore_millis: manifest.scratch_restore_millis,
        portable_directory: manifest.portable.as_ref().map(|export| export.directory.clone()),
    };
    let exported = if manifest.portable.is_some() { ", and with them exported in Memoria's own form" } else { "" };
    let message = format!(
        "snapshot of {} rows in {} tables, {} bytes, stored, read back and restored into scratch with the same \
         digests{exported}",
        facts.rows, facts.tables, facts.bytes
    );
    report::done(message, Facts::Snapshot(facts))
}
