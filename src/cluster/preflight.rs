//! What PreFlight writes and asks: the run's own Jobs, the snapshot claim, and server-side dry runs of everything that
//! the plan will write.

use std::fmt::Debug;

use futures::future::{join_all, try_join_all};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        batch::v1::Job,
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, VolumeResourceRequirements},
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    act,
    client::bounded,
    error::{ClusterError, Kind},
    settings, template, worker,
};
use crate::{
    api::{
        MemoriaRelease, MemoriaUpgradeSpec,
        marks::{ATTEMPT_LABEL, OWNER_MANAGER, RELEASE_LABEL, STEP_LABEL},
        release::{CheckResult, Mode, Verdict, WorkerKind, WorkerRef},
        upgrade::{PlannedTarget, PlannedWorker},
    },
    job::protocol::JobInput,
    upgrade::{Precondition, Prior},
};

/// Creates a Job of a pre-flight run; one of the same name, labels and content is taken as created. The manifest needs
/// the labels of release, run and step.
pub async fn create_run_job(client: &Client, ns: &str, job: &Job) -> Result<(), ClusterError> {
    let mut job = job.clone();
    // Read within minutes, and nobody's business once another run has taken over; an attempt deletes those of its own run.
    job.spec.get_or_insert_default().ttl_seconds_after_finished = Some(act::JOB_TTL_SECONDS);
    act::create_job(client, ns, &template::job_of(job, &JobInput::default())?).await
}

/// The first of a run's Jobs whose pod the API server would not admit. A Job is made all the same when a quota, PodSecurity
/// or a policy refuses its pod; the run would then wait for a pod that never comes. What could not be asked is no refusal.
pub async fn first_refused(client: &Client, ns: &str, jobs: &[Job]) -> Option<CheckResult> {
    for job in jobs {
        let answer = match template::job_of(job.clone(), &JobInput::default()) {
            Ok(job) => dry_create(client, ns, "pod", &pod_of(&job)).await,
            Err(error) => Err(error),
        };
        let step = job.labels().get(STEP_LABEL).map(String::as_str).unwrap_or_default();
        let judged = judged(ns, format!("admit-job-{step}"), "its pod would be admitted", answer);
        if judged.result == Verdict::Failed {
            return Some(judged);
        }
    }
    None
}

/// Deletes all Jobs of a pre-flight run, with their pods.
pub async fn delete_run_jobs(client: &Client, ns: &str, run: &str) -> Result<(), ClusterError> {
    let api: Api<Job> = Api::namespaced(client.clone(), ns);
    let selector = ListParams::default().labels(&format!("{ATTEMPT_LABEL}={run}"));
    let list = bounded("list the Jobs of", format!("pre-flight run {run}"), api.list_metadata(&selector)).await?;
    let named: Vec<(String, String)> =
        list.items.iter().map(|job| (job.name_any(), job.uid().unwrap_or_default())).collect();
    try_join_all(named.iter().map(|(name, uid)| act::delete::<Job>(client, ns, "job", name, uid))).await.map(drop)
}

/// Makes the claim for snapshots unless there is one of that name: `ReadWriteOnce`, of the default storage class.
/// It has no owner: deleting a release must not delete the only copy of its data. Returns whether it was made.
pub async fn ensure_claim(
    client: &Client,
    ns: &str,
    release: &str,
    name: &str,
    bytes: i64,
) -> Result<bool, ClusterError> {
    let object = format!("persistentvolumeclaim/{name}");
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), ns);
    if bounded("read", &object, api.get_metadata_opt(name)).await?.is_some() {
        return Ok(false);
    }
    let params = PostParams { dry_run: false, field_manager: Some(OWNER_MANAGER.to_owned()) };
    match bounded("create", &object, api.create(&params, &claim(release, name, bytes))).await {
        Ok(_) => Ok(true),
        // Somebody was faster; whoever made it, it is the claim of that name.
        Err(error) if error.kind == Kind::Foreign => Ok(false),
        Err(error) => Err(error),
    }
}

