//! A snapshot's manifest: names every file with its hash, and what the database was at the read point. Written last, once,
//! whole; `docs/formats.md` shows one. What has no manifest is no snapshot.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::api::upgrade::DatabaseIdentity;

use super::{
    digest::{DataDigest, SequencePosition, TableDigest},
    erase,
    error::{Error, Result},
    hex,
    portable::encryption::Encryption,
    sha256_hex,
    sqlite::content::Header,
    store::{Place, ToPlace},
};

pub const MANIFEST: &str = "manifest.json";
pub const DUMP: &str = "database.dump";
pub const SCHEMA: &str = "schema.json";
/// What a person needs without the operator, beside the snapshot.
pub const RESCUE: &str = "rescue.json";
/// The schema that the new version promises, beside the snapshot.
pub const REFERENCE: &str = "reference.json";
/// What a file's name ends with while it is written.
pub const TEMPORARY: &str = ".tmp";

/// Fields are only ever added, each with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this form: 1.
    pub v: i32,
    /// `postgresql` or `sqlite`.
    pub kind: String,
    pub release: String,
    pub release_uid: String,
    pub attempt: String,
    /// The version of Memoria that wrote the data.
    pub from_version: String,
    pub operator_version: String,
    pub identity: DatabaseIdentity,
    pub server_version: String,
    pub tool_version: String,
    /// PostgreSQL: the settings that every digest depends on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub session_settings: BTreeMap<String, String>,
    pub started_at: jiff::Timestamp,
    /// When the read point was: every table locked, the snapshot exported.
    pub read_at: jiff::Timestamp,
    pub finished_at: jiff::Timestamp,
    pub schema_fingerprint: String,
    /// PostgreSQL: owners, grants and publications.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub access_fingerprint: String,
    pub tables: BTreeMap<String, TableDigest>,
    pub sequences: BTreeMap<String, SequencePosition>,
    pub data_digest: String,
    /// True when a restore into an empty server of the same major, or into a new file, gave the same schema, grants and
    /// digests.
    pub restored_in_scratch: bool,
    /// How long that took with its proof; manifests of older operators do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_restore_millis: Option<i64>,
    pub files: BTreeMap<String, StoredFile>,
    /// The export of the same moment that lies below, where one was asked for. The way back does not need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portable: Option<PortableExport>,
    /// To whom its files are encrypted where they stay; sizes and hashes are those before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// SQLite: what the file was besides its tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqlite: Option<SqliteFile>,
}

/// A portable export beside an exact snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortableExport {
    /// Below the snapshot's directory.
    pub directory: String,
    /// Size of all its files.
    pub bytes: u64,
    /// Hash of its own manifest, which names the others.
    pub manifest_sha256: String,
}

/// What an SQLite file was besides its tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SqliteFile {
    /// `wal` or `delete`: what a restore sets.
    pub journal_mode: String,
    #[serde(flatten)]
    pub header: Header,
    /// Rows that point to a row that is not there.
    #[serde(default)]
    pub dangling_rows: i64,
    /// Owner, group and permissions of the file.
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredFile {
    pub bytes: u64,
    pub sha256: String,
}

/// A manifest as it lies in storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub manifest: Manifest,
    pub sha256: String,
}

impl Manifest {
    pub fn data(&self) -> DataDigest {
        DataDigest { tables: self.tables.clone(), sequences: self.sequences.clone() }
    }

    /// Size of all files, those of the portable export included.
    pub fn bytes(&self) -> u64 {
        let exported = self.portable.as_ref().map_or(0, |export| export.bytes);
        self.files.values().map(|file| file.bytes).sum::<u64>() + exported
    }
}

/// Writes the manifest; one that is there already stays, and that is an error. Gives its hash.
pub fn write(directory: &Path, manifest: &Manifest) -> Result<String> {
    let mut bytes = serde_json::to_vec_pretty(manifest).map_err(|error| Error::Order { what: error.to_string() })?;
    bytes.push(b'\n');
    write_once(directory, MANIFEST, &bytes)?;
    Ok(sha256_hex(bytes))
}

