//! Workers of every kind behind one face: how they are read, what of them still runs, and the writes that stop and start
//! the kinds without replicas. KEDA's kind is read and written without its schema, and may be absent from the cluster.

use k8s_openapi::{
    api::{
        batch::v1::{CronJob, Job, JobSpec},
        core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    client::bounded,
    error::ClusterError,
    pods,
    workload::{self, Found},
};
use crate::{
    api::{
        marks::{
            ATTEMPT_ANNOTATION, GOES_BACK_ANNOTATION, KEDA_PAUSED_REPLICAS, OWNER_ANNOTATION,
            PRIOR_PAUSED_REPLICAS_ANNOTATION, PRIOR_REPLICAS_ANNOTATION, PRIOR_SUSPEND_ANNOTATION, SCALE_MANAGER,
        },
        release::{WorkerKind, WorkerRef, WorkloadKind, WorkloadRef},
    },
    upgrade::{
        Precondition, Prior,
        seen::{Switch, Workload},
    },
};

/// Kubernetes puts it on the pods of Jobs.
const JOB_NAME_LABEL: &str = "job-name";
/// The value of [`PRIOR_PAUSED_REPLICAS_ANNOTATION`] where KEDA's annotation was not set.
const ABSENT: &str = "absent";

/// A worker as it was read, with everything of it that may still run.
pub(crate) struct Read {
    pub meta: ObjectMeta,
    pub seen: Workload,
    pub template: PodTemplateSpec,
    pub selector: LabelSelector,
    pub claim_templates: Vec<PersistentVolumeClaim>,
    /// What a ScaledObject scales, when that is a kind the operator knows.
    pub scales: Option<WorkloadRef>,
    /// Of a Deployment or StatefulSet.
    pub found: Option<Found>,
    pub pods: Vec<Pod>,
}

/// KEDA's ScaledObject.
pub(crate) fn scaled_objects() -> ApiResource {
    ApiResource {
        group: "keda.sh".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "keda.sh/v1alpha1".to_owned(),
        kind: "ScaledObject".to_owned(),
        plural: "scaledobjects".to_owned(),
    }
}

pub(crate) fn resource(kind: WorkerKind) -> ApiResource {
    match kind {
        WorkerKind::Deployment => workload::resource(WorkloadKind::Deployment),
        WorkerKind::StatefulSet => workload::resource(WorkloadKind::StatefulSet),
        WorkerKind::CronJob => ApiResource::erase::<CronJob>(&()),
        WorkerKind::Job => ApiResource::erase::<Job>(&()),
        WorkerKind::ScaledObject => scaled_objects(),
    }
}

/// For writes: the same requests for all kinds.
pub(crate) fn api(client: &Client, ns: &str, kind: WorkerKind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), ns, &resource(kind))
}

/// Name, UID, version and annotations; absent when there is no such object or kind.
pub(crate) async fn metadata(
    client: &Client,
    ns: &str,
    worker: &WorkerRef,
) -> Result<Option<ObjectMeta>, ClusterError> {
    let found = bounded("read", worker, api(client, ns, worker.kind).get_metadata_opt(&worker.name)).await;
    Ok(or_absent(found)?.map(|object| object.metadata))
}

/// A kind that is not served has no object either.
fn or_absent<T>(found: Result<Option<T>, ClusterError>) -> Result<Option<T>, ClusterError> {
    match found {
        Err(error) if error.is_missing() => Ok(None),
        other => other,
    }
}

/// Reads one worker; absent when there is none of that name, or no such kind in this cluster.
pub(crate) async fn read(client: &Client, ns: &str, worker: &WorkerRef) -> Result<Option<Read>, ClusterError> {
    match (worker.workload(), worker.kind) {
        (Some(name), _) => read_workload(client, ns, &name).await,
        (None, WorkerKind::CronJob) => read_cron_job(client, ns, worker).await,
        (None, WorkerKind::Job) => read_job(client, ns, worker).await,
        (None, _) => read_scaled_object(client, ns, worker).await,
    }
}

