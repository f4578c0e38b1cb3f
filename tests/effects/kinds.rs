//! Workers of every kind, stopped and brought back: whole objects are compared, and only what must differ does.

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        batch::v1::{CronJob, Job},
        core::v1::Pod,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, PostParams},
    core::GroupVersionKind,
};
use memoria_operator::{
    api::{
        release::{Verdict, WorkerKind, WorkerRef},
        upgrade::PlannedWorker,
    },
    cluster::{Kind, adopt, preflight},
    upgrade::{Action, Precondition, Prior, seen::Switch},
};
use serde_json::{Value, json};

use crate::world::World;

fn named(kind: WorkerKind, name: &str) -> WorkerRef {
    WorkerRef { kind, name: name.to_owned() }
}

fn api(world: &World, kind: WorkerKind) -> Api<DynamicObject> {
    let gvk = match kind {
        WorkerKind::CronJob => GroupVersionKind::gvk("batch", "v1", "CronJob"),
        WorkerKind::Job => GroupVersionKind::gvk("batch", "v1", "Job"),
        WorkerKind::ScaledObject => GroupVersionKind::gvk("keda.sh", "v1alpha1", "ScaledObject"),
        WorkerKind::Deployment => GroupVersionKind::gvk("apps", "v1", "Deployment"),
        WorkerKind::StatefulSet => GroupVersionKind::gvk("apps", "v1", "StatefulSet"),
    };
    Api::namespaced_with(world.client.clone(), &world.ns, &ApiResource::from_gvk(&gvk))
}

async fn read(world: &World, worker: &WorkerRef) -> DynamicObject {
    api(world, worker.kind).get(&worker.name).await.unwrap()
}

fn precondition(object: &DynamicObject) -> Precondition {
    Precondition { uid: object.uid().unwrap(), resource_version: object.resource_version().unwrap() }
}

/// Without what every write changes.
fn bare(object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap();
    let metadata = value["metadata"].as_object_mut().unwrap();
    for key in ["managedFields", "resourceVersion", "generation"] {
        metadata.remove(key);
    }
    value
}

fn pod_template() -> Value {
    json!({"metadata": {"labels": {"app": "batch"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "registry.arca.run/memoria/server:0.9.0"}]}})
}

async fn cron_job(world: &World, suspend: bool) -> WorkerRef {
    world
        .create::<CronJob>(json!({"metadata": {"name": "nightly", "annotations": {"team": "data"}}, "spec": {
            "schedule": "0 3 * * *", "suspend": suspend, "jobTemplate": {"spec": {"template": pod_template()}}}}))
        .await;
    named(WorkerKind::CronJob, "nightly")
}

async fn job(world: &World) -> WorkerRef {
    world.create::<Job>(json!({"metadata": {"name": "backfill"}, "spec": {"template": pod_template()}})).await;
    named(WorkerKind::Job, "backfill")
}

fn planned(worker: &WorkerRef, uid: String) -> PlannedWorker {
    serde_json::from_value(json!({"workload": worker, "uid": uid, "replicas": 0})).unwrap()
}

/// Plans these workers besides what the world has; the stored plan is not needed for it.
async fn plan(world: &mut World, workers: &[&WorkerRef]) {
    for worker in workers {
        let uid = read(world, worker).await.uid().unwrap();
        world.upgrade.spec.workers.push(planned(worker, uid));
        world.release.spec.ingestion.workers.push((*worker).clone());
    }
}

async fn mark(world: &World, worker: &WorkerRef, prior: Prior) {
    let uid = read(world, worker).await.uid().unwrap();
    world.act(Action::Mark { workload: worker.clone(), uid, prior, back: false }).await.unwrap();
}

async fn unmark(world: &World, worker: &WorkerRef) {
    let uid = read(world, worker).await.uid().unwrap();
    world.act(Action::Unmark { workload: worker.clone(), uid }).await.unwrap();
}

/// What is left of an attempt on what was `before`: the owner.
fn owned(world: &World, mut before: Value) -> Value {
    before["metadata"]["annotations"]["memoria.arca.run/owner"] = json!(world.release.uid().unwrap());
    before
}

