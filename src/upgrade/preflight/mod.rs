//! PreFlight: read-only. From the release and what was found of its workloads to a plan with a hash, by way of Jobs
//! that look at images and database. Pure like the rest: it asks for Jobs and judges their reports.

mod data;
mod judge;
mod plan;
mod rehearsal;
mod rejected;
mod settings;
mod stages;
mod target;
mod templates;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt as _;
use sha2::{Digest, Sha256};

pub use self::plan::digest_plan;
use self::{rehearsal::Rehearsed, target::Wanted};
use super::{seen::JobSeen, version::Version};
use crate::{
    api::{
        MemoriaRelease, MemoriaUpgradeSpec,
        conditions::reason,
        marks,
        release::{CheckResult, Current, CurrentImage, Mode, PreFlightStatus, Rehearse, Role, Verdict},
        settings::PlannedConfig,
        upgrade::{Engine, Estimates},
    },
    cluster::adopt::{Adopted, Claim},
    commands::Command,
    job::{
        manifest::{self, CheckStep, JobContext, PodShape, Probe, RenderError, Storage},
        protocol::RetentionOrder,
    },
};

/// Images that the operator's configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorImages {
    pub operator: String,
    /// Tool image by PostgreSQL major version.
    pub tools: BTreeMap<i32, String>,
}

/// All that pre-flight may look at.
pub struct Question<'a> {
    pub release: &'a MemoriaRelease,
    pub adopted: &'a Adopted,
    /// The run's Jobs by step.
    pub jobs: &'a BTreeMap<String, JobSeen>,
    pub images: &'a OperatorImages,
    /// The name that the next attempt will have.
    pub attempt: &'a str,
    /// Attempts whose journals exist.
    pub known_attempts: &'a [String],
    /// Those of them that may still need their snapshots.
    pub needed_attempts: &'a [String],
    /// Attempts whose images a person allowed to be tried again.
    pub acknowledged: &'a [String],
    /// What the API server said to a dry run of the plan; absent until one was made of it.
    pub dry_run: Option<&'a [CheckResult]>,
    pub now: Timestamp,
}

