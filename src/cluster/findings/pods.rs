//! Pods that would keep Quiesce from its end: those of others that the selector finds, and those that may take too long.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::failed;
use crate::{
    api::release::{CheckResult, Timeouts, WorkerKind},
    cluster::{adopt::AdoptedWorkload, pods::has_ended},
    commands::Command,
};

/// Kubernetes' own default.
const GRACE_SECONDS: i64 = 30;

/// Pods that the selector finds and that the workload did not make would never go away with it.
pub(super) fn foreign(workload: &AdoptedWorkload, pods: &[Pod]) -> Option<CheckResult> {
    let reference = &workload.workload;
    let name = format!("pods-{}-{}", reference.kind.resource(), reference.name);
    let strangers: Vec<String> = pods
        .iter()
        .filter(|pod| !has_ended(pod) && !is_made_by(workload, pod))
        .map(|pod| format!("{} ({})", pod.name_any(), maker(pod)))
        .take(3)
        .collect();
    let first = strangers.first()?.split(' ').next().unwrap_or_default();
    let namespace = workload.meta.namespace.as_deref().unwrap_or_default();
    let delete = Command::DeletePod { pod: first }.in_namespace(namespace);
    Some(failed(
        &name,
        format!(
            "the selector of {reference} also finds pods that it did not make: {}; they would not end with it. Give them \
             other labels, or delete them: {delete}",
            strangers.join(", ")
        ),
    ))
}

fn maker(pod: &Pod) -> String {
    let owner = pod.owner_references().iter().find(|o| o.controller == Some(true));
    owner.map_or_else(|| "made by hand".to_owned(), |o| format!("of {} {}", o.kind, o.name))
}

/// ReplicaSets are not read: they are named after their Deployment and the hash that their pods bear.
fn is_made_by(workload: &AdoptedWorkload, pod: &Pod) -> bool {
    let Some(owner) = pod.owner_references().iter().find(|o| o.controller == Some(true)) else { return false };
    let name = &workload.workload.name;
    match workload.workload.kind {
        WorkerKind::StatefulSet => owner.kind == "StatefulSet" && owner.uid == workload.seen.uid,
        _ => {
            let hash = pod.labels().get("pod-template-hash");
            owner.kind == "ReplicaSet" && hash.is_some_and(|hash| owner.name == format!("{name}-{hash}"))
        }
    }
}

/// A pod that may take longer to end than Quiesce may.
pub(super) fn slow_to_end(workload: &AdoptedWorkload, timeouts: &Timeouts) -> Option<CheckResult> {
    let spec = workload.template.spec.as_ref()?;
    let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_SECONDS);
    let limit = timeouts.quiesce.as_secs();
    let reference = &workload.workload;
    (grace.unsigned_abs() >= limit).then(|| {
        failed(
            &format!("grace-{}-{}", reference.kind.resource(), reference.name),
            format!(
                "pods of {reference} may take {grace} s to end (terminationGracePeriodSeconds), but Quiesce as a whole has \
                 {limit} s; raise spec.timeouts.quiesce above it, or lower the grace period"
            ),
        )
    })
}
