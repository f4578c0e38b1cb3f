//! Encryption of an export's files by [age](https://age-encryption.org/v1), to X25519 recipients: whoever writes an export
//! needs public keys alone, and cannot read it any more. In constant memory, after compression.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use age::{
    DecryptError, Decryptor, Encryptor,
    stream::StreamWriter,
    x25519::{Identity, Recipient},
};
use serde::{Deserialize, Serialize};

use super::Manifest;
use crate::snapshot::{Error, Result, store::Place};

/// What stands behind an encrypted file's name.
pub const SUFFIX: &str = ".age";
/// An age file begins so.
pub(super) const MAGIC: &[u8] = b"age-encryption.org/";
/// What a manifest says of the files' format.
const FORMAT: &str = "age-encryption.org/v1";

/// What a manifest says of its files' encryption. The hashes of `files` are those of the encrypted bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// `age-encryption.org/v1`.
    pub format: String,
    /// Public keys: an identity of any of them reads the files.
    pub recipients: Vec<String>,
}

/// Who may read an export. Nobody in particular: it is not encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipients(Vec<Recipient>);

impl Recipients {
    pub const NONE: Self = Self(Vec::new());

    /// From public keys as they are written, `age1…`, and from a file with one a line. Those that are given twice count once.
    pub fn read(keys: &[String], file: Option<&Path>) -> Result<Self> {
        let mut recipients = Vec::new();
        for key in keys {
            recipients.push(recipient(key, || "a recipient on the command line".to_owned())?);
        }
        if let Some(path) = file {
            let before = recipients.len();
            for (number, line) in key_lines(&text(path)?) {
                recipients.push(recipient(line, || format!("line {number} of {}", path.display()))?);
            }
            if recipients.len() == before {
                return Err(Error::Key { what: format!("{} holds no recipient", path.display()) });
            }
        }
        let mut once: Vec<Recipient> = Vec::new();
        for recipient in recipients {
            if !once.contains(&recipient) {
                once.push(recipient);
            }
        }
        Ok(Self(once))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the manifest says of it.
    pub fn described(&self) -> Option<Encryption> {
        let recipients = self.0.iter().map(ToString::to_string).collect();
        (!self.is_empty()).then(|| Encryption { format: FORMAT.to_owned(), recipients })
    }

    /// Begins to encrypt what `out` gets, if it is to be encrypted.
    pub fn seal<W: Write>(&self, out: W) -> io::Result<Sealed<W>> {
        if self.is_empty() {
            return Ok(Sealed::Open(out));
        }
        let recipients = self.0.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(recipients).map_err(|error| io::Error::other(error.to_string()))?;
        encryptor.wrap_output(out).map(Sealed::Age)
    }
}

/// What is written through it is encrypted, or not.
pub enum Sealed<W: Write> {
    Open(W),
    Age(StreamWriter<W>),
}

impl<W: Write> Sealed<W> {
    /// Writes the end, without which nothing can be read.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Open(out) => Ok(out),
            Self::Age(sealing) => sealing.finish(),
        }
    }
}

impl<W: Write> Write for Sealed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Open(out) => out.write(bytes),
            Self::Age(sealing) => sealing.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Open(out) => out.flush(),
            Self::Age(sealing) => sealing.flush(),
        }
    }
}

/// The identities that exports are read with. They are never shown.
#[derive(Clone, Default)]
pub struct Keys(Arc<Vec<Identity>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} identities", self.0.len())
    }
}

impl Keys {
    /// From a file as `age-keygen` writes it: one identity a line, `AGE-SECRET-KEY-1…`.
    pub fn read(path: &Path) -> Result<Self> {
        let (text, mut identities) = (text(path)?, Vec::new());
        for (number, line) in key_lines(&text) {
            // The line may be a secret whatever is wrong with it.
            let identity = line.parse::<Identity>().map_err(|_| Error::Key {
                what: format!(
                    "line {number} of {} is no age X25519 identity (AGE-SECRET-KEY-1…); a key that a passphrase protects has to be decrypted first",
                    path.display()
                ),
            })?;
            identities.push(identity);
        }
        if identities.is_empty() {
            return Err(Error::Key { what: format!("{} holds no identity", path.display()) });
        }
        Ok(Self(Arc::new(identities)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses where none of them reads what is encrypted to these recipients.
    pub fn try_out(&self, recipients: &Recipients) -> Result<()> {
        let is_one = |identity: &Identity| recipients.0.contains(&identity.to_public());
        if recipients.is_empty() || self.0.iter().any(is_one) {
            return Ok(());
        }
        // Not by name: in a release they stand in a Secret, and what does is never repeated.
        let why = if self.is_empty() { "no identity is given" } else { "the identity is none of theirs" };
        Err(Error::Key { what: format!("what is encrypted to the recipients could not be read again: {why}") })
    }

    /// Refuses an export that they do not open, by what its manifest says.
    pub(super) fn fit(&self, place: &Place, manifest: &Manifest) -> Result<()> {
        let Some(Encryption { format, recipients }) = &manifest.encryption else { return Ok(()) };
        if format != FORMAT {
            let what = format!("its files are encrypted as {format:?}, which this program does not know");
            return Err(Error::Damaged { directory: place.name(), what });
        }
        if self.0.iter().any(|identity| recipients.contains(&identity.to_public().to_string())) {
            return Ok(());
        }
        let to = recipients.join(", ");
        let why = if self.is_empty() { "no identity is given" } else { "no identity that is given is one of theirs" };
        Err(Error::Key { what: format!("{place} is encrypted to {to}, and {why}") })
    }

    /// Decrypts what lies in a file of this name.
    pub(in crate::snapshot) fn unseal<R: Read + Send + 'static>(
        &self,
        (place, name): (&Place, &str),
        input: R,
    ) -> Result<Box<dyn Read + Send>> {
        let identities = self.0.iter().map(|identity| identity as &dyn age::Identity);
        match Decryptor::new(input).and_then(|decryptor| decryptor.decrypt(identities)) {
            Ok(reader) => Ok(Box::new(reader)),
            Err(DecryptError::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(Error::io("reading", place.file(name))(error))
            }
            Err(DecryptError::NoMatchingKeys) => {
                let why = if self.is_empty() { "no identity is given" } else { "no identity that is given opens it" };
                Err(Error::Key { what: format!("{} is encrypted, and {why}", place.file(name).display()) })
            }
            // Its own words are for people at a terminal.
            Err(_) => {
                let what = format!("{name} begins with no header of age that is whole");
                Err(Error::Damaged { directory: place.name(), what })
            }
        }
    }
}

/// What is given is not repeated: it may be the secret half.
fn recipient(key: &str, place: impl FnOnce() -> String) -> Result<Recipient> {
    key.trim().parse().map_err(|_| Error::Key { what: format!("{} is no age X25519 public key (age1…)", place()) })
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io("reading", path))
}

/// The lines that are neither empty nor comments, and their numbers.
fn key_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().map(str::trim).zip(1..).map(|(line, number)| (number, line));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    fn keys(identities: &[&Identity]) -> Keys {
        Keys(Arc::new(identities.iter().map(|identity| (*identity).clone()).collect()))
    }

