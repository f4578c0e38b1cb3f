//! Carries out what the machine asks for: one bounded request (or a read and a write) each, idempotent, fenced by UID
//! and resourceVersion, never retried here.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Pod, Service},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    client::bounded,
    error::{ClusterError, Kind},
    settings, template, worker, workload,
};
use crate::{
    api::{
        MemoriaRelease, MemoriaUpgrade,
        marks::{
            ATTEMPT_ANNOTATION, CANDIDATE_GATE, GOES_BACK_ANNOTATION, IMAGE_MANAGER, OWNER_ANNOTATION, OWNER_MANAGER,
            SCALE_MANAGER,
        },
        release::{MaintenanceFlag, WorkerRef, WorkloadRef},
        upgrade::{PlannedJob, PlannedTarget},
    },
    upgrade::{Action, Precondition, Prior},
};

/// How long a finished Job stays once its result is recorded, in seconds: a week.
pub const JOB_TTL_SECONDS: i32 = 604_800;

/// Carries out one action. Called only after the journal that intends it was stored, with `upgrade` and the action's
/// preconditions from reads made after that.
pub async fn act(
    client: &Client,
    ns: &str,
    release: &MemoriaRelease,
    upgrade: &MemoriaUpgrade,
    action: &Action,
) -> Result<(), ClusterError> {
    let owner = release.uid().unwrap_or_default();
    let attempt = upgrade.name_any();
    match action {
        Action::Mark { workload, uid, prior, back } => {
            let mut annotations = marks(&owner, Some((&attempt, prior)));
            if *back {
                annotations.insert(GOES_BACK_ANNOTATION.to_owned(), json!("true"));
            }
            match mark(client, ns, workload, uid, &owner, annotations.clone(), false).await {
                Err(error) if matches!(error.kind, Kind::Claimed { .. }) => {
                    inherit(client, ns, workload, uid, error).await?;
                    mark(client, ns, workload, uid, &owner, annotations, false).await
                }
                other => other,
            }
        }
        Action::Unmark { workload, uid } => mark(client, ns, workload, uid, &owner, marks(&owner, None), false).await,
        Action::Scale { workload, precondition, replicas } => {
            scale(client, ns, workload, precondition, *replicas, false).await
        }
        Action::Suspend { worker, precondition, suspend } => {
            worker::suspend(client, ns, worker, precondition, *suspend, false).await
        }
        Action::PauseAutoscaler { worker, precondition, replicas } => {
            worker::pause(client, ns, worker, precondition, replicas.as_deref(), false).await
        }
        Action::SetImage { workload, precondition, container, image } => {
            set_image(client, ns, workload, precondition, container, image, false).await
        }
        Action::SetFlag { value } => set_flag(client, ns, upgrade, value).await,
        Action::KeepConfig => settings::keep(client, ns, upgrade).await,
        Action::SetConfig { precondition, prior } => settings::set(client, ns, upgrade, precondition, *prior).await,
        Action::CreateJob { step, input } => {
            let planned = planned_job(upgrade, step)?;
            create_job(client, ns, &template::job(&planned.manifest, input)?).await
        }
        Action::DeleteJob { step, uid } => {
            delete::<Job>(client, ns, "job", template::name(&planned_job(upgrade, step)?.manifest), uid).await
        }
        Action::ArmJobTtl { step, uid } => {
            arm_ttl(client, ns, template::name(&planned_job(upgrade, step)?.manifest), uid).await
        }
        Action::CreateCandidate { target } => {
            create_candidate(client, ns, &planned_target(upgrade, target)?.candidate).await
        }
        Action::AdmitCandidate { target, uid } => {
            admit_candidate(client, ns, template::name(&planned_target(upgrade, target)?.candidate), uid).await
        }
        Action::DeleteCandidate { target, uid } => {
            delete::<Pod>(client, ns, "pod", template::name(&planned_target(upgrade, target)?.candidate), uid).await
        }
    }
}

fn planned_job<'a>(upgrade: &'a MemoriaUpgrade, step: &str) -> Result<&'a PlannedJob, ClusterError> {
    let found = upgrade.spec.jobs.iter().find(|j| j.step == step);
    found.ok_or_else(|| {
        ClusterError::malformed("find the Job of", format!("step {step}"), "the plan has no such step".to_owned())
    })
}

fn planned_target<'a>(upgrade: &'a MemoriaUpgrade, name: &str) -> Result<&'a PlannedTarget, ClusterError> {
    let found = upgrade.spec.targets.iter().find(|t| t.name == name);
    found.ok_or_else(|| {
        ClusterError::malformed("find", format!("target {name}"), "the plan has no such target".to_owned())
    })
}

pub(crate) fn marks(owner: &str, attempt: Option<(&str, &Prior)>) -> Map<String, Value> {
    let mut annotations = Map::new();
    annotations.insert(OWNER_ANNOTATION.to_owned(), json!(owner));
    if let Some((attempt, prior)) = attempt {
        annotations.insert(ATTEMPT_ANNOTATION.to_owned(), json!(attempt));
        let (key, value) = worker::prior_annotation(prior);
        annotations.insert(key.to_owned(), json!(value));
    }
    annotations
}

