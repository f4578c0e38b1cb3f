//! Runs `tests/bench/by-hand.sh`, the announcement's steps with kubectl.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::demo::TO;
use crate::kube::Kube;
use crate::memoria::VERSION;
use crate::place;

/// How the migrations run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Migrations {
    /// Each in a Job of its own
    Each,
    /// One after the other in one pod
    One,
}

/// What the script says of its run. Times are of its own clock, in seconds since 1970.
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

/// Carries the upgrade out. What the script tells of its progress goes where ours goes.
pub fn upgrade(kube: &Kube, namespace: &str, variant: &str, migrations: Migrations) -> Result<Said> {
    let kubectl = kube.kubectl(&[])?;
    let mut script = Command::new(place::root()?.join("tests/bench/by-hand.sh"));
    for (name, value) in kubectl.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    script.env("KUBECTL", kubectl.get_program()).env("NAMESPACE", namespace);
    script.env("FROM", VERSION).env("TO", TO);
    script.env("MIGRATIONS", if migrations == Migrations::Each { "each" } else { "one" });
    let output = script
        .arg(variant)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start tests/bench/by-hand.sh")?;
    if !output.status.success() {
        bail!("the upgrade by hand ended with {}; what it said stands above", output.status);
    }
    serde_json::from_slice(&output.stdout).context("cannot read what tests/bench/by-hand.sh printed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_line_is_read() {
        let line = r#"{"variant":"as-written","begin":1.5,"writersStopped":null,"writersBack":null,"end":9,
            "failedCommands":["migrate run --all"],"passwordsPrinted":15,"exportedRows":3,"exportedTables":14,"migrations":15}"#;
        let said: Said = serde_json::from_str(line).unwrap();
        assert_eq!((said.writers_stopped, said.passwords_printed), (None, 15));
    }
}
