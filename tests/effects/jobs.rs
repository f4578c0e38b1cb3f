//! Jobs: made once, recognised, told apart, removed.

use k8s_openapi::api::batch::v1::Job;
use kube::{ResourceExt, api::DeleteParams};
use memoria_operator::{
    cluster::{Kind, observe_run, preflight, strangers},
    job::protocol::JobInput,
    upgrade::{Action, seen::JobState},
};
use serde_json::json;

use crate::world::World;

fn create(step: &str, sha: Option<&str>) -> Action {
    Action::CreateJob {
        step: step.to_owned(),
        input: JobInput { manifest_sha256: sha.map(str::to_owned), ..JobInput::default() },
    }
}

const REPORT: &str = r#"{"v":1,"ok":true,"reason":"Done","message":"No session is left."}"#;

async fn finish(world: &World, job: &str, ok: bool) {
    let now = "2026-01-01T00:00:00Z";
    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": if ok { "CompletionsReached" } else { "BackoffLimitExceeded" }, "lastTransitionTime": now});
    let status = if ok {
        json!({"startTime": now, "completionTime": now, "succeeded": 1, "conditions": [condition("SuccessCriteriaMet"), condition("Complete")]})
    } else {
        json!({"startTime": now, "failed": 1, "conditions": [condition("FailureTarget"), condition("Failed")]})
    };
    world.set_status::<Job>(job, status).await;
}

#[tokio::test]
async fn a_job_is_made_once_and_its_report_is_read() {
    let world = World::new("jobs-once").await;
    world.act(create("fence", None)).await.unwrap();
    let first = world.get::<Job>("memoria-1-fence").await;
    world.act(create("fence", None)).await.unwrap();
    assert_eq!(world.get::<Job>("memoria-1-fence").await.uid(), first.uid());
    assert_eq!(first.owner_references(), []);
    assert!(matches!(world.observe().await.jobs["fence"].state, JobState::Running { trouble: None }));

    let ended = json!({"exitCode": 0, "reason": "Completed", "message": REPORT, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z"});
    world
        .job_pod(
            &first,
            json!({"phase": "Succeeded", "containerStatuses": [{"name": "main", "image": "m", "imageID": "r@sha256:ab",
        "ready": false, "restartCount": 0, "state": {"terminated": ended}}]}),
        )
        .await;
    finish(&world, "memoria-1-fence", true).await;
    let seen = world.observe().await.jobs.remove("fence").unwrap();
    assert_eq!(
        (seen.uid.as_str(), seen.image_id.as_deref(), seen.ttl_armed),
        (first.uid().unwrap().as_str(), Some("r@sha256:ab"), false)
    );
    let JobState::Finished { succeeded: true, report: Some(report), detail } = seen.state else {
        panic!("{:?}", seen.state)
    };
    assert_eq!(report.message, "No session is left.");
    assert!(detail.contains("exit code 0"), "{detail}");

    world.act(Action::ArmJobTtl { step: "fence".to_owned(), uid: first.uid().unwrap() }).await.unwrap();
    assert_eq!(world.get::<Job>("memoria-1-fence").await.spec.unwrap().ttl_seconds_after_finished, Some(604_800));
    assert!(world.observe().await.jobs["fence"].ttl_armed);
}

#[tokio::test]
async fn a_job_whose_pod_is_gone_has_ended_without_a_report() {
    let world = World::new("jobs-silent").await;
    world.act(create("fence", None)).await.unwrap();
    finish(&world, "memoria-1-fence", false).await;
    let JobState::Finished { succeeded: false, report: None, detail } =
        world.observe().await.jobs.remove("fence").unwrap().state
    else {
        panic!()
    };
    assert!(detail.contains("BackoffLimitExceeded") && detail.contains("pod is gone"), "{detail}");
}

#[tokio::test]
async fn a_strangers_job_of_our_name_is_foreign_and_never_adopted() {
    let world = World::new("jobs-foreign").await;
    let stranger = json!({"metadata": {"name": "memoria-1-fence"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "main", "image": "busybox"}]}}}});
    world.create::<Job>(stranger).await;
    let error = world.act(create("fence", None)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Foreign);
    assert!(error.to_string().contains("job/memoria-1-fence"), "{error}");
    assert!(!world.observe().await.jobs.contains_key("fence"), "it bears no label of ours");
    let met = strangers(&world.client, &world.ns, &world.upgrade, &[create("fence", None)]).await.unwrap();
    assert!(matches!(&met["fence"].state, JobState::Foreign { detail } if detail.contains("absent")));
    let others = strangers(&world.client, &world.ns, &world.upgrade, &[create("migrate", None)]).await.unwrap();
    assert!(others.is_empty());
}