/// What pre-flight wants next.
#[derive(Debug)]
pub enum Answer {
    /// The desired version runs: nothing is to be done.
    Settled(Current),
    /// It cannot even begin; the reason is a condition's, the message names field or object and the fix.
    Refused { reason: &'static str, message: String, current: Option<Current> },
    /// Checks are under way: make these Jobs (and the claim first, when asked).
    Checking { status: PreFlightStatus, jobs: Vec<Job>, claim: Option<ClaimWish>, message: String },
    /// All that does not change the data's copy has passed: let the API server dry-run this plan, then ask again. What it
    /// says is good for the same plan with a rehearsal's results, too.
    DryRun { status: PreFlightStatus, plan: Box<MemoriaUpgradeSpec> },
    /// The plan stands.
    Planned { status: PreFlightStatus, plan: Box<MemoriaUpgradeSpec> },
    /// At least one check Failed, or is Inconclusive.
    NotPassed { status: PreFlightStatus, reason: &'static str, message: String },
}

impl Answer {
    /// The same when the API server would not admit the pod of one of the Jobs that are asked for.
    #[must_use]
    pub fn not_admitted(self, refused: CheckResult, release: &MemoriaRelease, now: Timestamp) -> Self {
        let Self::Checking { mut status, .. } = self else { return self };
        status.checks.push(refused);
        finished(status, release, now)
    }
}

/// A run that has ended without a plan: what failed, or could not be told.
fn finished(mut status: PreFlightStatus, release: &MemoriaRelease, now: Timestamp) -> Answer {
    let rehearse = release.spec.rollback.rehearse;
    let bad: Vec<_> = status.checks.iter().filter(|check| rehearsal::stops(check, rehearse)).collect();
    let reason = match bad.iter().any(|check| check.result == Verdict::Failed) {
        true => reason::PREFLIGHT_FAILED,
        false => reason::INCONCLUSIVE,
    };
    let message =
        super::cut(bad.iter().map(|check| format!("{}: {}", check.name, check.message)).collect::<Vec<_>>().join("; "));
    status.finished_at = Some(Time(now));
    Answer::NotPassed { status, reason, message }
}

/// A claim for snapshots that the operator makes when the release names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimWish {
    pub name: String,
    pub bytes: i64,
}

/// The smallest claim worth asking for: 1 GiB.
const MIN_CLAIM_BYTES: i64 = 1 << 30;

/// Decides what pre-flight does next. The same question has the same answer.
pub fn preflight(question: &Question<'_>) -> Answer {
    let spec = &question.release.spec;
    let adopted = question.adopted;
    let unfit: Vec<_> = adopted.checks.iter().filter(|check| check.result == Verdict::Failed).collect();
    if !unfit.is_empty() {
        let targets = adopted.targets.iter().map(|target| &target.workload);
        let claimed = targets.chain(&adopted.workers).any(|found| matches!(found.claim, Claim::Other { .. }));
        return Answer::Refused {
            reason: if claimed { reason::TARGET_CLAIMED } else { reason::INVALID_SPEC },
            message: unfit.iter().map(|check| check.message.as_str()).collect::<Vec<_>>().join("; "),
            current: None,
        };
    }
    if let Some(message) = lost_journal(question) {
        return Answer::Refused { reason: reason::JOURNAL_LOST, message, current: None };
    }
    let wanted = match Wanted::all(spec, adopted) {
        Ok(wanted) => wanted,
        Err(message) => return Answer::Refused { reason: reason::INVALID_SPEC, message, current: None },
    };
    let current = current(question.release, &wanted);
    if let Some(message) = unmanaged_change(question, &current) {
        return Answer::Refused { reason: reason::UNMANAGED_IMAGE_CHANGE, message, current: None };
    }
    if current.version == spec.version {
        return Answer::Settled(current);
    }
    if let Err((reason, message)) = upward(&current.version, &spec.version) {
        return Answer::Refused { reason, message, current: Some(current) };
    }
    Run::new(question, wanted, current).next()
}

/// What runs now, as far as the workloads tell; `None` when they do not.
pub fn running(release: &MemoriaRelease, adopted: &Adopted) -> Option<Current> {
    Wanted::all(&release.spec, adopted).ok().map(|wanted| current(release, &wanted))
}

/// The name of the pre-flight run: another spec or another request gives another. A release whose attempt of this run
/// has ended badly waits for either.
pub fn run_name(release: &MemoriaRelease) -> String {
    let mut spec = release.spec.clone();
    // Pausing changes nothing of what is to be done.
    spec.suspend = false;
    let requested = release.annotations().get(marks::REQUESTED_AT_ANNOTATION);
    let basis = serde_json::json!([release.uid(), spec, requested]);
    let digest = Sha256::digest(basis.to_string().as_bytes());
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-pf-{hex}", release.name_any())
}

fn current(release: &MemoriaRelease, wanted: &[Wanted<'_>]) -> Current {
    Current {
        version: wanted.iter().find(|w| w.is_server).and_then(|w| w.from.tag.clone()).unwrap_or_default(),
        images: wanted
            .iter()
            .map(|w| CurrentImage {
                target: w.name.to_owned(),
                image: w.from.to_string(),
                digest: w.running_digest.clone(),
            })
            .collect(),
        requested_at: release.annotations().get(marks::REQUESTED_AT_ANNOTATION).cloned(),
    }
}

/// A workload bears the mark of an attempt whose journal is gone: what state the data is in is unknown.
fn lost_journal(question: &Question<'_>) -> Option<String> {
    let targets = question.adopted.targets.iter().map(|target| &target.workload);
    targets.chain(&question.adopted.workers).find_map(|found| {
        let mark = found.seen.attempt.as_ref().filter(|mark| !question.known_attempts.contains(mark))?;
        let workload = found.workload.to_string();
        let namespace = question.release.namespace().unwrap_or_default();
        let forget = Command::ForgetAttempt { workload: &workload }.in_namespace(&namespace);
        Some(format!(
            "{workload} bears the mark of attempt {mark}, whose MemoriaUpgrade is gone: whether its data is whole is \
             unknown. Bring the MemoriaUpgrade back, or check the data, then: {forget}"
        ))
    })
}

/// The recorded images are not the running ones, and no attempt moved them: whatever data is there now, it is not "before".
fn unmanaged_change(question: &Question<'_>, current: &Current) -> Option<String> {
    let recorded = question.release.status.as_ref()?.current.as_ref()?;
    if recorded.requested_at != current.requested_at {
        return None;
    }
    current.images.iter().find_map(|now| {
        let before = recorded.images.iter().find(|before| before.target == now.target)?;
        (before.image != now.image).then(|| {
            let name = question.release.name_any();
            let namespace = question.release.namespace().unwrap_or_default();
            let accept = Command::AskAgain { release: &name }.in_namespace(&namespace);
            format!(
                "target {} runs {} but {} was recorded, and no attempt moved it: a snapshot taken now would not be of \
                 the data before the change. Put the recorded image back, or accept what runs: {accept}",
                now.target, now.image, before.image
            )
        })
    })
}

fn upward(from: &str, to: &str) -> Result<(), (&'static str, String)> {
    let version = |text: &str, what: &str| {
        text.parse::<Version>().map_err(|error| (reason::INVALID_SPEC, format!("{what}: {error}")))
    };
    if version(to, "spec.version")? > version(from, "the running version (the Server image's tag)")? {
        return Ok(());
    }
    Err((
        reason::DOWNGRADE_UNSUPPORTED,
        format!(
            "spec.version {to} is older than the running {from}, and Memoria has no down-migrations: set spec.version \
             back to {from}"
        ),
    ))
}

/// One pre-flight run over what is known so far.
struct Run<'a> {
    question: &'a Question<'a>,
    wanted: Vec<Wanted<'a>>,
    current: Current,
    name: String,
    started_at: Time,
}

impl<'a> Run<'a> {
    fn new(question: &'a Question<'a>, wanted: Vec<Wanted<'a>>, current: Current) -> Self {
        let name = run_name(question.release);
        let known = question.release.status.as_ref().and_then(|status| status.pre_flight.as_ref());
        let started_at =
            known.filter(|known| known.run == name).map_or(Time(question.now), |known| known.started_at.clone());
        Self { question, wanted, current, name, started_at }
    }

