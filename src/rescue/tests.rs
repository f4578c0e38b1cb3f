//! The script as it is printed, read by a shell, and what keeps one from being printed.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use k8s_openapi::api::batch::v1::Job;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Found, Looked, NotFound, RescueState, find, look, script, summary};
use crate::{
    job::protocol::{INPUT_ENV, JobInput},
    snapshot::{
        archive::ARCHIVE_ENV,
        manifest::{self, Manifest, RESCUE, StoredFile},
        sha256_hex,
    },
};

const UID: &str = "0c9e4a1e-5b1b-4a77-9d2e-9f7c0f5d8a10";

fn state() -> Value {
    let order = json!({"job": "restore", "database": {"attempt": "memoria-7", "releaseUid": UID,
        "identity": {"systemIdentifier": "7300000000000000001", "name": "memoria", "oid": 16384, "host": "db:5432"}},
        "directory": "memoria-0c9e4a1e/memoria-7", "failedDirectory": "memoria-0c9e4a1e/memoria-7/failed",
        "baselineDirectory": "memoria-0c9e4a1e/memoria-7/baseline", "dataLossBudgetRows": 0, "limitSeconds": 7200});
    json!({
        "v": 1, "namespace": "memoria", "release": "memoria", "releaseUid": UID, "attempt": "memoria-7",
        "from": "0.9.0", "to": "1.0.0", "engine": "Postgresql",
        "targets": [
            {"name": "dashboard", "role": "Dashboard", "workload": {"kind": "Deployment", "name": "memoria-dashboard"},
             "container": "dashboard", "fromImage": "registry.arca.run/memoria/dashboard:0.9.0",
             "fromDigest": "registry.arca.run/memoria/dashboard@sha256:22", "toImage": "registry.arca.run/memoria/dashboard:1.0.0@sha256:44",
             "replicas": 1},
            {"name": "server", "role": "Server", "workload": {"kind": "StatefulSet", "name": "memoria-server"},
             "container": "server", "fromImage": "registry.arca.run/memoria/server:0.9.0",
             "fromDigest": "registry.arca.run/memoria/server@sha256:11", "toImage": "registry.arca.run/memoria/server:1.0.0@sha256:33",
             "replicas": 2},
            {"name": "worker", "role": "Other", "workload": {"kind": "Deployment", "name": "memoria-worker"},
             "container": "worker", "fromImage": "registry.arca.run/memoria/server:0.9.0",
             "fromDigest": "registry.arca.run/memoria/server@sha256:11", "toImage": "registry.arca.run/memoria/server:1.0.0@sha256:33",
             "replicas": 3, "autoscaler": "memoria-worker", "worker": true},
        ],
        "workers": [
            {"workload": {"kind": "CronJob", "name": "memoria-consolidate"}, "uid": "w1", "replicas": 0, "suspend": false},
            {"workload": {"kind": "Job", "name": "memoria-import"}, "uid": "w2", "replicas": 0, "suspend": true},
            {"workload": {"kind": "ScaledObject", "name": "memoria-ingest"}, "uid": "w3", "replicas": 0,
             "scales": {"kind": "Deployment", "name": "memoria-ingest"}},
            {"workload": {"kind": "ScaledObject", "name": "memoria-server"}, "uid": "w4", "replicas": 0,
             "pausedReplicas": "2", "scales": {"kind": "StatefulSet", "name": "memoria-server"}},
        ],
        "maintenanceFlag": {"configMapKeyRef": {"name": "memoria-flags", "key": "maintenance"}, "onValue": "true", "offValue": "false"},
        "settings": {"output": {"name": "memoria-config", "key": "config.yaml"}, "keptIn": "memoria-7-config",
            "priorSha256": "aa", "newSha256": "bb"},
        "storage": {"claimName": "memoria-snapshots", "directory": "memoria-0c9e4a1e/memoria-7"},
        "restore": restore(&order, json!([{"name": "snapshots", "persistentVolumeClaim": {"claimName": "memoria-snapshots"}}])),
    })
}

