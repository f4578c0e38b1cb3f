//! What two databases of different engines can be compared by: tables, columns, nullability and primary keys.

use std::collections::BTreeMap;

use super::Schema as Sqlite;
use crate::snapshot::schema::{Comparison, Kind, Schema as Postgresql};

/// A schema without anything that only one engine knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neutral {
    tables: BTreeMap<String, Table>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    columns: BTreeMap<String, Column>,
    primary_key: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    nullable: bool,
    /// Gets a value by itself when an insert leaves it out.
    filled: bool,
}

impl From<&Sqlite> for Neutral {
    fn from(schema: &Sqlite) -> Self {
        let tables = schema.tables.iter().filter(|(_, table)| !table.shadow).map(|(name, table)| {
            let columns = table.columns.iter().map(|(name, column)| {
                // Of SQLite's own accord only INTEGER keys are never NULL; other engines' keys all are.
                let nullable = column.nullable && !table.primary_key.contains(name);
                let numbered = column.data_type == "integer" && table.primary_key == [name.as_str()];
                let filled = column.default.is_some() || column.generated.is_some() || numbered;
                (name.clone(), Column { nullable, filled })
            });
            (name.clone(), Table { columns: columns.collect(), primary_key: table.primary_key.clone() })
        });
        Self { tables: tables.collect() }
    }
}

impl From<&Postgresql> for Neutral {
    fn from(schema: &Postgresql) -> Self {
        let tables = schema.relations.iter().filter(|(_, r)| matches!(r.kind, Kind::Table | Kind::PartitionedTable));
        let tables = tables.map(|(name, table)| {
            let columns = table.columns.iter().map(|(name, column)| {
                let filled = column.default.is_some() || column.identity.is_some();
                (name.clone(), Column { nullable: column.nullable, filled })
            });
            let name = name.strip_prefix("public.").unwrap_or(name).to_owned();
            (name, Table { columns: columns.collect(), primary_key: table.primary_key.clone() })
        });
        Self { tables: tables.collect() }
    }
}

pub fn compare(expected: &Neutral, actual: &Neutral) -> Comparison {
    let mut result = Comparison::default();
    for (name, table) in &expected.tables {
        let Some(found) = actual.tables.get(name) else {
            result.differences.push(format!("table {name}: missing"));
            continue;
        };
        for (column, wanted) in &table.columns {
            let word = |nullable| if nullable { "nullable" } else { "NOT NULL" };
            match found.columns.get(column) {
                None => result.differences.push(format!("column {name}.{column}: missing")),
                Some(found) if found.nullable != wanted.nullable => {
                    let words = (word(found.nullable), word(wanted.nullable));
                    result.differences.push(format!("column {name}.{column}: is {}, expected {}", words.0, words.1));
                }
                Some(_) => {}
            }
        }
        for (column, extra) in found.columns.iter().filter(|(column, _)| !table.columns.contains_key(*column)) {
            if extra.nullable || extra.filled {
                result.extra.push(format!("column {name}.{column}"));
            } else {
                let text = format!("column {name}.{column}: not expected, and NOT NULL without a default");
                result.differences.push(text);
            }
        }
        if table.primary_key != found.primary_key {
            let keys = (found.primary_key.join(", "), table.primary_key.join(", "));
            result.differences.push(format!("table {name}: primary key is ({}), expected ({})", keys.0, keys.1));
        }
    }
    let extra = actual.tables.keys().filter(|name| !expected.tables.contains_key(*name));
    result.extra.extend(extra.map(|name| format!("table {name}")));
    result
}
