//! The copy of an SQLite file that a rehearsal works on: taken by the backup API while the Server has the file open, into
//! the directory that the pod shares, so that the runner's container can open it and no other file.

use std::{
    fs::{self, DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tracing::info;

use crate::{
    job::{
        context::{Context, Places},
        exchange::Shared,
        protocol::{DataVolume, DatabaseTask, RehearsalOrder},
        sqlite::place::Place,
    },
    snapshot::{
        Error, Result,
        sqlite::{self, content::Content, copy, hold::ask},
    },
};

/// In the shared directory.
pub(super) const DIRECTORY: &str = "copy";
/// How long others may have the live file locked before the first page of it is read.
const PATIENCE: Duration = Duration::from_secs(60);
const WAL: &str = "wal";

/// A copy, and what to tell the upgrade's own steps so that they work on it.
pub(super) struct FileCopy {
    pub context: Context,
    pub task: DatabaseTask,
    pub url: String,
    pub content: Content,
}

pub(super) async fn take(
    context: &Context,
    order: &RehearsalOrder,
    shared: &Shared,
    inside: Places,
) -> Result<FileCopy> {
    let place = Place::of(context, &order.database)?;
    let directory = shared.path(DIRECTORY);
    let to = directory.join(place.path.file_name().map_or_else(|| "memoria.db".into(), PathBuf::from));
    let (live, made, kept) = (place.path, to.clone(), directory.clone());
    let content = sqlite::blocking(move || {
        // What an earlier life of this container left.
        let _ = fs::remove_dir_all(&kept);
        DirBuilder::new().mode(0o770).create(&kept).map_err(Error::io("making", &kept))?;
        let content = copied(&live, &made)?;
        // The runner's user may be another than ours; the group of the pod's volumes is common to both. The umask had its
        // say in what was made.
        for (path, mode) in [(&kept, 0o2770), (&made, 0o660)] {
            fs::set_permissions(path, Permissions::from_mode(mode))
                .map_err(Error::io("giving its permissions to", path))?;
        }
        Ok(content)
    })
    .await?;
    let url = format!("sqlite:///{}", to.display());
    let volume = DataVolume { mount_path: directory.to_string_lossy().into_owned(), sub_path: None, ..place.volume };
    // Another file is another database.
    let task =
        DatabaseTask { identity: None, volumes: vec![volume], working_directory: None, ..order.database.clone() };
    Ok(FileCopy { context: Context::of(inside, &url), task, url, content })
}

/// Reads the live file as any client does. Beside a `-wal` one read transaction sees one state and keeps nobody waiting;
/// with a rollback journal the lock is let go between pages, and the copy begins anew when somebody has written.
fn copied(live: &Path, to: &Path) -> Result<Content> {
    let (connection, mode) = opened(live)?;
    copy::copy(&connection, live, to)?;
    connection.close().map_err(|(_, error)| Error::sqlite("closing", live)(error))?;
    info!("the live file was read and let go of");
    let damaged = |what| Error::DatabaseDamaged { path: live.to_owned(), what };
    let (content, _) = copy::read_back(to, damaged)?;
    if mode == WAL {
        // As the live file has it: migrations may meet the difference.
        let copy = sqlite::open_live(to)?;
        let _: String = ask(&copy, to, "PRAGMA journal_mode=WAL")?;
        copy.close().map_err(|(_, error)| Error::sqlite("closing", to)(error))?;
    }
    Ok(content)
}

/// The live file, open for reading and with its read point taken where it can have one, and its journal mode.
fn opened(live: &Path) -> Result<(Connection, String)> {
    let started = Instant::now();
    loop {
        let begun = || {
            let connection = sqlite::open_beside(live)?;
            let mode: String = ask(&connection, live, "PRAGMA journal_mode")?;
            if mode == WAL {
                connection.execute_batch("BEGIN").map_err(Error::sqlite("beginning to read", live))?;
            }
            let _: i64 = ask(&connection, live, "SELECT count(*) FROM sqlite_schema")?;
            Ok((connection, mode))
        };
        match begun() {
            Err(error @ Error::Sqlite { .. }) if error.is_busy() && started.elapsed() < PATIENCE => {
                info!(%error, "somebody has the file locked; trying again");
                std::thread::sleep(Duration::from_millis(500));
            }
            other => return other,
        }
    }
}
