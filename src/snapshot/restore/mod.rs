//! Takes a database back to a snapshot in one transaction: everything in scope is dropped and made again from the dump,
//! proved by schema, grants and every digest, and marked, or nothing happens at all. Late rows that are to be carried forward
//! go in after that proof, with one of their own, in the same transaction: marker, rows and proof are there together.

mod body;
mod clear;
mod contents;
mod evidence;
mod failed;
pub(super) mod sequences;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, PgConnection};
use tracing::info;

use super::{
    digest::{self, DataDigest},
    dump,
    error::{Error, Result},
    late::{
        self,
        carry::{self, Carry},
        reapplied::Table,
    },
    manifest::{DUMP, Manifest},
    markers, peers,
    schema::{self, Kind, Schema},
    session::{execute, pin},
    tools::Tools,
};
use body::Body;
use contents::{Lists, Present};

pub use evidence::{EVIDENCE, Evidence, Side};
pub use failed::{FailedState, save};

/// The step's name in the markers.
pub const STEP: &str = "restore";

/// What is restored, and what must be there before.
#[derive(Debug)]
pub struct Plan<'a> {
    pub tools: &'a Tools,
    /// The snapshot's directory; its files were verified.
    pub directory: &'a Path,
    pub scratch: &'a Path,
    pub manifest: &'a Manifest,
    pub schema: &'a Schema,
    /// What was read while the failed state was dumped.
    pub failed_schema: &'a Schema,
    pub failed_data: &'a DataDigest,
    /// What is to go in beyond the snapshot.
    pub carry: &'a Carry<'a>,
    /// No statement may take longer.
    pub limit: Duration,
}

/// How the transaction ended.
#[derive(Debug)]
pub enum End {
    Committed,
    /// More rows would have been lost than may be, as the evidence's facts say by now; it was rolled back.
    LosesTooMuch,
    /// COMMIT was sent and not answered: only the marker knows.
    Unknown(Error),
}

