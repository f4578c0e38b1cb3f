//! Runs a dump through a session of ours: `pg_restore` writes the statements, this sends them, so that restore, proof and
//! marker share one transaction. Memory holds the statements of one section, and of the data one piece.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use sqlx::{PgConnection, postgres::PgCopyIn};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout},
    task::JoinHandle,
};
use tracing::info;

use super::contents::Lists;
use crate::snapshot::{
    copying::{self, table_of},
    error::{Error, Result},
    manifest::DUMP,
    session::execute,
    tools::{Tools, error_line},
};

/// Rows are sent in pieces of at least this size.
const PIECE: usize = 256 * 1024;
/// More than this is no schema.
const SCRIPT_LIMIT: u64 = 256 << 20;

/// Settings of the session's life that a dump's preamble takes off, and that ours keeps.
const TIMEOUTS: [&str; 4] =
    ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"];

/// A dump and the lists of what is restored from it.
#[derive(Debug)]
pub struct Body<'a> {
    pub tools: &'a Tools,
    /// The snapshot's directory.
    pub directory: &'a Path,
    pub scratch: &'a Path,
    pub lists: &'a Lists,
}

impl Body<'_> {
    /// Everything before the rows: types, functions, tables, views.
    pub async fn before_data(&self, session: &mut PgConnection) -> Result<()> {
        self.script(session, "making the snapshot's tables", &["--section=pre-data", "--no-privileges"], "main").await
    }

    /// Indexes, keys, triggers, policies.
    pub async fn after_data(&self, session: &mut PgConnection) -> Result<()> {
        self.script(session, "making the snapshot's keys", &["--section=post-data", "--no-privileges"], "main").await
    }

    pub async fn grants(&self, session: &mut PgConnection) -> Result<()> {
        self.script(session, "granting what was granted", &[], "last").await
    }

    /// The rows, and the sequences' positions. Gives the number of rows.
    pub async fn data(&self, session: &mut PgConnection) -> Result<u64> {
        let mut restoring = self.spawn(&["--section=data"], "main")?;
        let mut output = BufReader::with_capacity(PIECE, restoring.output);
        let (mut statements, mut line, mut rows) = (String::new(), Vec::new(), 0);
        let mut filter = Filter::default();
        loop {
            line.clear();
            if read_line(&mut output, &mut line).await? == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line).into_owned();
            let text = text.trim_end_matches('\n');
            match text.strip_suffix(" FROM stdin;").filter(|text| text.starts_with("COPY ")) {
                Some(copy) => {
                    execute(session, "setting up for the rows", std::mem::take(&mut statements)).await?;
                    let copied = copy_rows(session, copy, &mut output, &mut line).await?;
                    info!(table = table_of(copy), rows = copied, "rows are back");
                    rows += copied;
                }
                None if filter.keeps(text) => statements = statements + text + "\n",
                None => {}
            }
        }
        restoring.child.ended().await?;
        execute(session, "setting the sequences", statements).await?;
        Ok(rows)
    }

    async fn script(
        &self,
        session: &mut PgConnection,
        doing: &'static str,
        arguments: &[&str],
        list: &str,
    ) -> Result<()> {
        let mut restoring = self.spawn(arguments, list)?;
        let mut text = String::new();
        let read = restoring.output.take(SCRIPT_LIMIT).read_to_string(&mut text).await;
        read.map_err(Error::io("reading the statements of", self.directory.join(DUMP)))?;
        restoring.child.ended().await?;
        let mut filter = Filter::default();
        let kept: Vec<_> = text.lines().filter(|line| filter.keeps(line)).collect();
        execute(session, doing, kept.join("\n")).await
    }

    fn spawn(&self, arguments: &[&str], list: &str) -> Result<Restoring> {
        let lines = if list == "last" { &self.lists.last } else { &self.lists.main };
        let path = self.scratch.join(format!("restore-{list}.list"));
        fs::write(&path, lines.join("\n") + "\n").map_err(Error::io("writing", &path))?;
        let mut command = self.tools.command("pg_restore", self.scratch);
        command.args(arguments).arg("--use-list").arg(&path).args(["--file", "-"]).arg(self.directory.join(DUMP));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |error: std::io::Error| Error::Tool {
            tool: "pg_restore",
            status: "not started".to_owned(),
            tail: error.to_string(),
        };
        let mut child = command.spawn().map_err(failed)?;
        let no_pipe = || failed(std::io::ErrorKind::BrokenPipe.into());
        let output = child.stdout.take().ok_or_else(no_pipe)?;
        let mut errors = child.stderr.take().ok_or_else(no_pipe)?;
        let errors = tokio::spawn(async move {
            let mut said = Vec::new();
            let _ = (&mut errors).take(64 * 1024).read_to_end(&mut said).await;
            // The rest is read too, so that the tool never waits for us.
            let _ = tokio::io::copy(&mut errors, &mut tokio::io::sink()).await;
            said
        });
        Ok(Restoring { child: Tool { child, errors, list: path }, output })
    }
}

