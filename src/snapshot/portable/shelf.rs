//! What lies in a place of exports and snapshots, and the removal of old exports. Exact snapshots belong to attempts and
//! are never removed here.

use jiff::SignedDuration;
use serde::Serialize;

use super::{
    Manifest,
    manifest::{Found, KIND, find},
};
use crate::snapshot::{
    Error, Result,
    erase::{self, ERASED, Record},
    manifest::{self, MANIFEST},
    store::{Kind, Place, ToPlace, UPLOAD},
};

/// How far below the storage a manifest is looked for: release, attempt and what an attempt keeps besides.
const DEPTH: u32 = 3;
/// What has been uploading for longer is nobody's any more.
const ABANDONED: SignedDuration = SignedDuration::from_hours(24);

/// One export or snapshot, by its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub directory: Place,
    /// `portable`, or an exact snapshot's: `postgresql`, `sqlite`, ….
    pub kind: String,
    pub read_at: Option<jiff::Timestamp>,
    pub tables: usize,
    pub rows: i64,
    pub bytes: u64,
    pub data_digest: String,
    /// Only an identity of one of its recipients reads it.
    pub encrypted: bool,
    /// Its data was erased on request; the rest tells what it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erased: Option<Record>,
    /// Why its manifest cannot be read; the rest is empty then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// What was found below a place.
#[derive(Default)]
struct Shelf {
    entries: Vec<Entry>,
    /// What tells of uploads, by the place that it lies in.
    uploads: Vec<(Place, Vec<String>)>,
}

/// Everything with a manifest below `storage`, the newest last. Reads manifests only.
pub fn list(storage: &(impl ToPlace + ?Sized)) -> Result<Vec<Entry>> {
    Ok(look(&storage.to_place())?.entries)
}

fn look(storage: &Place) -> Result<Shelf> {
    let mut shelf = Shelf::default();
    walk(storage, DEPTH, &mut shelf)?;
    shelf.entries.sort_by_key(|entry| (entry.read_at, entry.directory.name()));
    Ok(shelf)
}

fn walk(place: &Place, depth: u32, shelf: &mut Shelf) -> Result<()> {
    let found = place.entries()?;
    if found.files.iter().any(|name| name == MANIFEST) {
        let record = found.files.iter().any(|name| name == ERASED).then(|| erase::read(place)).transpose();
        shelf.entries.extend(entry(place).map(|entry| match record {
            Ok(record) => Entry { erased: record.flatten(), ..entry },
            Err(error) => Entry { fault: Some(error.to_string()), ..entry },
        }));
    }
    let uploads: Vec<_> = found.files.into_iter().filter(|name| name.ends_with(UPLOAD)).collect();
    if !uploads.is_empty() {
        shelf.uploads.push((place.clone(), uploads));
    }
    if depth > 0 {
        for name in found.places {
            walk(&place.below(&name), depth - 1, shelf)?;
        }
    }
    Ok(())
}

fn entry(place: &Place) -> Option<Entry> {
    let of = |kind: &str| Entry {
        directory: place.clone(),
        kind: kind.to_owned(),
        read_at: None,
        tables: 0,
        rows: 0,
        bytes: 0,
        data_digest: String::new(),
        encrypted: false,
        erased: None,
        fault: None,
    };
    let faulty = |error: &Error| Entry { fault: Some(error.to_string()), ..of("unknown") };
    match find(place) {
        Ok(Found::Nothing) => None,
        Ok(Found::Portable(manifest)) => Some(Entry {
            read_at: Some(manifest.read_at),
            tables: manifest.tables.len(),
            rows: manifest.data().rows(),
            bytes: manifest.files.values().map(|file| file.bytes).sum(),
            data_digest: manifest.data_digest.clone(),
            encrypted: manifest.encryption.is_some(),
            ..of(KIND)
        }),
        Ok(Found::Exact) => Some(match manifest::read(place) {
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
    pub directory: Place,
    pub fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// One of the newest whose bytes are as their manifest says.
    Kept,
    /// Its bytes are not as its manifest says; it counts for none, and a person shall look at it.
    Damaged(String),
    /// Its data was erased on request; it counts for none, and its record stays as long as it would have.
    Erased,
    Removed,
    /// The upload of this file had begun more than a day before, and had no end.
    UploadEnded(String),
}

/// Whether an export lies beside an exact snapshot: then it is an attempt's, too.
fn is_an_attempts(place: &Place) -> bool {
    place.above().is_some_and(|above| matches!(find(&above), Ok(Found::Exact)))
}

/// Keeps the newest `keep` portable exports (one at least) whose every byte is as its manifest says, and removes those that
/// are older than all of them. Uploads that nobody carries on are ended. With `dry` nothing is removed.
pub fn prune(storage: &(impl ToPlace + ?Sized), keep: usize, dry: bool) -> Result<Vec<Pruned>> {
    let mut kept = 0;
    let mut pruned = Vec::new();
    let shelf = look(&storage.to_place())?;
    let listed = shelf.entries.into_iter().rev();
    let exports = listed.filter(|entry| entry.kind == KIND && !is_an_attempts(&entry.directory));
    for Entry { directory, erased, .. } in exports {
        let Found::Portable(manifest) = find(&directory)? else { continue };
        let fate = if kept >= keep.max(1) {
            if !dry {
                remove(&directory, &manifest)?;
            }
            Fate::Removed
        } else if erased.is_some() {
            Fate::Erased
        } else {
            match manifest::verify_stored(&directory, &manifest.files) {
                Ok(()) => {
                    kept += 1;
                    Fate::Kept
                }
                // That the storage does not answer says nothing of an export.
                Err(Error::Store(error)) if error.kind() != Some(Kind::Missing) => return Err(error.into()),
                Err(error) => Fate::Damaged(error.to_string()),
            }
        };
        pruned.push(Pruned { directory, fate });
    }
    let now = jiff::Timestamp::now();
    for (directory, uploads) in shelf.uploads {
        for upload in directory.unfinished(&uploads)? {
            if now.duration_since(upload.started_at) > ABANDONED {
                if !dry {
                    upload.end()?;
                }
                pruned.push(Pruned { directory: directory.clone(), fate: Fate::UploadEnded(upload.file) });
            }
        }
    }
    Ok(pruned)
}

/// The manifest goes first: what is half removed is no export. Files of other names keep the directory.
fn remove(place: &Place, manifest: &Manifest) -> Result<()> {
    let own = [MANIFEST, ERASED].map(str::to_owned);
    let names: Vec<String> = own.into_iter().chain(manifest.files.keys().cloned()).collect();
    place.remove(&names)?;
    let _ = place.remove_empty();
    Ok(())
}
