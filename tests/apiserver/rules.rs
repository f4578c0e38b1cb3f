//! Every rule of every kind: what breaks it is refused with its message, and what the message asks for is accepted.

use std::collections::BTreeSet;

use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, PostParams},
};
use memoria_operator::api::crds;
use serde_json::{Value, json};

use crate::server::server;

/// Values set in the sample of their kind: a path of object keys and list positions, and what is put there.
type Edits<'a> = &'a [(&'a str, Value)];

pub fn release() -> Value {
    json!({
        "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaRelease", "metadata": {"name": "memoria"},
        "spec": {
            "version": "1.0.0",
            "targets": [{"name": "server", "role": "Server", "workloadRef": {"kind": "Deployment", "name": "memoria"}}]
        }
    })
}

fn decision() -> Value {
    json!({
        "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaDecision", "metadata": {"name": "abort"},
        "spec": {"releaseName": "memoria", "action": "Abort", "attempt": "memoria-1", "reason": "withdrawn"}
    })
}

pub fn upgrade() -> Value {
    let sha = "0".repeat(64);
    json!({
        "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaUpgrade", "metadata": {"name": "memoria-1"},
        "spec": {
            "machineVersion": 1, "releaseName": "memoria", "releaseUid": "c7e4", "releaseGeneration": 2, "run": "memoria-p1",
            "planHash": sha, "operatorVersion": "0.1.0", "from": "0.9.0", "to": "1.0.0",
            "targets": [{
                "name": "server", "role": "Server", "workload": {"kind": "Deployment", "name": "memoria"},
                "uid": "a1b2", "container": "server", "fromImage": "memoria/server:0.9.0",
                "fromDigest": format!("memoria/server@sha256:{sha}"), "toImage": "memoria/server:1.0.0",
                "replicas": 2, "worker": false,
                "candidate": {"kind": "Pod", "spec": {"containers": [{"name": "server"}]}}
            }],
            "workers": [{"workload": {"kind": "Deployment", "name": "ingest"}, "uid": "c3d4", "replicas": 3}],
            "database": {
                "major": 15, "bytes": 1024,
                "identity": {"systemIdentifier": "7300", "name": "memoria", "oid": 16384, "host": "db:5432"}
            },
            "storage": {"claimName": "memoria-snapshots", "directory": "memoria-c7e4/memoria-1"},
            "migrations": ["add_consents"], "timeouts": {}, "gateSeconds": 0,
            "jobs": [{"step": "snapshot", "manifest": {"kind": "Job", "spec": {"template": {"spec": {"nodeName": "a"}}}}}],
            "checks": [{"name": "claims", "result": "Passed", "message": "two targets claimed"}]
        }
    })
}

fn check(within: &str, every: &str, stable_for: &str) -> Value {
    json!([{
        "name": "depth", "stage": "AfterIngestion", "passWhen": "status == 200", "within": within, "every": every,
        "stableFor": stable_for, "http": {"url": "http://queue/depth"}
    }])
}

fn check_of(url: &str) -> Value {
    json!([{"name": "depth", "stage": "AfterIngestion", "passWhen": "status == 200", "http": {"url": url}}])
}

/// A check with these fields beside the ones that it must have; null takes one away.
fn one_check(fields: Value) -> Value {
    let mut check = json!({"name": "one", "stage": "AfterIngestion", "passWhen": "true"});
    for (key, value) in fields.as_object().unwrap() {
        match value {
            Value::Null => drop(check.as_object_mut().unwrap().remove(key)),
            value => check[key] = value.clone(),
        }
    }
    json!([check])
}

/// Snapshots in a bucket.
fn bucket(url: &str, endpoint: Value) -> Value {
    json!({"storage": {"objectStore": {"url": url, "endpoint": endpoint}}})
}

fn target(name: &str, workload: &str, container: Option<&str>) -> Value {
    let mut target = json!({"name": name, "role": "Other", "workloadRef": {"kind": "Deployment", "name": workload}});
    if let Some(container) = container {
        target["container"] = json!(container);
    }
    target
}

fn server_target(container: Option<&str>) -> Value {
    let mut target = target("server", "memoria", container);
    target["role"] = json!("Server");
    target
}

/// Returns the message of the rule that it tried.
async fn tried(message: &str, sample: Value, wrong: Edits<'_>, right: Edits<'_>) -> String {
    let refusal = create(&edited(&sample, wrong)).await.expect_err(message);
    assert!(refusal.contains(message), "expected {message:?}, got {refusal}");
    assert_eq!(create(&edited(&sample, right)).await, Ok(()), "the fix for {message:?}");
    message.to_owned()
}

fn edited(sample: &Value, edits: Edits<'_>) -> Value {
    let mut value = sample.clone();
    for (path, new) in edits {
        let mut at = &mut value;
        for step in path.split('.') {
            at = match step.parse::<usize>() {
                Ok(n) => &mut at[n],
                Err(_) => &mut at[step],
            };
        }
        *at = new.clone();
    }
    value
}

fn api(object: &Value) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("memoria.arca.run", "v1alpha1", object["kind"].as_str().unwrap());
    Api::default_namespaced_with(server().client(), &ApiResource::from_gvk(&kind))
}

/// Lets the server validate it and keep nothing.
async fn create(object: &Value) -> Result<(), String> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let parsed = serde_json::from_value(object.clone()).unwrap();
    api(object).create(&dry_run, &parsed).await.map(|_| ()).map_err(|e| e.to_string())
}

