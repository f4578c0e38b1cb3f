//! A database's schema in canonical form: what it is made of, its fingerprint, and how two of them differ.
//! In scope is every schema of users but the operator's own; members of extensions are not.

mod compare;
mod read;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::sha256_hex;

pub use compare::{Comparison, compare};
pub use read::read;

/// The operator's own schema with its markers: outside every snapshot, fingerprint and comparison.
pub const OPERATOR_SCHEMA: &str = "memoria_operator";

/// Everything in scope. Keys are names as SQL writes them, with schema. `docs/formats.md` shows it as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Schema {
    pub schemas: BTreeSet<String>,
    pub extensions: BTreeSet<String>,
    pub relations: BTreeMap<String, Relation>,
    pub sequences: BTreeMap<String, Sequence>,
    /// Labels in their order.
    pub enums: BTreeMap<String, Vec<String>>,
    /// Domains, composite and range types: what they are made of.
    pub types: BTreeMap<String, String>,
    /// SHA-256 of each definition, by name and argument types.
    pub functions: BTreeMap<String, String>,
    /// Owners, grants and publications: not part of the fingerprint, compared on their own.
    pub access: Access,
}

/// A table, view, materialised or foreign table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Relation {
    pub schema: String,
    pub name: String,
    pub kind: Kind,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unlogged: bool,
    pub columns: BTreeMap<String, Column>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub primary_key: Vec<String>,
    /// Foreign keys, checks and exclusions, without their names.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub constraints: BTreeSet<String>,
    /// Method, columns and condition, without their names; unique constraints are unique indexes.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub indexes: BTreeSet<String>,
    /// Triggers and rules, whole.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub triggers: BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub policies: BTreeSet<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub row_security: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force_row_security: bool,
    /// Of a view: its query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// Partition key, bounds and parents.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub inheritance: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    #[default]
    Table,
    PartitionedTable,
    View,
    MaterializedView,
    ForeignTable,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Table | Self::PartitionedTable => "table",
            Self::View => "view",
            Self::MaterializedView => "materialized view",
            Self::ForeignTable => "foreign table",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Column {
    #[serde(rename = "type")]
    pub data_type: String,
    pub nullable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// `always` or `byDefault`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The default is a generation expression.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub generated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collation: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sequence {
    #[serde(rename = "type")]
    pub data_type: String,
    pub start: i64,
    pub increment: i64,
    pub min: i64,
    pub max: i64,
    pub cache: i64,
    pub cycle: bool,
    /// `schema.table.column` of a serial or identity column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owned_by: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Access {
    pub owners: BTreeMap<String, String>,
    /// Grants on relations, sequences and columns as PostgreSQL writes them, defaults spelled out.
    pub grants: BTreeMap<String, BTreeSet<String>>,
    /// `publication: table`.
    pub publications: BTreeSet<String>,
}

impl Schema {
    /// SHA-256 over the canonical form. Expressions count by `normal`, because dump and restore respell them; names of
    /// indexes and constraints, column order, owners and grants do not count.
    pub fn fingerprint(&self) -> String {
        sha256_hex(serde_json::to_vec(&self.normalised()).unwrap_or_default())
    }

    /// SHA-256 over owners, grants and publications.
    pub fn access_fingerprint(&self) -> String {
        sha256_hex(serde_json::to_vec(&self.access).unwrap_or_default())
    }

    fn normalised(&self) -> Self {
        let mut schema = self.clone();
        schema.access = Access::default();
        for definition in schema.types.values_mut() {
            *definition = normal(definition);
        }
        for relation in schema.relations.values_mut() {
            let all = |set: &mut BTreeSet<String>| *set = set.iter().map(|text| normal(text)).collect();
            all(&mut relation.constraints);
            all(&mut relation.indexes);
            all(&mut relation.triggers);
            all(&mut relation.policies);
            relation.definition = relation.definition.as_deref().map(normal);
            for column in relation.columns.values_mut() {
                column.default = column.default.as_deref().map(normal);
            }
        }
        schema
    }

    /// Tables with rows of their own, in the order of their names.
    pub fn tables(&self) -> impl Iterator<Item = (&str, &Relation)> {
        self.relations.iter().filter(|(_, r)| r.kind == Kind::Table).map(|(name, r)| (name.as_str(), r))
    }
}

/// An expression without what PostgreSQL changes when it reads its own text again: space, parentheses, and the casts
/// between its text types that it adds by itself.
pub(crate) fn normal(expression: &str) -> String {
    let mut text: String = expression.split_whitespace().collect::<Vec<_>>().join(" ").replace(['(', ')'], "");
    for cast in ["::character varying", "::text", "::bpchar"] {
        text = text.replace(&format!("{cast}[]"), "").replace(cast, "");
    }
    text
}
