//! What a decision can ask for. Each act is idempotent by identity and carries its precondition.

use crate::{api::release::WorkloadRef, job::protocol::JobInput};

/// One act on the cluster, done after the journal that intends it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes owner, attempt and prior replica count on a workload, by server-side apply without force.
    Mark { workload: WorkloadRef, uid: String, prior_replicas: i32 },
    /// Takes attempt and prior replica count away again; the owner stays.
    Unmark { workload: WorkloadRef, uid: String },
    /// Sets the replica count through the scale subresource.
    Scale { workload: WorkloadRef, precondition: Precondition, replicas: i32 },
    /// Sets the image of one container, by server-side apply with force and nothing else in the patch.
    SetImage { workload: WorkloadRef, precondition: Precondition, container: String, image: String },
    /// Sets the maintenance flag.
    SetFlag { value: String },
    /// Creates the plan's Job of that step, with this input; a Job of the same name and hash is taken as created.
    CreateJob { step: String, input: JobInput },
    /// Deletes a Job and its pods.
    DeleteJob { step: String, uid: String },
    /// Lets Kubernetes delete a finished Job after a week.
    ArmJobTtl { step: String, uid: String },
    /// Creates the candidate pod of a target as the plan has it.
    CreateCandidate { target: String },
    /// Deletes a candidate pod.
    DeleteCandidate { target: String, uid: String },
}

/// The state that a write was decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    pub uid: String,
    pub resource_version: String,
}
