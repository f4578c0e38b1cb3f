//! The candidate pod: made as planned, reached by nobody.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::{ResourceExt, api::ListParams};
use memoria_operator::{
    cluster::{
        Kind, adopt,
        candidate::{self, Candidate},
    },
    upgrade::Action,
};
use serde_json::json;

use crate::world::{World, server_ref};

fn create() -> Action {
    Action::CreateCandidate { target: "server".to_owned() }
}

#[tokio::test]
async fn a_candidate_made_from_the_template_is_found_by_no_service_and_no_controller() {
    let mut world = World::new("candidates-hidden").await;
    let adopted = adopt(&world.client, &world.ns, &world.release).await.unwrap();
    let target = &adopted.targets[0];
    world.upgrade.spec.targets[0].candidate = candidate::manifest(&Candidate {
        release: "memoria",
        attempt: "memoria-1",
        target: "server",
        workload: &server_ref(),
        template: &target.workload.template,
        selector: &target.workload.selector,
        claim_templates: &target.workload.claim_templates,
        container: &target.container,
        image: "registry.arca.run/memoria/server:1.0.0",
        services: &adopted.services,
    })
    .unwrap();
    world.act(create()).await.unwrap();
    world.act(create()).await.unwrap();

    let pods = world.api::<Pod>();
    let made = pods.get("memoria-1-server-candidate").await.unwrap();
    assert_eq!(
        made.spec.as_ref().unwrap().containers[0].image.as_deref(),
        Some("registry.arca.run/memoria/server:1.0.0")
    );
    assert_eq!(made.labels().get("team").map(String::as_str), Some("data"));
    let mut selectors: Vec<_> = adopted.services.iter().map(|s| s.selector.clone()).collect();
    let deployment = world.get::<Deployment>("memoria").await;
    selectors.push(deployment.spec.unwrap().selector.match_labels.unwrap());
    assert_eq!(selectors.len(), 3);
    for selector in selectors {
        let text = selector.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        let found = pods.list(&ListParams::default().labels(&text)).await.unwrap().items;
        assert!(found.is_empty(), "{text} finds {:?}", found.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
    }

    let seen = world.observe().await.candidates.remove("server").unwrap();
    assert_eq!((Some(&seen.uid), seen.phase.as_str(), seen.ready), (made.uid().as_ref(), "Pending", false));
    // No node takes it before it is admitted, by the identity that was seen.
    let admit = |uid: &str| Action::AdmitCandidate { target: "server".to_owned(), uid: uid.to_owned() };
    assert!(seen.gated);
    let error = world.act(admit("00000000-0000-0000-0000-000000000000")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Stale);
    assert!(world.observe().await.candidates["server"].gated);
    world.act(admit(&seen.uid)).await.unwrap();
    world.act(admit(&seen.uid)).await.unwrap();
    assert!(!world.observe().await.candidates["server"].gated);
    world
        .act(Action::DeleteCandidate {
            target: "server".to_owned(),
            uid: "00000000-0000-0000-0000-000000000000".to_owned(),
        })
        .await
        .unwrap();
    assert!(pods.get_opt("memoria-1-server-candidate").await.unwrap().is_some());
    world.act(Action::DeleteCandidate { target: "server".to_owned(), uid: seen.uid }).await.unwrap();
    assert!(world.observe().await.candidates.is_empty());
}

#[tokio::test]
async fn a_service_made_since_the_plan_stops_the_candidate() {
    let world = World::new("candidates-service").await;
    world
        .create::<Service>(
            json!({"metadata": {"name": "wide"}, "spec": {"selector": {"team": "data"}, "ports": [{"port": 80}]}}),
        )
        .await;
    let error = world.act(create()).await.unwrap_err();
    assert!(error.to_string().contains("service/wide"), "{error}");
    assert!(world.api::<Pod>().get_opt("memoria-1-server-candidate").await.unwrap().is_none());
}

#[tokio::test]
async fn a_strangers_pod_of_that_name_is_no_candidate() {
    let world = World::new("candidates-foreign").await;
    world.create::<Pod>(json!({"metadata": {"name": "memoria-1-server-candidate"}, "spec": {"containers": [{"name": "x", "image": "x"}]}})).await;
    assert_eq!(world.act(create()).await.unwrap_err().kind, Kind::Foreign);
    assert!(world.observe().await.candidates.is_empty());
}
