//! Rollback: keeps the state that the failed upgrade left in storage, then swaps the snapshot in. Repeating it is
//! harmless: what the file holds says whether it is done.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    super::{
        context::Context,
        loss,
        protocol::{Facts, JobInput, JobReport, RestoreFacts, RestoreOrder},
        report,
        snapshot::{clear, make_directory, stored},
    },
    guard::advice,
    place::Place,
    snapshot::{About, store},
};
use crate::{
    api::upgrade::Category,
    snapshot::{
        Error, Result,
        archive::{Archive, Part},
        dump, identity,
        late::{
            Late,
            carry::{self, Came, Carry},
        },
        manifest::{self, Manifest, SCHEMA, Stored},
        markers::Marker,
        restore::{Evidence, Side},
        sqlite::{
            self, DATABASE, KIND,
            content::{self, Content, Header},
            hold::{Hold, put_back},
            late,
            markers::Lock,
            restore::{self, New},
        },
    },
};

const STEP: &str = "restore";

pub async fn run(context: &Context, order: &RestoreOrder) -> Result<JobReport> {
    let place = Place::of(context, &order.database)?;
    let directory = context.below_storage(&order.directory)?;
    let failed = context.below_storage(&order.failed_directory)?;
    let baseline = order.baseline_directory.as_deref().map(|path| context.below_storage(path)).transpose()?;
    context.bring(&order.directory, Part::Files).await?;
    for kept in [order.baseline_directory.as_ref(), Some(&order.failed_directory)].into_iter().flatten() {
        context.bring(kept, Part::All).await?;
    }
    let stored = match stored(context, &directory)? {
        Ok(stored) => stored,
        Err(report) => return Ok(report),
    };
    let (order, input, scratch) = (order.clone(), context.input.clone(), context.places.scratch.clone());
    let archive = context.archive.clone();
    sqlite::blocking(move || {
        check(&directory, &stored.manifest, &order)?;
        Work { place, order, input, directory, failed, baseline, scratch, archive, stored }.restore()
    })
    .await
}

/// The stored snapshot is this attempt's and this database's, proved when it was taken, and whole.
fn check(directory: &std::path::Path, manifest: &Manifest, order: &RestoreOrder) -> Result<()> {
    let task = &order.database;
    let ours = (&manifest.release_uid, &manifest.attempt) == (&task.release_uid, &task.attempt);
    if !ours || manifest.kind != KIND || !manifest.restored_in_scratch {
        let what = "it is another attempt's or another engine's, or was never proved".to_owned();
        return Err(Error::Damaged { directory: directory.to_owned(), what });
    }
    if let Some(expected) = &task.identity {
        identity::prove(expected, &manifest.identity)?;
    }
    manifest::verify_files(directory, manifest)
}

/// What the restore's marker holds: the facts of the report that follows, and what the new file holds beyond the snapshot.
#[derive(Default, Serialize, Deserialize)]
struct Detail {
    #[serde(flatten)]
    facts: RestoreFacts,
    #[serde(default, skip_serializing_if = "Came::is_empty")]
    carried: Came,
}

fn detail(marker: &Marker) -> Result<Detail> {
    let detail = marker.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
    detail.ok_or_else(|| Error::Order { what: "the restore's marker holds no facts".to_owned() })
}

/// One Job's work.
struct Work {
    place: Place,
    order: RestoreOrder,
    input: JobInput,
    directory: PathBuf,
    failed: PathBuf,
    baseline: Option<PathBuf>,
    scratch: PathBuf,
    archive: Archive,
    stored: Stored,
}

