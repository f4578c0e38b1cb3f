//! What was written between two copies of one database: rows by their keys, counted by SQLite itself in constant memory.

use std::path::Path;

use rusqlite::Connection;

use super::{
    open_copy,
    schema::{self, Table},
};
use crate::snapshot::{Error, Result, quote_ident};

/// One table's rows that are not as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub table: String,
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
}

/// Compares two copies; tables in which nothing changed are left out. Rows are told apart by their primary key, else by
/// their rowid; of columns that only one of them has nothing is said.
pub fn compare(before: &Path, after: &Path) -> Result<Vec<Changed>> {
    let connection = open_copy(after)?;
    let failed = || Error::sqlite("comparing with the baseline", after);
    let was = schema::read(&open_copy(before)?, before)?;
    let is = schema::read(&connection, after)?;
    connection.execute("ATTACH ?1 AS base", [before.to_string_lossy()]).map_err(failed())?;
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed());
    let mut changes = Vec::new();
    for name in was.tables.keys().chain(is.tables.keys().filter(|name| !was.tables.contains_key(*name))) {
        let quoted = quote_ident(name);
        let changed = match (was.tables.get(name), is.tables.get(name)) {
            (Some(was), Some(is)) => {
                let same_row = key(was, is);
                let missing = |from: &str, other: &str| {
                    format!(
                        "SELECT count(*) FROM {from}.{quoted} AS a WHERE NOT EXISTS (SELECT 1 FROM {other}.{quoted} AS b WHERE {same_row})"
                    )
                };
                let same = same_values(was, is);
                let updated = format!(
                    "SELECT count(*) FROM main.{quoted} AS a JOIN base.{quoted} AS b ON {same_row} WHERE NOT ({same})"
                );
                Changed {
                    table: name.clone(),
                    inserted: count(&missing("main", "base"))?,
                    updated: count(&updated)?,
                    deleted: count(&missing("base", "main"))?,
                }
            }
            (Some(_), None) => {
                let deleted = count(&format!("SELECT count(*) FROM base.{quoted}"))?;
                Changed { table: name.clone(), deleted, ..Changed::default() }
            }
            (None, _) => {
                let inserted = count(&format!("SELECT count(*) FROM main.{quoted}"))?;
                Changed { table: name.clone(), inserted, ..Changed::default() }
            }
        };
        if changed.inserted + changed.updated + changed.deleted > 0 {
            changes.push(changed);
        }
    }
    detach(&connection, after)?;
    Ok(changes)
}

fn detach(connection: &Connection, path: &Path) -> Result<()> {
    connection.execute("DETACH base", []).map(drop).map_err(Error::sqlite("closing the baseline beside", path))
}

/// The condition that two rows are one. `rowid` names the implicit key where no column of the table has that name.
fn key(was: &Table, is: &Table) -> String {
    if was.primary_key.is_empty() || was.primary_key != is.primary_key {
        let names = ["rowid", "_rowid_", "oid"];
        let taken =
            |name: &str| was.columns.keys().chain(is.columns.keys()).any(|column| column.eq_ignore_ascii_case(name));
        let name = names.into_iter().find(|name| !taken(name)).unwrap_or("rowid");
        return format!("a.{name} = b.{name}");
    }
    equal(was.primary_key.iter())
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