async fn read_workload(client: &Client, ns: &str, name: &WorkloadRef) -> Result<Option<Read>, ClusterError> {
    let Some(found) = workload::get(client, ns, name).await? else { return Ok(None) };
    let pods = workload::live_pods(client, ns, name, &found).await?;
    Ok(Some(Read {
        meta: found.meta().clone(),
        seen: found.seen(None, &pods),
        template: found.template(),
        selector: found.selector().cloned().unwrap_or_default(),
        claim_templates: found.claim_templates(),
        scales: None,
        found: Some(found),
        pods,
    }))
}

async fn read_cron_job(client: &Client, ns: &str, worker: &WorkerRef) -> Result<Option<Read>, ClusterError> {
    let api: Api<CronJob> = Api::namespaced(client.clone(), ns);
    let Some(cron) = bounded("read", worker, api.get_opt(&worker.name)).await? else { return Ok(None) };
    // The Jobs after the CronJob: one that it made before it was seen suspended is among them.
    let (jobs, pods): (Api<Job>, Api<Pod>) = (Api::namespaced(client.clone(), ns), Api::namespaced(client.clone(), ns));
    let (every, labelled) = (ListParams::default(), ListParams::default().labels(JOB_NAME_LABEL));
    let (jobs, pods) = futures::try_join!(
        bounded("list the Jobs of", worker, jobs.list(&every)),
        bounded("list the pods of", worker, pods.list(&labelled))
    )?;
    let suspended = cron.spec.suspend.unwrap_or_default();
    let template = cron.spec.job_template.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let pods = pods_of_cron_job(&cron, &jobs.items, pods.items);
    let mut seen = seen_of(&cron.metadata, &pods, Switch::Suspend { suspended, finished: false });
    seen.unfinished = unfinished(&cron, &jobs.items);
    Ok(Some(plain(cron.metadata, seen, template, pods)))
}

/// Its Jobs that run or will: one that is suspended itself and has no pod neither writes nor ends.
fn unfinished(cron: &CronJob, jobs: &[Job]) -> Vec<String> {
    let own = jobs.iter().filter(|job| is_made_by(&job.metadata, cron.metadata.uid.as_deref()));
    let mut names: Vec<_> = own.filter(|job| !has_finished(job) && !rests(job)).map(ResourceExt::name_any).collect();
    names.sort();
    names
}

fn rests(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.suspend).unwrap_or_default() && active(job) == 0
}

fn active(job: &Job) -> i32 {
    job.status.as_ref().and_then(|s| s.active).unwrap_or_default()
}

