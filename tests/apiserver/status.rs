//! Status as kstatus and kubectl read it.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use memoria_operator::api::{
    MemoriaRelease, MemoriaReleaseStatus, MemoriaUpgrade, MemoriaUpgradeStatus, conditions,
    release::{
        CheckResult, Current, CurrentImage, IngestionState, IngestionStatus, PlanSummary, PreFlightStatus, Verdict,
    },
    settings::{ConfigRecord, ConfigReport, ConfigState},
    upgrade::{Estimates, PhaseRecord, PhaseState},
};
use serde_json::{Value, json};

use crate::{
    rules::{release, upgrade},
    server::{server, text},
};

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: Some(1),
        last_transition_time: Time(Timestamp::from_second(1_795_000_000).unwrap()),
    }
}

/// Now; objects keep whole seconds.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

async fn stored(namespace: &str) -> Api<MemoriaRelease> {
    let server = server();
    server.namespace(namespace).await;
    let releases: Api<MemoriaRelease> = Api::namespaced(server.client(), namespace);
    let object = serde_json::from_value(release()).unwrap();
    releases.create(&PostParams::default(), &object).await.unwrap();
    releases
}

async fn write(releases: &Api<MemoriaRelease>, status: &MemoriaReleaseStatus) -> Result<MemoriaRelease, kube::Error> {
    let patch = Patch::Merge(json!({"status": status}));
    releases.patch_status("memoria", &PatchParams::default(), &patch).await
}