/// Writes a file whole or not at all, forced to disk, and never over another.
pub fn write_once(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    write_once_as(directory, name, bytes, 0o660)
}

/// The same with these permissions, as far as the process's umask lets them be.
pub fn write_once_as(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let (path, temporary) = (directory.join(name), directory.join(format!("{name}{TEMPORARY}")));
    let _ = fs::remove_file(&temporary);
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(Error::io("writing", &temporary))?;
    // A link never replaces. Where a volume has no links: one Job at a time writes here, so looking first is enough.
    let linked = match fs::hard_link(&temporary, &path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => match path.try_exists() {
            Ok(false) => fs::rename(&temporary, &path),
            _ => Err(io::ErrorKind::AlreadyExists.into()),
        },
        other => other.and_then(|()| fs::remove_file(&temporary)),
    };
    linked.map_err(Error::io("keeping", &path))?;
    sync_directory(directory)
}

pub fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|open| open.sync_all()).map_err(Error::io("syncing", directory))
}

/// Reads the manifest; `None` when there is none.
pub fn read(place: &(impl ToPlace + ?Sized)) -> Result<Option<Stored>> {
    let place = place.to_place();
    let Some(bytes) = place.read(MANIFEST)? else { return Ok(None) };
    let damaged = |what: String| Error::Damaged { directory: place.name(), what };
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    if manifest.v != 1 {
        return Err(damaged(format!("{MANIFEST} has version {}, this operator reads 1", manifest.v)));
    }
    Ok(Some(Stored { manifest, sha256: sha256_hex(bytes) }))
}

/// Reads every file back and compares size and hash with the manifest's.
pub fn verify_files(directory: &Path, manifest: &Manifest) -> Result<()> {
    verify_stored(directory, &manifest.files)
}

/// The same of any files that a manifest names. Where they were erased the error says so, whatever is left.
pub fn verify_stored(place: &(impl ToPlace + ?Sized), files: &BTreeMap<String, StoredFile>) -> Result<()> {
    let place = place.to_place();
    erase::refuse(&place)?;
    for (name, expected) in files {
        let found = place.hash(name)?;
        if found != *expected {
            let what = format!("{name} has {} bytes or another hash, written were {}", found.bytes, expected.bytes);
            return Err(Error::Damaged { directory: place.name(), what });
        }
    }
    Ok(())
}

/// The schema that lies beside the manifest; the hash in the manifest counts.
pub fn read_schema<T: DeserializeOwned>(directory: &Path, manifest: &Manifest) -> Result<T> {
    let bytes = read_stored(&directory.to_place(), SCHEMA, &manifest.files)?;
    let damaged = |what: String| Error::Damaged { directory: directory.to_owned(), what: format!("{SCHEMA}: {what}") };
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

/// A small file that a manifest names; the hash there counts.
pub fn read_stored(place: &Place, name: &str, files: &BTreeMap<String, StoredFile>) -> Result<Vec<u8>> {
    let damaged = |what: &str| Error::Damaged { directory: place.name(), what: format!("{name}: {what}") };
    let bytes = place.read(name)?.ok_or_else(|| damaged("it is not there"))?;
    if files.get(name).is_none_or(|file| file.sha256 != sha256_hex(&bytes)) {
        return Err(damaged("another hash than the manifest's"));
    }
    Ok(bytes)
}

/// Size and SHA-256 of a file, in constant memory. What the page cache holds of it is dropped first, where that is
/// allowed, so that the disk is asked.
pub fn hash_file(path: &Path) -> io::Result<StoredFile> {
    let mut file = File::open(path)?;
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0u64, vec![0u8; 256 * 1024]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(StoredFile { bytes, sha256: hex(&hash.finalize()) });
        }
        hash.update(buffer.get(..read).unwrap_or_default());
        bytes += read as u64;
    }
}
