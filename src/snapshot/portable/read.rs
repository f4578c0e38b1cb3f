//! Reads an export's file, ours or the official tool's, row by row: memory holds one row and a buffer.

use std::{
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    Input,
    form::{Form, Metadata, TableEntry},
    json::{self, Malformed, Member},
};
use crate::snapshot::{Error, Result};

const BUFFER: usize = 128 * 1024;
/// PostgreSQL and SQLite hold no value beyond 1 GB; a row of many such is not read.
const ROW_LIMIT: usize = 2 << 30;

/// One row: an object's members, still as they are written.
#[derive(Debug, Default)]
pub struct RawRow {
    table: Vec<u8>,
    bytes: Vec<u8>,
    /// Where in the bytes the row's object is.
    row: Range<usize>,
    pub members: Vec<Member>,
}

impl RawRow {
    pub fn table(&self) -> &[u8] {
        &self.table
    }

    /// A member's key, with its quotes.
    pub fn key(&self, member: &Member) -> &[u8] {
        self.part(&member.key)
    }

    pub fn value(&self, member: &Member) -> &[u8] {
        self.part(&member.value)
    }

    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(self.row.clone()).and_then(|row| row.get(range.clone())).unwrap_or_default()
    }
}

/// A file that is being read.
pub struct Reader<R = Box<dyn Read + Send>> {
    input: Bytes<R>,
    path: PathBuf,
    form: Form,
    /// NDJSON has it first, a document last.
    metadata: Option<Metadata>,
    place: Place,
    rows: u64,
    scratch: Vec<u8>,
    members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Between lines.
    Lines,
    /// In a document's `data`, behind this many tables.
    Tables(usize),
    /// In a table's list, behind this many rows.
    Rows {
        tables: usize,
        rows: usize,
    },
    End,
}

impl Reader {
    pub fn open(input: &Input) -> Result<Self> {
        Reader::new(input.open()?, &input.path())
    }
}

impl<R: Read> Reader<R> {
    /// Reads what stands before the first row.
    pub fn new(input: R, path: &Path) -> Result<Self> {
        let mut reader = Self {
            input: Bytes { input, buffer: vec![0; BUFFER], at: 0, filled: 0 },
            path: path.to_owned(),
            form: Form::Ndjson,
            metadata: None,
            place: Place::Lines,
            rows: 0,
            scratch: Vec::new(),
            members: Vec::new(),
        };
        reader.begin().map_err(|fault| reader.failed(fault))?;
        Ok(reader)
    }

    pub fn form(&self) -> Form {
        self.form
    }

    /// What the file says of itself, as far as it was read.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Reads the next row; false behind the last one, and then all of the file was read.
    pub fn next(&mut self, row: &mut RawRow) -> Result<bool> {
        let found = self.step(row).map_err(|fault| self.failed(fault))?;
        self.rows += u64::from(found);
        Ok(found)
    }

    /// An error about the row that was read last.
    pub fn fault(&self, what: impl Into<String>) -> Error {
        Error::Unreadable { path: self.path.clone(), row: self.rows, what: what.into() }
    }

    fn failed(&self, fault: Fault) -> Error {
        match fault {
            Fault::Io(error) => match Error::io("reading", &self.path)(error) {
                // zstd tells of a frame that is cut off or damaged by errors that are no operating system's.
                Error::Io { source, .. } if source.raw_os_error().is_none() => self.fault(source.to_string()),
                other => other,
            },
            Fault::Form(what) => Error::Unreadable { path: self.path.clone(), row: self.rows + 1, what },
        }
    }

    fn begin(&mut self) -> Result<(), Fault> {
        self.input.expect(b'{')?;
        let key = self.key()?;
        if key != "metadata" {
            return self.document(key);
        }
        self.read_metadata()?;
        match self.input.token()? {
            Some(b'}') => Ok(()),
            Some(b',') => {
                let key = self.key()?;
                self.document(key)
            }
            _ => Err(Fault::form("its first object is not closed")),
        }
    }

