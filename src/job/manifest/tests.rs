//! Each rendered Job as a snapshot, and what must hold for all of them.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Container, PodSpec, PodTemplateSpec},
};
use memoria_runner::order::{ORDER_ENV as RUNNER_ORDER_ENV, RunnerOrder};
use serde_json::{Value, json};

use super::{
    CheckStep, DataMount, JobContext, MAIN, Ordered, PodShape, Probe, RenderError, ShapeError, Storage, UrlSeen,
    at_risk, baseline, bootstrap, checks, defaults, fence, inspect, migrate, node_named, parity, probe, reference,
    rehearsal, restore, snapshot, template_hash, with_input,
};
use crate::{
    api::{
        marks::TEMPLATE_HASH_ANNOTATION,
        release::{
            Check, Encryption, Jobs, KeyRef, ObjectStore, Rollback, SecurityContextMode, Snapshot, Timeouts, UrlFrom,
        },
        upgrade::{DatabaseIdentity, Engine},
    },
    job::protocol::{
        DATABASE_URL_ENV, DataVolume, INPUT_ENV, JobInput, JobOrder, JobReport, ORDER_ENV, RetentionOrder,
    },
    snapshot::archive::{ARCHIVE_ENV, IDENTITY_FILE_ENV, RECIPIENTS_FILE_ENV},
};

const SERVER: &str =
    "registry.arca.run/memoria/server@sha256:1111111111111111111111111111111111111111111111111111111111111111";

fn template(value: Value) -> PodTemplateSpec {
    serde_json::from_value(value).unwrap()
}

fn server_template() -> PodTemplateSpec {
    template(json!({
        "metadata": {"labels": {"app": "memoria"}},
        "spec": {
            "imagePullSecrets": [{"name": "registry"}],
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "memoria", "operator": "Exists"}],
            "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
            "containers": [
                {"name": "sidecar", "image": "other"},
                {"name": "server", "image": "registry.arca.run/memoria/server:1.0.0", "workingDir": "/app",
                 "securityContext": {"runAsGroup": 1001},
                 "env": [
                    {"name": "MEMORIA_API_KEY", "value": "never copied"},
                    {"name": "MEMORIA_DATABASE__CONNECTION_STRING",
                     "valueFrom": {"secretKeyRef": {"name": "memoria-db", "key": "url"}}},
                 ]},
            ],
        },
    }))
}

fn shape(template: &PodTemplateSpec, mode: SecurityContextMode) -> Result<PodShape, ShapeError> {
    let jobs = Jobs { security_context: mode, ..Jobs::default() };
    PodShape::from_server(template, "server", &jobs, &UrlFrom::default())
}

fn context() -> JobContext {
    JobContext {
        namespace: "memoria".to_owned(),
        release: "memoria".to_owned(),
        release_uid: "0c9e4a1e-5b1b-4a77-9d2e-9f7c0f5d8a10".to_owned(),
        attempt: "memoria-7".to_owned(),
        operator_version: "0.1.0".to_owned(),
        from_version: "1.0.0".to_owned(),
        operator_image: "registry.arca.run/memoria-operator@sha256:22".to_owned(),
        tools_image: Some("registry.arca.run/memoria-operator-tools@sha256:33".to_owned()),
        shape: shape(&server_template(), SecurityContextMode::Restricted).unwrap(),
        cli: ["python", "-m", "memoria.cli"].map(str::to_owned).to_vec(),
        storage: Storage::Claim("memoria-snapshots".to_owned()),
        encryption: None,
        storage_directory: "memoria-0c9e4a1e/memoria-7".to_owned(),
        portable: true,
        retention: RetentionOrder {
            release_uid: "0c9e4a1e".to_owned(),
            keep_last: 3,
            max_age_seconds: None,
            needed: vec!["memoria-6".to_owned()],
        },
        timeouts: Timeouts::default(),
        identity: Some(DatabaseIdentity {
            system_identifier: "7300000000000000001".to_owned(),
            name: "memoria".to_owned(),
            oid: 16384,
            host: "db:5432".to_owned(),
        }),
        engine: Engine::Postgresql,
        data: Vec::new(),
        nodes: None,
    }
}

