//! What PreFlight must know of the workloads that a release names: found by live reads, nothing written. What is
//! missing or unfit is a check's result, not an error.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use k8s_openapi::{
    api::{
        autoscaling::v2::HorizontalPodAutoscaler,
        batch::v1::{CronJob, JobTemplateSpec},
        core::v1::{ConfigMap, Container, PersistentVolumeClaim, PodTemplateSpec, Service},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{Api, Client, ResourceExt, api::ListParams};

pub use super::{
    candidate::ServiceSelector,
    data::{Behind, DataClaim, Mounted, ServerData, StorageFound, Stranger},
    managers::{Manager, Tool},
};
use super::{
    client::bounded,
    data,
    error::ClusterError,
    findings, managers, settings,
    settings::ConfigFound,
    worker::{self, scaled_objects},
    workload::{self, Found},
};
use crate::{
    api::{
        MemoriaRelease,
        marks::{CHECK_TEMPLATE_ANNOTATION, KEDA_PAUSED, RELEASE_LABEL},
        release::{CheckResult, Mode, Role, Target, Verdict, WorkerKind, WorkerRef, WorkloadRef},
    },
    commands::Command,
    upgrade::{
        image::ImageRef,
        seen::{Switch, Workload},
    },
};

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// In the spec's order; those that are missing or whose container is unclear are absent, and a check says so.
    pub targets: Vec<AdoptedTarget>,
    /// In the spec's order, those included that are targets as well; missing ones are absent, and a check says so.
    pub workers: Vec<AdoptedWorkload>,
    /// Absent when the spec names none, or when it or its key is missing.
    pub flag: Option<FlagFound>,
    /// Memoria's settings; absent when the spec names none, or when something of them is missing.
    pub config: Option<ConfigFound>,
    /// All Services of the namespace.
    pub services: Vec<ServiceSelector>,
    /// What the Server keeps on claims.
    pub data: ServerData,
    /// The claim for snapshots, where it exists already.
    pub storage: Option<StorageFound>,
    /// What surrounds them, looked at only while an upgrade is wanted.
    pub findings: Vec<CheckResult>,
    /// By name, the CronJobs whose templates the checks run; only while an upgrade is wanted, and only those that exist.
    pub check_templates: BTreeMap<String, CheckTemplate>,
    /// One for each target (`target-<name>`), worker (`worker-<kind>-<name>`) and the flag (`maintenance-flag`).
    pub checks: Vec<CheckResult>,
}

/// A CronJob, as far as a check runs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckTemplate {
    /// Its author lets releases run it.
    pub allowed: bool,
    pub template: JobTemplateSpec,
}

#[derive(Clone, Debug)]
pub struct AdoptedTarget {
    pub name: String,
    pub role: Role,
    /// The container that runs Memoria.
    pub container: String,
    /// True when the spec did not name it.
    pub container_inferred: bool,
    pub workload: AdoptedWorkload,
}

#[derive(Clone, Debug)]
pub struct AdoptedWorkload {
    pub workload: WorkerRef,
    /// UID, resourceVersion, counts, our annotations, image of the target's container, and pods with their image IDs.
    pub seen: Workload,
    pub template: PodTemplateSpec,
    pub selector: LabelSelector,
    /// Of a StatefulSet; empty for a Deployment.
    pub claim_templates: Vec<PersistentVolumeClaim>,
    pub claim: Claim,
    /// Who else set the image of the target's container; empty for workers.
    pub image_managers: Vec<Manager>,
    /// Who else set the replica count.
    pub replica_managers: Vec<Manager>,
    /// Tools that say in labels or annotations that they keep this object.
    pub kept_by: Vec<Tool>,
    /// Name of a HorizontalPodAutoscaler that scales it.
    pub autoscaler: Option<String>,
    /// What a ScaledObject scales.
    pub scales: Option<WorkloadRef>,
    pub meta: ObjectMeta,
}

impl AdoptedTarget {
    /// The container that runs Memoria, as the template has it.
    pub fn spec(&self) -> Option<&Container> {
        self.workload.template.spec.as_ref()?.containers.iter().find(|c| c.name == self.container)
    }
}

