//! Pre-flight from a spec and two Deployments to a plan, and every reason not to make one.

mod rehearsal;
mod settings;
mod sqlite;
mod storage;
mod templates;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
};
use serde_json::{Value, json};

use super::{Answer, OperatorImages, Question, digest_plan, preflight, run_name};
use crate::{
    api::{
        MemoriaRelease,
        conditions::reason,
        marks,
        release::{
            CheckResult, Current, CurrentImage, MemoriaReleaseStatus, PreFlightStatus, RejectedImages, Role, Verdict,
            WorkerKind, WorkerRef,
        },
        upgrade::{Category, DatabaseIdentity, Engine},
    },
    cluster::{
        adopt::{Adopted, AdoptedTarget, AdoptedWorkload, Claim, StorageFound},
        settings::ConfigFound,
    },
    job::protocol::{
        DefaultsFacts, Facts, InspectFacts, JobOrder, JobReport, ORDER_ENV, ProbeFacts, ReferenceFacts, ReferenceOrder,
        RetentionOrder,
    },
    upgrade::{
        image::digest_of,
        seen::{JobSeen, JobState, PodSeen, Trouble, Workload},
        settings::sha256,
    },
};

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn found(name: &str, container: &str, image: &str) -> AdoptedWorkload {
    let template: PodTemplateSpec = serde_json::from_value(json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{
            "name": container, "image": image,
            "env": [{"name": "MEMORIA_DATABASE__CONNECTION_STRING",
                     "valueFrom": {"secretKeyRef": {"name": "memoria-db", "key": "url"}}}],
        }]},
    }))
    .unwrap();
    AdoptedWorkload {
        workload: WorkerRef { kind: WorkerKind::Deployment, name: name.into() },
        seen: Workload {
            uid: format!("uid-{name}"),
            replicas: 2,
            image: image.into(),
            pods: vec![PodSeen { image_id: Some(format!("r/{name}@sha256:{}", "0".repeat(64))), ..PodSeen::default() }],
            ..Workload::default()
        },
        template,
        selector: LabelSelector {
            match_labels: Some([("app".into(), name.into())].into()),
            ..LabelSelector::default()
        },
        claim_templates: Vec::new(),
        claim: Claim::None,
        image_managers: Vec::new(),
        replica_managers: Vec::new(),
        kept_by: Vec::new(),
        autoscaler: None,
        scales: None,
        meta: Default::default(),
    }
}

struct Case {
    release: MemoriaRelease,
    adopted: Adopted,
    jobs: BTreeMap<String, JobSeen>,
    images: OperatorImages,
    known: Vec<String>,
    acknowledged: Vec<String>,
    dry_run: Option<Vec<CheckResult>>,
    now: Timestamp,
}

fn case() -> Case {
    let release = serde_json::from_value(json!({
        "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaRelease",
        "metadata": {"name": "memoria", "namespace": "ns", "uid": "12345678-aaaa", "generation": 2},
        "spec": {
            "version": "1.0.0",
            "targets": [
                {"name": "server", "role": "Server", "workloadRef": {"kind": "Deployment", "name": "memoria-server"}},
                {"name": "worker", "workloadRef": {"kind": "Deployment", "name": "memoria-worker"}},
            ],
            "ingestion": {"workers": [{"kind": "Deployment", "name": "memoria-worker"}]},
            // The tests of rehearsals wish for them.
            "rollback": {"rehearse": "Never"},
        },
    }))
    .unwrap();
    let target = |name: &str, role, workload: &str| AdoptedTarget {
        name: name.into(),
        role,
        container: name.into(),
        container_inferred: true,
        workload: found(workload, name, "r/server:0.9.0"),
    };
    Case {
        release,
        adopted: Adopted {
            targets: vec![
                target("server", Role::Server, "memoria-server"),
                target("worker", Role::Other, "memoria-worker"),
            ],
            workers: vec![found("memoria-worker", "worker", "")],
            ..Adopted::default()
        },
        jobs: BTreeMap::new(),
        images: OperatorImages { operator: "r/operator:1".into(), tools: BTreeMap::from([(15, "r/tools:15".into())]) },
        known: Vec::new(),
        acknowledged: Vec::new(),
        dry_run: None,
        now: "2026-11-22T01:00:00Z".parse().unwrap(),
    }
}