    /// Goes on to a document's `data`.
    fn document(&mut self, mut key: String) -> Result<(), Fault> {
        self.form = Form::Json;
        while key != "data" {
            self.member(&key)?;
            match self.input.token()? {
                Some(b',') => key = self.key()?,
                _ => return Err(Fault::form("it has no \"data\"")),
            }
        }
        self.input.expect(b'{')?;
        self.place = Place::Tables(0);
        Ok(())
    }

    fn key(&mut self) -> Result<String, Fault> {
        self.scratch.clear();
        self.input.value(&mut self.scratch)?;
        let mut key = Vec::new();
        json::read_string(&self.scratch, &mut key)?;
        self.input.expect(b':')?;
        String::from_utf8(key).map_err(|_| Fault::form("a key is not UTF-8"))
    }

    /// A member of a document besides `data`.
    fn member(&mut self, key: &str) -> Result<(), Fault> {
        if key == "metadata" {
            return self.read_metadata();
        }
        self.scratch.clear();
        self.input.value(&mut self.scratch)
    }

    fn read_metadata(&mut self) -> Result<(), Fault> {
        self.scratch.clear();
        self.input.value(&mut self.scratch)?;
        let metadata = serde_json::from_slice(&self.scratch);
        self.metadata = Some(metadata.map_err(|error| Fault::Form(format!("its metadata: {error}")))?);
        Ok(())
    }

    fn step(&mut self, row: &mut RawRow) -> Result<bool, Fault> {
        loop {
            match self.place {
                Place::End => return Ok(false),
                Place::Lines => return self.line(row),
                Place::Tables(tables) => self.table(tables, row)?,
                Place::Rows { tables, rows } => match (self.input.token()?, rows) {
                    (Some(b']'), _) => self.place = Place::Tables(tables),
                    (Some(b','), 1..) => {
                        self.element(row)?;
                        self.place = Place::Rows { tables, rows: rows + 1 };
                        return Ok(true);
                    }
                    (Some(byte), 0) => {
                        self.input.back(byte);
                        self.element(row)?;
                        self.place = Place::Rows { tables, rows: 1 };
                        return Ok(true);
                    }
                    _ => return Err(Fault::form("a list of rows is not closed")),
                },
            }
        }
    }

    /// `"name": [`, or what comes after the last table.
    fn table(&mut self, tables: usize, row: &mut RawRow) -> Result<(), Fault> {
        match (self.input.token()?, tables) {
            (Some(b'}'), _) => return self.rest(),
            (Some(b','), 1..) => {}
            (Some(byte), 0) => self.input.back(byte),
            _ => return Err(Fault::form("\"data\" is not closed")),
        }
        let name = self.key()?;
        row.table.clear();
        row.table.extend_from_slice(name.as_bytes());
        self.input.expect(b'[')?;
        self.place = Place::Rows { tables: tables + 1, rows: 0 };
        Ok(())
    }

    /// What comes after a document's `data`.
    fn rest(&mut self) -> Result<(), Fault> {
        loop {
            match self.input.token()? {
                Some(b',') => {
                    let key = self.key()?;
                    self.member(&key)?;
                }
                Some(b'}') => break,
                _ => return Err(Fault::form("the document is not closed")),
            }
        }
        self.place = Place::End;
        match self.input.token()? {
            None => Ok(()),
            Some(_) => Err(Fault::form("something follows the document")),
        }
    }

    fn element(&mut self, row: &mut RawRow) -> Result<(), Fault> {
        row.bytes.clear();
        self.input.value(&mut row.bytes)?;
        row.row = 0..row.bytes.len();
        json::members(&row.bytes, &mut row.members)?;
        Ok(())
    }