#[tokio::test]
async fn a_stopped_release_shows_in_the_columns_and_in_wait() {
    let server = server();
    let releases = stored("columns").await;
    let message = "MIGRATE runs";
    let status = MemoriaReleaseStatus {
        observed_generation: Some(1),
        phase: Some("Migrate".to_owned()),
        conditions: vec![
            condition(conditions::READY, "Unknown", conditions::reason::PROGRESSING, message),
            condition(conditions::RECONCILING, "True", conditions::reason::PROGRESSING, message),
        ],
        current: Some(Current { version: "0.9.0".to_owned(), images: Vec::new(), ..Current::default() }),
        ingestion: Some(IngestionStatus {
            state: IngestionState::Stopped,
            stopped_since: Some(Time(now() - k8s_openapi::jiff::SignedDuration::from_secs(120))),
        }),
        ..MemoriaReleaseStatus::default()
    };
    let written = write(&releases, &status).await.unwrap();
    assert_eq!(written.metadata.generation, Some(1), "a status write is no new generation");
    assert_eq!(written.status, Some(status.clone()));

    let table = server.kubectl_ok(&["get", "mrel", "-n", "columns", "-o", "wide"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let heads =
        ["NAME", "READY", "PHASE", "CURRENT", "TARGET", "INGESTION", "STOPPED", "HELD", "AGE", "REASON", "MESSAGE"];
    assert_eq!(rows[0], heads);
    assert_eq!(rows[1][..6], ["memoria", "Unknown", "Migrate", "0.9.0", "1.0.0", "Stopped"]);
    assert!(["2m", "119s", "2m1s", "2m2s"].iter().any(|age| rows[1][6].starts_with(age)), "{table}");
    assert_eq!(rows[1][8..], ["Progressing", "MIGRATE", "runs"]);
    server.kubectl_ok(&["wait", "-n", "columns", "mrel/memoria", "--for=condition=Reconciling", "--timeout=5s"]);

    // Only a changed spec is a new generation, which is how clients see that the status is behind.
    let patch = Patch::Merge(json!({"spec": {"suspend": true}}));
    let changed = releases.patch("memoria", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
    assert_eq!(changed.status, Some(status), "the spec's endpoint leaves the status alone");
}

#[tokio::test]
async fn a_condition_has_a_status_that_clients_know_and_a_type_once() {
    let releases = stored("conditions").await;
    let with = |conditions| MemoriaReleaseStatus { conditions, ..MemoriaReleaseStatus::default() };
    let odd = write(&releases, &with(vec![condition("Ready", "Yes", "Adopted", "")])).await.unwrap_err().to_string();
    assert!(odd.contains("supported values: \"True\", \"False\", \"Unknown\""), "{odd}");
    let ready = condition("Ready", "True", "Adopted", "");
    let twice = write(&releases, &with(vec![ready.clone(), ready])).await.unwrap_err().to_string();
    assert!(twice.contains("Duplicate value"), "{twice}");
    let empty = write(&releases, &with(vec![condition("Ready", "True", "", "")])).await.unwrap_err().to_string();
    assert!(empty.contains("reason"), "{empty}");
}

#[tokio::test]
async fn the_fullest_status_fits_with_room_to_spare() {
    let releases = stored("fullest").await;
    let checks: Vec<_> = (0..64)
        .map(|n| CheckResult { name: format!("check-{n}"), result: Verdict::Failed, message: "m".repeat(1024) })
        .collect();
    let image = |n| CurrentImage { target: format!("t{n}"), image: "i".repeat(300), digest: Some("d".repeat(71)) };
    let status = MemoriaReleaseStatus {
        conditions: (0..5).map(|n| condition(&format!("C{n}"), "True", "R", &"m".repeat(1024))).collect(),
        current: Some(Current {
            version: "1.0.0".to_owned(),
            images: (0..8).map(image).collect(),
            ..Current::default()
        }),
        pre_flight: Some(PreFlightStatus {
            run: "memoria-p1".to_owned(),
            started_at: Time(now()),
            finished_at: None,
            checks: checks.clone(),
            plan: Some(PlanSummary {
                hash: "9f2c41d79f2c".to_owned(),
                from: "0.9.0".to_owned(),
                to: "1.0.0".to_owned(),
                images: (0..8).map(image).collect(),
                migrations: (0..256).map(|n| format!("{n:0>128}")).collect(),
                database: "PostgreSQL 15".to_owned(),
                config: Some("3 defaults adopted, 2 overrides kept, 0 obsolete".into()),
                stops: (0..32).map(|n| format!("{n:0>253}")).collect(),
                inferred: (0..32).map(|n| format!("{n:0>253}")).collect(),
                estimates: Some(Estimates { snapshot_seconds: 9, migrate_seconds: 3, restore_seconds: 12 }),
                warnings: (0..8).map(|n| format!("{n:0>1024}")).collect(),
            }),
        }),
        ..MemoriaReleaseStatus::default()
    };
    let written = write(&releases, &status).await.unwrap();
    assert!(written.status == Some(status), "something of it was not stored");
    let bytes = serde_json::to_vec(&written).unwrap().len();
    assert!(bytes < 256 * 1024, "{bytes} bytes");

    let upgrades: Api<MemoriaUpgrade> = Api::namespaced(server().client(), "fullest");
    let mut plan = upgrade();
    // Eight Jobs and candidates with pod templates of 16 KiB each.
    let big = |kind: &str| json!({"kind": kind, "metadata": {"annotations": {"a": "x".repeat(16 * 1024)}}});
    plan["spec"]["jobs"] = (0..8).map(|n| json!({"step": format!("s{n}"), "manifest": big("Job")})).collect();
    let target = plan["spec"]["targets"][0].clone();
    plan["spec"]["targets"] = (0..8)
        .map(|n| {
            let mut target = target.clone();
            target["name"] = json!(format!("t{n}"));
            target["candidate"] = big("Pod");
            target
        })
        .collect::<Value>();
    let keys = |list: &str| (0..100).map(|n| format!("{list}.{n:0>300}")).collect();
    let report = ConfigReport::new(keys("adopted"), keys("kept"), keys("obsolete"));
    let place = |name: &str| json!({"name": name, "key": "config.yaml"});
    plan["spec"]["config"] = json!({
        "output": place("memoria-config"), "outputUid": "5d0c6a4e-0000-4000-8000-000000000000",
        "overrides": place("memoria-overrides"), "baseline": "b".repeat(4096), "priorSha256": "a".repeat(64),
        "overridesSha256": "b".repeat(64), "newSha256": "c".repeat(64), "keptIn": "memoria-1-config", "report": report,
    });
    upgrades.create(&PostParams::default(), &serde_json::from_value(plan).unwrap()).await.unwrap();
    let record = |n: i32| PhaseRecord {
        name: format!("Phase{n}"),
        state: PhaseState::Passed,
        started_at: Time(now()),
        finished_at: Some(Time(now())),
        message: "m".repeat(1024),
        done: (0..64).map(|k| (format!("step-{k}"), "d".repeat(32))).collect(),
        held_seconds: 0,
    };
    let config = ConfigRecord { state: ConfigState::Refreshed, kept_in: Some("memoria-1-config".into()), report };
    let journal = MemoriaUpgradeStatus {
        phases: (0..32).map(record).collect(),
        checks,
        config: Some(config),
        ..Default::default()
    };
    let patch = Patch::Merge(json!({"status": journal}));
    let written = upgrades.patch_status("memoria-1", &PatchParams::default(), &patch).await.unwrap();
    assert!(written.status == Some(journal), "something of it was not stored");
    let bytes = serde_json::to_vec(&written).unwrap().len();
    assert!(bytes < 768 * 1024, "{bytes} bytes of etcd's 1.5 MiB");
}

#[tokio::test]
async fn a_status_cannot_be_written_through_the_spec() {
    let releases = stored("through-the-spec").await;
    let server = server();
    let patch = r#"{"status":{"phase":"Succeeded"}}"#;
    let args = ["patch", "mrel", "memoria", "-n", "through-the-spec", "--type=merge", "-p", patch];
    let output = server.kubectl(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(releases.get("memoria").await.unwrap().status, None);
}
