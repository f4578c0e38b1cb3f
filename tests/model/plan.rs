//! The plan of the modelled attempt, and the values that the machine sees, made from a state.

use std::collections::BTreeMap;

use jiff::Timestamp;
use memoria_operator::{
    api::{
        MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        release::{WorkerRef, WorkloadKind, WorkloadRef},
        upgrade::Category,
    },
    job::protocol::{BaselineFacts, Facts, JobReport, RestoreFacts, SnapshotFacts},
    upgrade::{
        Observed,
        seen::{
            ConfigSeen, JobSeen, JobState, KeptSeen, Orders as SeenOrders, OutputSeen, PodSeen, Refusal, Trouble,
            Workload,
        },
    },
};
use serde_json::json;

use crate::state::{Candidate, Image, Load, Orders, Pod, Report, Run, Settings, Step, Text, Wanted, Who};

pub const ATTEMPT: &str = "memoria-1";
pub const MANIFEST: &str = "manifest";
pub const BASELINE: &str = "baseline";
const OLD: &str = "r/server:0.9.0";
const NEW: &str = "r/server:1.0.0@sha256:new";
pub const LATER: &str = "r/server:1.1.0@sha256:later";

/// One target that is the Server, one worker, no flag, no checks: what the rules are about, and nothing else.
pub fn plan(automatic: bool, settings: bool) -> MemoriaUpgradeSpec {
    let jobs: Vec<_> = Step::ALL.iter().map(|step| json!({"step": step.name(), "manifest": {}})).collect();
    let mut plan = json!({
        "machineVersion": 1, "releaseName": "memoria", "releaseUid": "uid", "releaseGeneration": 2,
        "run": "memoria-pf-1", "planHash": "hash", "operatorVersion": "0", "from": "0.9.0", "to": "1.0.0",
        "targets": [{
            "name": "server", "role": "Server", "workload": {"kind": "Deployment", "name": "server"},
            "uid": "uid-server", "container": "server", "fromImage": OLD, "fromDigest": "r/server@sha256:old",
            "toImage": NEW, "replicas": 1, "worker": false, "candidate": {},
        }],
        "workers": [{"workload": {"kind": "Deployment", "name": "ingest"}, "uid": "uid-worker", "replicas": 1}],
        "database": {
            "engine": "Postgresql", "major": 15, "bytes": 1,
            "identity": {"systemIdentifier": "1", "name": "memoria", "oid": 1, "host": "db:5432"},
        },
        "storage": {"claimName": "snapshots", "directory": "d"},
        "migrations": ["add_consents"], "timeouts": {}, "jobs": jobs, "gateSeconds": 0, "checks": [],
        "rollback": {"automatic": automatic, "dataLossBudgetRows": 0},
    });
    if settings {
        plan["config"] = json!({
            "output": {"name": "settings", "key": "config.yaml"}, "outputUid": "uid-settings", "baseline": "packed",
            "priorSha256": text(Text::Prior), "newSha256": text(Text::New), "keptIn": "memoria-1-config", "report": {},
        });
    }
    serde_json::from_value(plan).expect("a plan")
}

/// Each value of the clock is later than every limit that began under the one before.
pub fn time(clock: u8) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + i64::from(clock) * 10_000_000).expect("a time")
}

pub fn image(image: Image) -> &'static str {
    match image {
        Image::Old => OLD,
        Image::New => NEW,
        Image::Later => LATER,
    }
}

pub fn image_of(name: &str) -> Image {
    [Image::Old, Image::New, Image::Later].into_iter().find(|known| image(*known) == name).expect("a known image")
}

pub fn text(text: Text) -> &'static str {
    match text {
        Text::Prior => "prior",
        Text::New => "new",
        Text::Theirs => "theirs",
    }
}

fn config(settings: Settings) -> ConfigSeen {
    let kept =
        KeptSeen { prior_sha256: Some(text(Text::Prior).to_owned()), new_sha256: Some(text(Text::New).to_owned()) };
    ConfigSeen {
        output: Some(OutputSeen {
            uid: "uid-settings".into(),
            resource_version: settings.version.to_string(),
            sha256: Some(text(settings.text).to_owned()),
            ..OutputSeen::default()
        }),
        overrides_sha256: None,
        kept: settings.kept.then_some(kept),
    }
}

pub fn reference(who: Who) -> WorkloadRef {
    let name = match who {
        Who::Server => "server",
        Who::Worker => "ingest",
    };
    WorkloadRef { kind: WorkloadKind::Deployment, name: name.to_owned() }
}

pub fn who(reference: impl Into<WorkerRef>) -> Who {
    match reference.into().name.as_str() {
        "server" => Who::Server,
        "ingest" => Who::Worker,
        other => panic!("{other} is not in the plan"),
    }
}

/// All that one decision rests on beside plan and journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    pub server: Load,
    pub worker: Load,
    pub candidate: Candidate,
    pub settings: Option<Settings>,
    /// Of each Job how it stands and its number.
    pub jobs: [(Run, u8); 7],
    pub orders: Orders,
    pub refusal: bool,
    pub clock: u8,
}

