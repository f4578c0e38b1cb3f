//! PreFlight, beside the candidate's `init-db`: gives it a new SQLite file in the directory that the pod shares, and
//! reads the schema that it builds there.

use std::{fs, io, path::Path, time::Duration};

use tokio::sync::watch;
use tracing::info;

use super::super::{
    context::Context,
    exchange::{Shared, Waited},
    protocol::ReferenceOrder,
    reference::{Built, GRACE, failure},
};
use crate::snapshot::{
    Error, Result,
    sqlite::{self, beside, copy, schema},
};

/// In the shared directory.
const FILE: &str = "reference.db";

/// Lets `init-db` run and reads what it made; `None` when the pod is ended meanwhile.
pub async fn build(
    context: &Context,
    order: &ReferenceOrder,
    shared: &Shared,
    stop: &mut watch::Receiver<bool>,
) -> Result<Option<Built>> {
    let path = shared.path(FILE);
    shared.proceed(Some(format!("sqlite:///{}", path.display())))?;
    info!(path = %path.display(), "a new file waits for init-db");
    let result = match shared.wait(Duration::from_secs(order.limit_seconds) + GRACE, stop).await? {
        Waited::Stopped => return Ok(None),
        Waited::TimeUp => {
            return Ok(Some(Built::none(format!("init-db did not end within {} s", order.limit_seconds))));
        }
        Waited::Result(result) => result,
    };
    if let Some(why) = failure(&result) {
        return Ok(Some(Built::none(why)));
    }
    let scratch = context.places.scratch.clone();
    let schema = sqlite::blocking(move || read(&path, &scratch)).await?;
    match schema {
        Some(schema) if !schema.tables.is_empty() => Ok(Some(Built::sqlite(schema))),
        _ => {
            let why = "init-db ended with exit code 0 and made no table; it may not read the URL that it is given";
            Ok(Some(Built::none(why.to_owned())))
        }
    }
}

/// Reads the schema from a copy: the file is another user's, and a `-wal` beside it must be folded in.
fn read(path: &Path, scratch: &Path) -> Result<Option<schema::Schema>> {
    fs::create_dir_all(scratch).map_err(Error::io("making", scratch))?;
    let ours = scratch.join(FILE);
    copy::remove(&ours)?;
    for suffix in ["", "-wal", "-journal"] {
        match fs::copy(beside(path, suffix), beside(&ours, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && suffix.is_empty() => return Ok(None),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("copying", beside(path, suffix))(error));
            }
            _ => {}
        }
    }
    let connection = sqlite::open_live(&ours)?;
    let schema = schema::read(&connection, &ours)?;
    drop(connection);
    copy::remove(&ours)?;
    Ok(Some(schema))
}
