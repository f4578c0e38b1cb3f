//! The fault matrix: the cells that `tests/e2e/matrix/` runs, and the document made of their results.
//!
//! Results accumulate beside the document, so that the matrix can be run in slices and on several machines; each cell's
//! line knows its commit and seed.

mod elsewhere;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Done;
use super::cluster_core::e2e;
use crate::place;

/// The tests that run cells.
pub const FILTER: &str = "matrix::";
/// Which cells are run; the tests know it, too.
const CELLS: &str = "MEMORIA_TEST_CELLS";
/// Cells that CI runs, two at a time: three minutes.
const SAMPLE: usize = 2;

const DATABASES: [&str; 3] = ["postgresql-15", "postgresql-17", "sqlite"];

/// One line of the results.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Line {
    /// All faults in their order, on a line of its own; the rest is empty then.
    faults: Vec<String>,
    fault: String,
    database: String,
    /// Why the cell makes no sense.
    not: Option<String>,
    /// Why it did not end as it must.
    error: Option<String>,
    end: String,
    failed: String,
    seconds: Option<u64>,
    writers_stopped_seconds: Option<i64>,
    commit: String,
    seed: u32,
}

/// Runs every cell anew, or those that the environment names, and writes the document.
pub fn all() -> Result<Done> {
    if std::env::var_os(CELLS).is_none() {
        let _ = fs::remove_file(results()?);
    }
    let chosen = std::env::var_os(CELLS).unwrap_or_else(|| "all".into());
    run(chosen)
}

/// Runs the cells that the environment names, and writes the document of all that are known.
pub fn chosen() -> Result<Done> {
    run(std::env::var_os(CELLS).with_context(|| format!("name cells in {CELLS}, or all"))?)
}

/// Runs some cells, chosen by the commit. Each commit has others, so that in time all of them are seen.
pub fn sample() -> Result<Done> {
    let commit = commit()?;
    println!("    {SAMPLE} cells of the fault matrix, chosen by commit {commit}");
    e2e(&[FILTER], &environment(format!("sample:{commit}:{SAMPLE}").into(), None)?)
}

fn run(cells: OsString) -> Result<Done> {
    let results = results()?;
    let done = e2e(&[FILTER], &environment(cells, Some(&results))?);
    // Also of a run in which a cell failed: the document says so.
    let kept = fs::read_to_string(&results).with_context(|| results.display().to_string())?;
    fs::write(&results, what_counts(&kept)?).with_context(|| results.display().to_string())?;
    let document = place::root()?.join("docs/fault-matrix.md");
    fs::write(&document, render(&read(&results)?, &commit()?)?).with_context(|| document.display().to_string())?;
    done
}

fn environment(cells: OsString, results: Option<&Path>) -> Result<Vec<(&'static str, OsString)>> {
    let commit = commit()?;
    let seed = match std::env::var("MEMORIA_TEST_SEED") {
        Ok(seed) => seed,
        Err(_) => seed(&commit).to_string(),
    };
    let mut all = vec![(CELLS, cells), ("MEMORIA_TEST_COMMIT", commit.into()), ("MEMORIA_TEST_SEED", seed.into())];
    all.extend(results.map(|path| ("MEMORIA_TEST_MATRIX", path.as_os_str().to_owned())));
    Ok(all)
}

/// A seed that the same commit always has.
fn seed(commit: &str) -> u32 {
    // Three bytes: everything that takes a seed takes as much.
    commit.get(..6).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(1)
}

fn results() -> Result<PathBuf> {
    Ok(place::root()?.join("docs/fault-matrix.jsonl"))
}