    /// `{"data": {…}, "table": "…"}`
    fn line(&mut self, row: &mut RawRow) -> Result<bool, Fault> {
        match self.input.token()? {
            None => {
                self.place = Place::End;
                return Ok(false);
            }
            Some(byte) => self.input.back(byte),
        }
        row.bytes.clear();
        self.input.value(&mut row.bytes)?;
        json::members(&row.bytes, &mut self.members)?;
        let named = |name: &[u8]| {
            let found = self.members.iter().rev().find(|member| row.bytes.get(member.key.clone()) == Some(name));
            found.map(|member| member.value.clone())
        };
        let (Some(data), Some(table)) = (named(b"\"data\""), named(b"\"table\"")) else {
            return Err(Fault::form("a line has no \"data\" or no \"table\""));
        };
        row.table.clear();
        json::read_string(row.bytes.get(table).unwrap_or_default(), &mut row.table)?;
        json::members(row.bytes.get(data.clone()).unwrap_or_default(), &mut row.members)?;
        row.row = data;
        Ok(true)
    }

    /// Which tables have another number of rows than the metadata says; a file that was cut between two rows shows so.
    pub fn miscounted(&self, counted: impl Fn(&str) -> i64) -> Vec<String> {
        let entries = self.metadata.iter().flat_map(|metadata| &metadata.tables);
        let wrong = entries.filter(|TableEntry { name, row_count }| counted(name) != *row_count);
        wrong
            .map(|entry| {
                format!("{} rows of {}, its metadata says {}", counted(&entry.name), entry.name, entry.row_count)
            })
            .collect()
    }
}

enum Fault {
    Io(std::io::Error),
    Form(String),
}

