//! What was written between two copies of one database: rows by their keys, told apart by SQLite itself in constant memory.

use std::{collections::BTreeSet, path::Path};

use rusqlite::{Connection, types::ValueRef};

use super::{
    digest, open_copy,
    schema::{self, Table},
};
use crate::{
    api::upgrade::TableLate,
    snapshot::{
        Error, Result, hex,
        late::{
            Late,
            set_aside::{Output, file_name},
        },
        portable::{
            json::write_string,
            sqlite::{Field, row_hash},
            value::write_tagged,
        },
        quote_ident,
    },
};

/// Compares the database with the baseline's copy, and sets what was written since aside in `directory`. Rows are told apart
/// by their primary key, else by their rowid; of columns that only one of the two has nothing is said.
pub fn compare((before, sha256): (&Path, &str), after: &Path, directory: &Path) -> Result<Late> {
    let connection = open_copy(after)?;
    let was = schema::read(&open_copy(before)?, before)?;
    let is = schema::read(&connection, after)?;
    let attached = connection.execute("ATTACH ?1 AS base", [before.to_string_lossy()]);
    attached.map_err(Error::sqlite("comparing with the baseline", after))?;
    let mut late = Late::new(sha256);
    let names: BTreeSet<&String> = was.tables.keys().chain(is.tables.keys()).collect();
    for (number, name) in (1..).zip(names) {
        let mut output = Output::create(directory.join(file_name(number)))?;
        let mut writer = Writer { connection: &connection, after, name, output: &mut output };
        let found = writer.table(was.tables.get(name), is.tables.get(name))?;
        let columns = is.tables.get(name).map(|table| digest::columns(table).map(|(name, _)| name.clone()).collect());
        late.add(found, columns.unwrap_or_default(), output)?;
    }
    detach(&connection, after)?;
    late.keep(directory)?;
    Ok(late)
}

/// Writes out one table's rows.
struct Writer<'a> {
    connection: &'a Connection,
    after: &'a Path,
    name: &'a str,
    output: &'a mut Output,
}

impl Writer<'_> {
    fn table(&mut self, was: Option<&Table>, is: Option<&Table>) -> Result<TableLate> {
        let quoted = quote_ident(self.name);
        let (inserted, updated, deleted) = match (was, is) {
            (Some(was), Some(is)) => {
                let same_row = key(was, is);
                let missing = |from: &str, other: &str| {
                    format!(
                        "{from}.{quoted} AS a WHERE NOT EXISTS (SELECT 1 FROM {other}.{quoted} AS b WHERE {same_row})"
                    )
                };
                let other = format!(
                    "main.{quoted} AS a JOIN base.{quoted} AS b ON {same_row} WHERE NOT ({})",
                    same_values(was, is)
                );
                (
                    self.rows("inserted", (is, None), &missing("main", "base"))?,
                    self.rows("updated", (is, Some(was)), &other)?,
                    self.rows("deleted", (was, None), &missing("base", "main"))?,
                )
            }
            (Some(was), None) => (0, 0, self.rows("deleted", (was, None), &format!("base.{quoted} AS a"))?),
            (None, Some(is)) => (self.rows("inserted", (is, None), &format!("main.{quoted} AS a"))?, 0, 0),
            (None, None) => (0, 0, 0),
        };
        Ok(TableLate { table: self.name.to_owned(), inserted, updated, deleted, ..TableLate::default() })
    }

    /// One line for each row of `a`, a table like the first; `b` is what it was, a row of the second. Gives their number.
    /// Of a deleted row the line has the key and the hash alone.
    fn rows(&mut self, change: &str, (table, before): (&Table, Option<&Table>), from: &str) -> Result<i64> {
        let failed = |error| Error::sqlite("comparing with the baseline", self.after)(error);
        let fields = Field::all(table);
        let earlier = before.map(Field::all).unwrap_or_default();
        let rowid = if table.primary_key.is_empty() { rowid(&[table]) } else { None };
        let named = |alias: char| move |field: &Field| format!("{alias}.{}", quote_ident(&field.name));
        let columns = fields.iter().map(named('a')).chain(earlier.iter().map(named('b')));
        let columns: Vec<_> = columns.chain(rowid.map(|name| format!("a.{name}"))).collect();
        let mut statement =
            self.connection.prepare(&format!("SELECT {} FROM {from}", columns.join(", "))).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        let (mut count, mut line) = (0, Vec::new());
        while let Some(row) = rows.next().map_err(failed)? {
            let values: Result<Vec<_>, _> = (0..columns.len()).map(|at| row.get_ref(at)).collect();
            let values = values.map_err(failed)?;
            let (row, rest) = values.split_at(fields.len());
            let (was, id) = rest.split_at(earlier.len());
            line.clear();
            line.extend_from_slice(format!("{{\"change\":\"{change}\",\"key\":").as_bytes());
            match (rowid, id.first()) {
                (Some(name), Some(ValueRef::Integer(id))) => {
                    line.extend_from_slice(format!("{{\"{name}\":{id}}}").as_bytes());
                }
                _ => object(&mut line, &fields, row, |field| table.primary_key.contains(&field.name)),
            }
            let mut hashed = |name: &str, values: &[ValueRef<'_>]| {
                let hash = hex(&row_hash(values.iter().copied()));
                line.extend_from_slice(format!(",\"{name}\":\"{hash}\"").as_bytes());
            };
            if change == "deleted" {
                hashed("before", row);
            } else {
                if change == "updated" {
                    hashed("before", was);
                }
                hashed("rowHash", row);
                line.extend_from_slice(b",\"row\":");
                object(&mut line, &fields, row, |_| true);
            }
            line.push(b'}');
            self.output.line(&line)?;
            count += 1;
        }
        Ok(count)
    }
}

