//! What a watch saw of one object, cut down to what the measurements need. Pure.

use serde::Serialize;
use serde_json::Value;

use crate::demo::view::{self, Standing};

/// The workloads that an upgrade touches, and those of them that write to the database.
pub const WORKLOADS: [&str; 3] = ["memoria-server", "memoria-worker", "memoria-dashboard"];
pub const WRITERS: [&str; 2] = ["memoria-server", "memoria-worker"];
/// The ConfigMap whose key `maintenance` pauses the workers.
pub const FLAGS: &str = "memoria-flags";
/// On everything that the operator makes.
const RELEASE_LABEL: &str = "memoria.arca.run/release";

/// An object's state as it was known at that moment of the recorder's clock.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    pub millis: u64,
    /// `kind/name`
    pub object: String,
    pub state: State,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum State {
    /// Deleted, and its finalizers done.
    Gone,
    Deployment {
        wanted: i64,
        /// What `kubectl rollout status` waits for, in both directions: every pod is of the current template, available,
        /// and there are as many as wanted.
        settled: bool,
    },
    /// A pod of a workload, which serves or stops serving.
    WorkloadPod {
        terminating: bool,
    },
    /// A pod of the operator's own that a new image proves itself in.
    CandidatePod {
        ready: bool,
        terminating: bool,
        ended: bool,
    },
    /// A pod of one of the operator's Jobs.
    JobPod {
        ended: bool,
    },
    /// One of the operator's Jobs.
    Job {
        /// Its first pod was made.
        begun: bool,
        /// It has the condition Complete or Failed.
        finished: bool,
    },
    Flag {
        maintenance: bool,
    },
    Release {
        version: String,
        ready: bool,
        stalled: bool,
        message: String,
    },
}

/// One document of `kubectl get --watch --output-watch-events`. `None`: the object plays no part.
pub fn read(millis: u64, document: &Value) -> Option<Event> {
    let object = &document["object"];
    let kind = object["kind"].as_str()?;
    let name = object["metadata"]["name"].as_str()?;
    let state = state(kind, name, object)?;
    let state = if document["type"] == "DELETED" { State::Gone } else { state };
    Some(Event { millis, object: format!("{kind}/{name}"), state })
}

fn state(kind: &str, name: &str, object: &Value) -> Option<State> {
    let operators = object["metadata"]["labels"][RELEASE_LABEL].is_string();
    match kind {
        "Deployment" if WORKLOADS.contains(&name) => Some(deployment(object)),
        "Pod" => pod(object, operators),
        "Job" if operators => Some(job(object)),
        "ConfigMap" if name == FLAGS => Some(State::Flag { maintenance: object["data"]["maintenance"] == "true" }),
        "MemoriaRelease" => Some(release(object)),
        _ => None,
    }
}

fn deployment(object: &Value) -> State {
    let status = &object["status"];
    let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
    let current = status["observedGeneration"].as_i64() >= object["metadata"]["generation"].as_i64();
    let counted = ["replicas", "updatedReplicas", "availableReplicas"];
    let all = counted.iter().all(|count| status[count].as_i64().unwrap_or_default() == wanted);
    State::Deployment { wanted, settled: current && all }
}