/// The same on a file: one claim, mounted by directory, on one node.
fn on_sqlite() -> JobContext {
    let operator_image = context().operator_image;
    JobContext {
        tools_image: Some(operator_image),
        identity: Some(DatabaseIdentity {
            system_identifier: "77c0ffee-0000-4000-8000-000000000001".to_owned(),
            name: "m/memoria.db".to_owned(),
            oid: 0,
            host: "sqlite".to_owned(),
        }),
        engine: Engine::Sqlite,
        data: vec![DataMount {
            volume: DataVolume {
                claim_name: "memoria-data".to_owned(),
                claim_uid: "77c0ffee-0000-4000-8000-000000000001".to_owned(),
                mount_path: "/data".to_owned(),
                sub_path: Some("m".to_owned()),
            },
            read_only: false,
        }],
        nodes: Some(node_named("node-a")),
        ..context()
    }
}

fn encryption() -> Option<Encryption> {
    serde_json::from_value(json!({
        "recipientsFrom": {"secretKeyRef": {"name": "snap-key", "key": "age.pub"}},
        "identityFrom": {"secretKeyRef": {"name": "snap-secret", "key": "age.key"}},
    }))
    .unwrap()
}

/// Snapshots in a bucket, encrypted.
fn in_a_bucket() -> JobContext {
    let bucket: ObjectStore = serde_json::from_value(json!({
        "url": "s3://backups/memoria/", "region": "eu-south-1", "endpoint": "https://minio.example:9000",
        "credentialsSecretRef": {"name": "s3"},
    }))
    .unwrap();
    JobContext { storage: Storage::Bucket(bucket), encryption: encryption(), ..context() }
}

/// Snapshots on a claim, encrypted.
fn on_an_encrypted_claim() -> JobContext {
    JobContext { encryption: encryption(), ..context() }
}

fn a_check() -> Check {
    serde_json::from_value(json!({
        "name": "queue-depth", "stage": "IngestionReenable", "stableFor": "30s",
        "passWhen": "status == 200 && body.name.matches('^$$|$(HOME)$')",
        "http": {"url": "http://queue:9000/depth", "headersFrom": [
            {"name": "X-API-Key", "secretKeyRef": {"name": "memoria-api", "key": "key"}},
            {"name": "X-Other", "secretKeyRef": {"name": "other", "key": "o"}},
        ]},
    }))
    .unwrap()
}

fn all(ctx: &JobContext) -> Vec<(&'static str, Job)> {
    let migrations = ["add_memory_provenance".to_owned(), "add_consent_scope".to_owned()];
    let candidate = Probe { name: "server", image: "registry.arca.run/memoria/server:1.0.1", ask_cli: true };
    let prior = Probe { name: "server-prior", image: SERVER, ask_cli: false };
    vec![
        ("inspect", inspect(ctx, &Rollback::default()).unwrap()),
        ("probe-server", probe(ctx, &candidate).unwrap()),
        ("probe-server-prior", probe(ctx, &prior).unwrap()),
        ("defaults", defaults(ctx, "defaults", candidate.image, Some("/srv/config.example.yaml")).unwrap()),
        ("reference", reference(ctx, SERVER, 1 << 30).unwrap()),
        ("rehearsal", rehearsal(ctx, SERVER, &migrations, 64 << 20, until()).unwrap()),
        ("fence", fence(ctx).unwrap()),
        ("snapshot", snapshot(ctx).unwrap()),
        ("baseline", baseline(ctx).unwrap()),
        ("restore", restore(ctx, "restore", &Rollback::default()).unwrap()),
        ("migrate", migrate(ctx, SERVER, &migrations, "memoria-0c9e4a1e/run-3").unwrap()),
        ("gate", checks(ctx, CheckStep::Gate, &[Ordered::plain(&a_check())]).unwrap()),
        ("verify", checks(ctx, CheckStep::Verify, &[Ordered::plain(&a_check())]).unwrap()),
        ("bootstrap", bootstrap(ctx, SERVER).unwrap()),
        ("at-risk", at_risk(ctx).unwrap()),
        ("parity", parity(ctx, SERVER).unwrap()),
    ]
}

fn until() -> jiff::Timestamp {
    "2026-11-22T01:13:30Z".parse().unwrap()
}

fn pod(job: &Job) -> &PodSpec {
    job.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

fn containers(job: &Job) -> impl Iterator<Item = &Container> {
    pod(job).init_containers.iter().flatten().chain(&pod(job).containers)
}

fn env<'a>(container: &'a Container, name: &str) -> Option<&'a k8s_openapi::api::core::v1::EnvVar> {
    container.env.iter().flatten().find(|entry| entry.name == name)
}

#[test]
fn each_job_is_rendered_as_it_was() {
    for (step, job) in all(&context()) {
        insta::assert_json_snapshot!(step, job);
    }
}