/// Whose mark a workload bears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    None,
    Ours,
    /// Another release of this namespace.
    Other {
        release: String,
    },
    /// A release that is gone. Marking the workload lifts it, unless the mark speaks of an open attempt.
    Gone {
        uid: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagFound {
    pub uid: String,
    pub value: String,
}

/// Reads all that the release names.
pub async fn adopt(client: &Client, ns: &str, release: &MemoriaRelease) -> Result<Adopted, ClusterError> {
    let spec = &release.spec;
    let everything = ListParams::default();
    let releases: Api<MemoriaRelease> = Api::namespaced(client.clone(), ns);
    let services: Api<Service> = Api::namespaced(client.clone(), ns);
    let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), ns);
    let storage = spec.snapshot.claim_name(&release.name_any());
    let (releases, services, autoscalers, targets, workers, flag, storage, (config, config_checks)) = futures::try_join!(
        bounded("list the releases of", ns, releases.list(&everything)),
        bounded("list the Services of", ns, services.list(&everything)),
        bounded("list the autoscalers of", ns, autoscalers.list(&everything)),
        try_join_all(spec.targets.iter().map(|t| read(client, ns, &t.workload_ref))),
        try_join_all(spec.ingestion.workers.iter().map(|w| worker::read(client, ns, w))),
        read_flag(client, ns, release),
        data::storage(client, ns, storage.as_deref()),
        settings::find(client, ns, release),
    )?;
    let all = releases.items;
    let known: Vec<(String, String)> = all.iter().map(|r| (r.uid().unwrap_or_default(), r.name_any())).collect();
    let own_uid = release.uid().unwrap_or_default();
    let (releases, autoscalers) = (known.as_slice(), autoscalers.items.as_slice());
    let named = named_before(release, &all);
    let context = Context { own_uid: &own_uid, releases, named: &named, autoscalers, workers: &spec.ingestion.workers };

    let mut adopted =
        Adopted { services: services.items.iter().map(ServiceSelector::from).collect(), storage, ..Adopted::default() };
    for (target, read) in spec.targets.iter().zip(targets) {
        let (found, problems) = adopt_target(target, read, &context);
        adopted.checks.push(verdict(format!("target-{}", target.name), &(&target.workload_ref).into(), problems));
        adopted.targets.extend(found);
    }
    for (worker, read) in spec.ingestion.workers.iter().zip(workers) {
        let name = format!("worker-{}-{}", worker.kind.resource(), worker.name);
        let (found, problems) = match read {
            Some(read) => {
                let mut problems = Vec::new();
                (Some(adopt_worker(worker, read, &context, &mut problems)), problems)
            }
            None => (None, vec![missing_worker(worker)]),
        };
        adopted.checks.push(verdict(name, worker, problems));
        adopted.workers.extend(found);
    }
    if let Some((found, check)) = flag {
        adopted.flag = found;
        adopted.checks.push(check);
    }
    adopted.config = config;
    adopted.checks.extend(config_checks);
    if let Some(server) = adopted.targets.iter().find(|target| target.role == Role::Server) {
        let workloads = adopted.targets.iter().map(|target| &target.workload).chain(&adopted.workers);
        let known: Vec<&str> = workloads.flat_map(|w| &w.seen.pods).map(|pod| pod.uid.as_str()).collect();
        adopted.data = data::read(client, ns, server, &known).await?;
    }
    if is_upgrade_wanted(release, &adopted) {
        adopted.findings = findings::of(client, ns, release, &adopted).await?;
        adopted.check_templates = check_templates(client, ns, release).await?;
    }
    Ok(adopted)
}

async fn check_templates(
    client: &Client,
    ns: &str,
    release: &MemoriaRelease,
) -> Result<BTreeMap<String, CheckTemplate>, ClusterError> {
    let api: Api<CronJob> = Api::namespaced(client.clone(), ns);
    let named = release.spec.checks.iter().filter_map(|check| check.job.as_ref()).map(|job| &job.template_ref.name);
    let named: BTreeSet<&String> = named.collect();
    let read = try_join_all(named.into_iter().map(async |name| {
        let found = bounded("read", format!("cronjob/{name}"), api.get_opt(name)).await?;
        Ok::<_, ClusterError>(found.map(|cron| {
            let allowed = cron.annotations().get(CHECK_TEMPLATE_ANNOTATION).is_some_and(|value| value == "true");
            (name.clone(), CheckTemplate { allowed, template: cron.spec.job_template })
        }))
    }));
    Ok(read.await?.into_iter().flatten().collect())
}

