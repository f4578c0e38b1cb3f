//! Finds the attempts that lie in storage, and verifies the one that is wanted: manifest, then every file that it names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::state::RescueState;
use crate::snapshot::{
    Error,
    late::LATE,
    manifest::{self, RESCUE, Stored},
    portable::encryption::SUFFIX,
    restore::{EVIDENCE, Evidence},
};

/// How deep a directory may lie: `<release>-<uid>/<attempt>`.
const DEPTH: usize = 2;

/// One attempt, verified.
#[derive(Debug)]
pub struct Found {
    pub directory: PathBuf,
    pub stored: Stored,
    pub state: RescueState,
    /// What else lies there, in words.
    pub kept: Vec<String>,
    /// The other attempts in this storage, newest first, in words.
    pub others: Vec<String>,
}

/// Why nothing can be printed. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    #[error(
        "{0} cannot be read: {1}; mount the claim of the snapshots there, or give the directory that holds a copy of it by \
         --storage. Snapshots in a bucket are copied first: memoria-operator snapshot fetch s3://bucket/prefix DIR"
    )]
    Storage(PathBuf, std::io::Error),
    #[error(
        "the files in {directory} are encrypted; copy them first: memoria-operator snapshot fetch {directory} DIR \
         --identity-file FILE, and then: memoria-operator rescue --storage DIR",
        directory = .0.display()
    )]
    Encrypted(PathBuf),
    #[error(
        "no attempt in {storage}{skipped}; give the root of the snapshots' volume by --storage. A dump without {RESCUE} is \
         restored by hand: see \"By hand\" in docs/runbooks/restore.md"
    )]
    Nothing { storage: PathBuf, skipped: String },
    #[error("no attempt {wanted} in {storage}; there are: {there}")]
    NotThere { wanted: String, storage: PathBuf, there: String },
    #[error("several attempts are named {wanted}; give the directory of one by --attempt: {there}")]
    Several { wanted: String, there: String },
    #[error("{0}; do not restore from these files: look for another copy of the volume, or its backup")]
    Damaged(#[from] Error),
}

/// One directory with a manifest and a state beside it.
struct Candidate {
    directory: PathBuf,
    /// Below the root.
    name: String,
    stored: Stored,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, snapshot of {})", self.stored.manifest.attempt, self.name, self.stored.manifest.read_at)
    }
}

/// The newest attempt below `root`, or the wanted one: by its name, or by its directory below `root`.
///
/// # Errors
/// [`NotFound`]
pub fn find(root: &Path, wanted: Option<&str>) -> Result<Found, NotFound> {
    let (mut all, mut skipped) = (Vec::new(), Vec::new());
    walk(root, root, 0, &mut all, &mut skipped).map_err(|error| NotFound::Storage(root.to_owned(), error))?;
    all.sort_by_key(|candidate| std::cmp::Reverse(candidate.stored.manifest.read_at));
    let listed = |all: &[&Candidate]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let chosen: Vec<_> = match wanted {
        Some(wanted) => {
            let is = |c: &&Candidate| c.stored.manifest.attempt == wanted || c.name == wanted.trim_end_matches('/');
            all.iter().filter(is).collect()
        }
        None => all.iter().take(1).collect(),
    };
    let candidate = match (chosen.as_slice(), wanted) {
        ([one], _) => *one,
        ([], Some(wanted)) if !all.is_empty() => {
            let there = listed(&all.iter().collect::<Vec<_>>());
            return Err(NotFound::NotThere { wanted: wanted.to_owned(), storage: root.to_owned(), there });
        }
        ([], _) => {
            let skipped: String = skipped.iter().map(|why| format!(" ({why})")).collect();
            return Err(NotFound::Nothing { storage: root.to_owned(), skipped });
        }
        (several, wanted) => {
            let wanted = wanted.unwrap_or_default().to_owned();
            return Err(NotFound::Several { wanted, there: listed(several) });
        }
    };
    let state = verified(candidate)?;
    let others = all.iter().filter(|other| other.directory != candidate.directory).map(ToString::to_string).collect();
    Ok(Found {
        kept: kept(&candidate.directory),
        directory: candidate.directory.clone(),
        stored: candidate.stored.clone(),
        state,
        others,
    })
}

