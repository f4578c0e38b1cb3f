//! What a decision can ask for. Each act is idempotent by identity and carries its precondition.

use crate::{
    api::release::{WorkerRef, WorkloadRef},
    job::protocol::JobInput,
};

/// One act on the cluster, done after the journal that intends it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes owner, attempt and how it ran before on a target or worker, by server-side apply without force.
    /// `back` says that the attempt goes back: from then on no write of the way forth can arrive.
    Mark { workload: WorkerRef, uid: String, prior: Prior, back: bool },
    /// Takes attempt and prior state away again; the owner stays.
    Unmark { workload: WorkerRef, uid: String },
    /// Sets the replica count through the scale subresource.
    Scale { workload: WorkloadRef, precondition: Precondition, replicas: i32 },
    /// Sets `spec.suspend` of a CronJob or Job.
    Suspend { worker: WorkerRef, precondition: Precondition, suspend: bool },
    /// Sets or removes KEDA's annotation that keeps what a ScaledObject scales at a count.
    PauseAutoscaler { worker: WorkerRef, precondition: Precondition, replicas: Option<String> },
    /// Sets the image of one container, by server-side apply with force and nothing else in the patch.
    SetImage { workload: WorkloadRef, precondition: Precondition, container: String, image: String },
    /// Sets the maintenance flag.
    SetFlag { value: String },
    /// Creates the immutable ConfigMap with the prior and the merged settings; one with this content is taken as created.
    KeepConfig,
    /// Writes the merged settings from there into the output's key, or the prior ones.
    SetConfig { precondition: Precondition, prior: bool },
    /// Creates the plan's Job of that step, with this input; a Job of the same name and hash is taken as created.
    CreateJob { step: String, input: JobInput },
    /// Deletes a Job and its pods.
    DeleteJob { step: String, uid: String },
    /// Lets Kubernetes delete a finished Job after a week.
    ArmJobTtl { step: String, uid: String },
    /// Creates the candidate pod of a target as the plan has it, gated: a create bears no version, and may arrive late.
    CreateCandidate { target: String },
    /// Lifts the gate, so that the candidate starts.
    AdmitCandidate { target: String, uid: String },
    /// Deletes a candidate pod.
    DeleteCandidate { target: String, uid: String },
}

/// The state that a write was decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    pub uid: String,
    pub resource_version: String,
}

/// How a target or worker ran before it was stopped, and how it shall run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prior {
    /// Of a Deployment or StatefulSet.
    Replicas(i32),
    /// `spec.suspend` of a CronJob or Job.
    Suspend(bool),
    /// KEDA's `paused-replicas` annotation of a ScaledObject; `None` when there was none.
    Paused(Option<String>),
}

impl Action {
    /// Whether both may be under way at the same time: they only keep books, each on an object of its own.
    pub fn goes_with(&self, next: &Self) -> bool {
        matches!(
            (self, next),
            (Self::ArmJobTtl { .. }, Self::ArmJobTtl { .. })
                | (Self::Mark { .. }, Self::Mark { .. })
                | (Self::Unmark { .. }, Self::Unmark { .. })
        )
    }

    /// Whether it stops or starts a writer.
    pub fn moves_writers(&self) -> bool {
        matches!(self, Self::Scale { .. } | Self::Suspend { .. } | Self::PauseAutoscaler { .. })
    }
}
