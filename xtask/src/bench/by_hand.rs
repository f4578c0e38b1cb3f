//! Runs the scripts of `tests/bench`: the announcement's steps with kubectl, for an upgrade and for the way back.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::demo::TO;
use crate::kube::Kube;
use crate::memoria::VERSION;
use crate::place;

const UPGRADE: &str = "by-hand.sh";
const ROLLBACK: &str = "by-hand-rollback.sh";
/// What a step of a rollback may take, when all rows go through memory; `sh` and kubectl read it.
const PATIENT: (&str, &str) = ("LIMIT", "1800s");

/// How the migrations run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Migrations {
    /// Each in a Job of its own
    Each,
    /// One after the other in one pod
    One,
}

impl Migrations {
    fn variable(self) -> (&'static str, &'static str) {
        ("MIGRATIONS", if self == Self::Each { "each" } else { "one" })
    }
}

/// What the script says of its upgrade. Times are of its own clock, in seconds since 1970.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Said {
    pub variant: String,
    pub begin: f64,
    pub writers_stopped: Option<f64>,
    pub writers_back: Option<f64>,
    pub end: f64,
    /// Commands of the announcement that the command line refused with exit code 2.
    pub failed_commands: Vec<String>,
    /// Lines with a password in what Memoria printed.
    pub passwords_printed: u32,
    pub exported_rows: u64,
    pub exported_tables: u32,
    pub migrations: u32,
}

/// What the script says of its way back. Times are of its own clock, in seconds since 1970.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SaidBack {
    pub begin: f64,
    /// The import was over.
    pub imported: f64,
    /// The previous version was ready.
    pub started: f64,
    pub end: f64,
    pub imported_tables: u32,
    pub exported_rows: u64,
    pub exported_tables: u32,
}

/// Carries the upgrade out. What the script tells of its progress goes where ours goes.
pub fn upgrade(kube: &Kube, namespace: &str, variant: &str, migrations: Migrations) -> Result<Said> {
    let output = run(kube, UPGRADE, namespace, &[("TO", TO), migrations.variable()], &[variant])?;
    if !output.status.success() {
        bail!("the upgrade by hand ended with {}; what it said stands above", output.status);
    }
    said(UPGRADE, &output)
}

/// The quiesced upgrade to a version whose migration fails: the export is there, the writers are stopped, and so it stays.
pub fn failing_upgrade(kube: &Kube, namespace: &str, version: &str) -> Result<()> {
    let variables = [("TO", version), Migrations::One.variable(), PATIENT];
    let output = run(kube, UPGRADE, namespace, &variables, &["quiesced"])?;
    if output.status.success() {
        bail!("the upgrade by hand to {version} went well, although one of its migrations fails");
    }
    // Its one pod waits for the next command.
    kube.run(&["--namespace", namespace, "delete", "pod", "by-hand", "--wait=true"])
        .with_context(|| format!("{UPGRADE} did not come to the migrations; what it said stands above"))
        .map(drop)
}

/// Takes a failed upgrade back.
pub fn rollback(kube: &Kube, namespace: &str) -> Result<SaidBack> {
    let output = run(kube, ROLLBACK, namespace, &[PATIENT], &[])?;
    if !output.status.success() {
        bail!("the rollback by hand ended with {}; what it said stands above", output.status);
    }
    said(ROLLBACK, &output)
}

fn run(kube: &Kube, name: &str, namespace: &str, variables: &[(&str, &str)], arguments: &[&str]) -> Result<Output> {
    let kubectl = kube.kubectl(&[])?;
    let mut script = Command::new(place::root()?.join("tests/bench").join(name));
    for (name, value) in kubectl.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    script.env("KUBECTL", kubectl.get_program()).env("NAMESPACE", namespace).env("FROM", VERSION);
    script.envs(variables.iter().copied()).args(arguments);
    let output = script.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    output.with_context(|| format!("cannot start tests/bench/{name}"))
}

fn said<T: for<'a> Deserialize<'a>>(name: &str, output: &Output) -> Result<T> {
    serde_json::from_slice(&output.stdout).with_context(|| format!("cannot read what tests/bench/{name} printed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_lines_are_read() {
        let line = r#"{"variant":"as-written","begin":1.5,"writersStopped":null,"writersBack":null,"end":9,
            "failedCommands":["migrate run --all"],"passwordsPrinted":15,"exportedRows":3,"exportedTables":14,"migrations":15}"#;
        let said: Said = serde_json::from_str(line).unwrap();
        assert_eq!((said.writers_stopped, said.passwords_printed), (None, 15));
        let line = r#"{"begin":1.5,"imported":3,"started":4.25,"end":9,"importedTables":14,"exportedRows":3,"exportedTables":14}"#;
        let said: SaidBack = serde_json::from_str(line).unwrap();
        assert_eq!((said.started, said.exported_tables), (4.25, 14));
    }
}