#[test]
fn each_job_on_a_file_is_rendered_as_it_was() {
    let ctx = on_sqlite();
    let migrations = ["add_memory_provenance".to_owned()];
    insta::assert_json_snapshot!("sqlite-inspect", inspect(&ctx, &Rollback::default()).unwrap());
    insta::assert_json_snapshot!("sqlite-reference", reference(&ctx, SERVER, 1 << 30).unwrap());
    insta::assert_json_snapshot!("sqlite-rehearsal", rehearsal(&ctx, SERVER, &migrations, 64 << 20, until()).unwrap());
    insta::assert_json_snapshot!("sqlite-fence", fence(&ctx).unwrap());
    insta::assert_json_snapshot!("sqlite-snapshot", snapshot(&ctx).unwrap());
    insta::assert_json_snapshot!("sqlite-restore", restore(&ctx, "restore", &Rollback::default()).unwrap());
    insta::assert_json_snapshot!("sqlite-migrate", migrate(&ctx, SERVER, &migrations, "run-3").unwrap());
}

#[test]
fn each_job_with_an_archive_is_rendered_as_it_was() {
    let migrations = ["add_memory_provenance".to_owned()];
    for (place, ctx) in [("bucket", in_a_bucket()), ("encrypted", on_an_encrypted_claim())] {
        insta::assert_json_snapshot!(format!("{place}-inspect"), inspect(&ctx, &Rollback::default()).unwrap());
        insta::assert_json_snapshot!(format!("{place}-reference"), reference(&ctx, SERVER, 1 << 30).unwrap());
        insta::assert_json_snapshot!(format!("{place}-snapshot"), snapshot(&ctx).unwrap());
        insta::assert_json_snapshot!(format!("{place}-migrate"), migrate(&ctx, SERVER, &migrations, "run-3").unwrap());
        insta::assert_json_snapshot!(
            format!("{place}-restore"),
            restore(&ctx, "restore", &Rollback::default()).unwrap()
        );
    }
}

/// The names of the containers of a Job of which that is so.
fn named(job: &Job, is: impl Fn(&Container) -> bool) -> BTreeSet<String> {
    containers(job).filter(|c| is(c)).map(|c| c.name.clone()).collect()
}

#[test]
fn only_our_containers_that_need_it_reach_the_archive_and_only_those_that_need_them_read_its_keys() {
    for (ctx, archive) in [(in_a_bucket(), "s3://backups/memoria"), (on_an_encrypted_claim(), "/archive")] {
        for (step, job) in all(&ctx) {
            let mounts = |c: &Container, names: &[&str]| {
                c.volume_mounts.iter().flatten().any(|mount| names.contains(&mount.name.as_str()))
            };
            let has_env = |c: &Container, prefix: &str| c.env.iter().flatten().any(|e| e.name.starts_with(prefix));
            let reaching = named(&job, |c| {
                mounts(c, &["snapshots", "archive"]) || env(c, ARCHIVE_ENV).is_some() || has_env(c, "AWS_")
            });
            let reading = named(&job, |c| {
                let variables = [RECIPIENTS_FILE_ENV, IDENTITY_FILE_ENV];
                mounts(c, &["recipients", "identity"]) || variables.iter().any(|name| env(c, name).is_some())
            });
            let (reaches, reads): (&[&str], &[&str]) = match step {
                "snapshot" | "baseline" | "at-risk" | "restore" => (&["main"], &["main"]),
                "reference" | "migrate" => (&["guard"], &["guard"]),
                "rehearsal" => (&["guard"], &[]),
                _ => (&[], &[]),
            };
            let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
            assert_eq!((reaching, reading), (set(reaches), set(reads)), "{step} {archive}");
            for container in containers(&job).filter(|c| reaches.contains(&c.name.as_str())) {
                assert_eq!(env(container, ARCHIVE_ENV).unwrap().value.as_deref(), Some(archive), "{step}");
                let ours = container.image.as_deref().is_some_and(|image| image.contains("memoria-operator"));
                assert!(ours, "{step}: {:?}", container.image);
            }
            let secrets = pod(&job).volumes.iter().flatten().filter(|volume| volume.secret.is_some());
            let secrets: BTreeSet<_> = secrets.map(|volume| volume.name.clone()).collect();
            let expected = if reads.is_empty() { set(&[]) } else { set(&["recipients", "identity"]) };
            assert_eq!(secrets, expected, "{step}: no volume of the pod that none of its containers needs");
        }
    }
}

