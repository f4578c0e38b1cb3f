//! The restore Job: the snapshot comes back exactly, or nothing happened at all.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{Facts, JobInput, JobOrder, RestoreFacts, RestoreOrder},
    snapshot::{digest, manifest::Manifest, restore::Evidence, schema},
};
use sqlx::PgConnection;

use crate::{
    cluster::{Cluster, MEMORIA, bin, run},
    dice::Dice,
    site::{Answer, DIRECTORY, Running, Site, holds_no_password, snapshot_order, task},
};

pub const FAILED: &str = "prod-0b8ff1f4/prod-1/failed";

/// Everything that a plain copy of tables would lose.
const MORE: &str = r#"
GRANT SELECT ON agents TO visitor; GRANT UPDATE (name) ON teams TO visitor WITH GRANT OPTION;
ALTER TABLE teams ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON teams FOR SELECT TO visitor USING (lead = current_user);
CREATE PUBLICATION p FOR TABLE agents, long_term_memory;
CREATE SCHEMA extra; CREATE TABLE extra.t (a int[], j jsonb, r int4range, d int GENERATED ALWAYS AS (a[1] * 2) STORED);
INSERT INTO extra.t VALUES ('{1,NULL}', '{"b":1}', '[1,5)');
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT $1 * 2; -- ; COPY x FROM stdin;
$$;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.seen = now(); RETURN NEW; END; $$;
CREATE TRIGGER touched BEFORE UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION touch();
CREATE FUNCTION everyone() RETURNS SETOF agents LANGUAGE sql AS $$ SELECT * FROM public.agents $$;
CREATE TABLE sums (n int DEFAULT twice(2), at timestamptz) PARTITION BY RANGE (n); CREATE TABLE sums_1 PARTITION OF sums FOR VALUES FROM (0) TO (100);
INSERT INTO sums VALUES (5, '2025-01-01 00:00Z');
CREATE MATERIALIZED VIEW per_team AS SELECT team_id, count(*) AS n FROM agents GROUP BY 1; CREATE INDEX ON per_team (n);
CREATE VIEW extra.few AS SELECT * FROM per_team WHERE n < 3;
CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE TYPE pair AS (a int, b positive);
CREATE SEQUENCE tickets INCREMENT 5; SELECT nextval('tickets');
CREATE STATISTICS st ON a, j FROM extra.t;
COMMENT ON TABLE agents IS 'who; "speaks" \restrict'; COMMENT ON SCHEMA extra IS 'more';
CREATE TABLE odd (t text, f float8, b bytea);
INSERT INTO odd VALUES (E'a\tb\nc\\.\n\\N', 'NaN', '\x00ff'), ('\.', '-Infinity', ''), (NULL, 1e-300, NULL), ('', 0.1, '\x5c2e0a');
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO visitor;
"#;

/// What a migration that went wrong may leave.
const DAMAGE: &str = "ALTER TABLE agents ADD COLUMN nick TEXT NOT NULL DEFAULT 'x'; UPDATE agents SET name = 'changed' WHERE agent_id < 'a2';
DROP VIEW extra.few; DROP TABLE odd; CREATE TABLE consents (id SERIAL PRIMARY KEY, agent VARCHAR REFERENCES agents);
INSERT INTO consents (agent) VALUES ('a1'); CREATE VIEW newest AS SELECT * FROM consents; CREATE SCHEMA later; CREATE TABLE later.x AS SELECT 1 AS a;
CREATE FUNCTION later.f(agents) RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER TYPE retention ADD VALUE 'for ever';
INSERT INTO memory_access_events (memory_id, accessed_at) SELECT 'm1', now() FROM generate_series(1, 5); REVOKE SELECT ON agents FROM visitor;
DROP POLICY mine ON teams; ALTER PUBLICATION p DROP TABLE agents; CREATE PUBLICATION q FOR TABLE consents; DROP INDEX ltm_score;
DELETE FROM teams WHERE team_id = 't5'; COMMENT ON TABLE agents IS NULL; SELECT nextval('tickets');";

