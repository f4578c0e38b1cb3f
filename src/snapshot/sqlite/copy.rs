//! Copies a database by SQLite's backup API, into a new file that is forced to disk. Copying the file itself would miss
//! what lies in its `-wal`.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};
use tracing::info;

use super::{
    beside,
    content::{self, Content},
    hold::ask,
    open_copy, open_unlocked,
};
use crate::snapshot::{Error, Result};

/// Pages in one step: 16 MiB of the usual size.
const PAGES: i32 = 4096;

/// Copies into `to`, which is made anew, with a rollback journal.
pub fn copy(from: &Connection, from_path: &Path, to: &Path) -> Result<()> {
    remove(to)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut copy = open_unlocked(to, flags)?;
    // A copy that is cut short is thrown away, so it needs no journal; forcing it to disk comes at the end, once.
    copy.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
        .map_err(Error::sqlite("preparing", to))?;
    {
        let backup = Backup::new(from, &mut copy).map_err(Error::sqlite("copying", from_path))?;
        loop {
            match backup.step(PAGES).map_err(Error::sqlite("copying", from_path))? {
                StepResult::Done => break,
                StepResult::More => {
                    let progress = backup.progress();
                    info!(pages = progress.pagecount, remaining = progress.remaining, "copying");
                }
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
    // The header comes with the pages, and may say WAL.
    let mode: String = ask(&copy, to, "PRAGMA journal_mode=DELETE")?;
    if mode != "delete" {
        return Err(Error::InUse { path: to.to_owned() });
    }
    copy.close().map_err(|(_, error)| Error::sqlite("closing", to)(error))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(Error::io("syncing", to))
}

/// Removes a file of ours, and what SQLite may have left beside it.
pub fn remove(path: &Path) -> Result<()> {
    for path in ["", "-journal", "-wal", "-shm"].map(|suffix| beside(path, suffix)) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", &path)(error)),
            _ => {}
        }
    }
    Ok(())
}

/// What a copy holds, read from its file again and checked. `damaged` is given what is wrong with it.
pub fn read_back(path: &Path, damaged: impl FnOnce(String) -> Error) -> Result<(Content, i64)> {
    let connection = open_copy(path)?;
    let damage = content::damage(&connection, path)?;
    if let Some(first) = damage.first() {
        return Err(damaged(first.clone()));
    }
    let dangling = content::dangling(&connection, path)?;
    Ok((content::read(&connection, path)?, dangling))
}
