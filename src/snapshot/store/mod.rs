//! Where exports are kept: a directory, or the objects below a prefix of S3-compatible storage. Both in one way: files are
//! written once, read as streams and removed by name. What is here blocks, so it is called where a thread may wait.

mod error;
pub mod s3;
mod upload;

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use super::{
    Error, Result, hex,
    manifest::{MANIFEST, StoredFile, TEMPORARY, hash_file, write_once},
};
use upload::Upload;

pub use error::{Kind, StoreError};
pub use s3::Prefix;
pub use upload::{SUFFIX as UPLOAD, Unfinished};

/// A place that holds one export, or others below it.
#[derive(Clone, Debug)]
pub enum Place {
    Directory(PathBuf),
    Bucket(Prefix),
}

/// What names a place; a path does, too.
pub trait ToPlace: Sync {
    fn to_place(&self) -> Place;
}

impl ToPlace for Place {
    fn to_place(&self) -> Place {
        self.clone()
    }
}

impl ToPlace for Path {
    fn to_place(&self) -> Place {
        Place::Directory(self.to_owned())
    }
}

impl ToPlace for PathBuf {
    fn to_place(&self) -> Place {
        Place::Directory(self.clone())
    }
}

/// By name, as it is shown.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Place {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name().display())
    }
}

impl serde::Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What lies directly in a place.
#[derive(Debug, Default)]
pub struct Entries {
    pub files: Vec<String>,
    /// Directories that are no links, or whatever else has names below it.
    pub places: Vec<String>,
}

impl Place {
    /// From what people write: a path, or `s3://bucket/prefix`. Must be called within the runtime, which then carries the
    /// requests; `part_mib` lies within [`s3::PART_MIB`].
    pub fn named(name: &Path, part_mib: u32) -> Result<Self> {
        match name.to_str().filter(|text| text.starts_with(s3::SCHEME)) {
            None => Ok(Self::Directory(name.to_owned())),
            Some(url) => Ok(Self::Bucket(Prefix::new(url, part_mib, Handle::current())?)),
        }
    }

