//! Holds a database still: SHARE locks on every table let readers and the dump in, and wait for, then keep out, whoever
//! writes, truncates or alters. The locks die with their session; that is what makes them safe to crash with.

use std::{collections::BTreeSet, time::Duration};

use sqlx::PgConnection;

use super::{
    error::{Error, Result},
    peers,
    schema::{self, Schema},
    session::execute,
};

const TRIES: u32 = 5;

/// Opens a REPEATABLE READ transaction, locks every table in scope and reads the schema inside. The transaction's
/// snapshot is taken after the locks, so it holds everything that was committed, and nothing else will be.
/// Leaves the transaction open; ending it, or the session, lets go.
pub async fn freeze(session: &mut PgConnection) -> Result<Schema> {
    let mut blocked = None;
    for attempt in 1..=TRIES {
        if attempt > 1 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let before = tables(&schema::read(session).await?);
        execute(session, "beginning the read", "BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        if !before.is_empty() {
            let list = before.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            match execute(session, "locking every table in SHARE mode", format!("LOCK TABLE {list} IN SHARE MODE"))
                .await
            {
                Ok(()) => {}
                Err(error) => {
                    release(session).await?;
                    if error.is_lock_timeout() {
                        blocked = Some(error);
                        continue;
                    }
                    return Err(error);
                }
            }
        }
        let schema = schema::read(session).await?;
        if tables(&schema) == before {
            return Ok(schema);
        }
        // A table came or went between looking and locking.
        release(session).await?;
    }
    match blocked {
        None => Err(Error::SchemaMoved { differences: "tables keep coming and going".to_owned() }),
        Some(_) => {
            let writers = peers::all(session).await?.into_iter().filter(|peer| peer.writes);
            let names: Vec<_> = writers.map(|peer| format!("{} (pid {})", peer.name(), peer.pid)).collect();
            Err(Error::Locked { what: "a table".to_owned(), holders: names.join(", ") })
        }
    }
}

/// Ends the transaction and with it the locks.
pub async fn release(session: &mut PgConnection) -> Result<()> {
    execute(session, "letting go of the tables", "ROLLBACK").await
}

fn tables(schema: &Schema) -> BTreeSet<String> {
    let lockable = |kind| matches!(kind, schema::Kind::Table | schema::Kind::PartitionedTable);
    schema.relations.iter().filter(|(_, r)| lockable(r.kind)).map(|(name, _)| name.clone()).collect()
}