#[test]
fn a_workplace_is_an_empty_directory_and_only_a_claim_binds_a_pod_to_its_nodes() {
    let volume = |job: &Job, name: &str| pod(job).volumes.iter().flatten().find(|v| v.name == name).cloned();
    for (ctx, claim) in [(in_a_bucket(), None), (on_an_encrypted_claim(), Some("memoria-snapshots"))] {
        let ctx = JobContext { nodes: Some(node_named("node-a")), ..ctx };
        let job = reference(&ctx, SERVER, 1).unwrap();
        assert!(volume(&job, "snapshots").unwrap().empty_dir.is_some());
        let archive = volume(&job, "archive").and_then(|v| v.persistent_volume_claim).map(|claim| claim.claim_name);
        assert_eq!(archive.as_deref(), claim);
        assert_eq!(pod(&job).affinity.is_some(), claim.is_some());
    }
}

#[test]
fn a_bucket_without_credentials_leaves_them_to_what_the_cluster_gives_to_the_pod() {
    let bucket: ObjectStore = serde_json::from_value(json!({"url": "s3://backups"})).unwrap();
    let ctx = JobContext { storage: Storage::Bucket(bucket), ..context() };
    let job = snapshot(&ctx).unwrap();
    let names: Vec<_> = pod(&job).containers[0].env.iter().flatten().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, [ORDER_ENV, DATABASE_URL_ENV, ARCHIVE_ENV]);
    assert_eq!(env(&pod(&job).containers[0], ARCHIVE_ENV).unwrap().value.as_deref(), Some("s3://backups"));
}

#[test]
fn what_is_behind_the_storage_is_told_by_the_release() {
    let of = |spec: Value| {
        let snapshot: Snapshot = serde_json::from_value(spec).unwrap();
        let storage = Storage::of(&snapshot, "memoria");
        storage.planned("d", snapshot.encryption.as_ref()).to_string()
    };
    assert_eq!(of(json!({})), "claim memoria-snapshots");
    assert_eq!(of(json!({"storage": {"persistentVolumeClaim": {"claimName": "backup"}}})), "claim backup");
    assert_eq!(of(json!({"storage": {"objectStore": {"url": "s3://backups/m/"}}})), "s3://backups/m");
    let both = json!({"storage": {"objectStore": {"url": "s3://backups"}}, "encryption": encryption()});
    assert_eq!(of(both), "s3://backups (encrypted by age)");
}

#[test]
fn the_file_is_mounted_as_the_server_has_it_where_it_is_opened_and_nowhere_else() {
    for (step, job) in all(&on_sqlite()) {
        let mounts = |c: &Container| c.volume_mounts.iter().flatten().any(|m| m.name == "data-0");
        let mounting: BTreeSet<_> = containers(&job).filter(|c| mounts(c)).map(|c| c.name.as_str()).collect();
        let expected: &[&str] = match step {
            "inspect" | "fence" | "snapshot" | "baseline" | "restore" => &["main"],
            "rehearsal" => &["guard"],
            "migrate" => &["guard", "main"],
            _ => &[],
        };
        assert_eq!(mounting, expected.iter().copied().collect(), "{step}");
        let mount = containers(&job).flat_map(|c| c.volume_mounts.iter().flatten()).find(|m| m.name == "data-0");
        if let Some(mount) = mount {
            assert_eq!(
                (mount.mount_path.as_str(), mount.sub_path.as_deref(), mount.read_only),
                ("/data", Some("m"), None)
            );
            let volume = pod(&job).volumes.iter().flatten().find(|volume| volume.name == "data-0").unwrap();
            assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "memoria-data");
        }
        // The reference is the first to mount a fresh claim for snapshots, whose volume then is made on its node.
        let placed = pod(&job).affinity.is_some();
        let somewhere = expected.is_empty() && !["reference", "at-risk"].contains(&step);
        assert_eq!(placed, !somewhere, "{step}");
        assert!(pod(&job).node_name.is_none() && breaches(pod(&job)).is_empty(), "{step}");
    }
    let order = |job: &Job| env(&pod(job).containers[0], ORDER_ENV).unwrap().value.clone().unwrap();
    let told: JobOrder = serde_json::from_str(&order(&fence(&on_sqlite()).unwrap())).unwrap();
    let JobOrder::Fence(told) = told else { panic!("{told:?}") };
    assert_eq!(told.database.volumes, [on_sqlite().data[0].volume.clone()]);
    assert_eq!(told.database.working_directory.as_deref(), Some("/app"));
}

#[test]
fn what_the_server_may_only_read_jobs_may_only_read() {
    let mut ctx = on_sqlite();
    ctx.data[0].read_only = true;
    let job = snapshot(&ctx).unwrap();
    let mount = pod(&job).containers[0].volume_mounts.iter().flatten().find(|m| m.name == "data-0").unwrap();
    assert_eq!(mount.read_only, Some(true));
}

