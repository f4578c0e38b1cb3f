//! Whether a URL leads to PostgreSQL itself. A pooler gives each transaction another session: locks, settings and exported
//! snapshots are then lost, and what our sessions set would stay on sessions that the application gets afterwards. So
//! this is asked first, by sessions that set nothing.

use sqlx::{Connection as _, PgConnection, Row as _};

use super::{
    error::{Error, Result},
    session::connect,
    url::DatabaseUrl,
};

/// How often both sessions are asked in turn.
const ROUNDS: usize = 5;

/// True when one of two sessions changes its server process, or both have the same one. A pooler that keeps a session for
/// as long as its client is no obstacle, and is not found.
pub async fn stands_before(url: &DatabaseUrl, application_name: &str) -> Result<bool> {
    // Poolers know but a few startup parameters and refuse others.
    let options = url.connect_options()?.application_name(application_name).extra_float_digits(None);
    let mut sessions = Vec::new();
    for _ in 0..2 {
        match connect(&options, &url.place()).await {
            Ok(session) => sessions.push(session),
            Err(Error::Connect { source, .. }) if refuses_parameters(&source) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    let mut seen: Vec<Vec<i32>> = Vec::new();
    for _ in 0..ROUNDS {
        let mut round = Vec::new();
        for session in &mut sessions {
            round.push(process(session).await?);
        }
        seen.push(round);
    }
    for session in sessions {
        let _ = session.close().await;
    }
    let changes = seen.windows(2).any(|pair| pair.first() != pair.last());
    let shared = seen.iter().any(|round| round.first() == round.last());
    Ok(changes || shared)
}

/// In the simple protocol: a prepared statement would be left on a session that is another's next.
async fn process(session: &mut PgConnection) -> Result<i32> {
    let asked = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(session).await;
    asked.and_then(|row| row.try_get(0)).map_err(Error::query("asking for the session's process"))
}

/// PgBouncer's words; PostgreSQL itself takes every parameter that we send.
fn refuses_parameters(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().contains("unsupported startup parameter"))
}
