//! The export of a PostgreSQL database, and the way back.

mod coverage;
mod encode;
mod export;
mod import;
mod keys;
mod rows;
mod target;
mod value;

use super::OFFICIAL;
use crate::snapshot::schema::Relation;

pub use export::{Digests, Request as Export, export};
pub use import::{Request as Import, import};
pub(crate) use rows::visit_table;
pub use rows::{digest_file, visit_file};
pub use value::Field;

/// What a manifest says of itself.
pub const ENGINE: &str = "postgresql";
/// Where Memoria's tables are.
const SCHEMA: &str = "public";

/// The name that the official tool has for this table; it looks for its tables in `public`.
fn official(relation: &Relation) -> Option<&'static str> {
    OFFICIAL.iter().find(|known| relation.schema == SCHEMA && relation.name == **known).copied()
}
