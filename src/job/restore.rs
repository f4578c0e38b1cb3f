//! Rollback: keeps the state that the failed upgrade left, finds what clients wrote since, and takes the database back to
//! the snapshot in one transaction. Repeating it is harmless: the marker inside that transaction says whether it is done.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use tracing::{info, warn};

use super::{
    context::Context,
    fence, loss,
    protocol::{Facts, JobReport, RestoreFacts, RestoreOrder},
    report, snapshot,
};
use crate::{
    api::upgrade::Category,
    commands,
    snapshot::{
        Error, Result,
        archive::Part,
        digest::{self, DataDigest},
        dump, freeze, identity,
        late::{
            self, Late,
            carry::{self, Came, Carry},
        },
        manifest::{self, Stored},
        markers::{self, Marker},
        peers,
        restore::{self, End, Evidence, FailedState, Plan, STEP, Side},
        schema::{self, Relation, Schema},
        session::{application_name, execute},
        tools::Tools,
    },
};

/// A transaction that was rolled back is tried again so often.
const RETRIES: u32 = 3;
/// How long sessions of the application's role may take to end.
const ENDING: Duration = Duration::from_secs(60);

/// A snapshot as it lies in storage, verified.
struct Snapshot {
    directory: PathBuf,
    stored: Stored,
    schema: Schema,
}

/// One Job's work.
struct Work<'a> {
    context: &'a Context,
    order: &'a RestoreOrder,
    snapshot: Snapshot,
    until: Instant,
    started_at: jiff::Timestamp,
}

pub async fn run(context: &Context, order: &RestoreOrder) -> Result<JobReport> {
    let limit = Duration::from_secs(order.limit_seconds);
    // Whatever is open then is rolled back with its session; a COMMIT that was under way is found by its marker.
    match tokio::time::timeout(limit, restore(context, order, Instant::now() + limit)).await {
        Ok(done) => done,
        Err(_) => {
            let message = format!(
                "the restore did not end within {} s; the database is either as the failed upgrade left it or already the \
                 snapshot, the next Job finds out which",
                order.limit_seconds
            );
            Ok(report::refused(Category::Environment, "RestoreTimedOut", message))
        }
    }
}