/// Appends some of a row's values as a JSON object.
fn object(line: &mut Vec<u8>, fields: &[Field], values: &[ValueRef<'_>], wanted: impl Fn(&Field) -> bool) {
    line.push(b'{');
    let mut first = true;
    for (field, value) in fields.iter().zip(values).filter(|(field, _)| wanted(field)) {
        if !std::mem::replace(&mut first, false) {
            line.push(b',');
        }
        write_string(field.name.as_bytes(), line);
        line.push(b':');
        match value {
            // JSON proper has no word for them.
            ValueRef::Real(real) if !real.is_finite() => write_tagged("real", real.to_string().as_bytes(), line),
            value => field.write(*value, line),
        }
    }
    line.push(b'}');
}

fn detach(connection: &Connection, path: &Path) -> Result<()> {
    connection.execute("DETACH base", []).map(drop).map_err(Error::sqlite("closing the baseline beside", path))
}

/// The condition that two rows are one. `rowid` names the implicit key where no column of the table has that name.
fn key(was: &Table, is: &Table) -> String {
    if was.primary_key.is_empty() || was.primary_key != is.primary_key {
        let name = rowid(&[was, is]).unwrap_or("rowid");
        return format!("a.{name} = b.{name}");
    }
    equal(was.primary_key.iter())
}

/// A name of the implicit key that no column has.
fn rowid(tables: &[&Table]) -> Option<&'static str> {
    let taken = |name: &str| {
        tables.iter().flat_map(|table| table.columns.keys()).any(|column| column.eq_ignore_ascii_case(name))
    };
    ["rowid", "_rowid_", "oid"].into_iter().find(|name| !taken(name))
}

fn same_values(was: &Table, is: &Table) -> String {
    let both = was.columns.iter().filter(|(name, column)| column.generated.is_none() && is.columns.contains_key(*name));
    let condition = equal(both.map(|(name, _)| name));
    if condition.is_empty() { "1".to_owned() } else { condition }
}

/// Exactly equal: collations and SQLite's own idea of equal numbers do not count.
fn equal<'a>(columns: impl Iterator<Item = &'a String>) -> String {
    let conditions: Vec<_> = columns
        .map(|column| {
            let column = quote_ident(column);
            format!("a.{column} IS b.{column} COLLATE BINARY AND typeof(a.{column}) = typeof(b.{column})")
        })
        .collect();
    conditions.join(" AND ")
}
