//! Why something with the database, its tools or the storage did not work: cause, what to do next, and whose fault it
//! was. No variant holds a password: places are `user@host:port/db`, tool output is cut to its first error line.

use std::{borrow::Cow, path::PathBuf};

use rusqlite::ErrorCode;

use crate::api::upgrade::Category;

use super::{sqlite::url::SqliteUrlError, store::StoreError, url::UrlError};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database URL cannot be used: {0}")]
    Url(#[from] UrlError),
    #[error("the database URL cannot be used: {0}")]
    SqliteUrl(#[from] SqliteUrlError),
    #[error("while {doing} {}: {source}; {}", path.display(), sqlite_advice(source))]
    Sqlite { doing: Cow<'static, str>, path: PathBuf, source: rusqlite::Error },
    #[error("there is no file {}; correct the path in the Server's database URL, or start the Server once so that it makes its database", path.display())]
    FileMissing { path: PathBuf },
    #[error(
        "{} lies on no claim's volume ({mounts}), so it ends with its pod; put it below a claim's mountPath of the Server's container", path.display()
    )]
    NotOnClaim { path: PathBuf, mounts: String },
    #[error(
        "another process has {} open, or is writing to it; stop whatever does: a pod that is neither target nor worker, or a person with a shell on the volume", path.display()
    )]
    InUse { path: PathBuf },
    #[error("{} is there although the database is closed; somebody opened it meanwhile, find out who", path.display())]
    Leftover { path: PathBuf },
    #[error(
        "virtual tables of modules that this operator does not know: {what}; their data may lie elsewhere, so drop them before the upgrade and make them again after it"
    )]
    NotUnderstood { what: String },
    #[error("SQLite's integrity check of {} says: {what}; repair the database (sqlite3's .recover) before the upgrade", path.display())]
    DatabaseDamaged { path: PathBuf, what: String },
    #[error("the markers in {} cannot be read: {what}; put the file back as it was, nothing is run without it", path.display())]
    MarkersDamaged { path: PathBuf, what: String },
    #[error("no session on {at}: {source}; {}", connect_advice(source))]
    Connect { at: String, source: sqlx::Error },
    #[error("while {doing}: {source}; {}", query_advice(source))]
    Query { doing: Cow<'static, str>, source: sqlx::Error },
    #[error(
        "the URL leads to another database: expected {expected}, found {found}; point the Server's database Secret back to the planned database, or plan anew"
    )]
    WrongDatabase { expected: String, found: String },
    #[error(
        "no {tool} of PostgreSQL {major} in this image; set the tool image of major {major} in the operator's configuration"
    )]
    ToolMissing { tool: &'static str, major: u32 },
    #[error("{tool} failed ({status}): {tail}")]
    Tool { tool: &'static str, status: String, tail: String },
    #[error("while {doing} {}: {source}; check the volume's space, permissions and health", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{what} is held by {holders}; end those sessions, the next try goes on by itself")]
    Locked { what: String, holders: String },
    #[error(
        "the schema changed while the snapshot was taken: {differences}; find who alters it, the next try takes another snapshot"
    )]
    SchemaMoved { differences: String },
    #[error("the stored snapshot in {} is damaged: {what}; it is kept as it is, check the storage", directory.display())]
    Damaged { directory: PathBuf, what: String },
    #[error(
        "the data in {} was erased at {at} by {by}: {reason}; it cannot be restored, read or compared any more, and nothing was changed", directory.display()
    )]
    Erased { directory: PathBuf, at: jiff::Timestamp, by: String, reason: String },
    #[error("{} cannot be erased: {what}; nothing was removed", path.display())]
    NotErasable { path: PathBuf, what: String },
    #[error("{} holds a snapshot of {found}, not of {expected}; a snapshot is never overwritten", directory.display())]
    Occupied { directory: PathBuf, expected: String, found: String },
    #[error("the snapshot does not restore into an empty server: {what}; nothing was changed, writers can come back")]
    NotRestorable { what: String },
    #[error(
        "objects that are not the Server's role's to drop keep the data from being taken back: {objects}; drop them, or make that role their owner; nothing was changed"
    )]
    ForeignDependents { objects: String },
    #[error(
        "the data changed between the failed state's dump and the restore: {what}; nothing was restored, find what still writes"
    )]
    DataMoved { what: String },
    #[error(
        "the restored data was not the snapshot's: {what}; everything was rolled back, the database, the snapshot and the failed state's dump are all kept"
    )]
    Parity { what: String },
    #[error("no private server started in {}: {tail}", directory.display())]
    Scratch { directory: PathBuf, tail: String },
    #[error(
        "the export would not hold all of the database: {what}; it was refused. Take a snapshot by the database's own tools, or remove what is named"
    )]
    Uncovered { what: String },
    /// What went wrong with the portable export of an attempt's snapshot.
    #[error("the portable export: {0}. With spec.snapshot.portable: false the exact snapshot alone is kept")]
    Portable(Box<Error>),
    #[error("the export cannot be written: {what}; take a snapshot by the database's own tools instead")]
    Unportable { what: String },
    #[error(
        "{} holds {found:?} already; name a directory that is empty or not there yet, an export is never overwritten", directory.display()
    )]
    NotEmpty { directory: PathBuf, found: String },
    #[error(
        "{what}. Identities are given by --identity-file, public keys by --recipient, in a release by spec.snapshot.encryption; nothing was changed"
    )]
    Key { what: String },
    #[error("{} is no portable export: {what}", path.display())]
    NoExport { path: PathBuf, what: &'static str },
    #[error(
        "it is an export of {found}, the database is {wanted}: their digests cannot be compared, so nothing could be proved. Import its main file by itself, unproved, or export from {wanted}"
    )]
    OtherEngine { found: String, wanted: &'static str },
    #[error("{} cannot be read as an export, at row {row}: {what}; nothing was changed, check where the file comes from", path.display())]
    Unreadable { path: PathBuf, row: u64, what: String },
    #[error(
        "the database does not have what the export needs: {what}; nothing was changed. Make the schema first (`python -m memoria.cli init-db`, migrations of the same version)"
    )]
    TargetUnfit { what: String },
    #[error(
        "the imported rows are not the export's: {what}; everything was rolled back, the database is as it was. Keep the export, and import it into an empty database to see which of the two is at fault"
    )]
    ImportParity { what: String },
    #[error("this Job's order cannot be carried out: {what}; operator and Job image must be of the same version")]
    Order { what: String },
}