/// Each release has its own field manager, so that two releases that mark the same workload are in conflict, although
/// both are this operator.
pub(crate) fn owner_manager(owner: &str) -> String {
    format!("{OWNER_MANAGER}-{owner}")
}

/// Applies exactly these annotations, and takes those away that this manager applied before and that are not among them.
pub(crate) async fn mark(
    client: &Client,
    ns: &str,
    workload: &WorkerRef,
    uid: &str,
    owner: &str,
    annotations: Map<String, Value>,
    dry_run: bool,
) -> Result<(), ClusterError> {
    let metadata = json!({"name": workload.name, "uid": uid, "annotations": annotations});
    let patch = applied(&worker::resource(workload.kind), metadata, None);
    let params = PatchParams { dry_run, field_manager: Some(owner_manager(owner)), ..Default::default() };
    let api = worker::api(client, ns, workload.kind);
    bounded("mark", workload, api.patch(&workload.name, &params, &Patch::Apply(patch))).await.map(drop)
}

/// Lifts the mark of a release that is gone, just as that release would have done at its end, by its own field manager
/// and without force.
async fn inherit(
    client: &Client,
    ns: &str,
    workload: &WorkerRef,
    uid: &str,
    conflict: ClusterError,
) -> Result<(), ClusterError> {
    let Some(former) = gone_owner(client, ns, workload, uid).await? else { return Err(conflict) };
    tracing::info!(%workload, former, "the release that marked this workload is gone; its mark is lifted");
    mark(client, ns, workload, uid, &former, Map::new(), false).await
}

/// UID of a release that is gone and whose mark may be lifted. A mark that speaks of an open attempt may not: its
/// journal must be looked for first.
pub(crate) async fn gone_owner(
    client: &Client,
    ns: &str,
    workload: &WorkerRef,
    uid: &str,
) -> Result<Option<String>, ClusterError> {
    let Some(found) = worker::metadata(client, ns, workload).await? else { return Ok(None) };
    let annotation = |key: &str| found.annotations.as_ref().and_then(|a| a.get(key)).map(String::as_str);
    let lifted = found.uid.as_deref() == Some(uid) && annotation(ATTEMPT_ANNOTATION).is_none();
    let Some(owner) = annotation(OWNER_ANNOTATION).filter(|_| lifted) else { return Ok(None) };
    let api: Api<MemoriaRelease> = Api::namespaced(client.clone(), ns);
    let releases = bounded("list the releases of", ns, api.list_metadata(&ListParams::default())).await?;
    let lives = releases.items.iter().any(|r| r.metadata.uid.as_deref() == Some(owner));
    Ok((!lives).then(|| owner.to_owned()))
}

fn applied(resource: &ApiResource, metadata: Value, spec: Option<Value>) -> Value {
    let mut patch = json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata});
    if let Some(spec) = spec {
        patch["spec"] = spec;
    }
    patch
}

pub(crate) async fn scale(
    client: &Client,
    ns: &str,
    workload: &WorkloadRef,
    precondition: &Precondition,
    replicas: i32,
    dry_run: bool,
) -> Result<(), ClusterError> {
    let metadata = json!({"uid": precondition.uid, "resourceVersion": precondition.resource_version});
    let patch = Patch::Merge(json!({"metadata": metadata, "spec": {"replicas": replicas}}));
    let params = PatchParams { dry_run, field_manager: Some(SCALE_MANAGER.to_owned()), ..Default::default() };
    let api = workload::api(client, ns, workload.kind);
    bounded("scale", workload, api.patch_scale(&workload.name, &params, &patch)).await.map(drop)
}

pub(crate) async fn set_image(
    client: &Client,
    ns: &str,
    workload: &WorkloadRef,
    precondition: &Precondition,
    container: &str,
    image: &str,
    dry_run: bool,
) -> Result<(), ClusterError> {
    let metadata =
        json!({"name": workload.name, "uid": precondition.uid, "resourceVersion": precondition.resource_version});
    let spec = json!({"template": {"spec": {"containers": [{"name": container, "image": image}]}}});
    let patch = applied(&workload::resource(workload.kind), metadata, Some(spec));
    let params =
        PatchParams { dry_run, force: true, field_manager: Some(IMAGE_MANAGER.to_owned()), ..Default::default() };
    let api = workload::api(client, ns, workload.kind);
    bounded("set the image of", workload, api.patch(&workload.name, &params, &Patch::Apply(patch))).await.map(drop)
}