    fn status(&self, checks: Vec<CheckResult>) -> PreFlightStatus {
        PreFlightStatus {
            run: self.name.clone(),
            started_at: self.started_at.clone(),
            finished_at: None,
            checks,
            plan: None,
        }
    }

    fn next(self) -> Answer {
        let mut checks = self.question.adopted.checks.clone();
        let (context, unfit) = match self.context() {
            Ok(found) => found,
            Err(failed) => {
                checks.push(failed);
                return self.not_passed(checks);
            }
        };
        // Inspect alone mounts all; who comes after it mounts what it has found.
        let looking = context.clone();
        let context = JobContext { data: Vec::new(), nodes: None, ..context };
        checks.extend(self.question.adopted.findings.iter().cloned());
        checks.extend(self.lost_storage());
        let own = &self.question.release.spec;
        checks.extend(stages::expressions(&own.checks));
        checks.extend(templates::findings(self.question));
        let server = own.targets.iter().find(|target| target.role == Role::Server);
        let works =
            server.is_some_and(|server| own.ingestion.workers.iter().any(|worker| worker.is(&server.workload_ref)));
        checks.extend(stages::candidates(&own.checks, &self.wanted, works));
        let mut missing = Vec::new();
        let mut waiting = Vec::new();
        let asked = stages::ordered(&own.checks);
        let fit = checks.iter().all(|check| check.result == Verdict::Passed);
        if fit {
            let told = templates::pre_flight(self.question, &context, &mut missing, &mut waiting);
            checks.extend(told);
        }
        if !asked.is_empty() && fit {
            let job = manifest::checks(&context, CheckStep::PreFlight, &asked);
            let seen = self.question.jobs.get(stages::STEP);
            match judge::job(stages::STEP, job, seen) {
                judge::JobAnswer::Create(job) => missing.push(*job),
                judge::JobAnswer::Wait(what) => waiting.push(what),
                answer => checks.extend(stages::judge(answer, seen, &asked)),
            }
        }
        let inspect = manifest::inspect(&looking, &own.rollback);
        let inspect = self.job(inspect, "inspect", &mut missing, &mut waiting, &mut checks);
        let server = self.wanted.iter().find(|wanted| wanted.is_server);
        let inspected = inspect.and_then(|report| judge::inspect(report, self.question, server?, &mut checks));
        if let Some(found) = &inspected {
            checks.extend(stages::engines(&own.checks, found.facts.engine));
        }
        checks.extend(judge::unfit(&unfit, &checks));
        let mut digests = BTreeMap::new();
        for (wanted, probe) in self.probes() {
            let job = manifest::probe(&JobContext { shape: self.shape_of(wanted), ..context.clone() }, &probe);
            let step = format!("probe-{}", probe.name);
            let report = self.job(job, &step, &mut missing, &mut waiting, &mut checks);
            let image_id = self.question.jobs.get(&step).and_then(|job| job.image_id.as_deref());
            if let Some(report) = report {
                judge::probe(&step, &probe, report, image_id, &mut digests, &mut checks);
            }
        }
        checks.extend(rejected::check(self.question, &self.wanted, &digests));
        let failed = checks.iter().any(|check| check.result != Verdict::Passed);
        let mut claim = None;
        if let (Some(found), false, true, true) = (&inspected, failed, missing.is_empty(), waiting.is_empty()) {
            let context = JobContext {
                tools_image: Some(found.tools.clone()),
                identity: Some(found.facts.identity.clone()),
                engine: found.facts.engine,
                data: found.file.iter().map(|file| file.mount.clone()).collect(),
                nodes: found.file.as_ref().and_then(|file| file.nodes.clone()),
                ..context.clone()
            };
            claim = self.claim(found.facts.bytes);
            let image = server.and_then(|server| server.pinned(&digests)).unwrap_or_default();
            let needed = match context.storage.is_kept() {
                true => found.facts.bytes.saturating_mul(self.question.release.spec.snapshot.capacity_factor.into()),
                false => 0,
            };
            let job = manifest::reference(&context, &image, needed);
            let report = self.job(job, "reference", &mut missing, &mut waiting, &mut checks);
            for (step, job) in settings::jobs(self.question, &context, &self.wanted, &digests) {
                if !settings::is_optional(step, self.question.jobs.get(step)) {
                    self.job(job, step, &mut missing, &mut waiting, &mut checks);
                }
            }
            if let Some(report) = report
                && judge::reference(report, &mut checks)
                && missing.is_empty()
                && waiting.is_empty()
                && checks.iter().all(|check| check.result == Verdict::Passed)
            {
                match settings::plan(self.question) {
                    Ok(config) => {
                        checks.extend(config.as_ref().map(|config| settings::passed(self.question, config)));
                        let admitted = self.is_admitted();
                        match self.rehearse(&context, found, &image, &checks) {
                            None => return self.planned(&context, found, &digests, checks, config, None),
                            // What the API server refuses need not be rehearsed.
                            Some(Rehearsed::Create(_) | Rehearsed::Wait(_)) if !admitted => {
                                return self.planned(&context, found, &digests, checks, config, None);
                            }
                            Some(Rehearsed::Create(job)) => missing.push(*job),
                            Some(Rehearsed::Wait(what)) => waiting.push(what),
                            Some(Rehearsed::Done(check, _)) if check.result == Verdict::Failed => checks.push(check),
                            Some(Rehearsed::Done(check, estimates)) => {
                                checks.push(check);
                                return self.planned(&context, found, &digests, checks, config, estimates);
                            }
                        }
                    }
                    Err(failed) => checks.push(failed),
                }
            }
        }
        if checks.iter().any(|check| check.result == Verdict::Failed) {
            return self.not_passed(checks);
        }
        if missing.is_empty() && waiting.is_empty() {
            return self.not_passed(checks);
        }
        self.checking(checks, missing, claim, &waiting)
    }

