//! Live reads of one attempt's world, side by side, into what the machine sees.

use std::collections::BTreeMap;

use futures::future::{join_all, try_join_all};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Event, Pod},
};
use kube::{Api, Client, ResourceExt, api::ListParams};

use super::{client::bounded, error::ClusterError, jobs, pods, settings, template, worker, workload};
use crate::{
    api::{
        MemoriaDecision, MemoriaRelease, MemoriaUpgrade,
        decision::DecisionAction,
        marks::{ATTEMPT_LABEL, STEP_LABEL},
        release::{MaintenanceFlag, Stage, WorkloadRef},
        upgrade::PlannedJob,
    },
    job::{
        manifest::check_of,
        protocol::{CANDIDATE_ENV, INPUT_ENV, JobInput},
    },
    upgrade::{
        Action,
        seen::{JobSeen, JobState, Observed, Orders, PodSeen, Trouble, Workload},
    },
};

/// Reads the world of an open attempt. `release` and `upgrade` must have been read from the API just before: orders
/// are taken from the release's spec, identities from the upgrade's plan.
pub async fn observe(
    client: &Client,
    ns: &str,
    release: &MemoriaRelease,
    upgrade: &MemoriaUpgrade,
) -> Result<Observed, ClusterError> {
    let plan = &upgrade.spec;
    let attempt = upgrade.name_any();
    let targets = try_join_all(plan.targets.iter().map(async |t| {
        let seen = observe_workload(client, ns, &t.workload, Some(&t.container)).await?;
        Ok::<_, ClusterError>(seen.map(|w| (t.name.clone(), w)))
    }));
    let only_workers = plan.workers.iter().filter(|w| plan.targets.iter().all(|t| !w.workload.is(&t.workload)));
    let workers = try_join_all(only_workers.map(async |w| {
        let Some(read) = worker::read(client, ns, &w.workload).await? else { return Ok(None) };
        let mut seen = read.seen;
        explain_hanging(client, ns, &mut seen).await;
        Ok::<_, ClusterError>(Some((w.workload.clone(), seen)))
    }));
    let flag = observe_flag(client, ns, plan.maintenance_flag.as_ref());
    let live_jobs = jobs_of(client, ns, &attempt);
    let own_pods = pods_of(client, ns, &attempt);
    let orders = orders(client, ns, release, upgrade);
    let config = settings::observe(client, ns, plan, &attempt);
    let (targets, workers, flag, live_jobs, own_pods, orders, config) =
        futures::try_join!(targets, workers, flag, live_jobs, own_pods, orders, config)?;

    let mut observed = Observed {
        refusal: None,
        targets: targets.into_iter().flatten().collect(),
        workers: workers.into_iter().flatten().collect(),
        flag,
        config,
        jobs: BTreeMap::new(),
        candidates: BTreeMap::new(),
        orders,
    };
    for planned in &plan.jobs {
        let name = template::name(&planned.manifest);
        let Some(job) = live_jobs.iter().find(|job| job.metadata.name.as_deref() == Some(name)) else { continue };
        let seen = match stranger(job, planned, recorded(upgrade)) {
            Some(detail) => jobs::foreign(job, detail),
            None => explained(client, ns, judged(&planned.step, job, &own_pods), job, &own_pods).await,
        };
        observed.jobs.insert(planned.step.clone(), seen);
    }
    for target in &plan.targets {
        let name = template::name(&target.candidate);
        let Some(pod) = own_pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name)) else { continue };
        let mut seen = pods::seen(pod, Some(&target.container));
        explain_pod(client, ns, pod, &mut seen).await;
        observed.candidates.insert(target.name.clone(), seen);
    }
    Ok(observed)
}

/// Of the Jobs that are about to be created those whose names somebody else's have taken, by step. [`observe`] finds Jobs by
/// their label, which a stranger's does not bear.
pub async fn strangers(
    client: &Client,
    ns: &str,
    upgrade: &MemoriaUpgrade,
    actions: &[Action],
) -> Result<BTreeMap<String, JobSeen>, ClusterError> {
    let created = |job: &&PlannedJob| {
        actions.iter().any(|action| matches!(action, Action::CreateJob { step, .. } if *step == job.step))
    };
    let met = try_join_all(upgrade.spec.jobs.iter().filter(created).map(async |planned| {
        let Some(job) = observe_planned(client, ns, planned).await? else { return Ok(None) };
        let detail = stranger(&job, planned, recorded(upgrade));
        Ok::<_, ClusterError>(detail.map(|detail| (planned.step.clone(), jobs::foreign(&job, detail))))
    }));
    Ok(met.await?.into_iter().flatten().collect())
}

