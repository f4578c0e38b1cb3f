//! Imports an export, ours or the official tool's, into an SQLite file in one transaction that keeps everybody else from
//! writing: old rows out, new rows in, and no COMMIT before every digest is the manifest's.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use rusqlite::{Connection, Statement};
use tracing::info;

use super::{
    ENGINE,
    rows::{Decoder, known, read},
};
use crate::snapshot::{
    Error, Result,
    dump::first,
    portable::{
        Imported, Input, Manifest, Progress, Source,
        manifest::read_schema,
        read::{RawRow, Reader},
    },
    quote_ident,
    sqlite::{
        content, digest, open_for_rows,
        restore::raise_key,
        schema::{self, Schema},
    },
};

/// How many rows go by between two words of progress.
const STRIDE: i64 = 1000;

/// What is imported, and where.
pub struct Request<'a> {
    pub database: &'a Path,
    pub source: &'a Source,
    pub progress: Progress,
}

/// Replaces the rows of every table that the source has. Nothing is changed unless all of it is.
pub fn import(request: &Request<'_>) -> Result<Imported> {
    request.source.must_be(ENGINE)?;
    let path = request.database;
    let mut connection = open_for_rows(path)?;
    let transaction = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)
        .map_err(Error::sqlite("locking", path))?;
    let imported = within(request, &transaction)?;
    transaction.commit().map_err(Error::sqlite("committing the import into", path))?;
    Ok(imported)
}

fn within(request: &Request<'_>, connection: &Connection) -> Result<Imported> {
    let path = request.database;
    let live = schema::read(connection, path)?;
    let scope = match request.source {
        Source::Proved { place, manifest, keys } => {
            let exported: Schema = read_schema(place, manifest, keys)?;
            let unfit = unfit(&exported, &live);
            if !unfit.is_empty() {
                return Err(Error::TargetUnfit { what: first(&unfit) });
            }
            manifest.tables.keys().cloned().collect()
        }
        Source::Plain { file } => plain_scope(file, &live)?,
    };
    let dangling = content::dangling(connection, path)?;
    let positions = digest::sequences(connection, path, &live)?;
    for table in &scope {
        let emptied = connection.execute(&format!("DELETE FROM main.{}", quote_ident(table)), []);
        emptied.map_err(Error::sqlite(format!("emptying {table} in"), path))?;
    }
    let mut rows = 0;
    for file in request.source.files() {
        rows += fill(request, connection, &live, &file)?;
    }
    info!(rows, "the rows are in");
    let wanted = match request.source {
        Source::Proved { manifest, .. } => {
            prove(connection, path, manifest, &live)?;
            manifest.sequences.clone()
        }
        Source::Plain { .. } => {
            let now = content::dangling(connection, path)?;
            if now > dangling {
                let what = format!("{} rows point to rows that are not there", now - dangling);
                return Err(Error::ImportParity { what });
            }
            BTreeMap::new()
        }
    };
    for (table, position) in positions.iter().chain(&wanted) {
        if live.tables.get(table).is_some_and(|table| table.autoincrement) {
            raise_key(connection, table, position.last_value).map_err(Error::sqlite("raising keys in", path))?;
        }
    }
    Ok(Imported { tables: scope.len(), rows, proved: matches!(request.source, Source::Proved { .. }) })
}

/// What of an export the file cannot take, each line naming it.
fn unfit(exported: &Schema, live: &Schema) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, table) in &exported.tables {
        let Some(found) = live.tables.get(name) else {
            lines.push(format!("table {name} is missing"));
            continue;
        };
        for (column, known) in &table.columns {
            match found.columns.get(column) {
                None => lines.push(format!("column {column} of {name} is missing")),
                Some(there) if (&there.data_type, there.generated) != (&known.data_type, known.generated) => {
                    lines.push(format!("column {column} of {name} is {}, not {}", there.data_type, known.data_type));
                }
                Some(_) => {}
            }
        }
        let new = found.columns.keys().filter(|column| !table.columns.contains_key(*column));
        lines.extend(new.map(|column| format!("column {column} of {name} is not in the export")));
    }
    lines
}

