//! Checks that run a CronJob's template: found, refused with the field and the fix, made once from what was planned, and
//! judged by their end.

use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::Namespace,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use memoria_operator::{
    api::{
        release::{Check, Stage, Verdict},
        upgrade::{Engine, PlannedCheck, PlannedJob},
    },
    cluster::{adopt, adopt::CheckTemplate, preflight},
    job::{
        manifest::{JobContext, PodShape, Storage, check_step, from_template},
        protocol::{Facts, JobInput, RetentionOrder},
    },
    upgrade::{Action, seen::JobState},
};
use serde_json::{Value, json};

use crate::world::World;

fn cron_job(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"memoria.arca.run/check-template": "true"}},
        "spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {
            "metadata": {"labels": {"team": "quality", "memoria.arca.run/attempt": "another"}},
            "spec": {"backoffLimit": 4, "ttlSecondsAfterFinished": 60, "activeDeadlineSeconds": 86400, "suspend": true,
                "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
                "template": {
                    "metadata": {"labels": {"team": "quality"}, "annotations": {"sidecar.istio.io/inject": "false"}},
                    "spec": {"restartPolicy": "Never", "serviceAccountName": "quality", "containers": [{
                        "name": "smoke", "image": "registry.arca.run/quality/smoke:7", "args": ["--for", "memoria"],
                        "env": [{"name": "DATABASE", "valueFrom": {"secretKeyRef": {"name": "memoria-db", "key": "url"}}}],
                    }]},
                }},
        }},
    })
}

fn check(name: &str, stage: &str) -> Check {
    let job = json!({"templateRef": {"name": name}});
    serde_json::from_value(json!({"name": name, "stage": stage, "within": "5m", "job": job})).unwrap()
}

fn context(world: &World) -> JobContext {
    JobContext {
        namespace: world.ns.clone(),
        release: "memoria".to_owned(),
        release_uid: world.release.uid().unwrap(),
        attempt: "memoria-1".to_owned(),
        operator_version: "0.1.0".to_owned(),
        from_version: "0.9.0".to_owned(),
        operator_image: "memoria-operator:0.1.0".to_owned(),
        tools_image: None,
        shape: PodShape::default(),
        cli: Vec::new(),
        storage: Storage::Nowhere,
        encryption: None,
        storage_directory: String::new(),
        portable: false,
        retention: RetentionOrder {
            release_uid: String::new(),
            keep_last: 1,
            max_age_seconds: None,
            needed: Vec::new(),
        },
        timeouts: world.release.spec.timeouts.clone(),
        identity: None,
        engine: Engine::default(),
        data: Vec::new(),
        nodes: None,
    }
}

/// Reads the CronJob as pre-flight does, and puts the check's Job into the attempt's plan.
async fn plan(world: &mut World, check: &Check) {
    world.release.spec.checks = vec![check.clone()];
    let found = adopt(&world.client, &world.ns, &world.release).await.unwrap().check_templates;
    let CheckTemplate { template, .. } = &found[&check.name];
    let job = from_template(&context(world), check, template).unwrap();
    world.upgrade.spec.jobs.push(PlannedJob {
        step: check_step(&check.name),
        check: Some(PlannedCheck { stage: check.stage, required: true }),
        manifest: serde_json::to_value(job).unwrap(),
    });
}

fn create(check: &str, address: Option<&str>) -> Action {
    let candidate_address = address.map(|address| address.parse().unwrap());
    Action::CreateJob { step: check_step(check), input: JobInput { candidate_address, ..JobInput::default() } }
}

/// Verdict and message on the check, once its Job has ended.
async fn verdict(world: &World, check: &str) -> (Verdict, String) {
    let state = world.observe().await.jobs.remove(&check_step(check)).unwrap().state;
    let JobState::Finished { report: Some(report), .. } = state else { panic!("{state:?}") };
    let Some(Facts::Check(facts)) = report.facts else { panic!("{report:?}") };
    (facts.checks[0].result, facts.checks[0].message.clone())
}

