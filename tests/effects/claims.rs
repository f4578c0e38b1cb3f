//! Marks on workloads: two releases, one workload.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{ResourceExt, api::DeleteParams};
use memoria_operator::{
    api::{MemoriaRelease, upgrade::Category},
    cluster::Kind,
    upgrade::{Action, Prior},
};

use crate::world::{World, release, server_ref, worker_ref};

async fn mark(world: &World, release: &MemoriaRelease) -> Result<(), memoria_operator::cluster::ClusterError> {
    let uid = world.precondition(&server_ref()).await.uid;
    world
        .act_for(release, Action::Mark { workload: server_ref().into(), uid, prior: Prior::Replicas(2), back: false })
        .await
}

async fn unmark(world: &World, release: &MemoriaRelease) {
    let uid = world.precondition(&server_ref()).await.uid;
    world.act_for(release, Action::Unmark { workload: server_ref().into(), uid }).await.unwrap();
}

async fn second_release(world: &World) -> MemoriaRelease {
    world.create(serde_json::to_value(release("second")).unwrap()).await
}

#[tokio::test]
async fn a_workload_that_one_release_marked_is_refused_to_another() {
    let world = World::new("claims-conflict").await;
    mark(&world, &world.release).await.unwrap();
    mark(&world, &world.release).await.unwrap();

    let second = second_release(&world).await;
    let error = mark(&world, &second).await.unwrap_err();
    let first = format!("memoria-operator-{}", world.release.uid().unwrap());
    assert_eq!(error.kind, Kind::Claimed { by: first });
    assert_eq!((error.category(), error.reason()), (Category::Conflict, "TargetClaimed"));
    let seen = world.observe().await.targets.remove("server").unwrap();
    assert_eq!(seen.owner, world.release.uid());
    assert_eq!((seen.attempt.as_deref(), seen.prior_replicas.as_deref()), (Some("memoria-1"), Some("2")));
}

#[tokio::test]
async fn unmarking_keeps_the_owner_and_what_others_wrote() {
    let world = World::new("claims-unmark").await;
    mark(&world, &world.release).await.unwrap();
    unmark(&world, &world.release).await;
    let deployment = world.get::<Deployment>("memoria").await;
    let annotations = deployment.annotations();
    assert_eq!(annotations.get("memoria.arca.run/owner"), world.release.uid().as_ref());
    assert_eq!(annotations.get("team").map(String::as_str), Some("data"));
    assert!(
        !annotations.contains_key("memoria.arca.run/attempt")
            && !annotations.contains_key("memoria.arca.run/prior-replicas")
    );
    // The owner is still a lock.
    let second = second_release(&world).await;
    assert!(matches!(mark(&world, &second).await.unwrap_err().kind, Kind::Claimed { .. }));
}

#[tokio::test]
async fn the_mark_of_a_release_that_is_gone_is_inherited_unless_an_attempt_was_open() {
    let world = World::new("claims-gone").await;
    let first = second_release(&world).await;
    mark(&world, &first).await.unwrap();
    world.api::<MemoriaRelease>().delete("second", &DeleteParams::default()).await.unwrap();
    let error = mark(&world, &world.release).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Claimed { .. }), "an open attempt's mark was taken: {error}");

    unmark(&world, &first).await;
    mark(&world, &world.release).await.unwrap();
    let seen = world.observe().await.targets.remove("server").unwrap();
    assert_eq!(seen.owner, world.release.uid());
    assert_eq!(seen.attempt.as_deref(), Some("memoria-1"));
}

#[tokio::test]
async fn another_workload_of_the_same_name_is_not_marked() {
    let world = World::new("claims-uid").await;
    for workload in [server_ref(), worker_ref()] {
        let action = Action::Mark {
            workload: workload.into(),
            uid: "00000000-0000-0000-0000-000000000000".to_owned(),
            prior: Prior::Replicas(1),
            back: false,
        };
        assert_eq!(world.act(action).await.unwrap_err().kind, Kind::Stale);
    }
    assert_eq!(world.observe().await.targets["server"].owner, None);
}

#[tokio::test]
async fn a_workload_that_was_deleted_is_not_made_anew_by_a_mark() {
    let world = World::new("claims-deleted").await;
    let uid = world.precondition(&server_ref()).await.uid;
    world.api::<Deployment>().delete("memoria", &DeleteParams::background()).await.unwrap();
    world
        .act(Action::Mark { workload: server_ref().into(), uid, prior: Prior::Replicas(2), back: false })
        .await
        .unwrap_err();
    assert!(world.api::<Deployment>().get_opt("memoria").await.unwrap().is_none());
    assert!(world.observe().await.targets.is_empty());
}
