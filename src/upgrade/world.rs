//! A small world for tests: it carries actions out as Kubernetes would, one change at a time, so that whole attempts
//! can be driven, interrupted anywhere, and compared.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    Action, Decision, Observed, decide,
    seen::{ConfigSeen, JobSeen, JobState, KeptSeen, OutputSeen, PodSeen, Switch, Trouble, Workload},
};
use crate::{
    api::{
        GoDuration, MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        release::{
            CheckResult, KeyRef, MaintenanceFlag, Role, Timeouts, Verdict, WorkerKind, WorkerRef, WorkloadKind,
            WorkloadRef,
        },
        settings::{ConfigReport, PlannedConfig},
        upgrade::{
            Category, DatabaseIdentity, Engine, PlannedDatabase, PlannedJob, PlannedRollback, PlannedStorage,
            PlannedTarget, PlannedWorker, TableLate,
        },
    },
    job::{
        manifest::check_of,
        protocol::{AtRiskFacts, BaselineFacts, CheckFacts, Facts, JobReport, RestoreFacts, SnapshotFacts},
    },
};

pub const ATTEMPT: &str = "memoria-1";
pub const OLD: &str = "r/server:0.9.0";
pub const NEW: &str = "r/server:1.0.0@sha256:new";
pub const PRIOR_CONFIG: &str = "prior-settings";
pub const NEW_CONFIG: &str = "new-settings";

