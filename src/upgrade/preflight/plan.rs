//! The plan: everything an attempt will do, rendered once and pinned.

use std::{collections::BTreeMap, fmt::Display};

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;
use sha2::{Digest, Sha256};

use super::{Question, directory, judge::Inspected, rehearsal, stages, target::Wanted, templates};
use crate::{
    api::{
        MemoriaUpgradeSpec,
        release::{CheckResult, Current, CurrentImage, DEFAULT_URL_ENV, MigrationMode, PlanSummary, Stage, UrlFrom},
        settings::PlannedConfig,
        upgrade::{
            Estimates, MACHINE_VERSION, PlannedDatabase, PlannedJob, PlannedRollback, PlannedTarget, PlannedWorker,
        },
    },
    cluster::{
        adopt::AdoptedWorkload,
        candidate::{Candidate, manifest as candidate},
    },
    job::manifest::{self, CheckStep, JobContext, Ordered, RenderError, Storage, in_words},
    job::protocol::{Facts, JobReport},
    rescue::RescueState,
    upgrade::{
        at_risk,
        phase::{RESTORE, RESTORE_ACCEPTED},
        seen::{JobState, Switch},
    },
};

/// Why no plan can be made although every check passed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error("the digest of {0} is not known; see its probe")]
    NoDigest(String),
    #[error("migrations.names has {0:?}, which the new version does not list ({1})")]
    UnknownMigration(String, String),
    #[error("the CronJob of check {0} is gone; see checks[].job.templateRef")]
    NoTemplate(String),
    #[error("a manifest cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the candidate pod of target {0} cannot be made: {1}")]
    Candidate(String, String),
}

