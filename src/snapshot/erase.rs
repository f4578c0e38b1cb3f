//! Erasure on request: the data of one stored snapshot goes, with that of all that lies below it. Manifests stay, and a
//! record `erased.json` in every directory that lost files; `docs/formats.md` shows one. All records are written before the
//! first file goes, so an erasure that was killed is known, and ends by being repeated.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    late::{BASELINE, LATE},
    manifest::{self, MANIFEST, SCHEMA, StoredFile, sync_directory, write_once_as},
    portable::{
        encryption,
        manifest::{Found, find},
    },
    restore::EVIDENCE,
    store::{Place, ToPlace, UPLOAD},
};

pub const ERASED: &str = "erased.json";
/// What stays of an attempt's snapshot: numbers, digests and structure. Everything else goes.
const KEPT: [&str; 6] = [MANIFEST, SCHEMA, BASELINE, LATE, EVIDENCE, ERASED];

/// Who let the data of a directory be erased, and what of it that was; `erased.json`. Fields are only ever added, each with a
/// default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of this form: 1.
    pub v: i32,
    /// When it was begun.
    pub at: jiff::Timestamp,
    pub reason: String,
    /// As that person or program said.
    pub by: String,
    pub operator_version: String,
    /// Files of this directory, as they lay there.
    pub files: BTreeMap<String, StoredFile>,
}

/// One directory of the snapshot.
struct Part {
    place: Place,
    /// What goes of it.
    files: Vec<String>,
    record: Option<Record>,
}

/// What an erasure of one snapshot removes.
pub struct Plan {
    /// The snapshot's own directory comes first.
    parts: Vec<Part>,
    /// Files beside a portable export that are not its own, and stay.
    pub strangers: Vec<PathBuf>,
}

/// The record of a place, if its data was erased or is to be.
pub fn read(place: &(impl ToPlace + ?Sized)) -> Result<Option<Record>> {
    let place = place.to_place();
    let Some(bytes) = place.read(ERASED)? else { return Ok(None) };
    let damaged = |what: String| Error::Damaged { directory: place.name(), what: format!("{ERASED}: {what}") };
    let record: Record = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if record.v != 1 {
        return Err(damaged(format!("it has version {}, this program reads 1", record.v)));
    }
    Ok(Some(record))
}

/// An error where the data of a place was erased, or an erasure of it began.
pub fn refuse(place: &(impl ToPlace + ?Sized)) -> Result<()> {
    let place = place.to_place();
    match read(&place)? {
        None => Ok(()),
        Some(Record { at, by, reason, .. }) => Err(Error::Erased { directory: place.name(), at, by, reason }),
    }
}

/// Finds what would go of a portable export, or of an exact snapshot and all that lies below it. Removes nothing.
pub fn plan(place: &(impl ToPlace + ?Sized)) -> Result<Plan> {
    let place = place.to_place();
    let mut plan = Plan { parts: Vec::new(), strangers: Vec::new() };
    match find(&place)? {
        Found::Nothing => return Err(nothing(&place)),
        Found::Portable(manifest) => {
            let entries = place.entries()?;
            let named: Vec<_> = std::iter::once(MANIFEST.to_owned()).chain(manifest.files.keys().cloned()).collect();
            let traces = place.traces(&named);
            let is_ours = |name: &String| named.contains(name) || traces.contains(name) || is_kept(name);
            let (ours, others): (Vec<_>, Vec<_>) = entries.files.into_iter().partition(is_ours);
            plan.strangers = others.iter().chain(&entries.places).map(|name| place.file(name)).collect();
            plan.add(place, ours)?;
        }
        Found::Exact => {
            let Some(top) = manifest::read(&place)? else { return Err(nothing(&place)) };
            plan.walk(place, (&top.manifest.release_uid, &top.manifest.attempt))?;
        }
    }
    Ok(plan)
}

fn nothing(place: &Place) -> Error {
    let what = format!("it has no {MANIFEST}, so it is no snapshot; what has none is removed by hand");
    Error::NotErasable { path: place.name(), what }
}

fn is_kept(name: &str) -> bool {
    KEPT.contains(&name.strip_suffix(encryption::SUFFIX).unwrap_or(name))
}

