//! What tells one database from every other: read by every Job before it does anything.

use sqlx::PgConnection;

use crate::api::upgrade::DatabaseIdentity;

use super::{
    error::{Error, Result},
    url::DatabaseUrl,
};

/// Reads the identity; a plain role may.
pub async fn read(session: &mut PgConnection, url: &DatabaseUrl) -> Result<DatabaseIdentity> {
    let (system_identifier, name, oid) = sqlx::query_as(
        "SELECT c.system_identifier::text, d.datname::text, d.oid::bigint
         FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d
         WHERE d.datname = pg_catalog.current_database()",
    )
    .fetch_one(session)
    .await
    .map_err(Error::query("reading the database's identity"))?;
    Ok(DatabaseIdentity { system_identifier, name, oid, host: url.host_and_port() })
}

/// Refuses any database but the expected one. The host counts too: a promoted copy has all the rest in common.
pub fn prove(expected: &DatabaseIdentity, found: &DatabaseIdentity) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::WrongDatabase { expected: describe(expected), found: describe(found) })
}

fn describe(identity: &DatabaseIdentity) -> String {
    let DatabaseIdentity { system_identifier, name, oid, host } = identity;
    format!("{name} (oid {oid}) on {host}, system {system_identifier}")
}
