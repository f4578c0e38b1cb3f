//! The sole opener's proof, and the file held exclusively from then on. Leaving WAL is granted only when nobody else has
//! the file open, idle ones included, and folds in what a dead process left in its `-wal`. In a file with a rollback
//! journal an idle holder cannot be seen: there the stopped pods are the only proof.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tracing::{info, warn};

use super::{beside, markers::Lock, open_live};
use crate::snapshot::{Error, Result};

const WAL: &str = "wal";
/// What stands at the beginning of a journal that must be rolled back.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The database, open in this process and in no other. Its journal mode is put back at the end.
pub struct Hold<'a> {
    /// Only while dropping `None`.
    connection: Option<Connection>,
    lock: &'a Lock,
    /// As it was before, and will be again: `wal` or `delete`.
    prior: String,
}

impl<'a> Hold<'a> {
    /// Takes hold of the file, trying for `patience` while somebody else has it.
    pub fn take(lock: &'a Lock, patience: Duration) -> Result<Self> {
        let started = Instant::now();
        loop {
            match Self::try_take(lock) {
                Err(error) if error.is_busy() && started.elapsed() < patience => {
                    info!(%error, "somebody has the file open; trying again");
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(error) if error.is_busy() => {
                    return Err(Error::InUse { path: lock.database().to_owned() });
                }
                other => return other,
            }
        }
    }

    fn try_take(lock: &'a Lock) -> Result<Self> {
        let path = lock.database();
        if !path.try_exists().map_err(Error::io("looking for", path))? {
            return Err(Error::FileMissing { path: path.to_owned() });
        }
        let connection = open_live(path)?;
        // Reads the header, and recovers what a killed process left.
        let _: i64 = ask(&connection, path, "SELECT count(*) FROM sqlite_schema")?;
        let mode: String = ask(&connection, path, "PRAGMA journal_mode")?;
        let noted = lock.markers()?.journal_mode;
        let prior = if mode == WAL { mode.clone() } else { noted.unwrap_or_else(|| "delete".to_owned()) };
        if mode == WAL {
            lock.note_journal_mode(Some(WAL))?;
        }
        match exclude(&connection, path) {
            Ok(()) => Ok(Self { connection: Some(connection), lock, prior }),
            Err(error) => {
                drop(connection);
                // Whatever was changed by then; where it cannot be, the note stays for the next Job.
                if let Err(why) = put_back(lock, &prior) {
                    warn!(error = %why, "the journal mode is not put back yet");
                }
                Err(error)
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.lock.database()
    }

    /// The connection. Statements that would write are refused.
    pub fn connection(&self) -> Result<&Connection> {
        let gone = || Error::Order { what: "the database is not held any more".to_owned() };
        self.connection.as_ref().ok_or_else(gone)
    }

    /// `wal` or `delete`.
    pub fn journal_mode(&self) -> &str {
        &self.prior
    }

    /// In words, for reports: what the hold proves of others.
    pub fn proof(&self) -> &'static str {
        if self.prior == WAL {
            "the file left WAL mode, so no other process has it open"
        } else {
            "the file has a rollback journal and could be locked exclusively; that nobody holds it open idly rests on its pods being gone"
        }
    }

    /// Lets go and puts the journal mode back.
    pub fn release(mut self) -> Result<()> {
        self.let_go()
    }

    /// Closes the connection and keeps the note of the journal mode: the file is about to be replaced.
    pub fn close(mut self) -> String {
        drop(self.connection.take());
        self.prior.clone()
    }

    fn let_go(&mut self) -> Result<()> {
        if self.connection.take().is_none() {
            return Ok(());
        }
        put_back(self.lock, &self.prior)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            warn!(%error, "the journal mode is not put back yet; the next Job does it");
        }
    }
}

/// Sets the journal mode that was noted, and forgets the note.
pub fn put_back(lock: &Lock, mode: &str) -> Result<()> {
    let path = lock.database();
    if mode == WAL {
        let connection = open_live(path)?;
        let found: String = ask(&connection, path, "PRAGMA journal_mode=WAL")?;
        if found != WAL {
            return Err(Error::InUse { path: path.to_owned() });
        }
        connection.close().map_err(|(_, error)| Error::sqlite("closing", path)(error))?;
    }
    lock.note_journal_mode(None)
}

fn exclude(connection: &Connection, path: &Path) -> Result<()> {
    let mode: String = ask(connection, path, "PRAGMA journal_mode=DELETE")?;
    if mode != "delete" {
        return Err(Error::InUse { path: path.to_owned() });
    }
    // A transaction that ends keeps its lock in this mode; an open one would keep the backup API out.
    connection
        .execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT; PRAGMA query_only=ON")
        .map_err(Error::sqlite("locking", path))?;
    match leftovers(path)?.first() {
        None => Ok(()),
        Some(left) => Err(Error::Leftover { path: left.clone() }),
    }
}

/// Files beside the database that still hold something of it. The database itself is not opened for that.
pub fn leftovers(path: &Path) -> Result<Vec<PathBuf>> {
    let mut left: Vec<PathBuf> = ["-wal", "-shm"].map(|suffix| beside(path, suffix)).into();
    left.retain(|path| fs::symlink_metadata(path).is_ok());
    let journal = beside(path, "-journal");
    let mut beginning = Vec::new();
    // One that ended properly may stay, empty or with a zeroed header.
    if let Ok(file) = File::open(&journal) {
        file.take(8).read_to_end(&mut beginning).map_err(Error::io("reading", &journal))?;
    }
    if beginning == JOURNAL_MAGIC {
        left.push(journal);
    }
    Ok(left)
}

/// One value of one row.
pub fn ask<T: rusqlite::types::FromSql>(connection: &Connection, path: &Path, sql: &'static str) -> Result<T> {
    connection.query_row(sql, [], |row| row.get(0)).map_err(Error::sqlite(sql, path))
}
