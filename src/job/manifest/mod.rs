//! Pure rendering of the Jobs' manifests: the same context gives the same bytes, so a plan can pin them. No client.
//!
//! One function a step. What is only known at creation comes in by [`with_input`], which also marks the Job with the
//! hash by which it is recognised.

mod archive;
mod checks;
mod hash;
mod name;
mod place;
mod pod;
mod shape;
mod template;
#[cfg(test)]
mod tests;
mod url_source;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Container, NodeSelector},
};
use memoria_runner::order::{INSTALLED_NAME, ORDER_ENV as RUNNER_ORDER_ENV, RunnerOrder};

use self::pod::{ContainerExt as _, Draft, Of, container};
pub use self::{
    archive::Storage,
    checks::{CheckStep, Ordered, checks, longest},
    hash::{canonical_hash, template_hash, with_input},
    name::{BadName, job_name},
    place::{DataMount, both, excludes_all, in_words, node_named},
    pod::{GUARD, INSTALL, MAIN, OWN_MOUNTS},
    shape::{PodShape, Security, ShapeError, UrlError, UrlSeen},
    template::{check_of, check_step, from_template},
};
use super::protocol::{
    AtRiskOrder, BaselineOrder, DatabaseTask, FenceOrder, GuardOrder, InspectOrder, JobOrder, ORDER_ENV,
    ReferenceOrder, RehearsalOrder, RestoreOrder, RetentionOrder, SHARED_MOUNT, SnapshotOrder,
};
use crate::{
    api::{
        release::{Encryption, Rollback, Timeouts},
        upgrade::{DatabaseIdentity, Engine},
    },
    rescue::RescueState,
};

/// How long no session of the application may be seen before the fence counts as proved, in seconds.
const FENCE_QUIET_SECONDS: u64 = 5;
/// How long the guard may read and compare after the runner's commands ended, in seconds.
const VERDICT_SECONDS: u64 = 600;
/// How long a count of rows at risk stays for its reader once it has ended, in seconds.
const AT_RISK_TTL_SECONDS: i32 = 3600;
/// Scratch space of a rehearsal: a multiple of the database's size for copy, snapshot, failed state and the copy that is
/// restored, and what ephemeral servers take however small it is.
const REHEARSAL_FACTOR: i64 = 4;
const REHEARSAL_BYTES: i64 = 512 << 20;

/// What all Jobs of an attempt, or of a pre-flight run, have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct JobContext {
    pub namespace: String,
    pub release: String,
    pub release_uid: String,
    /// The attempt's name, or the pre-flight run's.
    pub attempt: String,
    pub operator_version: String,
    /// The version that runs before the upgrade; written into the snapshot's manifest.
    pub from_version: String,
    pub operator_image: String,
    /// The image with client and server of the database's major, the operator's own for SQLite; absent before Inspect
    /// has found that out.
    pub tools_image: Option<String>,
    pub shape: PodShape,
    /// How Memoria's command line is called.
    pub cli: Vec<String>,
    /// Where snapshots are kept.
    pub storage: Storage,
    /// Whose keys encrypt what is kept there; absent where nothing is encrypted.
    pub encryption: Option<Encryption>,
    /// Directory of this attempt or run, below the storage's root.
    pub storage_directory: String,
    /// Whether the snapshot is kept as a portable export, too.
    pub portable: bool,
    /// Which older snapshots stay in the storage.
    pub retention: RetentionOrder,
    pub timeouts: Timeouts,
    /// The database that Inspect found; absent before it.
    pub identity: Option<DatabaseIdentity>,
    /// The engine that Inspect found; before it nothing depends on it.
    pub engine: Engine,
    /// What the Server mounts of claims: before Inspect all of it, after it the volume with the database; none for a
    /// database that is reached by network.
    pub data: Vec<DataMount>,
    /// The nodes that reach data and snapshots; absent when any does.
    pub nodes: Option<NodeSelector>,
}

/// An image to look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe<'a> {
    /// Distinguishes the Job: `probe-<name>`, e.g. the target's name, or `server-prior`.
    pub name: &'a str,
    /// By tag (then it is pulled in any case) or by digest.
    pub image: &'a str,
    /// True for the Server's candidate: what can its command line do? It then runs as the Server's user.
    pub ask_cli: bool,
}

