//! Rows of two sides, brought together by their keys: each side's are laid out in files without a name, divided by the
//! key's hash, and then compared one division after the other.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
};

use super::{Change, Differing};
use crate::snapshot::{Error, Result};

/// Into how many files a side is divided: of ten million rows each has 160,000.
const DIVISIONS: usize = 64;

/// A row's key and content as hashes, and the key's text where it is wanted.
#[derive(Debug)]
pub struct Entry {
    pub key: [u8; 16],
    pub row: [u8; 32],
    /// JSON.
    pub text: Vec<u8>,
}

/// One side's rows.
#[derive(Debug)]
pub struct Spill {
    divisions: Vec<BufWriter<File>>,
}

impl Spill {
    pub fn new() -> Result<Self> {
        let divisions: Result<Vec<_>> = (0..DIVISIONS).map(|at| nameless(at).map(BufWriter::new)).collect();
        Ok(Self { divisions: divisions? })
    }

    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        let at = usize::from(entry.key[0]) % DIVISIONS;
        let Some(file) = self.divisions.get_mut(at) else { return Ok(()) };
        let length = u32::try_from(entry.text.len()).unwrap_or(u32::MAX).to_be_bytes();
        let parts: [&[u8]; 4] = [&entry.key, &entry.row, &length, &entry.text];
        parts.iter().try_for_each(|part| file.write_all(part)).map_err(failed)
    }

    /// What is on one side only, and what has the same key and another content.
    pub fn compare(first: Self, second: Self, keys: usize) -> Result<Differing> {
        let mut differing = Differing::default();
        for (first, second) in first.divisions.into_iter().zip(second.divisions) {
            division(first, second, keys, &mut differing)?;
        }
        Ok(differing)
    }
}

/// A row's hash, and its key's text.
type Content = ([u8; 32], Vec<u8>);

fn division(first: BufWriter<File>, second: BufWriter<File>, keys: usize, differing: &mut Differing) -> Result<()> {
    let mut waiting: HashMap<[u8; 16], Vec<Content>> = HashMap::new();
    let mut note = |change: Change, text: Vec<u8>| {
        *match change {
            Change::OnlyFirst => &mut differing.only_first,
            Change::OnlySecond => &mut differing.only_second,
            Change::Changed => &mut differing.changed,
        } += 1;
        if differing.keys.len() < keys && !text.is_empty() {
            differing.keys.push((change, String::from_utf8_lossy(&text).into_owned()));
        }
    };
    each(first, |entry| waiting.entry(entry.key).or_default().push((entry.row, entry.text)))?;
    let mut new = Vec::new();
    each(second, |entry| {
        let found = waiting.get_mut(&entry.key).and_then(|rows| {
            let at = rows.iter().position(|(row, _)| *row == entry.row)?;
            Some(rows.swap_remove(at))
        });
        if found.is_none() {
            new.push(entry);
        }
    })?;
    for entry in new {
        match waiting.get_mut(&entry.key).and_then(Vec::pop) {
            Some((_, text)) => note(Change::Changed, text),
            None => note(Change::OnlySecond, entry.text),
        }
    }
    waiting.into_values().flatten().for_each(|(_, text)| note(Change::OnlyFirst, text));
    Ok(())
}

fn each(file: BufWriter<File>, mut take: impl FnMut(Entry)) -> Result<()> {
    let mut file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut input = BufReader::new(file);
    loop {
        let mut entry = Entry { key: [0; 16], row: [0; 32], text: Vec::new() };
        match input.read_exact(&mut entry.key) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other.map_err(failed)?,
        }
        let mut length = [0; 4];
        input.read_exact(&mut entry.row).and_then(|()| input.read_exact(&mut length)).map_err(failed)?;
        entry.text.resize(u32::from_be_bytes(length) as usize, 0);
        input.read_exact(&mut entry.text).map_err(failed)?;
        take(entry);
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io("comparing rows in", std::env::temp_dir())(error)
}

/// A file that goes with its last user, and that nobody else can open: it holds keys.
fn nameless(number: usize) -> Result<File> {
    let directory = std::env::temp_dir();
    let mut tries = 0;
    loop {
        let path = directory.join(format!(".memoria-operator-{}-{number}-{tries}", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path).map_err(Error::io("removing", &path))?;
                return Ok(file);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < 100 => tries += 1,
            Err(error) => return Err(Error::io("making", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spill(rows: &[(u8, u8)]) -> Spill {
        let mut spill = Spill::new().unwrap();
        for (key, row) in rows {
            let text = format!("{{\"id\": {key}}}").into_bytes();
            spill.add(&Entry { key: [*key; 16], row: [*row; 32], text }).unwrap();
        }
        spill
    }

    #[test]
    fn rows_are_told_apart_by_key_and_content() {
        let found =
            Spill::compare(spill(&[(1, 1), (2, 2), (3, 3), (70, 7)]), spill(&[(3, 4), (70, 7), (1, 1), (9, 9)]), 9);
        let mut found = found.unwrap();
        found.keys.sort_by(|a, b| a.1.cmp(&b.1));
        let key = |change, key: u8| (change, format!("{{\"id\": {key}}}"));
        let keys = vec![key(Change::OnlyFirst, 2), key(Change::Changed, 3), key(Change::OnlySecond, 9)];
        assert_eq!(found, Differing { only_first: 1, only_second: 1, changed: 1, keys });
    }

    #[test]
    fn equal_rows_are_counted_each() {
        let found = Spill::compare(spill(&[(1, 1), (1, 1), (1, 1)]), spill(&[(1, 1)]), 1).unwrap();
        assert_eq!((found.only_first, found.only_second, found.changed, found.keys.len()), (2, 0, 0, 1));
    }
}