fn claim(release: &str, name: &str, bytes: i64) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(RELEASE_LABEL.to_owned(), release.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(bytes.to_string()))].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// Asks the server to admit everything that the plan will write, without writing it: one result for each object.
///
/// `attempt` is the name that the upgrade will have. Jobs are asked twice, as Jobs and as the pods that they make,
/// because quotas and PodSecurity judge only pods.
pub async fn dry_run(
    client: &Client,
    ns: &str,
    release: &MemoriaRelease,
    attempt: &str,
    plan: &MemoriaUpgradeSpec,
) -> Vec<CheckResult> {
    let owner = release.uid().unwrap_or_default();
    let jobs = plan.jobs.iter().map(async |job| {
        let answer = dry_job(client, ns, &job.manifest).await;
        judged(ns, format!("admit-job-{}", job.step), "Job and pod would be admitted", answer)
    });
    let targets = plan.targets.iter().map(async |target| {
        let answer = dry_target(client, ns, &owner, attempt, target).await;
        let passed = "marks, replicas, image and candidate would be admitted";
        judged(ns, format!("admit-target-{}", target.name), passed, answer)
    });
    let only_workers = plan.workers.iter().filter(|w| plan.targets.iter().all(|t| !w.workload.is(&t.workload)));
    let workers = only_workers.map(async |worker| {
        let answer = dry_stop(client, ns, &owner, attempt, &worker.workload, &prior_of(worker)).await.map(drop);
        let name = format!("admit-worker-{}", worker.workload.to_string().replace('/', "-"));
        judged(ns, name, "marks and being stopped would be admitted", answer)
    });
    let config = plan.config.iter().map(async |_| {
        let answer = settings::dry_run(client, ns, plan, attempt).await;
        judged(ns, "admit-config".to_owned(), "both writes of the settings would be admitted", answer)
    });
    let claim = plan.storage.claim_name.iter().map(async |name| {
        let answer = usable_claim(client, ns, release, name).await;
        judged(ns, "snapshot-claim".to_owned(), "the claim for snapshots exists", answer)
    });
    // Nothing is written, so that nothing waits for anything.
    let (jobs, targets, workers, config, claim) =
        futures::join!(join_all(jobs), join_all(targets), join_all(workers), join_all(config), join_all(claim));
    jobs.into_iter().chain(targets).chain(workers).chain(config).chain(claim).collect()
}

fn judged(ns: &str, name: String, passed: &str, answer: Result<(), ClusterError>) -> CheckResult {
    match answer {
        Ok(()) => CheckResult { name, result: Verdict::Passed, message: passed.to_owned() },
        Err(error) => {
            // No answer is no refusal.
            let result = if error.is_settled_by_observing_again() { Verdict::Inconclusive } else { Verdict::Failed };
            CheckResult { name, result, message: super::error::cut(&error.in_namespace(ns).to_string(), 1024) }
        }
    }
}

async fn dry_job(client: &Client, ns: &str, manifest: &Value) -> Result<(), ClusterError> {
    let job = template::job(manifest, &JobInput::default())?;
    dry_create(client, ns, "job", &job).await?;
    dry_create(client, ns, "pod", &pod_of(&job)).await
}

/// The pod that a Job's controller will make.
fn pod_of(job: &Job) -> Pod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut metadata = template.metadata.unwrap_or_default();
    // As the Job's controller begins its pods' names.
    metadata.generate_name = Some(format!("{}-", job.name_any()));
    Pod { metadata, spec: template.spec, status: None }
}

async fn dry_target(
    client: &Client,
    ns: &str,
    owner: &str,
    attempt: &str,
    target: &PlannedTarget,
) -> Result<(), ClusterError> {
    let (reference, prior) = (WorkerRef::from(&target.workload), Prior::Replicas(target.replicas));
    let now = dry_stop(client, ns, owner, attempt, &reference, &prior).await?;
    act::set_image(client, ns, &target.workload, &now, &target.container, &target.to_image, true).await?;
    dry_create(client, ns, "pod", &template::candidate(&target.candidate)?).await
}

