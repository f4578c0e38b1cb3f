//! The candidate pod of a target: its template with the new image, without the labels by which anybody would find it.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PodSchedulingGate, PodTemplateSpec, Service},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde_json::{Value, json};

use super::workload::selector_keys;
use crate::api::{
    marks::{ATTEMPT_LABEL, CANDIDATE_GATE, RELEASE_LABEL, STEP_LABEL},
    release::WorkloadRef,
};

/// A Service's name and the labels that it selects by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSelector {
    pub name: String,
    /// Empty: it selects nothing.
    pub selector: BTreeMap<String, String>,
}

impl From<&Service> for ServiceSelector {
    fn from(service: &Service) -> Self {
        Self {
            name: service.metadata.name.clone().unwrap_or_default(),
            selector: service.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default(),
        }
    }
}

/// What a candidate is made from.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub release: &'a str,
    pub attempt: &'a str,
    pub target: &'a str,
    pub workload: &'a WorkloadRef,
    pub template: &'a PodTemplateSpec,
    pub selector: &'a LabelSelector,
    /// Of a StatefulSet; empty for a Deployment.
    pub claim_templates: &'a [PersistentVolumeClaim],
    pub container: &'a str,
    /// The new image.
    pub image: &'a str,
    /// All Services of the namespace.
    pub services: &'a [ServiceSelector],
}

/// Why no candidate can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CandidateError {
    #[error(
        "{workload} has no container {container:?} in its template; set spec.targets[].container to one that it has"
    )]
    NoContainer { workload: String, container: String },
    #[error(
        "service/{service} selects by the operator's own labels and would send clients to the candidate; make its selector narrower"
    )]
    Selected { service: String },
    #[error("the template of {workload} cannot be written as JSON: {cause}")]
    Unwritable { workload: String, cause: String },
}

/// The pod's name.
pub fn name(attempt: &str, target: &str) -> String {
    format!("{attempt}-{target}-candidate")
}

/// The candidate pod's manifest.
///
/// It keeps what the target's pods run with (ServiceAccount, volumes, environment, probes, security context,
/// tolerations, pull secrets, grace period). It loses every label that the workload or any Service selects by, so that
/// no controller adopts it and no client reaches it. No node takes it before its gate is lifted. A StatefulSet's claims are those of ordinal 0, free because the
/// target is at zero while a candidate runs.
pub fn manifest(c: &Candidate<'_>) -> Result<Value, CandidateError> {
    let mut labels = c.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    let mut lost: BTreeSet<&str> = selector_keys(c.selector).collect();
    lost.extend(c.services.iter().flat_map(|s| s.selector.keys().map(String::as_str)));
    lost.extend([
        "pod-template-hash",
        "controller-revision-hash",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
    ]);
    labels.retain(|key, _| !lost.contains(key.as_str()));
    labels.insert(RELEASE_LABEL.to_owned(), c.release.to_owned());
    labels.insert(ATTEMPT_LABEL.to_owned(), c.attempt.to_owned());
    labels.insert(STEP_LABEL.to_owned(), format!("candidate-{}", c.target));
    if let Some(service) = selecting(&labels, c.services.iter().cloned()).into_iter().next() {
        return Err(CandidateError::Selected { service });
    }
    let annotations = c.template.metadata.as_ref().and_then(|m| m.annotations.clone()).unwrap_or_default();
    let mut metadata = json!({"name": name(c.attempt, c.target), "labels": labels});
    if !annotations.is_empty() {
        metadata["annotations"] = json!(annotations);
    }
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec(c)?}))
}

fn spec(c: &Candidate<'_>) -> Result<Value, CandidateError> {
    let mut spec = c.template.spec.clone().unwrap_or_default();
    let no_container =
        || CandidateError::NoContainer { workload: c.workload.to_string(), container: c.container.to_owned() };
    let container = spec.containers.iter_mut().find(|x| x.name == c.container).ok_or_else(no_container)?;
    container.image = Some(c.image.to_owned());
    spec.scheduling_gates.get_or_insert_default().push(PodSchedulingGate { name: CANDIDATE_GATE.to_owned() });
    spec.restart_policy = Some("Always".to_owned());
    spec.node_name = None;
    let written = serde_json::to_value(&spec);
    let mut spec =
        written.map_err(|e| CandidateError::Unwritable { workload: c.workload.to_string(), cause: e.to_string() })?;
    let claims: Vec<&str> = c.claim_templates.iter().filter_map(|t| t.metadata.name.as_deref()).collect();
    if !claims.is_empty() {
        let kept = spec["volumes"].as_array().cloned().unwrap_or_default();
        // As the StatefulSet controller does it: a claim replaces a volume of its name.
        let mut volumes: Vec<Value> =
            kept.into_iter().filter(|v| claims.iter().all(|name| v["name"] != *name)).collect();
        volumes.extend(claims.iter().map(|name| {
            json!({"name": name, "persistentVolumeClaim": {"claimName": format!("{name}-{}-0", c.workload.name)}})
        }));
        spec["volumes"] = Value::Array(volumes);
    }
    Ok(spec)
}