/// SHA-256 of the manifest of the snapshot that the journal names.
fn recorded(upgrade: &MemoriaUpgrade) -> Option<&str> {
    upgrade.status.as_ref()?.snapshot.as_ref().map(|s| s.manifest_sha256.as_str())
}

/// Reads the Jobs of a pre-flight run, by step. A step may carry a suffix (`probe-0`).
pub async fn observe_run(client: &Client, ns: &str, run: &str) -> Result<BTreeMap<String, JobSeen>, ClusterError> {
    let (jobs, own_pods) = futures::try_join!(jobs_of(client, ns, run), pods_of(client, ns, run))?;
    let seen = join_all(jobs.iter().filter_map(|job| {
        let step = job.labels().get(STEP_LABEL)?.clone();
        Some(async {
            let seen = explained(client, ns, judged(&step, job, &own_pods), job, &own_pods).await;
            (step, seen)
        })
    }));
    Ok(seen.await.into_iter().collect())
}

/// A Job of ours tells what it found; that of a CronJob's template is judged by its end.
fn judged(step: &str, job: &Job, own_pods: &[Pod]) -> JobSeen {
    match check_of(step) {
        Some(check) => jobs::checked(check, job, own_pods),
        None => jobs::seen(job, own_pods),
    }
}

async fn observe_workload(
    client: &Client,
    ns: &str,
    name: &WorkloadRef,
    container: Option<&str>,
) -> Result<Option<Workload>, ClusterError> {
    let Some(found) = workload::get(client, ns, name).await? else { return Ok(None) };
    let pods = workload::live_pods(client, ns, name, &found).await?;
    let mut seen = found.seen(container, &pods);
    explain_hanging(client, ns, &mut seen).await;
    Ok(Some(seen))
}

/// Of how many pods that outlive their grace period the events are read.
const EXPLAINED: usize = 3;

/// Why pods outlive their grace period: the node's own word is out of reach, but what the node controller says of its
/// pods is not.
async fn explain_hanging(client: &Client, ns: &str, workload: &mut Workload) {
    let now = Timestamp::now();
    let overdue = |pod: &&mut PodSeen| pod.terminating.as_ref().is_some_and(|ending| ending.hangs_at() <= now);
    for pod in workload.pods.iter_mut().filter(overdue).take(EXPLAINED) {
        let reasons = ["NodeNotReady", "FailedKillPod", "ExceededGracePeriod"];
        if let Some(told) = warning(client, ns, &pod.uid, &reasons).await {
            pod.trouble = Some(told);
        }
    }
}

async fn observe_flag(
    client: &Client,
    ns: &str,
    flag: Option<&MaintenanceFlag>,
) -> Result<Option<String>, ClusterError> {
    let Some(MaintenanceFlag { config_map_key_ref: place, .. }) = flag else { return Ok(None) };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let map = bounded("read", format!("configmap/{}", place.name), api.get_opt(&place.name)).await?;
    Ok(map.and_then(|m| m.data).and_then(|mut data| data.remove(&place.key)))
}

async fn observe_planned(client: &Client, ns: &str, planned: &PlannedJob) -> Result<Option<Job>, ClusterError> {
    let name = template::name(&planned.manifest);
    if name.is_empty() {
        return Err(ClusterError::malformed(
            "read the Job of",
            format!("step {}", planned.step),
            "its manifest has no name".to_owned(),
        ));
    }
    let api: Api<Job> = Api::namespaced(client.clone(), ns);
    bounded("read", format!("job/{name}"), api.get_opt(name)).await
}

/// Why a live Job is not the planned one. Its input is taken from the Job itself, and must be what the journal names.
fn stranger(job: &Job, planned: &PlannedJob, recorded: Option<&str>) -> Option<String> {
    let input = match input_of(job, planned) {
        Ok(input) => input,
        Err(detail) => return Some(detail),
    };
    if input.manifest_sha256.is_some() && input.manifest_sha256.as_deref() != recorded {
        return Some(format!("its {INPUT_ENV} names another snapshot than the journal"));
    }
    match template::job(&planned.manifest, &input) {
        Ok(wanted) => template::difference(&job.metadata, &wanted.metadata),
        Err(e) => Some(e.to_string()),
    }
}

