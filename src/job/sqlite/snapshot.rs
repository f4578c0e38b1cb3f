//! SnapshotExport: the file held exclusively, its digests, a copy by the backup API, read back, and restored into a new
//! file once more; the manifest last. Repeating it is harmless: what has a manifest is only checked again.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tracing::info;

use super::{
    super::{
        context::Context,
        portable,
        protocol::{JobReport, SnapshotOrder},
        snapshot::{again, answer, clear, keep_rescue, keep_schema, make_directory, millis},
    },
    place::Place,
};
use crate::{
    api::upgrade::DatabaseIdentity,
    rescue::RescueState,
    snapshot::{
        Error, Result,
        archive::{Archive, Part},
        manifest::{self, MANIFEST, Manifest, RESCUE, SCHEMA, SqliteFile, Stored, StoredFile},
        portable::Recipients,
        sqlite::{
            self, DATABASE, KIND, beside,
            content::{self, Content},
            copy,
            hold::Hold,
            markers::Lock,
        },
    },
};

/// How long another Job of ours, and another process, may have the file.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(context: &Context, order: &SnapshotOrder) -> Result<JobReport> {
    let directory = context.below_storage(&order.directory)?;
    context.bring(&order.directory, Part::All).await?;
    if let Some(stored) = manifest::read(&directory)? {
        return again(context, order, &directory, stored).await;
    }
    let place = Place::of(context, &order.database)?;
    let (order, scratch, archive) = (order.clone(), context.places.scratch.clone(), context.archive.clone());
    sqlite::blocking(move || {
        make_directory(&directory)?;
        clear(&directory, &[DATABASE, SCHEMA, RESCUE])?;
        fresh(&place, &order, &directory, &scratch, &archive)
    })
    .await
}

fn fresh(
    place: &Place,
    order: &SnapshotOrder,
    directory: &Path,
    scratch: &Path,
    archive: &Archive,
) -> Result<JobReport> {
    let started_at = jiff::Timestamp::now();
    let lock = Lock::take(&place.path, PATIENCE)?;
    let hold = Hold::take(&lock, PATIENCE)?;
    info!(proof = hold.proof(), "the file is held; reading begins");
    let about = About {
        release: order.release.clone(),
        release_uid: order.database.release_uid.clone(),
        attempt: order.database.attempt.clone(),
        from_version: order.from_version.clone(),
        operator_version: order.operator_version.clone(),
        identity: place.identity(),
        started_at,
        read_at: jiff::Timestamp::now(),
        rescue: order.rescue.clone(),
        portable: order.portable,
        recipients: archive.recipients(),
    };
    let content = content::read(hold.connection()?, &place.path)?;
    let stored =
        store((hold.connection()?, &place.path, hold.journal_mode()), Some(&content), about, directory, scratch)?;
    // With the lock still held: a twin finds what is kept, and makes none of its own.
    archive.keep(&order.directory)?;
    hold.release()?;
    Ok(answer(&stored.manifest, stored.sha256))
}

/// What a manifest says besides the content.
pub(super) struct About {
    pub release: String,
    pub release_uid: String,
    pub attempt: String,
    pub from_version: String,
    pub operator_version: String,
    pub identity: DatabaseIdentity,
    pub started_at: jiff::Timestamp,
    pub read_at: jiff::Timestamp,
    pub rescue: Option<Box<RescueState>>,
    pub portable: bool,
    /// To whom it is encrypted where it stays.
    pub recipients: Recipients,
}

/// Copies a database into storage, proves the copy, and writes its manifest last. The copy must hold this content; without
/// one it says itself what there was.
pub(super) fn store(
    (connection, path, journal_mode): (&Connection, &Path, &str),
    content: Option<&Content>,
    about: About,
    directory: &Path,
    scratch: &Path,
) -> Result<Stored> {
    let (kept, temporary) = (directory.join(DATABASE), beside(&directory.join(DATABASE), ".tmp"));
    copy::copy(connection, path, &temporary)?;
    let damaged = |what| Error::DatabaseDamaged { path: path.to_owned(), what };
    let (copied, dangling_rows) = copy::read_back(&temporary, damaged)?;
    let content = content.unwrap_or(&copied);
    same(content, &copied, "the copy in storage")?;
    fs::rename(&temporary, &kept).map_err(Error::io("keeping", &kept))?;
    manifest::sync_directory(directory)?;
    let file: StoredFile = manifest::hash_file(&kept).map_err(Error::io("reading back", &kept))?;
    info!(bytes = file.bytes, sha256 = file.sha256, "the copy was read back");
    let proving = Instant::now();
    prove(content, &kept, scratch)?;
    let scratch_restore_millis = Some(millis(proving));
    let portable = portable::of_sqlite(about.portable, about.recipients.clone(), directory, &content.data)?;
    let mut files: BTreeMap<_, _> = keep_rescue(directory, about.rescue.as_deref())?.into_iter().collect();
    files.extend([(DATABASE.to_owned(), file), (SCHEMA.to_owned(), keep_schema(directory, &content.schema)?)]);
    let live = fs::metadata(path).map_err(Error::io("looking at", path))?;
    let manifest = Manifest {
        v: 1,
        kind: KIND.to_owned(),
        release: about.release,
        release_uid: about.release_uid,
        attempt: about.attempt,
        from_version: about.from_version,
        operator_version: about.operator_version,
        identity: about.identity,
        server_version: "SQLite".to_owned(),
        tool_version: sqlite::library(),
        session_settings: BTreeMap::default(),
        started_at: about.started_at,
        read_at: about.read_at,
        finished_at: jiff::Timestamp::now(),
        data_digest: content.data_digest(),
        schema_fingerprint: content.schema.fingerprint(),
        access_fingerprint: String::new(),
        tables: content.data.tables.clone(),
        sequences: content.data.sequences.clone(),
        restored_in_scratch: true,
        scratch_restore_millis,
        files,
        portable,
        encryption: about.recipients.described(),
        sqlite: Some(SqliteFile {
            journal_mode: journal_mode.to_owned(),
            header: content.header.clone(),
            dangling_rows,
            uid: live.uid(),
            gid: live.gid(),
            mode: live.mode() & 0o7777,
        }),
    };
    let sha256 = manifest::write(directory, &manifest)?;
    // What counts is what lies in storage, not what was meant to.
    let stored = manifest::read(directory)?.filter(|stored| stored.sha256 == sha256 && stored.manifest == manifest);
    let damaged =
        || Error::Damaged { directory: directory.to_owned(), what: format!("{MANIFEST} reads back differently") };
    stored.ok_or_else(damaged)
}

fn same(expected: &Content, found: &Content, what: &str) -> Result<()> {
    match expected.differences(found).first() {
        None => Ok(()),
        Some(first) => Err(Error::NotRestorable { what: format!("{what} differs from the database: {first}") }),
    }
}

/// Restores the stored copy into a new file, and finds the same in it.
fn prove(content: &Content, kept: &Path, scratch: &Path) -> Result<()> {
    fs::create_dir_all(scratch).map_err(Error::io("making", scratch))?;
    let restored = scratch.join("restored.sqlite");
    let stored = sqlite::open_copy(kept)?;
    let proved = copy::copy(&stored, kept, &restored).and_then(|()| {
        let damaged = |what| Error::NotRestorable { what };
        let (found, _) = copy::read_back(&restored, damaged)?;
        same(content, &found, "a restored file")
    });
    copy::remove(&restored)?;
    proved
}
