//! What a way back left behind, by the checkers: what of the data is not as it was, but for what a starting server changes.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::stage::{self, NAMESPACE};
use crate::checkers;
use crate::cluster::command;
use crate::kube::Kube;
use crate::memoria::VERSION;

/// The checkers' answer.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remains {
    pub as_expected: bool,
    /// What is not as before, a line each.
    pub reasons: Vec<String>,
}

/// The database as it was.
pub struct Before {
    file: PathBuf,
}

impl Before {
    pub fn capture(kube: &Kube) -> Result<Self> {
        Ok(Self { file: capture(kube, "before")? })
    }

    /// Compares with what there is now. The version that wrote it must serve again.
    pub fn remains(&self, kube: &Kube, way: &str) -> Result<Remains> {
        let after = capture(kube, &format!("after-{way}"))?;
        let mut question = checkers::program(kube, "data_expected.py")?;
        question.arg(&self.file).arg(&after).args(["--from", VERSION, "--to", VERSION]);
        question.args(["--probe-insert", "--psql", &checkers::psql(kube, NAMESPACE)?]);
        let output = question.stdin(Stdio::null()).output().context("cannot start python3")?;
        // 1: not as expected, which is an answer.
        if !matches!(output.status.code(), Some(0 | 1)) {
            bail!("the checker could not answer: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("a checker's answer")
    }
}

fn capture(kube: &Kube, name: &str) -> Result<PathBuf> {
    let directory = stage::records()?;
    fs::create_dir_all(&directory)?;
    let file = directory.join(format!("rollback-{name}.capture"));
    let mut capture = checkers::program(kube, "capture.py")?;
    capture.args(["--psql", &checkers::psql(kube, NAMESPACE)?]).arg("--out").arg(&file);
    command::run(&mut capture)?;
    Ok(file)
}