fn restore(order: &Value, volumes: Value) -> Value {
    let labels = json!({"memoria.arca.run/release": "memoria", "memoria.arca.run/attempt": "memoria-7", "memoria.arca.run/step": "restore"});
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "memoria-7-restore", "namespace": "memoria", "labels": labels},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "volumes": volumes,
            "containers": [{"name": "main", "image": "registry.arca.run/memoria-operator/tools@sha256:55", "command": ["memoria-operator", "job"],
                "env": [{"name": "MEMORIA_OPERATOR_JOB", "value": order.to_string()},
                    {"name": "MEMORIA_OPERATOR_DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "memoria-db", "key": "url"}}}]}]}}}})
}

fn on_sqlite() -> Value {
    let order = json!({"job": "restore", "database": {"attempt": "memoria-7", "releaseUid": UID, "identity":
        {"systemIdentifier": "77c0ffee-0000-4000-8000-000000000001", "name": "memoria.db", "oid": 0, "host": "sqlite"}},
        "directory": "memoria-0c9e4a1e/memoria-7", "failedDirectory": "memoria-0c9e4a1e/memoria-7/failed",
        "dataLossBudgetRows": 0, "limitSeconds": 7200});
    let mut state = state();
    state["engine"] = json!("Sqlite");
    state["targets"] = json!([{"name": "server", "role": "Server", "workload": {"kind": "Deployment", "name": "memoria"},
        "container": "memoria", "fromImage": "registry.arca.run/memoria/server:0.9.0",
        "fromDigest": "registry.arca.run/memoria/server@sha256:11", "toImage": "registry.arca.run/memoria/server:1.0.0@sha256:33",
        "replicas": 1}]);
    state["workers"] = json!([]);
    state["restore"] =
        restore(&order, json!([{"name": "data-0", "persistentVolumeClaim": {"claimName": "memoria-data"}}]));
    for gone in ["maintenanceFlag", "settings"] {
        state.as_object_mut().unwrap().remove(gone);
    }
    state
}

/// A storage with one attempt in it.
fn stored(root: &Path, state: &Value, read_at: &str) {
    let directory = root.join(state["storage"]["directory"].as_str().unwrap());
    fs::create_dir_all(&directory).unwrap();
    let bytes = serde_json::to_vec(state).unwrap();
    fs::write(directory.join(RESCUE), &bytes).unwrap();
    let file = StoredFile { bytes: bytes.len() as u64, sha256: sha256_hex(&bytes) };
    let manifest: Manifest = serde_json::from_value(json!({
        "v": 1, "kind": "postgresql", "release": state["release"], "releaseUid": state["releaseUid"],
        "attempt": state["attempt"], "fromVersion": "0.9.0", "operatorVersion": "0.1.0",
        "identity": {"systemIdentifier": "7300000000000000001", "name": "memoria", "oid": 16384, "host": "db:5432"},
        "serverVersion": "15", "toolVersion": "15", "startedAt": read_at, "readAt": read_at, "finishedAt": read_at,
        "schemaFingerprint": "", "tables": {}, "sequences": {}, "dataDigest": "", "restoredInScratch": true,
        "files": {RESCUE: file},
    }))
    .unwrap();
    manifest::write(&directory, &manifest).unwrap();
}

fn found(state: &Value) -> Found {
    let root = tempfile::tempdir().unwrap();
    stored(root.path(), state, "2026-01-10T03:00:12Z");
    find(root.path(), None).unwrap()
}

fn reads(script: &str) {
    for shell in ["sh", "bash"] {
        let mut child = Command::new(shell).arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_script_is_this() {
    for (name, state) in [("script", state()), ("sqlite-script", on_sqlite())] {
        let script = script(&found(&state)).unwrap().replace(env!("CARGO_PKG_VERSION"), "VERSION");
        reads(&script);
        insta::assert_snapshot!(name, script);
    }
}

/// The Job as `kubectl apply` gets it.
fn job(script: &str, accept: &str) -> Job {
    let text = script.split("<<'RESTORE_JOB'").nth(1).unwrap();
    let text = text.split_once('\n').unwrap().1.split("\nRESTORE_JOB\n").next().unwrap();
    serde_json::from_str(&text.replace("@ACCEPT_DATA_LOSS@", accept)).unwrap()
}

#[test]
fn the_restore_job_is_the_pinned_one_with_its_input_and_without_an_owner() {
    let mut state = state();
    state["restore"]["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaUpgrade", "name": "memoria-7", "uid": "u"}]);
    let found = found(&state);
    let script = script(&found).unwrap();
    for (accept, accepted) in [("true", true), ("false", false)] {
        let job = job(&script, accept);
        assert_eq!(job.metadata.name.as_deref(), Some("memoria-7-rescue"));
        assert_eq!(job.metadata.owner_references, None);
        let labels = job.metadata.labels.unwrap();
        assert_eq!(labels.keys().collect::<Vec<_>>(), ["memoria.arca.run/rescue"]);
        let pod = job.spec.unwrap().template.spec.unwrap();
        let env = pod.containers[0].env.as_ref().unwrap();
        let input = env.iter().find(|entry| entry.name == INPUT_ENV).and_then(|entry| entry.value.as_ref()).unwrap();
        let expected = JobInput {
            manifest_sha256: Some(found.stored.sha256.clone()),
            late_writes_possible: true,
            accept_data_loss: accepted,
            ..JobInput::default()
        };
        assert_eq!(serde_json::from_str::<JobInput>(input).unwrap(), expected);
        let order = env.iter().find(|entry| entry.name == "MEMORIA_OPERATOR_JOB").and_then(|entry| entry.value.clone());
        assert_eq!(
            order.as_deref(),
            state["restore"]["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"].as_str()
        );
    }
}

#[test]
fn the_restore_job_reaches_a_bucket_and_its_keys_as_the_pinned_one_does() {
    let mut state = state();
    state["storage"] = json!({"url": "s3://backups/m", "directory": "memoria-0c9e4a1e/memoria-7", "encrypted": true});
    let pod = &mut state["restore"]["spec"]["template"]["spec"];
    pod["volumes"] = json!([
        {"name": "snapshots", "emptyDir": {}},
        {"name": "identity", "secret": {"secretName": "snap-key", "items": [{"key": "age.key", "path": "identity"}]}},
    ]);
    let key = json!({"name": "s3", "key": "AWS_SECRET_ACCESS_KEY"});
    let env = pod["containers"][0]["env"].as_array_mut().unwrap();
    env.push(json!({"name": ARCHIVE_ENV, "value": "s3://backups/m"}));
    env.push(json!({"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": key}}));
    let expected = pod.clone();
    let script = script(&found(&state)).unwrap();
    reads(&script);
    let place = "memoria-0c9e4a1e/memoria-7 in s3://backups/m (encrypted by age)";
    assert_eq!(script.matches(place).count(), 2, "{script}");
    let printed = job(&script, "false").spec.unwrap().template.spec.unwrap();
    let mut printed = serde_json::to_value(printed).unwrap();
    let with_input = printed["containers"][0]["env"].as_array_mut().unwrap();
    assert_eq!(with_input.pop().unwrap()["name"], INPUT_ENV);
    assert_eq!(printed, expected);
}

#[test]
fn an_encrypted_directory_is_told_from_a_damaged_one() {
    let root = tempfile::tempdir().unwrap();
    stored(root.path(), &state(), "2026-01-10T03:00:12Z");
    let directory = root.path().join("memoria-0c9e4a1e/memoria-7");
    fs::rename(directory.join(RESCUE), directory.join(format!("{RESCUE}.age"))).unwrap();
    let error = find(root.path(), None).unwrap_err();
    assert!(matches!(error, NotFound::Encrypted(_)), "{error}");
    let fetch = format!("memoria-operator snapshot fetch {} DIR --identity-file FILE", directory.display());
    assert!(error.to_string().contains(&fetch), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_a_value_holds_the_shell_can_read_the_script_and_runs_nothing_of_it(value in "(?s)['\"$`\\\\\n ;&|<>()a-z#*\u{1b}]{1,30}") {
        let mut state = state();
        let value = format!("{value}$(touch /nowhere/pwned)`exit 7`'");
        for place in ["/release", "/from", "/to", "/namespace", "/targets/0/container", "/targets/1/fromImage",
            "/targets/1/fromDigest", "/targets/1/workload/name", "/workers/0/workload/name", "/workers/3/pausedReplicas",
            "/maintenanceFlag/configMapKeyRef/key", "/maintenanceFlag/offValue", "/settings/output/key", "/settings/keptIn",
            "/settings/priorSha256", "/settings/newSha256"] {
            *state.pointer_mut(place).unwrap() = json!(value);
        }
        let script = script(&found(&state)).unwrap();
        reads(&script);
        // Run for real, with a kubectl that does nothing: only what is quoted wrongly would do anything else.
        let bin = tempfile::tempdir().unwrap();
        let log = bin.path().join("log");
        fs::write(bin.path().join("kubectl"), "#!/bin/sh\nprintf '%s\\n' \"$*\" >>\"$LOG\"\ncase \"$*\" in *subresource=scale*) echo app=x ;; *--selector=app=x*) ;; *job.batch*|*job/*) echo complete ;; esac\ncat >/dev/null </dev/null\n").unwrap();
        fs::set_permissions(bin.path().join("kubectl"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", bin.path().display());
        let output = Command::new("sh").args(["-c", &script]).env("PATH", path).env("LOG", &log).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        prop_assert!(output.status.success(), "{}", said);
        prop_assert!(!said.contains("nowhere") && !said.contains("not found"), "{}", said);
        let said = fs::read_to_string(&log).unwrap();
        prop_assert!(said.contains("scale deployment.apps/memoria-dashboard --replicas=0"), "{}", said);
    }
}

#[test]
fn the_newest_attempt_is_taken_and_the_others_are_named() {
    let root = tempfile::tempdir().unwrap();
    let mut older = state();
    older["attempt"] = json!("memoria-6");
    older["storage"]["directory"] = json!("memoria-0c9e4a1e/memoria-6");
    stored(root.path(), &older, "2026-01-09T03:00:12Z");
    stored(root.path(), &state(), "2026-01-10T03:00:12Z");
    let newest = find(root.path(), None).unwrap();
    assert_eq!(newest.state.attempt, "memoria-7");
    let looked = Looked::Not("no URL".to_owned());
    let said = summary(root.path(), &newest, &looked);
    assert!(said.contains("memoria-6") && said.contains("not looked at (no URL)"), "{said}");
    for wanted in ["memoria-6", "memoria-0c9e4a1e/memoria-6"] {
        assert_eq!(find(root.path(), Some(wanted)).unwrap().state.attempt, "memoria-6");
    }
    // A copy of one directory is enough.
    assert_eq!(find(&root.path().join("memoria-0c9e4a1e/memoria-6"), None).unwrap().state.attempt, "memoria-6");
    let error = find(root.path(), Some("memoria-5")).unwrap_err().to_string();
    assert!(error.contains("memoria-6 (") && error.contains("memoria-7 ("), "{error}");
}

#[test]
fn an_attempt_of_the_same_name_of_another_release_must_be_told_apart() {
    let root = tempfile::tempdir().unwrap();
    stored(root.path(), &state(), "2026-01-10T03:00:12Z");
    let mut other = state();
    other["releaseUid"] = json!("another");
    other["storage"]["directory"] = json!("memoria-another0/memoria-7");
    stored(root.path(), &other, "2026-01-11T03:00:12Z");
    let error = find(root.path(), Some("memoria-7")).unwrap_err();
    assert!(matches!(error, NotFound::Several { .. }), "{error}");
    assert_eq!(find(root.path(), Some("memoria-another0/memoria-7")).unwrap().state.release_uid, "another");
}

#[test]
fn what_is_damaged_or_missing_is_refused_with_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let error = find(root.path(), None).unwrap_err().to_string();
    assert!(error.contains("no attempt in") && error.contains("--storage"), "{error}");
    let error = find(&root.path().join("nowhere"), None).unwrap_err().to_string();
    assert!(error.contains("cannot be read") && error.contains("mount"), "{error}");

    stored(root.path(), &state(), "2026-01-10T03:00:12Z");
    let file = root.path().join("memoria-0c9e4a1e/memoria-7").join(RESCUE);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("memoria/server:0.9.0", "memoria/server:6.6.6")).unwrap();
    let error = find(root.path(), None).unwrap_err().to_string();
    assert!(error.contains(RESCUE) && error.contains("do not restore"), "{error}");
}

#[tokio::test]
async fn without_a_url_the_markers_are_not_looked_at_and_it_says_so() {
    let state: RescueState = serde_json::from_value(state()).unwrap();
    let said = look(&state, None).await.to_string();
    assert!(said.contains("MEMORIA_OPERATOR_DATABASE_URL is not set") && said.contains("attempt_step"), "{said}");
}