struct Restoring {
    child: Tool,
    output: ChildStdout,
}

struct Tool {
    child: Child,
    errors: JoinHandle<Vec<u8>>,
    list: PathBuf,
}

impl Tool {
    /// Output that ended counts only once the tool ended well: a script that was cut looks whole.
    async fn ended(&mut self) -> Result<()> {
        let failed = |status: String, tail| Error::Tool { tool: "pg_restore", status, tail };
        let status: ExitStatus =
            self.child.wait().await.map_err(|error| failed("not waited for".to_owned(), error.to_string()))?;
        let said = (&mut self.errors).await.unwrap_or_default();
        let _ = fs::remove_file(&self.list);
        if status.success() { Ok(()) } else { Err(failed(status.to_string(), error_line(&said))) }
    }
}

/// Leaves out what only psql understands, and the preamble's timeouts.
#[derive(Default)]
struct Filter {
    /// What `\restrict` was called with; the same word ends it.
    restricted: Option<String>,
    /// The first object was reached.
    begun: bool,
}

impl Filter {
    fn keeps(&mut self, line: &str) -> bool {
        if line.starts_with("-- Name: ") || line.starts_with("-- Data for Name: ") {
            self.begun = true;
        }
        if let Some(word) = line.strip_prefix("\\restrict ").filter(|_| !self.begun) {
            self.restricted = Some(word.to_owned());
            return false;
        }
        if self.restricted.as_deref().is_some_and(|word| line.strip_prefix("\\unrestrict ") == Some(word)) {
            return false;
        }
        let timeout = |name: &str| line.strip_prefix("SET ").is_some_and(|rest| rest == format!("{name} = 0;"));
        self.begun || !TIMEOUTS.iter().any(|name| timeout(name))
    }
}

async fn read_line(output: &mut BufReader<ChildStdout>, line: &mut Vec<u8>) -> Result<usize> {
    output.read_until(b'\n', line).await.map_err(Error::io("reading", "the output of pg_restore"))
}

/// Sends rows until the line that ends them: no row is that line, because a backslash in a row is doubled.
async fn copy_rows(
    session: &mut PgConnection,
    copy: &str,
    output: &mut BufReader<ChildStdout>,
    line: &mut Vec<u8>,
) -> Result<u64> {
    let failed = |error: sqlx::Error| copying::failed(copy, error);
    let mut copying: PgCopyIn<&mut PgConnection> =
        session.copy_in_raw(&format!("{copy} FROM stdin")).await.map_err(failed)?;
    let mut piece = Vec::with_capacity(2 * PIECE);
    loop {
        line.clear();
        if read_line(output, line).await? == 0 {
            return Err(Error::NotRestorable { what: format!("the rows of {} are cut off", table_of(copy)) });
        }
        if line == b"\\.\n" {
            break;
        }
        piece.extend_from_slice(line);
        if piece.len() >= PIECE {
            copying.send(piece.as_slice()).await.map_err(failed)?;
            piece.clear();
        }
    }
    copying.send(piece.as_slice()).await.map_err(failed)?;
    copying.finish().await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::Filter;

    #[test]
    fn only_the_preamble_loses_lines() {
        let text = "\\restrict AbC\nSET statement_timeout = 0;\nSET transaction_timeout = 0;\nSET row_security = off;\n-- Name: f(); Type: FUNCTION\n\\restrict AbC\nSET lock_timeout = 0;\n\\unrestrict other\n\\unrestrict AbC\n";
        let mut filter = Filter::default();
        let kept: Vec<_> = text.lines().filter(|line| filter.keeps(line)).collect();
        assert_eq!(
            kept,
            [
                "SET row_security = off;",
                "-- Name: f(); Type: FUNCTION",
                "\\restrict AbC",
                "SET lock_timeout = 0;",
                "\\unrestrict other"
            ]
        );
    }
}
