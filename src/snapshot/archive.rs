//! Where a Job's files stay when that is not the directory that it works in: objects in a bucket, and files of either place
//! that are encrypted by [age](https://age-encryption.org/v1). Brought before the work and kept after it, each read back;
//! what tells of others comes last, so what was kept in part is as if it were not there.
//!
//! What is here blocks, so it is called where a thread may wait.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tracing::info;

use super::{
    Error, Result,
    erase::{self, ERASED},
    late::{BASELINE, LATE},
    manifest::{self, MANIFEST, REFERENCE, RESCUE, SCHEMA, StoredFile, TEMPORARY, hash_file, sync_directory},
    portable::{
        Keys, Recipients,
        encryption::SUFFIX,
        manifest::{Found, find},
    },
    sqlite::beside,
    store::{
        Entries, Hashing, Place, UPLOAD,
        s3::{DEFAULT_PART_MIB, PROBE},
    },
};

/// What names the place in a Job's environment: `s3://bucket/prefix`, or a directory.
pub const ARCHIVE_ENV: &str = "MEMORIA_OPERATOR_ARCHIVE";
/// Names a file with public keys of age: what is kept is encrypted to them.
pub const RECIPIENTS_FILE_ENV: &str = "MEMORIA_OPERATOR_RECIPIENTS_FILE";
/// Names a file with identities of age: what is kept encrypted is read with them.
pub const IDENTITY_FILE_ENV: &str = "MEMORIA_OPERATOR_IDENTITY_FILE";

/// These hold names, counts and hashes, and no value of a row, neither a key. They stay readable, so that whoever has no identity
/// sees what is there.
const NOTES: [&str; 7] = [MANIFEST, BASELINE, SCHEMA, REFERENCE, RESCUE, LATE, ERASED];
/// One of these stands for all that lies beside it, and is kept last.
const CLOSING: [&str; 2] = [MANIFEST, BASELINE];

/// How much of a directory is brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What is never encrypted.
    Notes,
    /// All that lies directly in it.
    Files,
    /// What lies below it, too.
    All,
}

/// What was brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Brought {
    pub files: u64,
    /// Their sizes together, decrypted.
    pub bytes: u64,
}

/// A Job's directory, and where its files stay, if that is elsewhere.
#[derive(Clone, Debug)]
pub struct Archive {
    workplace: PathBuf,
    kept: Option<Arc<Kept>>,
}

#[derive(Debug)]
struct Kept {
    place: Place,
    recipients: Recipients,
    keys: Keys,
    /// The hash, as it is in the workplace, of every file that is known to lie there just so.
    known: Mutex<BTreeMap<PathBuf, String>>,
}

impl Archive {
    /// Files stay where they are made.
    pub fn none(workplace: &Path) -> Self {
        Self { workplace: workplace.to_owned(), kept: None }
    }

    pub fn new(workplace: &Path, place: Place, recipients: Recipients, keys: Keys) -> Self {
        let kept = Kept { place, recipients, keys, known: Mutex::default() };
        Self { workplace: workplace.to_owned(), kept: Some(Arc::new(kept)) }
    }

    /// As a Job's environment says. Must be called within the runtime.
    pub fn from_environment(workplace: &Path) -> Result<Self> {
        let Some(place) = env::var_os(ARCHIVE_ENV) else { return Ok(Self::none(workplace)) };
        let file = |name| env::var_os(name).map(PathBuf::from);
        let recipients = match file(RECIPIENTS_FILE_ENV) {
            Some(path) => Recipients::read(&[], Some(&path))?,
            None => Recipients::NONE,
        };
        let keys = file(IDENTITY_FILE_ENV).map(|path| Keys::read(&path)).transpose()?.unwrap_or_default();
        Ok(Self::new(workplace, Place::named(Path::new(&place), DEFAULT_PART_MIB)?, recipients, keys))
    }

    /// Who may read what is kept; nobody in particular where files stay as they are.
    pub fn recipients(&self) -> Recipients {
        self.kept.as_ref().map(|kept| kept.recipients.clone()).unwrap_or_default()
    }