pub struct Ready {
    pub cluster: Cluster,
    pub site: Site,
    pub input: JobInput,
    manifest: Manifest,
    /// The schema as pg_dump writes it.
    schema: String,
}

impl Ready {
    pub async fn new(more: &str) -> Self {
        let (cluster, site) = (Cluster::start().await, Site::new());
        cluster.app(&format!("{MEMORIA}; {more}")).await;
        Self::of(cluster, site).await
    }

    pub async fn of(cluster: Cluster, site: Site) -> Self {
        let answer = site.run(&JobOrder::Snapshot(snapshot_order(&cluster).await), &cluster).await;
        let Some(Facts::Snapshot(facts)) = answer.report.facts else { panic!("{:?}", answer.report) };
        let manifest = fs::read(site.storage.join(DIRECTORY).join("manifest.json")).unwrap();
        let input = JobInput { manifest_sha256: Some(facts.manifest_sha256), ..JobInput::default() };
        let schema = written_schema(&cluster);
        Self { cluster, site, input, manifest: serde_json::from_slice(&manifest).unwrap(), schema }
    }

    pub async fn order(&self) -> RestoreOrder {
        RestoreOrder {
            database: task(&self.cluster, "prod-1").await,
            directory: DIRECTORY.to_owned(),
            failed_directory: FAILED.to_owned(),
            baseline_directory: None,
            data_loss_budget_rows: 0,
            carry_forward: Vec::new(),
            limit_seconds: 100,
        }
    }

    pub async fn spawn(&self) -> Running {
        let order = JobOrder::Restore(self.order().await);
        self.site.other_pod().spawn_kept(&order, &self.input, &self.cluster.url_text())
    }

    pub async fn restore(&self) -> Answer {
        self.spawn().await.end().await
    }

    fn failed(&self, name: &str) -> PathBuf {
        self.site.storage.join(FAILED).join(name)
    }

    /// Schema and data, whatever way they are looked at, are what they were at the snapshot.
    pub async fn is_the_snapshot(&self) {
        let (fingerprint, access, data) = state(&self.cluster).await;
        assert_eq!(fingerprint, self.manifest.schema_fingerprint);
        assert_eq!(access, self.manifest.access_fingerprint);
        assert_eq!(data.tables, self.manifest.tables);
        assert_eq!(written_schema(&self.cluster), self.schema);
    }

    async fn markers(&self) -> Vec<(String, Option<String>)> {
        sqlx::query_as("SELECT step, outcome FROM memoria_operator.attempt_step ORDER BY step")
            .fetch_all(&mut self.cluster.admin().await)
            .await
            .unwrap_or_default()
    }
}

async fn state(cluster: &Cluster) -> (String, String, digest::DataDigest) {
    let mut session = cluster.pinned().await;
    let schema = schema::read(&mut session).await.unwrap();
    let data = digest::all(&mut session, &schema, |_, _| {}).await.unwrap();
    (schema.fingerprint(), schema.access_fingerprint(), data)
}

/// By pg_dump itself: comments, names of constraints, statistics and all, in the order of its sections. Without what
/// PostgreSQL spells differently when it reads its own text again.
fn written_schema(cluster: &Cluster) -> String {
    let output = Command::new(bin().join("pg_dump"))
        .args(["--schema-only", "--exclude-schema=memoria_operator", "--host=127.0.0.1", "--username=app", "memoria"])
        .env("PGPASSWORD", crate::cluster::PASSWORD)
        .arg(format!("--port={}", cluster.port))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict "));
    let mut text = lines.collect::<Vec<_>>().join("\n");
    for spelling in ["(", ")", "::character varying", "::text", "[]"] {
        text = text.replace(spelling, "");
    }
    text
}

pub fn facts(answer: &Answer) -> RestoreFacts {
    match &answer.report.facts {
        Some(Facts::Restore(facts)) => facts.clone(),
        other => panic!("{other:?} {}", answer.report.message),
    }
}

async fn count(session: &mut PgConnection, sql: &'static str) -> i64 {
    let (count,): (i64,) = sqlx::query_as(sql).fetch_one(session).await.unwrap();
    count
}