pub(crate) fn has_finished(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

fn is_made_by(meta: &ObjectMeta, uid: Option<&str>) -> bool {
    meta.owner_references.iter().flatten().any(|o| o.controller == Some(true) && Some(o.uid.as_str()) == uid)
}

/// Pods of its Jobs that may still run something, and those whose Job is gone already, known by the name that a CronJob
/// gives its Jobs: its own, a dash, and digits.
fn pods_of_cron_job(cron: &CronJob, jobs: &[Job], pods: Vec<Pod>) -> Vec<Pod> {
    let (prefix, uid) = (format!("{}-", cron.name_any()), cron.metadata.uid.as_deref());
    let own = |pod: &Pod| {
        let Some(made_by) = pod.owner_references().iter().find(|o| o.kind == "Job") else { return false };
        match jobs.iter().find(|job| job.metadata.uid.as_ref() == Some(&made_by.uid)) {
            Some(job) => is_made_by(&job.metadata, uid),
            None => {
                let number = made_by.name.strip_prefix(&prefix);
                number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            }
        }
    };
    pods.into_iter().filter(|pod| own(pod) && !pods::has_ended(pod)).collect()
}

async fn read_job(client: &Client, ns: &str, worker: &WorkerRef) -> Result<Option<Read>, ClusterError> {
    let api: Api<Job> = Api::namespaced(client.clone(), ns);
    let Some(job) = bounded("read", worker, api.get_opt(&worker.name)).await? else { return Ok(None) };
    let spec = job.spec.clone().unwrap_or_default();
    let pods = match selector_of(&spec) {
        Some(selector) => {
            let api: Api<Pod> = Api::namespaced(client.clone(), ns);
            bounded("list the pods of", worker, api.list(&ListParams::default().labels(&selector))).await?.items
        }
        None => Vec::new(),
    };
    let uid = job.metadata.uid.as_deref();
    let pods: Vec<Pod> =
        pods.into_iter().filter(|pod| is_made_by(&pod.metadata, uid) && !pods::has_ended(pod)).collect();
    let switch = Switch::Suspend { suspended: spec.suspend.unwrap_or_default(), finished: has_finished(&job) };
    let mut seen = seen_of(&job.metadata, &pods, switch);
    seen.status_replicas = active(&job);
    Ok(Some(plain(job.metadata, seen, spec.template, pods)))
}

fn selector_of(spec: &JobSpec) -> Option<String> {
    workload::selector_text(spec.selector.as_ref()?)
}

async fn read_scaled_object(client: &Client, ns: &str, worker: &WorkerRef) -> Result<Option<Read>, ClusterError> {
    let object = bounded("read", worker, api(client, ns, worker.kind).get_opt(&worker.name)).await;
    let Some(object) = or_absent(object)? else { return Ok(None) };
    let scales = scales(&object.data);
    let scaled = match &scales {
        Some(target) => read_workload(client, ns, target).await?,
        None => None,
    };
    let replicas = object.annotations().get(KEDA_PAUSED_REPLICAS).cloned();
    let (counts, template, pods) = match scaled {
        Some(read) => (read.seen, read.template, read.pods),
        None => Default::default(),
    };
    let mut seen = seen_of(&object.metadata, &pods, Switch::Paused { replicas });
    (seen.replicas, seen.status_replicas) = (counts.replicas, counts.status_replicas);
    Ok(Some(Read { scales, ..plain(object.metadata, seen, template, pods) }))
}

/// What `spec.scaleTargetRef` of a ScaledObject names, if that is a Deployment or StatefulSet. KEDA's default is the first.
pub(crate) fn scales(scaled_object: &Value) -> Option<WorkloadRef> {
    let target = &scaled_object["spec"]["scaleTargetRef"];
    let kind = match (target["apiVersion"].as_str(), target["kind"].as_str()) {
        (None | Some("apps/v1"), None | Some("Deployment")) => WorkloadKind::Deployment,
        (None | Some("apps/v1"), Some("StatefulSet")) => WorkloadKind::StatefulSet,
        _ => return None,
    };
    Some(WorkloadRef { kind, name: target["name"].as_str()?.to_owned() })
}

fn plain(meta: ObjectMeta, seen: Workload, template: PodTemplateSpec, pods: Vec<Pod>) -> Read {
    Read {
        meta,
        seen,
        template,
        selector: LabelSelector::default(),
        claim_templates: Vec::new(),
        scales: None,
        found: None,
        pods,
    }
}

fn seen_of(meta: &ObjectMeta, pods: &[Pod], switch: Switch) -> Workload {
    let annotation = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).cloned();
    Workload {
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        generation: meta.generation.unwrap_or_default(),
        owner: annotation(OWNER_ANNOTATION),
        attempt: annotation(ATTEMPT_ANNOTATION),
        goes_back: annotation(GOES_BACK_ANNOTATION).is_some(),
        prior_replicas: None,
        switch,
        pods: pods.iter().map(|pod| pods::seen(pod, None)).collect(),
        ..Workload::default()
    }
}

/// The annotation that keeps a prior state on the object itself, for people without the journal.
pub(crate) fn prior_annotation(prior: &Prior) -> (&'static str, String) {
    match prior {
        Prior::Replicas(count) => (PRIOR_REPLICAS_ANNOTATION, count.to_string()),
        Prior::Suspend(suspend) => (PRIOR_SUSPEND_ANNOTATION, suspend.to_string()),
        Prior::Paused(count) => (PRIOR_PAUSED_REPLICAS_ANNOTATION, count.clone().unwrap_or_else(|| ABSENT.to_owned())),
    }
}

