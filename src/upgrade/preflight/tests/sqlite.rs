//! Pre-flight where the database is a file on a claim of the Server.

use k8s_openapi::api::{batch::v1::Job, core::v1::NodeSelector};
use serde_json::json;

use super::{Answer, Case, DIGEST, case, refused};
use crate::{
    api::{
        conditions::reason,
        release::Verdict,
        upgrade::{Category, DatabaseIdentity, Engine},
    },
    cluster::adopt::{Behind, DataClaim, Mounted, ServerData, StorageFound, Stranger},
    job::{
        manifest::node_named,
        protocol::{DataVolume, Facts, JobReport, ReferenceFacts, SHARED_MOUNT},
    },
    upgrade::seen::{JobSeen, JobState},
};

fn hosts(name: &str) -> NodeSelector {
    serde_json::from_value(json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]}]}))
    .unwrap()
}

fn volume() -> DataVolume {
    DataVolume {
        claim_name: "memoria-data".into(),
        claim_uid: "uid-data".into(),
        mount_path: "/data".into(),
        sub_path: None,
    }
}

/// One pod with its file on a claim, as the smallest release has it; `value` is the URL, `None` a Secret's.
fn file(url: Option<&str>) -> Case {
    let mut case = case();
    case.spec(json!({
        "targets": [{"name": "server", "role": "Server", "workloadRef": {"kind": "Deployment", "name": "memoria-server"}}],
        "ingestion": {},
    }));
    case.adopted.targets.truncate(1);
    case.adopted.workers.clear();
    let server = &mut case.adopted.targets[0].workload;
    server.seen.replicas = 1;
    let spec = server.template.spec.as_mut().unwrap();
    spec.security_context = serde_json::from_value(json!({"runAsUser": 1000, "fsGroup": 2000})).unwrap();
    if let Some(url) = url {
        let env = json!([{"name": "MEMORIA_DATABASE__CONNECTION_STRING", "value": url}]);
        spec.containers[0].env = serde_json::from_value(env).unwrap();
    }
    let claim = DataClaim { volume: volume(), read_only: false, shared: false, nodes: Some(hosts("a")) };
    case.adopted.data = ServerData {
        mounts: vec![
            Mounted { mount_path: "/data".into(), what: Behind::Claim(Box::new(claim)) },
            Mounted { mount_path: "/tmp".into(), what: Behind::Other("emptyDir volume \"tmp\"".into()) },
        ],
        node: Some("node-a".into()),
        strangers: Vec::new(),
    };
    case
}

fn the_claim(case: &mut Case) -> &mut DataClaim {
    match &mut case.adopted.data.mounts[0].what {
        Behind::Claim(claim) => claim,
        other => panic!("{other:?}"),
    }
}

fn unfit(case: &mut Case, why: &str) {
    case.adopted.data.mounts[0].what = Behind::Unfit { claim: "memoria-data".into(), why: why.into() };
}

fn inspected(case: &mut Case) {
    case.inspected(|facts| {
        facts.engine = Engine::Sqlite;
        facts.major = 3;
        facts.server_version = "SQLite".into();
        facts.identity = DatabaseIdentity {
            system_identifier: "uid-data".into(),
            name: "memoria.db".into(),
            oid: 0,
            host: "sqlite".into(),
        };
        facts.data_volume = Some(volume());
        facts.path = Some("/data/memoria.db".into());
    });
}

fn asked(case: &Case) -> Vec<Job> {
    match case.ask() {
        Answer::Checking { jobs, .. } => jobs,
        other => panic!("{other:?}"),
    }
}

/// Step, image, claims that it mounts and the nodes it is bound to.
fn shape(job: &Job) -> (String, String, Vec<String>, Option<NodeSelector>) {
    let spec = job.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let volumes = spec.volumes.iter().flatten().filter_map(|v| v.persistent_volume_claim.as_ref());
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let image = spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name != "install").unwrap();
    (
        job.metadata.labels.as_ref().unwrap()["memoria.arca.run/step"].clone(),
        image.image.clone().unwrap(),
        volumes.map(|v| v.claim_name.clone()).collect(),
        affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.clone()),
    )
}