/// Whether the Server's tag is another than the version that is asked for.
fn is_upgrade_wanted(release: &MemoriaRelease, adopted: &Adopted) -> bool {
    let server = adopted.targets.iter().find(|target| target.role == Role::Server);
    let image = server.and_then(|server| server.workload.seen.image.parse::<ImageRef>().ok());
    image.is_some_and(|image| image.tag.as_deref() != Some(&release.spec.version))
}

/// What older releases of the namespace name, and which: two that carry out upgrades of one workload would each take the
/// other's for "before". Plans change nothing and stand aside.
fn named_before(release: &MemoriaRelease, all: &[MemoriaRelease]) -> Vec<(WorkerRef, String)> {
    let age = |release: &MemoriaRelease| (release.creation_timestamp().map(|at| at.0), release.name_any());
    let applies = |release: &MemoriaRelease| release.spec.mode == Mode::Apply;
    let older = all.iter().filter(|other| {
        applies(release)
            && applies(other)
            && other.metadata.deletion_timestamp.is_none()
            && other.uid() != release.uid()
            && age(other) < age(release)
    });
    let named = older.flat_map(|other| {
        let targets = other.spec.targets.iter().map(|target| WorkerRef::from(&target.workload_ref));
        let all = targets.chain(other.spec.ingestion.workers.iter().cloned());
        all.map(|workload| (workload, other.name_any())).collect::<Vec<_>>()
    });
    named.collect()
}

struct Context<'a> {
    own_uid: &'a str,
    /// UID and name of each release of the namespace.
    releases: &'a [(String, String)],
    /// What other releases name, and which.
    named: &'a [(WorkerRef, String)],
    autoscalers: &'a [HorizontalPodAutoscaler],
    workers: &'a [WorkerRef],
}

type Read = Option<(Found, Vec<k8s_openapi::api::core::v1::Pod>)>;

async fn read(client: &Client, ns: &str, name: &WorkloadRef) -> Result<Read, ClusterError> {
    let Some(found) = workload::get(client, ns, name).await? else { return Ok(None) };
    let pods = workload::live_pods(client, ns, name, &found).await?;
    Ok(Some((found, pods)))
}

fn verdict(name: String, object: &WorkerRef, problems: Vec<String>) -> CheckResult {
    if problems.is_empty() {
        CheckResult { name, result: Verdict::Passed, message: format!("{object} can be adopted") }
    } else {
        CheckResult { name, result: Verdict::Failed, message: super::error::cut(&problems.join("; "), 1024) }
    }
}

fn adopt_target(target: &Target, read: Read, context: &Context<'_>) -> (Option<AdoptedTarget>, Vec<String>) {
    let name = &target.workload_ref;
    let Some((found, pods)) = read else {
        return (
            None,
            vec![format!("{name} does not exist; correct spec.targets[name={}].workloadRef or create it", target.name)],
        );
    };
    let container = match container_of(target, &found) {
        Ok(container) => container,
        Err(problem) => return (None, vec![problem]),
    };
    let mut problems = Vec::new();
    let workload = adopt_workload(name, &found, &pods, Some(&container), context, &mut problems);
    if workload.seen.image.is_empty() {
        problems.push(format!("{name} names no image for container {container:?}; set one"));
    }
    problems.extend(rollout_problems(&found, name));
    let adopted = AdoptedTarget {
        name: target.name.clone(),
        role: target.role,
        container,
        container_inferred: target.container.is_none(),
        workload,
    };
    (Some(adopted), problems)
}

/// The container that the spec names, else the only one.
fn container_of(target: &Target, found: &Found) -> Result<String, String> {
    let names: Vec<String> = found.images().into_keys().collect();
    let field = format!("spec.targets[name={}].container", target.name);
    let has = format!("{} has {}", target.workload_ref, names.join(", "));
    match (&target.container, names.as_slice()) {
        (Some(name), _) if names.contains(name) => Ok(name.clone()),
        (Some(name), _) => Err(format!("{field} is {name:?}, but {has}")),
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(format!("{} has no container", target.workload_ref)),
        (None, _) => Err(format!("{field} is not set, and {has}; set it to the one that runs Memoria")),
    }
}

