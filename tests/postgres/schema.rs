//! What the comparison of schemas finds, and what it does not mind.

use memoria_operator::snapshot::schema::{self, Comparison, Schema, compare};

use crate::cluster::{Cluster, MEMORIA};

async fn read(cluster: &Cluster) -> Schema {
    schema::read(&mut cluster.pinned().await).await.unwrap()
}

/// Reads, changes, reads and compares; the change is undone by making everything anew.
async fn after(cluster: &Cluster, sql: &str) -> Comparison {
    cluster.app(&format!("DROP OWNED BY app; {MEMORIA}")).await;
    let expected = read(cluster).await;
    cluster.app(sql).await;
    let actual = read(cluster).await;
    assert_ne!(expected.fingerprint(), actual.fingerprint(), "{sql}");
    compare(&expected, &actual)
}

#[tokio::test]
async fn a_missing_or_different_expected_object_is_a_difference() {
    let cluster = Cluster::start().await;
    cluster.app("GRANT ALL ON SCHEMA public TO app").await;
    for (sql, line) in [
        ("DROP VIEW busy", "view busy: missing"),
        ("DROP TABLE \"Odd name\"", "table \"Odd name\": missing"),
        ("ALTER TABLE agents DROP COLUMN metadata", "column agents.metadata: missing"),
        ("ALTER TABLE agents ALTER metadata TYPE jsonb", "column agents.metadata: type is jsonb, expected json"),
        ("ALTER TABLE agents ALTER name DROP NOT NULL", "column agents.name: is nullable, expected NOT NULL"),
        ("ALTER TABLE agents ALTER created_at DROP DEFAULT", "column agents.created_at: default now() missing"),
        ("ALTER TABLE teams DROP CONSTRAINT teams_slug_key", "table teams: index UNIQUE btree (slug) missing"),
        (
            "DROP INDEX ltm_score",
            "table long_term_memory: index btree (score) WHERE (kind = 'long'::public.retention) missing",
        ),
        (
            "ALTER TABLE memory_access_events DROP CONSTRAINT memory_access_events_pkey",
            "table memory_access_events: primary key is (), expected (id)",
        ),
        (
            "ALTER TABLE teams DROP CONSTRAINT teams_lead_fkey",
            "table teams: constraint FOREIGN KEY (lead) REFERENCES public.agents(agent_id) missing",
        ),
        (
            "CREATE OR REPLACE VIEW busy AS SELECT memory_id, count(*) + 1 AS n FROM memory_access_events GROUP BY 1",
            "view busy: its query is different",
        ),
        (
            "ALTER TABLE agents ADD must TEXT NOT NULL",
            "column agents.must: not expected, and NOT NULL without a default",
        ),
    ] {
        let found = match sql.contains("must") {
            true => after(&cluster, &format!("TRUNCATE agents CASCADE; {sql}")).await,
            false => after(&cluster, sql).await,
        };
        assert!(found.differences.contains(&line.to_owned()), "{sql}: {found:?}");
    }
}

#[tokio::test]
async fn what_nobody_expected_is_extra_and_no_difference() {
    let cluster = Cluster::start().await;
    for (sql, line) in [
        ("CREATE TABLE more (id int)", "table more"),
        ("ALTER TABLE agents ADD nick TEXT", "column agents.nick"),
        ("ALTER TABLE agents ALTER name SET DEFAULT ''", "column agents.name: default ''::character varying"),
        ("CREATE INDEX ON agents (name)", "table agents: index btree (name)"),
        ("ALTER TYPE retention ADD VALUE 'ever'", "enum retention: label ever"),
        ("CREATE SEQUENCE tickets", "sequence tickets"),
    ] {
        let found = after(&cluster, sql).await;
        assert_eq!(found.differences, Vec::<String>::new(), "{sql}");
        assert!(found.extra.contains(&line.to_owned()), "{sql}: {found:?}");
    }
}

#[tokio::test]
async fn names_of_constraints_column_order_and_the_way_of_numbering_do_not_matter() {
    let cluster = Cluster::start().await;
    cluster.app("CREATE TABLE t (id SERIAL PRIMARY KEY, a VARCHAR UNIQUE, b INT REFERENCES t)").await;
    let expected = read(&cluster).await;
    cluster
        .app(
            "DROP TABLE t; CREATE SEQUENCE other AS bigint START 7; CREATE TABLE t (b INT, a TEXT, id INT NOT NULL DEFAULT nextval('other'));
             ALTER TABLE t ADD CONSTRAINT k PRIMARY KEY (id); CREATE UNIQUE INDEX u ON t (a); ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (b) REFERENCES t",
        )
        .await;
    assert_eq!(compare(&expected, &read(&cluster).await).differences, Vec::<String>::new());
}

#[tokio::test]
async fn the_operators_own_schema_and_members_of_extensions_are_out_of_scope() {
    let cluster = Cluster::start().await;
    cluster.app(MEMORIA).await;
    let before = read(&cluster).await;
    let mut admin = cluster.admin().await;
    crate::cluster::run(
        &mut admin,
        "CREATE SCHEMA memoria_operator; CREATE TABLE memoria_operator.attempt_step (a int)",
    )
    .await;
    assert_eq!(read(&cluster).await, before);
}
