//! What the controller observed, as plain values: all that a decision may rest on.

use std::collections::BTreeMap;

use crate::{
    api::{release::WorkloadRef, upgrade::Category},
    job::protocol::JobReport,
};

/// The world of one attempt at one moment, from live reads made after the journal was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// By target name; a target whose workload is gone is absent.
    pub targets: BTreeMap<String, Workload>,
    /// Workers that are no targets; one that is gone is absent.
    pub workers: BTreeMap<WorkloadRef, Workload>,
    /// The maintenance flag's value now; absent when there is no flag or no such key.
    pub flag: Option<String>,
    /// The attempt's Jobs by step; absent when there is none.
    pub jobs: BTreeMap<String, JobSeen>,
    /// Candidate pods by target name; absent when there is none.
    pub candidates: BTreeMap<String, PodSeen>,
    pub orders: Orders,
    /// What the API server refused for good, of the actions that the last decision asked for.
    pub refusal: Option<Refusal>,
}

/// An action that will not succeed by trying again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub category: Category,
    pub reason: String,
    pub message: String,
}

/// What people ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    pub suspend: bool,
    /// Name of a MemoriaDecision that aborts this attempt and was not acted on yet.
    pub abort: Option<String>,
    /// The same, of one that takes the ended attempt back.
    pub rollback: Option<String>,
    /// The same, of one that lets late writes be set aside.
    pub accept_data_loss: Option<String>,
    /// spec.version is the attempt's `from` again.
    pub returned: bool,
    /// The release is being deleted.
    pub deleting: bool,
}

/// A Deployment or StatefulSet with its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    pub uid: String,
    /// Precondition of every write.
    pub resource_version: String,
    pub generation: i64,
    pub observed_generation: i64,
    /// `spec.replicas`, 1 when absent.
    pub replicas: i32,
    /// `status.replicas`: pods that the controller still counts.
    pub status_replicas: i32,
    pub updated_replicas: i32,
    pub ready_replicas: i32,
    /// Image of the target's container; empty for workers.
    pub image: String,
    /// Our annotations.
    pub owner: Option<String>,
    pub attempt: Option<String>,
    pub prior_replicas: Option<String>,
    /// Pods that the selector finds, terminating ones included.
    pub pods: Vec<PodSeen>,
}

impl Workload {
    /// Nothing of it runs any more: asked for zero, and no pod is left, not even a terminating one.
    pub fn is_gone(&self) -> bool {
        self.replicas == 0 && self.status_replicas == 0 && self.pods.is_empty()
    }

    /// As many pods as `replicas` run the current template and are ready, and the workload's controller has seen it.
    pub fn is_rolled_out(&self, replicas: i32) -> bool {
        self.replicas == replicas
            && self.observed_generation >= self.generation
            && self.updated_replicas == replicas
            && self.ready_replicas == replicas
            && self.status_replicas == replicas
    }
}

/// A pod, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSeen {
    pub name: String,
    pub uid: String,
    pub node: Option<String>,
    /// Its address, once it has one.
    pub ip: Option<std::net::IpAddr>,
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    pub phase: String,
    pub ready: bool,
    pub deleting: bool,
    /// `imageID` of the container that matters.
    pub image_id: Option<String>,
    /// What keeps it from running, when the kubelet or scheduler says so.
    pub trouble: Option<Trouble>,
    /// Restarts of the container that matters.
    pub restarts: i32,
}

/// Why a pod does not run, in Kubernetes' own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// E.g. `ImagePullBackOff`, `ErrImagePull`, `CrashLoopBackOff`, `CreateContainerConfigError`, `Unschedulable`,
    /// `ContainerExited`.
    pub reason: String,
    pub message: String,
}

impl Trouble {
    /// Trouble that does not go away by waiting, and whether the image is to blame.
    pub fn is_lasting(&self) -> Option<Blame> {
        match self.reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => Some(Blame::Image),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Some(Blame::Environment),
            "CrashLoopBackOff" => Some(Blame::Image),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    Image,
    Environment,
}

/// One of the attempt's Jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSeen {
    pub uid: String,
    pub state: JobState,
    /// The pod's `imageID` of container `main`, when it was seen.
    pub image_id: Option<String>,
    /// Whether `ttlSecondsAfterFinished` is set.
    pub ttl_armed: bool,
}

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a handful of Jobs per look; a box would only hide the report")]
pub enum JobState {
    /// Not finished. `trouble` says what keeps its pod from running.
    Running { trouble: Option<Trouble> },
    /// Finished; the report is absent when the pod is gone or left no readable message.
    Finished {
        succeeded: bool,
        report: Option<JobReport>,
        /// Job condition and exit code in words.
        detail: String,
    },
    /// Same name, but not made by this attempt or from another template.
    Foreign { detail: String },
}
