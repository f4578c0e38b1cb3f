//! Tells rows that were written after a baseline from all others. The baseline holds of each row its key and its hash,
//! sorted; comparing reads both sides once, side by side, so memory does not grow with the data.

pub mod carry;
mod compare;
mod keep;
pub mod reapplied;
mod reapply;
pub mod set_aside;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{digest::hash_sql, quote_ident, schema::Relation};
use crate::api::upgrade::DatabaseIdentity;

pub use compare::{compare, count};
pub use keep::{keep, read, verify};
pub(super) use reapply::carry_forward;
pub use reapply::{Request as Reapply, reapply};
pub use set_aside::Late;

pub const BASELINE: &str = "baseline.json";
/// Below the failed state's directory: rows written since the baseline.
pub const LATE: &str = "late.json";

/// What `baseline.json` holds. Fields are only ever added, each with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// Version of this form: 1.
    pub v: i32,
    pub release_uid: String,
    pub attempt: String,
    pub identity: DatabaseIdentity,
    pub read_at: jiff::Timestamp,
    pub session_settings: BTreeMap<String, String>,
    pub tables: BTreeMap<String, KeptTable>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptTable {
    pub file: String,
    pub rows: i64,
    pub bytes: u64,
    pub sha256: String,
    /// Columns of the primary key; none: rows are told apart by their hash alone.
    pub key: Vec<String>,
    /// Columns that each row's hash covers.
    pub columns: Vec<String>,
}

/// A line begins with this many hex digits of the key's hash …
const KEY: usize = 32;
/// … and this many of the row's; the key itself follows as JSON.
const HASH: usize = 64;

/// Half of the key's hash, in hex. Two keys meet in it with a chance of 2^-128.
fn key_sql(table: &Relation) -> String {
    let key =
        if table.primary_key.is_empty() { hash_sql(table.columns.keys()) } else { hash_sql(table.primary_key.iter()) };
    format!("encode(substring({key} for 16), 'hex')")
}

/// The key's values as a JSON object of texts; empty where there is no key.
fn key_json_sql(table: &Relation) -> String {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let parts: Vec<_> = table.primary_key.iter().map(|c| format!("{}, {}::text", literal(c), quote_ident(c))).collect();
    if parts.is_empty() { "''".to_owned() } else { format!("json_build_object({})::text", parts.join(", ")) }
}

/// Columns whose values are JSON.
fn json_columns(table: &Relation) -> impl Iterator<Item = &String> {
    let json = |type_: &str| matches!(type_, "json" | "jsonb");
    table.columns.iter().filter(move |(_, column)| json(&column.data_type)).map(|(name, _)| name)
}

/// One line a row, in the order of their bytes.
fn lines_sql(name: &str, table: &Relation) -> String {
    let key = key_json_sql(table);
    format!(
        "COPY (SELECT x.line FROM (SELECT {} || encode({}, 'hex') || {key} AS line FROM ONLY {name}) AS x
         ORDER BY x.line COLLATE \"C\") TO STDOUT",
        key_sql(table),
        hash_sql(table.columns.keys()),
    )
}
