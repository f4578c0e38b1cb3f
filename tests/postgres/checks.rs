//! SQL checks: one number, by a transaction that can only read.

use memoria_operator::{
    api::{GoDuration, release::Verdict},
    job::protocol::{CheckOrder, CheckSource, Facts, JobOrder, OrderedCheck},
};

use crate::{
    cluster::Cluster,
    site::{Site, task},
};

fn check(name: &str, query: &str, pass_when: &str) -> OrderedCheck {
    serde_json::from_value(serde_json::json!({
        "name": name, "required": true, "within": "8s", "every": "8s", "stableFor": "0s",
        "passWhen": pass_when, "query": query, "source": CheckSource::Sql, "freshWithin": GoDuration::from_secs(60),
    }))
    .unwrap()
}

async fn ask(cluster: &Cluster, checks: Vec<OrderedCheck>) -> Vec<(Verdict, String)> {
    let order = JobOrder::Check(CheckOrder { checks, database: Some(task(cluster, "prod-1").await) });
    let answer = Site::new().run(&order, cluster).await;
    let Some(Facts::Check(facts)) = answer.report.facts else { panic!("no facts: {}", answer.report.message) };
    facts.checks.into_iter().map(|check| (check.result, check.message)).collect()
}

#[tokio::test]
async fn one_number_is_judged_and_everything_else_is_inconclusive() {
    let cluster = Cluster::start().await;
    cluster.app("CREATE TABLE jobs (id int, done boolean, words text); INSERT INTO jobs VALUES (1, true, 'private'), (2, false, 'x')").await;
    let cases = [
        ("SELECT count(*) FROM jobs WHERE NOT done;", Verdict::Passed, "value 1; sql app@"),
        ("SELECT 1.0::numeric", Verdict::Passed, "value 1; "),
        ("SELECT bool_or(done) FROM jobs -- a comment", Verdict::Passed, "value 1; "),
        ("SELECT count(*) FROM jobs", Verdict::Failed, "last: value 2; "),
        ("SELECT id FROM jobs WHERE id > 5", Verdict::Inconclusive, "it gives none"),
        ("SELECT id FROM jobs", Verdict::Inconclusive, "it gives more"),
        ("SELECT 1 AS a, 2 AS b", Verdict::Inconclusive, "it gives 2"),
        ("SELECT NULL::int", Verdict::Inconclusive, "gives NULL"),
        ("SELECT words FROM jobs WHERE id = 1", Verdict::Inconclusive, "gives text"),
        ("SELECT words::int FROM jobs WHERE id = 1", Verdict::Inconclusive, "SQLSTATE 22P02"),
        ("SELECT 'NaN'::float8", Verdict::Inconclusive, "which is no number"),
        ("SELECT count(*) FROM no_such_table", Verdict::Inconclusive, "\"no_such_table\" does not exist"),
        ("SELECT pg_sleep(60)::text", Verdict::Inconclusive, "no answer in time"),
    ];
    let checks = cases.iter().enumerate().map(|(at, (query, ..))| check(&format!("c{at}"), query, "value == 1.0"));
    let answers = ask(&cluster, checks.collect()).await;
    for ((query, verdict, expected), (result, message)) in cases.iter().zip(&answers) {
        assert_eq!(result, verdict, "{query}: {message}");
        assert!(message.contains(expected), "{query}: {message}");
        assert!(!message.contains("private"), "{message}");
    }
}

#[tokio::test]
async fn a_query_can_change_nothing() {
    let cluster = Cluster::start().await;
    cluster.app("CREATE TABLE jobs (id int); INSERT INTO jobs VALUES (1); CREATE SEQUENCE s").await;
    let queries = [
        "DELETE FROM jobs RETURNING 1",
        "WITH gone AS (DELETE FROM jobs RETURNING 1) SELECT count(*) FROM gone",
        "SELECT nextval('s')",
        "SELECT 1) AS a; COMMIT; DELETE FROM jobs; SELECT (1",
        "SELECT 1; DELETE FROM jobs",
        "SELECT set_config('transaction_read_only', 'off', false)::text",
    ];
    let checks = queries.iter().enumerate().map(|(at, query)| check(&format!("c{at}"), query, "value == 1.0"));
    for ((result, message), query) in ask(&cluster, checks.collect()).await.iter().zip(queries) {
        assert_eq!(*result, Verdict::Inconclusive, "{query}: {message}");
    }
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM public.jobs").fetch_one(&mut cluster.admin().await).await.unwrap();
    assert_eq!(left, 1);
}