/// What the next Job, pod or write shall do instead of going well.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The Job of this step reports this failure.
    JobFails { step: &'static str, category: Category, reason: &'static str },
    /// The Job of this step ends without a report.
    JobVanishes { step: &'static str },
    /// The first Jobs of this step, so many of them, end without a report.
    JobLost { step: &'static str, times: usize },
    /// The Job of this step never ends.
    JobHangs { step: &'static str },
    /// The candidate's image cannot be pulled.
    CandidatePull,
    /// The candidate dies again and again.
    CandidateCrashes,
    /// Another hand sets the server's image to the new one whenever it is the old one.
    ImageFlipped,
    /// Replicas of the server come back by another hand once they are at zero.
    ScaledUpByOther,
    /// Another hand puts the prior settings back whenever they are the new ones.
    ConfigReverted,
    /// Another hand writes settings of its own in that phase.
    ConfigChangedIn(&'static str),
}

pub struct World {
    pub plan: MemoriaUpgradeSpec,
    pub journal: MemoriaUpgradeStatus,
    pub seen: Observed,
    pub now: Timestamp,
    pub faults: Vec<Fault>,
    /// Every act that was carried out, in words.
    pub acts: Vec<String>,
    /// How many journals were stored.
    pub stored: usize,
    /// How long a count of rows at risk takes.
    pub count_millis: i64,
    /// How many Jobs of each step were made.
    made: BTreeMap<String, usize>,
}

pub fn workload_ref(name: &str) -> WorkloadRef {
    WorkloadRef { kind: WorkloadKind::Deployment, name: name.to_owned() }
}

fn pods(name: &str, count: i32) -> Vec<PodSeen> {
    (0..count)
        .map(|i| PodSeen {
            name: format!("{name}-{i}"),
            uid: format!("{name}-{i}"),
            phase: "Running".into(),
            ready: true,
            ..PodSeen::default()
        })
        .collect()
}

pub fn running(name: &str, count: i32, image: &str) -> Workload {
    Workload {
        uid: format!("uid-{name}"),
        resource_version: "1".into(),
        generation: 1,
        observed_generation: 1,
        replicas: count,
        status_replicas: count,
        updated_replicas: count,
        ready_replicas: count,
        image: image.into(),
        pods: pods(name, count),
        ..Workload::default()
    }
}

fn target(name: &str, role: Role, replicas: i32) -> PlannedTarget {
    PlannedTarget {
        name: name.into(),
        role,
        workload: workload_ref(name),
        uid: format!("uid-{name}"),
        container: name.into(),
        from_image: OLD.into(),
        from_digest: "r/server@sha256:old".into(),
        to_image: NEW.into(),
        replicas,
        autoscaler: None,
        worker: false,
        candidate: serde_json::json!({}),
    }
}

pub fn worker(workload: WorkerRef, replicas: i32) -> PlannedWorker {
    PlannedWorker {
        uid: format!("uid-{}", workload.name),
        workload,
        replicas,
        autoscaler: None,
        suspend: None,
        paused_replicas: None,
        scales: None,
    }
}

impl OutputSeen {
    /// Another content, as any writer leaves it.
    pub fn set(&mut self, sha256: &str) {
        self.sha256 = Some(sha256.into());
        let version: u64 = self.resource_version.parse().unwrap();
        self.resource_version = (version + 1).to_string();
    }
}

impl World {
    /// The same with settings to refresh.
    pub fn with_config(faults: impl IntoIterator<Item = Fault>) -> Self {
        let mut world = Self::new();
        world.faults.extend(faults);
        world.plan.config = Some(PlannedConfig {
            output: KeyRef { name: "memoria-config".into(), key: "config.yaml".into() },
            output_uid: "uid-config".into(),
            overrides: Some(KeyRef { name: "memoria-overrides".into(), key: "config.yaml".into() }),
            baseline: "packed".into(),
            prior_sha256: PRIOR_CONFIG.into(),
            overrides_sha256: Some("overrides".into()),
            new_sha256: NEW_CONFIG.into(),
            kept_in: "memoria-1-config".into(),
            report: ConfigReport::new(vec!["agents.max_parallel".into()], vec!["verbose".into()], Vec::new()),
        });
        world.seen.config = Some(ConfigSeen {
            output: Some(OutputSeen {
                uid: "uid-config".into(),
                resource_version: "7".into(),
                sha256: Some(PRIOR_CONFIG.into()),
                ..OutputSeen::default()
            }),
            overrides_sha256: Some("overrides".into()),
            kept: None,
        });
        world
    }

    /// Hash of what Memoria would read now.
    pub fn config(&mut self) -> &mut OutputSeen {
        self.seen.config.as_mut().unwrap().output.as_mut().unwrap()
    }

    /// A server with two replicas, a dashboard with one, a worker with three, a flag, and all Jobs.
    pub fn new() -> Self {
        let job = |step: &str| PlannedJob { step: step.into(), check: None, manifest: serde_json::json!({}) };
        let plan = MemoriaUpgradeSpec {
            machine_version: 1,
            release_name: "memoria".into(),
            release_uid: "uid".into(),
            release_generation: 2,
            run: "memoria-pf-1".into(),
            plan_hash: "hash".into(),
            operator_version: "0".into(),
            from: "0.9.0".into(),
            to: "1.0.0".into(),
            targets: vec![target("server", Role::Server, 2), target("dashboard", Role::Dashboard, 1)],
            workers: vec![worker(workload_ref("ingest").into(), 3)],
            maintenance_flag: Some(MaintenanceFlag {
                config_map_key_ref: KeyRef { name: "flags".into(), key: "maintenance".into() },
                on_value: "true".into(),
                off_value: "false".into(),
            }),
            database: PlannedDatabase {
                engine: Engine::Postgresql,
                major: 15,
                identity: DatabaseIdentity {
                    system_identifier: "1".into(),
                    name: "memoria".into(),
                    oid: 1,
                    host: "db:5432".into(),
                },
                bytes: 1,
            },
            storage: PlannedStorage {
                claim_name: Some("memoria-snapshots".into()),
                url: None,
                directory: "d".into(),
                encrypted: false,
            },
            migrations: vec!["add_consents".into()],
            config: None,
            timeouts: Timeouts::default(),
            jobs: [
                "fence",
                "snapshot",
                "migrate",
                "baseline",
                "gate",
                "bootstrap",
                "parity",
                "verify",
                "restore",
                "restore-accepted",
            ]
            .map(job)
            .to_vec(),
            gate_seconds: 600,
            candidate_seconds: 0,
            checks: Vec::new(),
            rollback: PlannedRollback { automatic: true, ..PlannedRollback::default() },
            estimates: None,
        };
        let seen = Observed {
            targets: BTreeMap::from([
                ("server".into(), running("server", 2, OLD)),
                ("dashboard".into(), running("dashboard", 1, OLD)),
            ]),
            workers: BTreeMap::from([(workload_ref("ingest").into(), running("ingest", 3, ""))]),
            flag: Some("false".into()),
            ..Observed::default()
        };
        let now = "2026-11-22T01:00:00Z".parse().unwrap();
        Self {
            plan,
            journal: Default::default(),
            seen,
            now,
            faults: vec![],
            acts: vec![],
            stored: 0,
            count_millis: 4_000,
            made: BTreeMap::new(),
        }
    }

    /// The same with rows at risk to count.
    pub fn counting() -> Self {
        let mut world = Self::new();
        let manifest = serde_json::json!({});
        world.plan.jobs.push(PlannedJob { step: "at-risk".into(), check: None, manifest });
        world
    }

    pub fn with(fault: Fault) -> Self {
        let mut world = Self::new();
        world.faults.push(fault);
        world
    }

    pub fn decide(&self) -> Decision {
        let mut seen = self.seen.clone();
        // As observed: an order that was acted on is none any more.
        let orders = &mut seen.orders;
        for order in [&mut orders.abort, &mut orders.rollback, &mut orders.accept_data_loss, &mut orders.retry] {
            if order.as_ref().is_some_and(|name| self.journal.decisions.iter().any(|done| done.name == *name)) {
                *order = None;
            }
        }
        decide(ATTEMPT, "ns", &self.plan, &self.journal, &seen, self.now)
    }

    /// One reconcile: store the journal if it changed, act, let the world move on by a second.
    /// `lose` drops the actions from that one on, as a crash would; answers whether anything was left to do.
    pub fn turn(&mut self, lose: Option<usize>) -> bool {
        let decision = self.decide();
        let changed = decision.journal != self.journal || !decision.actions.is_empty();
        if decision.journal != self.journal {
            self.journal = decision.journal;
            self.stored += 1;
        }
        for action in decision.actions.iter().take(lose.unwrap_or(usize::MAX)) {
            self.act(action);
        }
        let moved = self.pass_time();
        self.now = self.now.checked_add(GoDuration::from_secs(1).signed()).unwrap();
        changed || moved
    }

    /// Runs until nothing moves; then jumps to the limit, if there is one, as a hung world would.
    pub fn run(&mut self) {
        for _ in 0..2000 {
            if self.turn(None) {
                continue;
            }
            let next = self.decide();
            match next.wake {
                // What was awaited came about with the second that the turn took.
                _ if next.journal != self.journal || !next.actions.is_empty() => {}
                Some(wake) if wake > self.now => self.now = wake,
                _ => return,
            }
        }
        panic!("the attempt does not settle: {:?}", self.journal.message);
    }

    fn fault(&self, wanted: impl Fn(&Fault) -> bool) -> bool {
        self.faults.iter().any(wanted)
    }

    pub fn workload(&mut self, reference: impl Into<WorkerRef>) -> &mut Workload {
        let reference = reference.into();
        match self.seen.targets.get_mut(&reference.name) {
            Some(target) => target,
            None => self.seen.workers.get_mut(&reference).unwrap(),
        }
    }

    fn act(&mut self, action: &Action) {
        self.acts.push(match action {
            Action::Mark { workload, .. } => format!("mark {workload}"),
            Action::Unmark { workload, .. } => format!("unmark {workload}"),
            Action::Scale { workload, replicas, .. } => format!("scale {workload} {replicas}"),
            Action::Suspend { worker, suspend, .. } => format!("suspend {worker} {suspend}"),
            Action::PauseAutoscaler { worker, replicas, .. } => {
                format!("pause {worker} {}", replicas.as_deref().unwrap_or("never"))
            }
            Action::SetImage { workload, image, .. } => format!("image {workload} {image}"),
            Action::SetFlag { value } => format!("flag {value}"),
            Action::KeepConfig => "keep config".to_owned(),
            Action::SetConfig { prior, .. } => format!("config {}", if *prior { "prior" } else { "new" }),
            Action::CreateJob { step, .. } => format!("job {step}"),
            Action::DeleteJob { step, .. } => format!("delete job {step}"),
            Action::ArmJobTtl { step, .. } => format!("arm {step}"),
            Action::CreateCandidate { target } => format!("candidate {target}"),
            Action::AdmitCandidate { target, .. } => format!("admit candidate {target}"),
            Action::DeleteCandidate { target, .. } => format!("delete candidate {target}"),
        });
        match action {
            Action::Mark { workload, prior, back, .. } => {
                let seen = self.workload(workload);
                seen.generation += annotated(workload);
                seen.goes_back = *back;
                seen.attempt = Some(ATTEMPT.into());
                seen.prior_replicas = Some(format!("{prior:?}"));
            }
            Action::Unmark { workload, .. } => {
                let seen = self.workload(workload);
                seen.generation += annotated(workload);
                seen.attempt = None;
                seen.goes_back = false;
                seen.prior_replicas = None;
            }
            Action::Scale { workload, replicas, precondition } => {
                let seen = self.workload(workload);
                assert_eq!(precondition.resource_version, seen.resource_version, "a stale write");
                seen.replicas = *replicas;
                seen.generation += 1;
            }
            Action::Suspend { worker, suspend, precondition } => {
                let seen = self.workload(worker);
                assert_eq!(precondition.resource_version, seen.resource_version, "a stale write");
                let Switch::Suspend { suspended, .. } = &mut seen.switch else { panic!("{worker} has no suspend") };
                *suspended = *suspend;
                seen.generation += 1;
            }
            Action::PauseAutoscaler { worker, replicas, precondition } => {
                let seen = self.workload(worker);
                assert_eq!(precondition.resource_version, seen.resource_version, "a stale write");
                let Switch::Paused { replicas: now } = &mut seen.switch else { panic!("{worker} has no pause") };
                now.clone_from(replicas);
                seen.generation += 1;
            }
            Action::SetImage { workload, image, .. } => {
                let seen = self.workload(workload);
                assert!(seen.is_gone(), "the image moved while pods ran");
                seen.image.clone_from(image);
                seen.generation += 1;
            }
            Action::SetFlag { value } => self.seen.flag = Some(value.clone()),
            Action::KeepConfig => {
                let planned = self.plan.config.clone().unwrap();
                let config = self.seen.config.as_mut().unwrap();
                assert_eq!(config.output.as_ref().unwrap().sha256.as_deref(), Some(PRIOR_CONFIG));
                assert!(config.kept.is_none(), "kept twice");
                config.kept =
                    Some(KeptSeen { prior_sha256: Some(planned.prior_sha256), new_sha256: Some(planned.new_sha256) });
            }
            Action::SetConfig { precondition, prior } => {
                let pods = self.seen.targets.values().map(|target| target.pods.len()).sum::<usize>();
                assert_eq!(pods + self.seen.candidates.len(), 0, "the settings moved while pods ran");
                let config = self.seen.config.as_mut().unwrap();
                assert!(config.kept.is_some(), "nothing was kept");
                let output = config.output.as_mut().unwrap();
                assert_eq!(precondition.resource_version, output.resource_version, "a stale write");
                output.set(if *prior { PRIOR_CONFIG } else { NEW_CONFIG });
            }
            Action::CreateJob { step, .. } => {
                let made = self.made.entry(step.clone()).or_default();
                *made += 1;
                let job = JobSeen {
                    uid: format!("{step}-{made}"),
                    state: JobState::Running { trouble: None },
                    image_id: None,
                    ttl_armed: step == "at-risk",
                };
                assert!(self.seen.jobs.insert(step.clone(), job).is_none(), "job {step} ran twice");
            }
            Action::DeleteJob { step, .. } => {
                self.seen.jobs.remove(step);
            }
            Action::ArmJobTtl { step, .. } => self.seen.jobs.get_mut(step).unwrap().ttl_armed = true,
            Action::CreateCandidate { target } => {
                let pod = PodSeen {
                    name: format!("c-{target}"),
                    uid: "u".into(),
                    gated: true,
                    ip: Some([10, 0, 0, 9].into()),
                    ..PodSeen::default()
                };
                assert!(self.seen.candidates.insert(target.clone(), pod).is_none());
            }
            Action::AdmitCandidate { target, .. } => self.seen.candidates.get_mut(target).unwrap().gated = false,
            Action::DeleteCandidate { target, .. } => {
                self.seen.candidates.get_mut(target).unwrap().deleting = true;
            }
        }
    }

    /// Controllers, kubelets and Jobs go one step; answers whether anything changed.
    fn pass_time(&mut self) -> bool {
        let before = self.seen.clone();
        let zeroed = self.seen.jobs.contains_key("snapshot");
        if self.fault(|f| *f == Fault::ScaledUpByOther) && zeroed {
            self.faults.retain(|f| *f != Fault::ScaledUpByOther);
            let server = self.workload(workload_ref("server"));
            server.replicas = 1;
            server.generation += 1;
        }
        if self.fault(|f| *f == Fault::ImageFlipped) && self.acts.iter().any(|act| act.ends_with(OLD)) {
            let server = self.workload(workload_ref("server"));
            if server.image == OLD {
                server.image = NEW.into();
                server.generation += 1;
            }
        }
        self.change_config();
        for (name, seen) in &mut self.seen.targets {
            settle(name, seen);
        }
        for (reference, seen) in &mut self.seen.workers {
            settle(&reference.name, seen);
        }
        let (pull, crash) = (self.fault(|f| *f == Fault::CandidatePull), self.fault(|f| *f == Fault::CandidateCrashes));
        self.seen.candidates.retain(|_, pod| !pod.deleting);
        for pod in self.seen.candidates.values_mut() {
            let trouble = |reason: &str| Some(Trouble { reason: reason.into(), message: "m".into() });
            match (pull, crash) {
                (true, _) => pod.trouble = trouble("ImagePullBackOff"),
                (_, true) => pod.restarts = (pod.restarts + 1).min(5),
                _ => pod.ready = true,
            }
        }
        let steps: Vec<String> = self.seen.jobs.keys().cloned().collect();
        for step in steps {
            if self.fault(|f| matches!(f, Fault::JobHangs { step: hung } if *hung == step)) {
                continue;
            }
            let state = self.finished(&step, self.made[&step]);
            let job = self.seen.jobs.get_mut(&step).unwrap();
            if matches!(job.state, JobState::Running { .. }) {
                job.state = state;
            }
        }
        before != self.seen
    }

    fn change_config(&mut self) {
        if self.fault(|f| *f == Fault::ConfigReverted) && self.config().sha256.as_deref() == Some(NEW_CONFIG) {
            self.config().set(PRIOR_CONFIG);
        }
        let phase = self.journal.phase.clone().unwrap_or_default();
        if self.fault(|f| matches!(f, Fault::ConfigChangedIn(there) if *there == phase)) {
            self.faults.retain(|f| !matches!(f, Fault::ConfigChangedIn(_)));
            self.config().set("theirs");
        }
    }

    fn finished(&self, step: &str, made: usize) -> JobState {
        let report = |ok: bool, reason: &str, category, facts| JobReport {
            v: 1,
            ok,
            reason: reason.into(),
            message: format!("{step}: {reason}"),
            category,
            facts,
        };
        for fault in &self.faults {
            match fault {
                Fault::JobFails { step: failing, category, reason } if *failing == step => {
                    let verdict = match *reason {
                        "CheckInconclusive" => Verdict::Inconclusive,
                        _ => Verdict::Failed,
                    };
                    let late = || (*reason == "DataLossOverBudget").then(late_facts);
                    let report = Some(report(false, reason, Some(*category), checked(step, verdict).or_else(late)));
                    return JobState::Finished { succeeded: false, report, detail: "exit 1".into() };
                }
                Fault::JobLost { step: lost, times } if *lost == step && made <= *times => {
                    return JobState::Finished { succeeded: false, report: None, detail: "pod lost".into() };
                }
                Fault::JobVanishes { step: lost } if *lost == step => {
                    return JobState::Finished { succeeded: false, report: None, detail: "pod lost".into() };
                }
                _ => {}
            }
        }
        let facts = match step {
            "snapshot" => Some(Facts::Snapshot(SnapshotFacts {
                bytes: 1,
                tables: 17,
                rows: 44_000,
                manifest_sha256: "m".into(),
                data_digest: "d".into(),
                restored_in_scratch: true,
                portable_directory: None,
                scratch_restore_millis: Some(20_500),
            })),
            "baseline" => Some(Facts::Baseline(BaselineFacts { tables: 17, rows: 44_000, sha256: "b".into() })),
            "at-risk" => Some(Facts::AtRisk(AtRiskFacts {
                read_at: self.now,
                millis: self.count_millis,
                inserted: i64::try_from(made).unwrap(),
                updated: 2,
                deleted: 0,
                tables: vec![TableLate { table: "agents".into(), inserted: 1, updated: 2, ..TableLate::default() }],
            })),
            "restore" | "restore-accepted" => Some(Facts::Restore(RestoreFacts {
                restored: true,
                rows: 44_000,
                data_digest: "d".into(),
                ..RestoreFacts::default()
            })),
            _ => checked(step, Verdict::Passed),
        };
        let report = Some(report(true, "Done", None, facts));
        JobState::Finished { succeeded: true, report, detail: "Complete".into() }
    }
}

/// What a restore says that found late writes in two tables, and could carry forward those of one.
pub fn late_facts() -> Facts {
    let table = |table: &str, inserted, carried, not_carried: Option<&str>| TableLate {
        table: table.to_owned(),
        inserted,
        carried,
        not_carried: not_carried.map(str::to_owned),
        ..TableLate::default()
    };
    Facts::Restore(RestoreFacts {
        failed_state: Some("memoria-0b8ff1f4/memoria-1/failed".into()),
        late_inserted: 5,
        late_carried: 3,
        late_tables: vec![table("audits", 3, 3, None), table("records", 2, 0, Some("it has no primary key"))],
        ..RestoreFacts::default()
    })
}

/// What is said of a check that runs a CronJob's template.
fn checked(step: &str, result: Verdict) -> Option<Facts> {
    let name = check_of(step)?.to_owned();
    let checks = vec![CheckResult { name, result, message: format!("{step} is {result:?}") }];
    Some(Facts::Check(CheckFacts { checks, baselines: BTreeMap::new() }))
}

fn settle(name: &str, seen: &mut Workload) {
    seen.observed_generation = seen.generation;
    seen.resource_version = format!("{}-{}", seen.generation, seen.attempt.is_some());
    match &seen.switch {
        Switch::Replicas => {}
        // What a Job had going ends with its suspension; Jobs of a CronJob end in their own time, here at once.
        Switch::Suspend { suspended, finished } => {
            seen.unfinished.retain(|job| job.starts_with("long"));
            seen.replicas = i32::from(!suspended && !finished);
        }
        Switch::Paused { replicas } => seen.replicas = replicas.as_ref().map_or(4, |count| count.parse().unwrap()),
    }
    seen.pods = pods(name, seen.replicas);
    seen.status_replicas = seen.replicas;
    seen.updated_replicas = seen.replicas;
    seen.ready_replicas = seen.replicas;
}

/// What changed annotations add to a workload's generation.
fn annotated(workload: &WorkerRef) -> i64 {
    i64::from(workload.kind == WorkerKind::Deployment)
}
