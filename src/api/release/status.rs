//! The status of a `MemoriaRelease`: where it stands, for people and for programs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    schema,
    upgrade::{Estimates, HoldOutcome, Outcome},
};

/// Where the release stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemoriaReleaseStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// For people to read: `Pending`, a phase's name, `Succeeded`, `RolledBack`, `Resumed`, …
    /// Programs read conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// `Ready` always; `Reconciling`, `Stalled`, `IngestionStopped`, `AwaitingDecision`, `Held` only while True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// What runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Current>,
    /// Whether Memoria's writers run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingestion: Option<IngestionStatus>,
    /// What a person must type; absent when nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_action: Option<String>,
    /// What is waited for without having failed; absent while nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldStatus>,
    /// What the pre-flight checks of this generation found, while no attempt is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_flight: Option<PreFlightStatus>,
    /// The open or latest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptSummary>,
    /// What the way back would cost now: while an attempt is open, halted or unverified and has a snapshot to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackStatus>,
    /// Images that were taken back for their own fault; they are not tried again until a MemoriaDecision with action
    /// AcknowledgeRejection says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["attempt"]))]
    pub rejected: Vec<RejectedImages>,
    /// How many attempts were ever made: the number in the next one's name comes after it.
    #[serde(default)]
    pub attempts: i64,
}

/// What the way back would cost, estimated anew as the attempt goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackStatus {
    /// The version that it leads to.
    pub to_version: String,
    /// How long writers would be stopped, in whole seconds: what the restore took in the rehearsal (saving the failed
    /// state, restoring, proving), or, where none was made, what the snapshot's restore into scratch took, which saves no
    /// failed state; and how long this attempt's own Quiesce and Start took without their holds, as far as they are done: the way back stops and
    /// starts the same. Not scaled. Absent while no restore was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_seconds: Option<i64>,
    /// Rows inserted, updated and deleted since Start's baseline, which a restore would take back. 0 until clients are let
    /// in. Those that `rollback.carryForward` would keep are among them: whether they fit only a restore tells. Absent
    /// where nobody counted yet, where a writer came that nobody let in, and on SQLite, whose file the Server holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_at_risk: Option<i64>,
    /// The moment that these rows were counted at; absent while they are 0 because no client was let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_at_risk_at: Option<Time>,
}

/// Images that were taken back for their own fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RejectedImages {
    /// The attempt that took them back.
    pub attempt: String,
    /// The version that they stand for.
    pub version: String,
    /// Digests of all targets' images, sorted.
    #[schemars(length(max = 8))]
    pub digests: Vec<String>,
    /// Why, as the attempt's failure has it. Example: `MigrateFailed`.
    pub reason: String,
    /// When.
    pub at: Time,
}

/// A wait that is no failure. `nextAction` beside it says what a person can type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldStatus {
    /// Since when.
    pub since: Time,
    /// The phase that waits, or that is not begun.
    pub phase: String,
    /// CamelCase: `Suspended`, `CheckInconclusive`, `JobLost`, `JobCannotRun`, or `Inconclusive` in pre-flight.
    pub reason: String,
    /// What is missing.
    pub message: String,
    /// When `outcome` comes; absent while writers run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// What becomes of it at its deadline: `Resume`, `Rollback` or `Keep`.
    pub outcome: HoldOutcome,
}

/// What runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Current {
    /// The running version, read from the Server's image tag.
    pub version: String,
    /// Image of each target as its workload names it.
    #[serde(default)]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["target"]))]
    pub images: Vec<CurrentImage>,
    /// The annotation `memoria.arca.run/requested-at` when this was recorded: another value accepts what runs then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<String>,
}

/// One target's image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CurrentImage {
    /// The target's name.
    pub target: String,
    /// The image as its workload names it.
    pub image: String,
    /// The digest that the target's pods run, when one was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngestionStatus {
    /// `Running`, `Stopped` by an attempt, or `Unknown` before the workloads were seen.
    pub state: IngestionState,
    /// Since when an attempt keeps writers stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_since: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IngestionState {
    Running,
    Stopped,
    Unknown,
}

/// The pre-flight run of one generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreFlightStatus {
    /// Names the run's Jobs; another spec or another `requested-at` annotation gives another run.
    pub run: String,
    /// When it began.
    pub started_at: Time,
    /// Present once every check has a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Each check's result; the message names object or field and the fix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub checks: Vec<CheckResult>,
    /// The plan in short, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanSummary>,
}

/// One check's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// The check's name.
    pub name: String,
    /// `Passed`, `Failed`, or `Inconclusive` when it had no usable answer.
    pub result: Verdict,
    /// What was observed, or what is wrong and what to do.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    Passed,
    Failed,
    Inconclusive,
}

/// The plan in short; the whole of it is the spec of the MemoriaUpgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanSummary {
    /// SHA-256 over the whole plan, the first 12 hex digits.
    pub hash: String,
    /// The version that runs before.
    pub from: String,
    /// The version that shall run.
    pub to: String,
    /// Each target's image by digest after the upgrade.
    #[schemars(length(max = 8))]
    pub images: Vec<CurrentImage>,
    /// The migrations that will run, in order.
    #[schemars(length(max = 256))]
    pub migrations: Vec<String>,
    /// Server version and size of the database.
    pub database: String,
    /// What becomes of Memoria's settings. Example: `3 defaults adopted, 2 overrides kept, 0 obsolete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// What will be stopped, and from which replica count.
    #[schemars(length(max = 32))]
    pub stops: Vec<String>,
    /// What was not written in the spec but found on the adopted workloads.
    #[schemars(length(max = 32))]
    pub inferred: Vec<String>,
    /// What the rehearsal measured; absent where none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimates: Option<Estimates>,
    /// What could not be found out although the plan stands, such as a rehearsal without a result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub warnings: Vec<String>,
}

/// The open or latest attempt in short; the whole of it is the MemoriaUpgrade of that name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptSummary {
    /// The MemoriaUpgrade's name.
    pub id: String,
    /// The version that ran before.
    pub from: String,
    /// The version that it upgrades to.
    pub to: String,
    /// The generation of the spec that it carries out.
    pub generation: i64,
    /// The hash of its plan.
    pub plan_hash: String,
    /// When it began.
    pub started_at: Time,
    /// When it ended; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// How it ended; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// How long writers were stopped, in whole seconds, once they are back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writers_stopped_seconds: Option<i64>,
}
