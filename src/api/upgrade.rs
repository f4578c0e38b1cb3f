//! `MemoriaUpgrade`: one attempt. Its spec is the pinned plan, its status the journal. The operator alone writes it;
//! `docs/formats.md` shows both with examples, because a newer operator must finish what an older one began.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    decision::DecisionAction,
    release::{CheckResult, MaintenanceFlag, Role, Stage, Timeouts, WorkerRef, WorkloadRef},
    schema,
    settings::{ConfigRecord, PlannedConfig},
};

/// The version of plan and journal that this operator writes. It reads this and every lower one.
pub const MACHINE_VERSION: i32 = 1;

/// The pinned plan of one attempt.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "memoria.arca.run",
    version = "v1alpha1",
    kind = "MemoriaUpgrade",
    plural = "memoriaupgrades",
    shortname = "mup",
    namespaced,
    status = "MemoriaUpgradeStatus",
    doc = "One attempt to upgrade a Memoria installation: the pinned plan and its journal. Written by the operator.",
    printcolumn(name = "Release", type_ = "string", json_path = ".spec.releaseName"),
    printcolumn(name = "From", type_ = "string", json_path = ".spec.from"),
    printcolumn(name = "To", type_ = "string", json_path = ".spec.to"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Outcome", type_ = "string", json_path = ".status.outcome"),
    printcolumn(name = "Started", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[x_kube(validation = ("self == oldSelf", "a plan cannot be edited; change the MemoriaRelease, which plans anew"))]
// It is written as a whole and never again. Else the API server keeps books on each of its fields with every journal.
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
#[serde(rename_all = "camelCase")]
pub struct MemoriaUpgradeSpec {
    /// The form of plan and journal; see `docs/formats.md`.
    pub machine_version: i32,
    /// The MemoriaRelease that it belongs to.
    pub release_name: String,
    /// Its UID: another object of the same name is another release.
    pub release_uid: String,
    /// The generation of the release that was planned.
    pub release_generation: i64,
    /// The pre-flight run that this plan came from.
    pub run: String,
    /// SHA-256 over everything else in this spec, in hex.
    pub plan_hash: String,
    /// Version of the operator that made the plan.
    pub operator_version: String,
    /// The version that ran before.
    pub from: String,
    /// The version that it upgrades to.
    pub to: String,
    /// The workloads whose image moves.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<PlannedTarget>,
    /// The workloads that are stopped and brought back.
    #[schemars(length(max = 16))]
    pub workers: Vec<PlannedWorker>,
    /// The flag that is set while writers are stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_flag: Option<MaintenanceFlag>,
    /// The database that was found; every Job proves first that it is still this one.
    pub database: PlannedDatabase,
    /// Where the attempt's artifacts lie.
    pub storage: PlannedStorage,
    /// The migrations that will run, in order; empty when none.
    #[schemars(length(max = 256))]
    pub migrations: Vec<String>,
    /// Memoria's settings as they will be written; absent when the release has no `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<PlannedConfig>,
    /// How long each part may take.
    pub timeouts: Timeouts,
    /// The attempt's Jobs as they will be created, by step.
    #[schemars(length(max = 17), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["step"]))]
    pub jobs: Vec<PlannedJob>,
    /// How long the gate of stage IngestionReenable may take in all, in seconds; 0 without checks of that stage.
    pub gate_seconds: i64,
    /// How long the checks of stage BeforeIngestion may take in all, in seconds; 0 without checks of that stage.
    #[serde(default)]
    pub candidate_seconds: i64,
    /// What the pre-flight checks said.
    #[schemars(length(max = 64))]
    pub checks: Vec<CheckResult>,
    /// How a failure is taken back.
    #[serde(default)]
    pub rollback: PlannedRollback,
    /// What the rehearsal measured; absent where none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimates: Option<Estimates>,
}

/// How long the parts that work on the data took on a copy of it, in whole seconds, rounded up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Estimates {
    /// Snapshot with its proof.
    pub snapshot_seconds: i64,
    /// All migrations, with the comparisons before and after them.
    pub migrate_seconds: i64,
    /// The way back: saving the failed state, restoring the snapshot, proving it.
    pub restore_seconds: i64,
}

impl std::fmt::Display for Estimates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { snapshot_seconds, migrate_seconds, restore_seconds } = self;
        write!(f, "snapshot ~{snapshot_seconds} s, migrations ~{migrate_seconds} s, way back ~{restore_seconds} s")
    }
}

