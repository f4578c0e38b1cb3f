//! Who else keeps a workload's image or replica count, from `managedFields` and the marks of known tools. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::Value;

use crate::api::marks::{IMAGE_MANAGER, KEDA_PAUSED_REPLICAS, OWNER_MANAGER, SCALE_MANAGER};

/// Somebody who set a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// As `managedFields` names it.
    pub name: String,
    /// `Apply` or `Update`.
    pub operation: String,
    pub tool: Tool,
}

/// A tool known by its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    ArgoCd,
    Flux,
    Helm,
    Kubectl,
    Other,
}

impl Tool {
    /// Whether it puts its own values back by itself, without a person or a pipeline acting.
    pub fn puts_back(self) -> bool {
        matches!(self, Self::ArgoCd | Self::Flux)
    }

    fn of_manager(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        if name.contains("argocd") || name.contains("argo-cd") {
            Self::ArgoCd
        } else if name.contains("kustomize-controller") || name.contains("helm-controller") || name.contains("flux") {
            Self::Flux
        } else if name.contains("helm") {
            Self::Helm
        } else if name.contains("kubectl") {
            Self::Kubectl
        } else {
            Self::Other
        }
    }
}

/// Who set a container's image, ourselves left out.
pub(crate) fn of_image(meta: &ObjectMeta, container: &str) -> Vec<Manager> {
    let key = format!("k:{{\"name\":\"{container}\"}}");
    of_field(meta, &["f:spec", "f:template", "f:spec", "f:containers", &key, "f:image"])
}

/// Who set the replica count, ourselves left out.
pub(crate) fn of_replicas(meta: &ObjectMeta) -> Vec<Manager> {
    of_field(meta, &["f:spec", "f:replicas"])
}

/// Who set what suspends a CronJob or Job, or pauses a ScaledObject.
pub(crate) fn of_switch(meta: &ObjectMeta) -> Vec<Manager> {
    let mut all = of_field(meta, &["f:spec", "f:suspend"]);
    all.extend(of_field(meta, &["f:metadata", "f:annotations", &format!("f:{KEDA_PAUSED_REPLICAS}")]));
    all
}

/// Who set a key of a ConfigMap, ourselves left out.
pub(crate) fn of_key(meta: &ObjectMeta, key: &str) -> Vec<Manager> {
    of_field(meta, &["f:data", &format!("f:{key}")])
}

fn of_field(meta: &ObjectMeta, path: &[&str]) -> Vec<Manager> {
    let entries = meta.managed_fields.iter().flatten();
    entries.filter(|e| has(e, path)).filter_map(manager).collect()
}

fn has(entry: &ManagedFieldsEntry, path: &[&str]) -> bool {
    let Some(fields) = &entry.fields_v1 else { return false };
    path.iter().try_fold(&fields.0, |at: &Value, step| at.get(step)).is_some()
}

fn manager(entry: &ManagedFieldsEntry) -> Option<Manager> {
    let name = entry.manager.clone().unwrap_or_default();
    if name == IMAGE_MANAGER || name == SCALE_MANAGER || name.starts_with(OWNER_MANAGER) {
        return None;
    }
    Some(Manager { tool: Tool::of_manager(&name), operation: entry.operation.clone().unwrap_or_default(), name })
}

/// Tools that mark objects as kept by them.
pub(crate) fn keepers(meta: &ObjectMeta) -> Vec<Tool> {
    let keys = meta.labels.iter().flatten().chain(meta.annotations.iter().flatten());
    let mut tools: Vec<Tool> = keys.filter_map(|(key, value)| keeper(key, value)).collect();
    tools.sort_unstable();
    tools.dedup();
    tools
}

/// Sync waves, hooks and options of Argo CD stand in many charts; only these two say that it keeps the object.
const ARGO_TRACKING: [&str; 2] = ["argocd.argoproj.io/tracking-id", "argocd.argoproj.io/instance"];

/// Namespace and name of the Flux Kustomization that applies an object.
pub(crate) fn flux_source(meta: &ObjectMeta) -> Option<(String, String)> {
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    Some((label("kustomize.toolkit.fluxcd.io/namespace")?, label("kustomize.toolkit.fluxcd.io/name")?))
}

/// Whether Flux is told on the object itself, by label or annotation, to change nothing of it.
pub(crate) fn flux_leaves_alone(meta: &ObjectMeta) -> bool {
    let marks = meta.labels.iter().flatten().chain(meta.annotations.iter().flatten());
    marks.into_iter().any(|(key, value)| match key.as_str() {
        "kustomize.toolkit.fluxcd.io/ssa" => ["ifnotpresent", "ignore"].contains(&value.to_ascii_lowercase().as_str()),
        "kustomize.toolkit.fluxcd.io/reconcile" => value.eq_ignore_ascii_case("disabled"),
        _ => false,
    })
}

fn keeper(key: &str, value: &str) -> Option<Tool> {
    if ARGO_TRACKING.contains(&key) {
        Some(Tool::ArgoCd)
    } else if key.starts_with("kustomize.toolkit.fluxcd.io/") || key.starts_with("helm.toolkit.fluxcd.io/") {
        Some(Tool::Flux)
    } else if key.starts_with("meta.helm.sh/") || (key == "app.kubernetes.io/managed-by" && value == "Helm") {
        Some(Tool::Helm)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;
    use serde_json::json;

    use super::{Tool, keepers, of_image, of_replicas};

    fn meta() -> ObjectMeta {
        let image = json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"server\"}": {".": {}, "f:image": {}}}}}}});
        serde_json::from_value(json!({
            "annotations": {"argocd.argoproj.io/tracking-id": "x", "argocd.argoproj.io/sync-wave": "1"},
            "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "managedFields": [
                {"manager": "argocd-controller", "operation": "Apply", "fieldsV1": image},
                {"manager": "memoria-operator-image", "operation": "Apply", "fieldsV1": image},
                {"manager": "kubectl-client-side-apply", "operation": "Update", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
                {"manager": "memoria-operator-scale", "operation": "Update", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
                {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}}]
        }))
        .unwrap()
    }

    #[test]
    fn others_who_set_image_and_replicas_are_found_and_we_are_not() {
        let image = of_image(&meta(), "server");
        assert_eq!(image.len(), 1);
        assert_eq!(
            (image[0].name.as_str(), image[0].tool, image[0].tool.puts_back()),
            ("argocd-controller", Tool::ArgoCd, true)
        );
        assert!(of_image(&meta(), "proxy").is_empty());
        let replicas = of_replicas(&meta());
        assert_eq!(replicas.len(), 1);
        assert_eq!((replicas[0].tool, replicas[0].operation.as_str()), (Tool::Kubectl, "Update"));
    }

    #[test]
    fn keepers_are_known_by_their_marks() {
        assert_eq!(keepers(&meta()), [Tool::ArgoCd, Tool::Helm]);
        assert!(keepers(&ObjectMeta::default()).is_empty());
    }
}