#[test]
fn the_template_shows_whether_the_database_is_a_file() {
    let seen = |value: Value| {
        let env = json!([{"name": "DIR", "value": "/data"}, {"name": URL, "value": value}]);
        let template = template(json!({"spec": {"containers": [{"name": "server", "env": env}]}}));
        shape(&template, SecurityContextMode::Restricted).unwrap().url
    };
    let file = |path: &str| UrlSeen::Sqlite(Some(path.to_owned()));
    assert_eq!(seen(json!("sqlite:////data/memoria.db")), file("/data/memoria.db"));
    assert_eq!(seen(json!("sqlite+pysqlite:///$(DIR)/m.db?timeout=5")), file("/data/m.db"));
    assert_eq!(seen(json!("sqlite:///memoria.db")), file("memoria.db"));
    assert_eq!((seen(json!("sqlite://")), seen(json!("sqlite:///:memory:"))), (file(""), file(":memory:")));
    assert_eq!(seen(json!("sqlite:///file:/data/m.db?uri=true")), UrlSeen::Sqlite(None));
    assert_eq!(seen(json!("postgresql+psycopg2://m@db/m")), UrlSeen::Server);
    let hidden = shape(&server_template(), SecurityContextMode::Restricted).unwrap().url;
    assert_eq!(hidden, UrlSeen::Hidden);
    assert_eq!(seen(json!("mysql+pymysql://m@db/m")), UrlSeen::Unknown("mysql+pymysql".to_owned()));
}

/// The rules of the PodSecurity level `restricted`, as the Kubernetes documentation lists them.
fn breaches(pod: &PodSpec) -> Vec<String> {
    let mut breaches = Vec::new();
    if pod.host_network == Some(true) || pod.host_pid == Some(true) || pod.host_ipc == Some(true) {
        breaches.push("host namespace".to_owned());
    }
    for volume in pod.volumes.iter().flatten() {
        if volume.empty_dir.is_none() && volume.persistent_volume_claim.is_none() && volume.secret.is_none() {
            breaches.push(format!("volume {}", volume.name));
        }
    }
    let own = pod.security_context.clone().unwrap_or_default();
    for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
        let context = container.security_context.clone().unwrap_or_default();
        let capabilities = context.capabilities.clone().unwrap_or_default();
        let seccomp = context.seccomp_profile.or_else(|| own.seccomp_profile.clone());
        for (broken, rule) in [
            (context.allow_privilege_escalation != Some(false), "allowPrivilegeEscalation"),
            (context.privileged == Some(true), "privileged"),
            (context.run_as_non_root.or(own.run_as_non_root) != Some(true), "runAsNonRoot"),
            (context.run_as_user.or(own.run_as_user) == Some(0), "runAsUser"),
            (capabilities.drop != Some(vec!["ALL".to_owned()]) || capabilities.add.is_some(), "capabilities"),
            (seccomp.is_none_or(|profile| profile.type_ != "RuntimeDefault"), "seccompProfile"),
            (context.proc_mount.is_some(), "procMount"),
            (container.ports.iter().flatten().any(|port| port.host_port.is_some()), "hostPort"),
        ] {
            if broken {
                breaches.push(format!("{}: {rule}", container.name));
            }
        }
    }
    breaches
}

#[test]
fn every_job_satisfies_the_restricted_profile() {
    for ctx in [context(), in_a_bucket(), on_an_encrypted_claim()] {
        for (step, job) in all(&ctx) {
            assert_eq!(breaches(pod(&job)), Vec::<String>::new(), "{step}");
        }
    }
}

#[test]
fn every_job_is_ours_alone_runs_once_and_carries_no_token() {
    for (step, job) in all(&context()) {
        let (spec, pod_spec) = (job.spec.as_ref().unwrap(), pod(&job));
        assert_eq!(job.metadata.name.as_deref(), Some(format!("memoria-7-{step}").as_str()));
        assert!(job.metadata.owner_references.is_none());
        // The one that nobody waits for goes by itself.
        assert_eq!(spec.ttl_seconds_after_finished, (step == "at-risk").then_some(3600), "{step}");
        assert_eq!((spec.backoff_limit, spec.pod_replacement_policy.as_deref()), (Some(0), Some("Failed")));
        assert_eq!(pod_spec.restart_policy.as_deref(), Some("Never"));
        assert_eq!(
            (pod_spec.automount_service_account_token, pod_spec.enable_service_links),
            (Some(false), Some(false))
        );
        let labels = spec.template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
        assert!(labels.keys().all(|key| key.starts_with("memoria.arca.run/")), "{labels:?}");
        assert_eq!(pod_spec.containers.len(), 1);
        assert_eq!(pod_spec.containers[0].name, MAIN);
        for container in containers(&job) {
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(context.read_only_root_filesystem, Some(true), "{step} {}", container.name);
            assert!(container.volume_mounts.iter().flatten().any(|mount| mount.mount_path == "/tmp"));
            assert!(container.resources.as_ref().unwrap().limits.is_some());
            assert!(!serde_json::to_string(container).unwrap().contains("never copied"));
        }
    }
}