#[tokio::test]
async fn cron_jobs_and_jobs_are_suspended_and_come_back_unchanged_but_for_their_owner() {
    let mut world = World::new("kinds-batch").await;
    let (cron, job) = (cron_job(&world, false).await, job(&world).await);
    plan(&mut world, &[&cron, &job]).await;
    for worker in [&cron, &job] {
        let before = read(&world, worker).await;
        mark(&world, worker, Prior::Suspend(false)).await;
        let marked = read(&world, worker).await;
        let suspend = |at: &DynamicObject, suspend| Action::Suspend {
            worker: worker.clone(),
            precondition: precondition(at),
            suspend,
        };
        let stale = world.act(suspend(&before, true)).await.unwrap_err();
        assert_eq!(stale.kind, Kind::Stale, "decided before the mark: {stale}");
        world.act(suspend(&marked, true)).await.unwrap();

        let stopped = read(&world, worker).await;
        let mut expected = owned(&world, bare(&before));
        expected["metadata"]["annotations"]["memoria.arca.run/attempt"] = json!("memoria-1");
        expected["metadata"]["annotations"]["memoria.arca.run/prior-suspend"] = json!("false");
        expected["spec"]["suspend"] = json!(true);
        assert_eq!(bare(&stopped), expected);
        let seen = world.observe().await.workers.remove(worker).unwrap();
        assert_eq!(seen.switch, Switch::Suspend { suspended: true, finished: false });
        assert!(seen.is_gone() && seen.attempt.as_deref() == Some("memoria-1"), "{seen:?}");

        world.act(suspend(&stopped, false)).await.unwrap();
        unmark(&world, worker).await;
        assert_eq!(bare(&read(&world, worker).await), owned(&world, bare(&before)));
    }
}

#[tokio::test]
async fn a_cron_job_is_gone_when_its_last_job_and_pod_are() {
    let mut world = World::new("kinds-running").await;
    let cron = cron_job(&world, true).await;
    plan(&mut world, &[&cron]).await;
    let uid = read(&world, &cron).await.uid().unwrap();
    let owner =
        json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": uid, "controller": true}]);
    let made: Job = world
        .create(json!({"metadata": {"name": "nightly-29000000", "ownerReferences": owner}, "spec": {"template": pod_template()}}))
        .await;
    let pod = world.job_pod(&made, json!({"phase": "Running"})).await;
    // `job_pod` gives the labels of the Job; its controller gives this one.
    let label = json!({"metadata": {"labels": {"job-name": made.name_any()}}});
    world.api::<Pod>().patch(&pod.name_any(), &Default::default(), &kube::api::Patch::Merge(label)).await.unwrap();
    let seen = world.observe().await.workers.remove(&cron).unwrap();
    assert_eq!(seen.unfinished, ["nightly-29000000"]);
    assert_eq!(seen.pods.len(), 1);
    assert!(seen.is_told_to_stop() && !seen.is_gone());

    let now = "2026-01-01T00:00:00Z";
    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": now});
    let done = json!({"startTime": now, "completionTime": now, "succeeded": 1,
        "conditions": [condition("SuccessCriteriaMet"), condition("Complete")]});
    world.set_status::<Job>("nightly-29000000", done).await;
    let seen = world.observe().await.workers.remove(&cron).unwrap();
    assert!(seen.unfinished.is_empty() && !seen.is_gone(), "its pod still runs: {seen:?}");
    world.set_status::<Pod>(&pod.name_any(), json!({"phase": "Succeeded"})).await;
    assert!(world.observe().await.workers[&cron].is_gone());
}