fn workload(load: Load, who: Who) -> Workload {
    let (count, ready) = match load.pod {
        Pod::None => (0, 0),
        Pod::Broken(_) => (1, 0),
        Pod::Up(_) => (1, 1),
    };
    let digest = |image| match image {
        Image::Old => "r/server@sha256:old",
        Image::New => "r/server@sha256:new",
        Image::Later => "r/server@sha256:later",
    };
    let pods = match load.pod {
        Pod::None => Vec::new(),
        Pod::Up(image) | Pod::Broken(image) => vec![PodSeen {
            name: "pod".into(),
            uid: "pod".into(),
            phase: "Running".into(),
            ready: ready == 1,
            deleting: !load.up,
            image_id: (who == Who::Server).then(|| digest(image).to_owned()),
            trouble: (ready == 0).then(|| Trouble { reason: "CrashLoopBackOff".into(), message: "exit code 1".into() }),
            ..PodSeen::default()
        }],
    };
    let current = matches!(load.pod, Pod::Up(image) | Pod::Broken(image) if image == load.image);
    Workload {
        uid: format!("uid-{}", if who == Who::Server { "server" } else { "worker" }),
        // Whether it is still this one when the write arrives is kept apart.
        resource_version: "1".into(),
        generation: load.generation.into(),
        observed_generation: load.generation.into(),
        replicas: load.up.into(),
        status_replicas: count,
        updated_replicas: if current { count } else { 0 },
        ready_replicas: ready,
        image: if who == Who::Server { image(load.image).into() } else { String::new() },
        attempt: load.marked.then(|| ATTEMPT.to_owned()),
        goes_back: load.back,
        prior_replicas: load.marked.then(|| "1".to_owned()),
        pods,
        ..Workload::default()
    }
}

fn report(ok: bool, reason: &str, category: Option<Category>, facts: Option<Facts>) -> JobReport {
    JobReport { v: 1, ok, reason: reason.into(), message: reason.into(), category, facts }
}

fn facts(step: Step) -> Option<Facts> {
    match step {
        Step::Snapshot => Some(Facts::Snapshot(SnapshotFacts {
            bytes: 1,
            tables: 1,
            rows: 1,
            manifest_sha256: MANIFEST.into(),
            data_digest: "digest".into(),
            restored_in_scratch: true,
            portable_directory: None,
            scratch_restore_millis: None,
        })),
        Step::Baseline => Some(Facts::Baseline(BaselineFacts { tables: 1, rows: 1, sha256: BASELINE.into() })),
        Step::Restore | Step::RestoreAccepted => {
            Some(Facts::Restore(RestoreFacts { restored: true, rows: 1, ..RestoreFacts::default() }))
        }
        _ => None,
    }
}

fn job(step: Step, run: Run, number: u8) -> Option<JobSeen> {
    let state = match run {
        Run::Absent => return None,
        Run::Pending | Run::Working | Run::Hung => JobState::Running { trouble: None },
        Run::Ended(kind) => {
            let failed = match step {
                Step::Migrate => ("MigrateFailed", Category::Candidate),
                Step::Bootstrap => ("CheckFailed", Category::Candidate),
                _ => ("Broken", Category::Environment),
            };
            let report = match kind {
                Report::Ok => Some(report(true, "Done", None, facts(step))),
                Report::Fails => Some(report(false, failed.0, Some(failed.1), None)),
                Report::Unknown => Some(report(false, "MigrateOutcomeUnknown", Some(Category::Environment), None)),
                Report::Changed => Some(report(false, "DataChangedSinceSnapshot", Some(Category::Conflict), None)),
                Report::Asks => Some(report(false, "DataLossOverBudget", Some(Category::Decision), None)),
                Report::Lost => None,
            };
            let succeeded = report.as_ref().is_some_and(|report| report.ok);
            JobState::Finished { succeeded, report, detail: "pod lost".into() }
        }
    };
    // The clean-up of ended Jobs touches nothing that a rule speaks of: they count as armed from the beginning.
    Some(JobSeen { uid: format!("{}-{number}", step.name()), state, image_id: None, ttl_armed: true })
}

fn candidate(candidate: Candidate) -> Option<PodSeen> {
    let pod =
        PodSeen { name: "candidate".into(), uid: "candidate".into(), phase: "Running".into(), ..PodSeen::default() };
    match candidate {
        Candidate::Absent => None,
        Candidate::Gated => Some(PodSeen { gated: true, phase: "Pending".into(), ..pod }),
        Candidate::Starting => Some(pod),
        Candidate::Ready => Some(PodSeen { ready: true, ..pod }),
        Candidate::Broken => Some(PodSeen { restarts: 3, ..pod }),
        Candidate::Ending => Some(PodSeen { deleting: true, ..pod }),
    }
}

/// As the controller's live reads would show it.
pub fn observed(seen: &Seen, journal: &MemoriaUpgradeStatus) -> Observed {
    let open = |ordered: bool, name: &str| {
        (ordered && journal.decisions.iter().all(|done| done.name != name)).then(|| name.to_owned())
    };
    Observed {
        targets: BTreeMap::from([("server".to_owned(), workload(seen.server, Who::Server))]),
        workers: BTreeMap::from([(reference(Who::Worker).into(), workload(seen.worker, Who::Worker))]),
        jobs: Step::ALL
            .into_iter()
            .zip(seen.jobs)
            .filter_map(|(step, (run, number))| Some((step.name().to_owned(), job(step, run, number)?)))
            .collect(),
        candidates: candidate(seen.candidate).map(|pod| ("server".to_owned(), pod)).into_iter().collect(),
        config: seen.settings.map(config),
        orders: SeenOrders {
            suspend: seen.orders.suspend,
            abort: open(seen.orders.abort, "abort"),
            rollback: open(seen.orders.rollback, "rollback"),
            accept_data_loss: open(seen.orders.accept, "accept"),
            retry: open(seen.orders.retry, "retry"),
            returned: seen.orders.wanted == Wanted::Former,
            ..SeenOrders::default()
        },
        refusal: seen.refusal.then(|| Refusal {
            category: Category::Environment,
            reason: "Refused".into(),
            message: "exceeded quota".into(),
        }),
        ..Observed::default()
    }
}
