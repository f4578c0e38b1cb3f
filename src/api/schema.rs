//! Pieces of schema that the types cannot say by themselves.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Takes a default out of the schema: the operator knows it, the API server does not write it into the object. For
/// unions, where a default that nobody wrote would stand beside the field that the next apply sets.
pub(super) fn not_written(schema: &mut Schema) {
    schema.remove("default");
}

/// Any value, kept as it is. Without a type on purpose: of a typed object the API server's rule `self == oldSelf` does
/// not see that one unknown field went and another came.
pub(super) fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// The conditions that API conventions know, with a size.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {"type": "string", "maxLength": 64, "description": "What it is about. Example: `Ready`."},
                "status": {
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                    "description": "Whether it is so."
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "The `metadata.generation` that it speaks of."
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When its status last changed."
                },
                "reason": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 64,
                    "description": "Why, in one CamelCase word that programs may rely on. Example: `Progressing`."
                },
                "message": {
                    "type": "string",
                    "maxLength": 4096,
                    "description": "Why, for people: what is awaited, or what is wrong and what to do."
                }
            }
        }
    })
}

/// Requests and limits of a container, without the claims of dynamic resource allocation: a Job's pod has none.
pub(super) fn resources(_: &mut SchemaGenerator) -> Schema {
    let amounts = |what: &str| {
        json_schema!({
            "type": "object",
            "maxProperties": 16,
            "description": what,
            "additionalProperties": {
                "x-kubernetes-int-or-string": true,
                "description": "An amount as Kubernetes writes it. Example: `500m`, `2Gi`.",
                "maxLength": 32,
                "pattern": r"^[+]?([0-9]+([.][0-9]*)?|[.][0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$"
            }
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": amounts("What the scheduler sets aside, by resource. Example: `{cpu: 250m, memory: 512Mi}`. Default: the limits."),
            "limits": amounts("What the container may use at most, by resource. Example: `{memory: 2Gi}`. Default: no limit.")
        }
    })
}

/// Tolerations of a pod.
pub(super) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": {
            "type": "object",
            "properties": {
                "key": {
                    "type": "string",
                    "maxLength": 317,
                    "description": "The taint's key. Default: every key, with operator Exists. Example: `dedicated`."
                },
                "operator": {
                    "type": "string",
                    "enum": ["Exists", "Equal"],
                    "description": "How value is compared. Default: Equal."
                },
                "value": {
                    "type": "string",
                    "maxLength": 63,
                    "description": "The taint's value, with operator Equal. Default: empty. Example: `memoria`."
                },
                "effect": {
                    "type": "string",
                    "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
                    "description": "The taint's effect. Default: every effect."
                },
                "tolerationSeconds": {
                    "type": "integer",
                    "format": "int64",
                    "description": "How long NoExecute is tolerated, in seconds. Default: for ever."
                }
            }
        }
    })
}

/// Labels that a node must have.
pub(super) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63}
    })
}

/// A time limit that leaves its part a chance.
pub(super) fn limit(schema: &mut Schema) {
    let rule = serde_json::json!([{
        "rule": "duration(self) >= duration('30s')",
        "message": "a limit below 30s fails every upgrade; write at least 30s"
    }]);
    schema.insert("x-kubernetes-validations".to_owned(), rule);
}
