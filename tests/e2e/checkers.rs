//! The independent checkers of `tests/checkers` decide what became of data, workloads and secrets.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    environment,
    site::{RELEASE, Site},
};

/// What a site was like at one moment.
pub struct Captured {
    data: PathBuf,
    workloads: PathBuf,
    // Removed with the value.
    _directory: tempfile::TempDir,
}

impl Captured {
    /// Reads every row and every workload, once all pods that are wanted are ready: on a busy machine a probe may fail now
    /// and then.
    pub async fn now(site: &Site) -> Result<Self> {
        site.calm().await?;
        let directory = tempfile::tempdir()?;
        let (data, workloads) = (directory.path().join("data.capture"), directory.path().join("workloads.json"));
        let mut capture = checker("capture.py");
        match site.options.sqlite {
            false => capture.args(["--psql", &psql(site)]),
            true => capture.arg("--sqlite").arg(sqlite(site, directory.path()).await?),
        };
        capture.arg("--out").arg(&data);
        environment::run(&mut capture, None).await?;
        let mut capture = checker("workloads.py");
        capture.args(["capture", "--kubectl", "kubectl", "--namespace", &site.namespace, "--out"]).arg(&workloads);
        environment::run(&mut capture, None).await?;
        Ok(Self { data, workloads, _directory: directory })
    }

    /// Every row, sequence and grant is what an upgrade from one version to the other makes of what was `before`; where the
    /// versions are the same, only what a starting server does has changed. The next insert works in every table.
    pub async fn is_what_an_upgrade_makes_of(&self, before: &Self, site: &Site, from: &str, to: &str) -> Result<()> {
        let mut question = checker("data_expected.py");
        question.arg(&before.data).arg(&self.data).args(["--from", from, "--to", to]);
        if !site.options.sqlite {
            question.args(["--probe-insert", "--psql", &psql(site)]);
        }
        // What was ingested meanwhile stays, unless the upgrade was taken back.
        let queued = site.queued();
        let ids = tempfile::NamedTempFile::new()?;
        if from != to && !queued.is_empty() {
            std::fs::write(ids.path(), queued.join("\n"))?;
            question.args(["--allow-new-rows", "--must-hold"]).arg(ids.path());
        }
        yes(&mut question).await.context("the data is not as expected").map(drop)
    }

    /// Not one bit of the data differs.
    pub async fn has_the_data_of(&self, before: &Self) -> Result<()> {
        let mut question = checker("identical.py");
        yes(question.arg(&before.data).arg(&self.data)).await.context("the data differs").map(drop)
    }

    /// The same where clients wrote meanwhile: what sequences gave out then is not given out again.
    pub async fn has_the_rows_of(&self, before: &Self) -> Result<()> {
        let mut question = checker("identical.py");
        question.arg("--ignore-sequences-forward").arg(&before.data).arg(&self.data);
        yes(&mut question).await.context("the data differs").map(drop)
    }

    /// Replicas, flags and readiness as before, and images too but for these (`workload/container=image`). An attempt
    /// keeps the settings that it replaced.
    pub async fn has_the_workloads_of(&self, before: &Self, images: &[String]) -> Result<()> {
        let mut question = checker("workloads.py");
        question.arg("check").arg(&before.workloads).arg(&self.workloads);
        question.arg("--config-may-appear").arg(format!("{RELEASE}-1-"));
        for image in images {
            question.arg("--image").arg(image);
        }
        yes(&mut question).await.context("the workloads are not as expected").map(drop)
    }
}

/// No secret of the site stands in an object, event, log or termination message.
pub async fn no_secret_leaked(site: &Site) -> Result<()> {
    let mut question = checker("secrets_leaked.py");
    question.args(["--kubectl", "kubectl", "--secrets-of", &site.namespace, "--namespace", &site.namespace]);
    yes(question.args(["--namespace", environment::OPERATOR])).await.context("a secret leaked").map(drop)
}

fn checker(program: &str) -> Command {
    let mut python = Command::new("python3");
    python.arg("-B").arg(environment::root().join("tests/checkers").join(program));
    python
}

/// A psql in the database's own pod: its socket needs no password.
fn psql(site: &Site) -> String {
    format!("kubectl -n {} exec -i memoria-postgres-0 -- psql -h /tmp -U memoria memoria", site.namespace)
}

/// A copy of the SQLite file that nobody has open: made by the server while one runs, else of the files as they lie.
async fn sqlite(site: &Site, directory: &Path) -> Result<PathBuf> {
    let copy = directory.join("memoria.db");
    let running = site.workloads().await?.iter().any(|workload| {
        workload.status.as_ref().and_then(|status| status.ready_replicas).is_some_and(|ready| ready > 0)
    });
    if running {
        let script = std::fs::File::open(environment::root().join("tests/checkers/copy_sqlite.py"))?;
        let mut exec = Command::new("kubectl");
        exec.args(["-n", &site.namespace, "exec", "-i", "deployment/memoria", "--", "python", "-", "/data/memoria.db"]);
        exec.stdin(script).stdout(std::fs::File::create(&copy)?);
        let output = exec.stderr(Stdio::piped()).spawn()?.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the SQLite file could not be copied: {said}");
        return Ok(copy);
    }
    let volume = site.volume("memoria-data").await?;
    for suffix in ["", "-wal", "-journal"] {
        let file = volume.join(format!("memoria.db{suffix}"));
        if file.exists() {
            std::fs::copy(&file, directory.join(format!("memoria.db{suffix}")))?;
        }
    }
    // Opening the copy for writing takes up what a killed writer left in its journal.
    let open = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint').fetchall()";
    environment::run(Command::new("python3").args(["-c", open]).arg(&copy), None).await?;
    Ok(copy)
}

/// The checker's answer, which must be yes.
async fn yes(question: &mut Command) -> Result<Value> {
    let output = question.output().await.context("cannot start python3")?;
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(0), "{answer}\n{said}");
    serde_json::from_str(&answer).context("a checker's answer")
}
