//! What a restore can prove afterwards: kept as the marker's detail in the database, and as a file beside the failed state.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    api::upgrade::DatabaseIdentity,
    job::protocol::RestoreFacts,
    snapshot::{
        digest::SequencePosition,
        error::{Error, Result},
        late::carry::Came,
        manifest::{Manifest, write_once},
    },
};

pub const EVIDENCE: &str = "evidence-restore.json";

/// `docs/formats.md` shows one. Fields are only ever added, each with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Version of this form: 1.
    pub v: i32,
    pub release_uid: String,
    pub attempt: String,
    pub identity: DatabaseIdentity,
    /// What the database was taken back to.
    pub snapshot: Side,
    /// What it was before.
    pub failed_state: Side,
    pub facts: RestoreFacts,
    /// Late rows that are in the data beyond the snapshot's: number and sums by table.
    #[serde(default, skip_serializing_if = "Came::is_empty")]
    pub carried: Came,
    pub sequences_before: BTreeMap<String, SequencePosition>,
    pub sequences_after: BTreeMap<String, SequencePosition>,
    pub started_at: jiff::Timestamp,
    /// Just before COMMIT.
    pub restored_at: jiff::Timestamp,
    /// When a new connection found the snapshot's digest; only in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<jiff::Timestamp>,
    /// The digest that it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_digest: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// Below the storage's mount.
    pub directory: String,
    pub manifest_sha256: String,
    pub data_digest: String,
    pub schema_fingerprint: String,
    pub access_fingerprint: String,
}

impl Side {
    pub fn new(directory: &str, manifest: &Manifest, manifest_sha256: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            manifest_sha256: manifest_sha256.to_owned(),
            data_digest: manifest.data_digest.clone(),
            schema_fingerprint: manifest.schema_fingerprint.clone(),
            access_fingerprint: manifest.access_fingerprint.clone(),
        }
    }
}

impl Evidence {
    /// Writes the file once; one that is there already says the same.
    pub fn keep(&self, directory: &Path) -> Result<()> {
        if directory.join(EVIDENCE).exists() {
            return Ok(());
        }
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| Error::Order { what: error.to_string() })?;
        bytes.push(b'\n');
        write_once(directory, EVIDENCE, &bytes)
    }
}
