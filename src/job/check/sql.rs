//! One number by SQL, in a read-only transaction that cannot take long.

use serde_json::Value as Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::{
    job::{
        context::Context,
        protocol::{CHECK_URL_ENV_PREFIX, DatabaseTask},
    },
    snapshot::{
        Error,
        session::{execute, open, session_prefix},
        url::DatabaseUrl,
    },
};

/// Why a query gave no number.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("{0}")]
    Database(#[from] Error),
    #[error("the database refuses the query, SQLSTATE {code}{why}")]
    Refused { code: String, why: String },
    #[error("the query has to give one row, it gives {0}")]
    Rows(&'static str),
    #[error("the query has to give one column, it gives {0}")]
    Columns(usize),
    #[error("the query gives {0}, which is no number")]
    NotNumber(&'static str),
    #[error("the URL of the check's own database: {0}")]
    Url(String),
    #[error("the order names no database; this is a defect of the operator")]
    NoDatabase,
}

/// Which database is asked.
pub enum Database {
    /// The one that is upgraded.
    Memoria(DatabaseTask),
    Own {
        url: Box<DatabaseUrl>,
        attempt: String,
    },
}

impl Database {
    /// Check `number`'s database.
    ///
    /// # Errors
    /// [`SqlError`] for what no later answer can mend.
    pub fn new(task: Option<&DatabaseTask>, own: bool, number: usize) -> Result<Self, SqlError> {
        let task = task.cloned().ok_or(SqlError::NoDatabase)?;
        if !own {
            return Ok(Self::Memoria(task));
        }
        let name = format!("{CHECK_URL_ENV_PREFIX}{number}");
        let text = std::env::var(&name).map_err(|_| SqlError::Url(format!("{name} is not set")))?;
        let url = text.parse::<DatabaseUrl>().map_err(|error| SqlError::Url(error.to_string()))?;
        Ok(Self::Own { url: Box::new(url), attempt: task.attempt })
    }

    /// Host and database, without credentials.
    pub fn place(&self, context: &Context) -> String {
        match self {
            Self::Memoria(_) => context.url().map(DatabaseUrl::place).unwrap_or_default(),
            Self::Own { url, .. } => url.place(),
        }
    }

    /// Without any form of the password.
    pub fn redact(&self, text: String) -> String {
        match self {
            // The whole report is redacted for Memoria's own.
            Self::Memoria(_) => text,
            Self::Own { url, .. } => url.redact(&text),
        }
    }

    /// The query's number now.
    ///
    /// # Errors
    /// [`SqlError`] when there is none.
    pub async fn number(&self, context: &Context, query: &str) -> Result<f64, SqlError> {
        let mut session = match self {
            Self::Memoria(task) => context.session(task, "check").await?,
            Self::Own { url, attempt } => open(url, &format!("{}check", session_prefix(attempt))).await?,
        };
        let found = number(&mut session, query).await;
        // Whatever came of it, the transaction ends with the session.
        drop(session);
        found
    }
}

async fn number(session: &mut PgConnection, query: &str) -> Result<f64, SqlError> {
    let settings = "RESET search_path; RESET row_security; SET statement_timeout = '10s'; SET lock_timeout = '5s'; \
                    SET idle_in_transaction_session_timeout = '30s'; BEGIN READ ONLY";
    execute(session, "beginning a read-only transaction", settings).await?;
    // As a part of a SELECT it can be nothing but one; prepared, it can be nothing but one statement.
    let query = query.trim().trim_end_matches(';');
    let wrapped = format!("SELECT to_jsonb(mop_check)::text FROM (\n{query}\n) AS mop_check LIMIT 2");
    let rows = sqlx::query(AssertSqlSafe(wrapped)).fetch_all(session).await.map_err(refused)?;
    let row = match rows.as_slice() {
        [row] => row,
        [] => return Err(SqlError::Rows("none")),
        _ => return Err(SqlError::Rows("more")),
    };
    let text: String = row.try_get(0).map_err(Error::query("reading the check's number"))?;
    let Ok(Json::Object(columns)) = serde_json::from_str::<Json>(&text) else {
        return Err(SqlError::NotNumber("something else"));
    };
    let mut values = columns.values();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(SqlError::Columns(columns.len())) };
    match value {
        Json::Number(number) => number.as_f64().filter(|number| number.is_finite()).ok_or(SqlError::NotNumber("NaN")),
        Json::Bool(value) => Ok(f64::from(u8::from(*value))),
        Json::Null => Err(SqlError::NotNumber("NULL")),
        Json::String(_) => Err(SqlError::NotNumber("text")),
        Json::Array(_) | Json::Object(_) => Err(SqlError::NotNumber("JSON")),
    }
}

/// What the database says of syntax, names and rights is about the query; of a value it would show the value.
fn refused(error: sqlx::Error) -> SqlError {
    let Some(told) = error.as_database_error() else {
        return Error::query("running the check's query")(error).into();
    };
    let code = told.code().unwrap_or_default().into_owned();
    let telling = ["25", "42", "55", "57"].iter().any(|class| code.starts_with(class));
    let why = if telling { format!(": {}", told.message()) } else { String::new() };
    SqlError::Refused { code, why }
}
