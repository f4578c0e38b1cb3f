//! The fault matrix: the cells that `tests/e2e/matrix.rs` runs, and the document made of their results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Done;
use super::cluster_core::e2e;
use crate::place;

const FILTER: &str = "matrix::";

/// What one cell said at its end.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cell {
    fault: String,
    database: String,
    /// Why the cell makes no sense; the rest is empty then.
    not: Option<String>,
    #[serde(default)]
    end: String,
    #[serde(default)]
    failed: String,
    seconds: Option<u64>,
    writers_stopped_seconds: Option<i64>,
}

/// Runs every cell, and writes `docs/fault-matrix.md` when all of them ended as they must.
pub fn all() -> Result<Done> {
    let results = place::cache()?.join("fault-matrix.jsonl");
    let _ = fs::remove_file(&results);
    let chosen = std::env::var_os("MEMORIA_TEST_CELLS").unwrap_or_else(|| "all".into());
    let done = e2e(&[FILTER], &[("MEMORIA_TEST_CELLS", &chosen), ("MEMORIA_TEST_MATRIX", results.as_os_str())])?;
    let document = place::root()?.join("docs/fault-matrix.md");
    fs::write(&document, render(&read(&results)?, &commit()?)).with_context(|| document.display().to_string())?;
    Ok(done)
}

fn read(results: &Path) -> Result<Vec<Cell>> {
    let text = fs::read_to_string(results).with_context(|| results.display().to_string())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn commit() -> Result<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(place::root()?).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn render(cells: &[Cell], commit: &str) -> String {
    let mut faults: Vec<&str> = Vec::new();
    let mut table: BTreeMap<(&str, &str), &Cell> = BTreeMap::new();
    for cell in cells {
        if !faults.contains(&cell.fault.as_str()) {
            faults.push(&cell.fault);
        }
        table.insert((&cell.fault, &cell.database), cell);
    }
    let databases = ["postgresql-15", "postgresql-17", "sqlite"];
    let mut text = format!(
        "# What happens when it goes wrong\n\
         Made by `cargo xtask test --all` at commit `{commit}`. Each cell is one upgrade of a real Memoria on a real\n\
         cluster into which that fault was put. It is in the table because the independent checkers found what they must:\n\
         after a way back image digests, every row of every table, sequences, schema and grants as they were *before the\n\
         old servers started*; after that replicas, flags and configuration, too. The seconds are those of the whole cell,\n\
         with two cells at a time on two cores; in brackets how long writers were stopped.\n\n\
         | fault | {} |\n|---|{}\n",
        databases.join(" | "),
        "---|".repeat(databases.len())
    );
    for fault in faults {
        let _ = write!(text, "| {fault} |");
        for database in databases {
            let said = match table.get(&(fault, database)) {
                None => "not run".to_owned(),
                Some(Cell { not: Some(why), .. }) => format!("n/a: {why}"),
                Some(cell) => {
                    let failed = if cell.failed.is_empty() { String::new() } else { format!(" from {}", cell.failed) };
                    let stopped = cell.writers_stopped_seconds.map(|s| format!(" ({s} s)")).unwrap_or_default();
                    format!("{}{failed}, {} s{stopped}", cell.end, cell.seconds.unwrap_or_default())
                }
            };
            let _ = write!(text, " {said} |");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Cell, render};

    #[test]
    fn a_table_tells_ends_cells_that_make_no_sense_and_cells_that_were_not_run() {
        let lines = [
            r#"{"fault":"hangs","database":"sqlite","end":"RolledBack","failed":"Migrate","seconds":140,"writersStoppedSeconds":99}"#,
            r#"{"fault":"hangs","database":"postgresql-15","end":"refused","seconds":9,"writersStoppedSeconds":null}"#,
            r#"{"fault":"restarts","database":"sqlite","not":"a file has no server"}"#,
        ];
        let cells: Vec<Cell> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let text = render(&cells, "abc");
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(
            rows,
            [
                "| fault | postgresql-15 | postgresql-17 | sqlite |",
                "| hangs | refused, 9 s | not run | RolledBack from Migrate, 140 s (99 s) |",
                "| restarts | not run | not run | n/a: a file has no server |",
            ]
        );
        assert!(text.contains("`abc`"));
    }
}