/// Why a Job cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    #[error(transparent)]
    Name(#[from] BadName),
    #[error(
        "step {0} needs the tool image of the database's major version; add that major to the operator's configuration"
    )]
    NoTools(&'static str),
    #[error("step {0} is rendered before the database's identity is known; this is a defect of the operator")]
    NoIdentity(&'static str),
    #[error("a Job cannot be written as JSON: {0}; this is a defect of the operator")]
    Json(String),
}

impl RenderError {
    #[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
    fn json(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

/// PreFlight, operator image: what database is it, and what about it cannot be handled?
///
/// # Errors
/// [`RenderError`]
pub fn inspect(ctx: &JobContext, rollback: &Rollback) -> Result<Job, RenderError> {
    let carry_forward = rollback.carry_forward.clone();
    let database = DatabaseTask { identity: None, ..task(ctx) };
    let limit_seconds = ctx.timeouts.pre_flight.as_secs();
    let main = ours(ctx, MAIN, &ctx.operator_image, &JobOrder::Inspect(InspectOrder { database, carry_forward }))?
        .envs(&ctx.shape.database_env)
        .data(ctx);
    Draft { step: "inspect", init: Vec::new(), main, limit_seconds, precious: false }.into_job(ctx)
}

/// PreFlight, an image of Memoria: can it be pulled, is it what it says, does the runner run in it? Its digest is read
/// from the pod's `imageID`. Render it with the shape of the target that the image belongs to.
///
/// # Errors
/// [`RenderError`]
pub fn probe(ctx: &JobContext, probe: &Probe<'_>) -> Result<Job, RenderError> {
    let step = format!("probe-{}", probe.name);
    let limit_seconds = ctx.timeouts.pre_flight.as_secs();
    let order = RunnerOrder { ask_cli: probe.ask_cli, ..runner_order(ctx, &step, limit_seconds) };
    let of = if probe.ask_cli { Of::Memoria } else { Of::Carrier };
    let mut main = runner(ctx, probe.image, of, "probe", &order)?;
    if !probe.image.contains("@sha256:") {
        main = main.always_pull();
    }
    Draft { step: &step, init: vec![install(ctx)], main, limit_seconds, precious: false }.into_job(ctx)
}

/// PreFlight, an image of the Server: what settings does it come with? `step` tells the new image from the prior one.
///
/// # Errors
/// [`RenderError`]
pub fn defaults(
    ctx: &JobContext,
    step: &'static str,
    server_image: &str,
    baseline_path: Option<&str>,
) -> Result<Job, RenderError> {
    let limit_seconds = ctx.timeouts.pre_flight.as_secs();
    let baseline_path = baseline_path.map(str::to_owned);
    let order = RunnerOrder { baseline_path, ..runner_order(ctx, step, limit_seconds) };
    let main = runner(ctx, server_image, Of::Memoria, "defaults", &order)?;
    Draft { step, init: vec![install(ctx)], main, limit_seconds, precious: false }.into_job(ctx)
}

/// PreFlight: the candidate's own `init-db` on an ephemeral server of the same major, run by the sidecar.
///
/// # Errors
/// [`RenderError`]
pub fn reference(ctx: &JobContext, server_image: &str, needed_bytes: i64) -> Result<Job, RenderError> {
    let limit_seconds = ctx.timeouts.pre_flight.as_secs();
    let order = ReferenceOrder {
        attempt: ctx.attempt.clone(),
        directory: ctx.storage_directory.clone(),
        needed_bytes,
        limit_seconds,
        engine: ctx.engine,
        retention: ctx.storage.is_kept().then(|| ctx.retention.clone()),
    };
    let guard = ours(ctx, GUARD, tools(ctx, "reference")?, &JobOrder::Reference(order))?;
    let main = runner(ctx, server_image, Of::Memoria, "init-db", &runner_order(ctx, "reference", limit_seconds))?;
    let init = vec![install(ctx), guard.sidecar().shared().scratch().storage(ctx).keys(ctx)];
    Draft { step: "reference", init, main, limit_seconds, precious: false }.into_job(ctx)
}

/// PreFlight: the candidate's migrations and the way back from them, on a copy that the sidecar makes. The container with
/// Memoria's image learns nothing of the database itself. `reference_directory` is that of the same run.
///
/// # Errors
/// [`RenderError`]
pub fn rehearsal(
    ctx: &JobContext,
    server_image: &str,
    migrations: &[String],
    database_bytes: i64,
    until: jiff::Timestamp,
) -> Result<Job, RenderError> {
    let (limit_seconds, whole) = (ctx.timeouts.migrate.as_secs(), ctx.timeouts.pre_flight.as_secs());
    let order = RunnerOrder {
        migrations: migrations.to_vec(),
        go_seconds: whole,
        verdict_seconds: whole,
        ..runner_order(ctx, "rehearsal", limit_seconds)
    };
    let guard_order = RehearsalOrder {
        database: identified(ctx, "rehearsal")?,
        release: ctx.release.clone(),
        from_version: ctx.from_version.clone(),
        operator_version: ctx.operator_version.clone(),
        portable: ctx.portable,
        reference_directory: ctx.storage.is_kept().then(|| ctx.storage_directory.clone()),
        needed_bytes: database_bytes.saturating_mul(REHEARSAL_FACTOR).saturating_add(REHEARSAL_BYTES),
        limit_seconds,
        until,
    };
    let guard = ours(ctx, GUARD, tools(ctx, "rehearsal")?, &JobOrder::Rehearsal(guard_order))?
        .envs(&ctx.shape.database_env)
        .data(ctx)
        .sidecar()
        .shared()
        .scratch()
        .storage(ctx);
    let main = runner(ctx, server_image, Of::Memoria, "rehearse", &order)?;
    let init = vec![install(ctx), guard];
    Draft { step: "rehearsal", init, main, limit_seconds: whole, precious: false }.into_job(ctx)
}

/// Quiesce, operator image: ends the application's sessions and proves that none comes back.
///
/// # Errors
/// [`RenderError`]
pub fn fence(ctx: &JobContext) -> Result<Job, RenderError> {
    // It begins when the pods are gone, and must say what it still sees before the phase's own limit ends it.
    let limit_seconds = (ctx.timeouts.quiesce.as_secs() / 2).max(2 * FENCE_QUIET_SECONDS);
    let order = FenceOrder { database: identified(ctx, "fence")?, quiet_seconds: FENCE_QUIET_SECONDS, limit_seconds };
    let main = ours(ctx, MAIN, &ctx.operator_image, &JobOrder::Fence(order))?.envs(&ctx.shape.database_env).data(ctx);
    Draft { step: "fence", init: Vec::new(), main, limit_seconds, precious: true }.into_job(ctx)
}

/// SnapshotExport, tool image: dump at one read point, stored, read back, restored into an ephemeral server.
///
/// # Errors
/// [`RenderError`]
pub fn snapshot(ctx: &JobContext) -> Result<Job, RenderError> {
    snapshot_with(ctx, None)
}

/// The same, and beside it what a person needs to finish the attempt by hand.
///
/// # Errors
/// [`RenderError`]
pub fn snapshot_with(ctx: &JobContext, rescue: Option<Box<RescueState>>) -> Result<Job, RenderError> {
    let order = SnapshotOrder {
        database: identified(ctx, "snapshot")?,
        release: ctx.release.clone(),
        from_version: ctx.from_version.clone(),
        directory: ctx.storage_directory.clone(),
        operator_version: ctx.operator_version.clone(),
        portable: ctx.portable,
        rescue,
    };
    let main = ours(ctx, MAIN, tools(ctx, "snapshot")?, &JobOrder::Snapshot(order))?
        .envs(&ctx.shape.database_env)
        .data(ctx)
        .scratch()
        .storage(ctx)
        .keys(ctx);
    let limit_seconds = ctx.timeouts.snapshot.as_secs();
    Draft { step: "snapshot", init: Vec::new(), main, limit_seconds, precious: true }.into_job(ctx)
}

/// Migrate: the runner in the candidate's image, beside the guard that lets it begin and judges what came of it.
/// `reference_directory` is that of the pre-flight run.
///
/// # Errors
/// [`RenderError`]
pub fn migrate(
    ctx: &JobContext,
    server_image: &str,
    migrations: &[String],
    reference_directory: &str,
) -> Result<Job, RenderError> {
    let limit_seconds = ctx.timeouts.migrate.as_secs();
    // Before it lets the runner begin, the guard reads the data once more, as the snapshot did.
    let go_seconds = ctx.timeouts.snapshot.as_secs();
    let order = RunnerOrder {
        migrations: migrations.to_vec(),
        go_seconds,
        verdict_seconds: VERDICT_SECONDS,
        ..runner_order(ctx, "migrate", limit_seconds)
    };
    let guard_order = GuardOrder {
        database: identified(ctx, "migrate")?,
        directory: ctx.storage_directory.clone(),
        reference_directory: reference_directory.to_owned(),
        limit_seconds,
    };
    let guard = ours(ctx, GUARD, tools(ctx, "migrate")?, &JobOrder::Guard(guard_order))?
        .envs(&ctx.shape.database_env)
        .data(ctx)
        .sidecar()
        .shared()
        .scratch()
        .storage(ctx)
        .keys(ctx);
    let main = runner(ctx, server_image, Of::Memoria, "migrate", &order)?.envs(&ctx.shape.database_env).data(ctx);
    let limit_seconds = limit_seconds + go_seconds + VERDICT_SECONDS;
    Draft { step: "migrate", init: vec![install(ctx), guard], main, limit_seconds, precious: true }.into_job(ctx)
}

/// Start, tool image: keys and hashes of every row, before clients write again.
///
/// # Errors
/// [`RenderError`]
pub fn baseline(ctx: &JobContext) -> Result<Job, RenderError> {
    let limit_seconds = ctx.timeouts.snapshot.as_secs();
    let order =
        BaselineOrder { database: identified(ctx, "baseline")?, directory: baseline_directory(ctx), limit_seconds };
    let main = ours(ctx, MAIN, tools(ctx, "baseline")?, &JobOrder::Baseline(order))?
        .envs(&ctx.shape.database_env)
        .data(ctx)
        .scratch()
        .storage(ctx)
        .keys(ctx);
    Draft { step: "baseline", init: Vec::new(), main, limit_seconds, precious: true }.into_job(ctx)
}

/// IngestionReenable and Verification, operator image: what a restore would take back now. Made again and again under one name,
/// so it goes by itself where nobody is left to remove it.
///
/// # Errors
/// [`RenderError`]
pub fn at_risk(ctx: &JobContext) -> Result<Job, RenderError> {
    let limit_seconds = ctx.timeouts.snapshot.as_secs();
    let order = AtRiskOrder {
        database: identified(ctx, "at-risk")?,
        baseline_directory: baseline_directory(ctx),
        limit_seconds,
    };
    let main = ours(ctx, MAIN, &ctx.operator_image, &JobOrder::AtRisk(order))?
        .envs(&ctx.shape.database_env)
        .storage(ctx)
        .keys(ctx);
    let mut job = Draft { step: "at-risk", init: Vec::new(), main, limit_seconds, precious: false }.into_job(ctx)?;
    if let Some(spec) = &mut job.spec {
        spec.ttl_seconds_after_finished = Some(AT_RISK_TTL_SECONDS);
    }
    Ok(job)
}

/// ImportSnapshot, tool image: the failed state is saved, the snapshot restored with its proof. `step` names the Job:
/// after a person's word the same order runs under another name.
///
/// # Errors
/// [`RenderError`]
pub fn restore(ctx: &JobContext, step: &'static str, rollback: &Rollback) -> Result<Job, RenderError> {
    let limit_seconds = ctx.timeouts.rollback.as_secs();
    let order = RestoreOrder {
        database: identified(ctx, step)?,
        directory: ctx.storage_directory.clone(),
        failed_directory: format!("{}/failed", ctx.storage_directory),
        baseline_directory: Some(baseline_directory(ctx)),
        data_loss_budget_rows: rollback.data_loss_budget.rows,
        carry_forward: rollback.carry_forward.clone(),
        limit_seconds,
    };
    let main = ours(ctx, MAIN, tools(ctx, step)?, &JobOrder::Restore(order))?
        .envs(&ctx.shape.database_env)
        .data(ctx)
        .scratch()
        .storage(ctx)
        .keys(ctx);
    Draft { step, init: Vec::new(), main, limit_seconds, precious: true }.into_job(ctx)
}

fn baseline_directory(ctx: &JobContext) -> String {
    format!("{}/baseline", ctx.storage_directory)
}

/// Verification: a sample `bootstrap` of the candidate, in a pod that knows no database.
///
/// # Errors
/// [`RenderError`]
pub fn bootstrap(ctx: &JobContext, server_image: &str) -> Result<Job, RenderError> {
    let limit_seconds = ctx.timeouts.verification.as_secs();
    let order = runner_order(ctx, "bootstrap", limit_seconds);
    let main = runner(ctx, server_image, Of::Memoria, "bootstrap", &order)?;
    Draft { step: "bootstrap", init: vec![install(ctx)], main, limit_seconds, precious: false }.into_job(ctx)
}

/// Verification: the candidate's `export-data` and `import-data` on scratch SQLite files, in a pod that knows no database.
///
/// # Errors
/// [`RenderError`]
pub fn parity(ctx: &JobContext, server_image: &str) -> Result<Job, RenderError> {
    let limit_seconds = ctx.timeouts.verification.as_secs();
    let order = runner_order(ctx, "parity", limit_seconds);
    let main = runner(ctx, server_image, Of::Memoria, "parity", &order)?;
    Draft { step: "parity", init: vec![install(ctx)], main, limit_seconds, precious: false }.into_job(ctx)
}

fn task(ctx: &JobContext) -> DatabaseTask {
    DatabaseTask {
        attempt: ctx.attempt.clone(),
        release_uid: ctx.release_uid.clone(),
        identity: ctx.identity.clone(),
        volumes: ctx.data.iter().map(|mount| mount.volume.clone()).collect(),
        // Only a file's path depends on it.
        working_directory: ctx.shape.working_dir.clone().filter(|_| !ctx.data.is_empty()),
    }
}

fn identified(ctx: &JobContext, step: &'static str) -> Result<DatabaseTask, RenderError> {
    if ctx.identity.is_none() {
        return Err(RenderError::NoIdentity(step));
    }
    Ok(task(ctx))
}

fn tools<'a>(ctx: &'a JobContext, step: &'static str) -> Result<&'a str, RenderError> {
    ctx.tools_image.as_deref().ok_or(RenderError::NoTools(step))
}

fn runner_order(ctx: &JobContext, step: &str, limit_seconds: u64) -> RunnerOrder {
    RunnerOrder::new(&ctx.attempt, step, &ctx.cli, limit_seconds)
}

/// JSON for an environment entry. The kubelet would put other entries in place of `$(NAME)`, and `$` for `$$`; in JSON a
/// dollar sign occurs in strings only, where it may be written as an escape.
fn env_json(value: &impl serde::Serialize) -> Result<String, RenderError> {
    let text = serde_json::to_string(value).map_err(RenderError::json)?;
    Ok(text.replace('$', "\\u0024"))
}

/// A container that carries out an order of ours.
fn ours(ctx: &JobContext, name: &str, image: &str, order: &JobOrder) -> Result<Container, RenderError> {
    let order = env_json(order)?;
    Ok(container(ctx, name, image, Of::Ours, &["memoria-operator", "job"]).env(ORDER_ENV, order))
}

/// The main container in Memoria's image, started by the runner from the shared directory.
fn runner(ctx: &JobContext, image: &str, of: Of, mode: &str, order: &RunnerOrder) -> Result<Container, RenderError> {
    let order = env_json(order)?;
    let path = installed();
    Ok(container(ctx, MAIN, image, of, &[&path, mode]).env(RUNNER_ORDER_ENV, order).shared())
}

fn install(ctx: &JobContext) -> Container {
    let path = installed();
    container(ctx, INSTALL, &ctx.operator_image, Of::Ours, &["memoria-runner", "install", &path]).shared()
}

fn installed() -> String {
    format!("{SHARED_MOUNT}/{INSTALLED_NAME}")
}