    fn sealed(recipients: &Recipients, plain: &[u8]) -> Vec<u8> {
        let mut sealing = recipients.seal(Vec::new()).unwrap();
        sealing.write_all(plain).unwrap();
        sealing.finish().unwrap()
    }

    fn opened(keys: &Keys, bytes: &[u8]) -> Result<Vec<u8>> {
        let place = Place::Directory("x".into());
        let mut plain = Vec::new();
        let mut reader = keys.unseal((&place, "f.age"), io::Cursor::new(bytes.to_vec()))?;
        reader.read_to_end(&mut plain).map_err(Error::io("reading", "f.age"))?;
        Ok(plain)
    }

    #[test]
    fn any_recipient_reads_all_of_it_and_nobody_else_any() {
        let [one, two, other] = [(); 3].map(|()| Identity::generate());
        let recipients = Recipients(vec![one.to_public(), two.to_public()]);
        for length in [0, 1, 65_536, 200_000] {
            let plain: Vec<u8> = (0..length).map(|at: usize| at.to_le_bytes()[0]).collect();
            let bytes = sealed(&recipients, &plain);
            assert!(bytes.starts_with(MAGIC));
            for identity in [&one, &two] {
                assert_eq!(opened(&keys(&[&other, identity]), &bytes).unwrap(), plain);
            }
            let refused = opened(&keys(&[&other]), &bytes).unwrap_err().to_string();
            assert!(refused.contains("f.age is encrypted") && refused.contains("--identity-file"), "{refused}");
        }
        assert_eq!(sealed(&Recipients::NONE, b"plain"), b"plain");
    }

    #[test]
    fn a_file_that_is_cut_short_or_changed_anywhere_is_no_plaintext() {
        let identity = Identity::generate();
        let bytes = sealed(&Recipients(vec![identity.to_public()]), &[7; 70_000]);
        let keys = keys(&[&identity]);
        for length in (0..bytes.len()).step_by(997).chain([bytes.len() - 1]) {
            assert!(opened(&keys, &bytes[..length]).is_err(), "{length}");
        }
        for at in (0..bytes.len()).step_by(991) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(opened(&keys, &flipped).is_err(), "{at}");
        }
    }

    #[test]
    fn keys_are_read_from_files_and_never_repeated_when_they_are_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let (identity, path) = (Identity::generate(), directory.path().join("keys"));
        let secret = identity.to_string().expose_secret().to_owned();
        let public = identity.to_public().to_string();
        fs::write(&path, format!("# created: then\n# public key: {public}\n\n{secret}\n")).unwrap();
        let read = Keys::read(&path).unwrap();
        assert_eq!(read.0[0].to_public(), identity.to_public());
        assert!(!format!("{read:?}").contains(&secret));
        // The two kinds are taken for each other.
        let refused = Recipients::read(&[], Some(&path)).unwrap_err().to_string();
        assert!(refused.contains("line 4") && !refused.contains(&secret), "{refused}");
        let refused = Recipients::read(std::slice::from_ref(&secret), None).unwrap_err().to_string();
        assert!(refused.contains("age1") && !refused.contains(&secret), "{refused}");
        fs::write(&path, format!("{public}\n{public}\n")).unwrap();
        let twice = Recipients::read(std::slice::from_ref(&public), Some(&path)).unwrap();
        assert_eq!(twice.described().unwrap().recipients, [public]);
        let refused = Keys::read(&path).unwrap_err().to_string();
        assert!(refused.contains("line 1") && refused.contains("passphrase"), "{refused}");
        fs::write(&path, "# nothing\n").unwrap();
        assert!(Keys::read(&path).is_err() && Recipients::read(&[], Some(&path)).is_err());
    }
}
