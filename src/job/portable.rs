//! The portable export that a snapshot Job keeps beside the exact snapshot: the same rows of the same moment, proved by the
//! same digests. The way back never needs it.

use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tracing::info;

use super::{context::Context, protocol::SnapshotOrder, snapshot::make_directory};
use crate::snapshot::{
    Error, Result,
    digest::DataDigest,
    manifest::{self, MANIFEST, Manifest, PortableExport},
    portable::{
        self, Options, Recipients,
        manifest::{Found, find},
        postgres, silent, sqlite,
    },
    sqlite::DATABASE,
};

/// Below the exact snapshot's.
const DIRECTORY: &str = "portable";

/// Where it is written to, if it is wanted: below the exact snapshot's directory, without what a killed run left there.
fn place(directory: &Path, wanted: bool) -> Result<Option<PathBuf>> {
    let place = directory.join(DIRECTORY);
    portable::discard(&place, Options::default())?;
    if wanted {
        make_directory(&place)?;
    }
    Ok(wanted.then_some(place))
}

/// An export is encrypted as it is written, so that what lies in an archive is what its own manifest tells of.
fn encrypted(recipients: Recipients) -> Options {
    Options { recipients, ..Options::default() }
}

/// Exports a PostgreSQL database as the exported snapshot shows it; `known` brings the digests that the server computes.
pub(super) async fn of_postgres(
    context: &Context,
    order: &SnapshotOrder,
    (directory, snapshot, application): (&Path, &str, &str),
    known: watch::Receiver<Option<DataDigest>>,
) -> Result<Option<PortableExport>> {
    let exported = async {
        let Some(place) = place(directory, order.portable)? else { return Ok(None) };
        let request = postgres::Export {
            url: context.url()?,
            application,
            directory: &place,
            options: encrypted(context.archive.recipients()),
            snapshot: Some(snapshot),
            digests: postgres::Digests::Known(known),
            progress: silent(),
        };
        postgres::export(&request).await?;
        read_back(&place).map(Some)
    };
    exported.await.map_err(|error| Error::Portable(Box::new(error)))
}

/// Exports the copy of an SQLite file that lies in storage, which must hold exactly this.
pub(super) fn of_sqlite(
    wanted: bool,
    recipients: Recipients,
    directory: &Path,
    data: &DataDigest,
) -> Result<Option<PortableExport>> {
    let exported = || {
        let Some(place) = place(directory, wanted)? else { return Ok(None) };
        let request = sqlite::Export {
            database: &directory.join(DATABASE),
            copy: true,
            directory: &place,
            options: encrypted(recipients),
            progress: silent(),
        };
        if sqlite::export(&request)?.data() != *data {
            return Err(Error::Order { what: "the rows as they were written are not those of the copy".to_owned() });
        }
        read_back(&place).map(Some)
    };
    exported().map_err(|error| Error::Portable(Box::new(error)))
}

/// What lies in storage, every byte of it.
fn read_back(place: &Path) -> Result<PortableExport> {
    let damaged = || Error::Damaged { directory: place.to_owned(), what: "it is no finished export".to_owned() };
    let Found::Portable(found) = find(place)? else { return Err(damaged()) };
    manifest::verify_stored(place, &found.files)?;
    let own = place.join(MANIFEST);
    let own = manifest::hash_file(&own).map_err(Error::io("reading back", &own))?;
    let bytes = own.bytes + found.files.values().map(|file| file.bytes).sum::<u64>();
    info!(bytes, tables = found.tables.len(), "the portable export was read back");
    Ok(PortableExport { directory: DIRECTORY.to_owned(), bytes, manifest_sha256: own.sha256 })
}

/// Reads the export of a snapshot that is whole already once more.
pub(super) fn verify(directory: &Path, manifest: &Manifest) -> Result<()> {
    let Some(expected) = &manifest.portable else { return Ok(()) };
    let place = directory.join(&expected.directory);
    if read_back(&place)? == *expected {
        return Ok(());
    }
    let what = format!("{MANIFEST} is not the one that the snapshot's names");
    Err(Error::Damaged { directory: place, what })
}