impl Work {
    fn restore(&self) -> Result<JobReport> {
        let (task, path) = (&self.order.database, &self.place.path);
        let started_at = jiff::Timestamp::now();
        let until = Instant::now() + Duration::from_secs(self.order.limit_seconds);
        let left = || until.saturating_duration_since(Instant::now());
        let lock = Lock::take(path, left())?;
        let manifest = &self.stored.manifest;
        let header = manifest.sqlite.as_ref().map_or_else(Header::default, |file| file.header.clone());
        let schema = manifest::read_schema(&self.directory, manifest)?;
        let expected = Content { schema, data: manifest.data(), header };
        restore::clear(path, &task.attempt)?;
        let hold = Hold::take(&lock, left())?;
        let current = content::read(hold.connection()?, path)?;
        let markers = lock.markers()?.all();
        let ours = |m: &&Marker| m.release_uid == task.release_uid && m.attempt == task.attempt;
        let begun = markers.iter().find(|marker| ours(marker) && marker.step == STEP);
        // A Job that came as far as the swap noted beforehand what its file holds.
        let noted = begun.and_then(|marker| detail(marker).ok()).unwrap_or_default();
        if expected.with(&noted.carried)?.differences(&current).is_empty() {
            hold.release()?;
            return match begun {
                Some(_) => self.done(&lock, &current),
                None => {
                    self.close_steps(&lock, &markers, "Unchanged")?;
                    let facts = self.facts(false);
                    let message =
                        format!("nothing had changed: {} rows are the snapshot's, so nothing was restored", facts.rows);
                    Ok(report::done(message, Facts::Restore(facts)))
                }
            };
        }
        if let Some(other) = markers.iter().find(|marker| !marker.finished && !ours(marker)) {
            let message = format!(
                "{} of attempt {} began {} on this database and never finished; find out what became of it before \
                 anything is restored, then {}",
                other.step,
                other.attempt,
                other.started_at,
                advice(path, other)
            );
            return Ok(report::refused(Category::Conflict, "UnfinishedAttempt", message));
        }
        if begun.is_some_and(|marker| marker.finished) {
            let message = "the snapshot was restored, but the database is not it any more; find what wrote since";
            return Ok(report::refused(Category::Conflict, "DataChangedAfterRestore", message));
        }
        let failed = self.keep_failed(&hold, &current, started_at)?;
        let found = self.late()?;
        // Before anything is lost, and before a person is asked.
        self.archive.keep(&self.order.failed_directory)?;
        let (accepted, budget) = (self.input.accept_data_loss, self.order.data_loss_budget_rows);
        let mut facts = RestoreFacts {
            failed_state: Some(self.order.failed_directory.clone()),
            failed_state_bytes: i64::try_from(failed.manifest.bytes()).unwrap_or(i64::MAX),
            ..self.facts(true)
        };
        let none = Late::default();
        let carry = Carry {
            directory: &self.failed,
            late: found.as_ref().unwrap_or(&none),
            named: self.named(&current),
            allowed: (!accepted).then_some(budget),
        };
        if let Some(report) = loss::before(&carry, found.as_ref().err(), &self.order, &mut facts) {
            return Ok(report);
        }
        let snapshot = self.directory.join(DATABASE);
        let new =
            New { attempt: &task.attempt, snapshot: &snapshot, expected: &expected, current: &current, carry: &carry };
        let carried = restore::make(path, &new)?;
        if !carry.is_empty() {
            carry.tell(&carried, &mut facts);
        }
        if carry.loses_too_much(&carried) {
            restore::clear(path, &task.attempt)?;
            return Ok(loss::over_budget(facts, budget));
        }
        let came = carry::came(&carried);
        let expected = expected.with(&came)?;
        facts.rows = expected.data.rows();
        facts.data_digest = expected.data_digest();
        // A Job that comes after the swap has only this.
        let detail = Detail { facts, carried: came };
        let detail = serde_json::to_string(&detail).map_err(|error| Error::Order { what: error.to_string() })?;
        match begun {
            None => lock.begin(&task.release_uid, &task.attempt, STEP, &detail)?,
            Some(_) => lock.note((&task.release_uid, &task.attempt, STEP), &detail)?,
        }
        let mode = restore::swap(hold, &task.attempt)?;
        let hold = Hold::take(&lock, left())?;
        let restored = content::read(hold.connection()?, path)?;
        let differences = expected.differences(&restored);
        if !differences.is_empty() {
            drop(hold.close());
            restore::swap_back(path, &task.attempt)?;
            put_back(&lock, &mode)?;
            let message = format!(
                "the restored file is not the snapshot: {}; the failed state is back in its place, and in {}",
                dump::first(&differences),
                self.order.failed_directory
            );
            return Ok(report::refused(Category::Environment, "RestoreNotProved", message));
        }
        hold.release()?;
        self.done(&lock, &restored)
    }

    /// After the swap was proved: evidence, markers, and the old file's second name.
    fn done(&self, lock: &Lock, restored: &Content) -> Result<JobReport> {
        let task = &self.order.database;
        let markers = lock.markers()?.all();
        let own =
            markers.iter().find(|m| m.release_uid == task.release_uid && m.attempt == task.attempt && m.step == STEP);
        let Some(own) = own else {
            return Err(Error::Order { what: "the restore's marker is gone".to_owned() });
        };
        let Detail { facts, carried } = detail(own)?;
        self.keep_evidence(&facts, carried, restored)?;
        let key = (task.release_uid.as_str(), task.attempt.as_str(), STEP);
        lock.finish(key, "Done", own.detail.as_deref().unwrap_or_default())?;
        self.close_steps(lock, &markers, "Restored")?;
        if let Err(error) = restore::forget(&self.place.path, &task.attempt) {
            warn!(%error, "the failed state's file beside the database stays");
        }
        let message = format!(
            "{} rows in {} tables are the snapshot's again{}, proved on a new connection; the failed state is in {}",
            facts.rows,
            facts.tables,
            loss::carried(&facts),
            self.order.failed_directory
        );
        Ok(report::done(message, Facts::Restore(facts)))
    }

