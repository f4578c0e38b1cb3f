//! What PreFlight finds.

use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::ConfigMap};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use memoria_operator::{
    api::{
        MemoriaRelease,
        release::{Mode, Verdict},
    },
    cluster::{
        Adopted, adopt,
        adopt::{Claim, Tool},
    },
    upgrade::{Action, Prior},
};
use serde_json::{Value, json};

use crate::world::{World, release, server_ref};

async fn adopted(world: &World) -> Adopted {
    adopt(&world.client, &world.ns, &world.release).await.unwrap()
}

fn verdicts(adopted: &Adopted) -> Vec<(&str, Verdict)> {
    adopted.checks.iter().map(|c| (c.name.as_str(), c.result)).collect()
}

fn message<'a>(adopted: &'a Adopted, check: &str) -> &'a str {
    let found = adopted.checks.iter().find(|c| c.name == check).unwrap();
    assert_eq!(found.result, Verdict::Failed, "{}", found.message);
    &found.message
}

async fn patch(world: &World, change: Value) {
    world.api::<Deployment>().patch("memoria", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

#[tokio::test]
async fn what_runs_is_adopted_as_it_stands_and_nothing_is_written() {
    let world = World::new("adopt-good").await;
    let before = world.precondition(&server_ref()).await;
    let found = adopted(&world).await;
    assert_eq!(
        verdicts(&found),
        [
            ("target-server", Verdict::Passed),
            ("worker-statefulset-worker", Verdict::Passed),
            ("maintenance-flag", Verdict::Passed)
        ]
    );
    let target = &found.targets[0];
    assert_eq!((target.container.as_str(), target.container_inferred), ("server", true));
    let seen = &target.workload.seen;
    assert_eq!((seen.replicas, seen.image.as_str()), (2, "registry.arca.run/memoria/server:0.9.0"));
    assert_eq!((&seen.uid, &seen.resource_version), (&before.uid, &before.resource_version));
    assert_eq!(target.workload.claim, Claim::None);
    assert_eq!(target.spec().unwrap().env.as_ref().unwrap()[0].name, "MODE");
    assert_eq!(found.workers[0].seen.replicas, 3);
    assert_eq!(found.flag.as_ref().unwrap().value, "false");
    assert_eq!(found.services.len(), 2);
    assert_eq!(world.precondition(&server_ref()).await, before);
}

#[tokio::test]
async fn what_is_missing_or_unfit_is_a_failed_check_that_names_it_and_the_way_out() {
    let mut world = World::new("adopt-unfit").await;
    patch(&world, json!({"spec": {"paused": true}})).await;
    world.api::<ConfigMap>().delete("flags", &DeleteParams::default()).await.unwrap();
    world.release.spec.ingestion.workers[0].name = "nobody".to_owned();
    let found = adopted(&world).await;
    assert!(message(&found, "target-server").contains("rollout resume deployment/memoria"));
    assert!(message(&found, "worker-statefulset-nobody").contains("statefulset/nobody does not exist"));
    assert!(message(&found, "maintenance-flag").contains("configmap/flags does not exist"));
    assert!(found.workers.is_empty() && found.flag.is_none());

    patch(
        &world,
        json!({"spec": {"paused": false, "template": {"spec": {"containers": [
        {"name": "server", "image": "m:1"}, {"name": "proxy", "image": "p:1"}]}}}}),
    )
    .await;
    let found = adopted(&world).await;
    let said = message(&found, "target-server");
    assert!(said.contains("spec.targets[name=server].container") && said.contains("proxy, server"), "{said}");
    world.release.spec.targets[0].container = Some("api".to_owned());
    assert!(message(&adopted(&world).await, "target-server").contains("\"api\""));
}

#[tokio::test]
async fn another_releases_workload_is_refused_by_name() {
    let world = World::new("adopt-claimed").await;
    let second: MemoriaRelease = world.create(serde_json::to_value(release("second")).unwrap()).await;
    let uid = world.precondition(&server_ref()).await.uid;
    world
        .act_for(&second, Action::Mark { workload: server_ref().into(), uid, prior: Prior::Replicas(2), back: false })
        .await
        .unwrap();
    let found = adopted(&world).await;
    assert_eq!(found.targets[0].workload.claim, Claim::Other { release: "second".to_owned() });
    assert!(message(&found, "target-server").contains("release second"));
    assert_eq!(adopt(&world.client, &world.ns, &second).await.unwrap().targets[0].workload.claim, Claim::Ours);

    world.api::<MemoriaRelease>().delete("second", &DeleteParams::default()).await.unwrap();
    let found = adopted(&world).await;
    assert_eq!(found.targets[0].workload.claim, Claim::Gone { uid: second.uid().unwrap() });
    assert_eq!(found.targets[0].workload.seen.attempt.as_deref(), Some("memoria-1"));
}

#[tokio::test]
async fn of_two_releases_that_name_one_workload_the_younger_is_refused_unless_it_only_plans() {
    let world = World::new("adopt-twice").await;
    // The server's clock has whole seconds; of two releases of one second the name decides.
    let mut second: MemoriaRelease = world.create(serde_json::to_value(release("second")).unwrap()).await;
    let of = async |release: &MemoriaRelease| adopt(&world.client, &world.ns, release).await.unwrap();
    let found = of(&second).await;
    assert_eq!(found.targets[0].workload.claim, Claim::Other { release: "memoria".to_owned() });
    for check in ["target-server", "worker-statefulset-worker"] {
        let said = message(&found, check);
        assert!(said.contains("is named by release memoria too") && said.contains("delete release memoria"), "{said}");
    }
    assert!(of(&world.release).await.checks.iter().all(|check| check.result == Verdict::Passed));
    second.spec.mode = Mode::Plan;
    assert_eq!(of(&second).await.targets[0].workload.claim, Claim::None);
    // What it was marked by its own attempt stays its own.
    second.spec.mode = Mode::Apply;
    let uid = world.precondition(&server_ref()).await.uid;
    let mark = Action::Mark { workload: server_ref().into(), uid, prior: Prior::Replicas(2), back: false };
    world.act_for(&second, mark).await.unwrap();
    assert_eq!(of(&second).await.targets[0].workload.claim, Claim::Ours);
    assert!(message(&of(&world.release).await, "target-server").contains("belongs to release second"));
}

#[tokio::test]
async fn tools_that_keep_the_image_are_listed() {
    let world = World::new("adopt-managers").await;
    let mut kept = crate::world::deployment("memoria");
    kept["apiVersion"] = json!("apps/v1");
    kept["kind"] = json!("Deployment");
    kept["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = json!("memoria:apps/Deployment:x/memoria");
    let params = PatchParams::apply("argocd-controller").force();
    world.api::<Deployment>().patch("memoria", &params, &Patch::Apply(kept)).await.unwrap();
    let found = adopted(&world).await;
    let workload = &found.targets[0].workload;
    assert!(
        workload.image_managers.iter().any(|m| m.tool == Tool::ArgoCd && m.tool.puts_back()),
        "{:?}",
        workload.image_managers
    );
    assert!(workload.replica_managers.iter().any(|m| m.tool == Tool::ArgoCd));
    assert_eq!(workload.kept_by, [Tool::ArgoCd]);
}

#[tokio::test]
async fn an_autoscaler_that_would_start_a_stopped_workload_is_refused() {
    let world = World::new("adopt-autoscaler").await;
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "memoria"});
    let keda = json!([{"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "memoria", "uid": "k"}]);
    world
        .create::<HorizontalPodAutoscaler>(json!({"metadata": {"name": "hpa", "ownerReferences": keda},
        "spec": {"scaleTargetRef": target, "maxReplicas": 3}}))
        .await;
    let found = adopted(&world).await;
    assert_eq!(found.targets[0].workload.autoscaler.as_deref(), Some("hpa"));
    assert!(message(&found, "target-server").contains("scaledobject/memoria"));
}
