//! Compares any two of: a live database, an exact snapshot, a portable export. Digests tell whether a table is the same;
//! where it is not, rows are compared one by one, in memory that does not grow with them.

mod rows;
mod side;

use serde::Serialize;

use super::Progress;
use crate::snapshot::{
    Error, Result, dump,
    schema::{self, Schema},
    sqlite,
};
use rows::Spill;
use side::{AnySchema, Opened};

pub use side::Side;

/// How two sides differ. The first is what the second is measured by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub same: bool,
    pub tables_compared: usize,
    pub rows_compared: i64,
    /// Only tables that differ.
    pub tables: Vec<TableReport>,
    /// Sequences that are missing or behind, and what of the schema is different: a line each.
    pub sequences: Vec<String>,
    pub schema: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableReport {
    pub table: String,
    /// `None` where the table is missing.
    pub rows: [Option<i64>; 2],
    /// Row by row; `None` where one side cannot show its rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differing: Option<Differing>,
}

/// Rows by their keys. Of a table without a key a changed row is one on each side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Differing {
    pub only_first: u64,
    pub only_second: u64,
    pub changed: u64,
    /// Of the first few: what it is, and the key as JSON. Never another value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<(Change, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    OnlyFirst,
    OnlySecond,
    Changed,
}

/// Compares two sides; of each table that differs it shows the keys of up to so many rows.
pub async fn compare(first: &Side, second: &Side, keys: usize, progress: &Progress) -> Result<Report> {
    let mut first = side::open(first, progress).await?;
    let mut second = side::open(second, progress).await?;
    if first.engine() != second.engine() {
        return Err(Error::OtherEngine { found: first.engine().to_owned(), wanted: second.engine() });
    }
    let (before, after) = (first.data.clone(), second.data.clone());
    let mut tables = Vec::new();
    let names: std::collections::BTreeSet<_> = before.tables.keys().chain(after.tables.keys()).collect();
    for name in &names {
        let contents = (before.tables.get(*name), after.tables.get(*name));
        if contents.0 == contents.1 {
            continue;
        }
        let rows = [contents.0, contents.1].map(|content| content.map(|content| content.rows));
        let differing = match rows {
            [Some(_), Some(_)] => row_by_row(&mut first, &mut second, name, keys).await?,
            _ => None,
        };
        tables.push(TableReport { table: (*name).clone(), rows, differing });
    }
    let directions = match &first.schema {
        AnySchema::Postgres(schema) => schema.clone(),
        AnySchema::Sqlite(_) => Schema::default(),
    };
    let lines = before.differences(&after, &directions);
    let sequences: Vec<_> = lines.into_iter().filter(|line| line.starts_with("sequence ")).collect();
    let schema = structure(&first.schema, &second.schema);
    let same = tables.is_empty() && sequences.is_empty() && schema.is_empty();
    Ok(Report { same, tables_compared: names.len(), rows_compared: before.rows(), tables, sequences, schema })
}

fn structure(first: &AnySchema, second: &AnySchema) -> Vec<String> {
    match (first, second) {
        (AnySchema::Postgres(first), AnySchema::Postgres(second)) => {
            if first.fingerprint() == second.fingerprint() {
                return Vec::new();
            }
            let mut found = schema::compare(first, second);
            found.differences.append(&mut found.extra);
            if found.differences.is_empty() {
                found.differences.push("the fingerprints are different".to_owned());
            }
            found.differences
        }
        (AnySchema::Sqlite(first), AnySchema::Sqlite(second)) => sqlite::schema::changes(first, second),
        _ => vec![dump::first(&["the databases are of different kinds".to_owned()])],
    }
}

async fn row_by_row(first: &mut Opened, second: &mut Opened, table: &str, keys: usize) -> Result<Option<Differing>> {
    let Some(before) = first.spill(table, keys > 0).await? else { return Ok(None) };
    let Some(after) = second.spill(table, keys > 0).await? else { return Ok(None) };
    let compared = tokio::task::spawn_blocking(move || Spill::compare(before, after, keys)).await;
    compared.map_err(|error| Error::Order { what: format!("a thread ended early: {error}") })?.map(Some)
}