#[tokio::test]
async fn everything_comes_back_and_what_the_migration_made_is_gone() {
    let ready = Ready::new(MORE).await;
    ready.cluster.app(DAMAGE).await;
    let before = state(&ready.cluster).await;
    let answer = ready.restore().await;
    answer.is(true, "Done", None);
    ready.is_the_snapshot().await;

    let found = facts(&answer);
    assert!(found.restored && found.failed_state_bytes > 0);
    assert_eq!(
        (found.rows, found.data_digest.as_str()),
        (ready.manifest.data().rows(), ready.manifest.data_digest.as_str())
    );
    assert_eq!(found.failed_state.as_deref(), Some(FAILED));
    // Numbers that were given out after the snapshot are not given out again, and the next insert works.
    let mut app = ready.cluster.session("app", "memoria").await;
    run(&mut app, "INSERT INTO memory_access_events (memory_id, accessed_at) VALUES ('m1', now())").await;
    assert_eq!(count(&mut app, "SELECT max(id)::bigint FROM memory_access_events").await, 306);
    assert_eq!(count(&mut app, "SELECT nextval('tickets')").await, 11);
    assert_eq!(count(&mut app, "SELECT n FROM per_team WHERE team_id = 't1'").await, 22);
    // The row's own trigger is back, and the visitor's grant.
    let mut visitor = ready.cluster.session("visitor", "memoria").await;
    assert_eq!(count(&mut visitor, "SELECT count(*) FROM agents").await, 50);
    assert_eq!(ready.markers().await, RESTORED.map(marker));

    // The failed state is whole, and says what was there.
    let failed: Manifest = serde_json::from_slice(&fs::read(ready.failed("manifest.json")).unwrap()).unwrap();
    assert_eq!((failed.kind.as_str(), &failed.tables), ("postgresql-failed-state", &before.2.tables));
    let evidence: Evidence = serde_json::from_slice(&fs::read(ready.failed("evidence-restore.json")).unwrap()).unwrap();
    assert_eq!(evidence.verified_digest.as_deref(), Some(ready.manifest.data_digest.as_str()));
    assert_eq!(evidence.failed_state.data_digest, failed.data_digest);
    assert_eq!(evidence.sequences_after["public.memory_access_events_id_seq"].last_value, 305);
    assert!(evidence.started_at < evidence.restored_at && evidence.verified_at.unwrap() > evidence.restored_at);
    holds_no_password(&ready.site.storage);
}

#[tokio::test]
async fn an_extension_that_the_owner_may_not_create_stays_with_its_data() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    let mut admin = cluster.admin().await;
    let trusted: (bool,) =
        sqlx::query_as("SELECT bool_or(trusted) FROM pg_available_extension_versions WHERE name = 'moddatetime'")
            .fetch_one(&mut admin)
            .await
            .unwrap();
    assert!(!trusted.0, "anybody may create it; the test is void");
    run(&mut admin, "CREATE EXTENSION moddatetime").await;
    cluster
        .app(
            "CREATE TABLE notes (id serial PRIMARY KEY, text text, at timestamp);
             CREATE TRIGGER stamp BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION moddatetime(at);
             INSERT INTO notes (text) SELECT 'note ' || n FROM generate_series(1, 9) n",
        )
        .await;
    let ready = Ready::of(cluster, site).await;
    ready
        .cluster
        .app("UPDATE notes SET text = 'changed'; DROP TRIGGER stamp ON notes; ALTER TABLE notes DROP at")
        .await;
    ready.restore().await.is(true, "Done", None);
    ready.is_the_snapshot().await;
    // The trigger that needs the extension works again.
    ready.cluster.app("UPDATE notes SET text = 'once more' WHERE id = 1").await;
    let mut admin = ready.cluster.admin().await;
    let stamped = count(&mut admin, "SELECT count(*) FROM notes WHERE at IS NOT NULL").await;
    assert_eq!(stamped, 1);
}

