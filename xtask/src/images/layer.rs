//! Writes one image layer: a gzip'ed tar in which nothing but names, modes and contents shows, so that equal input gives
//! an equal digest.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::hash::HashingWriter;

/// What goes into a layer. Paths in the image have no leading slash; everything belongs to root.
#[derive(Debug, Clone)]
pub enum Entry {
    Directory {
        path: String,
        mode: u32,
    },
    File {
        path: String,
        source: PathBuf,
        mode: u32,
    },
    /// A directory with all that is below it, without Python's caches. A file keeps nothing of its mode but whether it can be run.
    Tree {
        path: String,
        source: PathBuf,
    },
}

/// A finished layer in a temporary file, before it has its place in a layout.
pub struct Layer {
    pub file: PathBuf,
    /// `sha256:` and the hash of the compressed bytes.
    pub digest: String,
    /// The same of the bare tar, by which runtimes know a layer.
    pub diff_id: String,
    pub size: u64,
    /// What image histories show.
    pub created_by: String,
}

/// Writes the entries, in their order, to `file`.
pub fn write(file: &Path, entries: &[Entry], created_by: &str) -> Result<Layer> {
    compress(file, created_by, |out| {
        let mut tar = tar::Builder::new(out);
        for entry in entries {
            append(&mut tar, entry)?;
        }
        tar.finish()?;
        Ok(())
    })
}

/// Makes a layer of a tar that another program wrote.
pub fn from_tar(file: &Path, tar: &Path, created_by: &str) -> Result<Layer> {
    let mut tar = BufReader::with_capacity(1 << 20, File::open(tar).with_context(|| tar.display().to_string())?);
    compress(file, created_by, |mut out| {
        copy(&mut tar, &mut out)?;
        Ok(())
    })
}

fn compress(file: &Path, created_by: &str, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Layer> {
    let packed = HashingWriter::new(File::create(file).with_context(|| format!("cannot create {}", file.display()))?);
    let mut bare = HashingWriter::new(GzEncoder::new(packed, Compression::fast()));
    fill(&mut bare)?;
    let (gzip, diff_id, _) = bare.finish();
    let (_, digest, size) = gzip.finish()?.finish();
    Ok(Layer { file: file.to_owned(), digest, diff_id, size, created_by: created_by.to_owned() })
}

fn append(tar: &mut tar::Builder<&mut dyn Write>, entry: &Entry) -> Result<()> {
    match entry {
        Entry::Directory { path, mode } => {
            let mut header = header(tar::EntryType::Directory, *mode, 0);
            tar.append_data(&mut header, path, io::empty())?;
        }
        Entry::File { path, source, mode } => append_file(tar, path, source, *mode)?,
        Entry::Tree { path, source } => append_tree(tar, path, source)?,
    }
    Ok(())
}

fn append_file(tar: &mut tar::Builder<&mut dyn Write>, path: &str, source: &Path, mode: u32) -> Result<()> {
    let file = File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
    let size = file.metadata()?.len();
    tar.append_data(&mut header(tar::EntryType::Regular, mode, size), path, BufReader::with_capacity(1 << 20, file))?;
    Ok(())
}

fn append_tree(tar: &mut tar::Builder<&mut dyn Write>, path: &str, source: &Path) -> Result<()> {
    append(tar, &Entry::Directory { path: path.to_owned(), mode: 0o755 })?;
    for child in children(source)? {
        let Some(name) = child.file_name().and_then(|n| n.to_str()) else { continue };
        let inside = format!("{path}/{name}");
        if child.is_dir() {
            append_tree(tar, &inside, &child)?;
        } else {
            let runs = fs::metadata(&child)?.permissions().mode() & 0o100 != 0;
            append_file(tar, &inside, &child, if runs { 0o755 } else { 0o644 })?;
        }
    }
    Ok(())
}

/// What lies in a directory, sorted, without Python's caches.
pub fn children(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()?;
    found.retain(|path| {
        path.file_name().is_none_or(|n| n != "__pycache__") && path.extension().is_none_or(|e| e != "pyc")
    });
    found.sort();
    Ok(found)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// `io::copy` in steps large enough for a debug build.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(directory: &Path) -> Vec<Entry> {
        let source = directory.join("source");
        fs::create_dir_all(source.join("memoria/__pycache__")).unwrap();
        fs::write(source.join("memoria/server.py"), "print('hello')\n").unwrap();
        fs::write(source.join("memoria/__pycache__/server.pyc"), "cache").unwrap();
        fs::write(source.join("start"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(source.join("start"), fs::Permissions::from_mode(0o700)).unwrap();
        vec![Entry::Tree { path: "app".into(), source }]
    }

    #[test]
    fn equal_input_gives_an_equal_layer_and_nothing_of_the_machine_shows() {
        let directory = tempfile::tempdir().unwrap();
        let entries = tree(directory.path());
        let first = write(&directory.path().join("1"), &entries, "test").unwrap();
        fs::set_permissions(directory.path().join("source/start"), fs::Permissions::from_mode(0o755)).unwrap();
        let second = write(&directory.path().join("2"), &entries, "test").unwrap();
        assert_eq!(first.digest, second.digest);

        let mut seen = Vec::new();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&first.file).unwrap()));
        for entry in tar.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
            seen.push((entry.path().unwrap().display().to_string(), header.mode().unwrap()));
        }
        let expected = [("app", 0o755), ("app/memoria", 0o755), ("app/memoria/server.py", 0o644), ("app/start", 0o755)];
        assert_eq!(seen, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn digest_and_diff_id_are_those_of_the_file_and_of_the_tar_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let layer = write(&directory.path().join("layer"), &tree(directory.path()), "test").unwrap();
        let packed = fs::read(&layer.file).unwrap();
        let mut bare = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bare).unwrap();
        assert_eq!(layer.digest, super::super::hash::digest(&packed));
        assert_eq!(layer.diff_id, super::super::hash::digest(&bare));
        assert_eq!(layer.size, packed.len() as u64);
    }
}
