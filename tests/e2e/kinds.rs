//! Workers of every kind: a Deployment that is scaled by a HorizontalPodAutoscaler, a StatefulSet, a CronJob with a Job
//! that is under way, a Job, and a ScaledObject, whose Deployment KEDA scales. Those of an SQLite installation mount the
//! file's volume, as they must.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
};
use kube::{
    ResourceExt as _,
    api::{DynamicObject, PostParams},
};
use memoria_operator::api::{
    marks,
    release::{WorkerKind, WorkerRef},
    upgrade::Outcome as Ended,
};
use serde_json::{Value, json};

use crate::{
    Outcome,
    checkers::Captured,
    good::is_upgraded,
    keda::{Keda, scaled_objects},
    site::{Options, SOON, Site, TO, UPGRADED, ready, standing, with_site},
    sqlite::SQLITE,
};

/// How long the Job that is under way still takes once the upgrade begins.
const UNDER_WAY_SECONDS: u32 = 150;

/// The replicas that the autoscalers see to: more than the Deployments ask for themselves.
const AUTOSCALED: i32 = 2;

const SCALED_OBJECT: &str = "queue";

#[tokio::test]
async fn workers_of_every_kind_stop_for_an_upgrade_and_come_back_as_they_were() -> Outcome {
    with_site("kinds", Options::default(), stop_and_come_back).await
}

#[tokio::test]
async fn workers_of_every_kind_beside_an_sqlite_file_stop_and_come_back_as_they_were() -> Outcome {
    with_site("kinds-sqlite", SQLITE, stop_and_come_back).await
}

async fn stop_and_come_back(site: &Site) -> Outcome {
    let keda = Keda::start(site).await?;
    let result = upgrade(site).await.with_context(|| format!("KEDA said last:\n{}", keda.said()));
    keda.stop(site, SCALED_OBJECT).await?;
    result
}

async fn upgrade(site: &Site) -> Outcome {
    install(site).await?;
    let mut release = site.new_release()?;
    for (kind, name) in [
        (WorkerKind::ScaledObject, SCALED_OBJECT),
        (WorkerKind::Deployment, "steady"),
        (WorkerKind::StatefulSet, "ingest"),
        (WorkerKind::CronJob, "nightly"),
        (WorkerKind::Job, "backfill"),
    ] {
        release.spec.ingestion.workers.push(WorkerRef { kind, name: name.to_owned() });
    }
    site.create(&release).await?;
    site.until("adopted", SOON, |release| ready(release).then_some(())).await?;
    all_run(site).await?;
    let before = Captured::now(site).await?;
    let under_way = run_nightly(site).await?;
    site.set_version(TO).await?;

    site.until("the snapshot", UPGRADED, |release| (standing(release).0 == "SnapshotExport").then_some(())).await?;
    all_are_stopped(site, &under_way).await?;

    let release = site.until_ended(Ended::Succeeded).await?;
    all_run(site).await?;
    no_mark_is_left(site).await?;
    is_upgraded(site, &release, &before).await
}

/// What pods of the installation's own are, with a command that only waits.
async fn template(site: &Site, restart: &str, seconds: u32) -> Result<Value> {
    let own = site.workloads().await?.pop().context("a workload")?;
    let template = own.spec.context("a spec")?.template;
    let mut template = serde_json::to_value(template)?;
    template["metadata"]["labels"] = json!({"app": "kinds"});
    template["spec"]["restartPolicy"] = json!(restart);
    template["spec"]["terminationGracePeriodSeconds"] = json!(2);
    let wait = format!("import time; time.sleep({seconds})");
    let container = &mut template["spec"]["containers"][0];
    container["command"] = json!(["python", "-c", wait]);
    for of_a_server in ["args", "ports", "startupProbe", "readinessProbe", "livenessProbe"] {
        container.as_object_mut().context("a container")?.remove(of_a_server);
    }
    Ok(template)
}

async fn install(site: &Site) -> Outcome {
    for name in ["steady", "scaled"] {
        let mut pods = template(site, "Always", 86_400).await?;
        pods["metadata"]["labels"] = json!({"app": name});
        let deployment: Deployment = serde_json::from_value(json!({"metadata": {"name": name}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": pods}}))?;
        site.api().create(&PostParams::default(), &deployment).await?;
    }
    let scaled_object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": SCALED_OBJECT}, "spec": {
            "scaleTargetRef": {"name": "scaled"}, "pollingInterval": 5,
            "minReplicaCount": AUTOSCALED, "maxReplicaCount": 4,
            // Of all day: it needs nothing beside it to ask.
            "triggers": [{"type": "cron", "metadata": {
                "timezone": "UTC", "start": "0 0 * * *", "end": "59 23 * * *", "desiredReplicas": "2"}}]}}))?;
    scaled_objects(site).create(&PostParams::default(), &scaled_object).await?;
    let autoscaler: HorizontalPodAutoscaler = serde_json::from_value(json!({"metadata": {"name": "steady"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "steady"},
        "minReplicas": AUTOSCALED, "maxReplicas": 4}}))?;
    site.api().create(&PostParams::default(), &autoscaler).await?;
    let mut pods = template(site, "Always", 86_400).await?;
    pods["metadata"]["labels"] = json!({"app": "ingest"});
    let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "ingest"}, "spec": {
        "serviceName": "ingest", "replicas": 2, "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": {"app": "ingest"}}, "template": pods}}))?;
    site.api().create(&PostParams::default(), &set).await?;
    // Never due while the test runs.
    let cron: CronJob = serde_json::from_value(json!({"metadata": {"name": "nightly"}, "spec": {
        "schedule": "0 0 29 2 *", "jobTemplate": {"spec": {
            "backoffLimit": 0, "template": template(site, "Never", UNDER_WAY_SECONDS).await?}}}}))?;
    site.api().create(&PostParams::default(), &cron).await?;
    let job: Job = serde_json::from_value(json!({"metadata": {"name": "backfill"}, "spec": {
        "template": template(site, "Never", 86_400).await?}}))?;
    site.api().create(&PostParams::default(), &job).await?;
    Ok(())
}

