//! The coverage gate: names whatever of a live database would not be in an export.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use crate::snapshot::{
    Error, Result,
    schema::{Kind, Schema},
};

/// What no export of ours holds, by name.
pub(super) async fn unsupported(session: &mut PgConnection, schema: &Schema) -> Result<Vec<String>> {
    let foreign = schema.relations.iter().filter(|(_, relation)| relation.kind == Kind::ForeignTable);
    let mut lines: Vec<_> = foreign.map(|(name, _)| format!("foreign table {name}")).collect();
    let (objects,): (i64,) = sqlx::query_as("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata")
        .fetch_one(session)
        .await
        .map_err(Error::query("looking for large objects"))?;
    if objects > 0 {
        lines.push(format!("{objects} large objects (pg_largeobject)"));
    }
    Ok(lines)
}

/// What was written: tables with their columns, and sequences.
pub(super) struct Written<'a> {
    pub columns: BTreeMap<&'a str, BTreeSet<&'a str>>,
    pub sequences: BTreeSet<&'a str>,
}

/// Every table, column and sequence of `live` that is not among what was written.
pub(super) fn gaps(live: &Schema, written: &Written<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for (table, relation) in live.tables() {
        let Some(columns) = written.columns.get(table) else {
            lines.push(format!("table {table}"));
            continue;
        };
        let missing = relation.columns.keys().filter(|column| !columns.contains(column.as_str()));
        lines.extend(missing.map(|column| format!("column {column} of table {table}")));
    }
    let missing = live.sequences.keys().filter(|name| !written.sequences.contains(name.as_str()));
    lines.extend(missing.map(|name| format!("sequence {name}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::schema::{Column, Relation, Sequence};

    #[test]
    fn tables_columns_and_sequences_that_are_left_out_are_named() {
        let relation = |columns: &[&str], kind| Relation {
            kind,
            columns: columns.iter().map(|name| ((*name).to_owned(), Column::default())).collect(),
            ..Relation::default()
        };
        let live = Schema {
            relations: [
                ("public.a".to_owned(), relation(&["x", "y"], Kind::Table)),
                ("public.b".to_owned(), relation(&["x"], Kind::Table)),
                ("public.v".to_owned(), relation(&["x"], Kind::View)),
            ]
            .into(),
            sequences: [("public.s".to_owned(), Sequence::default())].into(),
            ..Schema::default()
        };
        let written = Written { columns: [("public.a", ["x"].into())].into(), sequences: BTreeSet::new() };
        assert_eq!(gaps(&live, &written), ["column y of table public.a", "table public.b", "sequence public.s"]);
    }
}