impl Case {
    fn ask(&self) -> Answer {
        preflight(&Question {
            release: &self.release,
            adopted: &self.adopted,
            jobs: &self.jobs,
            images: &self.images,
            attempt: "memoria-1",
            known_attempts: &self.known,
            needed_attempts: &self.known,
            acknowledged: &self.acknowledged,
            dry_run: self.dry_run.as_deref(),
            now: self.now,
        })
    }

    fn spec(&mut self, patch: Value) {
        let mut whole = serde_json::to_value(&self.release).unwrap();
        for (key, value) in patch.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        self.release = serde_json::from_value(whole).unwrap();
    }

    fn report(&mut self, step: &str, facts: Facts, image_id: Option<String>) {
        let report = JobReport {
            v: 1,
            ok: true,
            reason: "Done".into(),
            message: step.into(),
            category: None,
            facts: Some(facts),
        };
        let state = JobState::Finished { succeeded: true, report: Some(report), detail: "Complete".into() };
        self.jobs.insert(step.into(), JobSeen { uid: step.into(), state, image_id, ttl_armed: false });
    }

    fn inspected(&mut self, change: impl Fn(&mut InspectFacts)) {
        let mut facts = InspectFacts {
            major: 15,
            server_version: "15.18".into(),
            identity: DatabaseIdentity {
                system_identifier: "7".into(),
                name: "memoria".into(),
                oid: 16384,
                host: "db:5432".into(),
            },
            bytes: 64 << 20,
            tables: 17,
            findings: Vec::new(),
            unfinished: Vec::new(),
            engine: Engine::Postgresql,
            data_volume: None,
            path: None,
        };
        change(&mut facts);
        self.report("inspect", Facts::Inspect(facts), None);
    }

    fn probed(&mut self) {
        let facts = |cli: bool| {
            Facts::Probe(ProbeFacts {
                uid: 1000,
                gid: 1000,
                cli: cli.then_some(true),
                migrations: if cli { vec!["add_a".into(), "add_b".into()] } else { Vec::new() },
                runs_all: false,
            })
        };
        self.report("probe-server", facts(true), Some(format!("r/server@{DIGEST}")));
        let prior = format!("r/server@sha256:{}", "0".repeat(64));
        self.report("probe-server-prior", facts(false), Some(prior));
    }

    fn referenced(&mut self) {
        let facts = ReferenceFacts {
            built_on: "postgresql 15".into(),
            schema_sha256: "s".into(),
            tables: 18,
            free_bytes: 1 << 40,
            removed: Vec::new(),
        };
        self.report("reference", Facts::Reference(facts), None);
    }
}

fn refused(answer: Answer) -> (&'static str, String) {
    match answer {
        Answer::Refused { reason, message, .. } | Answer::NotPassed { reason, message, .. } => (reason, message),
        other => panic!("not refused: {other:?}"),
    }
}

fn names(jobs: &[k8s_openapi::api::batch::v1::Job]) -> Vec<String> {
    jobs.iter().map(|job| job.metadata.name.clone().unwrap()).collect()
}

#[test]
fn the_running_version_is_adopted_without_a_job() {
    let mut case = case();
    case.spec(json!({"version": "0.9.0"}));
    let Answer::Settled(current) = case.ask() else { panic!() };
    assert_eq!((current.version.as_str(), current.images.len()), ("0.9.0", 2));
    assert_eq!(current.images[0].digest, Some(format!("sha256:{}", "0".repeat(64))));
}

#[test]
fn the_first_look_asks_for_the_database_and_each_image_once() {
    let case = case();
    let Answer::Checking { jobs, claim, .. } = case.ask() else { panic!() };
    let run = run_name(&case.release);
    // Server and worker carry the same images: one probe for the new one, one for the prior.
    let expected = ["inspect", "probe-server", "probe-server-prior"].map(|step| format!("{run}-{step}"));
    assert_eq!(names(&jobs), expected);
    assert_eq!(claim, None);
}

#[test]
fn the_reference_is_built_from_the_pinned_image_once_all_have_reported() {
    let mut case = case();
    case.inspected(|_| {});
    case.probed();
    let Answer::Checking { jobs, claim, .. } = case.ask() else { panic!() };
    let pod = jobs[0].spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    assert_eq!(pod.containers[0].image.as_deref(), Some(format!("r/server:1.0.0@{DIGEST}").as_str()));
    assert_eq!(claim.unwrap().name, "memoria-snapshots");
}

