//! The portable export in Memoria's own JSON and NDJSON: every table, column and sequence of one read point, in constant
//! memory, with a manifest that proves it; and the way back. `docs/formats.md` describes the files.
//!
//! The main file has the tables that Memoria's own `import-data` knows, as that reads them; all others lie in a sibling
//! of the same form.

pub mod copy_text;
pub mod encryption;
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

use std::sync::Arc;

use form::{Metadata, TableEntry};

use super::{
    Error, Result, erase,
    manifest::{MANIFEST, SCHEMA, verify_stored},
    store::{Place, ToPlace},
};

pub use encryption::{Keys, Recipients};
pub use file::{Compression, Input};
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub form: Form,
    pub compression: Compression,
    /// Who may read it, if it is to be encrypted.
    pub recipients: Recipients,
}

impl Options {
    fn name(&self, begin: &str) -> String {
        format!("{begin}{}{}{}", self.form.word(), self.compression.suffix(), self.sealed_suffix())
    }

    fn schema_name(&self) -> String {
        format!("{SCHEMA}{}", self.sealed_suffix())
    }

    fn sealed_suffix(&self) -> &'static str {
        if self.recipients.is_empty() { "" } else { encryption::SUFFIX }
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

/// Makes the place of a new export. One that holds anything but what an export without an end left is refused.
fn prepare(place: &Place, options: &Options) -> Result<()> {
    place.make()?;
    let found = place.entries()?;
    let ours = leftovers(place, options);
    if let Some(strange) = found.places.iter().chain(&found.files).find(|name| !ours.contains(name)) {
        return Err(Error::NotEmpty { directory: place.name(), found: strange.clone() });
    }
    for upload in place.unfinished(&found.files)? {
        upload.end()?;
    }
    place.remove(&found.files)
}

/// Removes an export of that kind, whole or begun, and its directory; the manifest goes first. Files of other names stay.
pub fn discard(place: &(impl ToPlace + ?Sized), options: Options) -> Result<()> {
    let place = place.to_place();
    let names: Vec<_> = std::iter::once(MANIFEST.to_owned()).chain(leftovers(&place, &options)).collect();
    place.remove(&names)?;
    place.remove_empty()
}

/// What a run of ours that had no end may have left.
fn leftovers(place: &Place, options: &Options) -> Vec<String> {
    let mut files = vec![options.name(MAIN), options.name(OTHERS), options.schema_name()];
    let traces = place.traces(&[files.as_slice(), &[MANIFEST.to_owned()]].concat());
    files.extend(traces);
    files
}

/// What is imported: our own export with its manifest, or a file that proves nothing of itself.
#[derive(Clone, Debug)]
pub enum Source {
    Proved { place: Place, manifest: Box<Manifest>, keys: Keys },
    Plain { file: Input },
}

impl Source {
    /// A place with a manifest, or one file. Reads every byte that the manifest names, and compares the hashes; whether the
    /// keys fit is seen before.
    pub fn open(place: &(impl ToPlace + ?Sized), keys: &Keys) -> Result<Self> {
        let place = place.to_place();
        if let Some((place, name)) = place.as_file()? {
            return Ok(Self::Plain { file: Input { place, name, keys: keys.clone() } });
        }
        match manifest::find(&place)? {
            manifest::Found::Portable(manifest) => {
                keys.fit(&place, &manifest)?;
                verify_stored(&place, &manifest.files)?;
                Ok(Self::Proved { place, manifest, keys: keys.clone() })
            }
            manifest::Found::Exact => {
                erase::refuse(&place)?;
                let what = "it holds an exact snapshot, which pg_restore or a copy of the file brings back";
                Err(Error::NoExport { path: place.name(), what })
            }
            manifest::Found::Nothing => Err(Error::NoExport {
                path: place.name(),
                what: "it has no manifest.json; an export without one was not finished. Name a file to import it unproved",
            }),
        }
    }

    pub fn files(&self) -> Vec<Input> {
        match self {
            Self::Proved { place, manifest, keys } => manifest.inputs(place, keys),
            Self::Plain { file } => vec![file.clone()],
        }
    }

    /// The manifest; there is none beside a single file.
    pub fn manifest(&self) -> Option<&Manifest> {
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

/// The manifest of an export, after every byte was compared with it. That needs no keys; with some, all of an encrypted one is
/// decrypted, too.
pub fn inspect(place: &(impl ToPlace + ?Sized), keys: &Keys) -> Result<Box<Manifest>> {
    let place = place.to_place();
    if keys.is_empty()
        && let manifest::Found::Portable(manifest) = manifest::find(&place)?
    {
        verify_stored(&place, &manifest.files)?;
        return Ok(manifest);
    }
    let Source::Proved { place, manifest, keys } = Source::open(&place, keys)? else {
        return Err(Error::NoExport { path: place.name(), what: "it is a file; name a directory with a manifest" });
    };
    manifest::read_schema::<serde::de::IgnoredAny>(&place, &manifest, &keys)?;
    for input in manifest.inputs(&place, &keys) {
        std::io::copy(&mut input.open()?, &mut std::io::sink()).map_err(Error::io("reading", input.path()))?;
    }
    Ok(manifest)
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
