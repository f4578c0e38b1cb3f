//! What lies in a directory of exports and snapshots, and the removal of old exports. Exact snapshots belong to attempts and
//! are never removed here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Manifest,
    manifest::{Found, KIND, find},
};
use crate::snapshot::{
    Error, Result,
    manifest::{self, MANIFEST},
};

/// How far below the storage a manifest is looked for: release, attempt and what an attempt keeps besides.
const DEPTH: u32 = 3;

/// One export or snapshot, by its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub directory: PathBuf,
    /// `portable`, or an exact snapshot's: `postgresql`, `sqlite`, ….
    pub kind: String,
    pub read_at: Option<jiff::Timestamp>,
    pub tables: usize,
    pub rows: i64,
    pub bytes: u64,
    pub data_digest: String,
    /// Why its manifest cannot be read; the rest is empty then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// Everything with a manifest below `storage`, the newest last. Reads manifests only.
pub fn list(storage: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    walk(storage, DEPTH, &mut entries)?;
    entries.sort_by(|a, b| (a.read_at, &a.directory).cmp(&(b.read_at, &b.directory)));
    Ok(entries)
}

fn walk(directory: &Path, depth: u32, entries: &mut Vec<Entry>) -> Result<()> {
    entries.extend(entry(directory));
    if depth == 0 {
        return Ok(());
    }
    for found in fs::read_dir(directory).map_err(Error::io("looking into", directory))? {
        let found = found.map_err(Error::io("looking into", directory))?;
        // A link is not followed: what it leads to lies elsewhere.
        if found.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&found.path(), depth - 1, entries)?;
        }
    }
    Ok(())
}

fn entry(directory: &Path) -> Option<Entry> {
    let of = |kind: &str| Entry {
        directory: directory.to_owned(),
        kind: kind.to_owned(),
        read_at: None,
        tables: 0,
        rows: 0,
        bytes: 0,
        data_digest: String::new(),
        fault: None,
    };
    let faulty = |error: &Error| Entry { fault: Some(error.to_string()), ..of("unknown") };
    match find(directory) {
        Ok(Found::Nothing) => None,
        Ok(Found::Portable(manifest)) => Some(Entry {
            read_at: Some(manifest.read_at),
            tables: manifest.tables.len(),
            rows: manifest.data().rows(),
            bytes: manifest.files.values().map(|file| file.bytes).sum(),
            data_digest: manifest.data_digest.clone(),
            ..of(KIND)
        }),
        Ok(Found::Exact) => Some(match manifest::read(directory) {
            Ok(Some(stored)) => Entry {
                read_at: Some(stored.manifest.read_at),
                tables: stored.manifest.tables.len(),
                rows: stored.manifest.data().rows(),
                bytes: stored.manifest.bytes(),
                data_digest: stored.manifest.data_digest.clone(),
                ..of(&stored.manifest.kind)
            },
            Ok(None) => return None,
            Err(error) => faulty(&error),
        }),
        Err(error) => Some(faulty(&error)),
    }
}

/// What became of one export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    pub directory: PathBuf,
    pub fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// One of the newest whose bytes are as their manifest says.
    Kept,
    /// Its bytes are not as its manifest says; it counts for none, and a person shall look at it.
    Damaged(String),
    Removed,
}

/// Whether an export lies beside an exact snapshot: then it is an attempt's, too.
fn is_an_attempts(directory: &Path) -> bool {
    directory.parent().is_some_and(|above| matches!(find(above), Ok(Found::Exact)))
}

/// Keeps the newest `keep` portable exports (one at least) whose every byte is as its manifest says, and removes those that
/// are older than all of them. With `dry` nothing is removed.
pub fn prune(storage: &Path, keep: usize, dry: bool) -> Result<Vec<Pruned>> {
    let mut kept = 0;
    let mut pruned = Vec::new();
    let listed = list(storage)?.into_iter().rev();
    let exports = listed.filter(|entry| entry.kind == KIND && !is_an_attempts(&entry.directory));
    for Entry { directory, .. } in exports {
        let Found::Portable(manifest) = find(&directory)? else { continue };
        let fate = if kept >= keep.max(1) {
            if !dry {
                remove(&directory, &manifest)?;
            }
            Fate::Removed
        } else {
            match manifest::verify_stored(&directory, &manifest.files) {
                Ok(()) => {
                    kept += 1;
                    Fate::Kept
                }
                Err(error) => Fate::Damaged(error.to_string()),
            }
        };
        pruned.push(Pruned { directory, fate });
    }
    Ok(pruned)
}

/// The manifest goes first: what is half removed is no export. Files of other names keep the directory.
fn remove(directory: &Path, manifest: &Manifest) -> Result<()> {
    let names: Vec<String> = std::iter::once(MANIFEST.to_owned()).chain(manifest.files.keys().cloned()).collect();
    super::file::clear(directory, &names)?;
    let _ = fs::remove_dir(directory);
    Ok(())
}