fn prior_of(worker: &PlannedWorker) -> Prior {
    match worker.workload.kind {
        WorkerKind::Deployment | WorkerKind::StatefulSet => Prior::Replicas(worker.replicas),
        WorkerKind::CronJob | WorkerKind::Job => Prior::Suspend(worker.suspend.unwrap_or_default()),
        WorkerKind::ScaledObject => Prior::Paused(worker.paused_replicas.clone()),
    }
}

async fn dry_stop(
    client: &Client,
    ns: &str,
    owner: &str,
    attempt: &str,
    name: &WorkerRef,
    prior: &Prior,
) -> Result<Precondition, ClusterError> {
    let Some(found) = worker::metadata(client, ns, name).await? else {
        return Err(ClusterError::missing(
            "plan",
            name.to_string(),
            "create it, or take it out of the release".to_owned(),
        ));
    };
    let now = Precondition {
        uid: found.uid.unwrap_or_default(),
        resource_version: found.resource_version.unwrap_or_default(),
    };
    let marks = act::marks(owner, Some((attempt, prior)));
    match act::mark(client, ns, name, &now.uid, owner, marks, true).await {
        // The mark of a release that is gone will be lifted.
        Err(error) if matches!(error.kind, Kind::Claimed { .. }) => {
            act::gone_owner(client, ns, name, &now.uid).await?.ok_or(error)?;
        }
        other => other?,
    }
    match (prior, name.workload()) {
        (Prior::Replicas(_), Some(workload)) => act::scale(client, ns, &workload, &now, 0, true).await?,
        (Prior::Paused(_), _) => worker::pause(client, ns, name, &now, Some("0"), true).await?,
        _ => worker::suspend(client, ns, name, &now, true, true).await?,
    }
    Ok(now)
}

async fn dry_create<K>(client: &Client, ns: &str, kind: &str, wanted: &K) -> Result<(), ClusterError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), ns);
    let params = PostParams { dry_run: true, field_manager: Some(OWNER_MANAGER.to_owned()) };
    let name = wanted.meta().name.as_deref().or(wanted.meta().generate_name.as_deref()).unwrap_or_default();
    bounded("create", format!("{kind}/{name}"), api.create(&params, wanted)).await.map(drop)
}

async fn usable_claim(client: &Client, ns: &str, release: &MemoriaRelease, name: &str) -> Result<(), ClusterError> {
    let object = format!("persistentvolumeclaim/{name}");
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), ns);
    let Some(claim) = bounded("read", &object, api.get_opt(name)).await? else {
        // A plan that is only shown makes no claim: that it could be made is all there is to know.
        if release.spec.mode == Mode::Plan && release.spec.snapshot.storage.is_none() {
            return dry_create(client, ns, "persistentvolumeclaim", &claim(&release.name_any(), name, 1 << 30)).await;
        }
        return Err(ClusterError::missing("use", object, "create it, or correct spec.snapshot.storage".to_owned()));
    };
    let lost = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost");
    let problem = if claim.metadata.deletion_timestamp.is_some() {
        "it is being deleted"
    } else if lost {
        "its volume is lost"
    } else {
        return Ok(());
    };
    Err(ClusterError {
        kind: Kind::Refused,
        doing: "use",
        object,
        cause: problem.to_owned(),
        next: "name another claim in spec.snapshot.storage".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{claim, pod_of};

    #[test]
    fn the_pod_of_a_job_has_its_template() {
        let job = serde_json::from_value(json!({"metadata": {"name": "memoria-3-fence"}, "spec": {"template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "containers": []}}}}))
        .unwrap();
        let pod = serde_json::to_value(pod_of(&job)).unwrap();
        assert_eq!(pod["metadata"], json!({"generateName": "memoria-3-fence-", "labels": {"a": "b"}}));
        assert_eq!(pod["spec"]["restartPolicy"], "Never");
    }

    #[test]
    fn the_claim_has_no_owner_and_asks_for_whole_bytes() {
        let claim = serde_json::to_value(claim("memoria", "memoria-snapshots", 3_000_000_001)).unwrap();
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "3000000001");
        assert_eq!(
            claim["metadata"],
            json!({"name": "memoria-snapshots", "labels": {"memoria.arca.run/release": "memoria"}})
        );
    }
}