impl Plan {
    /// An attempt's directory is the operator's alone, so all of it is looked at; what says that it is another attempt's is
    /// not touched.
    fn walk(&mut self, place: Place, attempt: (&str, &str)) -> Result<()> {
        if let Ok(Found::Exact) = find(&place)
            && let Some(found) = manifest::read(&place)?
        {
            let found = found.manifest;
            if (found.release_uid.as_str(), found.attempt.as_str()) != attempt {
                let what = format!(
                    "it is of attempt {} of release {}, and lies below one of attempt {}; move one of them, and name each \
                     by itself",
                    found.attempt, found.release_uid, attempt.1
                );
                return Err(Error::NotErasable { path: place.name(), what });
            }
        }
        let entries = place.entries()?;
        let below: Vec<_> = entries.places.iter().map(|name| place.below(name)).collect();
        self.add(place, entries.files)?;
        for place in below {
            self.walk(place, attempt)?;
        }
        Ok(())
    }

    /// What came into a directory after its erasure is in no record: it is refused, and by name.
    fn add(&mut self, place: Place, mut files: Vec<String>) -> Result<()> {
        files.retain(|name| !is_kept(name));
        files.sort();
        let record = read(&place)?;
        if let Some(record) = &record
            && let Some(name) = files.iter().find(|name| !record.files.contains_key(*name))
        {
            let what = format!(
                "it came after the erasure of {}, so no record names it; look at it, and remove it by hand",
                record.at
            );
            return Err(Error::NotErasable { path: place.file(name), what });
        }
        self.parts.push(Part { place, files, record });
        Ok(())
    }

    /// The files that are there to be removed.
    pub fn files(&self) -> Vec<PathBuf> {
        self.parts.iter().flat_map(|part| part.files.iter().map(|name| part.place.file(name))).collect()
    }

    /// The record of an earlier erasure, finished or not.
    pub fn begun(&self) -> Option<&Record> {
        self.parts.first().and_then(|part| part.record.as_ref())
    }

    /// Writes the records that are missing, reading every file for its hash, and then removes the files. Of an erasure that
    /// was begun the first reason stays. Gives the record of the snapshot's own directory.
    pub fn carry_out(mut self, reason: &str, by: &str) -> Result<Record> {
        let (reason, by) = self.begun().map_or((reason, by), |first| (&first.reason, &first.by));
        let (reason, by) = (reason.to_owned(), by.to_owned());
        let at = jiff::Timestamp::now();
        let mut own = None;
        for part in &mut self.parts {
            // What holds nothing needs no record, unless it is what people look at.
            if part.record.is_none() && (own.is_none() || !part.files.is_empty()) {
                part.record = Some(part.begin(at, &reason, &by)?);
            }
            own = own.or_else(|| part.record.clone());
        }
        for Part { place, files, .. } in &self.parts {
            let uploads: Vec<_> = files.iter().filter(|name| name.ends_with(UPLOAD)).cloned().collect();
            for upload in place.unfinished(&uploads)? {
                upload.end()?;
            }
            place.remove(files)?;
            if let Place::Directory(path) = place {
                sync_directory(path)?;
            }
        }
        own.ok_or_else(|| Error::Order { what: "an erasure has no directory".to_owned() })
    }
}

impl Part {
    fn begin(&self, at: jiff::Timestamp, reason: &str, by: &str) -> Result<Record> {
        let hashed = self.files.iter().map(|name| Ok((name.clone(), self.place.hash(name)?)));
        let record = Record {
            v: 1,
            at,
            reason: reason.to_owned(),
            by: by.to_owned(),
            operator_version: env!("CARGO_PKG_VERSION").to_owned(),
            files: hashed.collect::<Result<_>>()?,
        };
        let mut bytes = serde_json::to_vec_pretty(&record).map_err(|error| Error::Order { what: error.to_string() })?;
        bytes.push(b'\n');
        match &self.place {
            // Whoever misses the data may be another user than who erased it.
            Place::Directory(directory) => write_once_as(directory, ERASED, &bytes, 0o644)?,
            place @ Place::Bucket(_) => place.write_once(ERASED, &bytes)?,
        }
        Ok(record)
    }
}