/// How a failure is taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedRollback {
    /// False: a failure after the image moved stops, and waits for a Rollback decision.
    pub automatic: bool,
    /// Rows written since Start that a rollback may set aside without asking.
    pub data_loss_budget_rows: i64,
    /// Tables whose inserted rows it puts back into the restored data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub carry_forward: Vec<String>,
}

/// A target as it was found and as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedTarget {
    /// The target's name in the release.
    pub name: String,
    /// `Server`, `Dashboard` or `Other`.
    pub role: Role,
    /// The workload that carries it.
    pub workload: WorkloadRef,
    /// The workload's UID: another object of the same name is not touched.
    pub uid: String,
    /// The container whose image moves.
    pub container: String,
    /// The image as the workload named it before.
    pub from_image: String,
    /// `repository@sha256:…` of the image that ran before.
    pub from_digest: String,
    /// `repository@sha256:…` or `repository:tag@sha256:…`: what the workload is set to.
    pub to_image: String,
    /// The replica count to come back to. Where an autoscaler sets it: what it was at pre-flight; the count at the moment
    /// of Quiesce is in that phase's record.
    pub replicas: i32,
    /// The HorizontalPodAutoscaler that sets its replica count; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaler: Option<String>,
    /// True when it is also one of the workers: it then comes back with them.
    pub worker: bool,
    /// The candidate pod made from the target's template, as it will be created.
    #[schemars(schema_with = "schema::anything")]
    pub candidate: serde_json::Value,
}

/// A worker as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedWorker {
    /// What is stopped.
    pub workload: WorkerRef,
    /// Its UID: another object of the same name is not touched.
    pub uid: String,
    /// The replica count to come back to; 0 for kinds that have none. Where an autoscaler sets it: what it was at
    /// pre-flight; the count at the moment of Quiesce is in that phase's record.
    pub replicas: i32,
    /// The HorizontalPodAutoscaler that sets its replica count; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaler: Option<String>,
    /// `spec.suspend` of a CronJob or Job to come back to; absent for other kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// The annotation `autoscaling.keda.sh/paused-replicas` of a ScaledObject to come back to; absent when it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_replicas: Option<String>,
    /// What a ScaledObject scales; absent for other kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<WorkloadRef>,
}

/// The database that was found; every Job proves first that it is still this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedDatabase {
    /// `Postgresql` or `Sqlite`.
    #[serde(default)]
    pub engine: Engine,
    /// Major version of the server, e.g. 15; of SQLite 3.
    pub major: i32,
    /// What tells it from every other database.
    pub identity: DatabaseIdentity,
    /// Size at pre-flight, in bytes.
    pub bytes: i64,
}

/// Which database it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Engine {
    #[default]
    Postgresql,
    Sqlite,
}

impl Engine {
    pub fn is_postgresql(&self) -> bool {
        *self == Self::Postgresql
    }
}

/// What tells one database from every other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseIdentity {
    /// `system_identifier` of the server's control file; of SQLite the UID of the claim whose volume holds the file.
    pub system_identifier: String,
    /// The database's name; of SQLite the file's path below the volume's root.
    pub name: String,
    /// OID in `pg_database`; of SQLite 0.
    pub oid: i64,
    /// Host and port of the URL, without credentials; `sqlite` of SQLite.
    pub host: String,
}

/// Where the attempt's artifacts lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStorage {
    /// The claim whose volume keeps them; absent where a bucket does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_name: Option<String>,
    /// The bucket and prefix that keep them, `s3://bucket/prefix`; absent where a claim does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Directory below the volume's root or the prefix: `<release>-<first 8 of its UID>/<run or attempt>`.
    pub directory: String,
    /// Whether all that holds values of rows is encrypted by age.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
}

/// The storage's place for people: `claim memoria-snapshots` or `s3://bucket/prefix`, and whether a key is needed to read
/// what lies there.
impl std::fmt::Display for PlannedStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.url, &self.claim_name) {
            (Some(url), _) => write!(f, "{url}")?,
            (None, claim) => write!(f, "claim {}", claim.as_deref().unwrap_or_default())?,
        }
        f.write_str(if self.encrypted { " (encrypted by age)" } else { "" })
    }
}

/// A Job as it will be created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedJob {
    /// The step, e.g. `fence`, `snapshot`, `migrate`, `baseline`, `at-risk`, `gate`, `verify`, `restore`, `check-<name>`.
    pub step: String,
    /// Of a check that runs a CronJob's template: its own end is the verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<PlannedCheck>,
    /// The whole `batch/v1` Job.
    #[schemars(schema_with = "schema::anything")]
    pub manifest: serde_json::Value,
}

