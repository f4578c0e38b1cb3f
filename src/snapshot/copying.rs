//! COPY into a table: what a failure of it tells.

use super::{Error, tools::error_line};

/// The server quotes a value that it cannot read; nobody else shall. `copy` is the statement.
pub(super) fn failed(copy: &str, error: sqlx::Error) -> Error {
    match error.as_database_error() {
        Some(said) if !said.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("08")) => {
            let tail = format!("{}: {}", table_of(copy), error_line(said.message().as_bytes()));
            Error::Tool { tool: "COPY", status: said.code().unwrap_or_default().into_owned(), tail }
        }
        _ => Error::query(format!("sending the rows of {}", table_of(copy)))(error),
    }
}

/// The table in `COPY table (…`.
pub(super) fn table_of(copy: &str) -> &str {
    copy.strip_prefix("COPY ").and_then(|rest| rest.split(" (").next()).unwrap_or(copy)
}