async fn restore(context: &Context, order: &RestoreOrder, until: Instant) -> Result<JobReport> {
    let directory = context.below_storage(&order.directory)?;
    context.bring(&order.directory, Part::Files).await?;
    for kept in [order.baseline_directory.as_ref(), Some(&order.failed_directory)].into_iter().flatten() {
        context.bring(kept, Part::All).await?;
    }
    let stored = match snapshot::stored(context, &directory)? {
        Ok(stored) => stored,
        Err(report) => return Ok(report),
    };
    let (found, task) = (&stored.manifest, &order.database);
    if (&found.release_uid, &found.attempt) != (&task.release_uid, &task.attempt) || !found.restored_in_scratch {
        return Err(Error::Damaged { directory, what: "it is another attempt's, or was never proved".to_owned() });
    }
    if let Some(expected) = &task.identity {
        identity::prove(expected, &found.identity)?;
    }
    snapshot::verify(&directory, &stored.manifest).await?;
    let schema = manifest::read_schema(&directory, &stored.manifest)?;
    info!("the snapshot's bytes are as its manifest says");
    let snapshot = Snapshot { directory, stored, schema };
    let work = Work { context, order, snapshot, until, started_at: jiff::Timestamp::now() };
    let mut pids = Vec::new();
    for attempt in 1.. {
        match work.once(&mut pids).await {
            Err(error) if attempt <= RETRIES && is_worth_another_try(&error) => {
                warn!(%error, attempt, "nothing was restored; trying again");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            other => return other,
        }
    }
    Err(Error::Order { what: "it was tried too often".to_owned() })
}

fn is_worth_another_try(error: &Error) -> bool {
    error.category() == Category::Transient
        || matches!(error, Error::Locked { .. } | Error::SchemaMoved { .. } | Error::DataMoved { .. })
}

impl Work<'_> {
    async fn once(&self, pids: &mut Vec<i32>) -> Result<JobReport> {
        let task = &self.order.database;
        let mut session = self.enter(pids).await?;
        let markers = markers::all(&mut session).await?;
        if let Some(report) = self.done_before(&mut session, &markers).await? {
            return Ok(report);
        }
        let prepared = peers::prepared(&mut session).await?;
        if !prepared.is_empty() {
            return Ok(fence::prepared_transactions(&prepared));
        }
        // With the lock held, whoever else is here under our names or the application's has no business here.
        let ended = peers::end(&mut session, ENDING, |_| true).await?;
        if ended > 0 {
            warn!(ended, "ended sessions of the application's role");
        }
        let live = freeze::freeze(&mut session).await?;
        let data =
            digest::all(&mut session, &live, |table, digest| info!(table, rows = digest.rows, "digested")).await?;
        if self.differences(&Came::new(), &live, &data)?.is_empty() {
            restore::close_unfinished(&mut session, &self.snapshot.stored.manifest, "Unchanged").await?;
            execute(&mut session, "letting go of the tables", "COMMIT").await?;
            let facts = self.facts(false);
            let message =
                format!("nothing had changed: {} rows are the snapshot's, so nothing was restored", facts.rows);
            return Ok(report::done(message, Facts::Restore(facts)));
        }
        if let Some(report) = others_unfinished(&markers, task) {
            return Ok(report);
        }
        let major = session.server_version_num().unwrap_or_default() / 10_000;
        let tools = Tools::of(major).await?;
        let failed = self.save(&tools, &mut session, &live, &data).await?;
        let found = self.late(&mut session, &live, &failed).await?;
        freeze::release(&mut session).await?;
        // Before anything is lost, and before a person is asked.
        self.context.keep(&self.order.failed_directory).await?;
        let (accepted, budget) = (self.context.input.accept_data_loss, self.order.data_loss_budget_rows);
        let mut facts = RestoreFacts {
            failed_state: Some(failed.directory.clone()),
            failed_state_bytes: failed.bytes(),
            ..self.facts(true)
        };
        let none = Late::default();
        let carry = Carry {
            directory: &failed.path,
            late: found.as_ref().unwrap_or(&none),
            named: self.named(&live),
            allowed: (!accepted).then_some(budget),
        };
        if let Some(report) = loss::before(&carry, found.as_ref().err(), self.order, &mut facts) {
            return Ok(report);
        }
        let mut evidence = self.evidence(&failed, facts);
        let plan = Plan {
            tools: &tools,
            directory: &self.snapshot.directory,
            scratch: &self.context.places.scratch,
            manifest: &self.snapshot.stored.manifest,
            schema: &self.snapshot.schema,
            failed_schema: &live,
            failed_data: &data,
            carry: &carry,
            limit: self.left(),
        };
        match restore::run(&mut session, &plan, &mut evidence).await? {
            End::Committed => drop(session.close().await),
            End::LosesTooMuch => return Ok(loss::over_budget(evidence.facts, budget)),
            End::Unknown(error) => {
                warn!(%error, "COMMIT was not answered; the marker decides");
                drop(session);
                let mut session = self.enter(pids).await?;
                let markers = markers::all(&mut session).await?;
                let report = self.done_before(&mut session, &markers).await?;
                return report.ok_or(error).map_or_else(Err, Ok);
            }
        }
        let mut session = self.context.patient_session(task, STEP, self.left()).await?;
        self.prove(&mut session, evidence).await
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// A session with the release's lock: a twin that restores is waited for.
    async fn enter(&self, pids: &mut Vec<i32>) -> Result<PgConnection> {
        let task = &self.order.database;
        loop {
            let mut session = self.context.patient_session(task, STEP, self.left()).await?;
            for pid in pids.drain(..) {
                peers::terminate(&mut session, pid).await?;
            }
            match markers::lock(&mut session, &task.release_uid, self.left()).await {
                // A twin ends whom it finds; that is no reason to give up waiting.
                Err(error) if error.category() == Category::Transient => warn!(%error, "waiting for the lock again"),
                Err(error) => return Err(error),
                Ok(()) => {
                    let (pid,) = sqlx::query_as("SELECT pg_backend_pid()")
                        .fetch_one(&mut session)
                        .await
                        .map_err(Error::query("reading the session's process"))?;
                    pids.push(pid);
                    return Ok(session);
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The answer when an earlier Job of this attempt has restored.
    async fn done_before(&self, session: &mut PgConnection, markers: &[Marker]) -> Result<Option<JobReport>> {
        let task = &self.order.database;
        let ours = |m: &&Marker| m.release_uid == task.release_uid && m.attempt == task.attempt && m.step == STEP;
        let Some(marker) = markers.iter().find(ours) else { return Ok(None) };
        let evidence = marker.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
        let evidence =
            evidence.ok_or_else(|| Error::Order { what: "the restore's marker holds no evidence".to_owned() })?;
        info!("an earlier Job of this attempt has restored already");
        self.prove(session, evidence).await.map(Some)
    }

    /// What tells the database from the snapshot with these rows; nothing when it is the same.
    fn differences(&self, came: &Came, live: &Schema, data: &DataDigest) -> Result<Vec<String>> {
        let structure = dump::structure(&self.snapshot.schema, live);
        if !structure.is_empty() {
            return Ok(vec![structure]);
        }
        Ok(carry::with(self.snapshot.stored.manifest.data(), came)?.differences(data, live))
    }

    /// After COMMIT, on a connection that took no part in it: the data is the snapshot's, with what was carried forward. Leaves
    /// the evidence.
    async fn prove(&self, session: &mut PgConnection, mut evidence: Evidence) -> Result<JobReport> {
        let live = schema::read(session).await?;
        let data = digest::all(session, &live, |_, _| {}).await?;
        let differences = self.differences(&evidence.carried, &live, &data)?;
        if !differences.is_empty() {
            let message = format!(
                "the snapshot was restored at {}, but the database is not it any more: {}; find what wrote since",
                evidence.restored_at,
                dump::first(&differences)
            );
            let report = report::refused(Category::Conflict, "DataChangedAfterRestore", message);
            return Ok(JobReport { facts: Some(Facts::Restore(evidence.facts)), ..report });
        }
        evidence.verified_at = Some(jiff::Timestamp::now());
        evidence.verified_digest = Some(data.total(&live.fingerprint()));
        let directory = self.context.below_storage(&evidence.failed_state.directory)?;
        evidence.keep(&directory)?;
        self.context.keep(&self.order.failed_directory).await?;
        // These alone: without a list it goes through the server's own tables, too, and warns of each that is not ours.
        let tables: Vec<_> = live.tables().map(|(name, _)| name).collect();
        let analyze = format!("ANALYZE {}", tables.join(", "));
        if let Err(error) = execute(session, "reading statistics", analyze).await {
            warn!(%error, "the planner's statistics are not there yet; autovacuum makes them");
        }
        let facts = evidence.facts;
        let message = format!(
            "{} rows in {} tables are the snapshot's again{}, proved on a new connection; the failed state is in {}",
            facts.rows,
            facts.tables,
            loss::carried(&facts),
            evidence.failed_state.directory
        );
        Ok(report::done(message, Facts::Restore(facts)))
    }

    async fn save(
        &self,
        tools: &Tools,
        session: &mut PgConnection,
        live: &Schema,
        data: &DataDigest,
    ) -> Result<FailedState> {
        let places = &self.context.places;
        let application = application_name(&self.order.database.attempt, STEP);
        restore::save(
            session,
            (tools, self.context.url()?, &application),
            (&places.storage, &self.order.failed_directory, &places.scratch),
            &self.snapshot.stored.manifest,
            (live, data),
        )
        .await
    }

    /// What clients wrote since the baseline; the inner error says why that is not known.
    async fn late(
        &self,
        session: &mut PgConnection,
        live: &Schema,
        failed: &FailedState,
    ) -> Result<Result<Late, String>> {
        if !self.context.input.late_writes_possible {
            return Ok(Ok(Late::default()));
        }
        let Some(directory) = &self.order.baseline_directory else {
            return Ok(Err("no baseline was taken".to_owned()));
        };
        let path = self.context.below_storage(directory)?;
        let Some((baseline, sha256)) = late::read(&path)? else {
            return Ok(Err(format!("there is no baseline in {directory}")));
        };
        if self.context.input.baseline_sha256.as_ref() != Some(&sha256) {
            return Ok(Err(format!("the baseline in {directory} is not the one that the journal names")));
        }
        if let Err(error) = late::verify(&path, &baseline) {
            return Ok(Err(error.to_string()));
        }
        let scratch = &self.context.places.scratch;
        late::compare(session, live, (&path, &baseline, &sha256), &failed.path, scratch).await.map(Ok)
    }

    /// The tables of the failed state that are to be carried forward.
    fn named(&self, live: &Schema) -> BTreeSet<String> {
        let wanted = |table: &Relation| self.order.carry_forward.iter().any(|name| carry::means(name, table));
        live.tables().filter(|(_, table)| wanted(table)).map(|(name, _)| name.to_owned()).collect()
    }

    fn facts(&self, restored: bool) -> RestoreFacts {
        let manifest = &self.snapshot.stored.manifest;
        RestoreFacts {
            restored,
            rows: manifest.data().rows(),
            tables: i32::try_from(manifest.tables.len()).unwrap_or(i32::MAX),
            data_digest: manifest.data_digest.clone(),
            ..RestoreFacts::default()
        }
    }

    fn evidence(&self, failed: &FailedState, facts: RestoreFacts) -> Evidence {
        let Stored { manifest, sha256 } = &self.snapshot.stored;
        Evidence {
            v: 1,
            release_uid: manifest.release_uid.clone(),
            attempt: manifest.attempt.clone(),
            identity: manifest.identity.clone(),
            snapshot: Side::new(&self.order.directory, manifest, sha256),
            failed_state: Side::new(&failed.directory, &failed.stored.manifest, &failed.stored.sha256),
            facts,
            carried: Came::new(),
            sequences_before: Default::default(),
            sequences_after: Default::default(),
            started_at: self.started_at,
            restored_at: self.started_at,
            verified_at: None,
            verified_digest: None,
        }
    }
}

/// Another attempt that began on this database and did not end may still be at it.
fn others_unfinished(markers: &[Marker], task: &super::protocol::DatabaseTask) -> Option<JobReport> {
    let ours = |m: &Marker| m.release_uid == task.release_uid && m.attempt == task.attempt;
    let other = markers.iter().find(|marker| !marker.finished && !ours(marker))?;
    let message = format!(
        "{} of attempt {} began {} on this database and never finished; find out what became of it before anything is \
         restored, then run {}",
        other.step,
        other.attempt,
        other.started_at,
        commands::abandon(&other.release_uid, &other.attempt)
    );
    Some(report::refused(Category::Conflict, "UnfinishedAttempt", message))
}
