//! What is stopped for an upgrade and brought back: a reference to one of five kinds.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{WorkloadKind, WorkloadRef};

/// Something in the release's namespace that feeds Memoria.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerRef {
    /// `Deployment`, `StatefulSet`, `CronJob`, `Job` or `ScaledObject` (of KEDA).
    pub kind: WorkerKind,
    /// Its `metadata.name`. Example: `memoria-worker`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How a worker is stopped depends on its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WorkerKind {
    /// Scaled to zero.
    Deployment,
    /// Scaled to zero.
    StatefulSet,
    /// Suspended; Jobs of it that run already are waited for.
    CronJob,
    /// Suspended, which ends its pods; resumed, it starts them anew.
    Job,
    /// KEDA keeps what it scales at zero, by the annotation `autoscaling.keda.sh/paused-replicas: "0"`.
    ScaledObject,
}

impl WorkerKind {
    /// Every kind, for those who must look at each.
    pub const ALL: [Self; 5] = [Self::Deployment, Self::StatefulSet, Self::CronJob, Self::Job, Self::ScaledObject];

    /// As kubectl names it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::CronJob => "cronjob",
            Self::Job => "job",
            Self::ScaledObject => "scaledobject",
        }
    }
}

impl WorkerRef {
    /// The same reference where only kinds with replicas and a pod template will do.
    pub fn workload(&self) -> Option<WorkloadRef> {
        let kind = match self.kind {
            WorkerKind::Deployment => WorkloadKind::Deployment,
            WorkerKind::StatefulSet => WorkloadKind::StatefulSet,
            WorkerKind::CronJob | WorkerKind::Job | WorkerKind::ScaledObject => return None,
        };
        Some(WorkloadRef { kind, name: self.name.clone() })
    }

    /// Whether it names that workload.
    pub fn is(&self, workload: &WorkloadRef) -> bool {
        self.workload().as_ref() == Some(workload)
    }
}

impl From<&WorkloadRef> for WorkerRef {
    fn from(workload: &WorkloadRef) -> Self {
        let kind = match workload.kind {
            WorkloadKind::Deployment => WorkerKind::Deployment,
            WorkloadKind::StatefulSet => WorkerKind::StatefulSet,
        };
        Self { kind, name: workload.name.clone() }
    }
}

impl From<WorkloadRef> for WorkerRef {
    fn from(workload: WorkloadRef) -> Self {
        Self::from(&workload)
    }
}

impl From<&WorkerRef> for WorkerRef {
    fn from(worker: &WorkerRef) -> Self {
        worker.clone()
    }
}

impl std::fmt::Display for WorkerRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.resource(), self.name)
    }
}