#[test]
fn inspect_mounts_the_servers_claims_beside_the_server_and_nothing_else_mounts_data() {
    for url in [None, Some("sqlite:////data/memoria.db")] {
        let jobs = asked(&file(url));
        let (step, _, claims, nodes) = shape(&jobs[0]);
        assert_eq!((step.as_str(), claims), ("inspect", vec!["memoria-data".to_owned()]));
        let terms = nodes.unwrap().node_selector_terms;
        assert!(terms[0].match_fields == node_named("node-a").node_selector_terms[0].match_fields);
        assert!(terms[0].match_expressions == hosts("a").node_selector_terms[0].match_expressions);
        assert!(jobs[1..].iter().all(|job| shape(job).2.is_empty() && shape(job).3.is_none()));
    }
    // A volume for many nodes binds nothing; a server needs no volume.
    let mut shared = file(None);
    (the_claim(&mut shared).shared, the_claim(&mut shared).nodes) = (true, None);
    assert_eq!(shape(&asked(&shared)[0]).3, None);
    assert!(shape(&asked(&file(Some("postgresql://m@db/m")))[0]).2.is_empty());
}

#[test]
fn a_plan_for_a_file_runs_its_jobs_in_the_operators_image_on_the_volumes_node() {
    let mut case = file(Some("sqlite:////data/memoria.db"));
    case.images.tools.clear();
    case.spec(json!({"rollback": {"rehearse": "WhenPossible"}}));
    inspected(&mut case);
    case.probed();
    let jobs = asked(&case);
    let (step, image, claims, nodes) = shape(&jobs[0]);
    assert_eq!((step.as_str(), image.as_str()), ("reference", "r/operator:1"));
    assert_eq!((claims, nodes), (vec!["memoria-snapshots".to_owned()], Some(hosts("a"))));
    let facts = ReferenceFacts {
        built_on: "sqlite 3".into(),
        schema_sha256: "s".into(),
        tables: 18,
        free_bytes: 1 << 40,
        removed: Vec::new(),
    };
    case.report("reference", Facts::Reference(facts), None);
    assert!(matches!(case.ask(), Answer::DryRun { .. }));
    case.dry_run = Some(Vec::new());
    // The rehearsal reads the file where the Server runs; Memoria's own container gets nothing of it.
    let jobs = asked(&case);
    let (step, image, claims, nodes) = shape(&jobs[0]);
    assert_eq!((step.as_str(), image.as_str(), jobs.len()), ("rehearsal", "r/operator:1", 1));
    assert!(claims.contains(&"memoria-data".to_owned()) && nodes == Some(hosts("a")), "{claims:?}");
    let pod = jobs[0].spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let mounts: Vec<_> =
        pod.containers[0].volume_mounts.iter().flatten().map(|mount| mount.mount_path.as_str()).collect();
    assert_eq!(mounts, ["/tmp", SHARED_MOUNT]);
    case.rehearsed(true, "Done", false);
    let Answer::Planned { plan, status } = case.ask() else { panic!("{:?}", case.ask()) };
    assert_eq!((plan.database.engine, plan.database.major), (Engine::Sqlite, 3));
    for planned in &plan.jobs {
        let job: Job = serde_json::from_value(planned.manifest.clone()).unwrap();
        let (step, image, claims, nodes) = shape(&job);
        let data = claims.iter().filter(|claim| *claim == "memoria-data").count();
        let on_data = !["bootstrap", "parity"].contains(&step.as_str());
        assert_eq!((data == 1, nodes.is_some()), (on_data, on_data), "{step}");
        assert!(!on_data || image == "r/operator:1", "{step} runs in {image}");
        assert_eq!(nodes, on_data.then(|| hosts("a")));
    }
    let steps: Vec<_> = plan.jobs.iter().map(|job| job.step.as_str()).collect();
    assert!(["baseline", "restore", "restore-accepted"].iter().all(|step| steps.contains(step)), "{steps:?}");
    assert!(plan.targets[0].to_image.ends_with(DIGEST) && plan.workers.is_empty());
    let summary = status.plan.unwrap();
    assert_eq!(summary.database, "SQLite, file /data/memoria.db on claim memoria-data, 64 MiB");
    for expected in [
        "database.urlFrom.env: MEMORIA_DATABASE__CONNECTION_STRING",
        "database engine: SQLite, file /data/memoria.db",
        "database.sqlite.claimName: memoria-data (uid uid-data, at /data)",
        "jobs on the data run on: kubernetes.io/hostname in (a)",
        "jobs run as: user 1000, fsGroup 2000",
        "snapshot.storage: claim memoria-snapshots",
    ] {
        assert!(summary.inferred.iter().any(|line| line == expected), "{expected}: {:?}", summary.inferred);
    }
}