/// The part of KEDA's schema that matters.
fn keda() -> CustomResourceDefinition {
    let spec = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    serde_json::from_value(json!({
        "metadata": {"name": "scaledobjects.keda.sh"},
        "spec": {"group": "keda.sh", "scope": "Namespaced",
            "names": {"kind": "ScaledObject", "listKind": "ScaledObjectList", "plural": "scaledobjects", "singular": "scaledobject"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": spec, "status": spec}}}}]}
    }))
    .unwrap()
}

async fn install_keda(world: &World) {
    let api: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    api.create(&PostParams::default(), &keda()).await.unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while self::api(world, WorkerKind::ScaledObject).list(&Default::default()).await.is_err() {
        assert!(std::time::Instant::now() < end, "the kind is not served");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// One test for all of KEDA: the kind is the whole server's.
#[tokio::test]
async fn a_scaled_object_is_paused_and_comes_back_and_its_absence_is_no_error() {
    let mut world = World::new("kinds-keda").await;
    let queue = named(WorkerKind::ScaledObject, "queue");
    world.release.spec.ingestion.workers.push(queue.clone());
    world.upgrade.spec.workers.push(planned(&queue, "none".to_owned()));
    assert!(!world.observe().await.workers.contains_key(&queue), "there is no such kind yet");
    let found = adopt(&world.client, &world.ns, &world.release).await.unwrap();
    let check = found.checks.iter().find(|check| check.name == "worker-scaledobject-queue").unwrap();
    assert!(check.result == Verdict::Failed && check.message.contains("KEDA is not installed"), "{check:?}");

    install_keda(&world).await;
    world.create::<Deployment>(crate::world::deployment("queue")).await;
    let object = json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "queue"},
        "spec": {"scaleTargetRef": {"name": "queue"}, "minReplicaCount": 1, "triggers": [{"type": "cron"}]}});
    let made = api(&world, WorkerKind::ScaledObject)
        .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
        .await
        .unwrap();
    world.upgrade.spec.workers.last_mut().unwrap().uid = made.uid().unwrap();
    let found = adopt(&world.client, &world.ns, &world.release).await.unwrap();
    let worker = found.workers.iter().find(|worker| worker.workload == queue).unwrap();
    assert_eq!(worker.scales.as_ref().unwrap().to_string(), "deployment/queue");

    for prior in [None, Some("2")] {
        if let Some(count) = prior {
            let set = json!({"metadata": {"annotations": {"autoscaling.keda.sh/paused-replicas": count}}});
            let patch = kube::api::Patch::Merge(set);
            api(&world, queue.kind).patch("queue", &Default::default(), &patch).await.unwrap();
        }
        let before = read(&world, &queue).await;
        let prior = prior.map(str::to_owned);
        mark(&world, &queue, Prior::Paused(prior.clone())).await;
        let pause = |at: &DynamicObject, replicas: Option<String>| Action::PauseAutoscaler {
            worker: queue.clone(),
            precondition: precondition(at),
            replicas,
        };
        assert_eq!(world.act(pause(&before, Some("0".to_owned()))).await.unwrap_err().kind, Kind::Stale);
        world.act(pause(&read(&world, &queue).await, Some("0".to_owned()))).await.unwrap();
        let stopped = read(&world, &queue).await;
        let absent = prior.clone().unwrap_or_else(|| "absent".to_owned());
        assert_eq!(stopped.annotations()["memoria.arca.run/prior-paused-replicas"], absent);
        assert_eq!(stopped.annotations()["autoscaling.keda.sh/paused-replicas"], "0");
        assert_eq!(bare(&stopped)["spec"], bare(&before)["spec"]);
        let seen = world.observe().await.workers.remove(&queue).unwrap();
        assert!(seen.is_told_to_stop() && !seen.is_gone(), "what it scales still has replicas: {seen:?}");

        world.act(pause(&stopped, prior)).await.unwrap();
        unmark(&world, &queue).await;
        assert_eq!(bare(&read(&world, &queue).await), owned(&world, bare(&before)));
    }
    // As KEDA does, while it is paused at zero.
    let zero = kube::api::Patch::Merge(json!({"spec": {"replicas": 0}}));
    world.api::<Deployment>().patch("queue", &Default::default(), &zero).await.unwrap();
    let pause = Action::PauseAutoscaler {
        worker: queue.clone(),
        precondition: precondition(&read(&world, &queue).await),
        replicas: Some("0".to_owned()),
    };
    world.act(pause).await.unwrap();
    assert!(world.observe().await.workers[&queue].is_gone());

    // Named nowhere, it would start in mid-upgrade what the release names.
    world.release.spec.ingestion.workers.retain(|worker| *worker != queue);
    world.release.spec.ingestion.workers.push(named(WorkerKind::Deployment, "queue"));
    let found = adopt(&world.client, &world.ns, &world.release).await.unwrap();
    let finding = found.findings.iter().find(|check| check.name == "scaledobject-queue").unwrap();
    assert!(finding.result == Verdict::Failed && finding.message.contains("{kind: ScaledObject, name: queue}"));
}

#[tokio::test]
async fn each_kind_is_asked_for_before_anything_is_stopped() {
    let mut world = World::new("kinds-dry").await;
    let (cron, job) = (cron_job(&world, false).await, job(&world).await);
    plan(&mut world, &[&cron, &job]).await;
    world.upgrade.spec.workers.push(planned(&named(WorkerKind::Job, "nobody"), "none".to_owned()));
    let before = (bare(&read(&world, &cron).await), bare(&read(&world, &job).await));
    let results = preflight::dry_run(&world.client, &world.ns, &world.release, "memoria-1", &world.upgrade.spec).await;
    let of = |name: &str| results.iter().find(|result| result.name == name).unwrap();
    for name in ["admit-worker-cronjob-nightly", "admit-worker-job-backfill"] {
        assert_eq!(of(name).result, Verdict::Passed, "{}", of(name).message);
    }
    assert_eq!(of("admit-worker-job-nobody").result, Verdict::Failed);
    assert_eq!((bare(&read(&world, &cron).await), bare(&read(&world, &job).await)), before);
}

#[tokio::test]
async fn an_autoscaler_is_recorded_and_told_about() {
    let world = World::new("kinds-autoscaler").await;
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "memoria"});
    world
        .create::<HorizontalPodAutoscaler>(
            json!({"metadata": {"name": "web"}, "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 6}}),
        )
        .await;
    let found = adopt(&world.client, &world.ns, &world.release).await.unwrap();
    assert_eq!(found.targets[0].workload.autoscaler.as_deref(), Some("web"));
    assert!(found.checks.iter().all(|check| check.result == Verdict::Passed), "{:?}", found.checks);
    let note = found.findings.iter().find(|check| check.name == "managers-deployment-memoria").unwrap();
    assert_eq!(note.result, Verdict::Passed);
    assert!(
        note.message.contains("horizontalpodautoscaler/web") && note.message.contains("Quiesce"),
        "{}",
        note.message
    );
}