    /// What was restored over what, beside the failed state; once.
    fn keep_evidence(&self, facts: &RestoreFacts, carried: Came, restored: &Content) -> Result<()> {
        let Some(failed) = manifest::read(&self.failed)? else {
            let what = "the failed state's manifest is gone".to_owned();
            return Err(Error::Damaged { directory: self.failed.clone(), what });
        };
        let (snapshot, now) = (&self.stored, jiff::Timestamp::now());
        let evidence = Evidence {
            v: 1,
            release_uid: snapshot.manifest.release_uid.clone(),
            attempt: snapshot.manifest.attempt.clone(),
            identity: snapshot.manifest.identity.clone(),
            snapshot: Side::new(&self.order.directory, &snapshot.manifest, &snapshot.sha256),
            failed_state: Side::new(&self.order.failed_directory, &failed.manifest, &failed.sha256),
            facts: facts.clone(),
            carried,
            sequences_before: failed.manifest.sequences.clone(),
            sequences_after: restored.data.sequences.clone(),
            started_at: failed.manifest.started_at,
            restored_at: now,
            verified_at: Some(now),
            verified_digest: Some(restored.data_digest()),
        };
        evidence.keep(&self.failed)?;
        self.archive.keep(&self.order.failed_directory)
    }

    /// This attempt's steps that never ended are history now.
    fn close_steps(&self, lock: &Lock, markers: &[Marker], outcome: &str) -> Result<()> {
        let task = &self.order.database;
        for marker in markers.iter().filter(|m| m.release_uid == task.release_uid && m.attempt == task.attempt) {
            if !marker.finished && marker.step != STEP {
                let key = (task.release_uid.as_str(), task.attempt.as_str(), marker.step.as_str());
                lock.finish(key, outcome, marker.detail.as_deref().unwrap_or_default())?;
            }
        }
        // Nor may the attempt's migration begin any more, whenever a Job for it should still arrive.
        let migrated = |m: &Marker| {
            m.release_uid == task.release_uid && m.attempt == task.attempt && m.step == super::super::guard::STEP
        };
        if !markers.iter().any(migrated) {
            let step = super::super::guard::STEP;
            lock.begin(&task.release_uid, &task.attempt, step, "")?;
            lock.finish((&task.release_uid, &task.attempt, step), outcome, "")?;
        }
        Ok(())
    }

    /// The failed state as a snapshot of its own. One that an earlier Job kept must be what the database still is.
    fn keep_failed(&self, hold: &Hold<'_>, current: &Content, started_at: jiff::Timestamp) -> Result<Stored> {
        if let Some(stored) = manifest::read(&self.failed)? {
            manifest::verify_files(&self.failed, &stored.manifest)?;
            if stored.manifest.data_digest == current.data_digest() {
                info!("the failed state is in storage already");
                return Ok(stored);
            }
            return Err(Error::Occupied {
                directory: self.failed.clone(),
                expected: "the state that the database is in now".to_owned(),
                found: format!("an earlier one, of {}", stored.manifest.read_at),
            });
        }
        make_directory(&self.failed)?;
        clear(&self.failed, &[DATABASE, SCHEMA])?;
        let snapshot = &self.stored.manifest;
        let about = About {
            release: snapshot.release.clone(),
            release_uid: snapshot.release_uid.clone(),
            attempt: snapshot.attempt.clone(),
            from_version: snapshot.from_version.clone(),
            operator_version: env!("CARGO_PKG_VERSION").to_owned(),
            identity: self.place.identity(),
            started_at,
            read_at: jiff::Timestamp::now(),
            rescue: None,
            portable: false,
            recipients: self.archive.recipients(),
        };
        let live = (hold.connection()?, hold.path(), hold.journal_mode());
        store(live, Some(current), about, &self.failed, &self.scratch)
    }

    /// The tables of the failed state that are to be carried forward.
    fn named(&self, current: &Content) -> BTreeSet<String> {
        let wanted = |table: &&String| self.order.carry_forward.iter().any(|name| carry::means_in_file(name, table));
        current.schema.tables.keys().filter(wanted).cloned().collect()
    }

    /// What clients wrote since the baseline; the inner error says why that is not known.
    fn late(&self) -> Result<Result<Late, String>> {
        if !self.input.late_writes_possible {
            return Ok(Ok(Late::default()));
        }
        let (Some(path), Some(directory)) = (&self.baseline, &self.order.baseline_directory) else {
            return Ok(Err("no baseline was taken".to_owned()));
        };
        let Some(stored) = manifest::read(path)? else {
            return Ok(Err(format!("there is no baseline in {directory}")));
        };
        if self.input.baseline_sha256.as_ref() != Some(&stored.sha256) {
            return Ok(Err(format!("the baseline in {directory} is not the one that the journal names")));
        }
        if let Err(error) = manifest::verify_files(path, &stored.manifest) {
            return Ok(Err(error.to_string()));
        }
        let baseline = (path.join(DATABASE), stored.sha256.as_str());
        late::compare((&baseline.0, baseline.1), &self.failed.join(DATABASE), &self.failed).map(Ok)
    }

    fn facts(&self, restored: bool) -> RestoreFacts {
        let manifest = &self.stored.manifest;
        RestoreFacts {
            restored,
            rows: manifest.data().rows(),
            tables: i32::try_from(manifest.tables.len()).unwrap_or(i32::MAX),
            data_digest: manifest.data_digest.clone(),
            ..RestoreFacts::default()
        }
    }
}
