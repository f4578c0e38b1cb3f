//! What a person needs to finish an attempt by hand when the operator and its objects are gone. Part of the plan; kept
//! beside the snapshot as `rescue.json` (`docs/formats.md`). It holds names, counts and references to Secrets, no value.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::{
    release::{KeyRef, MaintenanceFlag, Role, WorkloadRef},
    settings::PlannedConfig,
    upgrade::{Engine, PlannedStorage, PlannedTarget, PlannedWorker},
};

/// Fields are only ever added, each with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RescueState {
    /// Version of this form: 1.
    pub v: i32,
    pub namespace: String,
    pub release: String,
    pub release_uid: String,
    pub attempt: String,
    /// The version that ran before, and the one that was asked for.
    pub from: String,
    pub to: String,
    #[serde(default)]
    pub engine: Engine,
    pub targets: Vec<RescueTarget>,
    pub workers: Vec<PlannedWorker>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_flag: Option<MaintenanceFlag>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<RescueSettings>,
    pub storage: PlannedStorage,
    /// The pinned `batch/v1` Job of step `restore`, without its input.
    pub restore: Value,
}

/// A target as it was found and as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RescueTarget {
    pub name: String,
    pub role: Role,
    pub workload: WorkloadRef,
    pub container: String,
    pub from_image: String,
    pub from_digest: String,
    pub to_image: String,
    pub replicas: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaler: Option<String>,
    /// True when it comes back with the workers.
    #[serde(default)]
    pub worker: bool,
}

impl From<&PlannedTarget> for RescueTarget {
    fn from(planned: &PlannedTarget) -> Self {
        Self {
            name: planned.name.clone(),
            role: planned.role,
            workload: planned.workload.clone(),
            container: planned.container.clone(),
            from_image: planned.from_image.clone(),
            from_digest: planned.from_digest.clone(),
            to_image: planned.to_image.clone(),
            replicas: planned.replicas,
            autoscaler: planned.autoscaler.clone(),
            worker: planned.worker,
        }
    }
}

/// Where Memoria's settings stand, and where those from before are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RescueSettings {
    pub output: KeyRef,
    pub kept_in: String,
    pub prior_sha256: String,
    pub new_sha256: String,
}

impl From<&PlannedConfig> for RescueSettings {
    fn from(planned: &PlannedConfig) -> Self {
        Self {
            output: planned.output.clone(),
            kept_in: planned.kept_in.clone(),
            prior_sha256: planned.prior_sha256.clone(),
            new_sha256: planned.new_sha256.clone(),
        }
    }
}
