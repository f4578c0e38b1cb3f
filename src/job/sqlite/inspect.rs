//! PreFlight while the Server runs: size, space, permissions and what an upgrade cannot handle. The database is only
//! stat'ed: opening and closing it here could disturb nobody, but a check of it would read a moving file. Its schema alone is
//! read, where a release names tables.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::fs::{Access, access};

use super::{
    super::{
        context::Context,
        protocol::{Facts, InspectFacts, InspectOrder, JobReport},
        report,
    },
    place::Place,
};
use crate::{
    api::{
        release::{CheckResult, Verdict},
        upgrade::Engine,
    },
    snapshot::{
        Error, Result,
        late::carry::{self, Found},
        sqlite::{self, beside, markers::Markers, schema},
    },
};

/// File systems of the network and of other machines, by the number that statfs gives: one kernel's locks, on which every
/// proof here rests, do not hold on them for all.
const NETWORK: &[(u64, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xfe53_4d42, "SMB2"),
    (0xff53_4d42, "CIFS"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "CephFS"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x786f_4256, "VirtualBox's shared folders"),
    (0x7461_636f, "OCFS2"),
    (0x0116_1970, "GFS2"),
];

pub async fn run(context: &Context, order: &InspectOrder) -> Result<JobReport> {
    let (place, carry_forward) = (Place::of(context, &order.database)?, order.carry_forward.clone());
    sqlite::blocking(move || inspect(&place, &carry_forward)).await
}

fn inspect(place: &Place, carry_forward: &[String]) -> Result<JobReport> {
    let path = &place.path;
    let mut findings = Vec::new();
    let wal = fs::symlink_metadata(beside(path, "-wal")).map_or(0, |wal| wal.len());
    let found = match fs::symlink_metadata(path) {
        Ok(found) => Some(found),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(error) => return Err(Error::io("looking at", path)(error)),
    };
    let bytes = found.as_ref().map_or(0, Metadata::len).saturating_add(wal);
    let mut failed = |name: &str, message: String| {
        findings.push(CheckResult { name: name.to_owned(), result: Verdict::Failed, message });
    };
    match &found {
        None => failed("DatabaseFile", Error::FileMissing { path: path.clone() }.to_string()),
        Some(found) => {
            if let Some(message) = odd(place, found)? {
                failed("DatabaseFile", message);
            }
            if let Some(message) = permissions(place) {
                failed("DatabasePermissions", message);
            }
            let (kind, free) = file_system(place.directory())?;
            if let Some((_, name)) = NETWORK.iter().find(|(number, _)| *number == kind) {
                let message = format!(
                    "the volume of claim {} is {name}, where SQLite's locks prove nothing; move the database to a block \
                     volume, or to PostgreSQL",
                    place.volume.claim_name
                );
                failed("DataFileSystem", message);
            }
            let needed = bytes.saturating_mul(2);
            if free < needed {
                let message = format!(
                    "the volume of claim {} has {free} bytes free, {needed} are needed for a second copy beside the \
                     database while it is taken back; enlarge the claim",
                    place.volume.claim_name
                );
                failed("DataVolumeSpace", message);
            }
        }
    }
    if findings.is_empty() {
        findings.extend(never_carried(path, carry_forward));
    }
    let markers = Markers::read(path)?.all().into_iter();
    let unfinished: Vec<_> = markers.filter(|marker| !marker.finished).map(|marker| marker.attempt).collect();
    let message = format!(
        "SQLite file {} on claim {}, {bytes} bytes, {} findings",
        path.display(),
        place.volume.claim_name,
        findings.len()
    );
    let facts = InspectFacts {
        major: 3,
        server_version: "SQLite".to_owned(),
        identity: place.identity(),
        bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        tables: 0,
        findings,
        unfinished,
        engine: Engine::Sqlite,
        data_volume: Some(place.volume.clone()),
        path: Some(path.to_string_lossy().into_owned()),
    };
    Ok(report::done(message, Facts::Inspect(facts)))
}

/// Tables that a restore could never carry forward. Only for them the file is opened, as any reader does it.
fn never_carried(path: &Path, names: &[String]) -> Option<CheckResult> {
    if names.is_empty() {
        return None;
    }
    let (result, message) = match sqlite::open_beside(path).and_then(|connection| schema::read(&connection, path)) {
        Ok(schema) => {
            let find = |name: &str| {
                let (_, table) = schema.tables.iter().find(|(table, _)| carry::means_in_file(name, table))?;
                Some(Found { has_rows: true, primary_key: &table.primary_key })
            };
            (Verdict::Failed, carry::obstacles(names, find)?)
        }
        Err(error) => {
            let message = format!("the tables of spec.rollback.carryForward could not be looked for: {error}");
            (Verdict::Inconclusive, message)
        }
    };
    Some(CheckResult { name: carry::CHECK.to_owned(), result, message })
}

/// What is no plain file with one name.
fn odd(place: &Place, found: &Metadata) -> Result<Option<String>> {
    let path = &place.path;
    let mount = Path::new(&place.volume.mount_path);
    let real = |path: &Path| fs::canonicalize(path).map_err(Error::io("resolving", path));
    let below = path.strip_prefix(mount).unwrap_or(path);
    if found.is_symlink() || real(mount)?.join(below) != real(path)? {
        return Ok(Some(format!(
            "{} is or goes through a symbolic link to {}, and a file swapped in would take the link's place; name the file \
             itself in the Server's database URL",
            path.display(),
            real(path)?.display()
        )));
    }
    if !found.is_file() {
        return Ok(Some(format!("{} is no file; correct the path in the Server's database URL", path.display())));
    }
    if found.nlink() > 1 {
        return Ok(Some(format!(
            "{} has {} names (hard links), and a file swapped in would have one; remove the others",
            path.display(),
            found.nlink()
        )));
    }
    Ok(None)
}

fn permissions(place: &Place) -> Option<String> {
    let refused: Vec<_> = [
        (place.path.as_path(), Access::READ_OK | Access::WRITE_OK),
        (place.directory(), Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK),
    ]
    .into_iter()
    .filter(|(path, wanted)| access(*path, *wanted).is_err())
    .map(|(path, _)| path.display().to_string())
    .collect();
    if refused.is_empty() {
        return None;
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Some(format!(
        "user {uid}, group {gid} of the Jobs may not read and write {}; set runAsUser, runAsGroup and fsGroup of the \
         Server's pod to the file's owner",
        refused.join(" and ")
    ))
}

/// The file system's number and the bytes free for us.
fn file_system(directory: &Path) -> Result<(u64, u64)> {
    let kind = rustix::fs::statfs(directory).map_err(|error| Error::io("measuring", directory)(error.into()))?;
    let space = rustix::fs::statvfs(directory).map_err(|error| Error::io("measuring", directory)(error.into()))?;
    // Signed on some machines; the numbers have 32 bits.
    let number = u64::try_from(i128::from(kind.f_type) & 0xffff_ffff).unwrap_or_default();
    Ok((number, space.f_bavail.saturating_mul(space.f_frsize)))
}
