//! The reference Job: the schema that the candidate's own `init-db` builds, or why there is none.

use std::fs;

use memoria_operator::{
    api::upgrade::{Category, Engine},
    job::protocol::{Facts, JobInput, JobOrder, ReferenceFacts, ReferenceOrder},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    cluster::{MEMORIA, major},
    site::{Answer, DIRECTORY, Site, command},
};

pub fn order(needed_bytes: i64) -> JobOrder {
    JobOrder::Reference(ReferenceOrder {
        attempt: "run-1".to_owned(),
        directory: DIRECTORY.to_owned(),
        needed_bytes,
        limit_seconds: 60,
        engine: Engine::Postgresql,
        retention: None,
    })
}

/// Runs the Job with an `init-db` that is this SQL.
pub async fn build(site: &Site, sql: &str) -> Answer {
    let running = site.spawn(&order(1), &JobInput::default(), "");
    let go = site.go().await;
    assert!(go.proceed);
    // As the runner in the other container does: over loopback, without a password, and as nobody else.
    let url = go.database_url.unwrap();
    for other in
        [url.replace("memoria@", "postgres@"), url.replace("/memoria", "/postgres").replace("memoria@", "postgres@")]
    {
        let refused = PgConnection::connect(&other).await.unwrap_err().to_string();
        assert!(refused.contains("no pg_hba.conf entry"), "{refused}");
    }
    let mut session = PgConnection::connect(&url).await.unwrap();
    let reads = sqlx::raw_sql("COPY (SELECT 1) TO PROGRAM 'cat'").execute(&mut session).await.unwrap_err().to_string();
    assert!(reads.contains("permission denied") || reads.contains("must be"), "{reads}");
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut session).await.unwrap();
    site.result(vec![command("init-db", Some(0), false, "done")]);
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
    let answer = build(&site, MEMORIA).await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert_eq!((found.built_on.clone(), found.tables), (format!("postgresql {}", major()), 5));
    assert!(found.free_bytes > 0 && found.schema_sha256.len() == 64);
    let text = fs::read_to_string(site.storage.join(DIRECTORY).join("reference.json")).unwrap();
    assert!(text.contains("\"public.long_term_memory\""));

    // Repeated in another pod it answers from what is kept and runs nothing.
    let again = site.other_pod();
    let running = again.spawn(&order(1), &JobInput::default(), "");
    assert!(!again.go().await.proceed);
    let _: serde_json::Value = again.wait_for("verdict.json").await;
    let kept = facts(&running.terminate().await);
    assert_eq!((kept.built_on, kept.schema_sha256, kept.tables), (found.built_on, found.schema_sha256, found.tables));
}

#[tokio::test]
async fn an_init_db_that_fails_leaves_no_reference_and_says_why() {
    let site = Site::new();
    let running = site.spawn(&order(1), &JobInput::default(), "");
    assert!(site.go().await.proceed);
    site.result(vec![command("init-db", Some(1), false, "Traceback\nInFailedSqlTransaction: aborted\n")]);
    let _: serde_json::Value = site.wait_for("verdict.json").await;
    let answer = running.terminate().await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert_eq!((found.built_on.as_str(), found.schema_sha256.as_str()), ("none", ""));
    assert!(
        answer.report.message.contains("exit code 1: InFailedSqlTransaction: aborted"),
        "{}",
        answer.report.message
    );
}

#[tokio::test]
async fn too_small_a_storage_is_told_in_numbers() {
    let site = Site::new();
    let running = site.spawn(&order(i64::MAX), &JobInput::default(), "");
    let go = site.go().await;
    assert!(!go.proceed && go.report.unwrap()["reason"] == "StorageTooSmall");
    let _: serde_json::Value = site.wait_for("verdict.json").await;
    let answer = running.terminate().await;
    answer.is(false, "StorageTooSmall", Some(Category::Environment));
    assert!(answer.report.message.contains(&i64::MAX.to_string()) && facts(&answer).free_bytes > 0);
}