#[tokio::test]
async fn nothing_is_restored_where_nothing_changed() {
    let ready = Ready::new(MORE).await;
    ready.cluster.app("SELECT nextval('tickets')").await;
    let answer = ready.restore().await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert!(!found.restored && found.failed_state.is_none());
    assert_eq!(found.data_digest, ready.manifest.data_digest);
    assert!(!ready.failed("manifest.json").exists());
    // A migrate Job that should still arrive finds that it may not begin any more.
    assert_eq!(ready.markers().await, [("migrate", "Unchanged")].map(marker));
    // A column that nobody filled is a change.
    ready.cluster.app("ALTER TABLE odd ADD COLUMN more text").await;
    assert!(facts(&ready.restore().await).restored);
    ready.is_the_snapshot().await;
}

#[tokio::test]
async fn a_second_job_answers_from_the_marker() {
    let ready = Ready::new("").await;
    ready.cluster.app("DELETE FROM teams WHERE team_id = 't5'").await;
    let (first, second) = tokio::join!(ready.restore(), ready.restore());
    first.is(true, "Done", None);
    second.is(true, "Done", None);
    assert_eq!(facts(&first), facts(&second));
    ready.is_the_snapshot().await;
    assert_eq!(ready.markers().await, RESTORED.map(marker));
    fs::remove_file(ready.failed("evidence-restore.json")).unwrap();
    ready.restore().await.is(true, "Done", None);
    assert!(ready.failed("evidence-restore.json").exists());
    // What was written since is not taken back a second time.
    ready.cluster.app("DELETE FROM teams WHERE team_id = 't4'").await;
    ready.restore().await.is(false, "DataChangedAfterRestore", Some(Category::Conflict));
}

#[tokio::test]
async fn one_wrong_byte_in_the_snapshot_leaves_everything_as_it_was() {
    let ready = Ready::new("").await;
    ready.cluster.app("DELETE FROM teams WHERE team_id = 't5'").await;
    let before = state(&ready.cluster).await;
    let dump = ready.site.storage.join(DIRECTORY).join("database.dump");
    let good = fs::read(&dump).unwrap();
    let mut bytes = good.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&dump, bytes).unwrap();
    ready.restore().await.is(false, "SnapshotDamaged", Some(Category::Environment));
    assert_eq!(state(&ready.cluster).await, before);
    fs::write(&dump, good).unwrap();
    let mut other = Ready { input: JobInput { manifest_sha256: Some("0".repeat(64)), ..JobInput::default() }, ..ready };
    other.restore().await.is(false, "ManifestMismatch", Some(Category::Environment));
    assert_eq!(state(&other.cluster).await, before);
    other.input.manifest_sha256 = None;
    other.restore().await.is(false, "ManifestMismatch", Some(Category::Environment));
}

#[tokio::test]
async fn a_dump_of_other_data_is_rolled_back_by_its_own_proof() {
    let ready = Ready::new("").await;
    ready.cluster.app("UPDATE teams SET name = 'changed' WHERE team_id = 't5'").await;
    // A snapshot whose files and hashes agree, and whose manifest tells of another digest than its dump has.
    let directory = ready.site.storage.join(DIRECTORY);
    let mut manifest = ready.manifest.clone();
    manifest.tables.get_mut("public.teams").unwrap().digest = "0".repeat(64);
    fs::remove_file(directory.join("manifest.json")).unwrap();
    let sha256 = memoria_operator::snapshot::manifest::write(&directory, &manifest).unwrap();
    crate::cluster::give(&directory);
    let ready = Ready { input: JobInput { manifest_sha256: Some(sha256), ..JobInput::default() }, ..ready };
    let before = state(&ready.cluster).await;
    let answer = ready.restore().await;
    answer.is(false, "RestoreParityFailed", Some(Category::Environment));
    assert!(answer.report.message.contains("public.teams"), "{}", answer.report.message);
    assert_eq!(state(&ready.cluster).await, before);
    assert_eq!(ready.markers().await, []);
    assert!(ready.failed("manifest.json").exists());
}

