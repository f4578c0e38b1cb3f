//! An SQLite database's schema: what it is made of, its fingerprint, and how two of them differ.

mod compare;
mod neutral;
mod read;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::snapshot::sha256_hex;

pub use compare::compare;
pub use neutral::{Neutral, compare as compare_neutral};
pub use read::read;

/// Everything but SQLite's own tables. `docs/formats.md` shows it as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Schema {
    pub tables: BTreeMap<String, Table>,
    /// SQL of each view, in one spelling.
    pub views: BTreeMap<String, String>,
    /// SQL of each trigger, in one spelling.
    pub triggers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub virtual_tables: BTreeMap<String, VirtualTable>,
}

/// A table with rows of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Table {
    pub columns: BTreeMap<String, Column>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub primary_key: Vec<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub foreign_keys: BTreeSet<String>,
    /// Conditions of CHECK constraints.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub checks: BTreeSet<String>,
    /// Columns, collations and condition, without their names; unique constraints are unique indexes.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub indexes: BTreeSet<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub without_rowid: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub autoincrement: bool,
    /// Keeps the content of a virtual table.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// Its CREATE TABLE, in one spelling.
    pub sql: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Column {
    /// As declared, in lower case.
    #[serde(rename = "type")]
    pub data_type: String,
    pub nullable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Where it is not BINARY.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generated: Option<Generated>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Generated {
    /// Computed whenever it is read.
    Virtual,
    Stored,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualTable {
    pub module: String,
    pub sql: String,
}

/// Modules that keep all they have in tables of the same file.
const UNDERSTOOD: [&str; 5] = ["fts3", "fts4", "fts5", "rtree", "rtree_i32"];

impl Schema {
    /// SHA-256 over the whole, text of every object included.
    pub fn fingerprint(&self) -> String {
        sha256_hex(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Virtual tables whose data may lie anywhere, as `table (module)`.
    pub fn not_understood(&self) -> Vec<String> {
        let unknown = self.virtual_tables.iter().filter(|(_, table)| !UNDERSTOOD.contains(&table.module.as_str()));
        unknown.map(|(name, table)| format!("{name} (module {})", table.module)).collect()
    }
}

/// Which objects are not exactly the same, each line naming one.
pub fn changes(expected: &Schema, found: &Schema) -> Vec<String> {
    let mut lines = unequal("table", &expected.tables, &found.tables);
    lines.extend(unequal("view", &expected.views, &found.views));
    lines.extend(unequal("trigger", &expected.triggers, &found.triggers));
    lines.extend(unequal("virtual table", &expected.virtual_tables, &found.virtual_tables));
    lines
}

fn unequal<T: PartialEq>(what: &str, expected: &BTreeMap<String, T>, found: &BTreeMap<String, T>) -> Vec<String> {
    let kept = expected.iter().filter(|(name, object)| found.get(*name) != Some(*object));
    let mut lines: Vec<_> = kept.map(|(name, _)| format!("{what} {name}: missing or defined differently")).collect();
    let new = found.keys().filter(|name| !expected.contains_key(*name));
    lines.extend(new.map(|name| format!("{what} {name}: not expected")));
    lines
}
