//! Opens sessions whose settings are pinned, so that the same data gives the same text everywhere.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};

use super::{
    error::{Error, Result},
    sha256_hex,
    url::DatabaseUrl,
};

/// What every session of ours sets; written into the manifest, because digests depend on it.
/// `search_path` is empty, so that the server writes every name with its schema.
pub const PINNED: &[(&str, &str)] = &[
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, YMD"),
    ("extra_float_digits", "1"),
    ("intervalstyle", "postgres"),
    ("lc_monetary", "C"),
    ("quote_all_identifiers", "off"),
    ("row_security", "off"),
    ("search_path", ""),
    ("timezone", "UTC"),
    ("xmlbinary", "base64"),
];

/// What our sessions set besides; no digest depends on it. Some exist only from a version on.
const WORKING: &[(&str, &str, u32)] = &[
    ("lock_timeout", "5s", 0),
    ("statement_timeout", "0", 0),
    ("idle_in_transaction_session_timeout", "0", 0),
    ("synchronous_commit", "on", 0),
    // A lost node's session holds its locks for a minute, not for hours.
    ("tcp_keepalives_idle", "30", 0),
    ("tcp_keepalives_interval", "10", 0),
    ("tcp_keepalives_count", "3", 0),
    ("default_transaction_isolation", "read committed", 0),
    ("client_connection_check_interval", "500ms", 140_000),
    ("idle_session_timeout", "0", 140_000),
    ("transaction_timeout", "0", 170_000),
];

/// PostgreSQL cuts `application_name` here.
const NAME_LIMIT: usize = 63;
/// Room for the step in it.
const STEP_LIMIT: usize = 12;

/// What an attempt's sessions begin with: `mop-<attempt>-`. A name too long for PostgreSQL is replaced by a hash of it.
pub fn session_prefix(attempt: &str) -> String {
    let fits = attempt.len() + "mop--".len() + STEP_LIMIT <= NAME_LIMIT;
    if fits { format!("mop-{attempt}-") } else { format!("mop-{}-", &sha256_hex(attempt)[..16]) }
}

/// `application_name` of one step's session: `mop-<attempt>-<step>`.
pub fn application_name(attempt: &str, step: &str) -> String {
    let step: String = step.chars().take(STEP_LIMIT).collect();
    session_prefix(attempt) + &step
}

/// Opens a session. One that cannot be had within 15 s is an error; the caller decides whether to try again.
pub async fn open(url: &DatabaseUrl, application_name: &str) -> Result<PgConnection> {
    let options = url.connect_options()?.application_name(application_name);
    open_with(&options, &url.place()).await
}

pub async fn open_with(options: &PgConnectOptions, at: &str) -> Result<PgConnection> {
    let mut session = connect(options, at).await?;
    pin(&mut session).await?;
    Ok(session)
}

/// A session that has set nothing yet.
pub async fn connect(options: &PgConnectOptions, at: &str) -> Result<PgConnection> {
    let failed = |source| Error::Connect { at: at.to_owned(), source };
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 15 s");
    tokio::time::timeout(Duration::from_secs(15), PgConnection::connect_with(options))
        .await
        .map_err(|elapsed| failed(sqlx::Error::Io(late(elapsed))))?
        .map_err(failed)
}

/// Sets all settings; done again after statements that may have changed them.
pub async fn pin(session: &mut PgConnection) -> Result<()> {
    let version = session.server_version_num().unwrap_or_default();
    let pinned = PINNED.iter().copied();
    let working = WORKING.iter().filter(|(_, _, since)| version >= *since).map(|(name, value, _)| (*name, *value));
    let statements: Vec<_> = pinned.chain(working).map(|(name, value)| format!("SET {name} = '{value}'")).collect();
    execute(session, "pinning the session's settings", statements.join("; ")).await
}

/// Runs statements that give no rows.
pub async fn execute(session: &mut PgConnection, doing: &'static str, sql: impl Into<String>) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(session).await.map(drop).map_err(Error::query(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_name_always_fits_and_keeps_its_attempt_apart() {
        assert_eq!(application_name("prod-7", "migrate"), "mop-prod-7-migrate");
        let (a, b) = ("a".repeat(60), format!("{}b", "a".repeat(59)));
        assert!(application_name(&a, "a-very-long-step-name").len() <= NAME_LIMIT);
        assert_ne!(session_prefix(&a), session_prefix(&b));
        assert!(application_name(&a, "guard").starts_with(&session_prefix(&a)));
    }
}
