//! The API server's audit log: what the operator's ServiceAccount wrote, and when.

use std::{
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
    path: PathBuf,
    inode: u64,
    offset: u64,
}

impl Mark {
    /// The log's end.
    pub fn now() -> Result<Self> {
        let path = environment::cluster_state()?.join("audit.log");
        let metadata = std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path, inode: metadata.ino(), offset: metadata.len() })
    }

    /// All writes since then.
    pub fn since(&self) -> Result<Vec<Write>> {
        let mut file = File::open(&self.path)?;
        ensure!(file.metadata()?.ino() == self.inode, "the audit log was put aside meanwhile; run the test again");
        file.seek(SeekFrom::Start(self.offset))?;
        let mut writes = Vec::new();
        for line in BufReader::new(file).lines() {
            writes.push(serde_json::from_str(&line?).context("a line of the audit log")?);
        }
        Ok(writes)
    }
}