#[test]
fn without_an_affinity_of_the_volume_the_node_of_the_servers_pod_counts() {
    let mut case = file(None);
    the_claim(&mut case).nodes = None;
    inspected(&mut case);
    case.probed();
    assert_eq!(shape(&asked(&case)[0]).3, Some(node_named("node-a")));
    the_claim(&mut case).shared = true;
    assert_eq!(shape(&asked(&case)[0]).3, None);
}

#[test]
fn the_named_claim_alone_is_mounted() {
    let mut case = file(None);
    let other = DataClaim {
        volume: DataVolume { claim_name: "cache".into(), mount_path: "/cache".into(), ..volume() },
        ..the_claim(&mut case).clone()
    };
    case.adopted.data.mounts.push(Mounted { mount_path: "/cache".into(), what: Behind::Claim(Box::new(other)) });
    assert_eq!(shape(&asked(&case)[0]).2, ["memoria-data", "cache"]);
    case.spec(json!({"database": {"sqlite": {"claimName": "memoria-data"}}}));
    assert_eq!(shape(&asked(&case)[0]).2, ["memoria-data"]);
    inspected(&mut case);
    case.probed();
    assert_eq!(shape(&asked(&case)[0]).0, "reference");
}

#[test]
fn what_the_template_shows_to_be_wrong_is_refused_before_any_job() {
    type Change = fn(&mut Case);
    let refusals: [(&str, Change, &[&str]); 12] = [
        ("sqlite:///memoria.db", |_| {}, &["relative path \"memoria.db\"", "sqlite:////data/memoria.db", "workingDir"]),
        ("mysql://db/m", |_| {}, &["container server has the scheme \"mysql\"", "PostgreSQL and SQLite only"]),
        ("sqlite://", |_| {}, &["in memory"]),
        ("sqlite:////tmp/m.db", |_| {}, &["/tmp/m.db", "emptyDir volume \"tmp\"", "copy it to a claim"]),
        ("sqlite:////var/m.db", |_| {}, &["/var/m.db", "none of its volumes"]),
        ("sqlite:////database/m.db", |_| {}, &["/database/m.db", "none of its volumes"]),
        (
            "sqlite:////data/m.db",
            |c| c.adopted.targets[0].workload.seen.replicas = 2,
            &["deployment/memoria-server has 2 replicas", "--replicas=1"],
        ),
        (
            "sqlite:////data/m.db",
            |c| unfit(c, "persistentvolumeclaim/memoria-data is ReadWriteOncePod: move it"),
            &["memoria-data is ReadWriteOncePod: move it"],
        ),
        (
            "sqlite:////data/m.db",
            |c| {
                let of = Some("replicaset/reindex-5d9".to_owned());
                c.adopted.data.strangers = vec![Stranger { claim: "memoria-data".into(), pod: "reindex-x".into(), of }];
            },
            &["pod reindex-x (of replicaset/reindex-5d9)", "memoria-data", "ingestion.workers"],
        ),
        (
            "sqlite:////data/m.db",
            |c| c.spec(json!({"database": {"sqlite": {"claimName": "data"}}})),
            &["claimName is data", "only memoria-data"],
        ),
        (
            "postgresql://m@db/m",
            |c| c.spec(json!({"database": {"sqlite": {"claimName": "memoria-data"}}})),
            &["names a database server", "remove database.sqlite"],
        ),
        (
            "",
            |c| c.adopted.targets[0].workload.template.spec.as_mut().unwrap().containers[0].env = None,
            &["no environment entry", "own working directory", "sqlite:////data/memoria.db"],
        ),
    ];
    for (url, change, words) in refusals {
        let mut case = file(Some(url));
        change(&mut case);
        let (reason, message) = refused(case.ask());
        assert_eq!(reason, reason::PREFLIGHT_FAILED, "{message}");
        for word in words {
            assert!(message.contains(word), "{url}: {message:?} does not say {word:?}");
        }
    }
}

