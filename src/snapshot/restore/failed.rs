//! Keeps the state that a failed upgrade left, before anything of it is dropped: a dump with a manifest of its own.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use sqlx::PgConnection;
use tracing::info;

use crate::snapshot::{
    digest::DataDigest,
    dump,
    error::{Error, Result},
    manifest::{self, DUMP, Manifest, SCHEMA, Stored, StoredFile},
    schema::Schema,
    sha256_hex,
    tools::Tools,
    url::DatabaseUrl,
};

/// What tells it from a snapshot that an upgrade may go back to.
const KIND: &str = "postgresql-failed-state";
/// A writer that comes in between makes another state; so many are kept.
const STATES: usize = 16;

/// A failed state that lies in storage, read back.
#[derive(Debug)]
pub struct FailedState {
    /// Below the storage's mount.
    pub directory: String,
    pub path: PathBuf,
    pub stored: Stored,
}

impl FailedState {
    pub fn bytes(&self) -> i64 {
        i64::try_from(self.stored.manifest.bytes()).unwrap_or(i64::MAX)
    }
}

/// Dumps what the session's frozen transaction sees. A state that is kept already is only verified.
/// `directory` below `root`; a state that differs from the one there goes into a numbered directory below it.
pub async fn save(
    session: &mut PgConnection,
    (tools, url, application): (&Tools, &DatabaseUrl, &str),
    (root, directory, scratch): (&Path, &str, &Path),
    snapshot: &Manifest,
    (schema, data): (&Schema, &DataDigest),
) -> Result<FailedState> {
    let started_at = jiff::Timestamp::now();
    let fingerprint = schema.fingerprint();
    let same = |found: &Manifest| {
        found.data() == *data
            && found.schema_fingerprint == fingerprint
            && found.access_fingerprint == schema.access_fingerprint()
    };
    for number in 1..=STATES {
        let directory = if number == 1 { directory.to_owned() } else { format!("{directory}/{number}") };
        let path = root.join(&directory);
        if let Some(stored) = manifest::read(&path)? {
            let (found, wanted) = (&stored.manifest, snapshot);
            if (&found.release_uid, &found.attempt, found.kind.as_str()) != (&wanted.release_uid, &wanted.attempt, KIND)
            {
                return Err(Error::Occupied {
                    directory: path,
                    expected: format!("the failed state of attempt {}", wanted.attempt),
                    found: format!("{} of attempt {}", found.kind, found.attempt),
                });
            }
            if same(found) {
                manifest::verify_files(&path, found)?;
                info!(directory, "this failed state is kept already");
                return Ok(FailedState { directory, path, stored });
            }
            continue;
        }
        DirBuilder::new().recursive(true).mode(0o770).create(&path).map_err(Error::io("making", &path))?;
        clear(&path)?;
        let exported = dump::export(session).await?;
        let read_at = jiff::Timestamp::now();
        dump::dump(tools, url, application, &exported, (&path, scratch)).await?;
        let dumped = dump::read_back(&path).await?;
        dump::check_contents(tools, &path, scratch, schema).await?;
        let mut bytes = serde_json::to_vec_pretty(schema).map_err(|error| Error::Order { what: error.to_string() })?;
        bytes.push(b'\n');
        manifest::write_once(&path, SCHEMA, &bytes)?;
        let schema_file = StoredFile { bytes: bytes.len() as u64, sha256: sha256_hex(&bytes) };
        let manifest = Manifest {
            kind: KIND.to_owned(),
            tool_version: tools.version.clone(),
            session_settings: dump::settings(),
            started_at,
            read_at,
            finished_at: jiff::Timestamp::now(),
            data_digest: data.total(&fingerprint),
            schema_fingerprint: fingerprint,
            access_fingerprint: schema.access_fingerprint(),
            tables: data.tables.clone(),
            sequences: data.sequences.clone(),
            // Nothing goes back to it by itself; a person who wants to will see.
            restored_in_scratch: false,
            scratch_restore_millis: None,
            files: [(DUMP.to_owned(), dumped), (SCHEMA.to_owned(), schema_file)].into(),
            ..snapshot.clone()
        };
        let sha256 = manifest::write(&path, &manifest)?;
        let stored = manifest::read(&path)?.filter(|stored| stored.sha256 == sha256);
        let stored = stored.ok_or_else(|| Error::Damaged {
            directory: path.clone(),
            what: format!("{} reads back differently", manifest::MANIFEST),
        })?;
        info!(directory, bytes = stored.manifest.bytes(), "the failed state is kept and was read back");
        return Ok(FailedState { directory, path, stored });
    }
    Err(Error::DataMoved { what: format!("{STATES} different states were saved already") })
}

/// Removes what a killed run left, by our own names only.
fn clear(directory: &Path) -> Result<()> {
    for name in [DUMP, SCHEMA] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", &path)(error)),
            _ => {}
        }
    }
    Ok(())
}
