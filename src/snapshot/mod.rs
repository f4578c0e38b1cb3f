//! The data planes: sessions, identity, schema, digests, dump, scratch servers, manifest and markers of PostgreSQL, and
//! below `sqlite` the same of SQLite files. Run inside Jobs, beside the database; know nothing of Kubernetes.

pub mod archive;
mod copying;
pub mod digest;
pub mod dump;
pub mod erase;
pub mod error;
pub mod freeze;
pub mod identity;
pub mod late;
pub mod manifest;
pub mod markers;
pub mod peers;
pub mod pooler;
pub mod portable;
pub mod restore;
pub mod schema;
pub mod scratch;
pub mod session;
pub mod sqlite;
pub mod store;
pub mod tools;
pub mod url;

use sha2::{Digest, Sha256};

pub use error::{Error, Result};

/// SHA-256 of bytes, in lower-case hex.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes.as_ref()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An SQL string, whatever the server takes a backslash for.
pub fn quote_literal(text: &str) -> String {
    let quotes = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", quotes.replace('\\', "\\\\")) } else { format!("'{quotes}'") }
}

/// An SQL identifier in double quotes.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
