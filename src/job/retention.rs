//! Which attempts' snapshots stay on the volume. The oldest go before pre-flight measures the free space, whole directories
//! with all that was kept beside a snapshot; never the newest whole one, and none that an attempt may still need.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{protocol::RetentionOrder, reference::Reference};
use crate::snapshot::{
    Error, Result,
    erase::ERASED,
    manifest::{self, MANIFEST, Manifest, REFERENCE},
    portable::encryption::SUFFIX,
    store::{Entries, Place, Unfinished},
};

/// A directory without a manifest is that of a pre-flight run, or of a snapshot that was never finished: nobody needs it
/// after so long.
const ABANDONED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What became of those that were to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pruned {
    /// Names of attempts and runs.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub stayed: Vec<String>,
}

/// Removes what is past the order's limit among the siblings of `own`, the place of this run.
pub(super) fn prune(own: &Place, order: &RetentionOrder) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    let Some(all) = own.above() else { return Ok(pruned) };
    for name in past(&all, own, order)? {
        match remove(&all.below(&name)) {
            Ok(()) => {
                info!(name, "removed: it is past spec.snapshot.retention");
                pruned.removed.push(name);
            }
            Err(error) => {
                warn!(name, %error, "it is past spec.snapshot.retention, and stays");
                pruned.stayed.push(format!("{name}: {error}"));
            }
        }
    }
    Ok(pruned)
}

/// The names of what may go, the oldest first.
fn past(all: &Place, own: &Place, order: &RetentionOrder) -> Result<Vec<String>> {
    let (mut whole, mut begun) = (Vec::new(), Vec::new());
    for name in all.entries_if_there()?.places {
        let place = all.below(&name);
        if place == *own {
            continue;
        }
        match manifest::read(&place) {
            Ok(Some(found)) if is_whole(&place, &found.manifest)? => {
                if found.manifest.release_uid == order.release_uid {
                    whole.push((found.manifest.read_at, name));
                }
            }
            Ok(Some(_)) => warn!(%place, "a file of this snapshot is missing, cut short or erased; it stays"),
            Ok(None) => begun.extend(begun_at(&place)?.map(|at| (at, name))),
            Err(error) => warn!(%error, "it stays"),
        }
    }
    whole.sort();
    let keep = usize::try_from(order.keep_last).unwrap_or(usize::MAX).max(1);
    let limit = SystemTime::now().checked_sub(ABANDONED).unwrap_or(SystemTime::UNIX_EPOCH);
    let oldest = order.max_age_seconds.and_then(|age| SystemTime::now().checked_sub(Duration::from_secs(age)));
    let too_old = |read_at: jiff::Timestamp| oldest.is_some_and(|oldest| SystemTime::from(read_at) < oldest);
    let newest = whole.len().saturating_sub(1);
    let goes = |(number, (read_at, _)): &(usize, &(jiff::Timestamp, String))| {
        *number < whole.len().saturating_sub(keep) || (*number < newest && too_old(*read_at))
    };
    let old = whole.iter().enumerate().filter(goes).map(|(_, (_, name))| name);
    let abandoned = begun.iter().filter(|(at, _)| *at < limit).map(|(_, name)| name);
    Ok(old.chain(abandoned).filter(|name| !order.needed.contains(*name)).cloned().collect())
}

/// When a run began that never came to a snapshot. In a bucket what it kept first says so; without that it stays.
fn begun_at(place: &Place) -> Result<Option<SystemTime>> {
    match place {
        Place::Directory(path) => {
            let modified = fs::metadata(path).and_then(|data| data.modified());
            modified.map(Some).map_err(Error::io("looking at", path))
        }
        Place::Bucket(_) => {
            let reference = place.read(REFERENCE)?.and_then(|bytes| serde_json::from_slice::<Reference>(&bytes).ok());
            Ok(reference.map(|reference| reference.made_at.into()))
        }
    }
}

/// A snapshot that was proved when it was taken, and whose files are still there; as they were made, they have their sizes.
fn is_whole(place: &Place, manifest: &Manifest) -> Result<bool> {
    let there = place.entries()?.files;
    let is_there = |(name, file): (&String, &manifest::StoredFile)| match place {
        Place::Directory(path) if there.contains(name) => {
            fs::metadata(path.join(name)).is_ok_and(|data| data.len() == file.bytes)
        }
        _ => there.contains(name) || there.contains(&format!("{name}{SUFFIX}")),
    };
    let erased = there.iter().any(|name| name == ERASED);
    Ok(manifest.restored_in_scratch && !erased && manifest.files.iter().all(is_there))
}

/// The manifest goes first, to disk: what is half removed is no snapshot.
fn remove(place: &Place) -> Result<()> {
    place.remove(&[MANIFEST.to_owned()])?;
    match place {
        Place::Directory(path) => {
            manifest::sync_directory(path)?;
            fs::remove_dir_all(path).map_err(Error::io("removing", path))
        }
        Place::Bucket(_) => remove_objects(place),
    }
}

