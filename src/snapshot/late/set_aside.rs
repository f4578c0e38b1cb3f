//! Late writes as they lie in storage, the same for both engines: `late.json` counts them by table and names a file for
//! each, with one JSON a line. `docs/formats.md` shows both.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::LATE;
use crate::{
    api::upgrade::TableLate,
    snapshot::{
        error::{Error, Result},
        manifest::{StoredFile, hash_file, verify_stored},
    },
};

/// What was written since the baseline; `late.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Late {
    /// Version of this form: 1.
    pub v: i32,
    pub baseline_sha256: String,
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
    /// Tables with any, most first.
    pub tables: Vec<TableLate>,
    /// The file of each.
    pub files: BTreeMap<String, String>,
    /// Columns of each table that the hashes of its rows cover; those of older operators have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, Vec<String>>,
    /// Size and hash of each file, by its name; those of older operators have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hashes: BTreeMap<String, StoredFile>,
}

impl Late {
    pub fn new(baseline_sha256: &str) -> Self {
        Self { v: 1, baseline_sha256: baseline_sha256.to_owned(), ..Self::default() }
    }

    pub fn rows(&self) -> i64 {
        self.inserted.saturating_add(self.updated).saturating_add(self.deleted)
    }

    /// Takes up a table's file, which is removed where nothing was written late.
    pub(in crate::snapshot) fn add(&mut self, found: TableLate, columns: Vec<String>, output: Output) -> Result<()> {
        let path = output.finish()?;
        if found.rows() == 0 {
            return fs::remove_file(&path).map_err(Error::io("removing", &path));
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.hashes.insert(file.clone(), hash_file(&path).map_err(Error::io("reading back", &path))?);
        self.inserted += found.inserted;
        self.updated += found.updated;
        self.deleted += found.deleted;
        self.files.insert(found.table.clone(), file);
        self.columns.insert(found.table.clone(), columns);
        self.tables.push(found);
        Ok(())
    }

    /// Writes `late.json`, after all files.
    pub(in crate::snapshot) fn keep(&mut self, directory: &Path) -> Result<()> {
        self.tables.sort_by_key(|table| std::cmp::Reverse(table.rows()));
        let mut summary = Output::create(directory.join(LATE))?;
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::Order { what: error.to_string() })?;
        summary.line(text.as_bytes())?;
        summary.finish().map(drop)
    }
}

/// Late writes as they lie in storage, and which of them are meant.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// Where `late.json` lies.
    pub directory: &'a Path,
    pub late: &'a Late,
    pub tables: Vec<&'a TableLate>,
    /// Without what was updated and deleted.
    pub only_inserted: bool,
}

impl<'a> Chosen<'a> {
    pub fn all(directory: &'a Path, late: &'a Late) -> Self {
        Self { directory, late, tables: late.tables.iter().collect(), only_inserted: false }
    }
}

/// The name of the n-th table's file, from 1 on.
pub(in crate::snapshot) fn file_name(number: usize) -> String {
    format!("late-{number:04}.ndjson")
}

/// A file of ours alone, forced to disk at its end.
pub(in crate::snapshot) struct Output {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl Output {
    pub fn create(path: PathBuf) -> Result<Self> {
        let _ = fs::remove_file(&path);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let writer = BufWriter::with_capacity(256 * 1024, opened.map_err(Error::io("writing", &path))?);
        Ok(Self { path, writer })
    }

    pub fn line(&mut self, text: &[u8]) -> Result<()> {
        let written = self.writer.write_all(text).and_then(|()| self.writer.write_all(b"\n"));
        written.map_err(Error::io("writing", &self.path))
    }

    pub fn finish(self) -> Result<PathBuf> {
        let ended = self.writer.into_inner().map_err(std::io::IntoInnerError::into_error);
        ended.and_then(|file| file.sync_all()).map_err(Error::io("syncing", &self.path))?;
        Ok(self.path)
    }
}

/// One row that was written late, without its other values.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// `inserted`, `updated` or `deleted`.
    pub change: String,
    /// How many equal rows of a table without a key.
    #[serde(default)]
    pub times: Option<u64>,
    /// The primary key's values; a table without one has none.
    #[serde(default)]
    pub key: Option<serde_json::Value>,
    /// The row's hash as it was written; of a deleted row without a key, as it was.
    #[serde(default)]
    pub row_hash: Option<String>,
    /// Of an updated or deleted row with a key: its hash at the baseline.
    #[serde(default)]
    pub before: Option<String>,
}

/// Reads `late.json` of a failed state's directory, and every file that it names against its hash.
pub fn open(directory: &Path) -> Result<Late> {
    let path = directory.join(LATE);
    let bytes = fs::read(&path).map_err(Error::io("reading", &path))?;
    let damaged = |what: String| Error::Damaged { directory: directory.to_owned(), what: format!("{LATE}: {what}") };
    let late: Late = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if late.v != 1 {
        return Err(damaged(format!("it has version {}, this program reads 1", late.v)));
    }
    // Names lead nowhere but into this directory.
    if let Some(name) = late.files.values().chain(late.hashes.keys()).find(|name| name.contains('/')) {
        return Err(damaged(format!("it names the file {name:?}")));
    }
    verify_stored(directory, &late.hashes)?;
    Ok(late)
}

/// Shows every line of one table's file: its text, and what it says without the row's values.
pub fn visit(directory: &Path, file: &str, mut visit: impl FnMut(&str, &Change) -> Result<()>) -> Result<()> {
    let path = directory.join(file);
    let failed = || Error::io("reading", &path);
    let lines = BufReader::with_capacity(256 * 1024, File::open(&path).map_err(failed())?).lines();
    for (number, line) in (1..).zip(lines) {
        let line = line.map_err(failed())?;
        let change = serde_json::from_str(&line).map_err(|error| Error::Damaged {
            directory: directory.to_owned(),
            what: format!("{file}, line {number}: {error}"),
        })?;
        visit(&line, &change)?;
    }
    Ok(())
}
