//! Deployments and StatefulSets behind one face: how they are read, named and selected.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
};

use super::{client::bounded, error::ClusterError, pods};
use crate::{
    api::{
        marks::{ATTEMPT_ANNOTATION, GOES_BACK_ANNOTATION, OWNER_ANNOTATION, PRIOR_REPLICAS_ANNOTATION},
        release::{WorkloadKind, WorkloadRef},
    },
    upgrade::seen::{PodSeen, Switch, Workload},
};

/// A workload as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    Deployment(Box<Deployment>),
    StatefulSet(Box<StatefulSet>),
}

/// Reads one workload; absent when there is none of that name.
pub(crate) async fn get(client: &Client, ns: &str, workload: &WorkloadRef) -> Result<Option<Found>, ClusterError> {
    Ok(match workload.kind {
        WorkloadKind::Deployment => {
            let api: Api<Deployment> = Api::namespaced(client.clone(), ns);
            bounded("read", workload, api.get_opt(&workload.name)).await?.map(Box::new).map(Found::Deployment)
        }
        WorkloadKind::StatefulSet => {
            let api: Api<StatefulSet> = Api::namespaced(client.clone(), ns);
            bounded("read", workload, api.get_opt(&workload.name)).await?.map(Box::new).map(Found::StatefulSet)
        }
    })
}

/// For writes: the same requests for both kinds.
pub(crate) fn api(client: &Client, ns: &str, kind: WorkloadKind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), ns, &resource(kind))
}

pub(crate) fn resource(kind: WorkloadKind) -> ApiResource {
    match kind {
        WorkloadKind::Deployment => ApiResource::erase::<Deployment>(&()),
        WorkloadKind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
    }
}

/// The pods that the workload's selector finds and that may still run something. A pod that ended for good (evicted,
/// completed) stays listed for as long as nobody collects it; it holds nothing back.
pub(crate) async fn live_pods(
    client: &Client,
    ns: &str,
    workload: &WorkloadRef,
    found: &Found,
) -> Result<Vec<Pod>, ClusterError> {
    let Some(selector) = found.selector().and_then(selector_text) else {
        // An empty selector would list every pod of the namespace.
        return Err(ClusterError::malformed("list the pods of", workload.to_string(), "it has no selector".to_owned()));
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), ns);
    let list = bounded("list the pods of", workload, api.list(&ListParams::default().labels(&selector))).await?;
    Ok(list.items.into_iter().filter(|pod| !pods::has_ended(pod)).collect())
}

/// A selector as the list call wants it; nothing when it selects everything.
pub(crate) fn selector_text(selector: &LabelSelector) -> Option<String> {
    let mut terms: Vec<String> = selector.match_labels.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    for e in selector.match_expressions.iter().flatten() {
        let values = e.values.as_deref().unwrap_or_default().join(",");
        terms.push(match e.operator.as_str() {
            "In" => format!("{} in ({values})", e.key),
            "NotIn" => format!("{} notin ({values})", e.key),
            "DoesNotExist" => format!("!{}", e.key),
            _ => e.key.clone(),
        });
    }
    (!terms.is_empty()).then(|| terms.join(","))
}

/// Every label key that a selector speaks of.
pub(crate) fn selector_keys(selector: &LabelSelector) -> impl Iterator<Item = &str> {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| key.as_str());
    labels.chain(selector.match_expressions.iter().flatten().map(|e| e.key.as_str()))
}

impl Found {
    pub(crate) fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Deployment(d) => &d.metadata,
            Self::StatefulSet(s) => &s.metadata,
        }
    }

    pub(crate) fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.meta().annotations.as_ref()?.get(key).map(String::as_str)
    }

    pub(crate) fn selector(&self) -> Option<&LabelSelector> {
        match self {
            Self::Deployment(d) => d.spec.as_ref().map(|s| &s.selector),
            Self::StatefulSet(s) => s.spec.as_ref().map(|s| &s.selector),
        }
    }

    pub(crate) fn template(&self) -> PodTemplateSpec {
        match self {
            Self::Deployment(d) => d.spec.as_ref().map(|s| s.template.clone()),
            Self::StatefulSet(s) => s.spec.as_ref().map(|s| s.template.clone()),
        }
        .unwrap_or_default()
    }

    /// Of a StatefulSet; empty for a Deployment.
    pub(crate) fn claim_templates(&self) -> Vec<PersistentVolumeClaim> {
        match self {
            Self::StatefulSet(s) => s.spec.as_ref().and_then(|s| s.volume_claim_templates.clone()).unwrap_or_default(),
            Self::Deployment(_) => Vec::new(),
        }
    }

    pub(crate) fn replicas(&self) -> i32 {
        match self {
            Self::Deployment(d) => d.spec.as_ref().and_then(|s| s.replicas),
            Self::StatefulSet(s) => s.spec.as_ref().and_then(|s| s.replicas),
        }
        .unwrap_or(1)
    }

    /// Names and images of its containers.
    pub(crate) fn images(&self) -> BTreeMap<String, String> {
        let spec = match self {
            Self::Deployment(d) => d.spec.as_ref().and_then(|s| s.template.spec.as_ref()),
            Self::StatefulSet(s) => s.spec.as_ref().and_then(|s| s.template.spec.as_ref()),
        };
        let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        containers.iter().map(|c| (c.name.clone(), c.image.clone().unwrap_or_default())).collect()
    }

    /// What the machine sees of it. `container` is the one that matters, absent for workers.
    pub(crate) fn seen(&self, container: Option<&str>, pods: &[Pod]) -> Workload {
        let counts = match self {
            Self::Deployment(d) => d.status.as_ref().map(|s| {
                (
                    s.observed_generation,
                    s.replicas.unwrap_or(0),
                    s.updated_replicas.unwrap_or(0),
                    s.ready_replicas.unwrap_or(0),
                )
            }),
            Self::StatefulSet(s) => s.status.as_ref().map(|st| {
                (st.observed_generation, st.replicas, updated_of_stateful_set(s), st.ready_replicas.unwrap_or(0))
            }),
        };
        let (observed_generation, status_replicas, updated_replicas, ready_replicas) = counts.unwrap_or_default();
        let meta = self.meta();
        Workload {
            uid: self.uid().to_owned(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or(0),
            observed_generation: observed_generation.unwrap_or(0),
            replicas: self.replicas(),
            status_replicas,
            updated_replicas,
            ready_replicas,
            image: container.and_then(|c| self.images().remove(c)).unwrap_or_default(),
            owner: self.annotation(OWNER_ANNOTATION).map(str::to_owned),
            attempt: self.annotation(ATTEMPT_ANNOTATION).map(str::to_owned),
            goes_back: self.annotation(GOES_BACK_ANNOTATION).is_some(),
            prior_replicas: self.annotation(PRIOR_REPLICAS_ANNOTATION).map(str::to_owned),
            switch: Switch::Replicas,
            unfinished: Vec::new(),
            pods: pods.iter().map(|pod| pods::seen(pod, container)).collect::<Vec<PodSeen>>(),
        }
    }
}

