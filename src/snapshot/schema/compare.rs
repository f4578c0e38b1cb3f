//! Compares an expected schema with an actual one. Missing or different is a difference; what nobody expected is extra.
//! Names of constraints and indexes, column order and how a key is numbered are nobody's concern.

use std::collections::{BTreeMap, BTreeSet};

use super::{Column, Kind, Relation, Schema, normal};

/// How the actual schema departs from the expected one, each line naming its object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Expected objects that are missing or different.
    pub differences: Vec<String>,
    /// Objects that nobody expected.
    pub extra: Vec<String>,
}

/// Compares structure. The operator's own schema is in neither.
pub fn compare(expected: &Schema, actual: &Schema) -> Comparison {
    let mut result = Comparison::default();
    for (name, relation) in &expected.relations {
        match actual.relations.get(name) {
            None => result.missing(relation.kind.word(), name),
            Some(found) => relations(&mut result, name, relation, found),
        }
    }
    for (name, relation) in actual.relations.iter().filter(|(name, _)| !expected.relations.contains_key(*name)) {
        result.extra.push(format!("{} {}", relation.kind.word(), short(name)));
    }
    let own = |schema: &Schema| -> BTreeMap<String, String> {
        let free = schema.sequences.iter().filter(|(_, sequence)| sequence.owned_by.is_none());
        free.map(|(name, s)| {
            (name.clone(), format!("increment {}{}", s.increment, if s.cycle { " cycle" } else { "" }))
        })
        .collect()
    };
    result.named("sequence", &own(expected), &own(actual));
    for (name, labels) in &expected.enums {
        let Some(found) = actual.enums.get(name) else {
            result.missing("enum", name);
            continue;
        };
        for label in labels.iter().filter(|label| !found.contains(label)) {
            result.differences.push(format!("enum {}: label {label} missing", short(name)));
        }
        for label in found.iter().filter(|label| !labels.contains(label)) {
            result.extra.push(format!("enum {}: label {label}", short(name)));
        }
    }
    for name in actual.enums.keys().filter(|name| !expected.enums.contains_key(*name)) {
        result.extra.push(format!("enum {}", short(name)));
    }
    result.named("type", &expected.types, &actual.types);
    result.named("function", &expected.functions, &actual.functions);
    let names = |set: &BTreeSet<String>| set.iter().map(|name| (name.clone(), String::new())).collect();
    result.named("extension", &names(&expected.extensions), &names(&actual.extensions));
    result
}

impl Comparison {
    fn missing(&mut self, what: &str, name: &str) {
        self.differences.push(format!("{what} {}: missing", short(name)));
    }

    fn named(&mut self, what: &str, expected: &BTreeMap<String, String>, actual: &BTreeMap<String, String>) {
        for (name, value) in expected {
            match actual.get(name) {
                None => self.missing(what, name),
                Some(found) if normal(found) != normal(value) => {
                    self.differences.push(format!("{what} {}: different", short(name)));
                }
                Some(_) => {}
            }
        }
        for name in actual.keys().filter(|name| !expected.contains_key(*name)) {
            self.extra.push(format!("{what} {}", short(name)));
        }
    }

    fn sets(&mut self, place: &str, what: &str, expected: &BTreeSet<String>, actual: &BTreeSet<String>) {
        let normals = |set: &BTreeSet<String>| set.iter().map(|text| normal(text)).collect::<BTreeSet<_>>();
        let (wanted, found) = (normals(expected), normals(actual));
        for text in expected.iter().filter(|text| !found.contains(&normal(text))) {
            self.differences.push(format!("{place}: {what} {text} missing"));
        }
        for text in actual.iter().filter(|text| !wanted.contains(&normal(text))) {
            self.extra.push(format!("{place}: {what} {text}"));
        }
    }
}

/// `public.` goes without saying.
fn short(name: &str) -> &str {
    name.strip_prefix("public.").unwrap_or(name)
}

fn relations(result: &mut Comparison, name: &str, expected: &Relation, actual: &Relation) {
    let place = format!("{} {}", expected.kind.word(), short(name));
    if expected.kind != actual.kind {
        result.differences.push(format!("{place}: is a {}", actual.kind.word()));
        return;
    }
    let is_table = matches!(expected.kind, Kind::Table | Kind::PartitionedTable);
    for (column, wanted) in &expected.columns {
        let place = format!("column {}.{column}", short(name));
        match actual.columns.get(column) {
            None => result.differences.push(format!("{place}: missing")),
            Some(found) => columns(result, &place, wanted, found),
        }
    }
    for (column, found) in actual.columns.iter().filter(|(column, _)| !expected.columns.contains_key(*column)) {
        let place = format!("column {}.{column}", short(name));
        if is_table && !found.nullable && found.default.is_none() && found.identity.is_none() {
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
    if lines(expected) != lines(actual) {
        result.differences.push(format!("{place}: its query is different"));
    }
    result.sets(&place, "constraint", &expected.constraints, &actual.constraints);
    result.sets(&place, "index", &expected.indexes, &actual.indexes);
    result.sets(&place, "trigger", &expected.triggers, &actual.triggers);
    result.sets(&place, "policy", &expected.policies, &actual.policies);
    result.sets(&place, "partition or parent", &expected.inheritance, &actual.inheritance);
    if expected.force_row_security != actual.force_row_security || expected.row_security != actual.row_security {
        result.differences.push(format!("{place}: row security is different"));
    }
}

/// The lines of a view's query, whatever their order: `SELECT *` lists columns as the table happens to have them.
fn lines(view: &Relation) -> Vec<String> {
    let text = view.definition.as_deref().unwrap_or_default();
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| normal(line.trim().trim_start_matches("SELECT ").trim_end_matches([',', ';'])))
        .collect();
    lines.sort();
    lines
}

fn columns(result: &mut Comparison, place: &str, expected: &Column, actual: &Column) {
    let same_type = |column: &Column| match column.data_type.as_str() {
        // Without a length the two are one type by two names.
        "character varying" => "text".to_owned(),
        other => other.to_owned(),
    };
    if same_type(expected) != same_type(actual) {
        result.differences.push(format!("{place}: type is {}, expected {}", actual.data_type, expected.data_type));
    }
    if expected.nullable != actual.nullable {
        let word = |nullable| if nullable { "nullable" } else { "NOT NULL" };
        result.differences.push(format!("{place}: is {}, expected {}", word(actual.nullable), word(expected.nullable)));
    }
    if expected.collation != actual.collation || expected.generated != actual.generated {
        result.differences.push(format!("{place}: collation or generation is different"));
    }
    match (value(expected), value(actual)) {
        (None, None) => {}
        (None, Some(found)) => result.extra.push(format!("{place}: default {found}")),
        (Some(wanted), None) => result.differences.push(format!("{place}: default {wanted} missing")),
        (Some(wanted), Some(found)) if normal(&wanted) != normal(&found) => {
            result.differences.push(format!("{place}: default is {found}, expected {wanted}"));
        }
        (Some(_), Some(_)) => {}
    }
}

/// What a column gets by itself. Serial, identity and any other sequence number a row alike.
fn value(column: &Column) -> Option<String> {
    match (&column.identity, &column.default) {
        (Some(_), _) => Some("the next number".to_owned()),
        (None, Some(default)) if default.starts_with("nextval(") => Some("the next number".to_owned()),
        (None, default) => default.clone(),
    }
}
