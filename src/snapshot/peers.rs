//! The other sessions on the database: who they are, whether they write, and ending those of our own role.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::error::{Error, Result};

/// Another client's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub pid: i32,
    pub user: String,
    pub application: String,
    /// Of the role that this session runs as: the application's.
    pub own_role: bool,
    /// It has a transaction that wrote, or holds a lock that only writers take.
    pub writes: bool,
}

impl Peer {
    /// `user@application`, for people.
    pub fn name(&self) -> String {
        let application = if self.application.is_empty() { "?" } else { &self.application };
        format!("{}@{}", self.user, application).chars().take(100).collect()
    }
}

/// All client sessions on this database but this one. Locks tell who writes: they are not masked for a plain role,
/// as the columns of `pg_stat_activity` are.
pub async fn all(session: &mut PgConnection) -> Result<Vec<Peer>> {
    let rows: Vec<(i32, String, String, bool, bool)> = sqlx::query_as(
        "SELECT a.pid, coalesce(a.usename::text, '?'), coalesce(a.application_name, ''), coalesce(a.usename = current_user, false),
                EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND (l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock'
                    OR l.locktype = 'relation' AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')))
         FROM pg_stat_activity a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
           AND coalesce(a.backend_type, 'client backend') = 'client backend' ORDER BY a.pid",
    )
    .fetch_all(session)
    .await
    .map_err(Error::query("listing the sessions on the database"))?;
    let peer = |(pid, user, application, own_role, writes)| Peer { pid, user, application, own_role, writes };
    Ok(rows.into_iter().map(peer).collect())
}

/// Asks the server to end a session; one that is gone already is fine.
pub async fn terminate(session: &mut PgConnection, pid: i32) -> Result<()> {
    sqlx::query("SELECT pg_terminate_backend($1)")
        .bind(pid)
        .execute(session)
        .await
        .map(drop)
        .map_err(Error::query("ending a session of the application's role"))
}

/// Ends every own-role session that `wanted` picks and waits until none is left. Gives how many were ended.
pub async fn end(session: &mut PgConnection, patience: Duration, wanted: impl Fn(&Peer) -> bool) -> Result<usize> {
    let (started, mut ended) = (Instant::now(), std::collections::BTreeSet::new());
    loop {
        let left: Vec<_> = all(session).await?.into_iter().filter(|peer| peer.own_role && wanted(peer)).collect();
        if left.is_empty() {
            return Ok(ended.len());
        }
        if started.elapsed() > patience {
            let names: Vec<_> = left.iter().map(|peer| format!("{} (pid {})", peer.name(), peer.pid)).collect();
            return Err(Error::Locked { what: "the database".to_owned(), holders: names.join(", ") });
        }
        for peer in left {
            ended.insert(peer.pid);
            terminate(session, peer.pid).await?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Transactions that were prepared on this database and neither committed nor rolled back: they hold writes back.
pub async fn prepared(session: &mut PgConnection) -> Result<Vec<String>> {
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared")
            .fetch_all(session)
            .await
            .map_err(Error::query("listing prepared transactions"))?;
    Ok(rows.into_iter().map(|(gid,)| gid).collect())
}