    /// As errors and results name it: a path, or `s3://bucket/prefix`.
    pub fn name(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::Bucket(prefix) => prefix.to_string().into(),
        }
    }

    /// How a file in it is named.
    pub fn file(&self, name: &str) -> PathBuf {
        self.name().join(name)
    }

    /// A place directly below.
    pub fn below(&self, name: &str) -> Self {
        match self {
            Self::Directory(path) => Self::Directory(path.join(name)),
            Self::Bucket(prefix) => Self::Bucket(prefix.below(name)),
        }
    }

    /// The place that it lies in.
    pub fn above(&self) -> Option<Self> {
        match self {
            Self::Directory(path) => path.parent().map(|path| Self::Directory(path.to_owned())),
            Self::Bucket(prefix) => prefix.above().map(Self::Bucket),
        }
    }

    /// The place and name of the file that this names, if it is one and no place.
    pub fn as_file(&self) -> Result<Option<(Self, String)>> {
        match self {
            Self::Directory(path) => {
                let is_file = fs::metadata(path).map_err(Error::io("looking at", path))?.is_file();
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                Ok(self.above().zip(name).filter(|_| is_file))
            }
            Self::Bucket(prefix) => {
                let Some((above, name)) = prefix.above().zip(prefix.last()) else { return Ok(None) };
                // An object and a prefix may have one name; what has a manifest below is meant as a place.
                let is_file = prefix.read(MANIFEST)?.is_none() && above.entries()?.files.contains(&name);
                Ok(is_file.then(|| (Self::Bucket(above), name)))
            }
        }
    }

    /// Tries whether a bucket takes, gives and lets go of an object, before anything long begins. What a directory takes
    /// shows soon enough.
    pub fn try_writing(&self) -> Result<()> {
        match self {
            Self::Directory(_) => Ok(()),
            Self::Bucket(prefix) => Ok(prefix.probe()?),
        }
    }

    /// Makes the directory, for its owner alone. A prefix is there as soon as something lies below it.
    pub fn make(&self) -> Result<()> {
        match self {
            Self::Directory(path) => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
                made.map_err(Error::io("making", path))
            }
            Self::Bucket(_) => Ok(()),
        }
    }

    pub fn entries(&self) -> Result<Entries> {
        match self {
            Self::Directory(path) => {
                let mut found = Entries::default();
                for entry in fs::read_dir(path).map_err(Error::io("looking into", path))? {
                    let entry = entry.map_err(Error::io("looking into", path))?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    // A link is not followed: what it leads to lies elsewhere.
                    let is_place = entry.file_type().is_ok_and(|kind| kind.is_dir());
                    if is_place { &mut found.places } else { &mut found.files }.push(name);
                }
                Ok(found)
            }
            Self::Bucket(prefix) => Ok(prefix.entries()?),
        }
    }

    /// The same; nothing where there is no directory yet.
    pub fn entries_if_there(&self) -> Result<Entries> {
        match self {
            Self::Directory(path) if !path.try_exists().map_err(Error::io("looking for", path))? => {
                Ok(Entries::default())
            }
            place => place.entries(),
        }
    }

    /// Begins a file, readable by its owner alone: it holds people's data.
    pub fn create(&self, name: &str) -> Result<Output> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                let file = file.map_err(Error::io("making", path))?;
                Ok(Output::File(BufWriter::with_capacity(256 * 1024, file)))
            }
            Self::Bucket(prefix) => Ok(Output::Object(Upload::new(prefix.clone(), name))),
        }
    }

    /// Writes a small file whole or not at all, and never over another.
    pub fn write_once(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Directory(directory) => write_once(directory, name, bytes),
            Self::Bucket(prefix) => Ok(prefix.write_once(name, bytes)?),
        }
    }

    /// Opens a file for reading, as it lies there.
    pub fn open(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                Ok(Box::new(File::open(&path).map_err(Error::io("opening", path))?))
            }
            Self::Bucket(prefix) => Ok(Box::new(prefix.open(name)?)),
        }
    }

    /// Reads a small file whole; `None` where there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                match fs::read(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    other => other.map(Some).map_err(Error::io("reading", path)),
                }
            }
            Self::Bucket(prefix) => Ok(prefix.read(name)?),
        }
    }

    /// Size and SHA-256 of a file, read back from where it lies, in constant memory.
    pub fn hash(&self, name: &str) -> Result<StoredFile> {
        let path = self.file(name);
        let failed = |error| Error::io("reading back", &path)(error);
        let Self::Bucket(prefix) = self else { return hash_file(&path).map_err(failed) };
        let (mut object, mut out) = (prefix.open(name)?, Hashing::new(io::sink()));
        io::copy(&mut object, &mut out).map_err(failed)?;
        Ok(out.finish().1)
    }

    /// Removes files of these names, in this order, as far as they are there.
    pub fn remove(&self, names: &[String]) -> Result<()> {
        for name in names {
            match self {
                Self::Directory(directory) => {
                    let path = directory.join(name);
                    match fs::remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            return Err(Error::io("removing", path)(error));
                        }
                        _ => {}
                    }
                }
                Self::Bucket(prefix) => prefix.remove(name)?,
            }
        }
        Ok(())
    }

    /// Removes the directory, if nothing is left in it.
    pub fn remove_empty(&self) -> Result<()> {
        let Self::Directory(path) = self else { return Ok(()) };
        match fs::remove_dir(path) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                Err(Error::io("removing", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Uploads that began here and had no end, by these of its files; a directory knows none.
    pub fn unfinished(&self, files: &[String]) -> Result<Vec<Unfinished>> {
        match self {
            Self::Directory(_) => Ok(Vec::new()),
            Self::Bucket(prefix) => Ok(upload::unfinished(prefix, files)?),
        }
    }

    /// What an export without an end may leave besides its files, given their names.
    pub fn traces(&self, files: &[String]) -> Vec<String> {
        match self {
            Self::Directory(_) => files.iter().map(|name| format!("{name}{TEMPORARY}")).collect(),
            Self::Bucket(_) => files.iter().map(|name| upload::journal(name)).chain([s3::PROBE.to_owned()]).collect(),
        }
    }
}

/// A file that is being written. Dropped before [`Output::finish`], an object never comes to be.
#[derive(Debug)]
pub enum Output {
    File(BufWriter<File>),
    Object(Upload),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Object(upload) => upload.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Object(_) => Ok(()),
        }
    }
}

impl Output {
    /// Waits until all of it is where it stays.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::File(file) => file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all(),
            Self::Object(upload) => upload.finish().map_err(io::Error::other),
        }
    }
}

/// Hashes and counts what goes through it.
#[derive(Debug)]
pub struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    pub fn finish(self) -> (W, StoredFile) {
        (self.inner, StoredFile { bytes: self.bytes, sha256: hex(&self.hash.finalize()) })
    }
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
