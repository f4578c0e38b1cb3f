//! What a pod's status says, in the machine's words. Pure.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus};

use super::error::cut;
use crate::{
    api::marks::CANDIDATE_GATE,
    job::manifest::MAIN,
    upgrade::seen::{PodSeen, Terminating, Trouble},
};

/// Messages of the kubelet and scheduler are kept up to this many bytes.
const MAX_MESSAGE: usize = 400;

/// A pod as the machine sees it. `container` is the one that matters; for workers it is absent and the first counts.
pub(crate) fn seen(pod: &Pod, container: Option<&str>) -> PodSeen {
    let status = pod.status.as_ref();
    let matters = status.and_then(|s| container_status(s, container));
    PodSeen {
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        ip: status.and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse().ok()),
        phase: phase(pod).to_owned(),
        ready: condition(pod, "Ready").is_some_and(|c| c.status == "True"),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        gated: pod
            .spec
            .iter()
            .flat_map(|s| s.scheduling_gates.iter().flatten())
            .any(|gate| gate.name == CANDIDATE_GATE),
        terminating: terminating(pod),
        image_id: matters.and_then(image_id),
        trouble: trouble(pod),
        restarts: matters.map_or(0, |c| c.restart_count),
    }
}

/// `deletionTimestamp` is when the pod must have ended: the request's time and the grace period.
fn terminating(pod: &Pod) -> Option<Terminating> {
    let due = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or_default());
    Some(Terminating { since: due.checked_sub(grace).unwrap_or(due), due })
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Nothing of it runs any more and nothing will: its phase is final, which the kubelet says only once every container
/// has stopped, and no container's status speaks against it.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let running = pod.status.iter().flat_map(statuses).any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    matches!(phase(pod), "Succeeded" | "Failed") && !running
}

pub(crate) fn has_failed(pod: &Pod) -> bool {
    phase(pod) == "Failed"
}

/// Init containers first, as they run.
fn statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
}

fn container_status<'a>(status: &'a PodStatus, container: Option<&str>) -> Option<&'a ContainerStatus> {
    let mut all = status.container_statuses.iter().flatten();
    match container {
        Some(name) => all.find(|c| c.name == name),
        None => all.next(),
    }
}

/// The digest that the kubelet resolved; absent before the image was pulled.
fn image_id(status: &ContainerStatus) -> Option<String> {
    (!status.image_id.is_empty()).then(|| status.image_id.clone())
}

pub(crate) fn image_id_of(pod: &Pod, container: &str) -> Option<String> {
    container_status(pod.status.as_ref()?, Some(container)).and_then(image_id)
}

/// How a container ended; absent while it has not.
pub(crate) fn ending_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStateTerminated> {
    container_status(pod.status.as_ref()?, Some(container))?.state.as_ref()?.terminated.as_ref()
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == type_)
}

/// Nothing is wrong, but neither does a container run: volumes are being attached, sandboxes made. Only events say why.
pub(crate) fn is_being_set_up(pod: &Pod) -> bool {
    let waits = |c: &ContainerStatus| {
        c.state
            .as_ref()
            .and_then(|s| s.waiting.as_ref())
            .and_then(|w| w.reason.as_deref())
            .is_some_and(|r| r == "ContainerCreating" || r == "PodInitializing")
    };
    phase(pod) == "Pending"
        && pod.spec.as_ref().is_some_and(|s| s.node_name.is_some())
        && pod.status.as_ref().and_then(|s| statuses(s).next()).is_some_and(waits)
}

/// What keeps a pod from running: the scheduler's word, then that of the first container that is in trouble.
pub(crate) fn trouble(pod: &Pod) -> Option<Trouble> {
    if let Some(c) = condition(pod, "PodScheduled").filter(|c| c.status == "False") {
        return Some(told(c.reason.as_deref().unwrap_or("Unschedulable"), c.message.as_deref().unwrap_or_default()));
    }
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() == Some("Failed") && status.reason.is_some() {
        // E.g. Evicted, OutOfcpu, NodeAffinity: the kubelet refused or removed the whole pod.
        return Some(told(status.reason.as_deref().unwrap_or_default(), status.message.as_deref().unwrap_or_default()));
    }
    if let Some(c) = disruption(pod) {
        return Some(c);
    }
    statuses(status).find_map(container_trouble)
}

