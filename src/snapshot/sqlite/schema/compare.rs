//! Compares an expected schema with an actual one, by the same rules as PostgreSQL's. Of a declared type only its
//! affinity counts, unless the table is STRICT: SQLite treats `VARCHAR(20)` and `TEXT` alike.

use std::collections::{BTreeMap, BTreeSet};

use super::{Column, Schema, Table};
use crate::snapshot::schema::Comparison;

/// Missing or different is a difference; what nobody expected is extra.
pub fn compare(expected: &Schema, actual: &Schema) -> Comparison {
    let mut result = Comparison::default();
    for (name, table) in expected.tables.iter().filter(|(_, table)| !table.shadow) {
        match actual.tables.get(name) {
            None => result.differences.push(format!("table {name}: missing")),
            Some(found) => tables(&mut result, name, table, found),
        }
    }
    for (name, _) in actual.tables.iter().filter(|(name, t)| !t.shadow && !expected.tables.contains_key(*name)) {
        result.extra.push(format!("table {name}"));
    }
    named(&mut result, "view", &expected.views, &actual.views);
    named(&mut result, "trigger", &expected.triggers, &actual.triggers);
    let texts = |schema: &Schema| schema.virtual_tables.iter().map(|(n, t)| (n.clone(), t.sql.clone())).collect();
    named(&mut result, "virtual table", &texts(expected), &texts(actual));
    result
}

fn named(result: &mut Comparison, what: &str, expected: &BTreeMap<String, String>, actual: &BTreeMap<String, String>) {
    for (name, sql) in expected {
        match actual.get(name) {
            None => result.differences.push(format!("{what} {name}: missing")),
            Some(found) if found != sql => result.differences.push(format!("{what} {name}: different")),
            Some(_) => {}
        }
    }
    let extra = actual.keys().filter(|name| !expected.contains_key(*name));
    result.extra.extend(extra.map(|name| format!("{what} {name}")));
}

fn tables(result: &mut Comparison, name: &str, expected: &Table, actual: &Table) {
    let place = format!("table {name}");
    let strict = expected.strict && actual.strict;
    for (column, wanted) in &expected.columns {
        match actual.columns.get(column) {
            None => result.differences.push(format!("column {name}.{column}: missing")),
            Some(found) => columns(result, &format!("column {name}.{column}"), (wanted, found), strict),
        }
    }
    for (column, found) in actual.columns.iter().filter(|(column, _)| !expected.columns.contains_key(*column)) {
        let place = format!("column {name}.{column}");
        if !found.nullable && found.default.is_none() && found.generated.is_none() {
            // The new version does not know it, so each of its inserts would fail.
            result.differences.push(format!("{place}: not expected, and NOT NULL without a default"));
        } else {
            result.extra.push(place);
        }
    }
    if expected.primary_key != actual.primary_key {
        let keys = (expected.primary_key.join(", "), actual.primary_key.join(", "));
        result.differences.push(format!("{place}: primary key is ({}), expected ({})", keys.1, keys.0));
    }
    if (expected.strict, expected.without_rowid) != (actual.strict, actual.without_rowid) {
        result.differences.push(format!("{place}: STRICT or WITHOUT ROWID is different"));
    }
    sets(result, &place, "foreign key", &expected.foreign_keys, &actual.foreign_keys);
    sets(result, &place, "check", &expected.checks, &actual.checks);
    sets(result, &place, "index", &expected.indexes, &actual.indexes);
}

fn sets(result: &mut Comparison, place: &str, what: &str, expected: &BTreeSet<String>, actual: &BTreeSet<String>) {
    result.differences.extend(expected.difference(actual).map(|text| format!("{place}: {what} {text} missing")));
    result.extra.extend(actual.difference(expected).map(|text| format!("{place}: {what} {text}")));
}

fn columns(result: &mut Comparison, place: &str, (expected, actual): (&Column, &Column), strict: bool) {
    let kind = |column: &Column| if strict { column.data_type.clone() } else { affinity(&column.data_type).to_owned() };
    if kind(expected) != kind(actual) {
        let types =
            (&actual.data_type, affinity(&actual.data_type), &expected.data_type, affinity(&expected.data_type));
        let text = format!("{place}: type is {} ({}), expected {} ({})", types.0, types.1, types.2, types.3);
        result.differences.push(text);
    }
    if expected.nullable != actual.nullable {
        let word = |nullable| if nullable { "nullable" } else { "NOT NULL" };
        result.differences.push(format!("{place}: is {}, expected {}", word(actual.nullable), word(expected.nullable)));
    }
    if expected.collation != actual.collation || expected.generated != actual.generated {
        result.differences.push(format!("{place}: collation or generation is different"));
    }
    match (&expected.default, &actual.default) {
        (Some(wanted), None) => result.differences.push(format!("{place}: default {wanted} missing")),
        (Some(wanted), Some(found)) if wanted != found => {
            result.differences.push(format!("{place}: default is {found}, expected {wanted}"));
        }
        (None, Some(found)) => result.extra.push(format!("{place}: default {found}")),
        _ => {}
    }
}

/// By SQLite's rules, in their order.
fn affinity(declared: &str) -> &'static str {
    let has = |part: &str| declared.contains(part);
    match declared {
        _ if has("int") => "INTEGER",
        _ if has("char") || has("clob") || has("text") => "TEXT",
        declared if declared.is_empty() || has("blob") => "BLOB",
        _ if has("real") || has("floa") || has("doub") => "REAL",
        _ => "NUMERIC",
    }
}
