//! The markers beside the database: what an attempt began and finished, in a file that no restore takes back, and the
//! lock that keeps the operator's own Jobs apart.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::beside;
use crate::snapshot::{Error, Result, manifest, markers::Marker};

/// Behind the database's name.
pub const MARKERS: &str = ".memoria-operator.json";
pub const LOCK: &str = ".memoria-operator.lock";

/// The file; `docs/formats.md` shows one. Fields are only ever added, each with a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Markers {
    /// Version of this form: 1.
    pub v: i32,
    /// The journal mode to put back, while a Job has another one set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_mode: Option<String>,
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// One step of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub release_uid: String,
    pub attempt: String,
    pub step: String,
    pub started_at: jiff::Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<jiff::Timestamp>,
    /// The report's reason, once finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// While unfinished: the token of the pod that began it. Once finished: the report as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Markers {
    /// Reads the file beside a database; none is an empty one.
    pub fn read(database: &Path) -> Result<Self> {
        let path = beside(database, MARKERS);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { v: 1, ..Self::default() }),
            other => other.map_err(Error::io("reading", &path))?,
        };
        let damaged = |what: String| Error::MarkersDamaged { path: path.clone(), what };
        let found: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if found.v == 1 {
            return Ok(found);
        }
        Err(damaged(format!("version {}, this operator reads 1", found.v)))
    }

    /// Replaces the file whole, forced to disk.
    fn write(&self, database: &Path) -> Result<()> {
        let (path, temporary) = (beside(database, MARKERS), beside(database, &format!("{MARKERS}.tmp")));
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| Error::Order { what: error.to_string() })?;
        bytes.push(b'\n');
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o660)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()
            })
            .map_err(Error::io("writing", &temporary))?;
        fs::rename(&temporary, &path).map_err(Error::io("keeping", &path))?;
        path.parent().map_or(Ok(()), manifest::sync_directory)
    }

    fn unfinished(&mut self, (release_uid, attempt, step): (&str, &str, &str)) -> Option<&mut Step> {
        self.steps.iter_mut().find(|found| {
            found.release_uid == release_uid
                && found.attempt == attempt
                && found.step == step
                && found.finished_at.is_none()
        })
    }

    /// The steps in the form that PostgreSQL's markers have, oldest first.
    pub fn all(&self) -> Vec<Marker> {
        let mut steps = self.steps.clone();
        steps.sort_by_key(|step| step.started_at);
        let marker = |step: Step| Marker {
            release_uid: step.release_uid,
            attempt: step.attempt,
            step: step.step,
            started_at: step.started_at.to_string(),
            finished: step.finished_at.is_some(),
            outcome: step.outcome,
            detail: step.detail,
        };
        steps.into_iter().map(marker).collect()
    }
}

/// The lock on a database's marker file, held until dropped. Whoever writes markers has it.
#[derive(Debug)]
pub struct Lock {
    database: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock, trying for `patience`.
    pub fn take(database: &Path, patience: Duration) -> Result<Self> {
        let path = beside(database, LOCK);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o660);
        let file = options.open(&path).map_err(Error::io("opening", &path))?;
        let started = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { database: database.to_owned(), _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let what = format!("the lock {}", path.display());
                    return Err(Error::Locked { what, holders: "another Job of the operator".to_owned() });
                }
                Err(error) => return Err(Error::io("locking", &path)(error.into())),
            }
        }
    }

    pub fn database(&self) -> &Path {
        &self.database
    }

    pub fn markers(&self) -> Result<Markers> {
        Markers::read(&self.database)
    }

    fn change(&self, change: impl FnOnce(&mut Markers) -> Result<()>) -> Result<()> {
        let before = self.markers()?;
        let mut after = before.clone();
        change(&mut after)?;
        if after == before { Ok(()) } else { after.write(&self.database) }
    }

    /// Writes that a step begins. A step that was begun before is an error: nothing begins twice.
    pub fn begin(&self, release_uid: &str, attempt: &str, step: &str, token: &str) -> Result<()> {
        self.change(|markers| {
            let twin = |s: &Step| s.release_uid == release_uid && s.attempt == attempt && s.step == step;
            if markers.steps.iter().any(twin) {
                let what = format!("step {step} of attempt {attempt} has begun before");
                return Err(Error::Order { what });
            }
            markers.steps.push(Step {
                release_uid: release_uid.to_owned(),
                attempt: attempt.to_owned(),
                step: step.to_owned(),
                started_at: jiff::Timestamp::now(),
                finished_at: None,
                outcome: None,
                detail: Some(token.to_owned()),
            });
            Ok(())
        })
    }

    /// Replaces what an unfinished step holds.
    pub fn note(&self, key: (&str, &str, &str), detail: &str) -> Result<()> {
        self.change(|markers| {
            if let Some(found) = markers.unfinished(key) {
                found.detail = Some(detail.to_owned());
            }
            Ok(())
        })
    }

    /// Writes how a step ended; of a finished one nothing is changed.
    pub fn finish(&self, key: (&str, &str, &str), outcome: &str, detail: &str) -> Result<()> {
        self.change(|markers| {
            if let Some(found) = markers.unfinished(key) {
                found.finished_at = Some(jiff::Timestamp::now());
                found.outcome = Some(outcome.to_owned());
                found.detail = Some(detail.to_owned());
            }
            Ok(())
        })
    }

    /// Notes the journal mode that must be put back, or that it was.
    pub fn note_journal_mode(&self, mode: Option<&str>) -> Result<()> {
        self.change(|markers| {
            markers.journal_mode = mode.map(str::to_owned);
            Ok(())
        })
    }
}
