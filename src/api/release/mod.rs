//! `MemoriaRelease`: the desired version of one Memoria installation and how to get there. People write its spec;
//! the operator writes only its status.

mod check;
mod settings;
mod snapshot;
mod status;
mod worker;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{check::*, settings::*, snapshot::*, status::*, worker::*};
use super::{GoDuration, schema};

/// What a person wants of one Memoria installation.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "memoria.arca.run",
    version = "v1alpha1",
    kind = "MemoriaRelease",
    plural = "memoriareleases",
    shortname = "mrel",
    namespaced,
    status = "MemoriaReleaseStatus",
    doc = "One Memoria installation: the version it shall run, how to upgrade it, and where that stands.",
    validation = ("size(self.metadata.name) <= 32", "Job names are built from it: metadata.name has at most 32 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Current", type_ = "string", json_path = ".status.current.version"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Ingestion", type_ = "string", json_path = ".status.ingestion.state"),
    printcolumn(name = "Stopped", type_ = "date", json_path = ".status.ingestion.stoppedSince"),
    printcolumn(name = "Held", type_ = "date", json_path = ".status.hold.since"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[x_kube(
    validation = ("self.targets.filter(t, t.role == 'Server').size() == 1", "set role: Server on exactly one target; its image runs the migrations"),
    validation = (
        "self.targets.all(a, self.targets.exists_one(b, a.workloadRef == b.workloadRef && (has(a.container) ? a.container : '') == (has(b.container) ? b.container : '')))",
        "two targets name the same container; name each workload and container once"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MemoriaReleaseSpec {
    /// The version that shall run: a release's tag, such as `1.0.0`. This is the one line that an upgrade changes.
    /// Equal to the running version: the operator adopts what runs and changes nothing. Example: `"1.0.0"`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[0-9A-Za-z][0-9A-Za-z._-]*$"))]
    #[x_kube(validation = ("self.matches('^v?[0-9]+([.][0-9]+)+')", "name one release, e.g. version: \"1.0.0\"; a tag that moves (latest, ga, stable, 1) could not be rolled back to"))]
    pub version: String,
    /// `Apply` upgrades. `Plan` runs the read-only checks, shows plan, hash and estimates in status, and changes nothing.
    #[serde(default)]
    pub mode: Mode,
    /// No new phase starts while this is true; a running phase finishes. Writers that an attempt stopped stay stopped.
    #[serde(default)]
    pub suspend: bool,
    /// The workloads that carry Memoria's images. Exactly one has `role: Server`.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<Target>,
    /// Where the database is. Default: the Server container's environment entry MEMORIA_DATABASE__CONNECTION_STRING.
    #[serde(default)]
    #[schemars(transform = schema::not_written)]
    pub database: Database,
    /// What feeds Memoria, stopped for the upgrade and brought back at its end.
    #[serde(default)]
    pub ingestion: Ingestion,
    /// Checks made in the cluster while the upgrade runs. Default: none but the operator's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub checks: Vec<Check>,
    /// Where the snapshot of the data is kept.
    #[serde(default)]
    pub snapshot: Snapshot,
    /// Which of the candidate's migrations run.
    #[serde(default)]
    pub migrations: Migrations,
    /// Memoria's `config.yaml` in a ConfigMap: new defaults are adopted, overrides kept. Default: it is not touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
    /// How a failed upgrade is taken back.
    #[serde(default)]
    pub rollback: Rollback,
    /// How long each part may take before it counts as failed.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How the operator's Jobs run. What is absent is copied from the Server's pod template.
    #[serde(default)]
    pub jobs: Jobs,
    /// How Memoria's command line is called inside its image.
    #[serde(default)]
    pub cli: Cli,
    /// How many finished attempts (MemoriaUpgrade objects) are kept, from 1 to 50.
    #[serde(default = "history_limit")]
    #[schemars(range(min = 1, max = 50))]
    pub history_limit: i32,
}

const fn history_limit() -> i32 {
    10
}

/// Whether the plan is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    #[default]
    Apply,
    Plan,
}

/// One workload whose image is upgraded.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The target's name in status and messages, unique in the list. Example: `server`.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// `Server` is the one whose image runs the migrations and whose environment, volumes and security context Jobs copy.
    /// `Dashboard` and `Other` are only moved with it.
    #[serde(default)]
    pub role: Role,
    /// The workload in this namespace.
    pub workload_ref: WorkloadRef,
    /// The container that runs Memoria. Default: the only container. Example: `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
    /// Which image the version means. Default: the running image's repository with `spec.version` as the tag.
    #[serde(default)]
    pub image: Image,
}

/// What a target is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    Server,
    Dashboard,
    #[default]
    Other,
}

/// A workload in the release's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// `Deployment` or `StatefulSet`.
    pub kind: WorkloadKind,
    /// The workload's `metadata.name`. Example: `memoria-server`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kinds with replicas and a pod template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
}

impl std::fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            WorkloadKind::Deployment => write!(f, "deployment/{}", self.name),
            WorkloadKind::StatefulSet => write!(f, "statefulset/{}", self.name),
        }
    }
}