/// One key of a ConfigMap that others own: a merge patch of that key, on the object as it was just read.
async fn set_flag(client: &Client, ns: &str, upgrade: &MemoriaUpgrade, value: &str) -> Result<(), ClusterError> {
    let Some(MaintenanceFlag { config_map_key_ref: place, .. }) = &upgrade.spec.maintenance_flag else {
        return Err(ClusterError::malformed("set", "the maintenance flag".to_owned(), "the plan has none".to_owned()));
    };
    let object = format!("configmap/{}", place.name);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let Some(map) = bounded("read", &object, api.get_opt(&place.name)).await? else {
        let next = "create it, or take spec.ingestion.maintenanceFlag out of the release".to_owned();
        return Err(ClusterError::missing("set the maintenance flag in", object, next));
    };
    if map.data.as_ref().and_then(|d| d.get(&place.key)).is_some_and(|v| v == value) {
        return Ok(());
    }
    let metadata = json!({"uid": map.uid(), "resourceVersion": map.resource_version()});
    let patch = json!({"metadata": metadata, "data": {place.key.clone(): value}});
    let params = PatchParams { field_manager: Some(OWNER_MANAGER.to_owned()), ..Default::default() };
    bounded("set the maintenance flag in", &object, api.patch(&place.name, &params, &Patch::Merge(patch)))
        .await
        .map(drop)
}

/// Creates a Job with its hash. One of that name with the same labels and hash is this one.
pub(crate) async fn create_job(client: &Client, ns: &str, job: &Job) -> Result<(), ClusterError> {
    create_or_adopt(client, ns, "job", job).await
}

/// The candidate must not be reached by clients: whatever the plan knew, no Service may select it now.
async fn create_candidate(client: &Client, ns: &str, manifest: &Value) -> Result<(), ClusterError> {
    let object = format!("pod/{}", template::name(manifest));
    let api: Api<Service> = Api::namespaced(client.clone(), ns);
    let services = bounded("list the Services before creating", &object, api.list(&ListParams::default())).await?;
    let labels = super::candidate::labels_of(manifest);
    let selecting =
        super::candidate::selecting(&labels, services.items.iter().map(super::candidate::ServiceSelector::from));
    if let Some(name) = selecting.first() {
        return Err(ClusterError {
            kind: Kind::Foreign,
            doing: "create",
            object,
            cause: format!("service/{name} would send clients to it"),
            next: "make the Service's selector narrower".to_owned(),
        });
    }
    create_or_adopt(client, ns, "pod", &template::candidate(manifest)?).await
}

/// Takes the operator's own gate away and leaves those of others. The `uid` is the precondition: a gate of another pod of
/// that name stays.
async fn admit_candidate(client: &Client, ns: &str, name: &str, uid: &str) -> Result<(), ClusterError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), ns);
    let patch = json!({
        "metadata": {"uid": uid},
        "spec": {"schedulingGates": [{"$patch": "delete", "name": CANDIDATE_GATE}]},
    });
    let params = PatchParams { field_manager: Some(OWNER_MANAGER.to_owned()), ..Default::default() };
    bounded("admit", format!("pod/{name}"), api.patch(name, &params, &Patch::Strategic(patch))).await.map(drop)
}

async fn create_or_adopt<K>(client: &Client, ns: &str, kind: &str, wanted: &K) -> Result<(), ClusterError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug,
{
    let name = wanted.name_any();
    let object = format!("{kind}/{name}");
    let api: Api<K> = Api::namespaced(client.clone(), ns);
    let params = PostParams { dry_run: false, field_manager: Some(OWNER_MANAGER.to_owned()) };
    let refused = match bounded("create", &object, api.create(&params, wanted)).await {
        Err(error) if error.kind == Kind::Foreign => error,
        other => return other.map(drop),
    };
    let Some(live) = bounded("read", &object, api.get_opt(&name)).await? else {
        return Err(ClusterError::stale("create", object, refused.cause));
    };
    if live.meta().deletion_timestamp.is_some() {
        return Err(ClusterError::stale("create", object, "one of that name is being deleted".to_owned()));
    }
    match template::difference(live.meta(), wanted.meta()) {
        None => Ok(()),
        Some(detail) => Err(ClusterError::foreign("create", object, format!("one of that name is not ours: {detail}"))),
    }
}

/// Deletes that very object. One that is gone, or replaced by another, is deleted.
pub(crate) async fn delete<K>(client: &Client, ns: &str, kind: &str, name: &str, uid: &str) -> Result<(), ClusterError>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), ns);
    let params =
        DeleteParams::background().preconditions(Preconditions { resource_version: None, uid: Some(uid.to_owned()) });
    match bounded("delete", format!("{kind}/{name}"), api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind, Kind::Missing | Kind::Stale) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn arm_ttl(client: &Client, ns: &str, name: &str, uid: &str) -> Result<(), ClusterError> {
    let api: Api<Job> = Api::namespaced(client.clone(), ns);
    let patch = json!({"metadata": {"uid": uid}, "spec": {"ttlSecondsAfterFinished": JOB_TTL_SECONDS}});
    let params = PatchParams { field_manager: Some(OWNER_MANAGER.to_owned()), ..Default::default() };
    match bounded("set the lifetime of", format!("job/{name}"), api.patch(name, &params, &Patch::Merge(patch))).await {
        Ok(_) => Ok(()),
        // Nothing is left to clean up.
        Err(error) if error.is_missing() => Ok(()),
        Err(error) => Err(error),
    }
}
