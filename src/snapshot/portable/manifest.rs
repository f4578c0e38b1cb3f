//! The manifest beside an export's files: what they hold, proved by digests, and how each reads. `docs/formats.md` shows
//! one. Written last, once, whole; what has no manifest is no export of ours.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Compression, Form, Input, Options,
    encryption::{self, Encryption, Keys},
};
use crate::{
    api::upgrade::DatabaseIdentity,
    snapshot::{
        Error, Result,
        digest::{DataDigest, SequencePosition, TableDigest},
        manifest::{MANIFEST, SCHEMA, StoredFile, read_stored, verify_stored},
        sha256_hex,
        store::{Place, ToPlace},
    },
};

/// What a manifest of an export says of itself.
pub const KIND: &str = "portable";

/// Who computes an export's digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Proof {
    /// We from the rows as they are written, and the server from its own at the same read point; they must be equal
    #[default]
    Server,
    /// We alone, from the rows as they are written: that costs the server half as much
    Rows,
}

/// Fields are only ever added, each with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this form: 1.
    pub v: i32,
    /// `portable`.
    pub kind: String,
    /// `postgresql` or `sqlite`.
    pub engine: String,
    pub form: Form,
    pub compression: Compression,
    /// How all files but this are encrypted, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Who computed the digests.
    #[serde(default)]
    pub proof: Proof,
    pub operator_version: String,
    /// As the database server, or the SQLite library that read the file, says it.
    pub server_version: String,
    /// By name: what else had a hand in it.
    #[serde(default)]
    pub tool_versions: BTreeMap<String, String>,
    /// PostgreSQL: which database it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<DatabaseIdentity>,
    /// PostgreSQL: the settings that every digest depends on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub session_settings: BTreeMap<String, String>,
    pub started_at: jiff::Timestamp,
    /// When the read point was.
    pub read_at: jiff::Timestamp,
    /// How all rows were read at one moment: `snapshot 00000003-0000001B-1`, `one read transaction`.
    pub read_point: String,
    pub finished_at: jiff::Timestamp,
    pub schema_fingerprint: String,
    /// By the table's name in the schema.
    pub tables: BTreeMap<String, Table>,
    pub sequences: BTreeMap<String, SequencePosition>,
    pub data_digest: String,
    pub files: BTreeMap<String, StoredFile>,
}

/// Where a table's rows are, and what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// One of `files`.
    pub file: String,
    /// Its name there.
    pub name: String,
    #[serde(flatten)]
    pub content: TableDigest,
}

impl Manifest {
    pub fn data(&self) -> DataDigest {
        let tables = self.tables.iter().map(|(name, table)| (name.clone(), table.content.clone()));
        DataDigest { tables: tables.collect(), sequences: self.sequences.clone() }
    }

    /// The files with rows, in the order in which they are read.
    pub fn inputs(&self, place: &Place, keys: &Keys) -> Vec<Input> {
        let input = |name: &str| Input { place: place.clone(), name: name.to_owned(), keys: keys.clone() };
        self.row_files().into_iter().map(input).collect()
    }

    fn row_files(&self) -> Vec<&str> {
        let mut files: Vec<_> = self.files.keys().map(String::as_str).filter(|name| !is_schema(name)).collect();
        // The official tool's tables come first: the rest may point to them.
        files.sort_by_key(|name| (!name.starts_with(super::MAIN), *name));
        files
    }
}

fn is_schema(name: &str) -> bool {
    name.strip_suffix(encryption::SUFFIX).unwrap_or(name) == SCHEMA
}

/// Writes the manifest; one that is there already stays, and that is an error. What went over a network is read back before,
/// every byte of it; a disk was asked to keep it, and said so.
pub fn write(place: &Place, manifest: &Manifest) -> Result<()> {
    if let Place::Bucket(_) = place {
        verify_stored(place, &manifest.files)?;
    }
    let mut bytes = serde_json::to_vec_pretty(manifest).map_err(|error| Error::Order { what: error.to_string() })?;
    bytes.push(b'\n');
    place.write_once(MANIFEST, &bytes)
}

/// Writes the schema beside it; gives the file's name, too.
pub fn write_schema(place: &Place, schema: &impl Serialize, options: &Options) -> Result<(String, StoredFile)> {
    let mut bytes = serde_json::to_vec_pretty(schema).map_err(|error| Error::Order { what: error.to_string() })?;
    bytes.push(b'\n');
    let name = options.schema_name();
    let sealed = options.recipients.seal(Vec::new()).and_then(|mut sealing| {
        sealing.write_all(&bytes)?;
        sealing.finish()
    });
    let bytes = sealed.map_err(Error::io("encrypting", place.file(&name)))?;
    place.write_once(&name, &bytes)?;
    Ok((name, StoredFile { bytes: bytes.len() as u64, sha256: sha256_hex(bytes) }))
}

/// Reads the schema; the hash in the manifest counts.
pub fn read_schema<T: DeserializeOwned>(place: &Place, manifest: &Manifest, keys: &Keys) -> Result<T> {
    let name = manifest.files.keys().find(|name| is_schema(name)).map_or(SCHEMA, String::as_str);
    let damaged = |what: String| Error::Damaged { directory: place.name(), what: format!("{name}: {what}") };
    let mut bytes = read_stored(place, name, &manifest.files)?;
    if bytes.starts_with(encryption::MAGIC) {
        let mut plain = Vec::new();
        let mut reader = keys.unseal((place, name), std::io::Cursor::new(bytes))?;
        reader.read_to_end(&mut plain).map_err(|error| damaged(error.to_string()))?;
        bytes = plain;
    }
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

/// What lies in a place, by its manifest's `kind`.
#[derive(Clone, Debug)]
pub enum Found {
    Nothing,
    Portable(Box<Manifest>),
    /// An exact snapshot.
    Exact,
}

/// Looks what a place holds.
pub fn find(place: &(impl ToPlace + ?Sized)) -> Result<Found> {
    #[derive(Deserialize)]
    struct Kind {
        v: i32,
        kind: String,
    }
    let place = place.to_place();
    let Some(bytes) = place.read(MANIFEST)? else { return Ok(Found::Nothing) };
    let damaged = |what: String| Error::Damaged { directory: place.name(), what: format!("{MANIFEST}: {what}") };
    let Kind { v, kind } = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if v != 1 {
        return Err(damaged(format!("it has version {v}, this program reads 1")));
    }
    if kind != KIND {
        return Ok(Found::Exact);
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    // Names lead nowhere but into this directory.
    if let Some(name) = manifest.files.keys().find(|name| name.contains('/') || name.starts_with('.')) {
        return Err(damaged(format!("it names the file {name:?}")));
    }
    Ok(Found::Portable(Box::new(manifest)))
}