#[test]
fn a_relative_path_is_below_the_containers_own_working_directory() {
    let mut case = file(Some("sqlite:///memoria.db"));
    let spec = case.adopted.targets[0].workload.template.spec.as_mut().unwrap();
    spec.containers[0].working_dir = Some("/data/".into());
    assert_eq!(shape(&asked(&case)[0]).2, ["memoria-data"]);
}

#[test]
fn what_only_inspect_could_see_is_refused_with_the_fix() {
    type Change = fn(&mut Case);
    let refusals: [(Change, &[&str]); 5] = [
        (|c| c.adopted.targets[0].workload.seen.replicas = 3, &["has 3 replicas", "--replicas=1"]),
        (|c| the_claim(c).volume.claim_uid = "another".into(), &["claim memoria-data at /data", "ask again"]),
        (
            |c| c.adopted.storage = Some(StorageFound { claim: "memoria-snapshots".into(), nodes: Some(hosts("b")) }),
            &["persistentvolumeclaim/memoria-snapshots", "(b)", "(a)", "spec.snapshot.storage"],
        ),
        (
            |c| c.adopted.data.strangers = vec![Stranger { claim: "memoria-data".into(), pod: "sh".into(), of: None }],
            &["pod sh mounts claim memoria-data"],
        ),
        (
            |c| {
                c.spec(json!({"database": {"sqlite": {"claimName": "memoria-data"}}}));
                c.inspected(|_| {});
            },
            &["the database is PostgreSQL", "remove database.sqlite"],
        ),
    ];
    for (change, words) in refusals {
        let mut case = file(None);
        inspected(&mut case);
        case.probed();
        change(&mut case);
        let (_, message) = refused(case.ask());
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
    let mut same_node = file(None);
    same_node.adopted.storage = Some(StorageFound { claim: "memoria-snapshots".into(), nodes: Some(hosts("a")) });
    inspected(&mut same_node);
    same_node.probed();
    assert_eq!(shape(&asked(&same_node)[0]).0, "reference");
}

#[test]
fn why_a_claim_was_not_mounted_is_told_when_inspect_found_no_database_and_only_then() {
    let mut case = file(None);
    unfit(&mut case, "persistentvolumeclaim/memoria-data is ReadWriteOncePod: move it");
    assert!(shape(&asked(&case)[0]).2.is_empty());
    case.inspected(|_| {});
    case.probed();
    assert_eq!(shape(&asked(&case)[0]).0, "reference", "a database server does not care");
    let report = JobReport {
        v: 1,
        ok: false,
        reason: "NoFile".into(),
        message: "no such file".into(),
        category: Some(Category::Environment),
        facts: None,
    };
    let state = JobState::Finished { succeeded: false, report: Some(report), detail: "exit 1".into() };
    case.jobs.insert("inspect".into(), JobSeen { uid: "u".into(), state, image_id: None, ttl_armed: false });
    let Answer::NotPassed { status, message, .. } = case.ask() else { panic!() };
    assert!(message.contains("no such file") && message.contains("ReadWriteOncePod: move it"), "{message}");
    assert!(status.checks.iter().any(|check| check.name == "data" && check.result == Verdict::Inconclusive));
}
