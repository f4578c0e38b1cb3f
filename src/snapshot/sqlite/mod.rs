//! The SQLite data plane: the file's URL, the proof that nobody else has it open, schema, digests, copies and markers.
//! Everything here blocks; [`blocking`] keeps it off the runtime.
//!
//! While a connection of ours is open, nothing in this process may open the same file by other means: closing that
//! descriptor would drop the connection's locks, as POSIX has it.

pub mod content;
pub mod copy;
pub mod digest;
pub mod hold;
pub mod late;
pub mod markers;
pub mod reapply;
pub mod restore;
pub mod schema;
pub mod url;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::{Error, Result};

/// The copy's name in a snapshot's directory.
pub const DATABASE: &str = "database.sqlite";
/// What a manifest of a SQLite snapshot says of itself.
pub const KIND: &str = "sqlite";
/// How long one statement waits for a lock before the next try.
const BUSY: Duration = Duration::from_secs(2);

/// The path with something behind its name, e.g. `-wal`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Version of the library, e.g. `SQLite 3.51.3`.
pub fn library() -> String {
    format!("SQLite {}", rusqlite::version())
}

/// Opens the file where it lives, for the sole opener's proof. One that is missing is not made.
pub fn open_live(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(Error::sqlite("opening", path))?;
    settle(connection, path)
}

/// Opens the file where it lives, to put rows into it as they were: what triggers made of them is among the rows, so none
/// fires.
pub(crate) fn open_for_rows(path: &Path) -> Result<Connection> {
    if !path.try_exists().map_err(Error::io("looking for", path))? {
        return Err(Error::FileMissing { path: path.to_owned() });
    }
    without_triggers(open_live(path)?, path)
}

/// The same of a copy that only this process knows.
fn open_copy_for_rows(path: &Path) -> Result<Connection> {
    without_triggers(open_unlocked(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?, path)
}

fn without_triggers(connection: Connection, path: &Path) -> Result<Connection> {
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)
        .map_err(Error::sqlite("preparing the connection to", path))?;
    Ok(connection)
}

/// Opens the file to read it while its Server works. Nothing is written into it, rolled back or checkpointed, not even when
/// the last of the others closes it first; readers of a `-wal` still need to write the `-shm`.
pub fn open_beside(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(Error::sqlite("opening", path))?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(Error::sqlite("preparing the connection to", path))?;
    settle(connection, path)
}

/// Opens a copy that only this process knows. Without locks: a snapshot volume may have none.
pub fn open_copy(path: &Path) -> Result<Connection> {
    open_unlocked(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn open_unlocked(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags_and_vfs(path, flags, "unix-none").map_err(Error::sqlite("opening", path))?;
    settle(connection, path)
}

/// Nothing that the file itself brings along is executed, and nothing is mapped or spilled elsewhere.
fn settle(connection: Connection, path: &Path) -> Result<Connection> {
    let sql = "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA foreign_keys=OFF; PRAGMA mmap_size=0;
        PRAGMA temp_store=MEMORY";
    connection
        .busy_timeout(BUSY)
        .and_then(|()| connection.execute_batch(sql))
        .map_err(Error::sqlite("preparing the connection to", path))?;
    Ok(connection)
}

/// Runs work that blocks on a thread of its own, which does not keep a process that was told to end from ending.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("sqlite".to_owned())
        .spawn(move || {
            let _ = sender.send(work());
        })
        .map_err(Error::io("starting a thread for", "SQLite"))?;
    receiver.await.map_err(|_| Error::Order { what: "the thread for SQLite ended without an answer".to_owned() })?
}
