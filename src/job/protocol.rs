//! What the controller and its Jobs say to each other: orders in environment variables, answers in the termination
//! message. `docs/formats.md` shows both with examples; fields are only ever added, each with a default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        GoDuration,
        release::CheckResult,
        upgrade::{self, Category, DatabaseIdentity, Engine, MigrationRecord, TableLate},
    },
    rescue::RescueState,
};

/// Environment variable with the order, a [`JobOrder`] as JSON. Pinned in the plan.
pub const ORDER_ENV: &str = "MEMORIA_OPERATOR_JOB";
/// Environment variable with what was only known when the Job was created, a [`JobInput`] as JSON.
pub const INPUT_ENV: &str = "MEMORIA_OPERATOR_JOB_INPUT";
/// In the containers of a check of stage BeforeIngestion that runs a CronJob's template: the address of the Server's
/// candidate pod, as it stands in a URL.
pub const CANDIDATE_ENV: &str = "MEMORIA_CANDIDATE";
/// Environment variable with the SQLAlchemy URL of the database, a reference to the Server's own source.
pub const DATABASE_URL_ENV: &str = "MEMORIA_OPERATOR_DATABASE_URL";
/// Prefix of the environment variables that carry header values of HTTP checks:
/// check number and header number follow, e.g. `MEMORIA_OPERATOR_HEADER_0_1`.
pub const HEADER_ENV_PREFIX: &str = "MEMORIA_OPERATOR_HEADER_";
/// Prefix of the environment variables that carry the database URL of SQL checks with one of their own: the check's
/// number follows.
pub const CHECK_URL_ENV_PREFIX: &str = "MEMORIA_OPERATOR_CHECK_URL_";
/// Where Jobs that use the snapshot storage find it. With an archive an emptyDir is mounted there, a workplace.
pub const STORAGE_MOUNT: &str = "/snapshots";
/// Where the claim for snapshots is mounted when what is kept there is encrypted.
pub const ARCHIVE_MOUNT: &str = "/archive";
/// Where the keys of encrypted snapshots are mounted, each in a directory of its own.
pub const KEYS_MOUNT: &str = "/memoria-keys";
/// The emptyDir shared by runner and guard: the runner's binary, its order's go-ahead and its result.
pub const SHARED_MOUNT: &str = "/memoria-operator";
/// Scratch space (an emptyDir) of Jobs that start an ephemeral server.
pub const SCRATCH_MOUNT: &str = "/scratch";
/// Kubernetes cuts a termination message here; an answer must be smaller.
pub const MAX_REPORT_BYTES: usize = 4096;

/// What a Job shall do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "camelCase")]
pub enum JobOrder {
    /// PreFlight, operator image: reads server, identity, size, privileges and what cannot be handled. Writes nothing.
    Inspect(InspectOrder),
    /// PreFlight, sidecar in the tool image beside the candidate's `init-db`: runs an ephemeral server of the same
    /// major, waits for the runner, reads the schema that the candidate built, keeps it in storage; measures free space.
    Reference(ReferenceOrder),
    /// PreFlight, sidecar in the tool image beside the candidate's migrations: copies the database, read only, into an
    /// ephemeral server, takes the snapshot there, lets the migrations run there, and takes them back there.
    Rehearsal(RehearsalOrder),
    /// Quiesce: terminates the application's own sessions and proves that none comes back.
    Fence(FenceOrder),
    /// SnapshotExport, tool image: one read point under SHARE locks, digests, dump, read back, restored into scratch.
    Snapshot(SnapshotOrder),
    /// Migrate, sidecar in the tool image beside the runner: identity, lock, marker, digest equality before; schema after.
    Guard(GuardOrder),
    /// IngestionReenable and Verification, operator image: samples checks until they pass or their time is up.
    Check(CheckOrder),
    /// Start, tool image, before clients write again: keeps keys and row hashes of every table, so that later writes can
    /// be told apart.
    Baseline(BaselineOrder),
    /// IngestionReenable and Verification, operator image, from time to time: counts what differs from the baseline, which is
    /// what a restore would take back now. Reads only, and nothing waits for it.
    AtRisk(AtRiskOrder),
    /// Rollback, tool image: saves the failed state, then restores the snapshot in one transaction with its own proof and
    /// marker.
    Restore(RestoreOrder),
}

