//! The files of an export: written once, compressed and hashed on a thread of their own, forced to disk at the end.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::snapshot::{Error, Result, hex, manifest::StoredFile};

/// How the files are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Compression {
    /// As they are: Memoria's own import reads them directly
    None,
    /// zstd; `zstd -d` gives what Memoria's own import reads
    #[default]
    Zstd,
}

impl Compression {
    /// What stands behind a file's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Zstd => ".zst",
        }
    }
}

/// Like `pg_dump` of an exact snapshot: writers may be stopped meanwhile, and what is saved by more effort is little.
const LEVEL: i32 = 1;
/// Pieces that may wait for the disk.
const WAITING: usize = 2;
/// A zstd frame begins so.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Hands pieces to the thread that writes them.
#[derive(Debug)]
pub struct FileWriter {
    pieces: SyncSender<Vec<u8>>,
    thread: JoinHandle<Result<StoredFile>>,
}

impl FileWriter {
    /// Makes a new file, readable by its owner alone: it holds people's data.
    pub fn create(path: &Path, compression: Compression) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::io("making", path))?;
        let (pieces, received) = sync_channel(WAITING);
        let path = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("artifact".to_owned())
            .spawn({
                let path = path.clone();
                move || write_all(&received, file, compression).map_err(Error::io("writing", &path))
            })
            .map_err(Error::io("starting a thread for", &path))?;
        Ok(Self { pieces, thread })
    }

    /// Blocks while the disk is behind. After a failure nothing is taken any more; [`FileWriter::finish`] says why.
    pub fn write(&self, piece: Vec<u8>) -> bool {
        piece.is_empty() || self.pieces.send(piece).is_ok()
    }

    /// Hands pieces on as this does, from another thread.
    pub fn pieces(&self) -> SyncSender<Vec<u8>> {
        self.pieces.clone()
    }

    /// Waits until all is on disk; gives what lies there.
    pub fn finish(self) -> Result<StoredFile> {
        drop(self.pieces);
        let ended = self.thread.join();
        ended
            .map_err(|_| Error::Order { what: "the thread that writes the file ended without an answer".to_owned() })?
    }
}

fn write_all(pieces: &Receiver<Vec<u8>>, file: File, compression: Compression) -> io::Result<StoredFile> {
    let mut out = Hashing { inner: BufWriter::with_capacity(256 * 1024, file), hash: Sha256::new(), bytes: 0 };
    match compression {
        Compression::None => {
            for piece in pieces {
                out.write_all(&piece)?;
            }
        }
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(out, LEVEL)?;
            encoder.include_checksum(true)?;
            for piece in pieces {
                encoder.write_all(&piece)?;
            }
            out = encoder.finish()?;
        }
    }
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(StoredFile { bytes: out.bytes, sha256: hex(&out.hash.finalize()) })
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(buffer.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens a file for reading, decompressed if it is zstd's.
pub fn open(path: &Path) -> Result<Box<dyn Read + Send>> {
    let failed = |error| Error::io("opening", path)(error);
    let mut file = File::open(path).map_err(failed)?;
    let mut beginning = Vec::with_capacity(MAGIC.len());
    Read::by_ref(&mut file).take(MAGIC.len() as u64).read_to_end(&mut beginning).map_err(failed)?;
    let compressed = beginning == MAGIC;
    let whole = io::Cursor::new(beginning).chain(file);
    Ok(if compressed { Box::new(zstd::Decoder::new(whole).map_err(failed)?) } else { Box::new(whole) })
}

/// Removes files that a run without an end left, of these names only.
pub fn clear(directory: &Path, names: &[String]) -> Result<()> {
    for name in names {
        let path: PathBuf = directory.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", &path)(error)),
            _ => {}
        }
    }
    Ok(())
}
