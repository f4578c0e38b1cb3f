//! Rows on their way: from a file's JSON to PostgreSQL's texts, and from the server to whoever looks at them.

use std::{collections::BTreeMap, ops::Range};

use futures::StreamExt;
use sqlx::PgConnection;
use tokio::sync::mpsc;

use super::{official, value::Field};
use crate::snapshot::{
    Error, Result,
    digest::{DataDigest, RowSums, row_hash},
    portable::{
        Input, copy_text,
        json::read_string,
        read::{RawRow, Reader},
    },
    quote_ident,
    schema::{Relation, Schema},
};

/// Rows go from hand to hand in pieces of about this size: small, because many of them are on their way at once.
pub(super) const PIECE: usize = 64 * 1024;
/// Pieces that may wait.
pub(super) const WAITING: usize = 4;

/// A table that a file may name.
#[derive(Clone, Debug)]
pub struct Known {
    /// In the schema.
    pub table: String,
    pub fields: Vec<Field>,
}

/// The tables of a schema by the names that files use for them.
pub fn known(schema: &Schema) -> BTreeMap<Vec<u8>, Known> {
    let mut tables = BTreeMap::new();
    for (table, relation) in schema.tables() {
        let known = || Known { table: table.to_owned(), fields: Field::all(relation) };
        if let Some(name) = official(relation) {
            tables.insert(name.as_bytes().to_vec(), known());
        }
        tables.insert(table.as_bytes().to_vec(), known());
    }
    tables
}

/// Turns a file's rows into values. Rows of one table with the same members make a run.
#[derive(Debug)]
pub struct Decoder {
    tables: BTreeMap<Vec<u8>, Known>,
    run: Option<Run>,
}

#[derive(Debug)]
struct Run {
    /// As the file has it.
    name: Vec<u8>,
    /// Its members' keys, quoted.
    keys: Vec<Vec<u8>>,
    /// Which of the table's fields each is.
    fields: Vec<usize>,
}

/// What a row belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub known: &'a Known,
    /// Which of the table's fields each member is.
    pub fields: &'a [usize],
    /// It is not the row before's.
    pub begins: bool,
}

impl Decoder {
    pub fn new(tables: BTreeMap<Vec<u8>, Known>) -> Self {
        Self { tables, run: None }
    }

    pub fn place(&mut self, row: &RawRow) -> Result<Place<'_>, String> {
        let goes_on = self.run.as_ref().is_some_and(|run| {
            run.name == row.table()
                && run.keys.len() == row.members.len()
                && run.keys.iter().zip(&row.members).all(|(key, member)| key == row.key(member))
        });
        if !goes_on {
            self.run = Some(self.begin(row)?);
        }
        let unknown = || format!("table {} is not in the schema", String::from_utf8_lossy(row.table()));
        let run = self.run.as_ref().ok_or_else(unknown)?;
        let known = self.tables.get(&run.name).ok_or_else(unknown)?;
        Ok(Place { known, fields: &run.fields, begins: !goes_on })
    }

    fn begin(&self, row: &RawRow) -> Result<Run, String> {
        let name = String::from_utf8_lossy(row.table()).into_owned();
        let known = self.tables.get(row.table()).ok_or_else(|| format!("table {name} is not in the schema"))?;
        let mut fields = Vec::with_capacity(row.members.len());
        for member in &row.members {
            let mut key = Vec::new();
            read_string(row.key(member), &mut key).map_err(|error| error.to_string())?;
            let found = known.fields.iter().position(|field| field.name.as_bytes() == key);
            let missing = || format!("table {name} has no column {}", String::from_utf8_lossy(&key));
            fields.push(found.ok_or_else(missing)?);
        }
        let keys = row.members.iter().map(|member| row.key(member).to_vec()).collect();
        Ok(Run { name: row.table().to_vec(), keys, fields })
    }
}

/// One row's values as texts, in the order of its table's fields.
#[derive(Debug, Default)]
pub struct Values {
    bytes: Vec<u8>,
    ranges: Vec<Option<Range<usize>>>,
}

impl Values {
    pub fn read(&mut self, row: &RawRow, place: &Place<'_>) -> Result<(), String> {
        self.bytes.clear();
        self.ranges.clear();
        self.ranges.resize(place.known.fields.len(), None);
        for (member, field) in row.members.iter().zip(place.fields) {
            let Some(known) = place.known.fields.get(*field) else { continue };
            let begin = self.bytes.len();
            let found = known.read(row.value(member), &mut self.bytes);
            let some = found.map_err(|error| format!("{}.{}: {error}", place.known.table, known.name))?;
            if let Some(slot) = self.ranges.get_mut(*field) {
                *slot = some.then_some(begin..self.bytes.len());
            }
        }
        Ok(())
    }

