//! What makes a Job recognisable as the one that was pinned: its input, put in at creation, and a hash over both.

use std::net::IpAddr;

use k8s_openapi::api::{batch::v1::Job, core::v1::EnvVar};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{RenderError, env_json, name::hex};
use crate::{
    api::marks::TEMPLATE_HASH_ANNOTATION,
    job::protocol::{CANDIDATE_ENV, INPUT_ENV, JobInput, ORDER_ENV},
};

/// The pinned Job with what is only known now, and the annotation with the hash of both.
///
/// # Errors
/// [`RenderError::Json`] when it cannot be written as JSON.
pub fn with_input(mut job: Job, input: &JobInput) -> Result<Job, RenderError> {
    let text = env_json(input)?;
    if let Some(pod) = &mut job.spec.get_or_insert_default().template.spec {
        let init = pod.init_containers.iter_mut().flatten();
        for container in init.chain(&mut pod.containers) {
            let env = container.env.get_or_insert_default();
            if let Some(address) = input.candidate_address
                && let Some(entry) = env.iter_mut().find(|entry| entry.name == CANDIDATE_ENV)
            {
                entry.value = Some(in_url(address));
            }
            if env.iter().any(|entry| entry.name == ORDER_ENV) {
                env.retain(|entry| entry.name != INPUT_ENV);
                env.push(EnvVar { name: INPUT_ENV.to_owned(), value: Some(text.clone()), value_from: None });
            }
        }
    }
    let hash = template_hash(&job)?;
    job.metadata.annotations.get_or_insert_default().insert(TEMPLATE_HASH_ANNOTATION.to_owned(), hash);
    Ok(job)
}

/// An address as it stands in a URL.
fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// SHA-256, in hex, over the Job's canonical JSON without its own hash.
///
/// # Errors
/// [`RenderError::Json`] when it cannot be written as JSON.
pub fn template_hash(job: &Job) -> Result<String, RenderError> {
    let mut job = job.clone();
    if let Some(annotations) = &mut job.metadata.annotations {
        annotations.remove(TEMPLATE_HASH_ANNOTATION);
    }
    Ok(canonical_hash(&serde_json::to_value(job).map_err(RenderError::json)?))
}

/// SHA-256, in hex, over a value's canonical JSON.
pub fn canonical_hash(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    hex(&Sha256::digest(text.as_bytes()))
}

/// Keys in order, no spaces: the same bytes whatever features serde_json was built with. Empty parts are left out, so
/// that what the API server drops does not change the hash.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().filter(|(_, v)| !is_empty(v)).collect();
            entries.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (at, (key, value)) in entries.into_iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
