//! The samples, applied the way people do.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrArray};
use kube::Api;
use memoria_operator::api::{
    MemoriaDecision, MemoriaRelease, crds,
    release::{DEFAULT_URL_ENV, MigrationMode, Mode, Role},
};
use serde_json::Value;

use crate::server::{read, server, text};

fn sample(name: &str) -> String {
    crate::root().join("tests/apiserver/samples").join(name).display().to_string()
}

#[tokio::test]
async fn samples_are_accepted_strictly_and_read_back_as_they_were_written() {
    let server = server();
    server.namespace("samples").await;
    for name in ["smallest.yaml", "complete.yaml", "abort.yaml"] {
        server.kubectl_ok(&["apply", "-n", "samples", "--validate=strict", "-f", &sample(name)]);
        // A second apply changes nothing: no default of the server fights with what was written.
        let version = ["get", "-n", "samples", "-f", &sample(name), "-o", "jsonpath={.metadata.resourceVersion}"];
        let before = server.kubectl_ok(&version);
        server.kubectl_ok(&["apply", "-n", "samples", "-f", &sample(name)]);
        assert_eq!(server.kubectl_ok(&version), before, "{name}");
    }
    let releases: Api<MemoriaRelease> = Api::namespaced(server.client(), "samples");
    let stored = releases.get("memoria-eu").await.unwrap();
    let written: MemoriaRelease = serde_saphyr::from_str(&read(sample("complete.yaml"))).unwrap();
    assert_eq!(stored.spec, written.spec);
    let decisions: Api<MemoriaDecision> = Api::namespaced(server.client(), "samples");
    assert_eq!(decisions.get("memoria-1-abort").await.unwrap().spec.attempt, "memoria-1");
    // By their short names, as people type them.
    let shown = server.shell("kubectl -n samples get mrel,mdec -o name");
    assert!(text(&shown.stdout).contains("/memoria-eu") && text(&shown.stdout).contains("/memoria-1-abort"));
}

#[tokio::test]
async fn the_server_fills_in_every_default_that_the_types_have() {
    let server = server();
    server.namespace("defaults").await;
    server.kubectl_ok(&["apply", "-n", "defaults", "-f", &sample("smallest.yaml")]);
    let releases: Api<MemoriaRelease> = Api::namespaced(server.client(), "defaults");
    let stored = releases.get("memoria").await.unwrap();
    let written: MemoriaRelease = serde_saphyr::from_str(&read(sample("smallest.yaml"))).unwrap();
    assert_eq!(stored.spec, written.spec, "the schema's defaults are the types' defaults");
    assert_eq!((stored.spec.mode, stored.spec.migrations.mode), (Mode::Apply, MigrationMode::All));
    assert_eq!(stored.spec.targets[0].role, Role::Server);
    assert_eq!(stored.spec.database.url_from.env.as_deref(), Some(DEFAULT_URL_ENV));

    let raw = server.kubectl_ok(&["get", "mrel", "memoria", "-n", "defaults", "-o", "json"]);
    let raw: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(raw["spec"]["timeouts"]["snapshot"], "1h");
    assert_eq!(raw["spec"]["snapshot"]["capacityFactor"], 3);
    assert_eq!(raw["spec"]["snapshot"]["portable"], true);
    assert_eq!(raw["spec"]["snapshot"]["retention"]["keepLast"], 3);
    assert_eq!(raw["spec"]["cli"]["command"][2], "memoria.cli");
    assert_eq!(raw["spec"].get("database"), None, "a union has no default that another member would meet");
}

#[tokio::test]
async fn another_source_of_the_url_can_be_applied_later_both_ways() {
    let server = server();
    server.namespace("url-source").await;
    let smallest = read(sample("smallest.yaml"));
    let changed = format!("{smallest}  database:\n    urlFrom:\n      secretKeyRef: {{name: memoria-db, key: url}}\n");
    for (name, how) in [("client", &["apply"][..]), ("server", &["apply", "--server-side"][..])] {
        for (step, yaml) in [("before", &smallest), ("after", &changed), ("back", &smallest)] {
            let file = server
                .file(&format!("url-{name}-{step}.yaml"), &yaml.replace("name: memoria\n", &format!("name: {name}\n")));
            server.kubectl_ok(&[how, &["-n", "url-source", "-f", &file]].concat());
        }
    }
}

#[tokio::test]
async fn a_null_is_the_same_as_nothing() {
    let server = server();
    server.namespace("nulls").await;
    let smallest = read(sample("smallest.yaml"));
    let nulls = "    container: null\n  snapshot: {storage: null}\n  jobs: {resources: null, tolerations: null}\n  timeouts: null\n";
    let file = server.file("nulls.yaml", &(smallest.clone() + nulls));
    server.kubectl_ok(&["create", "-n", "nulls", "-f", &file]);
    let releases: Api<MemoriaRelease> = Api::namespaced(server.client(), "nulls");
    let plain: MemoriaRelease = serde_saphyr::from_str(&smallest).unwrap();
    assert_eq!(releases.get("memoria").await.unwrap().spec, plain.spec);
}

#[tokio::test]
async fn an_unknown_field_is_refused() {
    let server = server();
    server.namespace("unknown").await;
    let file = server.file("unknown.yaml", &(read(sample("smallest.yaml")) + "  versions: \"1.0.1\"\n"));
    let refused = server.kubectl(&["apply", "-n", "unknown", "--validate=strict", "-f", &file]);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("unknown field \"spec.versions\""), "{}", text(&refused.stderr));
}

#[test]
fn the_complete_sample_has_every_field() {
    let sample: Value = serde_saphyr::from_str(&read(sample("complete.yaml"))).unwrap();
    let [_, release, _] = crds::all();
    let schema = release.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let mut missing = BTreeSet::new();
    lacks("spec", &schema.properties.as_ref().unwrap()["spec"], &[&sample["spec"]], &mut missing);
    // Set exactly one of env and secretKeyRef.
    missing.remove("spec.database.urlFrom.env");
    // And of persistentVolumeClaim and objectStore.
    missing.retain(|field| !field.starts_with("spec.snapshot.storage.persistentVolumeClaim"));
    assert_eq!(missing, BTreeSet::new());
}

/// The fields that none of these values has.
fn lacks(path: &str, schema: &JSONSchemaProps, values: &[&Value], missing: &mut BTreeSet<String>) {
    if values.is_empty() {
        missing.insert(path.to_owned());
    }
    for (name, child) in schema.properties.iter().flatten() {
        let inner: Vec<_> = values.iter().filter_map(|v| v.get(name)).collect();
        lacks(&format!("{path}.{name}"), child, &inner, missing);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        let inner: Vec<_> = values.iter().filter_map(|v| v.as_array()).flatten().collect();
        lacks(&format!("{path}[]"), items, &inner, missing);
    }
}
