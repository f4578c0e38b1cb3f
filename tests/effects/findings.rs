//! Who else manages what an attempt changes, and what would keep it from stopping.

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::api::{Patch, PatchParams};
use memoria_operator::{
    api::release::{CheckResult, Verdict},
    cluster::adopt,
};
use serde_json::{Value, json};

use crate::world::World;

async fn finding(world: &World, name: &str) -> Option<CheckResult> {
    let found = adopt(&world.client, &world.ns, &world.release).await.unwrap();
    found.findings.into_iter().find(|check| check.name == name)
}

async fn patch(world: &World, change: Value) {
    world.api::<Deployment>().patch("memoria", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

const SERVER: &str = "managers-deployment-memoria";

#[tokio::test]
async fn argo_cd_is_refused_with_what_to_paste_until_somebody_says_that_it_was_pasted() {
    let world = World::new("findings-argo").await;
    // Charts that Argo CD may install bear its sync waves; that alone says nothing.
    patch(&world, json!({"metadata": {"annotations": {"argocd.argoproj.io/sync-wave": "1"}}})).await;
    assert_eq!(finding(&world, SERVER).await, None);
    patch(
        &world,
        json!({"metadata": {"annotations": {"argocd.argoproj.io/tracking-id": "memoria:apps/Deployment:x/memoria"}}}),
    )
    .await;
    let refused = finding(&world, SERVER).await.unwrap();
    assert_eq!(refused.result, Verdict::Failed);
    for part in [
        "RespectIgnoreDifferences=true",
        "ignoreDifferences:",
        ".spec.template.spec.containers[] | select(.name == \"server\") | .image",
        ".spec.replicas",
        "kubectl -n findings-argo annotate deployment/memoria memoria.arca.run/gitops-ignores=image,replicas",
    ] {
        assert!(refused.message.contains(part), "{part} is not in {}", refused.message);
    }
    let application =
        &refused.message[refused.message.find("spec:").unwrap()..refused.message.find("Then say").unwrap()];
    let pasted: Value = serde_saphyr::from_str(application).unwrap();
    assert_eq!(
        pasted["spec"]["ignoreDifferences"][0]["jqPathExpressions"].as_array().unwrap().len(),
        2,
        "{application}"
    );
    patch(&world, json!({"metadata": {"annotations": {"memoria.arca.run/gitops-ignores": "replicas"}}})).await;
    assert_eq!(finding(&world, SERVER).await.unwrap().result, Verdict::Failed, "the image is not ignored");
    patch(&world, json!({"metadata": {"annotations": {"memoria.arca.run/gitops-ignores": "image, replicas"}}})).await;
    assert_eq!(finding(&world, SERVER).await.unwrap().result, Verdict::Passed);
}

#[tokio::test]
async fn flux_is_refused_by_the_name_of_its_kustomization_unless_it_leaves_the_object_alone() {
    let world = World::new("findings-flux").await;
    let labels =
        json!({"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"});
    patch(&world, json!({"metadata": {"labels": labels}})).await;
    let refused = finding(&world, SERVER).await.unwrap();
    assert_eq!(refused.result, Verdict::Failed);
    assert!(refused.message.contains("flux suspend kustomization apps -n flux-system"), "{}", refused.message);
    assert!(refused.message.contains("/spec/template/spec/containers/0/image, /spec/replicas"), "{}", refused.message);
    patch(&world, json!({"metadata": {"annotations": {"kustomize.toolkit.fluxcd.io/ssa": "IfNotPresent"}}})).await;
    assert_eq!(finding(&world, SERVER).await.unwrap().result, Verdict::Passed);
}

#[tokio::test]
async fn a_helm_release_is_told_about_and_not_refused() {
    let world = World::new("findings-helm").await;
    patch(&world, json!({"metadata": {"annotations": {"meta.helm.sh/release-name": "prod"}}})).await;
    let note = finding(&world, SERVER).await.unwrap();
    assert_eq!(note.result, Verdict::Passed);
    assert!(note.message.contains("Helm release prod") && note.message.contains("helm upgrade"), "{}", note.message);
}

#[tokio::test]
async fn pods_of_others_and_pods_that_end_too_slowly_are_refused_and_the_clocks_agree() {
    let mut world = World::new("findings-pods").await;
    let pod = |name: &str, owners: Value| {
        json!({"metadata": {"name": name, "labels": {"app": "memoria", "pod-template-hash": "abc"}, "ownerReferences": owners},
            "spec": {"containers": [{"name": "server", "image": "m"}]}})
    };
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "memoria-abc", "uid": "r", "controller": true}]);
    world.create::<Pod>(pod("own", owner)).await;
    assert_eq!(finding(&world, "pods-deployment-memoria").await, None);
    world.create::<Pod>(pod("stray", json!([]))).await;
    let foreign = finding(&world, "pods-deployment-memoria").await.unwrap();
    assert_eq!(foreign.result, Verdict::Failed);
    assert!(foreign.message.contains("stray (made by hand)") && foreign.message.contains("delete pod stray"));

    assert_eq!(finding(&world, "grace-deployment-memoria").await, None);
    patch(&world, json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 3600}}}})).await;
    let slow = finding(&world, "grace-deployment-memoria").await.unwrap();
    assert!(slow.result == Verdict::Failed && slow.message.contains("spec.timeouts.quiesce"), "{}", slow.message);

    let clock = finding(&world, "clock").await.unwrap();
    assert!(clock.result == Verdict::Passed && clock.message.contains("agrees"), "{}", clock.message);
    world.release.spec.version = "0.9.0".to_owned();
    assert_eq!(finding(&world, "clock").await, None, "nothing is asked while nothing is wanted");
}
