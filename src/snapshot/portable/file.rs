//! The files of an export: written once, compressed and hashed on a thread of their own, and read again.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use serde::{Deserialize, Serialize};

use super::{
    Options,
    encryption::{self, Keys},
};
use crate::snapshot::{
    Error, Result,
    manifest::StoredFile,
    store::{Hashing, Output, Place},
};

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
    whole: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<StoredFile>>>,
}

impl FileWriter {
    /// Makes a new file. `held` is dropped when the thread is done with it, however it ends.
    pub fn create(place: &Place, name: &str, options: &Options, held: impl Send + 'static) -> Result<Self> {
        let (out, path) = (place.create(name)?, place.file(name));
        let (pieces, received) = sync_channel(WAITING);
        let whole = Arc::new(AtomicBool::new(false));
        let writing = Writing { pieces: received, whole: whole.clone(), options: options.clone() };
        let thread = std::thread::Builder::new()
            .name("artifact".to_owned())
            .spawn({
                let path = path.clone();
                move || {
                    let written = writing.run(out).map_err(Error::io("writing", &path));
                    drop(held);
                    written
                }
            })
            .map_err(Error::io("starting a thread for", &path))?;
        Ok(Self { pieces, whole, thread })
    }

    /// Blocks while the storage is behind. After a failure nothing is taken any more; [`FileWriter::end`] says why.
    pub fn write(&self, piece: Vec<u8>) -> bool {
        piece.is_empty() || self.pieces.send(piece).is_ok()
    }

    /// Hands pieces on as this does, from another thread.
    pub fn pieces(&self) -> SyncSender<Vec<u8>> {
        self.pieces.clone()
    }

    /// Waits until all is where it stays, if all was `written`; gives what lies there. What the storage said comes first: it
    /// may be why the rest went wrong.
    pub fn end<T>(self, written: Result<T>) -> Result<(StoredFile, T)> {
        self.whole.store(written.is_ok(), Ordering::Release);
        drop(self.pieces);
        let lost = || Error::Order { what: "the thread that writes the file ended without an answer".to_owned() };
        let stored = self.thread.join().map_err(|_| lost())??;
        let written = written?;
        Ok((stored.ok_or_else(lost)?, written))
    }
}

/// What the thread works on.
struct Writing {
    pieces: Receiver<Vec<u8>>,
    /// All of it was handed over, once there are no more pieces.
    whole: Arc<AtomicBool>,
    options: Options,
}

impl Writing {
    fn run(self, out: Output) -> io::Result<Option<StoredFile>> {
        let mut out = self.options.recipients.seal(Hashing::new(out))?;
        match self.options.compression {
            Compression::None => self.copy(&mut out)?,
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, LEVEL)?;
                encoder.include_checksum(true)?;
                self.copy(&mut encoder)?;
                out = encoder.finish()?;
            }
        }
        // What nobody calls whole is let go of.
        if !self.whole.load(Ordering::Acquire) {
            return Ok(None);
        }
        let (out, stored) = out.finish()?.finish();
        out.finish()?;
        Ok(Some(stored))
    }

    fn copy(&self, out: &mut impl Write) -> io::Result<()> {
        self.pieces.iter().try_for_each(|piece| out.write_all(&piece))
    }
}

/// A file with rows.
#[derive(Clone, Debug)]
pub struct Input {
    pub place: Place,
    pub name: String,
    /// What it is read with, should it be encrypted.
    pub keys: Keys,
}

impl Input {
    /// As errors name it.
    pub fn path(&self) -> PathBuf {
        self.place.file(&self.name)
    }

    /// Opens it for reading, decrypted if it is age's, and decompressed if it is zstd's.
    pub fn open(&self) -> Result<Box<dyn Read + Send>> {
        let failed = |error| Error::io("opening", self.path())(error);
        let (encrypted, file) = begins_with(encryption::MAGIC, self.place.open(&self.name)?).map_err(failed)?;
        let file = if encrypted { self.keys.unseal((&self.place, &self.name), file)? } else { file };
        let (compressed, file) = begins_with(&MAGIC, file).map_err(failed)?;
        Ok(if compressed { Box::new(zstd::Decoder::new(file).map_err(failed)?) } else { file })
    }
}

/// Whether these bytes are its first; it is given back whole.
fn begins_with(magic: &[u8], mut file: Box<dyn Read + Send>) -> io::Result<(bool, Box<dyn Read + Send>)> {
    let mut beginning = Vec::with_capacity(magic.len());
    file.by_ref().take(magic.len() as u64).read_to_end(&mut beginning)?;
    Ok((beginning == magic, Box::new(io::Cursor::new(beginning).chain(file))))
}