fn remove_objects(place: &Place) -> Result<()> {
    let Entries { files, places } = place.entries()?;
    place.unfinished(&files)?.iter().try_for_each(Unfinished::end)?;
    place.remove(&files)?;
    places.iter().try_for_each(|name| remove_objects(&place.below(name)))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::symlink, path::PathBuf};

    use serde_json::json;

    use super::*;

    /// A volume with the release's directory.
    struct Volume(tempfile::TempDir);

    impl Volume {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// A snapshot of that day of a release.
        fn snapshot(&self, name: &str, day: u32, release_uid: &str) -> PathBuf {
            let place = self.0.path().join(name);
            fs::create_dir_all(place.join("portable")).unwrap();
            fs::write(place.join("database.dump"), "dump").unwrap();
            fs::write(place.join("portable/memoria.ndjson.zst"), "rows").unwrap();
            let at = format!("2026-01-{day:02}T00:00:00Z");
            let manifest = json!({
                "v": 1, "kind": "postgresql", "release": "prod", "releaseUid": release_uid, "attempt": name,
                "fromVersion": "0.9.0", "operatorVersion": "0.1.0", "serverVersion": "15", "toolVersion": "15",
                "identity": {"systemIdentifier": "7", "name": "memoria", "oid": 1, "host": "db"},
                "startedAt": at, "readAt": at, "finishedAt": at, "schemaFingerprint": "", "tables": {}, "sequences": {},
                "dataDigest": "", "restoredInScratch": true, "files": {"database.dump": {"bytes": 4, "sha256": ""}},
            });
            fs::write(place.join(MANIFEST), manifest.to_string()).unwrap();
            place
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(self.0.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }

        fn prune(&self, keep_last: u32, needed: &[&str]) -> Pruned {
            let needed = needed.iter().map(|name| (*name).to_owned()).collect();
            self.prune_by(RetentionOrder { release_uid: "u".to_owned(), keep_last, max_age_seconds: None, needed })
        }

        fn prune_by(&self, order: RetentionOrder) -> Pruned {
            prune(&Place::Directory(self.0.path().join("run")), &order).unwrap()
        }
    }

    #[test]
    fn the_oldest_go_and_the_newest_whole_one_never_does() {
        let volume = Volume::new();
        for day in 1..=5 {
            volume.snapshot(&format!("prod-{day}"), day, "u");
        }
        assert_eq!(volume.prune(3, &[]), Pruned { removed: vec!["prod-1".into(), "prod-2".into()], stayed: vec![] });
        assert_eq!(volume.names(), ["prod-3", "prod-4", "prod-5"]);
        // One that an attempt needs stays, and does not take another's place.
        assert_eq!(volume.prune(1, &["prod-3"]).removed, ["prod-4"]);
        assert_eq!(volume.prune(0, &[]).removed, ["prod-3"]);
        assert_eq!((volume.prune(0, &[]), volume.names()), (Pruned::default(), vec!["prod-5".to_owned()]));
    }

    #[test]
    fn what_is_too_old_goes_but_for_the_newest_and_what_is_needed() {
        let volume = Volume::new();
        for day in 1..=4 {
            volume.snapshot(&format!("prod-{day}"), day, "u");
        }
        let order = |max_age_seconds| RetentionOrder {
            release_uid: "u".to_owned(),
            keep_last: 10,
            max_age_seconds: Some(max_age_seconds),
            needed: vec!["prod-2".to_owned()],
        };
        // Since the beginning of that January.
        let since =
            jiff::Timestamp::now().duration_since("2026-01-01T00:00:00Z".parse().unwrap()).as_secs().cast_unsigned();
        assert_eq!(volume.prune_by(order(since + 60)), Pruned::default());
        // The 1st is too old, the 2nd is not yet.
        assert_eq!(volume.prune_by(order(since - 3600)).removed, ["prod-1"]);
        assert_eq!(volume.prune_by(order(3600)).removed, ["prod-3"]);
        assert_eq!(volume.names(), ["prod-2", "prod-4"]);
    }

    #[test]
    fn what_is_damaged_counts_for_none_and_stays() {
        let volume = Volume::new();
        let cut = volume.snapshot("prod-3", 3, "u");
        fs::write(cut.join("database.dump"), "du").unwrap();
        fs::write(volume.snapshot("prod-4", 4, "u").join(MANIFEST), "{").unwrap();
        volume.snapshot("prod-1", 1, "u");
        volume.snapshot("prod-2", 2, "u");
        volume.snapshot("other-9", 9, "another release");
        assert_eq!(volume.prune(1, &[]).removed, ["prod-1"]);
        assert_eq!(volume.names(), ["other-9", "prod-2", "prod-3", "prod-4"]);
    }

    #[test]
    fn what_is_being_erased_counts_for_none_and_its_record_stays() {
        let volume = Volume::new();
        volume.snapshot("prod-1", 1, "u");
        volume.snapshot("prod-2", 2, "u");
        // The record comes before the first file goes.
        fs::write(volume.snapshot("prod-3", 3, "u").join(ERASED), "{}").unwrap();
        assert_eq!(volume.prune(1, &[]).removed, ["prod-1"]);
        assert_eq!(volume.names(), ["prod-2", "prod-3"]);
    }

    #[test]
    fn what_was_never_finished_goes_after_a_month_and_links_are_left_alone() {
        let (volume, elsewhere) = (Volume::new(), Volume::new());
        let linked = elsewhere.snapshot("elsewhere", 1, "u");
        symlink(&linked, volume.0.path().join("linked")).unwrap();
        volume.snapshot("prod-2", 2, "u");
        for (name, days) in [("run-old", 31), ("run-needed", 31), ("run-new", 29), ("run", 31)] {
            let place = volume.0.path().join(name);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("reference.json"), "{}").unwrap();
            File::open(&place).unwrap().set_modified(SystemTime::now() - Duration::from_secs(days * 86_400)).unwrap();
        }
        assert_eq!(volume.prune(1, &["run-needed"]).removed, ["run-old"]);
        assert_eq!(volume.names(), ["linked", "prod-2", "run", "run-needed", "run-new"]);
        assert!(linked.join(MANIFEST).exists());
    }
}