    /// Where files stay, if that is not the workplace.
    pub fn place(&self) -> Option<&Place> {
        self.kept.as_ref().map(|kept| &kept.place)
    }

    /// Where a directory stays.
    pub fn stays(&self, directory: &str) -> Place {
        match &self.kept {
            None => Place::Directory(self.workplace.join(directory)),
            Some(kept) => kept.at(directory),
        }
    }

    /// Tries, before anything long begins, whether the place takes and gives files, and whether what is encrypted there can
    /// be read again.
    pub fn try_out(&self) -> Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        kept.place.try_writing()?;
        kept.keys.try_out(&kept.recipients)
    }

    /// Brings what is kept of a directory into the workplace. A file without the one that stands for it is not brought:
    /// whoever kept it came to no end.
    pub fn bring(&self, directory: &str, part: Part) -> Result<Brought> {
        let Some(kept) = &self.kept else { return Ok(Brought::default()) };
        let mut brought = Brought::default();
        kept.bring(&kept.at(directory), &self.workplace.join(directory), part, &mut brought)?;
        if brought.files > 0 {
            info!(directory, files = brought.files, bytes = brought.bytes, from = %kept.place, "brought");
        }
        Ok(brought)
    }

    /// Keeps what the workplace has of a directory and what lies below it, as far as it is not kept yet, and reads it back.
    pub fn keep(&self, directory: &str) -> Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        kept.keep(&kept.at(directory), &self.workplace.join(directory))
    }

    /// Reads these files of a directory back from where they stay. They need not have been brought.
    pub fn verify(&self, directory: &str, files: &BTreeMap<String, StoredFile>) -> Result<()> {
        match &self.kept {
            None => manifest::verify_stored(&self.workplace.join(directory), files),
            Some(kept) => {
                let place = kept.at(directory);
                erase::refuse(&place)?;
                files.iter().try_for_each(|(name, file)| kept.read_back(&place, name, file))
            }
        }
    }
}

impl Kept {
    fn at(&self, directory: &str) -> Place {
        directory.split('/').filter(|part| !part.is_empty()).fold(self.place.clone(), |place, part| place.below(part))
    }

    /// The name by which a file of the workplace is kept. An export that is encrypted already stays as it is.
    fn name(&self, name: &str) -> String {
        let open = self.recipients.is_empty() || NOTES.contains(&name) || name.ends_with(SUFFIX);
        if open { name.to_owned() } else { format!("{name}{SUFFIX}") }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<PathBuf, String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bring(&self, place: &Place, to: &Path, part: Part, brought: &mut Brought) -> Result<()> {
        let Entries { files, places } = place.entries_if_there()?;
        let closed = files.iter().any(|name| CLOSING.contains(&name.as_str()));
        // Its own commands read an encrypted export.
        let exported = matches!(find(place)?, Found::Portable(_));
        for name in files.iter().filter(|name| !is_trace(name)) {
            let is_note = NOTES.contains(&name.as_str());
            if is_note || (closed && part != Part::Notes) {
                let plain = if exported { name } else { name.strip_suffix(SUFFIX).unwrap_or(name) };
                let found = self.bring_file((place, name), &to.join(plain), plain != name)?;
                brought.files += 1;
                brought.bytes += found.bytes;
                self.known().insert(place.file(plain), found.sha256);
            }
        }
        for name in places.iter().filter(|_| part == Part::All) {
            self.bring(&place.below(name), &to.join(name), part, brought)?;
        }
        Ok(())
    }

    fn bring_file(&self, (place, name): (&Place, &str), to: &Path, sealed: bool) -> Result<StoredFile> {
        if let Some(parent) = to.parent() {
            make_directory(parent)?;
        }
        // A container that is restarted in the middle must not take half a file for a whole one.
        let temporary = beside(to, TEMPORARY);
        let failed = || Error::io("writing", &temporary);
        let mut input = self.open(place, name, sealed)?;
        let _ = fs::remove_file(&temporary);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed())?;
        let mut out = Hashing::new(BufWriter::with_capacity(256 * 1024, file));
        io::copy(&mut input, &mut out).map_err(Error::io("bringing", place.file(name)))?;
        let (writer, found) = out.finish();
        writer.into_inner().map_err(io::IntoInnerError::into_error).map_err(failed())?;
        fs::rename(&temporary, to).map_err(failed())?;
        Ok(found)
    }

