//! What the machine is shown of the cluster.

use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Event, Pod},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use memoria_operator::{
    api::MemoriaDecision,
    job::protocol::JobInput,
    upgrade::{Action, seen::JobState},
};
use serde_json::{Value, json};

use crate::world::{World, server_ref};

async fn pod(world: &World, name: &str, app: &str, status: Value) {
    // A finalizer keeps it terminating, as a kubelet that has not stopped it would.
    world
        .create::<Pod>(
            json!({"metadata": {"name": name, "labels": {"app": app}, "finalizers": ["tests.arca.run/kubelet"]},
            "spec": {"containers": [{"name": "server", "image": "m"}], "nodeName": "node-a"}}),
        )
        .await;
    world.set_status::<Pod>(name, status).await;
}

#[tokio::test]
async fn a_target_is_gone_only_when_its_last_terminating_pod_is() {
    let world = World::new("observe-pods").await;
    pod(&world, "memoria-a", "memoria", json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "server", "image": "m", "imageID": "r@sha256:cd", "ready": true, "restartCount": 1, "state": {"running": {}}}]})).await;
    pod(&world, "memoria-evicted", "memoria", json!({"phase": "Failed", "reason": "Evicted"})).await;
    pod(&world, "other", "other", json!({"phase": "Running"})).await;

    let seen = world.observe().await.targets.remove("server").unwrap();
    assert_eq!(seen.pods.len(), 1);
    let one = &seen.pods[0];
    assert_eq!((one.name.as_str(), one.ready, one.deleting, one.restarts), ("memoria-a", true, false, 1));
    assert_eq!((one.image_id.as_deref(), one.node.as_deref()), (Some("r@sha256:cd"), Some("node-a")));

    let precondition = world.precondition(&server_ref()).await;
    world.act(Action::Scale { workload: server_ref(), precondition, replicas: 0 }).await.unwrap();
    world.api::<Pod>().delete("memoria-a", &DeleteParams::default()).await.unwrap();
    let seen = world.observe().await.targets.remove("server").unwrap();
    assert!(seen.pods[0].deleting && !seen.is_gone());
    let unfinalized = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    world.api::<Pod>().patch("memoria-a", &PatchParams::default(), &unfinalized).await.unwrap();
    // No kubelet confirms the deletion here.
    let _ = world.api::<Pod>().delete("memoria-a", &DeleteParams::default().grace_period(0)).await;
    assert!(world.observe().await.targets["server"].is_gone());
}

#[tokio::test]
async fn a_rollout_is_seen_when_the_controller_has_counted_it() {
    let world = World::new("observe-rollout").await;
    let generation = world.get::<Deployment>("memoria").await.metadata.generation.unwrap();
    assert!(!world.observe().await.targets["server"].is_rolled_out(2));
    let counted = json!({"observedGeneration": generation, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2});
    world.set_status::<Deployment>("memoria", counted).await;
    assert!(world.observe().await.targets["server"].is_rolled_out(2));
}

#[tokio::test]
async fn workers_flag_and_orders_are_seen() {
    let mut world = World::new("observe-orders").await;
    let seen = world.observe().await;
    assert_eq!(seen.workers.values().map(|w| w.replicas).collect::<Vec<_>>(), [3]);
    assert_eq!(seen.flag.as_deref(), Some("false"));
    assert_eq!((seen.orders.suspend, seen.orders.abort, seen.orders.deleting), (false, None, false));

    for (name, attempt) in [("other", "memoria-0"), ("stop", "memoria-1")] {
        world
            .create::<MemoriaDecision>(
                json!({"apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaDecision", "metadata": {"name": name},
                "spec": {"releaseName": "memoria", "action": "Abort", "attempt": attempt, "reason": "withdrawn"}}),
            )
            .await;
    }
    world.release.spec.suspend = true;
    let orders = world.observe().await.orders;
    assert_eq!((orders.suspend, orders.abort.as_deref()), (true, Some("stop")));
}

#[tokio::test]
async fn a_job_that_cannot_make_its_pod_or_mount_its_volumes_says_so() {
    let world = World::new("observe-events").await;
    world.act(Action::CreateJob { step: "fence".to_owned(), input: JobInput::default() }).await.unwrap();
    let job = world.get::<Job>("memoria-1-fence").await;
    let warn = |name: &str, kind: &str, object: &str, uid: &str, reason: &str, message: &str| {
        json!({"metadata": {"name": name}, "type": "Warning", "reason": reason, "message": message,
            "involvedObject": {"kind": kind, "name": object, "namespace": world.ns, "uid": uid}})
    };
    let uid = job.uid().unwrap();
    world.create::<Event>(warn("a", "Job", "memoria-1-fence", &uid, "FailedCreate", "exceeded quota: small")).await;
    let JobState::Running { trouble: Some(t) } = world.observe().await.jobs.remove("fence").unwrap().state else {
        panic!()
    };
    assert_eq!((t.reason.as_str(), t.message.as_str()), ("FailedCreate", "exceeded quota: small"));

    let creating = json!({"phase": "Pending", "containerStatuses": [{"name": "main", "image": "m", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ContainerCreating"}}}]});
    let pod = world.job_pod(&job, creating).await;
    assert!(
        matches!(world.observe().await.jobs["fence"].state, JobState::Running { trouble: None }),
        "not scheduled yet"
    );
    let bind = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name_any()}, "target": {"kind": "Node", "name": "node-a"}});
    let _: Value =
        world.api::<Pod>().create_subresource("binding", &pod.name_any(), &Default::default(), &bind).await.unwrap();
    world
        .create::<Event>(warn(
            "b",
            "Pod",
            &pod.name_any(),
            &pod.uid().unwrap(),
            "FailedMount",
            "configmap \"x\" not found",
        ))
        .await;
    let JobState::Running { trouble: Some(t) } = world.observe().await.jobs.remove("fence").unwrap().state else {
        panic!()
    };
    assert_eq!((t.reason.as_str(), t.message.as_str()), ("FailedMount", "configmap \"x\" not found"));
}
