//! The API server's audit log: what the operator's ServiceAccount wrote, and when.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::environment;

/// One write.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Write {
    pub verb: String,
    #[serde(rename = "requestURI", default)]
    pub request_uri: String,
    pub user: User,
    #[serde(default)]
    pub object_ref: Option<ObjectRef>,
    #[serde(default)]
    pub response_status: Option<ResponseStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct User {
    pub username: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ObjectRef {
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ResponseStatus {
    #[serde(default)]
    pub code: u16,
}

impl Write {
    pub fn is_the_operators(&self) -> bool {
        let name = environment::OPERATOR;
        self.user.username == format!("system:serviceaccount:{name}:{name}")
    }

    pub fn of(&self, resource: &str) -> bool {
        self.object_ref.as_ref().is_some_and(|object| object.resource == resource)
    }

    /// A dry run writes nothing.
    pub fn succeeded(&self) -> bool {
        !self.request_uri.contains("dryRun=All")
            && self.response_status.as_ref().is_some_and(|status| status.code < 300)
    }
}

/// A place in the log.
pub struct Mark {
    directory: PathBuf,
    inode: u64,
    offset: u64,
}

/// What is being written; a full one is put aside as `audit-<time>.log`.
const CURRENT: &str = "audit.log";

impl Mark {
    /// The log's end.
    pub fn now() -> Result<Self> {
        let directory = environment::cluster_state()?;
        let path = directory.join(CURRENT);
        let metadata = std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { directory, inode: metadata.ino(), offset: metadata.len() })
    }

    /// All writes since then.
    pub fn since(&self) -> Result<Vec<Write>> {
        let mut writes = Vec::new();
        for file in self.files()? {
            for line in BufReader::new(file).lines() {
                writes.push(serde_json::from_str(&line?).context("a line of the audit log")?);
            }
        }
        Ok(writes)
    }

    /// The file that was current then, behind what it held, and all that were begun later.
    fn files(&self) -> Result<Vec<File>> {
        // Opened before the others are looked for: where it is put aside in between, it is met twice and not never.
        let current = File::open(self.directory.join(CURRENT))?;
        let names: Result<Vec<_>, _> =
            self.directory.read_dir()?.map(|entry| entry.map(|entry| entry.file_name())).collect();
        let is_old =
            |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("audit-") && name.ends_with(".log"));
        let mut old: Vec<_> = names?.into_iter().filter(is_old).collect();
        // By the time when they were put aside.
        old.sort();
        let mut files = Vec::new();
        for name in old {
            let file =
                File::open(self.directory.join(&name)).with_context(|| format!("cannot open {}", name.display()))?;
            if file.metadata()?.ino() != current.metadata()?.ino() {
                files.push(file);
            }
        }
        files.push(current);
        let mut since = Vec::new();
        for mut file in files {
            if file.metadata()?.ino() == self.inode {
                file.seek(SeekFrom::Start(self.offset))?;
            } else if since.is_empty() {
                continue;
            }
            since.push(file);
        }
        ensure!(!since.is_empty(), "what the audit log said at the beginning is gone; run the test again");
        Ok(since)
    }
}

#[test]
fn a_log_that_was_put_aside_meanwhile_is_read_on() -> crate::Outcome {
    let directory = tempfile::tempdir()?;
    let (current, at) = (directory.path().join(CURRENT), |name: &str| directory.path().join(name));
    let line = |name: &str| format!("{{\"verb\":\"{name}\",\"user\":{{\"username\":\"u\"}}}}\n");
    std::fs::write(at("audit-2026-01-01.log"), line("older"))?;
    std::fs::write(&current, line("before"))?;
    let metadata = std::fs::metadata(&current)?;
    let mark = Mark { directory: directory.path().to_owned(), inode: metadata.ino(), offset: metadata.len() };
    std::fs::write(&current, line("before") + &line("first"))?;
    let verbs = || mark.since().map(|writes| writes.into_iter().map(|write| write.verb).collect::<Vec<_>>());
    ensure!(verbs()? == ["first"]);
    std::fs::rename(&current, at("audit-2026-01-02.log"))?;
    std::fs::write(&current, line("second"))?;
    ensure!(verbs()? == ["first", "second"]);
    std::fs::remove_file(at("audit-2026-01-02.log"))?;
    ensure!(verbs().is_err());
    Ok(())
}