/// Why a change of the image would never be rolled out, or not to all pods.
fn rollout_problems(found: &Found, name: &WorkloadRef) -> Vec<String> {
    let mut problems = Vec::new();
    match found {
        Found::Deployment(d) => {
            if d.spec.as_ref().and_then(|s| s.paused) == Some(true) {
                let workload = name.to_string();
                let namespace = d.metadata.namespace.as_deref().unwrap_or_default();
                let run = Command::ResumeRollout { workload: &workload }.in_namespace(namespace);
                problems.push(format!("{name} is paused; run {run}"));
            }
        }
        Found::StatefulSet(s) => {
            let strategy = s.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
            if strategy.and_then(|u| u.type_.as_deref()) == Some("OnDelete") {
                problems
                    .push(format!("{name} has updateStrategy OnDelete; set spec.updateStrategy.type to RollingUpdate"));
            }
            if strategy.and_then(|u| u.rolling_update.as_ref()).and_then(|r| r.partition).is_some_and(|p| p > 0) {
                problems.push(format!("{name} holds pods back; set spec.updateStrategy.rollingUpdate.partition to 0"));
            }
        }
    }
    problems
}

fn adopt_workload(
    name: &WorkloadRef,
    found: &Found,
    pods: &[k8s_openapi::api::core::v1::Pod],
    container: Option<&str>,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> AdoptedWorkload {
    let meta = found.meta();
    let seen = found.seen(container, pods);
    let reference = WorkerRef::from(name);
    let claim = usable(&reference, meta, &seen, context, problems);
    let autoscaler = context.autoscalers.iter().find(|a| scales(a, name));
    problems.extend(autoscaler.and_then(|a| autoscaler_problem(a, name, context)));
    AdoptedWorkload {
        workload: reference,
        seen,
        template: found.template(),
        selector: found.selector().cloned().unwrap_or_default(),
        claim_templates: found.claim_templates(),
        claim,
        image_managers: container.map(|c| managers::of_image(meta, c)).unwrap_or_default(),
        replica_managers: managers::of_replicas(meta),
        kept_by: managers::keepers(meta),
        autoscaler: autoscaler.map(ResourceExt::name_any),
        scales: None,
        meta: meta.clone(),
    }
}

/// What holds for all kinds: nobody else's, and there to stay.
fn usable(
    name: &WorkerRef,
    meta: &ObjectMeta,
    seen: &Workload,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Claim {
    let mut claim = claim_of(seen.owner.as_deref(), context);
    if meta.deletion_timestamp.is_some() {
        problems.push(format!("{name} is being deleted"));
    }
    if let Claim::Other { release } = &claim {
        problems.push(format!("{name} belongs to release {release}; name it in one release only"));
    }
    if let (Claim::None | Claim::Gone { .. }, Some((_, release))) =
        (&claim, context.named.iter().find(|(theirs, _)| theirs == name))
    {
        problems.push(format!(
            "{name} is named by release {release} too, which is older; name it in one release only, or delete release \
             {release}"
        ));
        claim = Claim::Other { release: release.clone() };
    }
    claim
}

fn missing_worker(worker: &WorkerRef) -> String {
    let kind = match worker.kind {
        WorkerKind::ScaledObject => ", or KEDA is not installed in this cluster",
        _ => "",
    };
    format!("{worker} does not exist{kind}; correct spec.ingestion.workers or create it")
}

fn adopt_worker(
    worker: &WorkerRef,
    read: worker::Read,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> AdoptedWorkload {
    if let (Some(workload), Some(found)) = (worker.workload(), &read.found) {
        return adopt_workload(&workload, found, &read.pods, None, context, problems);
    }
    let claim = usable(worker, &read.meta, &read.seen, context, problems);
    problems.extend(kind_problem(worker, &read));
    AdoptedWorkload {
        workload: worker.clone(),
        seen: read.seen,
        template: read.template,
        selector: read.selector,
        claim_templates: read.claim_templates,
        claim,
        image_managers: Vec::new(),
        replica_managers: managers::of_switch(&read.meta),
        kept_by: managers::keepers(&read.meta),
        autoscaler: None,
        scales: read.scales,
        meta: read.meta,
    }
}

/// Why a worker without replicas of its own could not be stopped and brought back as it was.
fn kind_problem(worker: &WorkerRef, read: &worker::Read) -> Option<String> {
    let ours = read.meta.labels.as_ref().is_some_and(|labels| labels.contains_key(RELEASE_LABEL));
    match (&read.seen.switch, &read.scales) {
        (Switch::Suspend { .. }, _) if ours => {
            Some(format!("{worker} is one of the operator's own; take it out of spec.ingestion.workers"))
        }
        (Switch::Paused { .. }, None) => Some(format!(
            "{worker} scales neither a Deployment nor a StatefulSet, so whether its pods are gone could not be told; \
             name what it scales as a kind that the operator knows"
        )),
        (Switch::Paused { replicas: None }, Some(scaled)) if is_paused(&read.meta) => Some(format!(
            "{worker} is paused by the annotation {KEDA_PAUSED}, so KEDA would not bring {scaled} back; name {scaled} \
             in spec.ingestion.workers instead of it, or remove the annotation"
        )),
        _ => None,
    }
}

fn is_paused(meta: &ObjectMeta) -> bool {
    meta.annotations.as_ref().and_then(|a| a.get(KEDA_PAUSED)).is_some_and(|value| value != "false")
}

fn claim_of(owner: Option<&str>, context: &Context<'_>) -> Claim {
    match owner {
        None => Claim::None,
        Some(uid) if uid == context.own_uid => Claim::Ours,
        Some(uid) => match context.releases.iter().find(|(known, _)| known == uid) {
            Some((_, release)) => Claim::Other { release: release.clone() },
            None => Claim::Gone { uid: uid.to_owned() },
        },
    }
}

fn scales(autoscaler: &HorizontalPodAutoscaler, name: &WorkloadRef) -> bool {
    let kind = workload::resource(name.kind).kind;
    autoscaler.spec.scale_target_ref.kind == kind && autoscaler.spec.scale_target_ref.name == name.name
}

/// An autoscaler rests while its workload is at zero, unless it may go to zero itself; KEDA wakes it up in any case,
/// unless it is stopped as well.
fn autoscaler_problem(
    autoscaler: &HorizontalPodAutoscaler,
    name: &WorkloadRef,
    context: &Context<'_>,
) -> Option<String> {
    let kind = scaled_objects().kind;
    if let Some(owner) = autoscaler.owner_references().iter().find(|o| o.kind == kind) {
        let scaled = WorkerRef { kind: WorkerKind::ScaledObject, name: owner.name.clone() };
        return (!context.workers.contains(&scaled)).then(|| {
            format!(
                "{name} is scaled by KEDA ({scaled}), which would start it in mid-upgrade; add {{kind: ScaledObject, \
                 name: {}}} to spec.ingestion.workers",
                scaled.name
            )
        });
    }
    let lowest = autoscaler.spec.min_replicas;
    (lowest == Some(0)).then(|| {
        let hpa = autoscaler.name_any();
        format!("horizontalpodautoscaler/{hpa} may scale {name} up from zero in mid-upgrade; set its minReplicas to 1 or more")
    })
}

type FlagRead = Option<(Option<FlagFound>, CheckResult)>;

async fn read_flag(client: &Client, ns: &str, release: &MemoriaRelease) -> Result<FlagRead, ClusterError> {
    let Some(flag) = &release.spec.ingestion.maintenance_flag else { return Ok(None) };
    let place = &flag.config_map_key_ref;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let map = bounded("read", format!("configmap/{}", place.name), api.get_opt(&place.name)).await?;
    let check = |result, message| CheckResult { name: "maintenance-flag".to_owned(), result, message };
    let field = "spec.ingestion.maintenanceFlag.configMapKeyRef";
    let Some(map) = map else {
        let message = format!("configmap/{} does not exist; create it or correct {field}", place.name);
        return Ok(Some((None, check(Verdict::Failed, message))));
    };
    let Some(value) = map.data.as_ref().and_then(|d| d.get(&place.key)).cloned() else {
        let message = format!("configmap/{} has no key {:?}; add it or correct {field}", place.name, place.key);
        return Ok(Some((None, check(Verdict::Failed, message))));
    };
    let found = FlagFound { uid: map.uid().unwrap_or_default(), value };
    if map.immutable == Some(true) {
        let message = format!("configmap/{} is immutable, so the flag cannot be set; make it mutable", place.name);
        return Ok(Some((Some(found), check(Verdict::Failed, message))));
    }
    if found.value != flag.off_value && found.value != flag.on_value {
        let message = format!(
            "configmap/{} has {:?} under {:?}, which is neither onValue nor offValue; correct one of them",
            place.name,
            super::error::cut(&found.value, 64),
            place.key
        );
        return Ok(Some((Some(found), check(Verdict::Failed, message))));
    }
    let message = format!("configmap/{} key {:?} is {:?}", place.name, place.key, found.value);
    Ok(Some((Some(found), check(Verdict::Passed, message))))
}