/// Runs the transaction. An error means that it was rolled back. `evidence` gets what was found, and is the marker's detail.
pub async fn run(session: &mut PgConnection, plan: &Plan<'_>, evidence: &mut Evidence) -> Result<End> {
    let ready = async {
        markers::ensure(session).await?;
        execute(session, "beginning the restore", "BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        within(session, plan, evidence).await
    };
    match ready.await {
        Ok(true) => {}
        Ok(false) => {
            info!("more would be lost than may be; rolling back");
            execute(session, "rolling back", "ROLLBACK").await?;
            return Ok(End::LosesTooMuch);
        }
        Err(error) => {
            // The session may be gone; then the server rolls back by itself.
            let _ = execute(session, "rolling back", "ROLLBACK").await;
            return Err(error);
        }
    }
    info!("everything is as the snapshot's manifest says; committing");
    Ok(match execute(session, "committing the restore", "COMMIT").await {
        Ok(()) => End::Committed,
        Err(error) => End::Unknown(error),
    })
}

/// False where more would be lost than may be.
async fn within(session: &mut PgConnection, plan: &Plan<'_>, evidence: &mut Evidence) -> Result<bool> {
    let milliseconds = plan.limit.as_millis();
    execute(session, "limiting the restore", format!("SET LOCAL statement_timeout = '{milliseconds}ms'")).await?;
    let manifest = plan.manifest;
    mark(session, manifest).await?;
    lock(session, plan.failed_schema).await?;
    let (live, sequences) = unchanged(session, plan).await?;
    let foreign = clear::foreign(session).await?;
    if !foreign.is_empty() {
        return Err(Error::ForeignDependents { objects: dump::first(&foreign) });
    }
    let present = clear::present(session, &live).await?;
    let lists = contents(plan, &present).await?;
    info!(tables = live.tables().count(), "nobody wrote since the failed state was saved; dropping what it left");
    clear::drop_all(session, &live, &present, &lists).await?;
    make(session, plan, &lists).await?;
    let (restored, data) = prove(session, plan).await?;
    let Some(carried) = carry_forward(session, plan, (&restored, data), evidence).await? else { return Ok(false) };
    let reached = sequences::forward(session, plan.schema, &manifest.sequences, &sequences).await?;
    let highest = sequences::highest(session, plan.schema, &carried).await?;
    evidence.sequences_before = sequences;
    evidence.sequences_after = sequences::forward(session, plan.schema, &reached, &highest).await?;
    evidence.restored_at = jiff::Timestamp::now();
    let detail = serde_json::to_string(evidence).map_err(|error| Error::Order { what: error.to_string() })?;
    sqlx::query(
        "UPDATE memoria_operator.attempt_step SET detail = $4 WHERE release_uid = $1 AND attempt = $2 AND step = $3",
    )
    .bind(&manifest.release_uid)
    .bind(&manifest.attempt)
    .bind(STEP)
    .bind(detail)
    .execute(session)
    .await
    .map(|_| true)
    .map_err(Error::query("completing the restore's marker"))
}

/// Puts the late rows in that are to be carried forward, proved by the digest of all tables, and has the evidence tell of them.
/// Gives the tables that got some; nothing where more would be lost than may be.
async fn carry_forward(
    session: &mut PgConnection,
    plan: &Plan<'_>,
    (restored, data): (&Schema, DataDigest),
    evidence: &mut Evidence,
) -> Result<Option<Vec<String>>> {
    if plan.carry.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let carried = late::carry_forward(session, (restored, &data), plan.carry).await?;
    plan.carry.tell(&carried, &mut evidence.facts);
    if plan.carry.loses_too_much(&carried) {
        return Ok(None);
    }
    evidence.carried = carry::came(&carried);
    let data = carry::with(data, &evidence.carried)?;
    evidence.facts.rows = data.rows();
    evidence.facts.data_digest = data.total(&plan.manifest.schema_fingerprint);
    for Table { table, inserted, already, .. } in &carried {
        info!(table, inserted, already, "late rows were carried forward");
    }
    Ok(Some(evidence.carried.keys().cloned().collect()))
}

/// Writes the marker of a finished restore, visible only once this commits, and closes what else the attempt began.
async fn mark(session: &mut PgConnection, manifest: &Manifest) -> Result<()> {
    let written = sqlx::query(
        "INSERT INTO memoria_operator.attempt_step (release_uid, attempt, step, finished_at, outcome)
         VALUES ($1, $2, $3, clock_timestamp(), 'Done')",
    )
    .bind(&manifest.release_uid)
    .bind(&manifest.attempt)
    .bind(STEP)
    .execute(&mut *session)
    .await
    .map_err(Error::query("writing the restore's marker"));
    match written {
        Err(error) if error.sqlstate().as_deref() == Some("23505") => {
            Err(Error::DataMoved { what: "another Job of this attempt has just restored it".to_owned() })
        }
        Err(error) => Err(error),
        Ok(_) => close_unfinished(session, manifest, "Restored").await,
    }
}

/// What the attempt began and nobody knows the end of no longer matters: the data is the snapshot's. And its migration may
/// not begin any more, whenever a Job for it should still arrive.
pub async fn close_unfinished(session: &mut PgConnection, manifest: &Manifest, outcome: &str) -> Result<()> {
    markers::ensure(session).await?;
    let close = "UPDATE memoria_operator.attempt_step SET finished_at = clock_timestamp(), outcome = $3
         WHERE release_uid = $1 AND attempt = $2 AND finished_at IS NULL";
    let forbid = "INSERT INTO memoria_operator.attempt_step (release_uid, attempt, step, finished_at, outcome)
         VALUES ($1, $2, 'migrate', clock_timestamp(), $3) ON CONFLICT DO NOTHING";
    for sql in [close, forbid] {
        sqlx::query(sql)
            .bind(&manifest.release_uid)
            .bind(&manifest.attempt)
            .bind(outcome)
            .execute(&mut *session)
            .await
            .map_err(Error::query("closing the attempt's markers"))?;
    }
    Ok(())
}

/// Locks every table against everybody.
async fn lock(session: &mut PgConnection, schema: &Schema) -> Result<()> {
    let tables: Vec<_> = schema
        .relations
        .iter()
        .filter(|(_, relation)| matches!(relation.kind, Kind::Table | Kind::PartitionedTable))
        .map(|(name, _)| name.as_str())
        .collect();
    if tables.is_empty() {
        return Ok(());
    }
    let sql = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.join(", "));
    match execute(session, "locking every table", sql).await {
        Err(error) if error.is_lock_timeout() => {
            execute(session, "rolling back", "ROLLBACK").await?;
            let peers = peers::all(session).await?;
            let names: Vec<_> = peers.iter().map(|peer| format!("{} (pid {})", peer.name(), peer.pid)).collect();
            Err(Error::Locked { what: "a table".to_owned(), holders: dump::first(&names) })
        }
        // A table of the failed state is gone: somebody alters it.
        Err(error) if error.sqlstate().as_deref() == Some("42P01") => {
            Err(Error::DataMoved { what: "a table was dropped".to_owned() })
        }
        other => other,
    }
}

