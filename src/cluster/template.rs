//! The identity of what the operator creates: whether a live object is the one that was pinned, told by its labels and
//! the hash over its manifest.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::api::ObjectMeta;
use serde_json::Value;

use super::error::ClusterError;
use crate::{
    api::marks::{ATTEMPT_LABEL, RELEASE_LABEL, TEMPLATE_HASH_ANNOTATION},
    job::{
        manifest::{canonical_hash, with_input},
        protocol::JobInput,
    },
};

/// A planned Job as it is created: with its input and its hash.
pub(crate) fn job(manifest: &Value, input: &JobInput) -> Result<Job, ClusterError> {
    let job: Job = serde_json::from_value(manifest.clone()).map_err(|e| unreadable("job", manifest, &e))?;
    job_of(job, input)
}

pub(crate) fn job_of(job: Job, input: &JobInput) -> Result<Job, ClusterError> {
    let object = format!("job/{}", job.metadata.name.as_deref().unwrap_or_default());
    with_input(job, input).map_err(|e| ClusterError::malformed("write the input of", object, e.to_string()))
}

/// A planned candidate as it is created: with its hash.
pub(crate) fn candidate(manifest: &Value) -> Result<Pod, ClusterError> {
    let mut pod: Pod = serde_json::from_value(manifest.clone()).map_err(|e| unreadable("pod", manifest, &e))?;
    pod.metadata
        .annotations
        .get_or_insert_default()
        .insert(TEMPLATE_HASH_ANNOTATION.to_owned(), canonical_hash(manifest));
    Ok(pod)
}

fn unreadable(kind: &str, manifest: &Value, error: &serde_json::Error) -> ClusterError {
    ClusterError::malformed("read the manifest of", format!("{kind}/{}", name(manifest)), error.to_string())
}

/// A manifest's name; empty when it has none.
pub(crate) fn name(manifest: &Value) -> &str {
    manifest["metadata"]["name"].as_str().unwrap_or_default()
}

/// Why a live object is not the one that is wanted; nothing when it is.
pub(crate) fn difference(live: &ObjectMeta, wanted: &ObjectMeta) -> Option<String> {
    let label = |meta: &ObjectMeta, key: &str| meta.labels.as_ref().and_then(|l| l.get(key)).cloned();
    for key in [RELEASE_LABEL, ATTEMPT_LABEL] {
        let (want, have) = (label(wanted, key), label(live, key));
        if want != have {
            return Some(format!("label {key} is {} instead of {}", shown(have.as_deref()), shown(want.as_deref())));
        }
    }
    let hash = |meta: &ObjectMeta| meta.annotations.as_ref().and_then(|a| a.get(TEMPLATE_HASH_ANNOTATION)).cloned();
    let (want, have) = (hash(wanted), hash(live));
    let differs = || {
        format!(
            "annotation {TEMPLATE_HASH_ANNOTATION} is {} instead of {}",
            shown(have.as_deref()),
            shown(want.as_deref())
        )
    };
    (want != have).then(differs)
}

fn shown(value: Option<&str>) -> String {
    value.map_or_else(|| "absent".to_owned(), |v| format!("{v:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{candidate, difference, job};
    use crate::job::protocol::JobInput;

    fn manifest() -> serde_json::Value {
        json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "memoria-3-migrate", "labels": {"memoria.arca.run/release": "memoria", "memoria.arca.run/attempt": "memoria-3"}},
            "spec": {"template": {"spec": {
                "initContainers": [{"name": "guard", "env": [{"name": "MEMORIA_OPERATOR_JOB", "value": "{}"}]}],
                "containers": [{"name": "main"}]}}}})
    }

    #[test]
    fn a_job_of_another_attempt_template_or_input_is_told_apart() {
        let wanted = job(&manifest(), &JobInput::default()).unwrap().metadata;
        let mut live = wanted.clone();
        assert_eq!(difference(&live, &wanted), None);
        let other = job(&manifest(), &JobInput { manifest_sha256: Some("ab".to_owned()), ..JobInput::default() })
            .unwrap()
            .metadata;
        assert!(difference(&live, &other).unwrap().contains("template-hash"));
        live.annotations.as_mut().unwrap().insert("memoria.arca.run/template-hash".to_owned(), "00".to_owned());
        assert!(difference(&live, &wanted).unwrap().contains("template-hash is \"00\""));
        live.labels = None;
        assert!(difference(&live, &wanted).unwrap().contains("release is absent instead of \"memoria\""));
    }

    #[test]
    fn a_candidate_with_another_image_is_another() {
        let pod = |image: &str| json!({"metadata": {"name": "c"}, "spec": {"containers": [{"name": "server", "image": image}]}});
        let wanted = candidate(&pod("m:1")).unwrap().metadata;
        assert!(difference(&candidate(&pod("m:2")).unwrap().metadata, &wanted).is_some());
        assert_eq!(difference(&candidate(&pod("m:1")).unwrap().metadata, &wanted), None);
    }
}