#[tokio::test]
async fn objects_of_other_roles_refuse_and_nothing_is_changed() {
    let ready = Ready::new("").await;
    ready.cluster.app("DELETE FROM teams WHERE team_id = 't5'").await;
    let mut admin = ready.cluster.admin().await;
    run(&mut admin, "CREATE SCHEMA reports AUTHORIZATION visitor; CREATE VIEW reports.v AS SELECT * FROM agents; ALTER VIEW reports.v OWNER TO visitor").await;
    let before = state(&ready.cluster).await;
    let answer = ready.restore().await;
    answer.is(false, "ForeignDependents", Some(Category::Environment));
    assert!(answer.report.message.contains("view reports.v of visitor"), "{}", answer.report.message);
    assert_eq!(state(&ready.cluster).await, before);
    // Something that is no table or view, and that nobody knew of, refuses by RESTRICT.
    run(&mut admin, "DROP SCHEMA reports CASCADE; CREATE CAST (agents AS teams) WITH INOUT").await;
    let answer = ready.restore().await;
    answer.is(false, "ForeignDependents", Some(Category::Environment));
    assert!(answer.report.message.contains("cast from public.agents to public.teams"), "{}", answer.report.message);
    assert_eq!(ready.markers().await, []);
    run(&mut admin, "DROP CAST (agents AS teams)").await;
    ready.restore().await.is(true, "Done", None);
    ready.is_the_snapshot().await;
}

#[tokio::test]
async fn idle_readers_are_ended_and_other_roles_are_named() {
    let ready = Ready::new("").await;
    ready.cluster.app("DELETE FROM teams WHERE team_id = 't5'; GRANT SELECT ON agents TO visitor").await;
    let mut idle = ready.cluster.session("app", "memoria").await;
    run(&mut idle, "BEGIN; SELECT * FROM agents").await;
    let mut visitor = ready.cluster.session("visitor", "memoria").await;
    run(&mut visitor, "BEGIN; SELECT * FROM agents").await;
    let answer = ready.restore().await;
    answer.is(false, "Locked", Some(Category::Conflict));
    assert!(answer.report.message.contains("visitor@test"), "{}", answer.report.message);
    run(&mut visitor, "COMMIT").await;
    ready.restore().await.is(true, "Done", None);
    ready.is_the_snapshot().await;
    assert!(sqlx::query("SELECT 1").execute(&mut idle).await.is_err(), "the idle reader was left");
}

#[tokio::test]
async fn a_writer_between_failed_state_and_restore_is_noticed() {
    let ready =
        Ready::new("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) AS t FROM generate_series(1, 60000) i")
            .await;
    ready.cluster.app("DELETE FROM teams WHERE team_id = 't5'; GRANT INSERT ON agents TO visitor").await;
    // It waits for the failed state's SHARE locks, so it is first once they go: always between the two.
    let mut visitor = ready.cluster.session("visitor", "memoria").await;
    let running = ready.spawn().await;
    while !ready.failed("database.dump").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run(&mut visitor, "INSERT INTO agents (agent_id, name) VALUES ('late', 'comer')").await;
    let answer = running.end().await;
    answer.is(true, "Done", None);
    assert_eq!(facts(&answer).failed_state, Some(format!("{FAILED}/2")));
    ready.is_the_snapshot().await;
    // Both states are kept; the second has the late row.
    let second: Manifest = serde_json::from_slice(&fs::read(ready.failed("2/manifest.json")).unwrap()).unwrap();
    assert_eq!(second.tables["public.agents"].rows, 51);
    assert!(ready.failed("manifest.json").exists());
}

/// Kills that must have hit, and how often it may be tried: a restore that had ended was not killed.
const KILLS: usize = 20;
const TRIES: usize = 60;

