//! The rehearsal Job: it finds what would fail after the fence, on a copy, while the database is in use and stays as it is.

use std::{fs, time::Duration};

use jiff::Timestamp;
use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{Facts, JobInput, JobOrder, RehearsalFacts, RehearsalOrder},
    snapshot::{digest, schema},
};
use memoria_runner::order::CommandResult;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    cluster::{Cluster, MEMORIA, run},
    reference,
    site::{Answer, DIRECTORY, Running, Site, command, holds_no_password, task},
};

/// What the new version's schema has more.
const MIGRATION: &str = "ALTER TABLE agents ADD COLUMN nick TEXT; CREATE TABLE consents (id SERIAL PRIMARY KEY);
    UPDATE agents SET name = upper(name); DELETE FROM teams WHERE team_id = 't5'";

struct Ready {
    cluster: Cluster,
    site: Site,
}

impl Ready {
    async fn new(more: &str) -> Self {
        let (cluster, site) = (Cluster::start().await, Site::new());
        cluster.app(&format!("{MEMORIA}; {more}")).await;
        reference::build(&site.other_pod(), &format!("{MEMORIA}; {MIGRATION}")).await.is(true, "Done", None);
        Self { cluster, site }
    }

    async fn order(&self) -> RehearsalOrder {
        RehearsalOrder {
            database: task(&self.cluster, "prod-pf-1").await,
            release: "prod".to_owned(),
            from_version: "0.9.0".to_owned(),
            operator_version: "0.1.0".to_owned(),
            portable: true,
            reference_directory: Some(DIRECTORY.to_owned()),
            needed_bytes: 1,
            limit_seconds: 60,
            until: Timestamp::now() + Duration::from_secs(100),
        }
    }

    fn spawn(&self, pod: &Site, order: RehearsalOrder) -> Running {
        pod.spawn(&JobOrder::Rehearsal(order), &JobInput::default(), &self.cluster.url_text())
    }

    /// A whole rehearsal: the runner's work is this SQL on whatever the guard names, its result these commands.
    async fn rehearse(&self, sql: &str, commands: Vec<CommandResult>) -> Answer {
        let before = self.state().await;
        let pod = self.site.other_pod();
        let running = self.spawn(&pod, self.order().await);
        let go = pod.go().await;
        assert!(go.proceed, "{go:?}");
        let url = go.database_url.unwrap();
        assert!(
            url.starts_with("postgresql+psycopg2://app@127.0.0.1:") && !url.contains(&self.cluster.port.to_string())
        );
        let mut session = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut session).await.unwrap();
        session.close().await.unwrap();
        pod.result(commands);
        self.end(pod, running, before).await
    }

    /// One that must not let anything begin.
    async fn refusal(&self, order: RehearsalOrder) -> Answer {
        let before = self.state().await;
        let pod = self.site.other_pod();
        let running = self.spawn(&pod, order);
        let go = pod.go().await;
        assert!(!go.proceed, "the runner was let begin");
        self.end(pod, running, before).await
    }

    async fn end(&self, pod: Site, running: Running, before: (String, digest::DataDigest, i64)) -> Answer {
        let _: serde_json::Value = pod.wait_for("verdict.json").await;
        let answer = running.terminate().await;
        assert_eq!(self.state().await, before, "the live database is not as it was");
        // Copy, snapshot and failed state are gone, and in storage there is nothing but the reference.
        assert!(!pod.scratch("rehearsal").exists());
        holds_no_password(&self.site.storage);
        let kept: Vec<_> =
            fs::read_dir(self.site.storage.join(DIRECTORY)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(kept, ["reference.json"]);
        answer
    }

    /// Schema, data, and whether anything of ours is there.
    async fn state(&self) -> (String, digest::DataDigest, i64) {
        let mut session = self.cluster.pinned().await;
        let schema = schema::read(&mut session).await.unwrap();
        let data = digest::all(&mut session, &schema, |_, _| {}).await.unwrap();
        let (own,) = sqlx::query_as("SELECT count(*) FROM pg_namespace WHERE nspname = 'memoria_operator'")
            .fetch_one(&mut session)
            .await
            .unwrap();
        (schema.fingerprint() + &schema.access_fingerprint(), data, own)
    }
}

fn facts(answer: &Answer) -> RehearsalFacts {
    match &answer.report.facts {
        Some(Facts::Rehearsal(facts)) => facts.clone(),
        other => panic!("{other:?}"),
    }
}

fn says(answer: &Answer, words: &[&str]) {
    for word in words {
        assert!(answer.report.message.contains(word), "{word:?} is not in {}", answer.report.message);
    }
}

fn ran(names: &[&str]) -> Vec<CommandResult> {
    names.iter().map(|name| command(name, Some(0), false, "ok")).collect()
}

#[tokio::test]
async fn good_migrations_are_measured_and_the_database_is_used_all_the_while() {
    let ready = Ready::new("GRANT ALL ON teams TO visitor; ALTER ROLE app SET intervalstyle = 'iso_8601'").await;
    // A writer in the middle of its work, which keeps a snapshot with writers stopped from being taken.
    let mut writer = ready.cluster.session("visitor", "memoria").await;
    run(&mut writer, "BEGIN; UPDATE teams SET name = 'later' WHERE team_id = 't1'").await;
    let sql = format!("DO $$ BEGIN ASSERT current_setting('intervalstyle') = 'iso_8601'; END $$; {MIGRATION}");
    let answer = ready.rehearse(&sql, ran(&["add_nick", "add_consents"])).await;
    answer.is(true, "Done", None);
    run(&mut writer, "COMMIT").await;
    let found = facts(&answer);
    assert_eq!((found.rows, found.tables, found.conclusive), (558, 5, false));
    for millis in [found.copy_millis, found.snapshot_millis, found.migrate_millis, found.restore_millis] {
        assert!((1..100_000).contains(&millis), "{found:?}");
    }
    says(&answer, &["558 rows", "2 migrations ran", "restored"]);
}