/// Pods of the newest revision. Once a rollout is complete the controller moves `currentRevision` to it and, in
/// versions before 1.26, left `updatedReplicas` at what it was; equal revisions mean that all current ones are updated.
fn updated_of_stateful_set(set: &StatefulSet) -> i32 {
    let Some(status) = &set.status else { return 0 };
    let updated = status.updated_replicas.unwrap_or(0);
    if status.update_revision.is_some() && status.update_revision == status.current_revision {
        updated.max(status.current_replicas.unwrap_or(0))
    } else {
        updated
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::apps::v1::{Deployment, StatefulSet},
        apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
    };
    use serde_json::json;

    use super::{Found, selector_keys, selector_text};

    #[test]
    fn a_selector_is_written_as_the_list_call_wants_it() {
        let requirement = |key: &str, operator: &str, values: &[&str]| LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: (!values.is_empty()).then(|| values.iter().map(|v| (*v).to_owned()).collect()),
        };
        let selector = LabelSelector {
            match_labels: Some([("app".to_owned(), "memoria".to_owned())].into()),
            match_expressions: Some(vec![
                requirement("tier", "In", &["web", "api"]),
                requirement("track", "NotIn", &["canary"]),
                requirement("live", "Exists", &[]),
                requirement("dead", "DoesNotExist", &[]),
            ]),
        };
        assert_eq!(selector_text(&selector).unwrap(), "app=memoria,tier in (web,api),track notin (canary),live,!dead");
        assert_eq!(selector_keys(&selector).collect::<Vec<_>>(), ["app", "tier", "track", "live", "dead"]);
        assert_eq!(selector_text(&LabelSelector::default()), None);
    }

    #[test]
    fn a_deployment_is_seen_with_its_counts_marks_and_image() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "memoria", "uid": "u1", "resourceVersion": "7", "generation": 4, "annotations": {
                "memoria.arca.run/owner": "r1", "memoria.arca.run/attempt": "memoria-3", "memoria.arca.run/prior-replicas": "2"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "memoria"}}, "template": {"spec": {"containers": [
                {"name": "proxy", "image": "proxy:1"}, {"name": "server", "image": "memoria:0.9.0"}]}}},
            "status": {"observedGeneration": 3, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2}
        }))
        .unwrap();
        let seen = Found::Deployment(Box::new(deployment)).seen(Some("server"), &[]);
        assert_eq!(
            (seen.uid.as_str(), seen.resource_version.as_str(), seen.image.as_str()),
            ("u1", "7", "memoria:0.9.0")
        );
        assert_eq!((seen.generation, seen.observed_generation), (4, 3));
        assert_eq!((seen.replicas, seen.status_replicas, seen.updated_replicas, seen.ready_replicas), (2, 3, 1, 2));
        assert_eq!(seen.owner.as_deref(), Some("r1"));
        assert_eq!((seen.attempt.as_deref(), seen.prior_replicas.as_deref()), (Some("memoria-3"), Some("2")));
    }

    #[test]
    fn a_workload_without_replicas_or_status_has_one_replica_and_nothing_running() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "memoria"},
            "spec": {"serviceName": "m", "selector": {}, "template": {}}
        }))
        .unwrap();
        let seen = Found::StatefulSet(Box::new(set)).seen(None, &[]);
        assert_eq!((seen.replicas, seen.status_replicas, seen.ready_replicas), (1, 0, 0));
        assert!(!seen.is_gone());
    }

    #[test]
    fn a_stateful_set_whose_revisions_agree_counts_its_current_pods_as_updated() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "m", "generation": 2},
            "spec": {"serviceName": "m", "replicas": 2, "selector": {}, "template": {}},
            "status": {"observedGeneration": 2, "replicas": 2, "readyReplicas": 2, "currentReplicas": 2,
                "currentRevision": "m-1", "updateRevision": "m-1"}
        }))
        .unwrap();
        assert!(Found::StatefulSet(Box::new(set)).seen(None, &[]).is_rolled_out(2));
    }
}