/// Stores one and tries to change it.
async fn replace(object: &Value, edits: Edits<'_>) -> Result<(), String> {
    let api = api(object);
    let name = object["metadata"]["name"].as_str().unwrap();
    if api.get_opt(name).await.unwrap().is_none() {
        api.create(&PostParams::default(), &serde_json::from_value(object.clone()).unwrap()).await.unwrap();
    }
    let stored = serde_json::to_value(api.get(name).await.unwrap()).unwrap();
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let changed = serde_json::from_value(edited(&stored, edits)).unwrap();
    api.replace(name, &dry_run, &changed).await.map(|_| ()).map_err(|e| e.to_string())
}

#[tokio::test]
async fn each_rule_refuses_with_its_message_and_accepts_what_it_asks_for() {
    let version = "name one release, e.g. version: \"1.0.0\"; a tag that moves (latest, ga, stable, 1) could not be rolled back to";
    let mut seen = BTreeSet::from([
        tried(
            "Job names are built from it: metadata.name has at most 32 characters",
            release(),
            &[("metadata.name", json!("m".repeat(33)))],
            &[("metadata.name", json!("m".repeat(32)))],
        )
        .await,
        tried(version, release(), &[("spec.version", json!("latest"))], &[("spec.version", json!("v1.0.0-rc.1"))])
            .await,
        tried(version, release(), &[("spec.version", json!("1"))], &[("spec.version", json!("1.0"))]).await,
        tried(
            "set role: Server on exactly one target; its image runs the migrations",
            release(),
            &[("spec.targets.0.role", json!("Dashboard"))],
            &[("spec.targets.0.role", json!("Server"))],
        )
        .await,
        tried(
            "two targets name the same container; name each workload and container once",
            release(),
            &[("spec.targets", json!([server_target(None), target("copy", "memoria", None)]))],
            &[("spec.targets", json!([server_target(Some("a")), target("copy", "memoria", Some("b"))]))],
        )
        .await,
        tried(
            "repository takes no tag or digest; set tag or digest beside it",
            release(),
            &[("spec.targets.0.image", json!({"repository": "host:5000/memoria/server:1.0.0"}))],
            &[("spec.targets.0.image", json!({"repository": "host:5000/memoria/server", "tag": "1.0.0"}))],
        )
        .await,
        tried(
            "this tag moves, so a rollback could not name it; write a release's tag",
            release(),
            &[("spec.targets.0.image", json!({"tag": "ga"}))],
            &[("spec.targets.0.image", json!({"tag": "ga-1.0.0"}))],
        )
        .await,
        tried(
            "set exactly one of env and secretKeyRef",
            release(),
            &[("spec.database", json!({"urlFrom": {"env": "URL", "secretKeyRef": {"name": "db", "key": "url"}}}))],
            &[("spec.database", json!({"urlFrom": {"secretKeyRef": {"name": "db", "key": "url"}}}))],
        )
        .await,
        tried(
            "set exactly one of env and secretKeyRef",
            release(),
            &[("spec.database", json!({"urlFrom": {}}))],
            &[("spec.database", json!({"urlFrom": {"env": "URL", "secretKeyRef": null}}))],
        )
        .await,
        tried(
            "output is overwritten; use another key than overrides",
            release(),
            &[(
                "spec.config",
                json!({"output": {"configMapKeyRef": {"name": "c", "key": "k"}}, "overrides": {"configMapKeyRef": {"name": "c", "key": "k"}}}),
            )],
            &[(
                "spec.config",
                json!({"output": {"configMapKeyRef": {"name": "c", "key": "k"}}, "overrides": {"configMapKeyRef": {"name": "c", "key": "o"}}}),
            )],
        )
        .await,
        tried(
            "onValue and offValue are the same; the flag could not be told apart",
            release(),
            &[(
                "spec.ingestion",
                json!({"maintenanceFlag": {"configMapKeyRef": {"name": "f", "key": "m"}, "onValue": "false"}}),
            )],
            &[(
                "spec.ingestion",
                json!({"maintenanceFlag": {"configMapKeyRef": {"name": "f", "key": "m"}, "onValue": "yes"}}),
            )],
        )
        .await,
        tried(
            "stableFor has to be shorter than within, or the check can never pass",
            release(),
            &[("spec.checks", check("1m", "5s", "60s"))],
            &[("spec.checks", check("1m", "5s", "59s"))],
        )
        .await,
        tried(
            "within is the time that the check has to pass: at least 1s",
            release(),
            &[("spec.checks", check("0s", "5s", "0s"))],
            &[("spec.checks", check("1s", "5s", "0s"))],
        )
        .await,
        tried(
            "every is the time between two samples: at least 1s",
            release(),
            &[("spec.checks", check("1m", "0s", "0s"))],
            &[("spec.checks", check("1m", "1s", "0s"))],
        )
        .await,
        tried(
            "write a whole URL, e.g. http://memoria-server:8000/settings",
            release(),
            &[("spec.checks", check_of("memoria-server:8000/settings"))],
            &[("spec.checks", check_of("http://memoria-server:8000/settings"))],
        )
        .await,
        tried(
            "URLs carry no credentials; use headersFrom",
            release(),
            &[("spec.checks", check_of("https://me:secret@queue/depth"))],
            &[("spec.checks", check_of("https://queue/depth?a=1"))],
        )
        .await,
        tried(
            "set exactly one of http, prometheus, sql and job",
            release(),
            &[("spec.checks", one_check(json!({"http": {"url": "http://q/"}, "sql": {"query": "SELECT 1"}})))],
            &[("spec.checks", one_check(json!({"sql": {"query": "SELECT 1"}})))],
        )
        .await,
        tried(
            "set exactly one of http, prometheus, sql and job",
            release(),
            &[("spec.checks", job_check(json!({"http": {"url": "http://q/"}})))],
            &[("spec.checks", job_check(json!({})))],
        )
        .await,
        tried(
            "set exactly one of http, prometheus, sql and job",
            release(),
            &[("spec.checks", one_check(json!({})))],
            &[("spec.checks", job_check(json!({"stage": "BeforeIngestion"})))],
        )
        .await,
        tried(
            "say what passes, e.g. passWhen: value < 100.0",
            release(),
            &[("spec.checks", one_check(json!({"passWhen": null, "sql": {"query": "SELECT 1"}})))],
            &[("spec.checks", one_check(json!({"sql": {"query": "SELECT 1"}})))],
        )
        .await,
        tried(
            "a job passes when it completes: leave passWhen out, and let the job end with another exit code than 0",
            release(),
            &[("spec.checks", job_check(json!({"passWhen": "value == 0.0"})))],
            &[("spec.checks", job_check(json!({"stage": "PreFlight"})))],
        )
        .await,
        tried(
            "draining follows a number, and a job gives none: raise within instead",
            release(),
            &[("spec.checks", job_check(json!({"draining": "20m"})))],
            &[("spec.checks", job_check(json!({"within": "30m", "stage": "IngestionReenable"})))],
        )
        .await,
        tried(
            "draining follows a number: give http.valueOf",
            release(),
            &[("spec.checks", one_check(json!({"draining": "20m", "http": {"url": "http://q/"}})))],
            &[(
                "spec.checks",
                one_check(json!({"draining": "20m", "http": {"url": "http://q/", "valueOf": "body.n"}})),
            )],
        )
        .await,
        tried(
            "the host candidate stands for the candidate pod, which exists at stage BeforeIngestion only",
            release(),
            &[("spec.checks", one_check(json!({"http": {"url": "http://candidate:8000/"}})))],
            &[(
                "spec.checks",
                one_check(json!({"stage": "BeforeIngestion", "http": {"url": "http://candidate:8000/"}})),
            )],
        )
        .await,
        tried(
            "freshWithin is the greatest age of the data: at least 1s",
            release(),
            &[("spec.checks", one_check(json!({"freshWithin": "0s", "http": {"url": "http://q/"}})))],
            &[("spec.checks", one_check(json!({"freshWithin": "1s", "http": {"url": "http://q/"}})))],
        )
        .await,
        tried(
            "write a whole URL, e.g. http://prometheus.monitoring:9090",
            release(),
            &[("spec.checks", one_check(json!({"prometheus": {"url": "prometheus:9090", "query": "up"}})))],
            &[("spec.checks", one_check(json!({"prometheus": {"url": "http://prometheus:9090", "query": "up"}})))],
        )
        .await,
        tried(
            "set exactly one of persistentVolumeClaim and objectStore",
            release(),
            &[("spec.snapshot", json!({"storage": {}}))],
            &[("spec.snapshot", json!({"storage": {"persistentVolumeClaim": {"claimName": "c"}}}))],
        )
        .await,
        tried(
            "set exactly one of persistentVolumeClaim and objectStore",
            release(),
            &[(
                "spec.snapshot",
                json!({"storage": {"persistentVolumeClaim": {"claimName": "c"}, "objectStore": {"url": "s3://backups"}}}),
            )],
            &[("spec.snapshot", bucket("s3://backups", Value::Null))],
        )
        .await,
        tried(
            "maxAge is the age from which on a snapshot goes: at least 1h",
            release(),
            &[("spec.snapshot", json!({"retention": {"maxAge": "59m"}}))],
            &[("spec.snapshot", json!({"retention": {"maxAge": "1h"}}))],
        )
        .await,
        tried(
            "names goes with mode: Named, and only with it",
            release(),
            &[("spec.migrations", json!({"names": ["add_consents"]}))],
            &[("spec.migrations", json!({"mode": "Named", "names": ["add_consents"]}))],
        )
        .await,
        tried(
            "names goes with mode: Named, and only with it",
            release(),
            &[("spec.migrations", json!({"mode": "Named"}))],
            &[("spec.migrations", json!({"mode": "None"}))],
        )
        .await,
        tried(
            "say why; auditors read it",
            decision(),
            &[("spec.reason", json!(""))],
            &[("spec.reason", json!("the vendor withdrew 1.0.0"))],
        )
        .await,
    ]);
    for part in ["preFlight", "quiesce", "snapshot", "migrate", "rollout", "verification", "rollback", "hold"] {
        let message = "a limit below 30s fails every upgrade; write at least 30s";
        let limit = |value: &str| [("spec.timeouts", json!({part: value}))];
        seen.insert(tried(message, release(), &limit("29s"), &limit("1h30s")).await);
    }
    for wrong in [
        "https://backups.s3.amazonaws.com/m",
        "s3://",
        "s3://b/m",
        "s3://Backups/m",
        "s3://key:secret@backups/m",
        "s3://backups//m",
        "s3://backups/../m",
        "s3://backups/$(HOME)",
        "s3://backups/m?versionId=1",
    ] {
        let message = "write s3://bucket/prefix: a bucket's name has 3 to 63 of a-z, 0-9, dots and hyphens; parts of the prefix have letters, digits and ._=+- and do not begin with a dot";
        let edit = |url: &str| [("spec.snapshot", bucket(url, Value::Null))];
        seen.insert(tried(message, release(), &edit(wrong), &edit("s3://my.backups-1/memoria/eu_1.a=b/")).await);
    }
    for wrong in ["minio:9000", "ftp://minio", "https://me:secret@minio", "http://$(HOST)", "https://minio/?a=b"] {
        let message =
            "write scheme, host and port, e.g. https://minio.example:9000; credentials come from credentialsSecretRef";
        let edit = |endpoint: &str| [("spec.snapshot", bucket("s3://backups", json!(endpoint)))];
        for right in ["http://minio.storage:9000", "https://[2001:db8::1]:9000/s3"] {
            seen.insert(tried(message, release(), &edit(wrong), &edit(right)).await);
        }
    }
    seen.extend(immutable().await);

    let mut rules = BTreeSet::new();
    for crd in crds::all() {
        messages(&serde_json::to_value(crd).unwrap(), &mut rules);
    }
    assert_eq!(seen, rules, "a rule without a case, or a case without a rule");
}

