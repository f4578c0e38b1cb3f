//! What a decision can ask for. Each act is idempotent by identity and carries its precondition.

use super::at_risk;
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
    /// Whether both may be under way at the same time: each is about an object of its own, and neither needs the other to
    /// be done. What KEDA is told comes before the count of what it scales, and so goes alone.
    pub fn goes_with(&self, next: &Self) -> bool {
        let kinds = [Self::keeps_books, Self::switches, Self::sets_an_image];
        kinds.into_iter().any(|is_one| is_one(self) && is_one(next))
    }

    /// Whether nothing runs otherwise because of it.
    fn keeps_books(&self) -> bool {
        matches!(self, Self::ArmJobTtl { .. } | Self::Mark { .. } | Self::Unmark { .. })
    }

    /// Whether it turns on or off what serves or writes, at once.
    fn switches(&self) -> bool {
        matches!(self, Self::SetFlag { .. } | Self::Scale { .. } | Self::Suspend { .. })
    }

    fn sets_an_image(&self) -> bool {
        matches!(self, Self::SetImage { .. })
    }

    /// Whether it is about a count that nothing waits for: what becomes of it is no matter of the attempt's.
    pub fn only_counts(&self) -> bool {
        matches!(self, Self::CreateJob { step, .. } | Self::DeleteJob { step, .. } if step == at_risk::STEP)
    }

    /// Whether it stops or starts a writer.
    pub fn moves_writers(&self) -> bool {
        matches!(self, Self::Scale { .. } | Self::Suspend { .. } | Self::PauseAutoscaler { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::release::{WorkerKind, WorkloadKind};

    #[test]
    fn what_is_apart_goes_at_the_same_time_and_what_keda_is_told_goes_first() {
        let precondition = || Precondition { uid: "u".to_owned(), resource_version: "1".to_owned() };
        let workload = WorkloadRef { kind: WorkloadKind::Deployment, name: "server".to_owned() };
        let scale = || Action::Scale { workload: workload.clone(), precondition: precondition(), replicas: 0 };
        let flag = || Action::SetFlag { value: "true".to_owned() };
        let pause = || Action::PauseAutoscaler {
            worker: WorkerRef { kind: WorkerKind::ScaledObject, name: "queue".to_owned() },
            precondition: precondition(),
            replicas: None,
        };
        let job = || Action::CreateJob { step: "fence".to_owned(), input: JobInput::default() };
        let all = [flag(), scale(), scale(), pause(), scale(), job(), job()];
        let groups: Vec<_> = all.chunk_by(Action::goes_with).map(<[_]>::len).collect();
        assert_eq!(groups, [3, 1, 1, 1, 1]);
    }
}