/// When a planned Job is a check, and how much it weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedCheck {
    /// The stage that it belongs to.
    pub stage: Stage,
    /// Whether the upgrade fails, or holds, with it.
    pub required: bool,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// The new version runs, verified.
    Succeeded,
    /// Failed before the image moved: what ran before runs again, nothing else was touched.
    Resumed,
    /// Failed after the image moved: writers stay stopped, the database as it is and the snapshot are both kept.
    Halted,
    /// Failed after ingestion was back: the new version keeps running, the snapshot is kept.
    Unverified,
    /// Ended by a person before anything was touched, or after a halt.
    Aborted,
    /// Failed after the image moved: the prior images and the snapshot are back, proved.
    RolledBack,
    /// Neither forward nor back: writers stay stopped, both copies of the data are kept.
    RollbackFailed,
}

/// The journal of one attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemoriaUpgradeStatus {
    /// For people to read: the running phase or the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What is awaited and until when, or how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `Ready` always; `Reconciling` and `Stalled` only while True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The phases that were begun, in the order they were begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub phases: Vec<PhaseRecord>,
    /// What made the attempt turn back; present from that moment on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The verified snapshot; present from the end of SnapshotExport on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRecord>,
    /// What became of each migration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub migrations: Vec<MigrationRecord>,
    /// What became of Memoria's settings; present from the end of ConfigRefresh on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigRecord>,
    /// What the attempt waits for, without having failed; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Results of the candidate's, the gate's and the verification's checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub checks: Vec<CheckResult>,
    /// Rows that a restore would lose, counted from time to time once clients write again; absent before the first count
    /// was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_risk: Option<AtRisk>,
    /// What the way back did; present from its first phase on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRecord>,
    /// The decisions that were acted on, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub decisions: Vec<DecisionRecord>,
    /// When the first writer was told to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writers_stopped_at: Option<Time>,
    /// When the last writer was back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writers_back_at: Option<Time>,
    /// When the attempt ended; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// How the attempt ended; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// One phase's line in the journal. Written before the phase does anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PhaseRecord {
    /// The phase's name. Example: `SnapshotExport`.
    pub name: String,
    /// `Running`, `Passed` or `Failed`.
    pub state: PhaseState,
    /// When it began.
    pub started_at: Time,
    /// When it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// What is awaited, or what was found.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Steps of the phase that are done, with what must be remembered of each (e.g. `candidate-server: passed`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub done: BTreeMap<String, String>,
    /// How long it held, in seconds: this does not count against its limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_seconds: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde takes")]
pub(crate) fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PhaseState {
    Running,
    Passed,
    Failed,
}

/// A wait that is no failure: it ends by itself when what it waits for is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// Since when.
    pub since: Time,
    /// The phase that waits, or that is not begun.
    pub phase: String,
    /// CamelCase: `Suspended`, `CheckInconclusive`, `JobLost` or `JobCannotRun`.
    pub reason: String,
    /// What is missing, at most 1 KiB, without secrets.
    pub message: String,
    /// What a person can type: to see more, or to go on.
    pub next_command: String,
    /// When `outcome` comes; absent while writers run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// What becomes of it at its deadline: `Resume`, `Rollback` or `Keep`.
    pub outcome: HoldOutcome,
    /// True once its deadline is past and it goes on holding.
    #[serde(default)]
    pub expired: bool,
    /// When the check is asked again; absent while it is being asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Time>,
    /// How often the check was asked again.
    #[serde(default)]
    pub tries: i32,
}

/// What becomes of a hold at its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HoldOutcome {
    /// What ran before is brought back: the image had not moved.
    Resume,
    /// It counts as a failure of its phase.
    Rollback,
    /// It goes on.
    Keep,
}

/// Why an attempt turned back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The phase that failed.
    pub phase: String,
    /// Whose fault it was: `Transient`, `Candidate`, `Environment`, `Conflict`, `Bug` or `Decision`.
    pub category: Category,
    /// CamelCase, e.g. `MigrateFailed`.
    pub reason: String,
    /// Cause and what to do, at most 1 KiB, without secrets.
    pub message: String,
}

/// Whose fault it was: it decides whether the same image may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Category {
    /// Goes away by itself: a lost connection, a restarted node.
    Transient,
    /// The new version's own fault.
    Candidate,
    /// The cluster's, the database's or the storage's.
    Environment,
    /// Somebody else changes the same things.
    Conflict,
    /// The operator's.
    Bug,
    /// A person's order.
    Decision,
}