#[test]
fn images_that_were_taken_back_for_their_own_fault_wait_for_a_person() {
    let mut case = case();
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    let Answer::DryRun { plan, .. } = case.ask() else { panic!() };
    let mut digests: Vec<_> = plan.targets.iter().filter_map(|t| digest_of(&t.to_image)).map(str::to_owned).collect();
    digests.sort();
    let rejected = RejectedImages {
        attempt: "memoria-7".into(),
        version: "1.0.0".into(),
        digests,
        reason: "MigrateFailed".into(),
        at: Time(case.now),
    };
    case.release.status.get_or_insert_default().rejected = vec![rejected];
    let Answer::NotPassed { reason, message, .. } = case.ask() else { panic!() };
    assert_eq!(reason, "PreFlightFailed");
    for word in ["memoria-7", "MigrateFailed", "AcknowledgeRejection", "kubectl -n"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    case.acknowledged = vec!["memoria-7".into()];
    assert!(matches!(case.ask(), Answer::DryRun { .. }));
    // One other image is another release.
    case.acknowledged.clear();
    case.release.status.as_mut().unwrap().rejected[0].digests[0] = format!("sha256:{}", "9".repeat(64));
    assert!(matches!(case.ask(), Answer::DryRun { .. }));
}

#[test]
fn a_plan_pins_images_by_digest_and_its_hash_covers_all() {
    let mut case = case();
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    let Answer::DryRun { plan, .. } = case.ask() else { panic!("{:?}", case.ask()) };
    case.dry_run = Some(Vec::new());
    let Answer::Planned { plan: again, status } = case.ask() else { panic!() };
    assert_eq!(plan, again);
    assert_eq!(plan.targets[0].to_image, format!("r/server:1.0.0@{DIGEST}"));
    assert_eq!(plan.targets[0].from_digest, format!("r/server@sha256:{}", "0".repeat(64)));
    assert_eq!(plan.migrations, ["add_a", "add_b"]);
    assert!(plan.targets[1].worker && plan.workers.is_empty(), "a target that is a worker is listed once");
    let steps: Vec<_> = plan.jobs.iter().map(|job| job.step.as_str()).collect();
    assert_eq!(
        steps,
        ["fence", "snapshot", "migrate", "baseline", "at-risk", "restore", "restore-accepted", "bootstrap", "parity"]
    );
    assert!(status.plan.unwrap().inferred.iter().any(|text| text == "targets[server].container: server"));
    assert_eq!(plan.plan_hash, digest_plan(&plan).unwrap());
    let mut other = (*plan).clone();
    other.timeouts.migrate = crate::api::GoDuration::from_mins(1);
    assert_ne!(plan.plan_hash, digest_plan(&other).unwrap());
}

const OVERRIDES: &str = "memory: {team_mode: true, gone: 1}\n";
const PRIOR_DEFAULTS: &str = "agents: {max_parallel: 4}\nmemory: {team_mode: false}\n";
const DEFAULTS: &str = "agents: {max_parallel: 8}\nmemory: {team_mode: false}\n";

impl Case {
    /// The release has settings, and a target mounts them.
    fn configured(&mut self, output: &str) {
        let place = |name: &str| json!({"configMapKeyRef": {"name": name, "key": "config.yaml"}});
        self.spec(json!({"config": {"output": place("memoria-config"), "overrides": place("memoria-overrides")}}));
        self.adopted.config = Some(ConfigFound {
            output_uid: "uid-config".into(),
            output: output.into(),
            overrides: Some(OVERRIDES.into()),
        });
        let volume = json!([{"name": "config", "configMap": {"name": "memoria-config"}}]);
        let template = &mut self.adopted.targets[0].workload.template;
        template.spec.as_mut().unwrap().volumes = serde_json::from_value(volume).unwrap();
    }

    fn told(&mut self, step: &str, text: &str) {
        let facts = DefaultsFacts { path: "config.example.yaml".into(), packed: memoria_runner::pack::pack(text) };
        self.report(step, Facts::Defaults(facts), None);
    }
}

#[test]
fn tables_to_carry_forward_are_looked_for_and_pinned() {
    let ordered = |job: &Value| -> JobOrder {
        let env = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let order = env.iter().find(|entry| entry["name"] == ORDER_ENV).unwrap();
        serde_json::from_str(order["value"].as_str().unwrap()).unwrap()
    };
    let planned = |tables: &[&str]| {
        let mut case = case();
        case.spec(json!({"rollback": {"rehearse": "Never", "carryForward": tables}}));
        let Answer::Checking { jobs, .. } = case.ask() else { panic!("{:?}", case.ask()) };
        let inspect = jobs.iter().find(|job| job.metadata.name.as_deref().unwrap().ends_with("-inspect")).unwrap();
        let JobOrder::Inspect(order) = ordered(&serde_json::to_value(inspect).unwrap()) else {
            panic!("another order")
        };
        assert_eq!(order.carry_forward, tables);
        let finding = CheckResult { name: "CarryForward".into(), result: Verdict::Failed, message: "no audits".into() };
        case.inspected(|facts| facts.findings = vec![finding.clone()]);
        case.probed();
        assert!(refused(case.ask()).1.contains("CarryForward: no audits"));
        case.inspected(|_| {});
        assert!(matches!(case.ask(), Answer::Checking { .. }));
        case.referenced();
        case.dry_run = Some(Vec::new());
        let Answer::Planned { plan, .. } = case.ask() else { panic!("{:?}", case.ask()) };
        assert_eq!(plan.rollback.carry_forward, tables);
        let restores = plan.jobs.iter().filter(|job| job.step.starts_with("restore"));
        for job in restores.clone() {
            let JobOrder::Restore(order) = ordered(&job.manifest) else { panic!("another order") };
            assert_eq!(order.carry_forward, tables, "{}", job.step);
        }
        assert_eq!(restores.count(), 2);
        plan.plan_hash
    };
    assert_ne!(planned(&["audits"]), planned(&["public.records", "audits"]));
}

#[test]
fn a_refused_dry_run_is_a_failed_check() {
    let mut case = case();
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    let message = "pods \"x\" is forbidden: exceeded quota".to_owned();
    case.dry_run = Some(vec![CheckResult { name: "admit-job-migrate".into(), result: Verdict::Failed, message }]);
    let (reason, message) = refused(case.ask());
    assert_eq!(reason, reason::PREFLIGHT_FAILED);
    assert!(message.contains("admit-job-migrate: pods \"x\" is forbidden"));
}

#[test]
fn a_run_whose_pods_would_not_be_admitted_ends_before_a_job_is_made() {
    let case = case();
    let message = "could not create pod/x: exceeded quota: none; raise the ResourceQuota".to_owned();
    let check = CheckResult { name: "admit-job-inspect".into(), result: Verdict::Failed, message };
    let Answer::NotPassed { status, reason, message } = case.ask().not_admitted(check, &case.release, case.now) else {
        panic!("the run goes on")
    };
    assert_eq!((reason, status.finished_at), (reason::PREFLIGHT_FAILED, Some(Time(case.now))));
    assert!(message.starts_with("admit-job-inspect: could not create pod/x"), "{message}");
}

#[test]
fn what_cannot_be_upgraded_is_refused_with_the_fix() {
    type Change = fn(&mut Case);
    let cases: [(Change, &str, &str); 9] = [
        (|c| c.spec(json!({"version": "0.8.0"})), reason::DOWNGRADE_UNSUPPORTED, "set spec.version back to 0.9.0"),
        (|c| c.spec(json!({"version": "next"})), reason::INVALID_SPEC, "spec.version: \"next\" is no version"),
        (
            |c| c.adopted.targets[0].workload.seen.image = "r/server@sha256:ab".into(),
            reason::INVALID_SPEC,
            "has no tag, so its version is unknown",
        ),
        (
            |c| c.adopted.targets[0].workload.seen.attempt = Some("memoria-7".into()),
            reason::JOURNAL_LOST,
            "whose MemoriaUpgrade is gone",
        ),
        (|c| c.inspected(|f| f.major = 12), reason::PREFLIGHT_FAILED, "add toolImages.\"12\""),
        (
            |c| c.inspected(|f| f.unfinished = vec!["memoria-7".into()]),
            reason::PREFLIGHT_FAILED,
            "bears the mark of attempt memoria-7",
        ),
        (
            |c| {
                let message = "role memoria does not own table x; run ALTER TABLE x OWNER TO memoria".to_owned();
                let finding = CheckResult { name: "owner".into(), result: Verdict::Failed, message };
                c.inspected(|f| f.findings = vec![finding.clone()]);
            },
            reason::PREFLIGHT_FAILED,
            "ALTER TABLE x OWNER TO memoria",
        ),
        (
            |c| {
                let check = json!([{"name": "queue", "stage": "IngestionReenable", "passWhen": "body.depth <=",
                                    "http": {"url": "http://q/depth"}}]);
                c.spec(json!({"checks": check}));
            },
            reason::PREFLIGHT_FAILED,
            "checks[queue].passWhen",
        ),
        (
            |c| {
                let trouble =
                    Some(Trouble { reason: "ErrImagePull".into(), message: "r/server:1.0.0: not found".into() });
                let state = JobState::Running { trouble };
                let job = JobSeen { uid: "u".into(), state, image_id: None, ttl_armed: false };
                c.jobs.insert("probe-server".into(), job);
            },
            reason::PREFLIGHT_FAILED,
            "r/server:1.0.0: not found",
        ),
    ];
    for (change, expected, words) in cases {
        let mut case = case();
        change(&mut case);
        let (reason, message) = refused(case.ask());
        assert_eq!(reason, expected, "{message}");
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn an_image_that_somebody_else_moved_is_no_before() {
    let mut case = case();
    case.release.status = Some(MemoriaReleaseStatus {
        current: Some(Current {
            version: "0.8.0".into(),
            images: vec![CurrentImage { target: "server".into(), image: "r/server:0.8.0".into(), digest: None }],
            requested_at: None,
        }),
        ..MemoriaReleaseStatus::default()
    });
    let (reason, message) = refused(case.ask());
    assert_eq!(reason, reason::UNMANAGED_IMAGE_CHANGE);
    assert!(message.contains("requested-at"));
    let annotations = BTreeMap::from([(marks::REQUESTED_AT_ANNOTATION.to_owned(), "now".to_owned())]);
    case.release.metadata.annotations = Some(annotations);
    assert!(matches!(case.ask(), Answer::Checking { .. }), "asking again accepts what runs");
}

#[test]
fn only_listed_migrations_may_be_named() {
    let mut case = case();
    case.spec(json!({"migrations": {"mode": "Named", "names": ["add_z"]}}));
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    assert!(refused(case.ask()).1.contains("\"add_z\", which the new version does not list (add_a, add_b)"));
}

#[test]
fn a_run_that_takes_too_long_says_what_it_waited_for() {
    let mut case = case();
    let running =
        JobSeen { uid: "u".into(), state: JobState::Running { trouble: None }, image_id: None, ttl_armed: false };
    for step in ["inspect", "probe-server", "probe-server-prior"] {
        case.jobs.insert(step.into(), running.clone());
    }
    case.release.status = Some(MemoriaReleaseStatus {
        pre_flight: Some(PreFlightStatus {
            run: run_name(&case.release),
            started_at: Time("2026-11-22T00:00:00Z".parse().unwrap()),
            finished_at: None,
            checks: Vec::new(),
            plan: None,
        }),
        ..MemoriaReleaseStatus::default()
    });
    let (_, message) = refused(case.ask());
    assert!(message.contains("limit: still waiting after 15m: inspect runs, probe-server runs"), "{message}");
}

#[test]
fn a_probe_that_failed_says_why() {
    let mut case = case();
    let report = JobReport {
        v: 1,
        ok: false,
        reason: "NoCli".into(),
        message: "python: not found; set cli.command".into(),
        category: Some(Category::Candidate),
        facts: None,
    };
    let state = JobState::Finished { succeeded: false, report: Some(report), detail: "exit 1".into() };
    case.jobs.insert("probe-server".into(), JobSeen { uid: "u".into(), state, image_id: None, ttl_armed: false });
    assert!(refused(case.ask()).1.contains("probe-server: python: not found; set cli.command"));
}

#[test]
fn pausing_does_not_ask_anew_and_asking_again_does() {
    let mut case = case();
    let run = run_name(&case.release);
    case.spec(json!({"suspend": true}));
    assert_eq!(run, run_name(&case.release));
    let annotations = BTreeMap::from([(marks::REQUESTED_AT_ANNOTATION.to_owned(), "now".to_owned())]);
    case.release.metadata.annotations = Some(annotations);
    assert_ne!(run, run_name(&case.release));
}