impl Fault {
    fn form(what: &str) -> Self {
        Self::Form(what.to_owned())
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::Form(malformed.to_string())
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// A buffered input that gives whole JSON values.
struct Bytes<R> {
    input: R,
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
}

impl<R: Read> Bytes<R> {
    /// What is buffered; empty only at the end.
    fn fill(&mut self) -> Result<&[u8], Fault> {
        while self.at == self.filled {
            (self.at, self.filled) = (0, 0);
            match self.input.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => self.filled = read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.buffer.get(self.at..self.filled).unwrap_or_default())
    }

    /// The next byte that is no space; `None` at the end.
    fn token(&mut self) -> Result<Option<u8>, Fault> {
        loop {
            let Some(byte) = self.fill()?.first().copied() else { return Ok(None) };
            self.at += 1;
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Ok(Some(byte));
            }
        }
    }

    /// Takes back the byte that [`Bytes::token`] gave: it is still in the buffer.
    fn back(&mut self, byte: u8) {
        self.at = self.at.saturating_sub(1);
        debug_assert_eq!(self.buffer.get(self.at), Some(&byte));
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Fault> {
        match self.token()? {
            Some(byte) if byte == wanted => Ok(()),
            None => Err(Fault::form("it ends too early")),
            Some(_) => Err(Fault::Form(format!("{:?} is missing", char::from(wanted)))),
        }
    }

    /// Appends the next value whole.
    fn value(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        match self.token()? {
            None => return Err(Fault::form("it ends too early")),
            Some(byte) => self.back(byte),
        }
        let (mut depth, mut in_string, mut escaped, mut begun) = (0u32, false, false, false);
        loop {
            let bytes = self.fill()?;
            if bytes.is_empty() {
                // Only a number or a word may end where the file does.
                return if begun && depth == 0 && !in_string { Ok(()) } else { Err(Fault::form("it ends too early")) };
            }
            let mut used = 0;
            let mut done = false;
            while let Some(byte) = bytes.get(used) {
                if in_string {
                    if escaped {
                        escaped = false;
                    } else {
                        let rest = bytes.get(used..).unwrap_or_default();
                        let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
                            used = bytes.len();
                            break;
                        };
                        used += found;
                        escaped = rest.get(found) == Some(&b'\\');
                        in_string = escaped;
                        done = !in_string && depth == 0;
                    }
                } else {
                    match byte {
                        b'"' if depth == 0 && begun => {
                            done = true;
                            break;
                        }
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' if depth == 0 => {
                            done = true;
                            break;
                        }
                        b'}' | b']' => {
                            depth -= 1;
                            done = depth == 0;
                        }
                        b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' if depth == 0 => {
                            done = true;
                            break;
                        }
                        _ => {}
                    }
                }
                begun = true;
                used += 1;
                if done {
                    break;
                }
            }
            out.extend_from_slice(bytes.get(..used).unwrap_or_default());
            self.at += used;
            if done {
                return if begun { Ok(()) } else { Err(Fault::form("a value is missing")) };
            }
            if out.len() > ROW_LIMIT {
                return Err(Fault::form("a row is longer than 2 GiB"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rows = Vec<(String, Vec<(String, String)>)>;

    /// Gives at most as many bytes at once: borders fall everywhere.
    struct Slowly<'a>(&'a [u8], usize);

    impl Read for Slowly<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let length = self.1.min(out.len()).min(self.0.len());
            let (now, later) = self.0.split_at(length);
            out[..length].copy_from_slice(now);
            self.0 = later;
            Ok(length)
        }
    }

    fn rows_of(bytes: &[u8], step: usize) -> Result<(Rows, Form, Option<Metadata>)> {
        let mut reader = Reader::new(Slowly(bytes, step), Path::new("file"))?;
        let (mut row, mut rows) = (RawRow::default(), Vec::new());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        while reader.next(&mut row)? {
            let members = row.members.iter().map(|m| (text(row.key(m)), text(row.value(m)))).collect();
            rows.push((text(row.table()), members));
        }
        Ok((rows, reader.form, reader.metadata.take()))
    }

    const LINES: &str = "{\"metadata\": {\"dialect\": \"sqlite\", \"exported_at\": \"x\", \"format\": \"ndjson\", \"tables\": [{\"name\": \"t\", \"row_count\": 2}]}}\n\
        {\"data\": {\"a\": NaN, \"b\": {\"x\": \"}\\\"\"}}, \"table\": \"t\"}\n\n{\"table\": \"t\", \"data\": {\"a\": 1, \"b\": null}}\n";
    const DOCUMENT: &str = "{\n \"data\": {\"e\": [], \"t\": [ {\"a\": NaN, \"b\": {\"x\": \"}\\\"\"}}, {\"a\": 1, \"b\": null}\n]},\n \"metadata\": \
        {\"dialect\": \"sqlite\", \"exported_at\": \"x\", \"format\": \"json\", \"tables\": [{\"name\": \"t\", \"row_count\": 2}]}}\n";

    #[test]
    fn both_forms_are_told_apart_and_read() {
        let expected: Rows = [("NaN", "{\"x\": \"}\\\"\"}"), ("1", "null")]
            .map(|(a, b)| {
                ("t".to_owned(), vec![("\"a\"".to_owned(), a.to_owned()), ("\"b\"".to_owned(), b.to_owned())])
            })
            .into();
        for step in [1, 3, 10_000] {
            let (rows, form, metadata) = rows_of(LINES.as_bytes(), step).unwrap();
            assert_eq!((rows, form, metadata.unwrap().tables[0].row_count), (expected.clone(), Form::Ndjson, 2));
            let (rows, form, metadata) = rows_of(DOCUMENT.as_bytes(), step).unwrap();
            assert_eq!((rows, form, metadata.unwrap().tables[0].row_count), (expected.clone(), Form::Json, 2));
        }
    }

    #[test]
    fn a_document_that_is_cut_off_anywhere_is_refused() {
        let whole = DOCUMENT.trim_end();
        for length in 0..whole.len() {
            assert!(rows_of(&whole.as_bytes()[..length], 7).is_err(), "{length}");
        }
    }

    #[test]
    fn lines_that_are_cut_off_are_refused_or_counted() {
        for length in 0..LINES.len() {
            let Ok((rows, _, metadata)) = rows_of(&LINES.as_bytes()[..length], 7) else { continue };
            let counted = i64::try_from(rows.len()).unwrap();
            let whole = metadata.unwrap().tables[0].row_count == counted;
            assert_eq!(whole, length >= LINES.len() - 1, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_end_otherwise_than_by_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80), step in 1usize..9) {
            let _ = rows_of(&bytes, step);
        }

        #[test]
        fn nothing_like_an_export_ends_otherwise_than_by_an_error(
            at in 0usize..200, byte in any::<u8>(), document in any::<bool>(), step in 1usize..9
        ) {
            let mut bytes = if document { DOCUMENT } else { LINES }.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = rows_of(&bytes, step);
        }
    }
}
