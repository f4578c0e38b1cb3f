//! Events on the release (and, related, the upgrade), for `kubectl describe`. Best effort: a failure is a log line and
//! never more.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::{client::bounded, error::cut};
use crate::api::{MemoriaRelease, MemoriaUpgrade};

/// What the API takes for an event's note, in bytes.
const MAX_NOTE: usize = 1024;
/// What the API takes for reason and action, in bytes.
const MAX_WORD: usize = 128;
const CONTROLLER: &str = "memoria.arca.run/operator";

/// Publishes events; equal ones within a while become a series.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
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
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(cut(instance, MAX_WORD)) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Tells about the release. A message longer than 1 KiB is cut.
    pub async fn publish(&self, release: &MemoriaRelease, upgrade: Option<&MemoriaUpgrade>, notice: &Notice) {
        let event = event_of(notice, upgrade.map(|u| u.object_ref(&())));
        let regarding = release.object_ref(&());
        let name = release.metadata.name.as_deref().unwrap_or_default();
        if let Err(error) = bounded("publish an event about", name, self.recorder.publish(&event, &regarding)).await {
            tracing::warn!(%error, reason = notice.reason, "an event was lost");
        }
    }
}

fn event_of(notice: &Notice, related: Option<ObjectReference>) -> Event {
    Event {
        type_: if notice.warning { EventType::Warning } else { EventType::Normal },
        reason: cut(&notice.reason, MAX_WORD),
        note: Some(cut(&notice.message, MAX_NOTE)),
        // The API refuses an event without an action.
        action: if notice.action.is_empty() { "Reconcile".to_owned() } else { cut(&notice.action, MAX_WORD) },
        secondary: related,
    }
}

#[cfg(test)]
mod tests {
    use super::{Notice, event_of};

    #[test]
    fn an_event_stays_within_what_the_api_takes() {
        let notice =
            Notice { warning: true, reason: "R".repeat(200), action: String::new(), message: "ä".repeat(900) };
        let event = event_of(&notice, None);
        assert!(event.reason.len() <= 128 && event.note.as_ref().unwrap().len() <= 1024);
        assert!(event.note.unwrap().ends_with('…'));
        assert_eq!(event.action, "Reconcile");
    }
}