    /// Where the rehearsal stands; nothing when none is made: it is not wanted, nothing would run, or nothing but it would
    /// stand in the plan's way.
    fn rehearse(
        &self,
        context: &JobContext,
        found: &judge::Inspected,
        image: &str,
        checks: &[CheckResult],
    ) -> Option<Rehearsed> {
        let spec = &self.question.release.spec;
        let fit = checks.iter().all(|check| check.result == Verdict::Passed);
        // A name that the version does not list is the plan's to refuse.
        let migrations = plan::migrations(self.question).unwrap_or_default();
        if spec.rollback.rehearse == Rehearse::Never || !fit || migrations.is_empty() {
            return None;
        }
        let limit = spec.timeouts.pre_flight;
        let until = rehearsal::until(self.started_at.0, limit.get());
        let job = manifest::rehearsal(context, image, &migrations, found.facts.bytes, until);
        let over = self.started_at.0.checked_add(limit.signed()).is_ok_and(|end| self.question.now >= end);
        Some(rehearsal::judge(job, self.question.jobs.get(rehearsal::STEP), over, &limit.to_string()))
    }

    /// Whether the API server was asked about the plan, and nothing of its answer stops it.
    fn is_admitted(&self) -> bool {
        let rehearse = self.question.release.spec.rollback.rehearse;
        self.question.dry_run.is_some_and(|told| !told.iter().any(|check| rehearsal::stops(check, rehearse)))
    }