#[tokio::test]
async fn twenty_kills_at_random_instants_leave_the_failed_state_or_the_snapshot() {
    let ready =
        Ready::new("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) AS t FROM generate_series(1, 20000) i")
            .await;
    let started = Instant::now();
    ready.cluster.app(DAMAGE_SIMPLE).await;
    ready.restore().await.is(true, "Done", None);
    let whole = u64::try_from(started.elapsed().as_micros()).unwrap();
    let mut dice = Dice::new().unwrap();
    let (mut not_done, mut done, mut inside) = (0, 0, 0);
    for round in 0..TRIES {
        // The same failure again, as if nothing had been done about it.
        fs::remove_dir_all(ready.failed("")).unwrap();
        ready.cluster.app("DROP SCHEMA memoria_operator CASCADE").await;
        ready.cluster.app(DAMAGE_SIMPLE).await;
        let failed = state(&ready.cluster).await;
        let mut running = ready.spawn().await;
        // Every third time within the transaction, which is short.
        if round % 3 == 2 {
            let wanted = match dice.below(3) {
                0 => "dropping what it left",
                1 => "rows are back",
                _ => "committing",
            };
            while !running.output().contains(wanted) && !running.ended() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(dice.below(50_000))).await;
        } else {
            tokio::time::sleep(Duration::from_micros(dice.below(whole))).await;
        }
        let hit = !running.ended();
        let within = hit && running.output().contains("dropping what it left");
        if hit {
            running.kill();
        }
        let mut admin = ready.cluster.admin().await;
        while count(&mut admin, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mop-prod-1-%'")
            .await
            > 0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let committed = !ready.markers().await.is_empty();
        if committed {
            ready.is_the_snapshot().await;
        } else {
            let now = state(&ready.cluster).await;
            assert_eq!((&now.0, &now.1, &now.2.tables), (&failed.0, &failed.1, &failed.2.tables), "{dice}");
        }
        if hit {
            *(if committed { &mut done } else { &mut not_done }) += 1;
            inside += usize::from(within && !committed);
        }
        // The next try succeeds, wherever the one before was.
        ready.restore().await.is(true, "Done", None);
        ready.is_the_snapshot().await;
        assert!(ready.failed("evidence-restore.json").exists());
        if done + not_done == KILLS {
            break;
        }
    }
    println!("{dice}: {not_done} times before COMMIT, {inside} of them inside the transaction, {done} times after it");
    assert!(done + not_done == KILLS && inside >= 3, "{done}, {not_done} and {inside}; {dice}");
}

/// The markers after a restore: the migration may not begin any more.
const RESTORED: [(&str, &str); 2] = [("migrate", "Restored"), ("restore", "Done")];

fn marker((step, outcome): (&str, &str)) -> (String, Option<String>) {
    (step.to_owned(), Some(outcome.to_owned()))
}

const DAMAGE_SIMPLE: &str =
    "ALTER TABLE agents ADD COLUMN nick TEXT NOT NULL DEFAULT 'x'; DELETE FROM teams WHERE team_id = 't5';
CREATE TABLE consents (id SERIAL PRIMARY KEY, agent VARCHAR REFERENCES agents); UPDATE big SET t = '' WHERE i < 100";

#[tokio::test]
async fn an_unfinished_migration_is_closed_by_the_restore() {
    let ready = Ready::new("").await;
    let mut session = ready.cluster.pinned().await;
    use memoria_operator::snapshot::markers;
    markers::ensure(&mut session).await.unwrap();
    markers::begin(&mut session, crate::site::RELEASE, "prod-1", "migrate", "token").await.unwrap();
    ready.cluster.app("DELETE FROM teams WHERE team_id = 't5'").await;
    drop(session);
    ready.restore().await.is(true, "Done", None);
    assert_eq!(ready.markers().await, RESTORED.map(marker));
    // One of another attempt refuses.
    ready.cluster.app("UPDATE memoria_operator.attempt_step SET attempt = 'prod-0', finished_at = NULL; DELETE FROM teams WHERE team_id = 't4'").await;
    let answer = ready.restore().await;
    answer.is(false, "UnfinishedAttempt", Some(Category::Conflict));
    let statement = memoria_operator::commands::abandon(crate::site::RELEASE, "prod-0");
    assert!(answer.report.message.contains(&statement), "{}", answer.report.message);
    ready.cluster.app(&statement).await;
    ready.restore().await.is(true, "Done", None);
}