/// Common to all Jobs that open the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseTask {
    /// Attempt or pre-flight run; part of `application_name` (`mop-<attempt>-<step>`) and of the markers.
    pub attempt: String,
    /// UID of the release: the key of the advisory lock and of the marker rows.
    pub release_uid: String,
    /// The database must be this one; absent only in Inspect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<DatabaseIdentity>,
    /// SQLite: the claims of the Server's pod, mounted in this Job at the same places as there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<DataVolume>,
    /// SQLite: the Server container's explicit `workingDir`, for a URL with a relative path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
}

/// A claim's volume as the Server's container has it, and the Job's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataVolume {
    pub claim_name: String,
    /// Another claim of the same name is another volume.
    pub claim_uid: String,
    pub mount_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InspectOrder {
    pub database: DatabaseTask,
    /// Tables that must be there, with a primary key: those whose late rows a restore is to carry forward.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carry_forward: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceOrder {
    pub attempt: String,
    /// Directory below [`STORAGE_MOUNT`] for `reference.json`. In Plan mode the mount is an emptyDir.
    pub directory: String,
    /// Bytes that must be free below [`STORAGE_MOUNT`]; less is a failed check. 0 in Plan mode.
    pub needed_bytes: i64,
    /// How long the runner beside it may take, in seconds.
    pub limit_seconds: u64,
    /// What to build it on: an ephemeral server, or a new SQLite file in the shared mount.
    #[serde(default, skip_serializing_if = "Engine::is_postgresql")]
    pub engine: Engine,
    /// Which older snapshots go before the free space is measured. Absent in Plan mode, which changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionOrder>,
}