fn walk(
    root: &Path,
    directory: &Path,
    depth: usize,
    all: &mut Vec<Candidate>,
    skipped: &mut Vec<String>,
) -> std::io::Result<()> {
    match manifest::read(directory) {
        Ok(Some(stored)) => {
            let below = directory.strip_prefix(root).unwrap_or(directory).display();
            let name = if directory == root { ".".to_owned() } else { below.to_string() };
            if stored.manifest.files.contains_key(RESCUE) {
                all.push(Candidate { directory: directory.to_owned(), name, stored });
            } else {
                skipped.push(format!("{name} has no {RESCUE}"));
            }
            // What lies below an attempt is its own.
            return Ok(());
        }
        Ok(None) => {}
        Err(error) => skipped.push(error.to_string()),
    }
    if depth == DEPTH {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            // `lost+found` and the like are nobody's business.
            if let Err(error) = walk(root, &entry.path(), depth + 1, all, skipped) {
                skipped.push(format!("{}: {error}", entry.path().display()));
            }
        }
    }
    Ok(())
}

fn verified(candidate: &Candidate) -> Result<RescueState, NotFound> {
    let (directory, manifest) = (&candidate.directory, &candidate.stored.manifest);
    let damaged = |what: String| NotFound::Damaged(Error::Damaged { directory: directory.clone(), what });
    let only_encrypted =
        |name: &String| !directory.join(name).exists() && directory.join(format!("{name}{SUFFIX}")).exists();
    if manifest.files.keys().any(only_encrypted) {
        return Err(NotFound::Encrypted(directory.clone()));
    }
    manifest::verify_files(directory, manifest)?;
    if !manifest.restored_in_scratch {
        return Err(damaged("the snapshot was never restored into scratch, so it proves nothing".to_owned()));
    }
    let bytes = fs::read(directory.join(RESCUE)).map_err(|error| damaged(format!("{RESCUE}: {error}")))?;
    let state: RescueState = serde_json::from_slice(&bytes).map_err(|error| damaged(format!("{RESCUE}: {error}")))?;
    if state.v != 1 {
        return Err(damaged(format!("{RESCUE} has version {}, this program reads 1; take a newer one", state.v)));
    }
    if (&state.release_uid, &state.attempt) != (&manifest.release_uid, &manifest.attempt) {
        return Err(damaged(format!("{RESCUE} is of attempt {}, the manifest of {}", state.attempt, manifest.attempt)));
    }
    Ok(state)
}

/// What an attempt that came further left beside its snapshot.
fn kept(directory: &Path) -> Vec<String> {
    let failed = directory.join("failed");
    let mut kept = Vec::new();
    match manifest::read(&failed) {
        Ok(Some(stored)) => kept.push(format!(
            "failed/: the state that the upgrade left, of {}, {} bytes",
            stored.manifest.read_at,
            stored.manifest.bytes()
        )),
        Ok(None) => {}
        Err(error) => kept.push(format!("failed/: {error}")),
    }
    if failed.join(LATE).exists() {
        kept.push(format!("failed/{LATE}: what clients wrote after the upgrade"));
    }
    let evidence = fs::read(failed.join(EVIDENCE)).ok();
    match evidence.map(|bytes| serde_json::from_slice::<Evidence>(&bytes)) {
        Some(Ok(evidence)) => kept.push(format!(
            "failed/{EVIDENCE}: the snapshot was restored at {}{}",
            evidence.restored_at,
            evidence.verified_at.map(|at| format!(" and proved again at {at}")).unwrap_or_default()
        )),
        Some(Err(error)) => kept.push(format!("failed/{EVIDENCE} cannot be read: {error}")),
        None => {}
    }
    if !directory.join("baseline").exists() {
        kept.push("no baseline: the operator let no client in to the new version".to_owned());
    }
    kept
}
