//! All that an SQLite database holds, as digests: schema, data, and what stands in the file's header.

use std::path::Path;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{
    digest,
    hold::ask,
    schema::{self, Schema},
};
use crate::snapshot::{
    Error, Result,
    digest::DataDigest,
    late::carry::{self, Came},
};

/// What one file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub schema: Schema,
    pub data: DataDigest,
    pub header: Header,
}

/// What the file's header says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Header {
    pub user_version: i32,
    pub application_id: i32,
    pub page_size: i64,
    pub encoding: String,
    /// 0 none, 1 full, 2 incremental.
    pub auto_vacuum: i32,
}

/// Reads everything. What is not understood is an error that names it.
pub fn read(connection: &Connection, path: &Path) -> Result<Content> {
    let schema = schema::read(connection, path)?;
    let unknown = schema.not_understood();
    if !unknown.is_empty() {
        return Err(Error::NotUnderstood { what: unknown.join(", ") });
    }
    let data = digest::all(connection, path, &schema, |table, digest| info!(table, rows = digest.rows, "digested"))?;
    Ok(Content { schema, data, header: header(connection, path)? })
}

pub fn header(connection: &Connection, path: &Path) -> Result<Header> {
    Ok(Header {
        user_version: ask(connection, path, "PRAGMA user_version")?,
        application_id: ask(connection, path, "PRAGMA application_id")?,
        page_size: ask(connection, path, "PRAGMA page_size")?,
        encoding: ask(connection, path, "PRAGMA encoding")?,
        auto_vacuum: ask(connection, path, "PRAGMA auto_vacuum")?,
    })
}

impl Content {
    pub fn data_digest(&self) -> String {
        self.data.total(&self.schema.fingerprint())
    }

    /// The same with these rows.
    pub fn with(&self, came: &Came) -> Result<Self> {
        Ok(Self { data: carry::with(self.data.clone(), came)?, ..self.clone() })
    }

    /// What in `found` is not as in `self`, each line naming its object.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.schema != found.schema {
            lines.extend(schema::changes(&self.schema, &found.schema));
        }
        if self.header.user_version != found.header.user_version {
            let versions = (found.header.user_version, self.header.user_version);
            lines.push(format!("user_version is {}, expected {}", versions.0, versions.1));
        }
        if self.header.application_id != found.header.application_id {
            lines.push("application_id is different".to_owned());
        }
        lines.extend(self.data.differences(&found.data, &crate::snapshot::schema::Schema::default()));
        lines
    }
}

/// What SQLite's own check finds wrong with the file, at most ten lines; none when it is whole. Costs a whole reading.
pub fn damage(connection: &Connection, path: &Path) -> Result<Vec<String>> {
    let read = |mut statement: rusqlite::Statement<'_>| {
        statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()
    };
    let mut lines =
        connection.prepare("PRAGMA integrity_check(10)").and_then(read).map_err(Error::sqlite("checking", path))?;
    lines.retain(|line| line != "ok");
    Ok(lines)
}

/// How many rows point to a row that is not there. SQLite accepts those while foreign keys are not enforced.
pub fn dangling(connection: &Connection, path: &Path) -> Result<i64> {
    ask(connection, path, "SELECT count(*) FROM pragma_foreign_key_check")
}