/// The pod is being taken away by something else: eviction, preemption, a lost node, a taint.
fn disruption(pod: &Pod) -> Option<Trouble> {
    let c = condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    let why = [c.reason.as_deref(), c.message.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(": ");
    Some(told("DisruptionTarget", &why))
}

fn container_trouble(status: &ContainerStatus) -> Option<Trouble> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            return None;
        }
        let last = status.last_state.as_ref().and_then(|l| l.terminated.as_ref()).map(ending);
        let said = waiting.message.as_deref().unwrap_or_default();
        let parts = [Some(format!("container {}", status.name)), last, Some(said.to_owned()).filter(|m| !m.is_empty())];
        return Some(told(reason, &parts.into_iter().flatten().collect::<Vec<_>>().join(": ")));
    }
    let ended = state.terminated.as_ref().filter(|t| t.exit_code != 0)?;
    Some(told("ContainerExited", &format!("container {}: {}", status.name, ending(ended))))
}

/// `exit code 137 (OOMKilled)`. The container's own message is left out: it may be a report.
pub(crate) fn ending(terminated: &ContainerStateTerminated) -> String {
    let mut text = format!("exit code {}", terminated.exit_code);
    if let Some(signal) = terminated.signal.filter(|s| *s != 0) {
        text.push_str(&format!(", signal {signal}"));
    }
    if let Some(reason) = terminated.reason.as_deref().filter(|r| !matches!(*r, "" | "Error" | "Completed")) {
        text.push_str(&format!(" ({reason})"));
    }
    text
}

/// How a Job's pod ended, for people: containers that failed, and what was done to the pod.
pub(crate) fn ending_in_words(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "pod without status".to_owned() };
    let mut parts = Vec::new();
    for c in statuses(status) {
        if let Some(t) = c.state.as_ref().and_then(|s| s.terminated.as_ref())
            && (t.exit_code != 0 || c.name == MAIN)
        {
            parts.push(format!("container {}: {}", c.name, ending(t)));
        }
    }
    if let Some(reason) = &status.reason {
        parts.push(format!("pod {reason}: {}", cut(status.message.as_deref().unwrap_or_default(), MAX_MESSAGE)));
    }
    if let Some(disrupted) = disruption(pod) {
        parts.push(format!("{}: {}", disrupted.reason, disrupted.message));
    }
    if parts.is_empty() { format!("pod is {}", phase(pod)) } else { parts.join("; ") }
}

/// How a container of a failed pod failed by its own doing. Nothing where the pod was taken away, where a container never
/// ran, or where the kernel or the node ended it: that says nothing of what it was about to find.
pub(crate) fn own_failure(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if pod.metadata.deletion_timestamp.is_some() || status.reason.is_some() || disruption(pod).is_some() {
        return None;
    }
    let main = status.container_statuses.iter().flatten();
    main.chain(status.init_container_statuses.iter().flatten()).find_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        let own = ended.exit_code != 0 && matches!(ended.reason.as_deref(), None | Some("" | "Error"));
        own.then(|| format!("container {}: {}", container.name, ending(ended)))
    })
}

/// The same trouble with the Secrets behind the volumes in it: of a key that is missing the kubelet does not say where.
pub(crate) fn with_secrets(pod: &Pod, trouble: Trouble) -> Trouble {
    let mut message = trouble.message.clone();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(secret) = volume.secret.as_ref().filter(|_| trouble.message.contains(&format!("\"{}\"", volume.name)))
        else {
            continue;
        };
        let keys: Vec<_> = secret.items.iter().flatten().map(|item| item.key.as_str()).collect();
        let name = secret.secret_name.as_deref().unwrap_or_default();
        message.push_str(&format!("; volume {:?} is key {} of secret/{name}", volume.name, keys.join(", ")));
    }
    told(&trouble.reason, &message)
}

