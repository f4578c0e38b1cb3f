//! Events as people see them.

use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use memoria_operator::cluster::events::{Events, Notice};

use crate::world::World;

#[tokio::test]
async fn an_event_is_about_the_release_and_names_the_upgrade() {
    let world = World::new("events").await;
    let events = Events::new(world.client.clone(), "memoria-operator-0");
    let notice = Notice {
        warning: true,
        reason: "MigrateFailed".to_owned(),
        action: "Migrate".to_owned(),
        message: "ü".repeat(2000),
    };
    events.publish(&world.release, Some(&world.upgrade), &notice).await;
    // As the next operator does, when this one died before it stored that it had told.
    let next = Events::new(world.client.clone(), "memoria-operator-1");
    next.publish(&world.release, Some(&world.upgrade), &notice).await;
    let list = world.api::<Event>().list(&Default::default()).await.unwrap().items;
    assert_eq!(list.len(), 1, "the same event is told once, and counted");
    let event = &list[0];
    assert_eq!(event.regarding.as_ref().unwrap().uid, world.release.uid());
    assert_eq!(event.related.as_ref().unwrap().name.as_deref(), Some("memoria-1"));
    assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Warning"), Some("MigrateFailed")));
    assert!(event.note.as_ref().unwrap().len() <= 1024);
    assert_eq!(event.series.as_ref().unwrap().count, 2);
}