impl Error {
    pub fn query(doing: impl Into<Cow<'static, str>>) -> impl FnOnce(sqlx::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Query { doing, source }
    }

    /// What a stream of ours gave as its own error stays what it was.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| source.downcast::<Self>().unwrap_or_else(|source| Self::Io { doing, path, source })
    }

    pub fn sqlite(
        doing: impl Into<Cow<'static, str>>,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(rusqlite::Error) -> Self {
        let (doing, path) = (doing.into(), path.into());
        move |source| Self::Sqlite { doing, path, source }
    }

    /// Somebody else has the SQLite file.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Leftover { .. })
            || matches!(self, Self::Sqlite { source, .. } if is_busy(source))
    }

    pub fn category(&self) -> Category {
        match self {
            Self::Connect { source, .. } | Self::Query { source, .. } => {
                if is_transient(source) {
                    Category::Transient
                } else {
                    Category::Environment
                }
            }
            Self::InUse { .. } | Self::Leftover { .. } => Category::Conflict,
            Self::Sqlite { source, .. } if is_busy(source) => Category::Conflict,
            Self::SqliteUrl(_)
            | Self::Sqlite { .. }
            | Self::FileMissing { .. }
            | Self::NotOnClaim { .. }
            | Self::NotUnderstood { .. }
            | Self::DatabaseDamaged { .. }
            | Self::MarkersDamaged { .. } => Category::Environment,
            Self::Locked { .. } | Self::SchemaMoved { .. } | Self::Occupied { .. } | Self::DataMoved { .. } => {
                Category::Conflict
            }
            Self::Order { .. } => Category::Bug,
            Self::Portable(cause) => cause.category(),
            Self::Store(cause) => cause.category(),
            Self::NotEmpty { .. } | Self::NotErasable { .. } => Category::Conflict,
            Self::Uncovered { .. }
            | Self::Unportable { .. }
            | Self::NoExport { .. }
            | Self::Key { .. }
            | Self::OtherEngine { .. }
            | Self::Unreadable { .. }
            | Self::TargetUnfit { .. }
            | Self::ImportParity { .. } => Category::Environment,
            Self::Url(_)
            | Self::WrongDatabase { .. }
            | Self::ToolMissing { .. }
            | Self::Tool { .. }
            | Self::Io { .. }
            | Self::Damaged { .. }
            | Self::Erased { .. }
            | Self::NotRestorable { .. }
            | Self::ForeignDependents { .. }
            | Self::Parity { .. }
            | Self::Scratch { .. } => Category::Environment,
        }
    }

    /// CamelCase, for the report.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Url(_) | Self::SqliteUrl(_) => "DatabaseUrlInvalid",
            Self::InUse { .. } | Self::Leftover { .. } => "DatabaseInUse",
            Self::Sqlite { source, .. } => sqlite_reason(source),
            Self::FileMissing { .. } => "DatabaseFileMissing",
            Self::NotOnClaim { .. } => "DatabaseNotOnClaim",
            Self::NotUnderstood { .. } => "UnknownVirtualTables",
            Self::DatabaseDamaged { .. } => "DatabaseDamaged",
            Self::MarkersDamaged { .. } => "MarkersDamaged",
            Self::Connect { source, .. } if is_transient(source) => "DatabaseUnreachable",
            Self::Connect { .. } => "DatabaseRefused",
            Self::Query { source, .. } if is_transient(source) => "ConnectionLost",
            Self::Query { source, .. } if sqlstate(source).as_deref() == Some("42501") => "PrivilegeMissing",
            Self::Query { .. } => "QueryFailed",
            Self::WrongDatabase { .. } => "WrongDatabase",
            Self::ToolMissing { .. } => "ToolMissing",
            Self::Tool { .. } => "ToolFailed",
            Self::Io { .. } => "StorageFailed",
            Self::Locked { .. } => "Locked",
            Self::SchemaMoved { .. } => "SchemaMoved",
            Self::Damaged { .. } => "SnapshotDamaged",
            Self::Erased { .. } => "SnapshotErased",
            Self::NotErasable { .. } => "NotErasable",
            Self::Occupied { .. } => "SnapshotOccupied",
            Self::NotRestorable { .. } => "SnapshotNotRestorable",
            Self::ForeignDependents { .. } => "ForeignDependents",
            Self::DataMoved { .. } => "DataChangedDuringRestore",
            Self::Parity { .. } => "RestoreParityFailed",
            Self::Scratch { .. } => "ScratchServerFailed",
            Self::Uncovered { .. } => "ExportIncomplete",
            Self::Unportable { .. } => "NotPortable",
            Self::NotEmpty { .. } => "DirectoryNotEmpty",
            Self::NoExport { .. } => "NoExport",
            Self::Key { .. } => "KeyRefused",
            Self::OtherEngine { .. } => "OtherEngine",
            Self::Unreadable { .. } => "ExportUnreadable",
            Self::TargetUnfit { .. } => "TargetUnfit",
            Self::ImportParity { .. } => "ImportParityFailed",
            Self::Order { .. } => "OrderInvalid",
            Self::Portable(cause) => cause.reason(),
            Self::Store(cause) => cause.reason(),
        }
    }

    /// The server's code for what went wrong, where it said one.
    pub(crate) fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Query { source, .. } | Self::Connect { source, .. } => sqlstate(source),
            _ => None,
        }
    }

    /// True when a statement ran into `lock_timeout`.
    pub fn is_lock_timeout(&self) -> bool {
        matches!(self, Self::Query { source, .. } if sqlstate(source).as_deref() == Some("55P03"))
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn sqlite_reason(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "DatabaseInUse",
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => "DatabaseDamaged",
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => "DatabaseRefused",
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => "StorageFailed",
        _ => "QueryFailed",
    }
}

