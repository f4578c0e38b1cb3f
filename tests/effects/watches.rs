//! What wakes the reconciler.

use std::{collections::BTreeSet, pin::pin, time::Duration};

use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{reflector, watcher},
};
use memoria_operator::{
    api::{MemoriaDecision, MemoriaRelease},
    cluster::watches::{Namespaces, OpenAttempts, ReleaseRef, triggers},
};
use serde_json::json;

use crate::world::World;

/// Everything that comes until nothing has come for a while.
async fn woken(stream: &mut (impl Stream<Item = ReleaseRef> + Unpin)) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    while let Ok(Some(reference)) = tokio::time::timeout(Duration::from_millis(1500), stream.next()).await {
        all.insert(format!("{}/{}", reference.namespace.unwrap(), reference.name));
    }
    all
}

async fn touch<K>(world: &World, name: &str)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos().to_string();
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"touched": now}}}));
    world.api::<K>().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn each_thing_that_a_release_consists_of_wakes_it_and_nothing_else_does() {
    let world = World::new("watches").await;
    let namespaces = Namespaces::Only(vec![world.ns.clone()]);
    let (store, writer) = reflector::store::<MemoriaRelease>();
    let releases: Api<MemoriaRelease> = world.api();
    let kept = reflector::reflector(writer, watcher(releases, watcher::Config::default()));
    let keeping = tokio::spawn(kept.for_each(|_| std::future::ready(())));
    store.wait_until_ready().await.unwrap();
    let open = OpenAttempts::default();
    let mut stream = pin!(triggers(&world.client, &namespaces, &store, &open));

    // The first lists: server, worker, flag and upgrade are there.
    let us = BTreeSet::from([format!("{}/memoria", world.ns)]);
    assert_eq!(woken(&mut stream).await, us);

    touch::<Deployment>(&world, "memoria").await;
    assert_eq!(woken(&mut stream).await, us);
    touch::<ConfigMap>(&world, "flags").await;
    assert_eq!(woken(&mut stream).await, us);
    world.create::<ConfigMap>(json!({"metadata": {"name": "unnamed"}})).await;
    world.create::<Deployment>(crate::world::deployment("bystander")).await;
    assert!(woken(&mut stream).await.is_empty());

    let pod = |name: &str, labels| json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "x", "image": "x"}]}});
    world.create::<Pod>(pod("labelled", json!({"memoria.arca.run/release": "memoria"}))).await;
    assert_eq!(woken(&mut stream).await, us);
    world
        .create::<Job>(json!({"metadata": {"name": "j", "labels": {"memoria.arca.run/release": "memoria"}},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}}}))
        .await;
    assert_eq!(woken(&mut stream).await, us);
    let decision: MemoriaDecision = world
        .create(json!({"apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaDecision", "metadata": {"name": "d"},
            "spec": {"releaseName": "memoria", "action": "Abort", "attempt": "memoria-1", "reason": "withdrawn"}}))
        .await;
    assert_eq!(decision.name_any(), "d");
    assert_eq!(woken(&mut stream).await, us);

    // Pods of targets count only while an attempt is open.
    world.create::<Pod>(pod("memoria-1", json!({"app": "memoria"}))).await;
    assert!(woken(&mut stream).await.is_empty());
    open.set(&world.ns, "memoria", true);
    assert_eq!(woken(&mut stream).await, us);
    world.create::<Pod>(pod("bystander-1", json!({"app": "bystander"}))).await;
    assert!(woken(&mut stream).await.is_empty());
    world.create::<Pod>(pod("worker-0", json!({"app": "worker"}))).await;
    assert_eq!(woken(&mut stream).await, us);
    open.set(&world.ns, "memoria", false);
    assert!(woken(&mut stream).await.is_empty());
    world.create::<Pod>(pod("worker-1", json!({"app": "worker"}))).await;
    assert!(woken(&mut stream).await.is_empty());
    keeping.abort();
}