/// Under the locks: schema and data must still be those that were saved. Gives the schema and where sequences are.
async fn unchanged(
    session: &mut PgConnection,
    plan: &Plan<'_>,
) -> Result<(Schema, std::collections::BTreeMap<String, digest::SequencePosition>)> {
    let live = schema::read(session).await?;
    let structure = dump::structure(plan.failed_schema, &live);
    if !structure.is_empty() {
        return Err(Error::DataMoved { what: structure });
    }
    let data = digest::all(session, &live, |_, _| {}).await?;
    let differences = plan.failed_data.differences(&data, &live);
    if !differences.is_empty() {
        return Err(Error::DataMoved { what: dump::first(&differences) });
    }
    Ok((live, data.sequences))
}

async fn contents(plan: &Plan<'_>, present: &Present) -> Result<Lists> {
    let mut command = plan.tools.command("pg_restore", plan.scratch);
    let output = Tools::run("pg_restore", command.arg("--list").arg(plan.directory.join(DUMP))).await?;
    contents::lists(&String::from_utf8_lossy(&output.stdout), plan.schema, present)
}

async fn make(session: &mut PgConnection, plan: &Plan<'_>, lists: &Lists) -> Result<()> {
    let body = Body { tools: plan.tools, directory: plan.directory, scratch: plan.scratch, lists };
    // pg_dump wrote amounts of money as the database itself writes them.
    execute(session, "taking the database's own way with money", "RESET lc_monetary").await?;
    body.before_data(session).await?;
    revoke_defaults(session).await?;
    let started = Instant::now();
    let rows = body.data(session).await?;
    info!(rows, seconds = started.elapsed().as_secs(), "all rows are back");
    body.after_data(session).await?;
    body.grants(session).await?;
    pin(session).await?;
    // Which also put off the limit of this transaction.
    let milliseconds = plan.limit.as_millis();
    execute(session, "limiting the restore", format!("SET LOCAL statement_timeout = '{milliseconds}ms'")).await?;
    // Deferred constraints speak now rather than at COMMIT.
    execute(session, "checking deferred constraints", "SET CONSTRAINTS ALL IMMEDIATE").await
}

/// ALTER DEFAULT PRIVILEGES gave the new tables rights that those of the snapshot need not have had.
async fn revoke_defaults(session: &mut PgConnection) -> Result<()> {
    let sql = "SELECT format('REVOKE ALL ON %s %I.%I FROM %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                      n.nspname, c.relname, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
               WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'memoria_operator')
                 AND c.relkind IN ('r','p','v','m','f','S') AND a.grantee <> c.relowner
                 AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
               GROUP BY 1";
    let revokes: Vec<(String,)> = sqlx::query_as(AssertSqlSafe(sql.to_owned()))
        .fetch_all(&mut *session)
        .await
        .map_err(Error::query("reading default rights"))?;
    let revokes: Vec<_> = revokes.into_iter().map(|(sql,)| sql).collect();
    execute(session, "taking default rights back", revokes.join("; ")).await
}

/// Inside the transaction, by the same definition as the manifest's: nothing else may be committed. Gives what is there.
async fn prove(session: &mut PgConnection, plan: &Plan<'_>) -> Result<(Schema, DataDigest)> {
    let restored = schema::read(session).await?;
    let structure = dump::structure(plan.schema, &restored);
    if !structure.is_empty() {
        return Err(Error::Parity { what: structure });
    }
    let data = digest::all(session, &restored, |_, _| {}).await?;
    let differences = plan.manifest.data().differences(&data, &restored);
    if !differences.is_empty() {
        return Err(Error::Parity { what: dump::first(&differences) });
    }
    Ok((restored, data))
}