fn sqlite_advice(error: &rusqlite::Error) -> &'static str {
    match sqlite_reason(error) {
        "DatabaseInUse" => "stop whatever has the file open",
        "DatabaseDamaged" => "check that the URL names the right file, and that it is whole",
        "DatabaseRefused" => {
            "the Job's user must be able to write the file and its directory: check owner, mode and fsGroup"
        }
        "StorageFailed" => "check the volume's space and health",
        _ => "nothing was changed by this statement",
    }
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|e| e.code()).map(|code| code.into_owned())
}

/// Connection trouble, a server that starts or stops, a session that somebody ended, a deadlock.
fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        _ => sqlstate(error).is_some_and(|code| {
            code.starts_with("08") || code.starts_with("57P") || code == "53300" || code == "40P01"
        }),
    }
}

fn connect_advice(error: &sqlx::Error) -> &'static str {
    match (is_transient(error), sqlstate(error).as_deref()) {
        (true, _) => "check host, port and network policies; it is tried again",
        (_, Some("28P01" | "28000")) => "correct user and password in the Server's database Secret",
        (_, Some("3D000")) => "correct the database's name in the Server's database Secret",
        (_, Some("42501")) => "grant the Server's role CONNECT on this database",
        _ => "correct the Server's database Secret",
    }
}

fn query_advice(error: &sqlx::Error) -> &'static str {
    match (is_transient(error), sqlstate(error).as_deref()) {
        (true, _) => "the session was lost; it is tried again",
        (_, Some("42501")) => "make the Server's role the owner of that object",
        (_, Some("55P03")) => "end the session that holds the lock",
        (_, Some("53100")) => "free disk space on the database server",
        _ => "nothing was changed by this statement",
    }
}
