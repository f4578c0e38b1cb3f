//! What the controller observed, as plain values: all that a decision may rest on.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    api::{release::WorkerRef, settings::PlannedConfig, upgrade::Category},
    job::protocol::JobReport,
};

/// The world of one attempt at one moment, from live reads made after the journal was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// By target name; a target whose workload is gone is absent.
    pub targets: BTreeMap<String, Workload>,
    /// Workers that are no targets; one that is gone is absent.
    pub workers: BTreeMap<WorkerRef, Workload>,
    /// The maintenance flag's value now; absent when there is no flag or no such key.
    pub flag: Option<String>,
    /// Memoria's settings; absent when the plan has none.
    pub config: Option<ConfigSeen>,
    /// The attempt's Jobs by step; absent when there is none.
    pub jobs: BTreeMap<String, JobSeen>,
    /// Candidate pods by target name; absent when there is none.
    pub candidates: BTreeMap<String, PodSeen>,
    pub orders: Orders,
    /// What the API server refused for good, of the actions that the last decision asked for.
    pub refusal: Option<Refusal>,
}

impl Observed {
    /// When the next terminating pod is overdue, although nothing else changes.
    pub fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let pods = self.targets.values().chain(self.workers.values()).flat_map(|workload| &workload.pods);
        pods.filter_map(|pod| pod.terminating.as_ref()).map(Terminating::hangs_at).filter(|at| *at > now).min()
    }
}

/// Memoria's settings by their hashes: no decision rests on a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigSeen {
    /// Absent when the ConfigMap is gone.
    pub output: Option<OutputSeen>,
    /// SHA-256 in hex; absent without overrides, and when they are gone.
    pub overrides_sha256: Option<String>,
    /// The attempt's own ConfigMap with both texts; absent when there is none.
    pub kept: Option<KeptSeen>,
}

/// The ConfigMap whose key is rewritten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputSeen {
    pub uid: String,
    pub resource_version: String,
    pub immutable: bool,
    /// SHA-256 of the key's text, in hex; absent when there is no such key.
    pub sha256: Option<String>,
    /// Other field managers of the key, as `managedFields` names them.
    pub managers: Vec<String>,
}

impl OutputSeen {
    /// ` (by kubectl-edit)`, or nothing where that is not known.
    pub fn by(&self) -> String {
        if self.managers.is_empty() { String::new() } else { format!(" (by {})", self.managers.join(", ")) }
    }
}

/// The immutable ConfigMap with both texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptSeen {
    pub prior_sha256: Option<String>,
    pub new_sha256: Option<String>,
}

impl KeptSeen {
    /// Whether it keeps what this plan says.
    pub fn is_of(&self, config: &PlannedConfig) -> bool {
        self.prior_sha256.as_ref() == Some(&config.prior_sha256) && self.new_sha256.as_ref() == Some(&config.new_sha256)
    }
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
    /// The same, of one that has what waits or failed tried once more.
    pub retry: Option<String>,
    /// Who made these decisions, by their names, as far as they say.
    pub decided_by: BTreeMap<String, String>,
    /// spec.version is the attempt's `from` again.
    pub returned: bool,
    /// The release is being deleted.
    pub deleting: bool,
}

/// How a target or worker is told to stop, and what it is told now. The counts of [`Workload`] are those of the workload
/// itself, or of the one that a ScaledObject scales.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// Its replica count.
    #[default]
    Replicas,
    /// `spec.suspend` of a CronJob or Job. A Job that has finished needs no stopping.
    Suspend { suspended: bool, finished: bool },
    /// KEDA's annotation that pauses it at a count.
    Paused { replicas: Option<String> },
}

/// A target or worker with its pods.
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
    /// The mark says that the attempt goes back.
    pub goes_back: bool,
    pub prior_replicas: Option<String>,
    pub switch: Switch,
    /// Jobs of a CronJob that have not finished.
    pub unfinished: Vec<String>,
    /// Its pods, terminating ones included: those that the selector finds, or that its Jobs made.
    pub pods: Vec<PodSeen>,
}

impl Workload {
    /// Nothing of it runs any more: asked for zero, and no pod is left, not even a terminating one.
    pub fn is_gone(&self) -> bool {
        self.is_told_to_stop()
            && !self.is_still_asked_for()
            && self.status_replicas == 0
            && self.unfinished.is_empty()
            && self.pods.is_empty()
    }

    /// Whether whoever makes its pods was told to make none.
    pub fn is_told_to_stop(&self) -> bool {
        match &self.switch {
            Switch::Replicas => self.replicas == 0,
            Switch::Suspend { suspended, finished } => *suspended || *finished,
            Switch::Paused { replicas } => replicas.as_deref() == Some("0"),
        }
    }

    /// KEDA was told, but has not told the workload that it scales.
    fn is_still_asked_for(&self) -> bool {
        matches!(self.switch, Switch::Paused { .. }) && self.replicas != 0
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
    /// Our gate keeps it from every node.
    pub gated: bool,
    /// Since when and until when it may take to end; absent unless it is being deleted.
    pub terminating: Option<Terminating>,
    /// `imageID` of the container that matters.
    pub image_id: Option<String>,
    /// What keeps it from running, when the kubelet or scheduler says so.
    pub trouble: Option<Trouble>,
    /// Restarts of the container that matters.
    pub restarts: i32,
}

/// A pod's end, by its `deletionTimestamp` and grace period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminating {
    pub since: Timestamp,
    /// When its node must have ended it.
    pub due: Timestamp,
}

/// How long a node may take to say that a pod has ended.
const CONFIRMED_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

impl Terminating {
    /// When it hangs, and a person has to look.
    pub fn hangs_at(&self) -> Timestamp {
        self.due.saturating_add(CONFIRMED_WITHIN).unwrap_or(self.due)
    }
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