    fn open(&self, place: &Place, name: &str, sealed: bool) -> Result<Box<dyn Read + Send>> {
        let file = place.open(name)?;
        if sealed { self.keys.unseal((place, name), file) } else { Ok(file) }
    }

    fn keep(&self, place: &Place, from: &Path) -> Result<()> {
        let Entries { mut files, places } = Place::Directory(from.to_owned()).entries()?;
        for name in &places {
            self.keep(&place.below(name), &from.join(name))?;
        }
        files.retain(|name| !is_trace(name));
        files.sort_by_key(|name| (CLOSING.contains(&name.as_str()), NOTES.contains(&name.as_str()), name.clone()));
        if let Place::Directory(path) = place {
            make_directory(path)?;
        }
        let there = place.entries_if_there()?.files;
        let others = |name: &&String| {
            CLOSING.contains(&name.as_str()) && there.contains(name) && !self.known().contains_key(&place.file(name))
        };
        if let Some(name) = files.iter().find(others) {
            return Err(Error::Occupied {
                directory: place.name(),
                expected: "this pod".to_owned(),
                found: format!("another one, which kept {name} first"),
            });
        }
        files.iter().try_for_each(|name| self.keep_file(place, (from, name), &there))
    }

    fn keep_file(&self, place: &Place, (from, name): (&Path, &str), there: &[String]) -> Result<()> {
        let path = from.join(name);
        let plain = hash_file(&path).map_err(Error::io("reading", &path))?;
        if self.known().get(&place.file(name)) == Some(&plain.sha256) {
            return Ok(());
        }
        let kept = self.name(name);
        if there.contains(&kept) {
            // What an earlier pod left unfinished, or what the work has changed since.
            place.remove(std::slice::from_ref(&kept))?;
        }
        let failed = || Error::io("keeping", place.file(&kept));
        if NOTES.contains(&name) {
            place.write_once(&kept, &fs::read(&path).map_err(Error::io("reading", &path))?)?;
        } else {
            let out = place.create(&kept)?;
            let mut file = File::open(&path).map_err(Error::io("reading", &path))?;
            if kept == name {
                let mut out = out;
                io::copy(&mut file, &mut out).and_then(|_| out.finish()).map_err(failed())?;
            } else {
                let mut sealing = self.recipients.seal(out).map_err(failed())?;
                io::copy(&mut file, &mut sealing).map_err(failed())?;
                sealing.finish().and_then(|out| out.finish()).map_err(failed())?;
            }
            if let Place::Directory(directory) = place {
                sync_directory(directory)?;
            }
        }
        self.read_back(place, name, &plain)?;
        info!(file = %place.file(&kept).display(), bytes = plain.bytes, "kept, and read back");
        self.known().insert(place.file(name), plain.sha256);
        Ok(())
    }

    /// Compares a kept file, decrypted where it was encrypted here, with what it was in the workplace.
    fn read_back(&self, place: &Place, name: &str, expected: &StoredFile) -> Result<()> {
        let (kept, mut out) = (self.name(name), Hashing::new(io::sink()));
        let path = place.file(&kept);
        io::copy(&mut self.open(place, &kept, kept != name)?, &mut out).map_err(Error::io("reading back", &path))?;
        let found = out.finish().1;
        if found == *expected {
            return Ok(());
        }
        let what = format!("{kept} has {} bytes or another hash, written were {}", found.bytes, expected.bytes);
        Err(Error::Damaged { directory: place.name(), what })
    }
}

/// What an unfinished write leaves.
fn is_trace(name: &str) -> bool {
    name.ends_with(TEMPORARY) || name.ends_with(UPLOAD) || name == PROBE
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o770).create(path).map_err(Error::io("making", path))
}
