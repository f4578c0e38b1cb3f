//! The identity of what the operator creates: a manifest as pinned, its input, and the hash that tells ours from others'.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    api::marks::{ATTEMPT_LABEL, RELEASE_LABEL, TEMPLATE_HASH_ANNOTATION},
    job::protocol::{INPUT_ENV, JobInput, ORDER_ENV},
};

/// The manifest with its input (in every container that has an order) and, last, the hash over all of it.
pub fn with_input(manifest: &Value, input: &JobInput) -> Result<Value, serde_json::Error> {
    let mut manifest = manifest.clone();
    let text = serde_json::to_string(input)?;
    for list in ["/spec/template/spec/initContainers", "/spec/template/spec/containers"] {
        for container in manifest.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(env) = container.get_mut("env").and_then(Value::as_array_mut) else { continue };
            if env.iter().any(|e| e["name"] == ORDER_ENV) {
                env.retain(|e| e["name"] != INPUT_ENV);
                env.push(json!({"name": INPUT_ENV, "value": text}));
            }
        }
    }
    Ok(stamped(manifest))
}

/// The manifest with its own hash as an annotation.
pub fn stamped(mut manifest: Value) -> Value {
    let hash = hash(&manifest);
    if let Some(object) = manifest.as_object_mut() {
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.insert(TEMPLATE_HASH_ANNOTATION.to_owned(), Value::String(hash));
            }
        }
    }
    manifest
}

/// SHA-256 over a manifest in a fixed form (keys sorted, no blanks, null as absent), without the annotation that carries
/// it. In hex.
pub fn hash(manifest: &Value) -> String {
    let mut text = String::new();
    write_sorted(manifest, &mut text);
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> =
                map.iter().filter(|(k, v)| *k != TEMPLATE_HASH_ANNOTATION && !v.is_null()).map(|(k, _)| k).collect();
            keys.sort_unstable();
            out.push('{');
            for key in keys {
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write_sorted(&map[key], out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_sorted(item, out);
                out.push(',');
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// Why a live object is not the one that this manifest (stamped) makes; nothing when it is.
pub(crate) fn difference(live: &kube::api::ObjectMeta, wanted: &Value) -> Option<String> {
    let labels = live.labels.as_ref();
    for key in [RELEASE_LABEL, ATTEMPT_LABEL] {
        let want = wanted["metadata"]["labels"][key].as_str();
        let have = labels.and_then(|l| l.get(key)).map(String::as_str);
        if want != have {
            return Some(format!("label {key} is {} instead of {}", shown(have), shown(want)));
        }
    }
    let want = wanted["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION].as_str();
    let have = live.annotations.as_ref().and_then(|a| a.get(TEMPLATE_HASH_ANNOTATION)).map(String::as_str);
    (want != have)
        .then(|| format!("annotation {TEMPLATE_HASH_ANNOTATION} is {} instead of {}", shown(have), shown(want)))
}

fn shown(value: Option<&str>) -> String {
    value.map_or_else(|| "absent".to_owned(), |v| format!("{v:?}"))
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;
    use serde_json::json;

    use super::{difference, hash, stamped, with_input};
    use crate::job::protocol::JobInput;

    fn manifest() -> serde_json::Value {
        json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "memoria-3-migrate", "labels": {"memoria.arca.run/release": "memoria", "memoria.arca.run/attempt": "memoria-3"}},
            "spec": {"template": {"spec": {
                "initContainers": [{"name": "guard", "env": [{"name": "MEMORIA_OPERATOR_JOB", "value": "{}"}]}],
                "containers": [{"name": "main", "env": [{"name": "OTHER", "value": "x"}]}]}}}})
    }

    #[test]
    fn the_input_reaches_the_container_that_has_the_order_and_changes_the_hash() {
        let input = JobInput { manifest_sha256: Some("ab".to_owned()) };
        let with = with_input(&manifest(), &input).unwrap();
        assert_eq!(
            with["spec"]["template"]["spec"]["initContainers"][0]["env"][1],
            json!({"name": "MEMORIA_OPERATOR_JOB_INPUT", "value": "{\"manifestSha256\":\"ab\"}"})
        );
        assert_eq!(with["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().len(), 1);
        let without = with_input(&manifest(), &JobInput::default()).unwrap();
        assert_ne!(hash(&with), hash(&without));
        assert_eq!(with_input(&with, &input).unwrap(), with);
    }

    #[test]
    fn the_hash_does_not_depend_on_the_order_of_keys_or_on_itself() {
        let a: serde_json::Value = serde_json::from_str(r#"{"b": [1, {"y": null, "x": "ä"}], "a": true}"#).unwrap();
        let b: serde_json::Value = serde_json::from_str(r#"{"a": true, "b": [1, {"x": "ä"}]}"#).unwrap();
        assert_eq!(hash(&a), hash(&b));
        assert_eq!(hash(&a).len(), 64);
        let once = stamped(manifest());
        assert_eq!(stamped(once.clone()), once);
    }

    #[test]
    fn a_job_of_another_attempt_or_template_is_told_apart() {
        let wanted = stamped(manifest());
        let mut live: ObjectMeta = serde_json::from_value(wanted["metadata"].clone()).unwrap();
        assert_eq!(difference(&live, &wanted), None);
        live.annotations.as_mut().unwrap().insert("memoria.arca.run/template-hash".to_owned(), "00".to_owned());
        assert!(difference(&live, &wanted).unwrap().contains("template-hash is \"00\""));
        live.labels = None;
        assert!(difference(&live, &wanted).unwrap().contains("release is absent instead of \"memoria\""));
    }
}