#[tokio::test]
async fn our_job_with_another_input_is_foreign() {
    let world = World::new("jobs-input").await;
    world.act(create("migrate", Some("aa"))).await.unwrap();
    assert_eq!(world.act(create("migrate", Some("bb"))).await.unwrap_err().kind, Kind::Foreign);
    // The journal knows of no snapshot at all, so a Job that names one is nobody's.
    assert!(
        matches!(&world.observe().await.jobs["migrate"].state, JobState::Foreign { detail } if detail.contains("another snapshot"))
    );
}

#[tokio::test]
async fn a_job_is_deleted_by_its_identity_only() {
    let world = World::new("jobs-delete").await;
    world.act(create("fence", None)).await.unwrap();
    let delete = |uid: &str| Action::DeleteJob { step: "fence".to_owned(), uid: uid.to_owned() };
    world.act(delete("00000000-0000-0000-0000-000000000000")).await.unwrap();
    let job = world.get::<Job>("memoria-1-fence").await;
    assert_eq!(job.metadata.deletion_timestamp, None);
    world.act(delete(&job.uid().unwrap())).await.unwrap();
    assert!(world.api::<Job>().get_opt("memoria-1-fence").await.unwrap().is_none());
    world.act(delete(&job.uid().unwrap())).await.unwrap();
    world.act(Action::ArmJobTtl { step: "fence".to_owned(), uid: job.uid().unwrap() }).await.unwrap();
}

#[tokio::test]
async fn a_lifetime_is_not_set_on_another_job_of_that_name() {
    let world = World::new("jobs-ttl").await;
    world.act(create("fence", None)).await.unwrap();
    let error = world
        .act(Action::ArmJobTtl { step: "fence".to_owned(), uid: "00000000-0000-0000-0000-000000000000".to_owned() })
        .await;
    assert_eq!(error.unwrap_err().kind, Kind::Stale);
    assert!(!world.observe().await.jobs["fence"].ttl_armed);
}

#[tokio::test]
async fn a_run_of_preflight_has_its_own_jobs() {
    let world = World::new("jobs-run").await;
    let job = |name: &str, step: &str| -> Job {
        let labels = json!({"memoria.arca.run/release": "memoria", "memoria.arca.run/attempt": "memoria-run-1", "memoria.arca.run/step": step});
        serde_json::from_value(
            json!({"metadata": {"name": name, "labels": labels}, "spec": {"template": {"metadata": {"labels": labels},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "m"}]}}}}),
        )
        .unwrap()
    };
    for (name, step) in [("memoria-run-1-inspect", "inspect"), ("memoria-run-1-probe-0", "probe-0")] {
        preflight::create_run_job(&world.client, &world.ns, &job(name, step)).await.unwrap();
        preflight::create_run_job(&world.client, &world.ns, &job(name, step)).await.unwrap();
    }
    let changed = preflight::create_run_job(&world.client, &world.ns, &job("memoria-run-1-inspect", "probe-0")).await;
    assert_eq!(changed.unwrap_err().kind, Kind::Foreign);
    world.act(create("fence", None)).await.unwrap();
    let waiting = json!({"phase": "Pending", "containerStatuses": [{"name": "main", "image": "m", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]});
    world.job_pod(&world.get::<Job>("memoria-run-1-probe-0").await, waiting).await;

    let seen = observe_run(&world.client, &world.ns, "memoria-run-1").await.unwrap();
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["inspect", "probe-0"]);
    let JobState::Running { trouble: Some(trouble) } = &seen["probe-0"].state else { panic!("{:?}", seen["probe-0"]) };
    assert_eq!(trouble.reason, "ErrImagePull");

    preflight::delete_run_jobs(&world.client, &world.ns, "memoria-run-1").await.unwrap();
    assert!(observe_run(&world.client, &world.ns, "memoria-run-1").await.unwrap().is_empty());
    assert!(world.observe().await.jobs.contains_key("fence"));
    world.api::<Job>().delete("memoria-1-fence", &DeleteParams::background()).await.unwrap();
}
