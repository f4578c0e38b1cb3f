//! Scale, image and flag: fenced by what was observed, and nothing but that field.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::ConfigMap,
    },
    apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use memoria_operator::{
    api::release::WorkloadRef,
    cluster::{ClusterError, Kind},
    upgrade::{Action, Precondition},
};
use serde_json::{Value, json};

use crate::world::{World, server_ref, worker_ref};

const NEW: &str =
    "registry.arca.run/memoria/server@sha256:abababababababababababababababababababababababababababababababab";

fn scale(workload: WorkloadRef, precondition: Precondition, replicas: i32) -> Action {
    Action::Scale { workload, precondition, replicas }
}

fn image(workload: WorkloadRef, precondition: Precondition, container: &str) -> Action {
    Action::SetImage { workload, precondition, container: container.to_owned(), image: NEW.to_owned() }
}

fn stale(result: Result<(), ClusterError>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind, Kind::Stale, "{error}");
}

#[tokio::test]
async fn a_write_decided_on_an_older_observation_is_refused() {
    let world = World::new("writes-stale").await;
    for (workload, container) in [(server_ref(), "server"), (worker_ref(), "worker")] {
        let before = world.precondition(&workload).await;
        world.act(scale(workload.clone(), before.clone(), 1)).await.unwrap();
        stale(world.act(scale(workload.clone(), before.clone(), 0)).await);
        stale(world.act(image(workload.clone(), before.clone(), container)).await);
        // The right version of another object.
        let now = world.precondition(&workload).await;
        let other = Precondition { uid: "00000000-0000-0000-0000-000000000000".to_owned(), ..now };
        stale(world.act(scale(workload.clone(), other.clone(), 0)).await);
        stale(world.act(image(workload.clone(), other, container)).await);
    }
    let deployment = world.get::<Deployment>("memoria").await;
    assert_eq!(deployment.spec.unwrap().replicas, Some(1));
    assert_eq!(world.get::<StatefulSet>("worker").await.spec.unwrap().replicas, Some(1));
    assert_eq!(world.observe().await.targets["server"].image, "registry.arca.run/memoria/server:0.9.0");
}

/// Without what every write changes.
fn bare(deployment: &Deployment) -> Value {
    let mut value = serde_json::to_value(deployment).unwrap();
    let metadata = value["metadata"].as_object_mut().unwrap();
    for key in ["managedFields", "resourceVersion", "generation"] {
        metadata.remove(key);
    }
    value
}

fn entry<'a>(deployment: &'a Deployment, manager: &str) -> &'a ManagedFieldsEntry {
    let found = deployment.managed_fields().iter().find(|e| e.manager.as_deref() == Some(manager));
    found.unwrap_or_else(|| panic!("{manager} is not among {:#?}", deployment.managed_fields()))
}

#[tokio::test]
async fn setting_the_image_touches_the_image_and_leaves_other_managers_their_fields() {
    let world = World::new("writes-image").await;
    // A tool that keeps the whole Deployment by server-side apply, image included.
    let mut kept = crate::world::deployment("memoria");
    kept["apiVersion"] = json!("apps/v1");
    kept["kind"] = json!("Deployment");
    let params = PatchParams::apply("helm").force();
    let before = world.api::<Deployment>().patch("memoria", &params, &Patch::Apply(kept)).await.unwrap();

    let precondition = world.precondition(&server_ref()).await;
    world.act(image(server_ref(), precondition, "server")).await.unwrap();
    let after = world.get::<Deployment>("memoria").await;

    let mut expected = bare(&before);
    expected["spec"]["template"]["spec"]["containers"][0]["image"] = json!(NEW);
    assert_eq!(bare(&after), expected);
    let ours = &entry(&after, "memoria-operator-image").fields_v1.as_ref().unwrap().0;
    assert_eq!(
        *ours,
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"server\"}": {
        ".": {}, "f:image": {}, "f:name": {}}}}}}})
    );
    let theirs = &entry(&after, "helm").fields_v1.as_ref().unwrap().0;
    let container = &theirs["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"server\"}"];
    assert!(container["f:env"].is_object() && container.get("f:image").is_none(), "{container}");
    assert!(theirs["f:spec"]["f:replicas"].is_object());
}

#[tokio::test]
async fn scaling_touches_the_replica_count_and_the_image_leaves_it() {
    let world = World::new("writes-scale").await;
    let before = world.get::<Deployment>("memoria").await;
    world.act(scale(server_ref(), world.precondition(&server_ref()).await, 0)).await.unwrap();
    let mut expected = bare(&before);
    expected["spec"]["replicas"] = json!(0);
    assert_eq!(bare(&world.get::<Deployment>("memoria").await), expected);

    world.act(image(server_ref(), world.precondition(&server_ref()).await, "server")).await.unwrap();
    let seen = world.observe().await.targets.remove("server").unwrap();
    assert_eq!((seen.replicas, seen.image.as_str()), (0, NEW));
    world.act(scale(server_ref(), world.precondition(&server_ref()).await, 2)).await.unwrap();
    let seen = world.observe().await.targets.remove("server").unwrap();
    assert_eq!((seen.replicas, seen.image.as_str()), (2, NEW));
}

#[tokio::test]
async fn the_flag_is_one_key_of_a_config_map_that_others_own() {
    let world = World::new("writes-flag").await;
    let set = |value: &str| Action::SetFlag { value: value.to_owned() };
    world.act(set("true")).await.unwrap();
    world.act(set("true")).await.unwrap();
    let map = world.get::<ConfigMap>("flags").await;
    assert_eq!(
        map.data.unwrap(),
        [("maintenance".to_owned(), "true".to_owned()), ("other".to_owned(), "kept".to_owned())].into()
    );
    assert_eq!(world.observe().await.flag.as_deref(), Some("true"));

    world.api::<ConfigMap>().delete("flags", &DeleteParams::default()).await.unwrap();
    let error = world.act(set("false")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Missing);
    assert!(error.to_string().contains("configmap/flags"), "{error}");
    assert_eq!(world.observe().await.flag, None);
}