/// An image without its credentials: those are the pod's own imagePullSecrets.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Repository without tag or digest. Default: that of the running image. Example: `registry.arca.run/memoria/server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = ("!self.matches(':[^/]+$') && !self.contains('@')", "repository takes no tag or digest; set tag or digest beside it"))]
    pub repository: Option<String>,
    /// Tag. Default: `spec.version`. Example: `memoria-1.0.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[0-9A-Za-z_][0-9A-Za-z._-]*$"))]
    #[x_kube(validation = ("!(self in ['latest', 'ga', 'stable', 'main', 'master', 'edge', 'nightly'])", "this tag moves, so a rollback could not name it; write a release's tag"))]
    pub tag: Option<String>,
    /// Digest; it wins over the tag. Default: what the tag names when the plan is made. Example: `sha256:` and 64 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
}

/// Where Memoria's database is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Database {
    /// Where Jobs get the SQLAlchemy URL from. The operator itself never reads it.
    /// Default: `{env: MEMORIA_DATABASE__CONNECTION_STRING}`.
    #[serde(default)]
    #[schemars(transform = schema::not_written)]
    pub url_from: UrlFrom,
    /// What a database in an SQLite file needs beside the URL. Default: found on the Server's pod template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqlite: Option<Sqlite>,
}

/// A database in an SQLite file.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sqlite {
    /// The claim that holds the file. Jobs then mount no other claim of the Server, and pre-flight fails when the URL's
    /// path lies elsewhere. Default: the claim mounted at the URL's path. Example: `memoria-data`.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// One source of a database URL.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = ("has(self.env) != has(self.secretKeyRef)", "set exactly one of env and secretKeyRef"))]
#[serde(rename_all = "camelCase")]
pub struct UrlFrom {
    /// An entry of the Server container's environment; it is copied into Jobs as it stands (a reference, never a value).
    /// Default: none, when secretKeyRef is set. Example: `MEMORIA_DATABASE__CONNECTION_STRING`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub env: Option<String>,
    /// A key of a Secret in this namespace. Default: none, when env is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
}

/// The environment variable that Memoria's server reads.
pub const DEFAULT_URL_ENV: &str = "MEMORIA_DATABASE__CONNECTION_STRING";

impl Default for UrlFrom {
    fn default() -> Self {
        Self { env: Some(DEFAULT_URL_ENV.to_owned()), secret_key_ref: None }
    }
}

/// A key of a Secret or ConfigMap in the release's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// The object's `metadata.name`. Example: `memoria-db`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its `data`. Example: `url`.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What feeds Memoria.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ingestion {
    /// What is stopped before the snapshot and comes back last, exactly as it was. Deployments and StatefulSets are
    /// scaled to zero, CronJobs and Jobs suspended, KEDA's ScaledObjects paused at zero. Default: none.
    /// Example: `[{kind: Deployment, name: memoria-worker}, {kind: CronJob, name: memoria-consolidate}]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["kind", "name"]))]
    pub workers: Vec<WorkerRef>,
    /// A key that Memoria's parts read as "maintenance is on". Default: there is no such flag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_flag: Option<MaintenanceFlag>,
}

/// A maintenance flag in a ConfigMap.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = ("self.onValue != self.offValue", "onValue and offValue are the same; the flag could not be told apart"))]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceFlag {
    /// The ConfigMap and its key.
    pub config_map_key_ref: KeyRef,
    /// The value while maintenance is on.
    #[serde(default = "flag_on")]
    #[schemars(length(max = 64))]
    pub on_value: String,
    /// The value while it is off.
    #[serde(default = "flag_off")]
    #[schemars(length(max = 64))]
    pub off_value: String,
}

fn flag_on() -> String {
    "true".to_owned()
}

fn flag_off() -> String {
    "false".to_owned()
}

/// Which migrations run.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = ("self.mode == 'Named' ? size(self.names) > 0 : size(self.names) == 0", "names goes with mode: Named, and only with it"))]
#[serde(rename_all = "camelCase")]
pub struct Migrations {
    /// `All`: what the candidate lists. `Named`: only `names`, in their order. `None`: none.
    #[serde(default)]
    pub mode: MigrationMode,
    /// The migrations to run, in this order; only with mode Named. Example: `[add_memory_embeddings]`.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128), regex(pattern = r"^[0-9A-Za-z_.-]+$")))]
    pub names: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MigrationMode {
    #[default]
    All,
    Named,
    None,
}

const fn yes() -> bool {
    true
}

/// How a failed upgrade is taken back.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollback {
    /// Whether a failure after the image moved takes image and data back at once. When false, the attempt stops there,
    /// writers stopped, and waits for a MemoriaDecision with action Rollback.
    #[serde(default = "yes")]
    pub automatic: bool,
    /// How much may be set aside without asking.
    #[serde(default)]
    pub data_loss_budget: DataLossBudget,
    /// Tables whose newer rows outlive the way back: rows that were inserted since the new version's servers came back are
    /// put into the restored data, where that is provable, and then count for nothing lost. For audit tables, to which
    /// rows are only ever added. Named as SQL names them, on PostgreSQL with the schema unless that is `public`; each needs
    /// a primary key. At most 8. Default: none. Example: `[retention_policy_audits, policy_artifacts]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_][0-9A-Za-z_$]*([.][A-Za-z_][0-9A-Za-z_$]*)?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub carry_forward: Vec<String>,
    /// Whether pre-flight tries the upgrade of the data and its way back on a copy, while Memoria serves: migrations that
    /// fail, leave a wrong schema or cannot be taken back refuse the version then, before anything is stopped.
    #[serde(default)]
    pub rehearse: Rehearse,
}