#[tokio::test]
async fn a_migration_that_only_says_it_worked_is_found_out() {
    let ready = Ready::new("").await;
    let answer = ready.rehearse("CREATE TABLE stray (a int)", ran(&["add_nick", "add_consents"])).await;
    answer.is(false, "SchemaMismatch", Some(Category::Candidate));
    assert!(facts(&answer).conclusive);
    says(
        &answer,
        &["add_nick; add_consents", "column agents.nick: missing", "table consents: missing", "spec.version"],
    );
}

#[tokio::test]
async fn a_migration_that_fails_is_found_out() {
    let ready = Ready::new("").await;
    let failed = vec![command("add_nick", Some(3), false, "Traceback\nBoom\n")];
    let answer = ready.rehearse("ALTER TABLE agents ADD COLUMN nick TEXT", failed).await;
    answer.is(false, "MigrateFailed", Some(Category::Candidate));
    assert!(facts(&answer).conclusive);
    says(&answer, &["add_nick ended with exit code 3: Boom", "Nothing of Memoria was touched"]);
}

#[tokio::test]
async fn a_migration_that_cannot_be_taken_back_is_found_out() {
    let ready = Ready::new("").await;
    let mut admin = ready.cluster.admin().await;
    run(&mut admin, "GRANT ALL ON SCHEMA public TO app; ALTER ROLE app NOINHERIT; GRANT visitor TO app").await;
    // What another role owns, the Server's role may make and not drop.
    let sql = format!(
        "{MIGRATION}; CREATE SCHEMA reports AUTHORIZATION visitor; SET ROLE visitor; CREATE VIEW reports.v AS SELECT 1 AS a"
    );
    let answer = ready.rehearse(&sql, ran(&["add_reports"])).await;
    answer.is(false, "MigrationIrreversible", Some(Category::Candidate));
    assert!(facts(&answer).conclusive);
    says(&answer, &["ran add_reports", "view reports.v of visitor", "another version"]);
    // What lies outside of every table, a restore does not even see.
    let sql = format!("{MIGRATION}; SELECT lo_from_bytea(4711, 'x')");
    let answer = ready.rehearse(&sql, ran(&["add_blobs"])).await;
    answer.is(false, "MigrationIrreversible", Some(Category::Candidate));
    says(&answer, &["ran add_blobs", "large object 4711"]);
}

#[tokio::test]
async fn a_database_whose_snapshot_does_not_restore_is_found_out() {
    // The check wants rows of a table that is loaded later.
    let ready = Ready::new(
        "CREATE TABLE zones (id TEXT); INSERT INTO zones VALUES ('z');
         CREATE FUNCTION known(TEXT) RETURNS boolean LANGUAGE sql AS 'SELECT EXISTS (SELECT FROM public.zones WHERE id = $1)';
         CREATE TABLE areas (id TEXT CHECK (known(id))); INSERT INTO areas VALUES ('z')",
    )
    .await;
    let answer = ready.refusal(ready.order().await).await;
    answer.is(false, "SnapshotNotRestorable", Some(Category::Environment));
    assert!(facts(&answer).conclusive);
    says(&answer, &["areas", "mend"]);
}

#[tokio::test]
async fn a_missing_extension_says_nothing_of_the_version() {
    let ready = Ready::new("").await;
    let mut admin = ready.cluster.admin().await;
    // One that this machine has, under a name that it has not.
    run(
        &mut admin,
        "CREATE EXTENSION btree_gin; SET allow_system_table_mods = on;
         UPDATE pg_extension SET extname = 'vector_of_memories' WHERE extname = 'btree_gin'",
    )
    .await;
    let answer = ready.refusal(ready.order().await).await;
    answer.is(false, "ExtensionMissing", Some(Category::Environment));
    assert!(!facts(&answer).conclusive);
    says(&answer, &["vector_of_memories", "toolImages"]);
}

#[tokio::test]
async fn no_space_and_no_time_say_nothing_of_the_version() {
    let ready = Ready::new("").await;
    let answer = ready.refusal(RehearsalOrder { needed_bytes: i64::MAX, ..ready.order().await }).await;
    answer.is(false, "ScratchTooSmall", Some(Category::Environment));
    assert!(!facts(&answer).conclusive);
    says(&answer, &[&i64::MAX.to_string(), "jobs.nodeSelector"]);
    let answer = ready.refusal(RehearsalOrder { until: Timestamp::now(), ..ready.order().await }).await;
    answer.is(false, "RehearsalTimedOut", Some(Category::Environment));
    assert_eq!(answer.report.facts, None);
    says(&answer, &["timeouts.preFlight"]);
}

#[tokio::test]
async fn without_a_reference_everything_but_the_schema_is_rehearsed() {
    let ready = Ready::new("").await;
    let pod = ready.site.other_pod();
    let order = RehearsalOrder { reference_directory: None, ..ready.order().await };
    let running = ready.spawn(&pod, order);
    let url = pod.go().await.database_url.unwrap();
    let mut session = PgConnection::connect(&url).await.unwrap();
    run(&mut session, "CREATE TABLE stray (a int)").await;
    pod.result(ran(&["add_nick"]));
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    let answer = running.terminate().await;
    answer.is(true, "Done", None);
    says(&answer, &["the schema was not compared: mode Plan"]);
}