/// A run of the CronJob, as `kubectl create job --from` makes it.
async fn run_nightly(site: &Site) -> Result<String> {
    let cron: CronJob = site.api().get("nightly").await?;
    let owner = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": cron.uid(), "controller": true}]);
    let job: Job = serde_json::from_value(json!({
        "metadata": {"name": "nightly-by-hand", "ownerReferences": owner}, "spec": cron.spec.job_template.spec}))?;
    site.api().create(&PostParams::default(), &job).await?;
    Ok(job.name_any())
}

/// Everything that was installed has its pods.
async fn all_run(site: &Site) -> Outcome {
    for _ in 0..SOON.as_secs() {
        let mut deployments = Vec::new();
        for name in ["steady", "scaled"] {
            deployments.push(site.deployment(name).await?.status.and_then(|status| status.ready_replicas));
        }
        let set: StatefulSet = site.api().get("ingest").await?;
        let job: Job = site.api().get("backfill").await?;
        let ready = deployments.iter().all(|ready| *ready == Some(AUTOSCALED))
            && set.status.and_then(|status| status.ready_replicas) == Some(2);
        if ready && job.status.and_then(|status| status.ready) == Some(1) {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    anyhow::bail!("not everything runs within {} s", SOON.as_secs())
}

async fn all_are_stopped(site: &Site, under_way: &str) -> Outcome {
    for name in ["steady", "scaled"] {
        let spec = site.deployment(name).await?.spec;
        ensure!(spec.and_then(|spec| spec.replicas) == Some(0), "the Deployment {name} is not at zero");
    }
    let scaled_object = scaled_objects(site).get(SCALED_OBJECT).await?;
    ensure!(scaled_object.annotations().get(marks::KEDA_PAUSED_REPLICAS).is_some_and(|paused| paused == "0"));
    ensure!(keda_says(&scaled_object, "Paused") == Some("True"), "KEDA does not say that it pauses: {scaled_object:?}");
    let set: StatefulSet = site.api().get("ingest").await?;
    ensure!(set.spec.and_then(|spec| spec.replicas) == Some(0), "the StatefulSet is not at zero");
    let cron: CronJob = site.api().get("nightly").await?;
    ensure!(cron.spec.suspend == Some(true), "the CronJob is not suspended");
    ensure!(cron.annotations().get(marks::PRIOR_SUSPEND_ANNOTATION).is_some_and(|prior| prior == "false"));
    let job: Job = site.api().get("backfill").await?;
    ensure!(job.spec.and_then(|spec| spec.suspend) == Some(true), "the Job is not suspended");
    let run: Job = site.api().get(under_way).await?;
    let status = run.status.unwrap_or_default();
    ensure!(status.succeeded == Some(1), "the CronJob's run was not waited for: {status:?}");
    let left: Vec<_> = site.pods().await?.into_keys().filter(|pod| is_one_of_ours(pod, under_way)).collect();
    ensure!(left.is_empty(), "pods are left: {left:?}");
    Ok(())
}

/// The run's own pod stays listed after its end.
fn is_one_of_ours(pod: &str, under_way: &str) -> bool {
    ["steady-", "scaled-", "ingest-", "backfill-", "nightly-"].iter().any(|start| pod.starts_with(start))
        && !pod.starts_with(under_way)
}

async fn no_mark_is_left(site: &Site) -> Outcome {
    let (set, cron, job): (StatefulSet, CronJob, Job) =
        (site.api().get("ingest").await?, site.api().get("nightly").await?, site.api().get("backfill").await?);
    let steady = site.deployment("steady").await?;
    let scaled_object = scaled_objects(site).get(SCALED_OBJECT).await?;
    ensure!(!scaled_object.annotations().contains_key(marks::KEDA_PAUSED_REPLICAS), "KEDA is left paused");
    ensure!(keda_says(&scaled_object, "Paused") != Some("True"), "KEDA says that it pauses: {scaled_object:?}");
    ensure!(keda_says(&scaled_object, "Ready") == Some("True"), "KEDA does not scale: {scaled_object:?}");
    for annotations in
        [scaled_object.annotations(), steady.annotations(), set.annotations(), cron.annotations(), job.annotations()]
    {
        for mark in [
            marks::ATTEMPT_ANNOTATION,
            marks::PRIOR_REPLICAS_ANNOTATION,
            marks::PRIOR_SUSPEND_ANNOTATION,
            marks::PRIOR_PAUSED_REPLICAS_ANNOTATION,
        ] {
            ensure!(!annotations.contains_key(mark), "{mark} is left");
        }
        ensure!(annotations.contains_key(marks::OWNER_ANNOTATION), "the owner is not marked");
    }
    Ok(())
}

/// The status of one of KEDA's conditions of a ScaledObject.
fn keda_says<'a>(scaled_object: &'a DynamicObject, type_: &str) -> Option<&'a str> {
    let conditions = scaled_object.data["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == type_)?["status"].as_str()
}