/// The labels that a manifest gives its object.
pub fn labels_of(manifest: &Value) -> BTreeMap<String, String> {
    let labels = manifest["metadata"]["labels"].as_object().into_iter().flatten();
    labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// Whether a workload's selector finds a pod with these labels; an empty one finds all.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            let among = labels.get(&e.key).is_some_and(|value| e.values.iter().flatten().any(|v| v == value));
            match e.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "DoesNotExist" => !labels.contains_key(&e.key),
                _ => labels.contains_key(&e.key),
            }
        })
}

/// Names of the Services that would select a pod with these labels.
pub fn selecting(labels: &BTreeMap<String, String>, services: impl Iterator<Item = ServiceSelector>) -> Vec<String> {
    services
        .filter(|s| !s.selector.is_empty() && s.selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
        .map(|s| s.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PersistentVolumeClaim, PodTemplateSpec},
        apimachinery::pkg::apis::meta::v1::LabelSelector,
    };
    use serde_json::json;

    use super::{Candidate, CandidateError, ServiceSelector, labels_of, manifest, selecting};
    use crate::api::release::{WorkloadKind, WorkloadRef};

    struct Fixture {
        workload: WorkloadRef,
        template: PodTemplateSpec,
        selector: LabelSelector,
        claims: Vec<PersistentVolumeClaim>,
        services: Vec<ServiceSelector>,
    }

    fn service(name: &str, selector: &[(&str, &str)]) -> ServiceSelector {
        ServiceSelector {
            name: name.to_owned(),
            selector: selector.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn fixture() -> Fixture {
        Fixture {
            workload: WorkloadRef { kind: WorkloadKind::StatefulSet, name: "memoria".to_owned() },
            template: serde_json::from_value(json!({
                "metadata": {
                    "labels": {"app": "memoria", "tier": "web", "team": "data", "pod-template-hash": "abc"},
                    "annotations": {"vault.hashicorp.com/role": "memoria"}},
                "spec": {
                    "serviceAccountName": "memoria", "terminationGracePeriodSeconds": 45,
                    "imagePullSecrets": [{"name": "registry"}], "tolerations": [{"key": "db", "operator": "Exists"}],
                    "securityContext": {"runAsUser": 1000},
                    "containers": [
                        {"name": "proxy", "image": "proxy:1"},
                        {"name": "server", "image": "memoria:0.9.0", "env": [{"name": "X", "value": "1"}],
                            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8000}},
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                    "volumes": [{"name": "config", "configMap": {"name": "c"}}, {"name": "data", "emptyDir": {}}]}
            }))
            .unwrap(),
            selector: serde_json::from_value(json!({"matchLabels": {"app": "memoria"}})).unwrap(),
            claims: vec![serde_json::from_value(json!({"metadata": {"name": "data"}, "spec": {}})).unwrap()],
            services: vec![
                service("memoria", &[("app", "memoria")]),
                service("web", &[("tier", "web")]),
                service("headless", &[]),
            ],
        }
    }

    fn candidate(f: &Fixture) -> Candidate<'_> {
        Candidate {
            release: "memoria",
            attempt: "memoria-3",
            target: "server",
            workload: &f.workload,
            template: &f.template,
            selector: &f.selector,
            claim_templates: &f.claims,
            container: "server",
            image: "r/memoria@sha256:ab",
            services: &f.services,
        }
    }

    #[test]
    fn a_candidate_keeps_how_the_target_runs_and_loses_what_selects_it() {
        let f = fixture();
        insta::assert_json_snapshot!(manifest(&candidate(&f)).unwrap());
    }

    #[test]
    fn no_service_selects_a_candidate() {
        let f = fixture();
        let labels = labels_of(&manifest(&candidate(&f)).unwrap());
        assert!(selecting(&labels, f.services.iter().cloned()).is_empty());
        let template_labels = f.template.metadata.as_ref().unwrap().labels.clone().unwrap();
        assert_eq!(selecting(&template_labels, f.services.iter().cloned()), ["memoria", "web"]);
    }

    #[test]
    fn a_service_that_selects_by_our_own_labels_stops_the_plan() {
        let mut f = fixture();
        f.services.push(service("nosy", &[("memoria.arca.run/release", "memoria")]));
        assert_eq!(manifest(&candidate(&f)).unwrap_err(), CandidateError::Selected { service: "nosy".to_owned() });
    }

    #[test]
    fn a_container_that_the_template_lacks_is_named() {
        let f = fixture();
        let error = manifest(&Candidate { container: "api", ..candidate(&f) }).unwrap_err();
        assert!(error.to_string().contains("statefulset/memoria") && error.to_string().contains("\"api\""), "{error}");
    }
}