pub(crate) fn told(reason: &str, message: &str) -> Trouble {
    Trouble { reason: reason.to_owned(), message: cut(message.trim(), MAX_MESSAGE) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::{ending_in_words, has_ended, is_being_set_up, seen, told, trouble, with_secrets};

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": "node-a", "containers": []}, "status": status})).unwrap()
    }

    fn reason(status: Value) -> (String, String) {
        let t = trouble(&pod(status)).unwrap();
        (t.reason, t.message)
    }

    #[test]
    fn the_scheduler_and_kubelet_say_what_keeps_a_pod_from_running() {
        let (r, m) = reason(json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/2 nodes are available: persistentvolumeclaim \"x\" not found"}]}));
        assert_eq!(r, "Unschedulable");
        assert!(m.contains("persistentvolumeclaim \"x\" not found"), "{m}");
        let (r, m) = reason(
            json!({"phase": "Pending", "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]}),
        );
        assert_eq!((r.as_str(), m.as_str()), ("ErrImagePull", "container main: not found"));
        let (r, _) =
            reason(json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}));
        assert_eq!(r, "Evicted");
    }

    #[test]
    fn a_failing_init_container_is_seen_before_the_main_one() {
        let (r, m) = reason(json!({"phase": "Pending",
            "initContainerStatuses": [{"name": "install", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 13, "reason": "Error"}}}],
            "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "PodInitializing"}}}]}));
        assert_eq!((r.as_str(), m.as_str()), ("ContainerExited", "container install: exit code 13"));
    }

    #[test]
    fn a_crash_loop_tells_how_it_ended_last() {
        let p = pod(
            json!({"phase": "Running", "containerStatuses": [{"name": "server", "image": "m:1", "imageID": "r/m@sha256:ab", "ready": false,
            "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}),
        );
        let s = seen(&p, Some("server"));
        assert_eq!((s.restarts, s.image_id.as_deref(), s.node.as_deref()), (4, Some("r/m@sha256:ab"), Some("node-a")));
        let t = s.trouble.unwrap();
        assert_eq!(t.message, "container server: exit code 137 (OOMKilled): back-off 40s");
        assert!(t.is_lasting().is_some());
    }

    #[test]
    fn a_volume_that_lacks_its_key_is_told_with_the_secret() {
        let mut p = pod(json!({"phase": "Pending"}));
        p.spec.as_mut().unwrap().volumes = serde_json::from_value(json!([
            {"name": "tmp", "emptyDir": {}},
            {"name": "recipients", "secret": {"secretName": "snap-key", "items": [{"key": "age.pub", "path": "recipients"}]}},
            {"name": "identity", "secret": {"secretName": "snap-key", "items": [{"key": "age.key", "path": "identity"}]}},
        ]))
        .unwrap();
        let said = "MountVolume.SetUp failed for volume \"identity\" : references non-existent secret key: age.key";
        let t = with_secrets(&p, told("FailedMount", said));
        assert_eq!(t.reason, "FailedMount");
        assert_eq!(t.message, format!("{said}; volume \"identity\" is key age.key of secret/snap-key"));
        let other = told("FailedMount", "MountVolume.SetUp failed for volume \"tmp\" : no space left on device");
        assert_eq!(with_secrets(&p, other.clone()), other);
    }

    #[test]
    fn a_pod_that_is_only_starting_has_no_trouble() {
        let p = pod(
            json!({"phase": "Pending", "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
        );
        assert_eq!(trouble(&p), None);
        assert!(is_being_set_up(&p));
        assert_eq!(seen(&p, None).image_id, None);
    }

    #[test]
    fn an_evicted_pod_has_ended_and_a_terminating_one_has_not() {
        assert!(has_ended(&pod(json!({"phase": "Failed", "reason": "Evicted"}))));
        assert!(!has_ended(&pod(json!({"phase": "Running"}))));
        assert!(!has_ended(&pod(
            json!({"phase": "Failed", "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"running": {}}}]})
        )));
    }

    #[test]
    fn eviction_and_exit_code_are_both_in_the_words() {
        let words = ending_in_words(&pod(json!({"phase": "Failed",
            "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}],
            "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 143, "signal": 15, "reason": "Error"}}}]})));
        assert_eq!(
            words,
            "container main: exit code 143, signal 15; DisruptionTarget: EvictionByEvictionAPI: Eviction API: evicting"
        );
    }
}