#[test]
fn orders_come_back_as_they_were_given_although_the_kubelet_expands_dollars() {
    for (step, job) in all(&context()) {
        let mut orders = 0;
        for container in containers(&job) {
            if let Some(value) = env(container, ORDER_ENV).and_then(|entry| entry.value.as_deref()) {
                assert!(!value.contains('$'));
                let order: JobOrder = serde_json::from_str(value).unwrap();
                if let JobOrder::Check(check) = order {
                    assert_eq!(Some(&check.checks[0].pass_when), a_check().pass_when.as_ref());
                    assert_eq!(check.checks[0].headers, ["X-API-Key", "X-Other"]);
                    assert!(env(container, "MEMORIA_OPERATOR_HEADER_0_1").unwrap().value_from.is_some());
                }
                orders += 1;
            }
            if let Some(value) = env(container, RUNNER_ORDER_ENV).and_then(|entry| entry.value.as_deref()) {
                let order: RunnerOrder = serde_json::from_str(value).unwrap();
                assert_eq!((order.step.as_str(), order.attempt.as_str()), (step, "memoria-7"));
                assert_eq!(order.ask_cli, step == "probe-server");
                orders += 1;
            }
        }
        assert!(orders > 0, "{step}");
    }
}

#[test]
fn only_those_jobs_see_the_database_that_need_it() {
    for (step, job) in all(&context()) {
        let seeing: BTreeSet<_> =
            containers(&job).filter(|c| env(c, DATABASE_URL_ENV).is_some()).map(|c| c.name.as_str()).collect();
        let expected: &[&str] = match step {
            "inspect" | "fence" | "snapshot" | "baseline" | "at-risk" | "restore" => &["main"],
            "rehearsal" => &["guard"],
            "migrate" => &["guard", "main"],
            _ => &[],
        };
        assert_eq!(seeing, expected.iter().copied().collect(), "{step}");
    }
}

#[test]
fn the_deadline_of_a_job_is_far_above_what_runs_in_it() {
    let ctx = context();
    let deadline = |job: Job| job.spec.unwrap().active_deadline_seconds.unwrap();
    assert_eq!(deadline(snapshot(&ctx).unwrap()), 2 * 3600 + 900);
    assert!(deadline(migrate(&ctx, SERVER, &[], "x").unwrap()) > 2 * (1800 + 3600));
}

#[test]
fn images_by_tag_are_pulled_in_any_case() {
    let policy = |image: &str| {
        let job = probe(&context(), &Probe { name: "x", image, ask_cli: false }).unwrap();
        pod(&job).containers[0].image_pull_policy.clone().unwrap()
    };
    assert_eq!(policy("registry.arca.run/memoria/server:1.0.1"), "Always");
    assert_eq!(policy(SERVER), "IfNotPresent");
}

#[test]
fn without_a_claim_an_empty_directory_takes_its_place() {
    let job = reference(&JobContext { storage: Storage::Nowhere, ..context() }, SERVER, 0).unwrap();
    let volumes = pod(&job).volumes.clone().unwrap();
    let storage = volumes.iter().find(|volume| volume.name == "snapshots").unwrap();
    assert!(storage.empty_dir.is_some() && storage.persistent_volume_claim.is_none());
}