/// Which snapshots of a release stay, among the directories beside that of this run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetentionOrder {
    pub release_uid: String,
    /// The newest whole ones that stay; 1 at least.
    pub keep_last: u32,
    /// Those that are older than so many seconds go, but never the newest whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
    /// Attempts that may still need theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needed: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RehearsalOrder {
    pub database: DatabaseTask,
    pub release: String,
    pub from_version: String,
    pub operator_version: String,
    /// As the attempt's snapshot will be: see [`SnapshotOrder::portable`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub portable: bool,
    /// Directory of `reference.json`, below [`STORAGE_MOUNT`]. Absent in Plan mode, which keeps none: the migrated schema
    /// is then not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_directory: Option<String>,
    /// Bytes that must be free below [`SCRATCH_MOUNT`].
    pub needed_bytes: i64,
    /// How long the runner beside it may take, in seconds.
    pub limit_seconds: u64,
    /// When it must have ended, whatever it found.
    pub until: jiff::Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceOrder {
    pub database: DatabaseTask,
    /// How long no session of the application may be seen, in seconds.
    pub quiet_seconds: u64,
    /// How long to try, in seconds.
    pub limit_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotOrder {
    pub database: DatabaseTask,
    pub release: String,
    pub from_version: String,
    /// Directory below [`STORAGE_MOUNT`]; made by this Job, never overwritten once its manifest is there.
    pub directory: String,
    pub operator_version: String,
    /// Whether a portable export of the same moment is kept, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub portable: bool,
    /// What a person needs to finish the attempt by hand; kept beside the dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue: Option<Box<RescueState>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardOrder {
    pub database: DatabaseTask,
    /// Where manifest and reference lie, below [`STORAGE_MOUNT`].
    pub directory: String,
    /// Directory of `reference.json`, below [`STORAGE_MOUNT`].
    pub reference_directory: String,
    /// How long the runner beside it may take, in seconds.
    pub limit_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BaselineOrder {
    pub database: DatabaseTask,
    /// Directory below [`STORAGE_MOUNT`]; made by this Job.
    pub directory: String,
    pub limit_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AtRiskOrder {
    pub database: DatabaseTask,
    /// Where the baseline lies, below [`STORAGE_MOUNT`].
    pub baseline_directory: String,
    pub limit_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreOrder {
    pub database: DatabaseTask,
    /// The snapshot's directory, below [`STORAGE_MOUNT`].
    pub directory: String,
    /// For the failed state, late writes and evidence, below [`STORAGE_MOUNT`]; made by this Job.
    pub failed_directory: String,
    /// Where the baseline lies, if one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_directory: Option<String>,
    /// How many rows written since the baseline may be taken back without asking.
    pub data_loss_budget_rows: i64,
    /// Tables whose rows that were inserted since the baseline go back into the restored data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carry_forward: Vec<String>,
    pub limit_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckOrder {
    pub checks: Vec<OrderedCheck>,
    /// Memoria's own database, for SQL checks that name no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseTask>,
}

/// What a check asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckSource {
    #[default]
    Http,
    Prometheus,
    Sql,
}

/// One check, with the values of its headers in `MEMORIA_OPERATOR_HEADER_<check>_<header>` and the URL of its own
/// database, if it has one, in `MEMORIA_OPERATOR_CHECK_URL_<check>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderedCheck {
    pub name: String,
    pub required: bool,
    pub within: GoDuration,
    pub every: GoDuration,
    pub stable_for: GoDuration,
    pub pass_when: String,
    #[serde(default)]
    pub source: CheckSource,
    /// HTTP: the whole URL; Prometheus: the server's; SQL: empty.
    #[serde(default)]
    pub url: String,
    /// Header names, in the order of their variables.
    #[serde(default)]
    pub headers: Vec<String>,
    /// PromQL or SQL.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub query: String,
    /// PromQL for the data's own time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub time_query: String,
    /// SQL: whether its URL is in its own variable, not the order's database.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_database: bool,
    /// HTTP: CEL for the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_of: Option<String>,
    /// HTTP: CEL for the data's own time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_of: Option<String>,
    /// Greatest age of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_within: Option<GoDuration>,
    /// Whether data from before the check began counts as stale.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub since_start: bool,
    /// What is granted beyond `within` while the number falls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<GoDuration>,
    /// The number from before anything was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<serde_json::Number>,
    /// Only take the number: it becomes the baseline of a later stage's check.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub baseline_only: bool,
}

/// What was only known when the Job was created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobInput {
    /// SHA-256 of the manifest that the journal names, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// Restore: false when the targets never came back, so that no client can have written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late_writes_possible: bool,
    /// Restore: a person accepted that rows written since the baseline are taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_data_loss: bool,
    /// SHA-256 of the baseline that the journal names, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_sha256: Option<String>,
    /// Address of the Server's candidate pod: what the host `candidate` means in a check of stage BeforeIngestion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_address: Option<std::net::IpAddr>,
}

/// A Job's answer: at most [`MAX_REPORT_BYTES`] as JSON, without secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobReport {
    /// Version of this form: 1.
    pub v: i32,
    pub ok: bool,
    /// CamelCase; `Done` when ok.
    pub reason: String,
    /// One sentence: what was found, or cause and what to do.
    pub message: String,
    /// Present when not ok.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
}

/// What a Job found out, by kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "camelCase")]
pub enum Facts {
    Inspect(InspectFacts),
    Reference(ReferenceFacts),
    Rehearsal(RehearsalFacts),
    Fence(FenceFacts),
    Snapshot(SnapshotFacts),
    Migrate(MigrateFacts),
    Check(CheckFacts),
    /// From the runner's `probe`, in a candidate's or prior image.
    Probe(ProbeFacts),
    /// From the runner's `defaults`: the settings that an image comes with.
    Defaults(DefaultsFacts),
    Baseline(BaselineFacts),
    AtRisk(AtRiskFacts),
    Restore(RestoreFacts),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InspectFacts {
    pub major: i32,
    /// As the server says it, e.g. `15.18 (Debian …)`.
    pub server_version: String,
    pub identity: DatabaseIdentity,
    pub bytes: i64,
    pub tables: i32,
    /// Failed or Inconclusive checks only, each with object and fix; `Passed` needs no words.
    pub findings: Vec<CheckResult>,
    /// Names of unfinished attempts in the database's marker table, or in the marker file beside an SQLite database.
    #[serde(default)]
    pub unfinished: Vec<String>,
    #[serde(default)]
    pub engine: Engine,
    /// SQLite: the volume that holds the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_volume: Option<DataVolume>,
    /// SQLite: the file's absolute path in the Server's container, and in every Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceFacts {
    /// What the reference was built on: `postgresql 15`, or `none` with the reason in the report's message.
    pub built_on: String,
    /// SHA-256 of `reference.json`, in hex; empty when `none`.
    pub schema_sha256: String,
    pub tables: i32,
    pub free_bytes: i64,
    /// Attempts and runs whose directories were removed, at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// What a rehearsal measured, as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RehearsalFacts {
    /// Not ok, and certain to meet the upgrade as well. Otherwise a rehearsal that is not ok says nothing of the upgrade.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub conclusive: bool,
    pub rows: i64,
    pub tables: i32,
    /// Reading the live database, and restoring what was read.
    pub copy_millis: i64,
    pub snapshot_millis: i64,
    pub migrate_millis: i64,
    pub restore_millis: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceFacts {
    /// How many sessions of the application's role were ended.
    pub terminated: i32,
    /// Sessions of other roles on this database, as `user@application`, at most ten.
    pub others: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotFacts {
    pub bytes: i64,
    pub tables: i32,
    pub rows: i64,
    pub manifest_sha256: String,
    pub data_digest: String,
    /// True when a restore into a scratch server gave the same digests.
    pub restored_in_scratch: bool,
    /// Directory of the portable export below the snapshot's; absent where none was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portable_directory: Option<String>,
    /// How long that restore and its proof took; absent where the manifest does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_restore_millis: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrateFacts {
    pub migrations: Vec<MigrationRecord>,
    /// Expected objects that are missing or different, e.g. `table consents: missing`, at most ten.
    pub differences: Vec<String>,
    /// Objects that nobody expected, at most ten.
    pub extra: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckFacts {
    pub checks: Vec<CheckResult>,
    /// The numbers taken as baselines, by check.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub baselines: BTreeMap<String, serde_json::Number>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeFacts {
    pub uid: u32,
    pub gid: u32,
    /// Whether the command line answered `--help`; only asked of the Server's candidate.
    pub cli: Option<bool>,
    /// Names printed by `migrate list`, in order; only asked of the Server's candidate.
    #[serde(default)]
    pub migrations: Vec<String>,
    /// Whether `migrate run` knows `--all`.
    #[serde(default)]
    pub runs_all: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DefaultsFacts {
    /// Where the file was found in the image.
    pub path: String,
    /// Its text, as `memoria_runner::pack` writes it.
    pub packed: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BaselineFacts {
    pub tables: i32,
    pub rows: i64,
    /// SHA-256 of `baseline.json`, in hex.
    pub sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AtRiskFacts {
    /// The one moment that all tables were read at.
    pub read_at: jiff::Timestamp,
    /// How long all of it took.
    pub millis: i64,
    /// Rows written since the baseline.
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
    /// The same by table, those with most of them first, at most ten.
    pub tables: Vec<TableLate>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreFacts {
    /// False: digests proved that nothing had changed, or the report says why nothing was restored.
    pub restored: bool,
    /// Of the snapshot, as it is live again, with the rows that were carried forward.
    pub rows: i64,
    pub tables: i32,
    pub data_digest: String,
    /// Directory of the failed state, below [`STORAGE_MOUNT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_state: Option<String>,
    pub failed_state_bytes: i64,
    /// Rows written since the baseline, which the restore takes back.
    pub late_inserted: i64,
    pub late_updated: i64,
    pub late_deleted: i64,
    /// Of the inserted ones those that are in the restored data all the same.
    #[serde(default, skip_serializing_if = "upgrade::is_zero")]
    pub late_carried: i64,
    /// The late rows by table, at most ten: first those that were to be carried forward.
    pub late_tables: Vec<TableLate>,
}