/// Reads the whole file once, before anything is changed: which tables it has, and that it is not cut off.
fn plain_scope(file: &Input, live: &Schema) -> Result<BTreeSet<String>> {
    let mut reader = Reader::open(file)?;
    let mut row = RawRow::default();
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    while reader.next(&mut row)? {
        let name = String::from_utf8_lossy(row.table());
        match counts.get_mut(name.as_ref()) {
            Some(count) => *count += 1,
            None => drop(counts.insert(name.into_owned(), 1)),
        }
    }
    let wrong = reader.miscounted(|name| counts.get(name).copied().unwrap_or_default());
    if !wrong.is_empty() {
        return Err(reader.fault(wrong.join("; ")));
    }
    let named = reader.metadata().into_iter().flat_map(|metadata| metadata.tables.iter().map(|t| t.name.clone()));
    let scope: BTreeSet<String> = named.chain(counts.into_keys()).collect();
    let missing = scope.iter().filter(|name| !live.tables.contains_key(*name));
    let missing: Vec<_> = missing.map(|name| format!("table {name} is missing")).collect();
    if missing.is_empty() { Ok(scope) } else { Err(Error::TargetUnfit { what: first(&missing) }) }
}

/// Inserts a file's rows; gives their number.
fn fill(request: &Request<'_>, connection: &Connection, live: &Schema, file: &Input) -> Result<i64> {
    let path = request.database;
    let known = known(live);
    let mut reader = Reader::open(file)?;
    let (mut row, mut decoder) = (RawRow::default(), Decoder::default());
    let mut statement: Option<Statement<'_>> = None;
    let (mut count, mut of_table) = (0, 0);
    while reader.next(&mut row)? {
        let begins = decoder.place(&row, &known).map_err(|what| reader.fault(what))?;
        let table = decoder.table.as_str();
        let fields = known.get(table).map(Vec::as_slice).unwrap_or_default();
        let sent = || {
            let fields = decoder.fields.iter().enumerate().filter_map(|(at, field)| Some((at, fields.get(*field)?)));
            fields.filter(|(_, field)| !field.generated)
        };
        let failed = |error| Error::sqlite(format!("inserting a row of {table} into"), path)(error);
        if begins {
            of_table = 0;
            let columns: Vec<_> = sent().map(|(_, field)| quote_ident(&field.name)).collect();
            let places = vec!["?"; columns.len()].join(", ");
            let sql = if columns.is_empty() {
                format!("INSERT INTO main.{} DEFAULT VALUES", quote_ident(table))
            } else {
                format!("INSERT INTO main.{} ({}) VALUES ({places})", quote_ident(table), columns.join(", "))
            };
            statement = Some(connection.prepare(&sql).map_err(failed)?);
        }
        let Some(insert) = statement.as_mut() else { continue };
        for (place, (member, field)) in sent().enumerate() {
            let value = read(&row, member, field, table).map_err(|what| reader.fault(what))?;
            insert.raw_bind_parameter(place + 1, value).map_err(failed)?;
        }
        insert.raw_execute().map_err(failed)?;
        (count, of_table) = (count + 1, of_table + 1);
        if of_table % STRIDE == 0 {
            let expected = request.source.manifest().and_then(|manifest| manifest.tables.get(table));
            (request.progress)(table, of_table, expected.map(|table| table.content.rows));
        }
    }
    Ok(count)
}

/// Every table's digest, as it is now, must be the manifest's.
fn prove(connection: &Connection, path: &Path, manifest: &Manifest, live: &Schema) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, table) in &manifest.tables {
        let Some(known) = live.tables.get(name) else { continue };
        let found = digest::table(connection, path, name, known)?;
        if found.rows != table.content.rows {
            wrong.push(format!("table {name} has {} rows, the export {}", found.rows, table.content.rows));
        } else if found != table.content {
            wrong.push(format!("table {name} has {} rows, but not the same", found.rows));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Error::ImportParity { what: first(&wrong) }) }
}