async fn end(world: &World, job: &str, type_: &str, reason: &str) {
    let now = "2026-01-01T00:00:00Z";
    let before = if type_ == "Complete" { "SuccessCriteriaMet" } else { "FailureTarget" };
    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": reason, "lastTransitionTime": now});
    let mut status = json!({"startTime": now, "conditions": [condition(before), condition(type_)]});
    status[if type_ == "Complete" { "succeeded" } else { "failed" }] = json!(1);
    if type_ == "Complete" {
        status["completionTime"] = json!(now);
    }
    world.set_status::<Job>(job, status).await;
}

async fn pod(world: &World, job: &Job, exit: i32) {
    let ended = json!({"exitCode": exit, "reason": if exit == 0 { "Completed" } else { "Error" },
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z",
        "message": r#"{"v":1,"ok":true,"reason":"Done","message":"all is well"}"#});
    let container = json!({"name": "main", "image": "m", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": ended}});
    let phase = if exit == 0 { "Succeeded" } else { "Failed" };
    world.job_pod(job, json!({"phase": phase, "containerStatuses": [container]})).await;
}

#[tokio::test]
async fn the_job_is_the_template_as_it_was_planned_run_once_and_marked_as_ours() {
    let mut world = World::new("check-jobs").await;
    world.create::<CronJob>(cron_job("smoke")).await;
    plan(&mut world, &check("smoke", "AfterIngestion")).await;
    let patch = Patch::Json::<()>(
        serde_json::from_value(json!([
            {"op": "replace", "path": "/spec/jobTemplate/spec/template/spec/containers/0/image", "value": "evil:1"},
        ]))
        .unwrap(),
    );
    world.api::<CronJob>().patch("smoke", &PatchParams::default(), &patch).await.unwrap();

    world.act(create("smoke", None)).await.unwrap();
    let made = world.get::<Job>("memoria-1-check-smoke").await;
    world.act(create("smoke", None)).await.unwrap();
    assert_eq!(world.get::<Job>("memoria-1-check-smoke").await.uid(), made.uid());
    assert_eq!(made.owner_references(), []);
    assert_eq!(
        (made.labels()["team"].as_str(), made.labels()["memoria.arca.run/attempt"].as_str()),
        ("quality", "memoria-1")
    );
    let spec = made.spec.clone().unwrap();
    assert_eq!((spec.backoff_limit, spec.active_deadline_seconds), (Some(0), Some(360)));
    assert_eq!((spec.suspend, spec.ttl_seconds_after_finished), (Some(false), None));
    assert_eq!(spec.pod_failure_policy, None);
    let template = spec.template.metadata.unwrap();
    assert_eq!(template.labels.unwrap()["memoria.arca.run/step"], "check-smoke");
    assert_eq!(template.annotations.unwrap()["sidecar.istio.io/inject"], "false");
    let pod_spec = spec.template.spec.unwrap();
    assert_eq!(pod_spec.active_deadline_seconds, Some(300));
    assert_eq!(pod_spec.automount_service_account_token, Some(false), "nobody asked for a token");
    assert_eq!(pod_spec.service_account_name.as_deref(), Some("quality"));
    assert_eq!(pod_spec.containers[0].image.as_deref(), Some("registry.arca.run/quality/smoke:7"));
    let env = pod_spec.containers[0].env.as_ref().unwrap();
    assert_eq!(env.len(), 1, "it is told nothing of the operator's: {env:?}");

    assert!(matches!(world.observe().await.jobs["check-smoke"].state, JobState::Running { trouble: None }));
    pod(&world, &made, 3).await;
    end(&world, "memoria-1-check-smoke", "Failed", "BackoffLimitExceeded").await;
    let (result, message) = verdict(&world, "smoke").await;
    assert_eq!(result, Verdict::Failed, "what it printed looks like a good report: {message}");
    assert_eq!(message, "container main: exit code 3; job memoria-1-check-smoke at 2026-01-01T00:00:00Z");
}

#[tokio::test]
async fn a_check_that_completes_has_passed_and_one_out_of_time_says_nothing() {
    let mut world = World::new("check-ends").await;
    for (name, stage) in [("good", Stage::AfterIngestion), ("slow", Stage::IngestionReenable)] {
        world.create::<CronJob>(cron_job(name)).await;
        plan(&mut world, &Check { stage, ..check(name, "AfterIngestion") }).await;
        world.act(create(name, None)).await.unwrap();
    }
    pod(&world, &world.get::<Job>("memoria-1-check-good").await, 0).await;
    end(&world, "memoria-1-check-good", "Complete", "CompletionsReached").await;
    assert_eq!(verdict(&world, "good").await.0, Verdict::Passed);
    end(&world, "memoria-1-check-slow", "Failed", "DeadlineExceeded").await;
    let (result, message) = verdict(&world, "slow").await;
    assert!(result == Verdict::Inconclusive && message.contains("DeadlineExceeded"), "{result:?}: {message}");
    let uid = world.get::<Job>("memoria-1-check-slow").await.uid().unwrap();
    world.act(Action::ArmJobTtl { step: "check-slow".to_owned(), uid }).await.unwrap();
    assert!(world.observe().await.jobs["check-slow"].ttl_armed);
}

#[tokio::test]
async fn a_candidates_check_is_told_its_address_and_another_candidates_is_another_job() {
    let mut world = World::new("check-candidate").await;
    world.create::<CronJob>(cron_job("first")).await;
    plan(&mut world, &check("first", "BeforeIngestion")).await;
    world.act(create("first", Some("fd00::9"))).await.unwrap();
    let made = world.get::<Job>("memoria-1-check-first").await;
    let env = made.spec.unwrap().template.spec.unwrap().containers[0].env.clone().unwrap();
    assert_eq!((env[0].name.as_str(), env[0].value.as_deref()), ("MEMORIA_CANDIDATE", Some("[fd00::9]")));
    assert!(matches!(world.observe().await.jobs["check-first"].state, JobState::Running { .. }));
    assert!(world.act(create("first", Some("10.0.0.9"))).await.is_err(), "it asks another candidate");
}

#[tokio::test]
async fn a_pod_that_would_not_be_admitted_is_known_before_anything_is_touched() {
    let mut world = World::new("check-quota").await;
    world.create::<CronJob>(cron_job("big")).await;
    plan(&mut world, &check("big", "AfterIngestion")).await;
    let restricted = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    Api::<Namespace>::all(world.client.clone())
        .patch(&world.ns, &PatchParams::default(), &Patch::Merge(restricted))
        .await
        .unwrap();
    let results = preflight::dry_run(&world.client, &world.ns, &world.release, "memoria-1", &world.upgrade.spec).await;
    let told = results.iter().find(|result| result.name == "admit-job-check-big").unwrap();
    assert_eq!(told.result, Verdict::Failed, "{}", told.message);
    assert!(told.message.contains("violates PodSecurity"), "{}", told.message);
    assert!(world.api::<Job>().list(&Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn cron_jobs_are_read_with_their_authors_word_and_only_while_an_upgrade_is_wanted() {
    let mut world = World::new("check-found").await;
    world.create::<CronJob>(cron_job("allowed")).await;
    let mut silent = cron_job("silent");
    silent["metadata"]["annotations"] = json!({"memoria.arca.run/check-template": "maybe"});
    world.create::<CronJob>(silent).await;
    world.release.spec.checks = ["allowed", "silent", "gone"].map(|name| check(name, "PreFlight")).to_vec();
    let found = adopt(&world.client, &world.ns, &world.release).await.unwrap().check_templates;
    let allowed: Vec<_> = found.iter().map(|(name, found)| (name.as_str(), found.allowed)).collect();
    assert_eq!(allowed, [("allowed", true), ("silent", false)]);
    world.release.spec.version = "0.9.0".to_owned();
    assert!(adopt(&world.client, &world.ns, &world.release).await.unwrap().check_templates.is_empty());
}