/// Sets `spec.suspend` of a CronJob or Job, and nothing else.
pub(crate) async fn suspend(
    client: &Client,
    ns: &str,
    worker: &WorkerRef,
    precondition: &Precondition,
    suspend: bool,
    dry_run: bool,
) -> Result<(), ClusterError> {
    let doing = if suspend { "suspend" } else { "resume" };
    patch(client, ns, doing, worker, precondition, json!({"spec": {"suspend": suspend}}), dry_run).await
}

/// Sets KEDA's annotation that keeps what it scales at a count, or removes it.
pub(crate) async fn pause(
    client: &Client,
    ns: &str,
    worker: &WorkerRef,
    precondition: &Precondition,
    replicas: Option<&str>,
    dry_run: bool,
) -> Result<(), ClusterError> {
    let doing = if replicas.is_some() { "pause" } else { "resume" };
    let change = json!({"metadata": {"annotations": {KEDA_PAUSED_REPLICAS: replicas}}});
    patch(client, ns, doing, worker, precondition, change, dry_run).await
}

async fn patch(
    client: &Client,
    ns: &str,
    doing: &'static str,
    worker: &WorkerRef,
    precondition: &Precondition,
    mut change: Value,
    dry_run: bool,
) -> Result<(), ClusterError> {
    change["metadata"]["uid"] = json!(precondition.uid);
    change["metadata"]["resourceVersion"] = json!(precondition.resource_version);
    let params = PatchParams { dry_run, field_manager: Some(SCALE_MANAGER.to_owned()), ..Default::default() };
    let api = api(client, ns, worker.kind);
    bounded(doing, worker, api.patch(&worker.name, &params, &Patch::Merge(change))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        batch::v1::{CronJob, Job},
        core::v1::Pod,
    };
    use kube::ResourceExt;
    use serde_json::{Value, json};

    use super::{pods_of_cron_job, scales, unfinished};

    fn cron() -> CronJob {
        serde_json::from_value(
            json!({"metadata": {"name": "nightly", "uid": "c1"}, "spec": {"schedule": "0 3 * * *", "jobTemplate": {}}}),
        )
        .unwrap()
    }

    fn job(name: &str, owner: &str, status: Value, suspend: bool) -> Job {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": format!("uid-{name}"),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": owner, "controller": true}]},
            "spec": {"suspend": suspend, "template": {}}, "status": status}))
        .unwrap()
    }

    fn pod(name: &str, job: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": format!("uid-{job}"), "controller": true}]},
            "status": {"phase": phase}}))
        .unwrap()
    }

    #[test]
    fn a_cron_job_waits_for_its_own_jobs_that_still_run() {
        let done = json!({"conditions": [{"type": "Complete", "status": "True"}]});
        let jobs = [
            job("nightly-2", "c1", json!({"active": 1}), false),
            job("nightly-1", "c1", done, false),
            job("nightly-0", "another", json!({"active": 1}), false),
            job("nightly-3", "c1", json!({}), true),
            job("by-hand", "c1", json!({}), false),
        ];
        assert_eq!(unfinished(&cron(), &jobs), ["by-hand", "nightly-2"]);
    }

    #[test]
    fn pods_of_a_cron_job_are_known_even_when_their_job_is_gone() {
        let jobs = [job("nightly-2", "c1", json!({}), false), job("nightly-9", "another", json!({}), false)];
        let pods = vec![
            pod("a", "nightly-2", "Running"),
            pod("b", "nightly-2", "Succeeded"),
            pod("c", "nightly-1", "Running"),
            pod("d", "nightly-9", "Running"),
            pod("e", "nightly-report-1", "Running"),
        ];
        let names: Vec<_> = pods_of_cron_job(&cron(), &jobs, pods).iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["a", "c"]);
    }

    #[test]
    fn a_scaled_object_names_what_it_scales() {
        let of = |target: Value| scales(&json!({"spec": {"scaleTargetRef": target}})).map(|w| w.to_string());
        assert_eq!(of(json!({"name": "ingest"})).as_deref(), Some("deployment/ingest"));
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "ingest"});
        assert_eq!(of(set).as_deref(), Some("statefulset/ingest"));
        assert_eq!(of(json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "ingest"})), None);
    }
}
