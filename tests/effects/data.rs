//! What PreFlight finds of a Server's volumes.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use memoria_operator::cluster::{
    Adopted, adopt,
    adopt::{Behind, DataClaim},
};
use serde_json::{Value, json};

use crate::world::{World, stateful_set};

/// A volume of one node, and a claim bound to it, as the volume controller would leave them.
async fn bound(world: &World, claim: &str, mode: &str) {
    let volume = format!("{}-{claim}", world.ns);
    let object = json!({
        "metadata": {"name": volume},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": [mode], "local": {"path": "/mnt/x"},
            "storageClassName": "local",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-a"]}]}]}},
        }
    });
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    volumes.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let object = json!({"metadata": {"name": claim}, "spec": {
        "accessModes": [mode], "storageClassName": "local", "volumeName": volume,
        "resources": {"requests": {"storage": "1Gi"}}}});
    world.create::<PersistentVolumeClaim>(object).await;
    world.set_status::<PersistentVolumeClaim>(claim, json!({"phase": "Bound", "accessModes": [mode]})).await;
}

async fn with_volumes(world: &World, mounts: Value, volumes: Value) {
    let container = json!({"name": "server", "image": "m:1", "volumeMounts": mounts});
    let change = json!({"spec": {"template": {"spec": {"containers": [container], "volumes": volumes}}}});
    world.api::<Deployment>().patch("memoria", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

async fn adopted(world: &World) -> Adopted {
    adopt(&world.client, &world.ns, &world.release).await.unwrap()
}

fn claim(found: &Adopted, at: usize) -> &DataClaim {
    match &found.data.mounts[at].what {
        Behind::Claim(claim) => claim,
        other => panic!("{other:?}"),
    }
}

fn why(found: &Adopted, at: usize) -> &str {
    match &found.data.mounts[at].what {
        Behind::Unfit { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

/// A pod on a node, as scheduler and kubelet would have it.
async fn pod(world: &World, name: &str, labels: Value, claim: &str) -> Pod {
    let object = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": "node-a", "containers": [{"name": "server", "image": "m:1"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}
    });
    let pod = world.create::<Pod>(object).await;
    world.set_status::<Pod>(name, json!({"phase": "Running"})).await;
    pod
}

#[tokio::test]
async fn a_servers_claim_is_found_with_its_volumes_nodes_and_the_pods_that_use_it() {
    let world = World::new("data-good").await;
    bound(&world, "memoria-data", "ReadWriteOnce").await;
    bound(&world, "memoria-snapshots", "ReadWriteOnce").await;
    let mounts = json!([{"name": "data", "mountPath": "/data", "subPath": "m"}, {"name": "tmp", "mountPath": "/tmp"}]);
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "memoria-data"}}, {"name": "tmp", "emptyDir": {}}]);
    with_volumes(&world, mounts, volumes).await;
    pod(&world, "memoria-1", json!({"app": "memoria"}), "memoria-data").await;
    pod(&world, "inspect", json!({"memoria.arca.run/release": "memoria"}), "memoria-data").await;
    pod(&world, "shell", json!({}), "memoria-data").await;
    pod(&world, "elsewhere", json!({}), "other").await;
    let found = adopted(&world).await;
    let live: PersistentVolumeClaim = world.get("memoria-data").await;
    let data = claim(&found, 0);
    assert_eq!((data.volume.claim_name.as_str(), Some(&data.volume.claim_uid)), ("memoria-data", live.uid().as_ref()));
    assert_eq!((data.volume.mount_path.as_str(), data.volume.sub_path.as_deref()), ("/data", Some("m")));
    assert!(!data.read_only && !data.shared);
    let host = |nodes: &k8s_openapi::api::core::v1::NodeSelector| {
        nodes.node_selector_terms[0].match_expressions.as_ref().unwrap()[0].values.clone().unwrap()
    };
    assert_eq!(host(data.nodes.as_ref().unwrap()), ["node-a"]);
    assert!(matches!(&found.data.mounts[1].what, Behind::Other(what) if what.contains("emptyDir")));
    assert_eq!(found.data.node.as_deref(), Some("node-a"));
    let strangers: Vec<_> = found.data.strangers.iter().map(|s| (s.pod.as_str(), s.claim.as_str())).collect();
    assert_eq!(strangers, [("shell", "memoria-data")]);
    let storage = found.storage.as_ref().unwrap();
    assert_eq!(
        (storage.claim.as_str(), host(storage.nodes.as_ref().unwrap())),
        ("memoria-snapshots", vec!["node-a".into()])
    );
    for name in ["memoria-data", "memoria-snapshots"] {
        let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
        volumes.delete(&format!("{}-{name}", world.ns), &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_that_no_job_may_mount_says_why_and_what_to_do() {
    let world = World::new("data-unfit").await;
    let pending = json!({"metadata": {"name": "pending"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    world.create::<PersistentVolumeClaim>(pending).await;
    bound(&world, "single", "ReadWriteOncePod").await;
    let mounts =
        json!([{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/b"}, {"name": "c", "mountPath": "/c"}]);
    let of = |volume: &str, claim: &str| json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}});
    with_volumes(&world, mounts, json!([of("a", "missing"), of("b", "pending"), of("c", "single")])).await;
    let found = adopted(&world).await;
    assert!(why(&found, 0).contains("persistentvolumeclaim/missing does not exist"));
    assert!(why(&found, 1).contains("persistentvolumeclaim/pending is Pending"));
    assert!(why(&found, 2).contains("persistentvolumeclaim/single is ReadWriteOncePod"));
    assert_eq!((found.data.node, found.storage), (None, None));
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    volumes.delete(&format!("{}-single", world.ns), &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn a_statefulsets_claim_is_that_of_its_first_pod() {
    let mut world = World::new("data-statefulset").await;
    let mut server = stateful_set("memoria-sts");
    server["spec"]["replicas"] = json!(1);
    let mounted = json!([{"name": "data", "mountPath": "/data"}]);
    server["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = mounted;
    server["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    world.create::<StatefulSet>(server).await;
    bound(&world, "data-memoria-sts-0", "ReadWriteOnce").await;
    let mut release = serde_json::to_value(&world.release).unwrap();
    release["spec"]["targets"][0]["workloadRef"] = json!({"kind": "StatefulSet", "name": "memoria-sts"});
    world.release = serde_json::from_value(release).unwrap();
    let found = adopted(&world).await;
    assert_eq!(claim(&found, 0).volume.claim_name, "data-memoria-sts-0");
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    volumes.delete(&format!("{}-data-memoria-sts-0", world.ns), &DeleteParams::default()).await.unwrap();
}
