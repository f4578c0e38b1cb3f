//! The reference Job: the schema that the candidate's own `init-db` builds in a new file.

use std::fs;

use memoria_operator::{
    api::upgrade::{Category, Engine},
    job::protocol::{Facts, JobInput, JobOrder, ReferenceFacts, ReferenceOrder, RetentionOrder},
};

use crate::{
    python::Python,
    site::{Answer, DIRECTORY, MEMORIA, Site, command},
};

fn order() -> JobOrder {
    JobOrder::Reference(ReferenceOrder {
        attempt: "run-1".to_owned(),
        directory: DIRECTORY.to_owned(),
        needed_bytes: 1,
        limit_seconds: 60,
        engine: Engine::Sqlite,
        retention: None,
    })
}

/// Runs the Job with an `init-db` that runs this SQL.
pub async fn build(site: &Site, sql: &str) -> Answer {
    let running = site.spawn(&order(), &JobInput::default(), "");
    let go = site.go().await;
    let url = go.database_url.unwrap();
    let path = url.strip_prefix("sqlite:///").unwrap();
    assert!(path.starts_with('/'), "{url}");
    let mut init_db = Python::open(path.as_ref());
    init_db.must("PRAGMA journal_mode=WAL");
    for statement in sql.split(';').filter(|statement| !statement.trim().is_empty()) {
        init_db.must(statement);
    }
    // With everything still in the WAL.
    init_db.kill();
    site.result(vec![command("init-db", Some(0), "")]);
    let _: serde_json::Value = site.wait_for("verdict.json").await;
    running.terminate().await
}

fn facts(answer: &Answer) -> ReferenceFacts {
    match &answer.report.facts {
        Some(Facts::Reference(facts)) => facts.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_schema_that_init_db_builds_is_kept() {
    let site = Site::new();
    let answer = build(&site, "CREATE TABLE t (id INTEGER PRIMARY KEY); CREATE TABLE u (a TEXT)").await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert!(found.built_on.starts_with("SQLite 3.") && found.tables == 2 && found.schema_sha256.len() == 64);
    let kept: serde_json::Value =
        serde_json::from_slice(&fs::read(site.storage.join(DIRECTORY).join("reference.json")).unwrap()).unwrap();
    assert_eq!(kept["sqliteSchema"]["tables"]["t"]["primaryKey"][0], "id");
    // The same run again keeps it.
    let again = site.other_pod();
    let running = again.spawn(&order(), &JobInput::default(), "");
    let _: serde_json::Value = again.wait_for("verdict.json").await;
    assert_eq!(facts(&running.terminate().await).schema_sha256, found.schema_sha256);
}

#[tokio::test]
async fn an_init_db_that_fails_or_makes_nothing_leaves_no_reference() {
    let site = Site::new();
    let running = site.spawn(&order(), &JobInput::default(), "");
    assert!(site.go().await.proceed);
    site.result(vec![command("init-db", Some(1), "Traceback\nBoom\n")]);
    let _: serde_json::Value = site.wait_for("verdict.json").await;
    let answer = running.terminate().await;
    assert_eq!(facts(&answer).built_on, "none");
    assert!(answer.report.message.contains("init-db ended with exit code 1: Boom"), "{}", answer.report.message);

    let site = Site::new();
    let answer = build(&site, "SELECT 1").await;
    assert_eq!(facts(&answer).built_on, "none");
}

#[tokio::test]
async fn old_snapshots_go_before_the_free_space_is_measured_and_are_named() {
    let site = Site::with("wal", MEMORIA);
    let directories = ["prod-0b8ff1f4/prod-1", "prod-0b8ff1f4/prod-2", "prod-0b8ff1f4/prod-3"];
    for (number, directory) in (1..).zip(directories) {
        let mut order = site.snapshot_order();
        order.database.attempt = format!("prod-{number}");
        order.directory = directory.to_owned();
        site.other_pod().run(&JobOrder::Snapshot(order)).await.is(true, "Done", None);
    }
    let retention = RetentionOrder {
        release_uid: site.task("run-1").release_uid,
        keep_last: 1,
        max_age_seconds: None,
        needed: vec!["prod-2".to_owned()],
    };
    let order = ReferenceOrder {
        attempt: "run-1".to_owned(),
        directory: "prod-0b8ff1f4/run-1".to_owned(),
        needed_bytes: i64::MAX,
        limit_seconds: 60,
        engine: Engine::Sqlite,
        retention: Some(retention),
    };
    let pod = site.other_pod();
    let running = pod.spawn(&JobOrder::Reference(order), &JobInput::default(), "");
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    let answer = running.terminate().await;
    answer.is(false, "StorageTooSmall", Some(Category::Environment));
    assert_eq!(facts(&answer).removed, ["prod-1"]);
    for word in ["spec.snapshot.retention.keepLast", "1 past spec.snapshot.retention removed: prod-1"] {
        assert!(answer.report.message.contains(word), "{}", answer.report.message);
    }
    let left = directories.map(|directory| site.storage.join(directory).exists());
    assert_eq!(left, [false, true, true]);
}
