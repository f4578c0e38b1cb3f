//! `spec.snapshot`: where snapshots are kept, for how long, and whether anybody who reads the storage can read them.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::KeyRef;
use crate::api::GoDuration;

/// Where the snapshot is kept.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Default: a claim `<release>-snapshots` that the operator makes, of the default storage class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Free space that the storage must have, as a multiple of the database's size, from 2 to 20. With `objectStore` or
    /// `encryption` Jobs work in an emptyDir, and it is the node that must have it.
    #[serde(default = "capacity_factor")]
    #[schemars(range(min = 2, max = 20))]
    pub capacity_factor: i32,
    /// Whether the database of that moment is also kept as a portable export: Memoria's own NDJSON, which its
    /// `import-data` reads, with every table and a manifest that proves it. The way back does not need it; writers wait a
    /// little longer for it. Default: true.
    #[serde(default = "yes")]
    pub portable: bool,
    /// Which snapshots stay in the storage.
    #[serde(default)]
    pub retention: Retention,
    /// Encrypts by [age](https://age-encryption.org) whatever of a snapshot holds values of rows, and what is kept beside
    /// it. Default: nothing is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// Which snapshots stay in the storage. The others go when a pre-flight begins, and with each what was kept beside it: its
/// export, the failed state, rows that were set aside.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// So many of the newest whole ones, from 1 to 1000. Those of attempts that are open, halted, unverified, or whose way
    /// back failed stay in any case. Default: 3.
    #[serde(default = "keep_last")]
    #[schemars(range(min = 1, max = 1000))]
    pub keep_last: i32,
    /// Those that were taken longer ago go even if they are among them, but never the newest whole one, nor those that stay in
    /// any case; from `1h` on. Like the others they go when a pre-flight begins, and not before. Default: no age is too
    /// high. Example: `2160h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('1h')", "maxAge is the age from which on a snapshot goes: at least 1h"))]
    pub max_age: Option<GoDuration>,
}

const fn yes() -> bool {
    true
}

const fn keep_last() -> i32 {
    3
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep_last: keep_last(), max_age: None }
    }
}

const fn capacity_factor() -> i32 {
    3
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            storage: None,
            capacity_factor: capacity_factor(),
            portable: true,
            retention: Retention::default(),
            encryption: None,
        }
    }
}

impl Snapshot {
    /// The claim for snapshots of the release of that name; none where they are kept in a bucket.
    pub fn claim_name(&self, release: &str) -> Option<String> {
        match &self.storage {
            Some(storage) => storage.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone()),
            None => Some(format!("{release}-snapshots")),
        }
    }

    /// The bucket for snapshots, if they are kept in one.
    pub fn object_store(&self) -> Option<&ObjectStore> {
        self.storage.as_ref()?.object_store.as_ref()
    }
}

/// A place for snapshots.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = ("has(self.persistentVolumeClaim) != has(self.objectStore)", "set exactly one of persistentVolumeClaim and objectStore"))]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// A claim whose volume keeps the snapshots. The operator never deletes it. Default: none, when objectStore is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimRef>,
    /// A bucket of S3-compatible storage. Default: none, when persistentVolumeClaim is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
}

/// A PersistentVolumeClaim in the release's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRef {
    /// The claim's `metadata.name`. Example: `memoria-snapshots`.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// A bucket of S3-compatible storage. Only the operator's own containers get its credentials, none of Memoria's.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStore {
    /// Bucket and prefix; snapshots lie below it. Several releases may share it. Example: `s3://backups/memoria`.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = (
        "self.matches('^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[0-9A-Za-z_=+-][0-9A-Za-z._=+-]*)*/?$')",
        "write s3://bucket/prefix: a bucket's name has 3 to 63 of a-z, 0-9, dots and hyphens; parts of the prefix have letters, digits and ._=+- and do not begin with a dot"
    ))]
    pub url: String,
    /// The bucket's region. Default: `us-east-1`. Example: `eu-south-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[0-9A-Za-z_-]+$"))]
    pub region: Option<String>,
    /// Where the storage is, of MinIO and others; without TLS only if it begins with `http://`. Default: Amazon's own.
    /// Example: `https://minio.example:9000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = (
        "self.matches('^https?://([0-9A-Za-z.-]+|[[][0-9A-Fa-f:.]+[]])(:[0-9]{1,5})?(/[0-9A-Za-z._~/-]*)?$')",
        "write scheme, host and port, e.g. https://minio.example:9000; credentials come from credentialsSecretRef"
    ))]
    pub endpoint: Option<String>,
    /// A Secret with the keys `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, and `AWS_SESSION_TOKEN` where there is one.
    /// Default: none; what the cluster gives to pods of the namespace's ServiceAccount `default`, or to the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// A Secret in the release's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The Secret's `metadata.name`. Example: `memoria-backups`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Encryption by age, to X25519 keys. The operator reads neither key; the Jobs that write snapshots or restore them do.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// The public keys, `age1…`, one a line. An identity of any of them reads the snapshots.
    pub recipients_from: SecretFrom,
    /// The secret keys, `AGE-SECRET-KEY-1…`, one a line: every snapshot is read back before it counts, and a restore
    /// needs them. Keep a copy outside of the cluster: without one the snapshots are lost with this Secret.
    pub identity_from: SecretFrom,
}

/// Where a key comes from.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretFrom {
    /// A key of a Secret in this namespace.
    pub secret_key_ref: KeyRef,
}