#[expect(clippy::too_many_arguments, reason = "all that a plan is made of, gathered in one place")]
pub(super) fn make(
    question: &Question<'_>,
    wanted: &[Wanted<'_>],
    current: &Current,
    run: &str,
    context: &JobContext,
    found: &Inspected,
    digests: &BTreeMap<String, String>,
    checks: &[CheckResult],
    config: Option<PlannedConfig>,
    estimates: Option<Estimates>,
) -> Result<MemoriaUpgradeSpec, PlanError> {
    let release = question.release;
    let spec = &release.spec;
    let uid = release.uid().unwrap_or_default();
    let attempt = question.attempt;
    let jobs_context = JobContext {
        attempt: attempt.to_owned(),
        // In Plan mode, too: so it would be carried out.
        storage: Storage::of(&spec.snapshot, &release.name_any()),
        storage_directory: directory(&release.name_any(), &uid, attempt),
        ..context.clone()
    };
    let mut targets = Vec::new();
    for wanted in wanted {
        let to_image = wanted.pinned(digests).ok_or_else(|| PlanError::NoDigest(wanted.to_text.clone()))?;
        let from_digest = wanted.prior(digests).ok_or_else(|| PlanError::NoDigest(wanted.prior_text.clone()))?;
        let workload = spec.targets.iter().find(|t| t.name == wanted.name).map(|t| t.workload_ref.clone());
        let Some(workload) = workload else { continue };
        targets.push(PlannedTarget {
            name: wanted.name.to_owned(),
            role: wanted.role,
            worker: spec.ingestion.workers.iter().any(|worker| worker.is(&workload)),
            uid: wanted.found.workload.seen.uid.clone(),
            container: wanted.found.container.clone(),
            from_image: wanted.from.to_string(),
            from_digest,
            candidate: candidate(&Candidate {
                release: &release.name_any(),
                attempt,
                target: wanted.name,
                workload: &workload,
                template: &wanted.found.workload.template,
                selector: &wanted.found.workload.selector,
                claim_templates: &wanted.found.workload.claim_templates,
                container: &wanted.found.container,
                image: &to_image,
                services: &question.adopted.services,
            })
            .map_err(|error| PlanError::Candidate(wanted.name.to_owned(), error.to_string()))?,
            to_image,
            replicas: wanted.found.workload.seen.replicas,
            autoscaler: wanted.found.workload.autoscaler.clone(),
            workload,
        });
    }
    let workers = question.adopted.workers.iter();
    let workers = workers.filter(|worker| !targets.iter().any(|target| worker.workload.is(&target.workload)));
    let workers: Vec<_> = workers.map(planned_worker).collect();
    let migrations = migrations(question)?;
    let server = targets.iter().find(|t| t.role == crate::api::release::Role::Server);
    let server_image = server.map(|server| server.to_image.clone()).unwrap_or_default();
    let storage = jobs_context.storage.planned(&jobs_context.storage_directory, spec.snapshot.encryption.as_ref());
    let rescue = RescueState {
        v: 1,
        namespace: context.namespace.clone(),
        release: release.name_any(),
        release_uid: uid.clone(),
        attempt: attempt.to_owned(),
        from: current.version.clone(),
        to: spec.version.clone(),
        engine: found.facts.engine,
        targets: targets.iter().map(Into::into).collect(),
        workers: Vec::clone(&workers),
        maintenance_flag: spec.ingestion.maintenance_flag.clone(),
        settings: config.as_ref().map(Into::into),
        storage: storage.clone(),
        restore: serde_json::to_value(restore(question, &jobs_context, RESTORE)?)?,
    };
    let jobs = jobs(question, &jobs_context, &server_image, &migrations, (&context.storage_directory, rescue))?;
    let seconds = |stage: Stage| {
        let each = spec.checks.iter().filter(|check| check.stage == stage);
        each.map(|check| manifest::longest(check).cast_signed()).max().unwrap_or_default()
    };
    let mut plan = MemoriaUpgradeSpec {
        machine_version: MACHINE_VERSION,
        release_name: release.name_any(),
        release_uid: uid.clone(),
        release_generation: release.metadata.generation.unwrap_or_default(),
        run: run.to_owned(),
        plan_hash: String::new(),
        operator_version: env!("CARGO_PKG_VERSION").to_owned(),
        from: current.version.clone(),
        to: spec.version.clone(),
        targets,
        workers,
        maintenance_flag: spec.ingestion.maintenance_flag.clone(),
        database: PlannedDatabase {
            engine: found.facts.engine,
            major: found.facts.major,
            identity: found.facts.identity.clone(),
            bytes: found.facts.bytes,
        },
        storage,
        migrations,
        config,
        timeouts: spec.timeouts.clone(),
        jobs,
        gate_seconds: seconds(Stage::IngestionReenable),
        candidate_seconds: seconds(Stage::BeforeIngestion),
        checks: checks.to_vec(),
        rollback: PlannedRollback {
            automatic: spec.rollback.automatic,
            data_loss_budget_rows: spec.rollback.data_loss_budget.rows,
            carry_forward: spec.rollback.carry_forward.clone(),
        },
        estimates,
    };
    plan.plan_hash = digest_plan(&plan)?;
    Ok(plan)
}

fn planned_worker(worker: &AdoptedWorkload) -> PlannedWorker {
    let (replicas, suspend, paused_replicas) = match &worker.seen.switch {
        Switch::Replicas => (worker.seen.replicas, None, None),
        Switch::Suspend { suspended, .. } => (0, Some(*suspended), None),
        Switch::Paused { replicas } => (0, None, replicas.clone()),
    };
    PlannedWorker {
        workload: worker.workload.clone(),
        uid: worker.seen.uid.clone(),
        replicas,
        autoscaler: worker.autoscaler.clone(),
        suspend,
        paused_replicas,
        scales: worker.scales.clone(),
    }
}

/// SHA-256 over the plan as JSON with an empty hash, in hex.
///
/// # Errors
/// When the plan cannot be written as JSON.
pub fn digest_plan(plan: &MemoriaUpgradeSpec) -> Result<String, serde_json::Error> {
    let mut plan = plan.clone();
    plan.plan_hash.clear();
    // Through a value: its keys are in order, whatever the order of the fields.
    let text = serde_json::to_value(plan)?.to_string();
    Ok(Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What will run: all that the candidate lists, or the named ones, or nothing.
pub(super) fn migrations(question: &Question<'_>) -> Result<Vec<String>, PlanError> {
    let spec = &question.release.spec;
    let listed: Vec<String> = question
        .jobs
        .values()
        .find_map(|job| match &job.state {
            JobState::Finished { report: Some(JobReport { facts: Some(Facts::Probe(facts)), .. }), .. } => {
                facts.cli.is_some().then(|| facts.migrations.clone())
            }
            _ => None,
        })
        .unwrap_or_default();
    match spec.migrations.mode {
        MigrationMode::All => Ok(listed),
        MigrationMode::None => Ok(Vec::new()),
        MigrationMode::Named => match spec.migrations.names.iter().find(|name| !listed.contains(name)) {
            Some(unknown) => Err(PlanError::UnknownMigration(unknown.clone(), listed.join(", "))),
            None => Ok(spec.migrations.names.clone()),
        },
    }
}

fn jobs(
    question: &Question<'_>,
    context: &JobContext,
    server_image: &str,
    migrations: &[String],
    (reference_directory, rescue): (&str, RescueState),
) -> Result<Vec<PlannedJob>, PlanError> {
    let spec = &question.release.spec;
    let baselines = stages::baselines(question.jobs);
    let of = |stage: Stage| {
        let mine = spec.checks.iter().filter(|check| check.stage == stage && check.job.is_none());
        mine.map(|check| Ordered { baseline: baselines.get(&check.name).cloned(), ..Ordered::plain(check) })
            .collect::<Vec<_>>()
    };
    let (before, gate, verify) = (of(Stage::BeforeIngestion), of(Stage::IngestionReenable), of(Stage::AfterIngestion));
    let mut jobs: Vec<(&str, Job)> = vec![
        ("fence", manifest::fence(context)?),
        ("snapshot", manifest::snapshot_with(context, Some(Box::new(rescue)))?),
    ];
    if !migrations.is_empty() {
        jobs.push(("migrate", manifest::migrate(context, server_image, migrations, reference_directory)?));
    }
    if !before.is_empty() {
        let step = CheckStep::Candidate;
        jobs.push((step.as_str(), manifest::checks(context, step, &before)?));
    }
    jobs.push(("baseline", manifest::baseline(context)?));
    // Nobody reads an SQLite file beside the Server that holds it.
    if context.engine.is_postgresql() {
        jobs.push((at_risk::STEP, manifest::at_risk(context)?));
    }
    for step in [RESTORE, RESTORE_ACCEPTED] {
        jobs.push((step, restore(question, context, step)?));
    }
    if !gate.is_empty() {
        jobs.push((CheckStep::Gate.as_str(), manifest::checks(context, CheckStep::Gate, &gate)?));
    }
    jobs.push(("bootstrap", manifest::bootstrap(context, server_image)?));
    jobs.push(("parity", manifest::parity(context, server_image)?));
    if !verify.is_empty() {
        jobs.push((CheckStep::Verify.as_str(), manifest::checks(context, CheckStep::Verify, &verify)?));
    }
    let ours = jobs.into_iter().map(|(step, job)| (step.to_owned(), job, None));
    let mut templates = Vec::new();
    for stage in [Stage::BeforeIngestion, Stage::IngestionReenable, Stage::AfterIngestion] {
        templates.extend(templates::planned(question, context, stage)?);
    }
    let templates = templates.into_iter().map(|(step, job, check)| (step, job, Some(check)));
    ours.chain(templates)
        .map(|(step, job, check)| Ok(PlannedJob { step, check, manifest: serde_json::to_value(job)? }))
        .collect()
}

fn restore(question: &Question<'_>, context: &JobContext, step: &'static str) -> Result<Job, RenderError> {
    manifest::restore(context, step, &question.release.spec.rollback)
}

/// The plan as the release's status shows it.
pub(super) fn summary(
    plan: &MemoriaUpgradeSpec,
    found: &Inspected,
    wanted: &[Wanted<'_>],
    question: &Question<'_>,
) -> PlanSummary {
    let spec = &question.release.spec;
    let mut inferred = Vec::new();
    for (target, wanted) in spec.targets.iter().zip(wanted) {
        if wanted.found.container_inferred {
            inferred.push(format!("targets[{}].container: {}", target.name, wanted.found.container));
        }
        if target.image.repository.is_none() {
            inferred.push(format!("targets[{}].image.repository: {}", target.name, wanted.to.repository));
        }
    }
    inferred.extend(database_inferred(found, wanted, question));
    if spec.snapshot.storage.is_none() {
        inferred.push(format!("snapshot.storage: {}", plan.storage));
    }
    let targets = plan.targets.iter().map(|t| runs(&t.workload, t.replicas, t.autoscaler.as_ref()));
    let stops = targets.chain(plan.workers.iter().map(stops)).collect();
    PlanSummary {
        hash: plan.plan_hash.get(..12).unwrap_or_default().to_owned(),
        from: plan.from.clone(),
        to: plan.to.clone(),
        images: plan
            .targets
            .iter()
            .map(|t| CurrentImage {
                target: t.name.clone(),
                image: t.to_image.clone(),
                digest: t.to_image.split_once('@').map(|(_, digest)| digest.to_owned()),
            })
            .collect(),
        migrations: plan.migrations.clone(),
        database: database(found),
        config: plan.config.as_ref().map(|config| config.report.to_string()),
        stops,
        inferred,
        estimates: plan.estimates,
        warnings: rehearsal::warnings(&plan.checks),
    }
}

/// The database in one line.
fn database(found: &Inspected) -> String {
    let facts = &found.facts;
    let size = facts.bytes.div_euclid(1 << 20);
    match &found.file {
        // The file is only looked at from outside while its server runs: its tables are counted by the snapshot.
        Some(file) => format!("SQLite, file {} on claim {}, {size} MiB", file.path, file.mount.volume.claim_name),
        None => format!(
            "PostgreSQL {}, database {} at {}, {size} MiB, {} tables",
            facts.server_version, facts.identity.name, facts.identity.host, facts.tables
        ),
    }
}

/// What was found out about the database although nobody wrote it down.
fn database_inferred(found: &Inspected, wanted: &[Wanted<'_>], question: &Question<'_>) -> Vec<String> {
    let spec = &question.release.spec;
    let mut inferred = Vec::new();
    if spec.database.url_from == UrlFrom::default() {
        inferred.push(format!("database.urlFrom.env: {DEFAULT_URL_ENV}"));
    }
    let Some(file) = &found.file else { return inferred };
    let volume = &file.mount.volume;
    inferred.push(format!("database engine: SQLite, file {}", file.path));
    if spec.database.sqlite.is_none() {
        inferred.push(format!(
            "database.sqlite.claimName: {} (uid {}, at {})",
            volume.claim_name, volume.claim_uid, volume.mount_path
        ));
    }
    if let Some(nodes) = &file.nodes {
        inferred.push(format!("jobs on the data run on: {}", in_words(nodes)));
    }
    let shape = wanted.iter().find(|w| w.is_server).and_then(|server| server.shape(spec).ok()).unwrap_or_default();
    let who = [("user", shape.run_as_user), ("group", shape.run_as_group), ("fsGroup", shape.fs_group)];
    let who: Vec<_> = who.iter().filter_map(|(what, id)| Some(format!("{what} {}", (*id)?))).collect();
    if !who.is_empty() {
        inferred.push(format!("jobs run as: {}", who.join(", ")));
    }
    inferred
}

fn runs(workload: &dyn Display, replicas: i32, autoscaler: Option<&String>) -> String {
    match autoscaler {
        Some(hpa) => format!(
            "{workload} (runs {replicas}, set by horizontalpodautoscaler/{hpa}, which rests while it is at zero; it comes \
             back to its count at Quiesce)"
        ),
        None => format!("{workload} (runs {replicas})"),
    }
}

fn stops(worker: &PlannedWorker) -> String {
    let name = &worker.workload;
    match (&worker.suspend, &worker.scales) {
        (Some(true), _) => format!("{name} (is suspended, and stays so)"),
        (Some(false), _) => format!("{name} (is suspended meanwhile)"),
        (None, Some(scaled)) => match &worker.paused_replicas {
            Some(count) => format!("{name} (pauses {scaled} at {count}; at 0 meanwhile)"),
            None => format!("{name} (scales {scaled}; paused at 0 meanwhile)"),
        },
        (None, None) => runs(name, worker.replicas, worker.autoscaler.as_ref()),
    }
}
