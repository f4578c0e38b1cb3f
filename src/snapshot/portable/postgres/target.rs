//! Whether a database can take an export: every table with the same columns of the same types.

use crate::snapshot::schema::{Kind, Schema};

/// What is missing or different, each line naming it. Indexes, keys and defaults may differ: rows do not depend on them.
pub(super) fn unfit(exported: &Schema, live: &Schema) -> Vec<String> {
    let mut lines = Vec::new();
    for (table, relation) in exported.tables() {
        let Some(found) = live.relations.get(table).filter(|found| found.kind == Kind::Table) else {
            lines.push(format!("table {table} is missing"));
            continue;
        };
        for (name, column) in &relation.columns {
            match found.columns.get(name) {
                None => lines.push(format!("column {name} of {table} is missing")),
                Some(there) if there.data_type != column.data_type => {
                    lines.push(format!("column {name} of {table} is {}, not {}", there.data_type, column.data_type));
                }
                Some(there) if there.generated != column.generated => {
                    lines.push(format!("column {name} of {table} is generated on one side only"));
                }
                Some(_) => {}
            }
        }
        let new = found.columns.keys().filter(|name| !relation.columns.contains_key(*name));
        lines.extend(new.map(|name| format!("column {name} of {table} is not in the export")));
    }
    let missing = exported.sequences.keys().filter(|name| !live.sequences.contains_key(*name));
    lines.extend(missing.map(|name| format!("sequence {name} is missing")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::schema::{Column, Relation};

    #[test]
    fn what_is_missing_or_different_is_named() {
        let schema = |tables: &[(&str, &[(&str, &str)])]| {
            let column = |(name, data_type): &(&str, &str)| {
                ((*name).to_owned(), Column { data_type: (*data_type).to_owned(), ..Column::default() })
            };
            let relation = |columns: &[(&str, &str)]| Relation {
                columns: columns.iter().map(column).collect(),
                ..Relation::default()
            };
            let tables = tables.iter().map(|(name, columns)| ((*name).to_owned(), relation(columns)));
            Schema { relations: tables.collect(), ..Schema::default() }
        };
        let exported = schema(&[("a", &[("x", "text"), ("y", "integer")]), ("b", &[])]);
        let live = schema(&[("a", &[("y", "bigint"), ("z", "text")])]);
        assert_eq!(
            unfit(&exported, &live),
            [
                "column x of a is missing",
                "column y of a is bigint, not integer",
                "column z of a is not in the export",
                "table b is missing"
            ]
        );
        assert!(unfit(&exported, &exported).is_empty());
    }
}