fn pod(object: &Value, operators: bool) -> Option<State> {
    let terminating = object["metadata"]["deletionTimestamp"].is_string();
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let owners = object["metadata"]["ownerReferences"].as_array();
    let of_job = owners.into_iter().flatten().any(|owner| owner["kind"] == "Job");
    let workload = object["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap_or_default();
    match (operators, of_job) {
        (true, true) => Some(State::JobPod { ended }),
        (true, false) => Some(State::CandidatePod { ready: condition(object, "Ready"), terminating, ended }),
        (false, false) if WORKLOADS.contains(&workload) => Some(State::WorkloadPod { terminating }),
        (false, _) => None,
    }
}

fn job(object: &Value) -> State {
    let status = &object["status"];
    let count = |name: &str| status[name].as_i64().unwrap_or_default();
    let begun = ["active", "succeeded", "failed", "terminating"].into_iter().any(|name| count(name) > 0);
    let finished = condition(object, "Complete") || condition(object, "Failed");
    State::Job { begun: begun || finished, finished }
}

fn release(object: &Value) -> State {
    let standing = view::standing(object);
    State::Release {
        version: object["spec"]["version"].as_str().unwrap_or_default().to_owned(),
        ready: standing == Standing::Ready,
        stalled: standing == Standing::Stalled,
        message: view::ready_message(object),
    }
}

fn condition(object: &Value, name: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == name && condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(object: Value) -> Option<State> {
        read(7, &json!({"type": "MODIFIED", "object": object})).map(|event| event.state)
    }

    fn server(generation: i64, wanted: i64, status: Value) -> Option<State> {
        seen(json!({
            "kind": "Deployment", "metadata": {"name": "memoria-server", "generation": generation},
            "spec": {"replicas": wanted}, "status": status,
        }))
    }

    #[test]
    fn a_deployment_is_settled_when_every_pod_is_current_and_available() {
        let all = json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(server(3, 2, all.clone()), Some(State::Deployment { wanted: 2, settled: true }));
        assert_eq!(server(4, 2, all.clone()), Some(State::Deployment { wanted: 2, settled: false }));
        assert_eq!(server(3, 0, all), Some(State::Deployment { wanted: 0, settled: false }));
        let surging = json!({"observedGeneration": 3, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3});
        assert_eq!(server(3, 2, surging), Some(State::Deployment { wanted: 2, settled: false }));
        assert_eq!(
            server(3, 0, json!({"observedGeneration": 3})),
            Some(State::Deployment { wanted: 0, settled: true })
        );
    }

    #[test]
    fn pods_are_told_apart_by_what_made_them() {
        let pod = |labels: Value, owner: &str| {
            json!({"kind": "Pod", "metadata": {"name": "p", "labels": labels, "ownerReferences": [{"kind": owner}]},
                   "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
        };
        let ours = json!({RELEASE_LABEL: "memoria"});
        assert_eq!(seen(pod(ours.clone(), "Job")), Some(State::JobPod { ended: false }));
        assert_eq!(
            seen(pod(ours, "MemoriaUpgrade")),
            Some(State::CandidatePod { ready: true, terminating: false, ended: false })
        );
        let server = json!({"app.kubernetes.io/name": "memoria-server"});
        assert_eq!(seen(pod(server, "ReplicaSet")), Some(State::WorkloadPod { terminating: false }));
        assert_eq!(seen(pod(json!({"app.kubernetes.io/name": "memoria-postgres"}), "StatefulSet")), None);
        assert_eq!(seen(pod(json!({}), "Job")), None);
    }

    #[test]
    fn a_job_has_begun_with_its_first_pod_and_finished_with_its_condition() {
        let job = |status: Value| {
            seen(
                json!({"kind": "Job", "metadata": {"name": "j", "labels": {RELEASE_LABEL: "memoria"}}, "status": status}),
            )
        };
        assert_eq!(job(json!({})), Some(State::Job { begun: false, finished: false }));
        assert_eq!(job(json!({"active": 1})), Some(State::Job { begun: true, finished: false }));
        let succeeded = json!({"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}], "succeeded": 1});
        assert_eq!(job(succeeded), Some(State::Job { begun: true, finished: false }));
        let complete = json!({"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 1});
        assert_eq!(job(complete), Some(State::Job { begun: true, finished: true }));
    }

    #[test]
    fn a_deleted_object_is_gone() {
        let object = json!({"kind": "ConfigMap", "metadata": {"name": FLAGS}, "data": {"maintenance": "true"}});
        let event = |kind: &str| read(1, &json!({"type": kind, "object": object}));
        assert_eq!(event("ADDED").map(|event| event.state), Some(State::Flag { maintenance: true }));
        let gone = Event { millis: 1, object: format!("ConfigMap/{FLAGS}"), state: State::Gone };
        assert_eq!(event("DELETED"), Some(gone));
    }
}
