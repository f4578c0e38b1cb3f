//! The markers in the database itself: what an attempt began and finished, and the lock that keeps twins apart. They lie
//! in a schema of their own, outside every snapshot, so that no restore takes them back.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::{
    error::{Error, Result},
    session::execute,
};

/// One step of one attempt. `docs/formats.md` shows the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    pub release_uid: String,
    pub attempt: String,
    pub step: String,
    pub started_at: String,
    pub finished: bool,
    /// The report's reason, once finished.
    pub outcome: Option<String>,
    /// While unfinished: the token of the pod that began it. Once finished: the report as JSON.
    pub detail: Option<String>,
}

/// Makes schema and table where they are missing; needs CREATE on the database then.
pub async fn ensure(session: &mut PgConnection) -> Result<()> {
    if exist(session).await? {
        return Ok(());
    }
    // IF NOT EXISTS for a twin of another release. Asked only when missing: it wants the right even when it does nothing.
    let sql = "CREATE SCHEMA IF NOT EXISTS memoria_operator;
        CREATE TABLE IF NOT EXISTS memoria_operator.attempt_step (
            release_uid text NOT NULL, attempt text NOT NULL, step text NOT NULL,
            started_at timestamptz NOT NULL DEFAULT clock_timestamp(), finished_at timestamptz,
            outcome text, detail text, PRIMARY KEY (release_uid, attempt, step))";
    execute(session, "making the schema memoria_operator for the markers", sql).await
}

/// True when the marker table is there.
pub async fn exist(session: &mut PgConnection) -> Result<bool> {
    let (found,) = sqlx::query_as("SELECT to_regclass('memoria_operator.attempt_step') IS NOT NULL")
        .fetch_one(session)
        .await
        .map_err(Error::query("looking for the markers"))?;
    Ok(found)
}

/// All markers, oldest first; none when there is no table.
pub async fn all(session: &mut PgConnection) -> Result<Vec<Marker>> {
    if !exist(session).await? {
        return Ok(Vec::new());
    }
    type Row = (String, String, String, String, bool, Option<String>, Option<String>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT release_uid, attempt, step, to_char(started_at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                finished_at IS NOT NULL, outcome, detail
         FROM memoria_operator.attempt_step ORDER BY started_at",
    )
    .fetch_all(session)
    .await
    .map_err(Error::query("reading the markers"))?;
    let marker = |(release_uid, attempt, step, started_at, finished, outcome, detail)| Marker {
        release_uid,
        attempt,
        step,
        started_at,
        finished,
        outcome,
        detail,
    };
    Ok(rows.into_iter().map(marker).collect())
}

/// Writes that a step begins. A step that was begun before is a unique violation: nothing begins twice.
pub async fn begin(
    session: &mut PgConnection,
    release_uid: &str,
    attempt: &str,
    step: &str,
    token: &str,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO memoria_operator.attempt_step (release_uid, attempt, step, detail) VALUES ($1, $2, $3, $4)",
    )
    .bind(release_uid)
    .bind(attempt)
    .bind(step)
    .bind(token)
    .execute(session)
    .await
    .map(drop)
    .map_err(Error::query("writing the marker that the step begins"))
}

/// Writes how a step ended; of a finished one nothing is changed.
pub async fn finish(
    session: &mut PgConnection,
    (release_uid, attempt, step): (&str, &str, &str),
    outcome: &str,
    detail: &str,
) -> Result<()> {
    sqlx::query(
        "UPDATE memoria_operator.attempt_step SET finished_at = clock_timestamp(), outcome = $4, detail = $5
         WHERE release_uid = $1 AND attempt = $2 AND step = $3 AND finished_at IS NULL",
    )
    .bind(release_uid)
    .bind(attempt)
    .bind(step)
    .bind(outcome)
    .bind(detail)
    .execute(session)
    .await
    .map(drop)
    .map_err(Error::query("writing the marker that the step ended"))
}

/// Key of the advisory lock: the first eight bytes of a SHA-256.
pub fn lock_key(release_uid: &str) -> i64 {
    let hash = Sha256::digest(format!("memoria-operator release {release_uid}"));
    hash.iter().take(8).fold(0, |key, byte| (key << 8) | i64::from(*byte))
}

/// Takes the release's advisory lock for the session's life, trying for `patience`.
pub async fn lock(session: &mut PgConnection, release_uid: &str, patience: Duration) -> Result<()> {
    let (started, key) = (Instant::now(), lock_key(release_uid));
    loop {
        let (taken,): (bool,) = sqlx::query_as("SELECT pg_try_advisory_lock($1)")
            .bind(key)
            .fetch_one(&mut *session)
            .await
            .map_err(Error::query("taking the release's advisory lock"))?;
        if taken {
            return Ok(());
        }
        if started.elapsed() > patience {
            return Err(Error::Locked {
                what: "the release's advisory lock".to_owned(),
                holders: holders(session, key).await?,
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn holders(session: &mut PgConnection, key: i64) -> Result<String> {
    let names: Vec<(String,)> = sqlx::query_as(
        "SELECT format('%s@%s (pid %s)', a.usename, a.application_name, l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (l.classid::bigint << 32 | l.objid::bigint) = $1",
    )
    .bind(key)
    .fetch_all(session)
    .await
    .map_err(Error::query("reading who holds the advisory lock"))?;
    let names: Vec<_> = names.into_iter().map(|(name,)| name).collect();
    Ok(if names.is_empty() { "a session that just ended".to_owned() } else { names.join(", ") })
}