/// Specs that nobody may change; the empty edit is the correction.
async fn immutable() -> [String; 2] {
    let edited_decision = "a decision cannot be edited; create another";
    let refusal = replace(&decision(), &[("spec.reason", json!("another"))]).await.unwrap_err();
    assert!(refusal.contains(edited_decision), "{refusal}");
    assert_eq!(replace(&decision(), &[("metadata.labels", json!({"seen": "by-us"}))]).await, Ok(()));

    let edited_plan = "a plan cannot be edited; change the MemoriaRelease, which plans anew";
    let edits: [Edits<'_>; 5] = [
        &[("spec.to", json!("1.0.1"))],
        &[("spec.workers.0.replicas", json!(0))],
        &[("spec.migrations", json!([]))],
        // What the schema does not know is part of the plan, too.
        &[("spec.jobs.0.manifest.spec.template.spec.nodeName", json!("b"))],
        &[("spec.targets.0.candidate", json!({"kind": "Pod", "metadata": {"containers": [{"name": "server"}]}}))],
    ];
    for edit in edits {
        let refusal = replace(&upgrade(), edit).await.expect_err(&format!("{edit:?}"));
        assert!(refusal.contains(edited_plan), "{edit:?}: {refusal}");
    }
    assert_eq!(replace(&upgrade(), &[("metadata.labels", json!({"seen": "by-us"}))]).await, Ok(()));
    [edited_decision.to_owned(), edited_plan.to_owned()]
}

/// A check that runs a CronJob's template, with these fields beside the ones that it must have.
fn job_check(fields: Value) -> Value {
    let mut all = json!({"passWhen": null, "job": {"templateRef": {"name": "smoke-test"}}});
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    one_check(all)
}

/// The messages of all rules in a definition.
fn messages(value: &Value, found: &mut BTreeSet<String>) {
    if let Some(rules) = value.get("x-kubernetes-validations").and_then(Value::as_array) {
        found.extend(rules.iter().map(|rule| rule["message"].as_str().unwrap().to_owned()));
    }
    match value {
        Value::Object(map) => map.values().for_each(|child| messages(child, found)),
        Value::Array(list) => list.iter().for_each(|child| messages(child, found)),
        _ => {}
    }
}