#[test]
fn the_input_reaches_the_container_with_the_order_and_changes_the_hash() {
    let pinned = migrate(&context(), SERVER, &[], "x").unwrap();
    let input = |sha: &str| JobInput { manifest_sha256: Some(sha.to_owned()), ..JobInput::default() };
    let job = with_input(pinned.clone(), &input("aa")).unwrap();
    let hash = |job: &Job| job.metadata.annotations.as_ref().unwrap()[TEMPLATE_HASH_ANNOTATION].clone();
    let guard = containers(&job).find(|c| c.name == "guard").unwrap();
    let given: JobInput = serde_json::from_str(env(guard, INPUT_ENV).unwrap().value.as_deref().unwrap()).unwrap();
    assert_eq!(given, input("aa"));
    assert!(containers(&job).filter(|c| c.name != "guard").all(|c| env(c, INPUT_ENV).is_none()));
    assert_eq!(hash(&job), template_hash(&job).unwrap(), "its own annotation does not count");
    assert_ne!(hash(&job), hash(&with_input(pinned.clone(), &input("bb")).unwrap()));
    let stored: Job = serde_json::from_value(serde_json::to_value(&pinned).unwrap()).unwrap();
    assert_eq!(hash(&job), hash(&with_input(stored, &input("aa")).unwrap()), "pinned in a plan and read again");
    assert_eq!(with_input(job.clone(), &input("aa")).unwrap(), job);
}

#[test]
fn what_is_not_known_yet_is_said() {
    let ctx = JobContext { tools_image: None, identity: None, ..context() };
    assert_eq!(snapshot(&ctx).unwrap_err(), RenderError::NoIdentity("snapshot"));
    assert_eq!(reference(&ctx, SERVER, 0).unwrap_err(), RenderError::NoTools("reference"));
    let ctx = JobContext { attempt: "Memoria_7".to_owned(), ..context() };
    assert!(fence(&ctx).unwrap_err().to_string().contains("\"Memoria_7\""));
}

#[test]
fn the_servers_place_and_user_are_copied_and_the_spec_wins() {
    let found = shape(&server_template(), SecurityContextMode::Restricted).unwrap();
    assert_eq!((found.run_as_user, found.run_as_group, found.fs_group), (Some(1000), Some(1001), Some(2000)));
    assert_eq!(found.image_pull_secrets[0].name, "registry");
    assert_eq!(found.node_selector["disk"], "fast");
    let jobs = Jobs { node_selector: Some([("disk".to_owned(), "slow".to_owned())].into()), ..Jobs::default() };
    let found = PodShape::from_server(&server_template(), "server", &jobs, &UrlFrom::default()).unwrap();
    assert_eq!((found.node_selector["disk"].as_str(), found.tolerations.len()), ("slow", 1));
}

#[test]
fn as_server_copies_the_whole_context_but_our_own_programs_stay_unprivileged() {
    let mut template = server_template();
    let root = json!({"runAsUser": 0, "runAsNonRoot": false});
    template.spec.as_mut().unwrap().security_context = serde_json::from_value(root).unwrap();
    let refused = shape(&template, SecurityContextMode::Restricted).unwrap_err().to_string();
    assert!(refused.contains("runAsUser: 0") && refused.contains("jobs.securityContext: AsServer"), "{refused}");
    let ctx = JobContext { shape: shape(&template, SecurityContextMode::AsServer).unwrap(), ..context() };
    let job = migrate(&ctx, SERVER, &[], "x").unwrap();
    assert_eq!(pod(&job).security_context.as_ref().unwrap().run_as_user, Some(0));
    for container in containers(&job) {
        let context = container.security_context.as_ref().unwrap();
        let expected = if container.name == MAIN { None } else { Some(65532) };
        assert_eq!(context.run_as_user, expected, "{}", container.name);
        assert_eq!(context.run_as_non_root, expected.map(|_| true));
    }
}

#[test]
fn without_a_user_the_images_own_is_kept_and_ours_is_nobody() {
    let mut template = server_template();
    template.spec.as_mut().unwrap().security_context = None;
    let ctx = JobContext { shape: shape(&template, SecurityContextMode::Restricted).unwrap(), ..context() };
    let job = migrate(&ctx, SERVER, &[], "x").unwrap();
    let users: Vec<_> =
        containers(&job).map(|c| (c.name.as_str(), c.security_context.as_ref().unwrap().run_as_user)).collect();
    assert_eq!(users, [("install", Some(65532)), ("guard", Some(65532)), ("main", None)]);
    assert_eq!(breaches(pod(&job)), Vec::<String>::new());
}

/// Names and values of the database entries, for a Server with this environment.
fn entries(env: Value, env_from: bool) -> Result<Vec<(String, String)>, String> {
    let mut container = json!({"name": "server", "env": env});
    if env_from {
        container["envFrom"] = json!([{"secretRef": {"name": "all"}}]);
    }
    let template = template(json!({"spec": {"containers": [container]}}));
    let shape = shape(&template, SecurityContextMode::Restricted).map_err(|error| error.to_string())?;
    let text = |value: Option<String>| value.unwrap_or_else(|| "(reference)".to_owned());
    Ok(shape.database_env.into_iter().map(|entry| (entry.name, text(entry.value))).collect())
}