/// The snapshot as its manifest in storage describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRecord {
    /// The claim whose volume keeps it; absent where a bucket does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_name: Option<String>,
    /// The bucket and prefix that keep it, `s3://bucket/prefix`; absent where a claim does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Directory below the volume's root or the prefix.
    pub directory: String,
    /// Whether all of it that holds values of rows is encrypted by age.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Size of all files, in bytes.
    pub bytes: i64,
    /// How many tables it holds.
    pub tables: i32,
    /// How many rows, of all tables.
    pub rows: i64,
    /// SHA-256 of `manifest.json`, in hex: the manifest names every other file's.
    pub manifest_sha256: String,
    /// SHA-256 over schema and all tables' digests, in hex.
    pub data_digest: String,
    /// Directory of the portable export below that directory; absent where `snapshot.portable` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portable_directory: Option<String>,
    /// When it was read back and restored into scratch.
    pub verified_at: Time,
    /// How long that restore and its proof took, in whole seconds, rounded up; absent where the snapshot's manifest does
    /// not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_restore_seconds: Option<i64>,
}

/// What clients wrote since Start's baseline, counted while the new version serves and can still be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AtRisk {
    /// When a count was last asked for; the next one rests three minutes at least, and ten times as long as the last took.
    pub asked_at: Time,
    /// How long the last one took that ended, in seconds.
    #[serde(default)]
    pub took_seconds: i64,
    /// UID of the Job that ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The moment that the counts are of; absent until a first one came through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_at: Option<Time>,
    /// Rows that were not there at the baseline.
    #[serde(default)]
    pub inserted: i64,
    /// Rows with another content than at the baseline.
    #[serde(default)]
    pub updated: i64,
    /// Rows of the baseline that are gone.
    #[serde(default)]
    pub deleted: i64,
    /// Of which tables they are, those with most of them first, ten at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub tables: Vec<TableLate>,
    /// Why the last one gave no count; absent when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl AtRisk {
    pub fn rows(&self) -> i64 {
        self.inserted.saturating_add(self.updated).saturating_add(self.deleted)
    }
}

/// What the way back did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackRecord {
    /// The decision that is waited for, with writers stopped: `AcceptDataLoss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaiting: Option<String>,
    /// Whether the snapshot was restored; false when digests proved that nothing had changed. Absent before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<bool>,
    /// SHA-256 over schema and all tables' digests after it, in hex: the snapshot's, or, where rows were carried, the one
    /// that the snapshot's and theirs add up to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_digest: Option<String>,
    /// Rows in the database after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<i64>,
    /// Where the failed state and the late writes lie, below the volume's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_state: Option<String>,
    /// Rows inserted, updated and deleted since Start, set aside in `failedState`. Known once they are counted, also while
    /// a decision is waited for.
    #[serde(default)]
    pub late_inserted: i64,
    #[serde(default)]
    /// See `lateInserted`.
    pub late_updated: i64,
    #[serde(default)]
    /// See `lateInserted`.
    pub late_deleted: i64,
    /// How many of the inserted ones `carryForward` put back into the restored data, so that they are not lost; while a
    /// decision is waited for, how many it would.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late_carried: i64,
    /// Of which tables these rows are: those of `carryForward`, then those with most of them, ten at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late_tables: Vec<TableLate>,
    /// What made the way back fail; present only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// One table's rows written since the baseline.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableLate {
    /// As SQL names it; with its schema on PostgreSQL.
    pub table: String,
    /// Rows that were not there at the baseline.
    pub inserted: i64,
    /// Rows with another content than at the baseline.
    pub updated: i64,
    /// Rows of the baseline that are gone.
    pub deleted: i64,
    /// Of the inserted rows those that `carryForward` put back into the restored data; while a decision is waited for,
    /// those that it would.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub carried: i64,
    /// Why rows of a table of `carryForward` stay aside; absent for other tables, and where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_carried: Option<String>,
}

impl TableLate {
    pub fn rows(&self) -> i64 {
        self.inserted.saturating_add(self.updated).saturating_add(self.deleted)
    }
}

/// A decision that was acted on, or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRecord {
    /// The MemoriaDecision's name.
    pub name: String,
    /// What it ordered.
    pub action: DecisionAction,
    /// When it was acted on, or refused.
    pub at: Time,
    /// Who decided, by the decision's own word: proved where the chart's policy was in force when it was made
    /// (`admission.decidedBy`), a claim elsewhere. Absent when it names nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Why nothing was done, and what to do instead; absent when it was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// One migration's fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationRecord {
    /// The migration's name.
    pub name: String,
    /// `Ran`, `ReportedFailure` (exit 0, but it printed a failure; the schema decided), `Failed` or `NotRun`.
    pub state: MigrationState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MigrationState {
    Ran,
    /// Exit 0, but it printed a failure; the schema decided.
    ReportedFailure,
    Failed,
    NotRun,
}
