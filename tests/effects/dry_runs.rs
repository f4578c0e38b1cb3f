//! What the server would refuse is known before anything is touched.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Namespace, PersistentVolumeClaim, Pod, ResourceQuota},
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use memoria_operator::{
    api::release::{CheckResult, Verdict},
    cluster::preflight,
};
use serde_json::json;

use crate::world::{World, server_ref};

async fn dry_run(world: &World) -> Vec<CheckResult> {
    preflight::dry_run(&world.client, &world.ns, &world.release, "memoria-1", &world.upgrade.spec).await
}

fn failed<'a>(results: &'a [CheckResult], name: &str) -> &'a str {
    let found = results.iter().find(|r| r.name == name).unwrap();
    assert_eq!(found.result, Verdict::Failed, "{}", found.message);
    &found.message
}

#[tokio::test]
async fn a_plan_that_is_admitted_passes_and_leaves_no_trace() {
    let world = World::new("dry-good").await;
    assert!(preflight::ensure_claim(&world.client, &world.ns, "memoria", "memoria-snapshots", 1 << 30).await.unwrap());
    assert!(!preflight::ensure_claim(&world.client, &world.ns, "memoria", "memoria-snapshots", 1 << 40).await.unwrap());
    let claim = world.get::<PersistentVolumeClaim>("memoria-snapshots").await;
    assert_eq!(claim.owner_references(), []);
    assert_eq!(claim.labels()["memoria.arca.run/release"], "memoria");
    assert_eq!(claim.spec.unwrap().resources.unwrap().requests.unwrap()["storage"].0, "1073741824");

    let before = world.precondition(&server_ref()).await;
    let results = dry_run(&world).await;
    let names: Vec<_> = results.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "admit-job-fence",
            "admit-job-migrate",
            "admit-target-server",
            "admit-worker-statefulset-worker",
            "snapshot-claim"
        ]
    );
    assert!(results.iter().all(|r| r.result == Verdict::Passed), "{results:?}");
    assert_eq!(world.precondition(&server_ref()).await, before);
    assert!(world.api::<Job>().list(&Default::default()).await.unwrap().items.is_empty());
    assert!(world.api::<Pod>().list(&Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn pod_security_and_quota_are_met_by_the_pods_of_jobs() {
    let world = World::new("dry-refused").await;
    let restricted = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    Api::<Namespace>::all(world.client.clone())
        .patch(&world.ns, &PatchParams::default(), &Patch::Merge(restricted))
        .await
        .unwrap();
    let results = dry_run(&world).await;
    let said = failed(&results, "admit-job-fence");
    assert!(said.contains("violates PodSecurity") && said.contains("pod-security label"), "{said}");
    assert!(failed(&results, "admit-target-server").contains("memoria-1-server-candidate"));
    assert!(failed(&results, "snapshot-claim").contains("persistentvolumeclaim/memoria-snapshots"));

    let jobs: Vec<Job> =
        world.upgrade.spec.jobs.iter().map(|job| serde_json::from_value(job.manifest.clone()).unwrap()).collect();
    let refused = async || preflight::first_refused(&world.client, &world.ns, &jobs).await;
    let first = refused().await.unwrap();
    assert_eq!((first.name.as_str(), first.result), ("admit-job-fence", Verdict::Failed));
    assert!(first.message.contains("violates PodSecurity") && first.message.contains("correct"), "{}", first.message);

    let open = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": null}}});
    Api::<Namespace>::all(world.client.clone())
        .patch(&world.ns, &PatchParams::default(), &Patch::Merge(open))
        .await
        .unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while let Some(refused) = refused().await {
        assert!(std::time::Instant::now() < end, "{}", refused.message);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    world.create::<ResourceQuota>(json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})).await;
    world.set_status::<ResourceQuota>("none", json!({"hard": {"pods": "0"}, "used": {"pods": "0"}})).await;
    // The server learns of namespaces and quotas by watches of its own.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let results = dry_run(&world).await;
        let said = &results[0].message;
        if said.contains("exceeded quota: none") && said.contains("ResourceQuota") {
            break;
        }
        assert!(std::time::Instant::now() < end, "{said}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let said = refused().await.unwrap().message;
    assert!(said.contains("exceeded quota: none") && said.contains("raise the ResourceQuota"), "{said}");
    assert!(world.api::<Job>().list(&Default::default()).await.unwrap().items.is_empty());
}
