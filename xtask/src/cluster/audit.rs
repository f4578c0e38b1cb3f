//! The API server's audit log: who wrote what. The API server's metrics do not know users, and this is how tests prove
//! that the operator writes nothing when there is nothing to do.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};

use super::layout::Layout;

/// Megabytes until the log is put aside, and how many of those stay.
const MAX_SIZE: u32 = 100;
const MAX_BACKUPS: u32 = 2;

pub fn write_policy(layout: &Layout) -> Result<()> {
    fs::create_dir_all(&layout.state)?;
    fs::write(layout.state.join("audit-policy.json"), serde_json::to_string_pretty(&policy())?)?;
    Ok(())
}

pub fn flags(layout: &Layout) -> Vec<String> {
    let path = |p: std::path::PathBuf| p.to_string_lossy().into_owned();
    [
        ("--audit-policy-file", path(layout.state.join("audit-policy.json"))),
        ("--audit-log-path", path(layout.audit_log())),
        ("--audit-log-maxsize", MAX_SIZE.to_string()),
        ("--audit-log-maxbackup", MAX_BACKUPS.to_string()),
        // A test asks right after the fact; blocking writes mean that the line is there when the answer is.
        ("--audit-log-mode", "blocking".to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

/// Writes of every user, with who, what and when but without bodies: those can hold secrets. The first rule that fits decides.
fn policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        // One line per request, when its outcome is known.
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            // Questions that are asked by `create` and leave nothing behind.
            {"level": "None", "resources": [
                {"group": "authentication.k8s.io", "resources": ["tokenreviews", "selfsubjectreviews"]},
                {"group": "authorization.k8s.io"},
            ]},
            // The nodes' heartbeats, several a second for ever.
            {"level": "None", "userGroups": ["system:nodes"], "resources": [
                {"group": "coordination.k8s.io", "resources": ["leases"]},
                {"group": "", "resources": ["nodes/status"]},
            ]},
            {"level": "None", "users": ["system:apiserver"], "resources": [
                {"group": "coordination.k8s.io", "resources": ["leases"]},
            ]},
            {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
            {"level": "None"},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_never_logged_and_reads_not_at_all() {
        let policy = policy();
        let rules = policy["rules"].as_array().unwrap();
        assert!(rules.iter().all(|r| r["level"] == "None" || r["level"] == "Metadata"));
        assert_eq!(rules.last().unwrap(), &json!({"level": "None"}));
        let logged: Vec<_> = rules.iter().filter(|r| r["level"] == "Metadata").collect();
        assert_eq!(logged.len(), 1);
        assert!(!logged[0]["verbs"].as_array().unwrap().iter().any(|v| v == "get" || v == "list" || v == "watch"));
    }

    #[test]
    fn no_rule_hides_the_writes_of_a_service_account() {
        for rule in policy()["rules"].as_array().unwrap() {
            let hides_writes = rule["level"] == "None" && rule.get("resources").is_some();
            let only_questions = rule.get("users").is_none() && rule.get("userGroups").is_none();
            if hides_writes && only_questions {
                for resource in rule["resources"].as_array().unwrap() {
                    assert!(resource["group"].as_str().unwrap().ends_with("ation.k8s.io"), "{resource}");
                }
            }
        }
    }
}