    /// One field's.
    pub fn get(&self, field: usize) -> Option<&[u8]> {
        self.ranges.get(field).cloned().flatten().and_then(|range| self.bytes.get(range))
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> + Clone {
        self.ranges.iter().map(|range| range.clone().and_then(|range| self.bytes.get(range)))
    }
}

/// Shows every row of a file, in its order: the table's name in the schema, its fields and the row's values.
/// Gives the number of rows by table.
pub fn visit_file(
    file: &Input,
    schema: &Schema,
    mut visit: impl FnMut(&Known, &Values) -> Result<()>,
) -> Result<BTreeMap<String, i64>> {
    let mut reader = Reader::open(file)?;
    let mut decoder = Decoder::new(known(schema));
    let (mut row, mut values, mut counts) = (RawRow::default(), Values::default(), BTreeMap::<String, i64>::new());
    while reader.next(&mut row)? {
        let place = decoder.place(&row).map_err(|what| reader.fault(what))?;
        if place.fields.len() != place.known.fields.len() {
            return Err(reader.fault(format!("a row of {} has not all columns", place.known.table)));
        }
        values.read(&row, &place).map_err(|what| reader.fault(what))?;
        visit(place.known, &values)?;
        match counts.get_mut(&place.known.table) {
            Some(count) => *count += 1,
            None => drop(counts.insert(place.known.table.clone(), 1)),
        }
    }
    let wrong = reader.miscounted(|name| {
        let table = known(schema).remove(name.as_bytes()).map(|known| known.table);
        table.and_then(|table| counts.get(&table).copied()).unwrap_or_default()
    });
    if !wrong.is_empty() {
        return Err(reader.fault(wrong.join("; ")));
    }
    Ok(counts)
}

/// The digests of a file's rows, computed from its bytes. Sequences are in no file.
pub fn digest_file(file: &Input, schema: &Schema) -> Result<DataDigest> {
    let mut sums: BTreeMap<String, RowSums> = BTreeMap::new();
    visit_file(file, schema, |known, values| {
        let hash = row_hash(values.iter());
        match sums.get_mut(&known.table) {
            Some(sum) => sum.add(&hash),
            None => sums.entry(known.table.clone()).or_default().add(&hash),
        }
        Ok(())
    })?;
    let tables = sums.into_iter().map(|(table, sums)| (table, sums.finish())).collect();
    Ok(DataDigest { tables, ..DataDigest::default() })
}

/// COPY of a table's own rows, each value as `::text` gives it.
pub(super) fn copy_sql(table: &str, relation: &Relation) -> String {
    let columns: Vec<_> = relation.columns.keys().map(|column| format!("{}::text", quote_ident(column))).collect();
    format!("COPY (SELECT {} FROM ONLY {table}) TO STDOUT", columns.join(", "))
}

/// Sends a table's rows, as COPY writes them, in pieces that end where a row ends. A receiver that went away is no error:
/// whoever has it knows why.
pub(super) async fn send_rows(
    session: &mut PgConnection,
    table: &str,
    relation: &Relation,
    pieces: mpsc::Sender<Vec<u8>>,
) -> Result<()> {
    let failed = |error| Error::query(format!("reading the rows of {table}"))(error);
    let mut rows = session.copy_out_raw(&copy_sql(table, relation)).await.map_err(failed)?;
    let mut piece = Vec::with_capacity(PIECE + PIECE / 4);
    while let Some(bytes) = rows.next().await {
        piece.extend_from_slice(&bytes.map_err(failed)?);
        if piece.len() >= PIECE
            && let Some(end) = memchr::memrchr(b'\n', &piece)
        {
            let mut rest = Vec::with_capacity(PIECE + PIECE / 4);
            rest.extend_from_slice(piece.get(end + 1..).unwrap_or_default());
            piece.truncate(end + 1);
            if pieces.send(std::mem::replace(&mut piece, rest)).await.is_err() {
                return Ok(());
            }
        }
    }
    if !piece.is_empty() {
        let _ = pieces.send(piece).await;
    }
    Ok(())
}

/// Shows every row of a live table: its values as texts, in the byte order of the columns' names.
pub(crate) async fn visit_table(
    session: &mut PgConnection,
    table: &str,
    relation: &Relation,
    mut visit: impl FnMut(&mut dyn Iterator<Item = Option<&[u8]>>) -> Result<()> + Send,
) -> Result<()> {
    let columns = relation.columns.len();
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(WAITING);
    let visiting = async {
        let mut row = copy_text::Row::default();
        while let Some(piece) = receiver.recv().await {
            for line in lines(&piece) {
                row.parse(line, columns).ok_or_else(|| misread(table))?;
                visit(&mut row.values(line))?;
            }
        }
        Ok(())
    };
    let ((), ()) = tokio::try_join!(send_rows(session, table, relation, sender), visiting)?;
    Ok(())
}

/// The lines of a piece, without their breaks.
pub(super) fn lines(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut begin = 0;
    memchr::memchr_iter(b'\n', piece).map(move |end| {
        let line = piece.get(begin..end).unwrap_or_default();
        begin = end + 1;
        line
    })
}

pub(super) fn misread(table: &str) -> Error {
    Error::Order { what: format!("the server's rows of {table} do not have its columns") }
}