    fn checking(
        self,
        mut checks: Vec<CheckResult>,
        jobs: Vec<Job>,
        claim: Option<ClaimWish>,
        waiting: &[String],
    ) -> Answer {
        let limit = self.question.release.spec.timeouts.pre_flight;
        let until = self.started_at.0.checked_add(limit.signed()).unwrap_or(self.question.now);
        let what = if waiting.is_empty() { "starting the checks' jobs".to_owned() } else { waiting.join(", ") };
        if self.question.now >= until {
            checks.push(judge::failed("limit", format!("still waiting after {limit}: {what}")));
            return self.not_passed(checks);
        }
        let message = format!("{what}; limit {}", until.strftime("%Y-%m-%dT%H:%M:%SZ"));
        Answer::Checking { status: self.status(checks), jobs, claim, message }
    }

    fn not_passed(self, checks: Vec<CheckResult>) -> Answer {
        finished(self.status(checks), self.question.release, self.question.now)
    }

    fn planned(
        self,
        context: &JobContext,
        found: &judge::Inspected,
        digests: &BTreeMap<String, String>,
        mut checks: Vec<CheckResult>,
        config: Option<PlannedConfig>,
        estimates: Option<Estimates>,
    ) -> Answer {
        let rehearse = self.question.release.spec.rollback.rehearse;
        let plan = match plan::make(
            self.question,
            &self.wanted,
            &self.current,
            &self.name,
            context,
            found,
            digests,
            &checks,
            config,
            estimates,
        ) {
            Ok(plan) => plan,
            Err(error) => {
                checks.push(judge::failed("plan", error.to_string()));
                return self.not_passed(checks);
            }
        };
        let Some(dry_run) = self.question.dry_run else {
            return Answer::DryRun { status: self.status(checks), plan: Box::new(plan) };
        };
        checks.extend_from_slice(dry_run);
        if checks.iter().any(|check| rehearsal::stops(check, rehearse)) {
            return self.not_passed(checks);
        }
        let mut status = self.status(checks);
        status.finished_at = Some(Time(self.question.now));
        status.plan = Some(plan::summary(&plan, found, &self.wanted, self.question));
        Answer::Planned { status, plan: Box::new(plan) }
    }

