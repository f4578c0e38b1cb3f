//! Events on the release (and, related, the upgrade), for `kubectl describe`. Best effort: a failure is a log line and
//! never more.
//!
//! An event is named after what it says, so that the same one told again, after a lost answer or by the next operator, is
//! counted on the first one and no second one is made. kube's own recorder names events after the time and remembers them
//! in memory only.

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{ClusterError, Kind, client::bounded, error::cut};
use crate::{
    api::{MemoriaRelease, MemoriaUpgrade},
    snapshot::sha256_hex,
};

/// What the API takes for an event's note, in bytes.
const MAX_NOTE: usize = 1024;
/// What the API takes for reason, action and instance, in bytes.
const MAX_WORD: usize = 128;
const CONTROLLER: &str = "memoria.arca.run/operator";
const PUBLISHING: &str = "publish an event about";

/// Publishes events; the same one again becomes a series.
#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    /// CamelCase, e.g. `SnapshotVerified`.
    pub reason: String,
    /// What was being done, CamelCase, e.g. a phase's name.
    pub action: String,
    pub message: String,
}

impl Events {
    /// `instance` is this pod's name.
    pub fn new(client: Client, instance: &str) -> Self {
        Self { client, instance: cut(instance, MAX_WORD) }
    }

    /// Tells about the release. A message longer than 1 KiB is cut.
    pub async fn publish(&self, release: &MemoriaRelease, upgrade: Option<&MemoriaUpgrade>, notice: &Notice) {
        let mut event = event_of(notice, release.object_ref(&()), upgrade.map(|u| u.object_ref(&())));
        event.reporting_instance = Some(self.instance.clone());
        if let Err(error) = self.send(&event).await {
            tracing::warn!(%error, reason = notice.reason, "an event was lost");
        }
    }

    async fn send(&self, event: &Event) -> Result<(), ClusterError> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match bounded(PUBLISHING, name, events.create(&PostParams::default(), event)).await {
            // It has this name because it says the same: no other object has.
            Err(error) if error.kind == Kind::Foreign => {}
            made => return made.map(drop),
        }
        let told = bounded(PUBLISHING, name, events.get(name)).await?;
        let count = told.series.map_or(1, |series| series.count).saturating_add(1);
        let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
        let patch = Patch::Merge(json!({ "series": series }));
        bounded(PUBLISHING, name, events.patch(name, &PatchParams::default(), &patch)).await.map(drop)
    }
}

/// The event, as told for the first time.
fn event_of(notice: &Notice, regarding: ObjectReference, related: Option<ObjectReference>) -> Event {
    let type_ = if notice.warning { "Warning" } else { "Normal" };
    let reason = cut(&notice.reason, MAX_WORD);
    let note = cut(&notice.message, MAX_NOTE);
    // The API refuses an event without an action.
    let action = if notice.action.is_empty() { "Reconcile".to_owned() } else { cut(&notice.action, MAX_WORD) };
    let uid = |object: &ObjectReference| object.uid.clone().unwrap_or_default();
    let identity = json!([uid(&regarding), related.as_ref().map(uid), type_, reason, action, note]);
    let hash = sha256_hex(identity.to_string());
    Event {
        metadata: ObjectMeta {
            namespace: regarding.namespace.clone(),
            name: Some(format!("{}.{}", regarding.name.as_deref().unwrap_or_default(), &hash[..16])),
            ..ObjectMeta::default()
        },
        type_: Some(type_.to_owned()),
        reason: Some(reason),
        note: Some(note),
        action: Some(action),
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(CONTROLLER.to_owned()),
        regarding: Some(regarding),
        related,
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::{Notice, event_of};

    fn release(uid: &str) -> ObjectReference {
        ObjectReference { name: Some("memoria".to_owned()), uid: Some(uid.to_owned()), ..ObjectReference::default() }
    }

    #[test]
    fn an_event_stays_within_what_the_api_takes() {
        let notice =
            Notice { warning: true, reason: "R".repeat(200), action: String::new(), message: "ä".repeat(900) };
        let event = event_of(&notice, release("1"), None);
        assert!(event.reason.unwrap().len() <= 128 && event.note.as_ref().unwrap().len() <= 1024);
        assert!(event.note.unwrap().ends_with('…'));
        assert_eq!(event.action.as_deref(), Some("Reconcile"));
    }

    #[test]
    fn what_says_the_same_about_the_same_release_has_the_same_name() {
        let notice = |message: &str| Notice {
            warning: true,
            reason: "Held".to_owned(),
            action: "Verification".to_owned(),
            message: message.to_owned(),
        };
        let name = |uid: &str, message: &str| event_of(&notice(message), release(uid), None).metadata.name.unwrap();
        assert_eq!(name("1", "no data"), name("1", "no data"));
        assert_ne!(name("1", "no data"), name("1", "stale data"));
        assert_ne!(name("1", "no data"), name("2", "no data"));
        assert!(name("1", "no data").starts_with("memoria."));
    }
}
