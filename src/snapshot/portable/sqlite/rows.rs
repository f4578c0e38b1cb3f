//! Rows on their way between a file's JSON and SQLite's values.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, types::ValueRef};
use sha2::{Digest as _, Sha256};

use super::value::{Field, Stored};
use crate::snapshot::{
    Error, Result,
    digest::{DataDigest, RowSums},
    portable::{
        Input,
        json::read_string,
        read::{RawRow, Reader},
    },
    sqlite::{
        digest,
        schema::{Schema, Table},
    },
};

/// A table that a file may name, and its fields.
pub(super) type Known = BTreeMap<String, Vec<Field>>;

/// The tables of a schema; here each has the same name everywhere.
pub(super) fn known(schema: &Schema) -> Known {
    schema.tables.iter().map(|(name, table)| (name.clone(), Field::all(table))).collect()
}

/// Finds a row's table and fields. Rows of one table with the same members make a run.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    pub table: String,
    keys: Vec<Vec<u8>>,
    /// Which of the table's fields each member is.
    pub fields: Vec<usize>,
}

impl Decoder {
    /// True where the row begins a run.
    pub fn place(&mut self, row: &RawRow, known: &Known) -> Result<bool, String> {
        let same = |(key, member): (&Vec<u8>, _)| key == row.key(member);
        let goes_on = self.table.as_bytes() == row.table()
            && self.keys.len() == row.members.len()
            && self.keys.iter().zip(&row.members).all(same);
        if goes_on && !self.table.is_empty() {
            return Ok(false);
        }
        let name = String::from_utf8_lossy(row.table()).into_owned();
        let fields = known.get(&name).ok_or_else(|| format!("table {name} is not in the schema"))?;
        self.fields.clear();
        for member in &row.members {
            let mut key = Vec::new();
            read_string(row.key(member), &mut key).map_err(|error| error.to_string())?;
            let found = fields.iter().position(|field| field.name.as_bytes() == key);
            let missing = || format!("table {name} has no column {}", String::from_utf8_lossy(&key));
            self.fields.push(found.ok_or_else(missing)?);
        }
        self.keys = row.members.iter().map(|member| row.key(member).to_vec()).collect();
        self.table = name;
        Ok(true)
    }
}

/// One member's value.
pub(super) fn read(row: &RawRow, member: usize, field: &Field, table: &str) -> Result<Stored, String> {
    let raw = row.members.get(member).map(|member| row.value(member)).unwrap_or_default();
    field.read(raw).map_err(|error| format!("{table}.{}: {error}", field.name))
}

/// Shows every row of a file, in its order: the table's name, its fields, and the row's values in their order.
pub fn visit_file(
    file: &Input,
    schema: &Schema,
    mut visit: impl FnMut(&str, &[Field], &[Stored]) -> Result<()>,
) -> Result<()> {
    let known = known(schema);
    let mut reader = Reader::open(file)?;
    let (mut row, mut decoder) = (RawRow::default(), Decoder::default());
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    let mut values = Vec::new();
    while reader.next(&mut row)? {
        decoder.place(&row, &known).map_err(|what| reader.fault(what))?;
        let fields = known.get(&decoder.table).map(Vec::as_slice).unwrap_or_default();
        if decoder.fields.len() != fields.len() {
            return Err(reader.fault(format!("a row of {} has not all columns", decoder.table)));
        }
        values.clear();
        values.resize(fields.len(), Stored::Null);
        for (member, field) in decoder.fields.iter().enumerate() {
            if let (Some(slot), Some(known)) = (values.get_mut(*field), fields.get(*field)) {
                *slot = read(&row, member, known, &decoder.table).map_err(|what| reader.fault(what))?;
            }
        }
        visit(&decoder.table, fields, &values)?;
        match counts.get_mut(&decoder.table) {
            Some(count) => *count += 1,
            None => drop(counts.insert(decoder.table.clone(), 1)),
        }
    }
    let wrong = reader.miscounted(|name| counts.get(name).copied().unwrap_or_default());
    if wrong.is_empty() { Ok(()) } else { Err(reader.fault(wrong.join("; "))) }
}

/// The hash of a row by its values, as a digest adds it up.
pub fn row_hash<'a>(values: impl Iterator<Item = ValueRef<'a>>) -> [u8; 32] {
    let mut hash = Sha256::new();
    values.for_each(|value| digest::value(&mut hash, value));
    hash.finalize().into()
}

/// The digests of a file's rows, computed from its bytes. Sequences are in no file.
pub fn digest_file(file: &Input, schema: &Schema) -> Result<DataDigest> {
    let mut sums: BTreeMap<String, RowSums> = BTreeMap::new();
    visit_file(file, schema, |table, _, values| {
        let hash = row_hash(values.iter().map(Stored::borrowed));
        match sums.get_mut(table) {
            Some(sum) => sum.add(&hash),
            None => sums.entry(table.to_owned()).or_default().add(&hash),
        }
        Ok(())
    })?;
    let tables = sums.into_iter().map(|(table, sums)| (table, sums.finish())).collect();
    Ok(DataDigest { tables, ..DataDigest::default() })
}

/// Shows every row of a table in a file of SQLite's: its values in the byte order of their columns' names.
pub fn visit_table(
    connection: &Connection,
    path: &Path,
    name: &str,
    table: &Table,
    mut visit: impl FnMut(&[ValueRef<'_>]) -> Result<()>,
) -> Result<()> {
    let columns = digest::columns(table).count();
    let failed = |error| Error::sqlite(format!("reading every row of {name} in"), path)(error);
    let mut statement = connection.prepare(&digest::rows_sql(name, table)).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let values: Result<Vec<_>, _> = (0..columns).map(|column| row.get_ref(column)).collect();
        visit(&values.map_err(failed)?)?;
    }
    Ok(())
}