fn input_of(job: &Job, planned: &PlannedJob) -> Result<JobInput, String> {
    let spec = job.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    let containers = spec.map(|s| s.init_containers.iter().flatten().chain(&s.containers)).into_iter().flatten();
    let entries: Vec<_> = containers.flat_map(|c| c.env.iter().flatten()).collect();
    let value = |name: &str| entries.iter().find(|e| e.name == name).and_then(|e| e.value.as_deref());
    let candidate = || match value(CANDIDATE_ENV).unwrap_or_default().trim_matches(['[', ']']).parse() {
        Ok(address) => Ok(JobInput { candidate_address: Some(address), ..JobInput::default() }),
        Err(e) => Err(format!("its {CANDIDATE_ENV} is no address: {e}")),
    };
    match planned.check.as_ref().map(|check| check.stage) {
        // What its author wrote into the environment is no input of ours.
        Some(Stage::BeforeIngestion) => candidate(),
        Some(_) => Ok(JobInput::default()),
        None => value(INPUT_ENV).map_or(Ok(JobInput::default()), |text| {
            serde_json::from_str(text).map_err(|e| format!("its {INPUT_ENV} cannot be read: {e}"))
        }),
    }
}

/// Jobs that bear this attempt's (or run's) label.
async fn jobs_of(client: &Client, ns: &str, attempt: &str) -> Result<Vec<Job>, ClusterError> {
    let api: Api<Job> = Api::namespaced(client.clone(), ns);
    let selector = ListParams::default().labels(&format!("{ATTEMPT_LABEL}={attempt}"));
    Ok(bounded("list the Jobs of", attempt, api.list(&selector)).await?.items)
}

/// Pods that bear this attempt's (or run's) label: those of its Jobs, and candidates.
async fn pods_of(client: &Client, ns: &str, attempt: &str) -> Result<Vec<Pod>, ClusterError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), ns);
    let selector = ListParams::default().labels(&format!("{ATTEMPT_LABEL}={attempt}"));
    Ok(bounded("list the pods of", attempt, api.list(&selector)).await?.items)
}

/// What people ordered about this attempt, by its decisions and by the release itself. Each decision is named until the
/// journal says that it was acted on, the oldest first.
pub async fn orders(
    client: &Client,
    ns: &str,
    release: &MemoriaRelease,
    upgrade: &MemoriaUpgrade,
) -> Result<Orders, ClusterError> {
    let (own, attempt) = (release.name_any(), upgrade.name_any());
    let api: Api<MemoriaDecision> = Api::namespaced(client.clone(), ns);
    let list = bounded("list the decisions about", &own, api.list(&ListParams::default())).await?;
    let done = upgrade.status.as_ref().map(|journal| journal.decisions.as_slice()).unwrap_or_default();
    let mut open: Vec<_> = list
        .items
        .into_iter()
        .filter(|d| d.spec.release_name == own && d.spec.attempt == attempt)
        .filter(|d| done.iter().all(|known| known.name != d.name_any()))
        .collect();
    open.sort_by_key(|d| (d.metadata.creation_timestamp.as_ref().map(|t| t.0), d.name_any()));
    let oldest = |action| open.iter().find(|d| d.spec.action == action).map(ResourceExt::name_any);
    Ok(Orders {
        decided_by: open.iter().filter_map(|d| Some((d.name_any(), d.spec.decided_by.clone()?))).collect(),
        suspend: release.spec.suspend,
        abort: oldest(DecisionAction::Abort),
        rollback: oldest(DecisionAction::Rollback),
        accept_data_loss: oldest(DecisionAction::AcceptDataLoss),
        retry: oldest(DecisionAction::Retry),
        returned: release.spec.version == upgrade.spec.from,
        deleting: release.metadata.deletion_timestamp.is_some(),
    })
}

/// Attempts of the release whose rejected images a person allowed to be tried again.
pub async fn acknowledged(client: &Client, ns: &str, release: &str) -> Result<Vec<String>, ClusterError> {
    let api: Api<MemoriaDecision> = Api::namespaced(client.clone(), ns);
    let list = bounded("list the decisions about", release, api.list(&ListParams::default())).await?;
    let about =
        |d: &MemoriaDecision| d.spec.release_name == release && d.spec.action == DecisionAction::AcknowledgeRejection;
    Ok(list.items.into_iter().filter(about).map(|d| d.spec.attempt).collect())
}

