//! What changes a digest and what does not.

use std::time::Instant;

use memoria_operator::snapshot::{
    digest::{self, DataDigest},
    schema::{self, Schema},
};

use crate::cluster::{Cluster, MEMORIA, run};

async fn read(cluster: &Cluster) -> (Schema, DataDigest) {
    let mut session = cluster.pinned().await;
    let schema = schema::read(&mut session).await.unwrap();
    let data = digest::all(&mut session, &schema, |_, _| {}).await.unwrap();
    (schema, data)
}

async fn digest_of(cluster: &Cluster, sql: &str) -> String {
    cluster.app(&format!("DROP TABLE IF EXISTS t; {sql}")).await;
    let (_, data) = read(cluster).await;
    format!("{} {}", data.tables["public.t"].rows, data.tables["public.t"].digest)
}

#[tokio::test]
async fn the_order_of_rows_and_columns_does_not_matter() {
    let cluster = Cluster::start().await;
    let one =
        digest_of(&cluster, "CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1,'x'),(2,'y'),(3,NULL)").await;
    let rows =
        digest_of(&cluster, "CREATE TABLE t (a int, b text); INSERT INTO t VALUES (3,NULL),(2,'y'),(1,'x')").await;
    let columns =
        digest_of(&cluster, "CREATE TABLE t (b text, c int, a int); INSERT INTO t VALUES ('x',0,1),('y',0,2),(NULL,0,3); ALTER TABLE t DROP COLUMN c").await;
    assert_eq!(one, rows);
    assert_eq!(one, columns);
}

#[tokio::test]
async fn whatever_changes_a_value_changes_the_digest() {
    let cluster = Cluster::start().await;
    let base = "CREATE TABLE t (a text, b text, f float8, y bytea); INSERT INTO t VALUES ('1','23',0.1,'\\x00ff'),('4','',1e300,NULL)";
    let mut seen = vec![digest_of(&cluster, base).await];
    for change in [
        "UPDATE t SET a = b, b = a",
        "UPDATE t SET a = '12', b = '3' WHERE a = '1'",
        "UPDATE t SET b = NULL WHERE b = ''",
        "UPDATE t SET f = 0.1 + 1e-17 * 2 WHERE a = '1'",
        "UPDATE t SET y = '\\x00fe' WHERE a = '1'",
        "UPDATE t SET y = '' WHERE y IS NULL",
        "DELETE FROM t WHERE a = '1'",
        "INSERT INTO t VALUES ('1','23',0.1,'\\x00ff')",
        // Twice the same row: under XOR this pair would cancel out.
        "INSERT INTO t VALUES ('n','n',0,NULL),('n','n',0,NULL)",
        // An exchange of values between two rows.
        "UPDATE t SET f = CASE a WHEN '1' THEN 1e300 ELSE 0.1 END",
        "TRUNCATE t",
    ] {
        seen.push(digest_of(&cluster, &format!("{base}; {change}")).await);
    }
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "two contents share a digest");
}

#[tokio::test]
async fn settings_of_role_and_database_do_not_change_the_digest() {
    let cluster = Cluster::start().await;
    cluster.app(MEMORIA).await;
    let before = read(&cluster).await;
    cluster
        .app(
            "ALTER ROLE app SET timezone = 'Asia/Tokyo'; ALTER ROLE app SET extra_float_digits = -10;
             ALTER ROLE app SET datestyle = 'German'; ALTER ROLE app SET bytea_output = 'escape';
             ALTER ROLE app SET intervalstyle = 'iso_8601'; ALTER ROLE app SET search_path = pg_temp;
             ALTER ROLE app SET statement_timeout = '1ms'; ALTER ROLE app SET quote_all_identifiers = on",
        )
        .await;
    assert_eq!(read(&cluster).await, before);
}

#[tokio::test]
async fn a_sequence_may_be_ahead_but_not_behind() {
    let cluster = Cluster::start().await;
    cluster.app(MEMORIA).await;
    let (schema, before) = read(&cluster).await;
    cluster.app("SELECT nextval('memory_access_events_id_seq')").await;
    let (_, ahead) = read(&cluster).await;
    assert_eq!(before.differences(&ahead, &schema), Vec::<String>::new());
    assert_eq!(before.total("f"), ahead.total("f"));
    assert_eq!(
        ahead.differences(&before, &schema),
        ["sequence public.memory_access_events_id_seq: at 300, expected 301"]
    );
    cluster.app("DELETE FROM teams WHERE team_id = 't5'; UPDATE agents SET name = 'other' WHERE agent_id = 'a9'").await;
    let (_, changed) = read(&cluster).await;
    assert_eq!(
        before.differences(&changed, &schema),
        ["table public.agents: 50 rows, but not the same", "table public.teams: 4 rows, expected 5"]
    );
    assert_ne!(before.total("f"), changed.total("f"));
}

#[tokio::test]
async fn forty_four_thousand_rows_are_digested_within_seconds() {
    let cluster = Cluster::start().await;
    cluster
        .app(
            "CREATE TABLE big AS SELECT 'm' || i AS memory_id, json_build_object('text', repeat(md5(i::text), 30)) AS processed_data,
             random() AS score, now() + i * interval '1 s' AS at, repeat(md5((i+1)::text), 14) AS content FROM generate_series(1, 44000) i",
        )
        .await;
    let mut session = cluster.pinned().await;
    let schema = schema::read(&mut session).await.unwrap();
    let started = Instant::now();
    let found = digest::table(&mut session, "public.big", &schema.relations["public.big"]).await.unwrap();
    println!("{} rows in {:?}", found.rows, started.elapsed());
    assert_eq!(found.rows, 44_000);
    // Generous: the machine may be busy with other tests.
    assert!(started.elapsed().as_secs() < 10);
    let mut admin = cluster.admin().await;
    run(&mut admin, "ANALYZE").await;
}