const URL: &str = "MEMORIA_DATABASE__CONNECTION_STRING";

#[test]
fn references_are_copied_with_the_entries_they_need() {
    let secret = json!({"secretKeyRef": {"name": "db", "key": "password"}});
    let env = json!([
        {"name": "DB_HOST", "value": "db"},
        {"name": "UNUSED", "value": "x"},
        {"name": "DB_PASSWORD", "valueFrom": secret},
        {"name": URL, "value": "postgresql://stale@db/m"},
        {"name": URL, "value": "postgresql://m:$(DB_PASSWORD)@$(DB_HOST):5432/m?a=$$(x)"},
    ]);
    let found = entries(env, true).unwrap();
    let expected = [
        ("DB_HOST", "db"),
        ("DB_PASSWORD", "(reference)"),
        (DATABASE_URL_ENV, "postgresql://m:$(DB_PASSWORD)@$(DB_HOST):5432/m?a=$$(x)"),
    ];
    assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let config_map = json!([{"name": URL, "valueFrom": {"configMapKeyRef": {"name": "c", "key": "url"}}}]);
    assert_eq!(entries(config_map, false).unwrap()[0].0, DATABASE_URL_ENV);
    let plain = entries(json!([{"name": URL, "value": "postgresql://m@db/m"}]), false).unwrap();
    assert_eq!(plain[0].1, "postgresql://m@db/m");
}

#[test]
fn a_source_that_cannot_be_handed_on_is_refused_with_the_fix() {
    let secret = "correct-horse";
    for (env, env_from, expected) in [
        (json!([]), false, "has no environment entry MEMORIA_DATABASE__CONNECTION_STRING; name the entry"),
        (json!([]), true, "envFrom"),
        (json!([{"name": URL, "value": format!("postgresql://m:{secret}@db/m")}]), false, "literal with a password"),
        (
            json!([{"name": URL, "value": format!("postgresql://m@db/m?password={secret}")}]),
            false,
            "literal with a pass",
        ),
        (
            json!([{"name": "PW", "value": secret}, {"name": URL, "value": "postgresql://m:$(PW)@db/m"}]),
            false,
            "literal with a password",
        ),
        (json!([{"name": URL, "value": "postgresql://m:$(PW)@db/m"}]), true, "entry PW, but it has envFrom"),
        (json!([{"name": URL, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]), false, "fieldRef"),
        (json!([{"name": URL, "value": ""}]), false, "is empty"),
        (
            json!([{"name": "A", "value": "$(B)"}, {"name": "B", "value": "$(A)"}, {"name": URL, "value": "$(A)"}]),
            false,
            "refers to entries that refer to each other",
        ),
    ] {
        let message = entries(env.clone(), env_from).unwrap_err();
        assert!(message.contains(expected), "{env}: {message}");
        assert!(message.contains("database.urlFrom") || expected == "is empty", "{message}");
        assert!(!message.contains(secret));
    }
    let jobs = Jobs::default();
    let absent = PodShape::from_server(&server_template(), "web", &jobs, &UrlFrom::default()).unwrap_err().to_string();
    assert!(absent.contains("\"web\"") && absent.contains("\"sidecar\", \"server\""), "{absent}");
}

#[test]
fn a_named_secret_needs_nothing_of_the_server() {
    let key = KeyRef { name: "db".to_owned(), key: "url".to_owned() };
    let from = UrlFrom { env: None, secret_key_ref: Some(key) };
    let template = template(json!({"spec": {"containers": [{"name": "server"}]}}));
    let shape = PodShape::from_server(&template, "server", &Jobs::default(), &from).unwrap();
    let reference = shape.database_env[0].value_from.as_ref().unwrap().secret_key_ref.as_ref().unwrap();
    assert_eq!((reference.name.as_str(), reference.key.as_str()), ("db", "url"));
}

#[test]
fn the_runners_answers_are_answers_of_a_job() {
    use memoria_runner::order::{Category, Facts, ProbeFacts, Report};
    for category in [None, Some(Category::Candidate), Some(Category::Environment), Some(Category::Bug)] {
        let probe = ProbeFacts { uid: 7, gid: 8, cli: Some(true), migrations: vec!["a".to_owned()], runs_all: true };
        let report = Report {
            v: 1,
            ok: category.is_none(),
            reason: "Done".to_owned(),
            message: "m".to_owned(),
            category,
            facts: Some(Facts::Probe(probe)),
        };
        let value = serde_json::to_value(&report).unwrap();
        let read: JobReport = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), value);
    }
}