/// A running Job without trouble of its own, explained by events where nothing else can: no pod could be made (quota,
/// PodSecurity), or its volumes do not come.
async fn explained(client: &Client, ns: &str, mut seen: JobSeen, job: &Job, own_pods: &[Pod]) -> JobSeen {
    if let JobState::Running { trouble: trouble @ None } = &mut seen.state {
        match own_pods.iter().find(|pod| jobs::belongs(pod, job)) {
            None => *trouble = warning(client, ns, &seen.uid, &["FailedCreate"]).await,
            Some(pod) if pods::is_being_set_up(pod) => *trouble = volume_warning(client, ns, pod).await,
            Some(_) => {}
        }
    }
    seen
}

async fn explain_pod(client: &Client, ns: &str, pod: &Pod, seen: &mut PodSeen) {
    if seen.trouble.is_none() && pods::is_being_set_up(pod) {
        seen.trouble = volume_warning(client, ns, pod).await;
    }
}

async fn volume_warning(client: &Client, ns: &str, pod: &Pod) -> Option<Trouble> {
    let reasons = ["FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"];
    let trouble = warning(client, ns, pod.metadata.uid.as_deref().unwrap_or_default(), &reasons).await?;
    Some(pods::with_secrets(pod, trouble))
}

/// The newest warning event about an object. Events are hints, kept for an hour at most: failing to read them is no
/// error and nothing is decided on their absence.
async fn warning(client: &Client, ns: &str, uid: &str, reasons: &[&str]) -> Option<Trouble> {
    let api: Api<Event> = Api::namespaced(client.clone(), ns);
    let selector = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning")).limit(50);
    let list = match bounded("list the events of", uid, api.list(&selector)).await {
        Ok(list) => list,
        Err(error) => {
            tracing::debug!(%error, "events could not be read");
            return None;
        }
    };
    let known = list.items.into_iter().filter(|e| reasons.contains(&e.reason.as_deref().unwrap_or_default()));
    let newest = known.max_by_key(|e| {
        let seen = e.last_timestamp.as_ref().map(|t| t.0);
        seen.or_else(|| e.event_time.as_ref().map(|t| t.0))
            .or_else(|| e.metadata.creation_timestamp.as_ref().map(|t| t.0))
    })?;
    Some(pods::told(newest.reason.as_deref().unwrap_or_default(), newest.message.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use serde_json::{Value, json};

    use super::stranger;
    use crate::{api::upgrade::PlannedJob, cluster::template, job::protocol::JobInput};

    fn planned() -> PlannedJob {
        PlannedJob {
            step: "migrate".to_owned(),
            check: None,
            manifest: json!({"apiVersion": "batch/v1", "kind": "Job",
                "metadata": {"name": "memoria-3-migrate", "labels": {"memoria.arca.run/release": "memoria", "memoria.arca.run/attempt": "memoria-3"}},
                "spec": {"template": {"spec": {"initContainers": [
                    {"name": "guard", "image": "tools:15", "env": [{"name": "MEMORIA_OPERATOR_JOB", "value": "{}"}]}],
                    "containers": [{"name": "main", "image": "memoria:1.0.1"}]}}}}),
        }
    }

    fn live(sha: Option<&str>) -> Value {
        serde_json::to_value(
            template::job(
                &planned().manifest,
                &JobInput { manifest_sha256: sha.map(str::to_owned), ..JobInput::default() },
            )
            .unwrap(),
        )
        .unwrap()
    }

    fn job(manifest: Value) -> Job {
        serde_json::from_value(manifest).unwrap()
    }

    #[test]
    fn a_job_of_the_plan_with_the_journals_input_is_ours() {
        assert_eq!(stranger(&job(live(Some("ab"))), &planned(), Some("ab")), None);
        assert_eq!(stranger(&job(live(None)), &planned(), Some("ab")), None);
    }

    #[test]
    fn another_snapshot_another_template_or_no_labels_make_it_foreign() {
        assert!(stranger(&job(live(Some("ab"))), &planned(), Some("cd")).unwrap().contains("another snapshot"));
        assert!(stranger(&job(live(Some("ab"))), &planned(), None).is_some());
        let mut other = live(Some("ab"));
        other["metadata"]["annotations"] = json!({});
        assert!(stranger(&job(other), &planned(), Some("ab")).unwrap().contains("template-hash is absent"));
        let mut changed = planned();
        changed.manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!("memoria:1.0.2");
        assert!(stranger(&job(live(Some("ab"))), &changed, Some("ab")).is_some());
    }
}
