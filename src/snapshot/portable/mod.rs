//! The portable export in Memoria's own JSON and NDJSON: every table, column and sequence of one read point, in constant
//! memory, with a manifest that proves it; and the way back. `docs/formats.md` describes the files.
//!
//! The main file has the tables that Memoria's own `import-data` knows, as that reads them; all others lie in a sibling
//! of the same form.

pub mod copy_text;
pub mod file;
pub mod form;
pub mod json;
pub mod manifest;
pub mod postgres;
pub mod read;
pub mod shelf;
pub mod sqlite;
pub mod value;
pub mod verify;

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use form::{Metadata, TableEntry};

use super::{
    Error, Result,
    manifest::{MANIFEST, SCHEMA},
};

pub use file::Compression;
pub use form::Form;
pub use manifest::{Manifest, Proof};

/// The tables that Memoria's own export knows, in its order.
pub const OFFICIAL: [&str; 14] = [
    "agents",
    "teams",
    "workspaces",
    "workspace_members",
    "chat_history",
    "long_term_memory",
    "short_term_memory",
    "spatial_metadata",
    "memory_access_events",
    "link_memory_threads",
    "thread_events",
    "thread_message_links",
    "clusters",
    "cluster_members",
];

/// What the files' names begin with.
pub(crate) const MAIN: &str = "memoria.";
pub(crate) const OTHERS: &str = "others.";

/// How an export is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub form: Form,
    pub compression: Compression,
}

impl Options {
    fn name(self, begin: &str) -> String {
        format!("{begin}{}{}", self.form.word(), self.compression.suffix())
    }
}

/// Hears how far an export or import is: the table, its rows so far, and of how many where that is known.
pub type Progress = Arc<dyn Fn(&str, i64, Option<i64>) + Send + Sync>;

/// Nobody listens.
pub fn silent() -> Progress {
    Arc::new(|_, _, _| {})
}

/// Which file a table goes into, and its name there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Planned {
    /// In the schema.
    table: String,
    /// In the file.
    name: String,
    rows: i64,
}

/// Divides the tables among the two files, each in the order in which it is written. `official` says which of the official
/// tables a table is.
fn divide<'a>(
    form: Form,
    tables: impl Iterator<Item = &'a str>,
    official: impl Fn(&str) -> Option<&'static str>,
) -> [Vec<Planned>; 2] {
    let mut files = [Vec::new(), Vec::new()];
    let [main, others] = &mut files;
    for table in tables {
        let (file, name) = match official(table) {
            Some(name) => (&mut *main, name),
            None => (&mut *others, table),
        };
        file.push(Planned { table: table.to_owned(), name: name.to_owned(), rows: 0 });
    }
    let order = |name: &str| OFFICIAL.iter().position(|known| *known == name);
    match form {
        Form::Ndjson => main.sort_by_key(|planned| order(&planned.name)),
        // Sorted keys are part of that form.
        Form::Json => main.sort_by(|a, b| a.name.cmp(&b.name)),
    }
    others.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

fn metadata(engine: &str, form: Form, at: jiff::Timestamp, tables: &[Planned]) -> Metadata {
    let entries = tables.iter().map(|planned| TableEntry { name: planned.name.clone(), row_count: planned.rows });
    Metadata {
        dialect: engine.to_owned(),
        // As Python's isoformat writes it.
        exported_at: at.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string(),
        format: form.word().to_owned(),
        tables: entries.collect(),
    }
}

/// Makes the directory of a new export. One that holds anything but what an export without an end left is refused.
fn prepare(directory: &Path, options: Options) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(Error::io("making", directory))?;
    let ours: BTreeSet<String> = leftovers(options);
    let entries = fs::read_dir(directory).map_err(Error::io("looking into", directory))?;
    for entry in entries {
        let name = entry.map_err(Error::io("looking into", directory))?.file_name().to_string_lossy().into_owned();
        if !ours.contains(&name) {
            return Err(Error::NotEmpty { directory: directory.to_owned(), found: name });
        }
    }
    file::clear(directory, &ours.into_iter().collect::<Vec<_>>())
}

/// Removes an export of that kind, whole or begun, and its directory; the manifest goes first. Files of other names stay.
pub fn discard(directory: &Path, options: Options) -> Result<()> {
    let names: Vec<_> = std::iter::once(MANIFEST.to_owned()).chain(leftovers(options)).collect();
    file::clear(directory, &names)?;
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(Error::io("removing", directory)(error))
        }
        _ => Ok(()),
    }
}

/// What a run of ours that had no end may have left.
fn leftovers(options: Options) -> BTreeSet<String> {
    let begun = [options.name(MAIN), options.name(OTHERS), SCHEMA.to_owned()];
    begun.into_iter().chain([MANIFEST, SCHEMA].map(|name| format!("{name}.tmp"))).collect()
}

/// What is imported: our own export with its manifest, or a file that proves nothing of itself.
#[derive(Clone, Debug)]
pub enum Source {
    Proved { directory: PathBuf, manifest: Box<Manifest> },
    Plain { file: PathBuf },
}

impl Source {
    /// A directory with a manifest, or one file. Reads every byte that the manifest names, and compares the hashes.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = fs::metadata(path).map_err(Error::io("looking at", path))?;
        if kind.is_file() {
            return Ok(Self::Plain { file: path.to_owned() });
        }
        match manifest::find(path)? {
            manifest::Found::Portable(manifest) => {
                super::manifest::verify_stored(path, &manifest.files)?;
                Ok(Self::Proved { directory: path.to_owned(), manifest })
            }
            manifest::Found::Exact => Err(Error::NoExport {
                path: path.to_owned(),
                what: "it holds an exact snapshot, which pg_restore or a copy of the file brings back",
            }),
            manifest::Found::Nothing => Err(Error::NoExport {
                path: path.to_owned(),
                what: "it has no manifest.json; an export without one was not finished. Name a file to import it unproved",
            }),
        }
    }

    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Proved { directory, manifest } => {
                manifest.row_files().into_iter().map(|name| directory.join(name)).collect()
            }
            Self::Plain { file } => vec![file.clone()],
        }
    }

    fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Proved { manifest, .. } => Some(manifest),
            Self::Plain { .. } => None,
        }
    }

    /// Refuses the export of another engine: no digest of ours can compare the two.
    fn must_be(&self, engine: &'static str) -> Result<()> {
        match self.manifest() {
            Some(manifest) if manifest.engine != engine => {
                Err(Error::OtherEngine { found: manifest.engine.clone(), wanted: engine })
            }
            _ => Ok(()),
        }
    }
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    pub tables: usize,
    pub rows: i64,
    /// Every table's digest was the manifest's before COMMIT. False where there was no manifest.
    pub proved: bool,
}
