//! The inspect Job: finds every obstacle, each with its object and its fix, and writes nothing.

use memoria_operator::{
    api::{release::Verdict, upgrade::Category},
    job::protocol::{Facts, InspectFacts, InspectOrder, JobOrder},
};

use crate::{
    cluster::{Cluster, MEMORIA, major, run},
    site::{Answer, Site, identity, task},
};

async fn order(cluster: &Cluster) -> JobOrder {
    order_for(cluster, &[]).await
}

async fn order_for(cluster: &Cluster, carry_forward: &[&str]) -> JobOrder {
    let mut database = task(cluster, "prod-1").await;
    database.identity = None;
    let carry_forward = carry_forward.iter().map(|name| (*name).to_owned()).collect();
    JobOrder::Inspect(InspectOrder { database, carry_forward })
}

fn facts(answer: &Answer) -> InspectFacts {
    answer.is(true, "Done", None);
    match &answer.report.facts {
        Some(Facts::Inspect(facts)) => facts.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_database_of_its_own_owner_has_no_findings() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    let found = facts(&site.run(&order(&cluster).await, &cluster).await);
    assert_eq!(found.findings, Vec::new());
    assert_eq!((found.major, found.tables), (major().cast_signed(), 5));
    assert_eq!(found.identity, identity(&cluster).await);
    assert!(found.bytes > 1_000_000 && found.unfinished.is_empty());
    let made: (bool,) = sqlx::query_as("SELECT to_regnamespace('memoria_operator') IS NULL")
        .fetch_one(&mut cluster.admin().await)
        .await
        .unwrap();
    assert!(made.0, "inspect wrote something");
}

#[tokio::test]
async fn every_obstacle_is_found_with_object_and_fix() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    cluster.app("ALTER TABLE teams ENABLE ROW LEVEL SECURITY; ALTER TABLE teams FORCE ROW LEVEL SECURITY; SELECT lo_create(0)").await;
    let mut admin = cluster.admin().await;
    run(
        &mut admin,
        "CREATE TABLE audits (id int); CREATE VIEW reports AS SELECT * FROM agents; CREATE EXTENSION file_fdw;
         CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE outside (a text) SERVER files OPTIONS (filename '/dev/null');
         ALTER DATABASE memoria OWNER TO postgres; ALTER FOREIGN TABLE outside OWNER TO app",
    )
    .await;
    run(&mut admin, "CREATE SUBSCRIPTION feed CONNECTION 'host=127.0.0.1 port=1' PUBLICATION x WITH (connect = false)")
        .await;
    run(&mut admin, "BEGIN; INSERT INTO audits VALUES (1); PREPARE TRANSACTION 'hidden'").await;
    let found = facts(&site.run(&order(&cluster).await, &cluster).await);
    let names: Vec<_> = found.findings.iter().map(|finding| finding.name.as_str()).collect();
    for (name, object, fix) in [
        ("DatabasePrivileges", "public.audits (owner postgres)", "OWNER TO \"app\""),
        ("ForeignDependents", "public.reports (owner postgres)", "ALTER VIEW"),
        ("MarkerSchema", "\"app\"", "GRANT CREATE ON DATABASE \"memoria\""),
        ("RowSecurity", "public.teams", "NO FORCE ROW LEVEL SECURITY"),
        ("LargeObjects", "1 large objects", "lo_get"),
        ("ForeignTables", "public.outside", "drop them"),
        ("Subscriptions", "feed", "drop them"),
        ("PreparedTransactions", "hidden", "ROLLBACK PREPARED"),
    ] {
        let finding =
            found.findings.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("no {name} in {names:?}"));
        assert_eq!(finding.result, Verdict::Failed);
        assert!(finding.message.contains(object) && finding.message.contains(fix), "{}", finding.message);
    }
    // Each statement, with the object in it, mends what it was printed for.
    for (statement, object) in [
        ("ROLLBACK PREPARED", "'hidden'"),
        ("ALTER TABLE … OWNER TO \"app\"", "public.audits"),
        ("ALTER VIEW … OWNER TO \"app\"", "public.reports"),
        ("GRANT CREATE ON DATABASE \"memoria\" TO \"app\"", ""),
        ("ALTER TABLE … NO FORCE ROW LEVEL SECURITY", "public.teams"),
    ] {
        assert!(found.findings.iter().any(|finding| finding.message.contains(statement)), "{statement}");
        let whole = statement.replace('…', object);
        let whole = if whole == statement { format!("{statement} {object}") } else { whole };
        run(&mut admin, &whole).await;
    }
    let left = facts(&site.run(&order(&cluster).await, &cluster).await).findings;
    let left: Vec<_> = left.iter().map(|finding| finding.name.as_str()).collect();
    assert_eq!(left, ["LargeObjects", "ForeignTables", "Subscriptions"]);
}

#[tokio::test]
async fn tables_that_could_never_be_carried_forward_are_named_with_the_field() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    cluster
        .app(
            "CREATE TABLE loose (t text); CREATE SCHEMA extra; CREATE TABLE extra.\"Audits\" (id int PRIMARY KEY);
             CREATE TABLE parts (n int PRIMARY KEY) PARTITION BY RANGE (n);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)",
        )
        .await;
    let good = ["agents", "public.teams", "extra.Audits", "parts_1"];
    assert_eq!(facts(&site.run(&order_for(&cluster, &good).await, &cluster).await).findings, Vec::new());
    let bad = ["agents", "audits", "Audits", "loose", "parts"];
    let found = facts(&site.run(&order_for(&cluster, &bad).await, &cluster).await).findings;
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((finding.name.as_str(), finding.result), ("CarryForward", Verdict::Failed));
    for part in [
        "carryForward names audits, but the database has no such table",
        "carryForward names Audits, but the database has no such table",
        "carryForward names loose, which has no primary key",
        "carryForward names parts, which has no rows of its own",
    ] {
        assert!(finding.message.contains(part), "{part}: {}", finding.message);
    }
    assert!(!finding.message.contains("agents"), "{}", finding.message);
}

#[tokio::test]
async fn a_url_that_cannot_be_used_is_refused_with_the_reason() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    let order = order(&cluster).await;
    let port = cluster.port;
    for (url, reason, category, part) in [
        (
            format!("postgresql://app:canary%40@127.0.0.1:{port}/memoria"),
            "DatabaseRefused",
            Category::Environment,
            "correct user and password",
        ),
        (
            cluster.url_text().replace("/memoria", "/nothing"),
            "DatabaseRefused",
            Category::Environment,
            "database's name",
        ),
        (
            "postgresql://app:canary%40@127.0.0.1:1/memoria".to_owned(),
            "DatabaseUnreachable",
            Category::Transient,
            "app@127.0.0.1:1/memoria",
        ),
        (String::new(), "DatabaseUrlInvalid", Category::Environment, "empty"),
    ] {
        let answer = site.run_with(&order, &url).await;
        answer.is(false, reason, Some(category));
        assert!(answer.report.message.contains(part), "{}", answer.report.message);
        assert!(!answer.report.message.contains("canary"));
    }
}