impl Default for Rollback {
    fn default() -> Self {
        Self {
            automatic: true,
            data_loss_budget: DataLossBudget::default(),
            carry_forward: Vec::new(),
            rehearse: Rehearse::default(),
        }
    }
}

/// What a rehearsal means for the plan. One that fails refuses the version in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Rehearse {
    /// None is made.
    Never,
    /// One that has no result (too little scratch space, an extension that the tool image lacks, no time left) is a
    /// warning in the plan.
    #[default]
    WhenPossible,
    /// Without a result there is no plan.
    Required,
}

/// What a rollback may set aside without a person's decision.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataLossBudget {
    /// Rows inserted, updated or deleted since the new version's servers came back, without those that `carryForward` put
    /// back. More than this, and the way back waits, writers stopped, for a MemoriaDecision with action AcceptDataLoss. The
    /// rows are kept in storage in any case.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub rows: i64,
}

/// Limits, each counted from the start of its part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// All pre-flight Jobs together, from `30s` on.
    #[schemars(transform = schema::limit)]
    pub pre_flight: GoDuration,
    /// Until every pod of targets and workers is gone and the fence is proved, from `30s` on.
    #[schemars(transform = schema::limit)]
    pub quiesce: GoDuration,
    /// Dump, storage, reading back and restoring into scratch, from `30s` on.
    #[schemars(transform = schema::limit)]
    pub snapshot: GoDuration,
    /// All migrations together, from `30s` on.
    #[schemars(transform = schema::limit)]
    pub migrate: GoDuration,
    /// The candidate and, after it, each target's rollout, from `30s` on.
    #[schemars(transform = schema::limit)]
    pub rollout: GoDuration,
    /// The sample bootstrap, the release's own command checks and all checks of stage AfterIngestion, from `30s` on.
    #[schemars(transform = schema::limit)]
    pub verification: GoDuration,
    /// Each part of the way back: writers to zero, the restore with its proofs, the rollouts; from `30s` on.
    #[schemars(transform = schema::limit)]
    pub rollback: GoDuration,
    /// How long an attempt may hold while writers are stopped, from `30s` on. A hold past it resumes before the image
    /// moved; afterwards `onHold` decides. Holds while writers run have no deadline.
    #[schemars(transform = schema::limit)]
    pub hold: GoDuration,
    /// What a hold past its deadline does once the image moved: `Keep` goes on holding, with writers stopped;
    /// `Rollback` counts it as a failure.
    pub on_hold: OnHold,
}

/// What becomes of a hold past its deadline, once the image moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnHold {
    /// It goes on; writers stay stopped.
    #[default]
    Keep,
    /// It counts as a failure of its phase.
    Rollback,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            pre_flight: GoDuration::from_mins(15),
            quiesce: GoDuration::from_mins(10),
            snapshot: GoDuration::from_mins(60),
            migrate: GoDuration::from_mins(30),
            rollout: GoDuration::from_mins(10),
            verification: GoDuration::from_mins(30),
            rollback: GoDuration::from_mins(120),
            hold: GoDuration::from_mins(30),
            on_hold: OnHold::Keep,
        }
    }
}

/// How the operator's Jobs run.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Jobs {
    /// `Restricted` runs them under PodSecurity `restricted`, as the Server's user; `AsServer` copies the Server's
    /// whole security context, for images that must run as root.
    #[serde(default)]
    pub security_context: SecurityContextMode,
    /// Requests and limits of each Job's main container. Default: the Server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::resources")]
    pub resources: Option<ResourceRequirements>,
    /// Labels of the nodes that Jobs may run on. Default: the Server's. Example: `{disk: fast}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::node_selector")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that Jobs tolerate. Default: the Server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::tolerations")]
    pub tolerations: Option<Vec<Toleration>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SecurityContextMode {
    #[default]
    Restricted,
    AsServer,
}

/// How Memoria's command line is called inside its image.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cli {
    /// The command, before its arguments.
    #[serde(default = "cli_command")]
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 256)))]
    pub command: Vec<String>,
}

fn cli_command() -> Vec<String> {
    ["python", "-m", "memoria.cli"].map(str::to_owned).to_vec()
}

impl Default for Cli {
    fn default() -> Self {
        Self { command: cli_command() }
    }
}
