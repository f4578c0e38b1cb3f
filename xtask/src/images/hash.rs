//! SHA-256: digests of blobs, and keys that say what a thing was built from.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::layer::{self, Entry};

/// `sha256:` and the hash, as registries write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Passes on what is written, and counts and hashes it.
pub struct HashingWriter<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> HashingWriter<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    /// The writer, the digest and the number of bytes.
    pub fn finish(self) -> (W, String, u64) {
        (self.inner, format!("sha256:{}", hex(&self.hash.finalize())), self.size)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Collects what a thing is built from. Every part carries its length, so that parts cannot run into each other.
#[derive(Clone)]
pub struct Key(Sha256);

impl Key {
    pub fn new(kind: &str) -> Self {
        Self(Sha256::new()).with(kind)
    }

    pub fn with(mut self, part: impl AsRef<[u8]>) -> Self {
        self.add(part.as_ref());
        self
    }

    /// The names, contents and executable bits of a file or of everything below a directory.
    pub fn with_path(mut self, path: &Path) -> Result<Self> {
        self.add_path(path, "")?;
        Ok(self)
    }

    /// What a layer's entry puts into an image.
    pub fn with_entry(self, entry: &Entry) -> Result<Self> {
        match entry {
            Entry::Directory { path, mode } => Ok(self.with(path).with(mode.to_le_bytes())),
            Entry::File { path, source, mode } => self.with(path).with(mode.to_le_bytes()).with_path(source),
            Entry::Tree { path, source } => self.with(path).with_path(source),
        }
    }

    fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    fn add_path(&mut self, path: &Path, name: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(name.as_bytes());
        if metadata.is_dir() {
            for child in layer::children(path)? {
                let inside = child.file_name().map(|n| format!("{name}/{}", n.to_string_lossy())).unwrap_or_default();
                self.add_path(&child, &inside)?;
            }
            return Ok(());
        }
        self.add(if metadata.permissions().mode() & 0o100 == 0 { b"-" } else { b"x" });
        self.0.update(metadata.len().to_le_bytes());
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.0.update(&buffer[..n]),
            }
        }
    }

    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_key_cannot_run_into_each_other() {
        let key = |parts: &[&str]| parts.iter().fold(Key::new("test"), |k, p| k.with(p)).finish();
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
    }

    #[test]
    fn a_renamed_file_and_a_changed_byte_change_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let key = || Key::new("test").with_path(directory.path()).unwrap().finish();
        fs::write(directory.path().join("a"), "1").unwrap();
        let before = key();
        fs::write(directory.path().join("a"), "2").unwrap();
        let changed = key();
        fs::rename(directory.path().join("a"), directory.path().join("b")).unwrap();
        let renamed = key();
        fs::create_dir(directory.path().join("__pycache__")).unwrap();
        assert_eq!(renamed, key());
        assert!(before != changed && changed != renamed && before != renamed);
    }
}