fn read(results: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(results).with_context(|| results.display().to_string())?;
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> Result<Line> {
    serde_json::from_str(line).with_context(|| line.to_owned())
}

/// The last line of each cell and the last one that names all faults, in the order of their first ones.
fn what_counts(text: &str) -> Result<String> {
    let mut counting: Vec<((String, String), &str)> = Vec::new();
    for line in text.lines() {
        let Line { fault, database, .. } = parse(line)?;
        match counting.iter_mut().find(|(cell, _)| (&cell.0, &cell.1) == (&fault, &database)) {
            Some((_, last)) => *last = line,
            None => counting.push(((fault, database), line)),
        }
    }
    Ok(counting.into_iter().flat_map(|(_, line)| [line, "\n"]).collect())
}

/// The commit that is tested, with a `+` where something else than documents differs from it.
fn commit() -> Result<String> {
    let mut commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    if !git(&["status", "--porcelain", "--", ".", ":!docs"])?.is_empty() {
        commit.push('+');
    }
    Ok(commit)
}

fn git(args: &[&str]) -> Result<String> {
    let output = Command::new("git").args(args).current_dir(place::root()?).output().context("cannot start git")?;
    if !output.status.success() {
        bail!("git {} failed: {}", args[0], String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The latest line of each cell counts.
fn render(lines: &[Line], commit: &str) -> Result<String> {
    let last = lines.iter().rposition(|line| !line.faults.is_empty()).context("the results name no faults")?;
    let faults = &lines[last];
    // Which cells make no sense, the latest run said again.
    let counts = lines.iter().enumerate().filter(|(n, line)| *n > last || line.not.is_none());
    let table: BTreeMap<_, _> = counts.map(|(_, line)| ((line.fault.as_str(), line.database.as_str()), line)).collect();
    let mut rows = String::new();
    let (mut passed, mut cells) = (0, 0);
    for fault in &faults.faults {
        let _ = write!(rows, "| {fault} |");
        for database in DATABASES {
            let line = table.get(&(fault.as_str(), database));
            cells += usize::from(line.is_none_or(|line| line.not.is_none()));
            passed += usize::from(line.is_some_and(|line| line.not.is_none() && line.error.is_none()));
            let _ = write!(
                rows,
                " {} |",
                line.map_or_else(|| "not run".to_owned(), |line| said(line, commit, faults.seed))
            );
        }
        rows.push('\n');
    }
    Ok(format!(
        "# What happens when it goes wrong\n\
         Made by `cargo xtask test --all` at commit `{commit}` with seed {seed}: {passed} of {cells} cells ended as they must.\n\
         Each cell is one upgrade of a real Memoria on a real cluster into which that fault was put. The independent checkers\n\
         of `tests/checkers/` looked at it then: after a way back at image digests, every row of every table, sequences (the\n\
         next insert works), schema and grants, *before the old servers started*, because those rewrite data; and again after\n\
         that, with replicas, flags, settings and conditions. For the last ten seconds the operator wrote nothing.\n\n\
         A cell says how the upgrade ended, the phase that failed, the seconds of the whole cell, two at a time on two cores,\n\
         and in brackets how long writers were stopped. A cell that was run at another commit or with another seed names it.\n\
         Cells that fail after Start have a `dataLossBudget`: starting servers rewrite rows, and without one a person is asked.\n\n\
         | fault | {databases} |\n|---|{line}\n{rows}\n{elsewhere}",
        seed = faults.seed,
        databases = DATABASES.join(" | "),
        line = "---|".repeat(DATABASES.len()),
        elsewhere = elsewhere::render(),
    ))
}

fn said(line: &Line, commit: &str, seed: u32) -> String {
    let mut at = String::new();
    if line.commit != commit {
        let _ = write!(at, " at `{}`", line.commit);
    }
    if line.seed != seed {
        let _ = write!(at, " with seed {}", line.seed);
    }
    if let Some(why) = &line.not {
        return format!("n/a: {why}");
    }
    if let Some(error) = &line.error {
        return format!("**not as it must**{at}: {}", error.replace('|', "/"));
    }
    let failed = if line.failed.is_empty() { String::new() } else { format!(" from {}", line.failed) };
    let stopped = line.writers_stopped_seconds.map(|s| format!(" ({s} s)")).unwrap_or_default();
    format!("{}{failed}, {} s{stopped}{at}", line.end, line.seconds.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{Line, render, seed, what_counts};

    #[test]
    fn a_table_tells_ends_failures_cells_that_make_no_sense_and_cells_that_were_not_run() {
        let lines = [
            r#"{"faults":["hangs","restarts"],"commit":"abc","seed":7}"#,
            r#"{"fault":"hangs","database":"sqlite","error":"it hung | on","commit":"abc","seed":7}"#,
            r#"{"fault":"hangs","database":"sqlite","end":"RolledBack","failed":"Migrate","seconds":140,"writersStoppedSeconds":99,"commit":"abc","seed":7}"#,
            r#"{"fault":"hangs","database":"postgresql-15","end":"nothing touched","seconds":9,"writersStoppedSeconds":null,"commit":"def","seed":8}"#,
            r#"{"fault":"restarts","database":"sqlite","not":"a file has no server","commit":"def","seed":7}"#,
            r#"{"fault":"restarts","database":"postgresql-17","error":"it | did","commit":"abc","seed":7}"#,
            r#"{"fault":"gone","database":"sqlite","end":"Succeeded","seconds":1,"commit":"abc","seed":7}"#,
        ];
        let lines: Vec<Line> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let text = render(&lines, "abc").unwrap();
        let rows: Vec<_> = text.lines().skip_while(|line| !line.starts_with("| ")).take(4).collect();
        assert_eq!(
            rows,
            [
                "| fault | postgresql-15 | postgresql-17 | sqlite |",
                "|---|---|---|---|",
                "| hangs | nothing touched, 9 s at `def` with seed 8 | not run | RolledBack from Migrate, 140 s (99 s) |",
                "| restarts | not run | **not as it must**: it / did | n/a: a file has no server |",
            ]
        );
        assert!(text.contains("`abc` with seed 7: 2 of 5 cells"), "{text}");
    }

    #[test]
    fn of_each_cell_the_last_result_is_kept() {
        let cell = |database: &str, seconds| {
            format!("{{\"fault\":\"hangs\",\"database\":\"{database}\",\"seconds\":{seconds}}}\n")
        };
        let (old, new) = (r#"{"faults":["hangs"]}"#, r#"{"faults":["hangs","restarts"]}"#);
        let text = format!("{old}\n{}{}{new}\n{}", cell("sqlite", 1), cell("postgresql-15", 2), cell("sqlite", 3));
        let kept = format!("{new}\n{}{}", cell("sqlite", 3), cell("postgresql-15", 2));
        assert_eq!(what_counts(&text).unwrap(), kept);
        assert_eq!(what_counts(&kept).unwrap(), kept);
    }

    #[test]
    fn a_commit_has_one_seed() {
        assert_eq!((seed("00000a123456"), seed("ffffff123456"), seed("")), (10, 0xff_ffff, 1));
    }
}
