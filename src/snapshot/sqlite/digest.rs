//! Digests of data, row by row in constant memory, independent of the order of rows and columns: the same four sums as
//! of PostgreSQL's tables, over another form of a row. Of each value its storage class counts and its bytes, so `1`,
//! `1.0`, `'1'` and `x'31'` all differ.
//!
//! A rowid that is no column's name is not part of it, because VACUUM may give out others; neither are generated columns
//! that are computed when read.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, types::ValueRef};
use sha2::{Digest as _, Sha256};

use super::schema::{Column, Generated, Schema, Table};
use crate::snapshot::{
    Error, Result,
    digest::{DataDigest, RowSums, SequencePosition, TableDigest},
    quote_ident,
};

/// Digests one table.
pub fn table(connection: &Connection, path: &Path, name: &str, table: &Table) -> Result<TableDigest> {
    let columns = columns(table).count();
    let mut sums = RowSums::default();
    let mut read = || {
        let mut statement = connection.prepare(&rows_sql(name, table))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let mut hash = Sha256::new();
            for column in 0..columns {
                value(&mut hash, row.get_ref(column)?);
            }
            sums.add(&hash.finalize().into());
        }
        Ok(())
    };
    read().map_err(Error::sqlite(format!("reading every row of {name} in"), path))?;
    Ok(sums.finish())
}

/// The columns that count, in the byte order of their names.
pub(crate) fn columns(table: &Table) -> impl Iterator<Item = (&String, &Column)> {
    table.columns.iter().filter(|(_, column)| column.generated != Some(Generated::Virtual))
}

/// Selects those of every row. An index that covers them would be read in place of the table, if it were let.
pub(crate) fn rows_sql(name: &str, table: &Table) -> String {
    let columns: Vec<_> = columns(table).map(|(name, _)| quote_ident(name)).collect();
    format!("SELECT {} FROM main.{} NOT INDEXED", columns.join(", "), quote_ident(name))
}

/// One letter for the storage class, the length, the bytes.
pub(crate) fn value(hash: &mut Sha256, value: ValueRef<'_>) {
    let (letter, number);
    let bytes: &[u8] = match value {
        ValueRef::Null => {
            letter = b'n';
            &[]
        }
        ValueRef::Integer(integer) => {
            (letter, number) = (b'i', integer.to_be_bytes());
            &number
        }
        ValueRef::Real(real) => {
            (letter, number) = (b'r', real.to_bits().to_be_bytes());
            &number
        }
        ValueRef::Text(text) => {
            letter = b't';
            text
        }
        ValueRef::Blob(blob) => {
            letter = b'b';
            blob
        }
    };
    hash.update([letter]);
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

/// Digests every table and reads how far AUTOINCREMENT keys are; `progress` hears of each table.
pub fn all(
    connection: &Connection,
    path: &Path,
    schema: &Schema,
    mut progress: impl FnMut(&str, &TableDigest),
) -> Result<DataDigest> {
    let mut data = DataDigest::default();
    for (name, found) in &schema.tables {
        let digest = table(connection, path, name, found)?;
        progress(name, &digest);
        data.tables.insert(name.clone(), digest);
    }
    data.sequences = sequences(connection, path, schema)?;
    Ok(data)
}

/// How far AUTOINCREMENT keys are, by table.
pub(crate) fn sequences(
    connection: &Connection,
    path: &Path,
    schema: &Schema,
) -> Result<BTreeMap<String, SequencePosition>> {
    if !schema.tables.values().any(|table| table.autoincrement) {
        return Ok(BTreeMap::new());
    }
    let read = |mut statement: rusqlite::Statement<'_>| {
        statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?.collect::<Result<Vec<_>, _>>()
    };
    let rows: Vec<(String, i64)> = connection
        .prepare("SELECT name, CAST(seq AS INTEGER) FROM main.sqlite_sequence WHERE seq IS NOT NULL")
        .and_then(read)
        .map_err(Error::sqlite("reading sqlite_sequence in", path))?;
    let positions = rows.into_iter().map(|(name, at)| (name, SequencePosition { last_value: at, is_called: true }));
    Ok(positions.collect())
}
