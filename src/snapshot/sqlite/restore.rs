//! Takes an SQLite file back to a snapshot: the snapshot is copied beside the database, proved there, and put in its
//! place by one rename. Until then the old file is whole, from then on the new one is; which of the two it is, a repeated
//! run tells by their contents and not by names. Late rows that are to be carried forward go into the copy, after that proof
//! and with one of their own.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};
use tracing::info;

use super::{
    beside,
    content::Content,
    copy,
    hold::{Hold, leftovers},
    open_copy, open_unlocked,
    reapply::carry_forward,
};
use crate::snapshot::{
    Error, Result,
    late::{
        carry::{self, Carry},
        reapplied::Table,
    },
    manifest,
};

/// Behind the database's name, with the attempt: the snapshot until it is swapped in, and what it took the place of.
const NEW: &str = ".restore-";
const OLD: &str = ".failed-";

/// What is swapped in, and what for.
pub struct New<'a> {
    pub attempt: &'a str,
    /// `database.sqlite` of the snapshot, its hash already checked.
    pub snapshot: &'a Path,
    /// What the manifest says that it holds.
    pub expected: &'a Content,
    /// What the database holds now.
    pub current: &'a Content,
    /// What is to go in beyond the snapshot.
    pub carry: &'a Carry<'a>,
}

/// The old file's second name, until the attempt is finished with.
pub fn old_file(database: &Path, attempt: &str) -> PathBuf {
    beside(database, &format!("{OLD}{attempt}"))
}

/// Makes the new file beside the database, proved. Gives what became of the rows that were to be carried forward.
pub fn make(database: &Path, wanted: &New<'_>) -> Result<Vec<Table>> {
    let new = beside(database, &format!("{NEW}{}", wanted.attempt));
    let built = build(database, &new, wanted);
    if built.is_err() {
        copy::remove(&new)?;
    }
    built
}

/// Swaps in what was made. The hold ends with it; the noted journal mode is given back, to be set at the end.
pub fn swap(hold: Hold<'_>, attempt: &str) -> Result<String> {
    let database = hold.path().to_owned();
    let new = beside(&database, &format!("{NEW}{attempt}"));
    let old = old_file(&database, attempt);
    let directory = database.parent().unwrap_or(Path::new("/"));
    // A second name costs nothing, and keeps the failed state where the space is.
    match fs::hard_link(&database, &old) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::remove_file(&old).map_err(Error::io("removing", &old))?;
            fs::hard_link(&database, &old).map_err(Error::io("keeping", &old))?;
        }
        other => other.map_err(Error::io("keeping", &old))?,
    }
    manifest::sync_directory(directory)?;
    info!(new = %new.display(), old = %old.display(), "the snapshot is swapped in");
    fs::rename(&new, &database).map_err(Error::io("swapping in", &new))?;
    manifest::sync_directory(directory)?;
    // Only now may somebody else have it; what they open is the new one.
    let mode = hold.close();
    match leftovers(&database)?.first() {
        None => Ok(mode),
        Some(left) => Err(Error::Leftover { path: left.clone() }),
    }
}

/// Puts the old file back in its place, while nobody has the database open.
pub fn swap_back(database: &Path, attempt: &str) -> Result<()> {
    let old = old_file(database, attempt);
    fs::rename(&old, database).map_err(Error::io("swapping back", &old))?;
    database.parent().map_or(Ok(()), manifest::sync_directory)
}

/// The snapshot beside the database, like it in owner, permissions and label, with keys that are never given out again.
fn build(database: &Path, new: &Path, wanted: &New<'_>) -> Result<Vec<Table>> {
    let stored = open_copy(wanted.snapshot)?;
    copy::copy(&stored, wanted.snapshot, new)?;
    drop(stored);
    raise_keys(new, wanted)?;
    prove(new, wanted.expected)?;
    let carried = if wanted.carry.is_empty() { Vec::new() } else { carry_forward(new, wanted.carry)? };
    let came = carry::came(&carried);
    if !came.is_empty() {
        prove(new, &wanted.expected.with(&came)?)?;
    }
    let was = fs::metadata(database).map_err(Error::io("looking at", database))?;
    let is = fs::metadata(new).map_err(Error::io("looking at", new))?;
    if (was.uid(), was.gid()) != (is.uid(), is.gid()) {
        chown(new, Some(was.uid()), Some(was.gid())).map_err(Error::io("giving its owner to", new))?;
    }
    fs::set_permissions(new, Permissions::from_mode(was.mode() & 0o7777))
        .map_err(Error::io("giving its permissions to", new))?;
    label(database, new)?;
    File::open(new).and_then(|file| file.sync_all()).map_err(Error::io("syncing", new))?;
    Ok(carried)
}

/// The new file is whole, and holds exactly this.
fn prove(new: &Path, expected: &Content) -> Result<()> {
    let (found, _) = copy::read_back(new, |what| Error::NotRestorable { what })?;
    match expected.differences(&found).first() {
        None => Ok(()),
        Some(first) => Err(Error::NotRestorable { what: first.clone() }),
    }
}

/// AUTOINCREMENT keys go on from where they are now: ids that were given out since the snapshot are not given out again.
fn raise_keys(new: &Path, wanted: &New<'_>) -> Result<()> {
    let connection = open_unlocked(new, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let numbered = |name: &str| wanted.expected.schema.tables.get(name).is_some_and(|table| table.autoincrement);
    let raise = |connection: &Connection| {
        for (table, position) in wanted.current.data.sequences.iter().filter(|(name, _)| numbered(name)) {
            raise_key(connection, table, position.last_value)?;
        }
        Ok(())
    };
    raise(&connection).map_err(Error::sqlite("raising keys in", new))?;
    connection.close().map_err(|(_, error)| Error::sqlite("closing", new)(error))
}

/// Brings the AUTOINCREMENT keys of one table to `to` at least.
pub(crate) fn raise_key(connection: &Connection, table: &str, to: i64) -> rusqlite::Result<()> {
    let sql = "UPDATE sqlite_sequence SET seq = max(coalesce(seq, 0), ?2) WHERE name = ?1";
    if connection.execute(sql, (table, to))? == 0 {
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)", (table, to))?;
    }
    Ok(())
}

/// SELinux's label, where there is one.
fn label(from: &Path, to: &Path) -> Result<()> {
    const NAME: &str = "security.selinux";
    let mut value = vec![0u8; 256];
    let Ok(length) = rustix::fs::getxattr(from, NAME, &mut value[..]) else { return Ok(()) };
    let wanted = value.get(..length).unwrap_or_default();
    let mut now = vec![0u8; 256];
    if rustix::fs::getxattr(to, NAME, &mut now[..]).is_ok_and(|length| now.get(..length) == Some(wanted)) {
        return Ok(());
    }
    rustix::fs::setxattr(to, NAME, wanted, rustix::fs::XattrFlags::empty())
        .map_err(|error| Error::io("giving its label to", to)(error.into()))
}

/// Removes what an earlier, killed run left beside the database.
pub fn clear(database: &Path, attempt: &str) -> Result<()> {
    copy::remove(&beside(database, &format!("{NEW}{attempt}")))
}

/// Removes the old file's second name, once the new one is proved and the failed state is in storage.
pub fn forget(database: &Path, attempt: &str) -> Result<()> {
    copy::remove(&old_file(database, attempt))
}
