//! The export of an SQLite file, and the way back. Everything here blocks.

mod export;
mod import;
mod rows;
mod value;

use super::OFFICIAL;

pub use export::{Request as Export, export};
pub use import::{Request as Import, import};
pub use rows::{digest_file, row_hash, visit_file, visit_table};
pub use value::{Field, Stored};

/// What a manifest says of itself.
pub const ENGINE: &str = "sqlite";

/// The name that the official tool has for this table.
fn official(table: &str) -> Option<&'static str> {
    OFFICIAL.iter().find(|known| table == **known).copied()
}