    /// A Job's report when it has one; else it is missing, waited for, or a failed check.
    fn job<'j>(
        &'j self,
        job: Result<Job, RenderError>,
        step: &str,
        missing: &mut Vec<Job>,
        waiting: &mut Vec<String>,
        checks: &mut Vec<CheckResult>,
    ) -> Option<&'j crate::job::protocol::JobReport> {
        match judge::job(step, job, self.question.jobs.get(step)) {
            judge::JobAnswer::Create(job) => missing.push(*job),
            judge::JobAnswer::Wait(what) => waiting.push(what),
            judge::JobAnswer::Check(check) => checks.push(check),
            judge::JobAnswer::Report(report) => return Some(report),
        }
        None
    }

    /// Two probes a target, the new image and the prior one; the same image is looked at once.
    fn probes(&self) -> Vec<(&Wanted<'a>, Probe<'_>)> {
        let mut seen: Vec<(&str, bool)> = Vec::new();
        let mut probes = Vec::new();
        // The Server's candidate first: it is asked more than the others.
        let mut order: Vec<_> = self.wanted.iter().collect();
        order.sort_by_key(|wanted| !wanted.is_server);
        for wanted in &order {
            if !seen.contains(&(wanted.to_text.as_str(), true)) {
                seen.push((&wanted.to_text, true));
                probes.push((*wanted, Probe { name: wanted.name, image: &wanted.to_text, ask_cli: wanted.is_server }));
            }
        }
        for wanted in &order {
            if !seen.contains(&(wanted.prior_text.as_str(), false)) {
                seen.push((&wanted.prior_text, false));
                probes.push((*wanted, Probe { name: &wanted.prior_name, image: &wanted.prior_text, ask_cli: false }));
            }
        }
        probes
    }

    fn shape_of(&self, wanted: &Wanted<'_>) -> PodShape {
        // The Server's shape was proved when the context was made; another target's errors show in its own probe.
        wanted.shape(&self.question.release.spec).unwrap_or_default()
    }

    /// What all Jobs have in common, with what Inspect mounts; and why it does not mount more.
    fn context(&self) -> Result<(JobContext, Vec<String>), CheckResult> {
        let release = self.question.release;
        let spec = &release.spec;
        for wanted in &self.wanted {
            if let Err(error) = wanted.shape(spec) {
                return Err(judge::failed("jobs", format!("target {}: {error}", wanted.name)));
            }
        }
        let Some(server) = self.wanted.iter().find(|wanted| wanted.is_server) else {
            return Err(judge::failed("jobs", "no target has role: Server".to_owned()));
        };
        let shape =
            server.shape(spec).map_err(|error| judge::failed("jobs", format!("target {}: {error}", server.name)))?;
        let before = data::before(self.question, server, &shape).map_err(|why| judge::failed("data", why))?;
        let uid = release.uid().unwrap_or_default();
        let context = JobContext {
            namespace: release.namespace().unwrap_or_default(),
            release: release.name_any(),
            release_uid: uid.clone(),
            attempt: self.name.clone(),
            operator_version: env!("CARGO_PKG_VERSION").to_owned(),
            from_version: self.current.version.clone(),
            operator_image: self.question.images.operator.clone(),
            tools_image: None,
            shape,
            cli: spec.cli.command.clone(),
            storage: match spec.mode {
                Mode::Apply => Storage::of(&spec.snapshot, &release.name_any()),
                Mode::Plan => Storage::Nowhere,
            },
            encryption: spec.snapshot.encryption.clone(),
            storage_directory: directory(&release.name_any(), &uid, &self.name),
            portable: spec.snapshot.portable,
            retention: RetentionOrder {
                release_uid: uid.clone(),
                keep_last: u32::try_from(spec.snapshot.retention.keep_last).unwrap_or(1),
                max_age_seconds: spec.snapshot.retention.max_age.map(|age| age.as_secs()),
                needed: self.question.needed_attempts.to_vec(),
            },
            timeouts: spec.timeouts.clone(),
            identity: None,
            engine: Engine::default(),
            data: before.mounts,
            nodes: before.nodes,
        };
        Ok((context, before.unfit))
    }

    /// A claim that the release names must be there: the operator makes only its own.
    fn lost_storage(&self) -> Option<CheckResult> {
        let named = &self.question.release.spec.snapshot.storage.as_ref()?.persistent_volume_claim.as_ref()?.claim_name;
        let message = format!(
            "persistentvolumeclaim/{named} does not exist; create it, or correct \
             spec.snapshot.storage.persistentVolumeClaim.claimName"
        );
        self.question.adopted.storage.is_none().then(|| judge::failed("snapshot-claim", message))
    }

    fn claim(&self, database_bytes: i64) -> Option<ClaimWish> {
        let spec = &self.question.release.spec;
        if spec.mode == Mode::Plan || spec.snapshot.storage.is_some() {
            return None;
        }
        let name = spec.snapshot.claim_name(&self.question.release.name_any())?;
        let bytes = database_bytes.saturating_mul(spec.snapshot.capacity_factor.into()).max(MIN_CLAIM_BYTES);
        Some(ClaimWish { name, bytes })
    }
}

/// Directory of a run or attempt below the storage's root: several releases may share it.
pub fn directory(release: &str, release_uid: &str, name: &str) -> String {
    format!("{release}-{}/{name}", release_uid.get(..8).unwrap_or(release_uid))
}
