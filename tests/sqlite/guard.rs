//! The guard: nothing begins on other data than the snapshot's, nothing begins twice, and the schema decides.

use std::fs;

use memoria_operator::{
    api::upgrade::{Category, MigrationState},
    job::protocol::{Facts, GuardOrder, JobInput, JobOrder, MigrateFacts},
};
use memoria_runner::order::CommandResult;

use crate::{
    python::Python,
    reference,
    site::{Answer, DIRECTORY, MEMORIA, Running, Site, command},
    snapshot,
};

const MIGRATION: &str =
    "ALTER TABLE agents ADD COLUMN nick TEXT; CREATE TABLE consents (id INTEGER NOT NULL PRIMARY KEY);";

/// A database with snapshot and reference, ready for its migration.
struct Ready {
    site: Site,
    manifest_sha256: String,
}

impl Ready {
    async fn new(journal_mode: &str) -> Self {
        let site = Site::with(journal_mode, MEMORIA);
        let answer = site.run(&JobOrder::Snapshot(site.snapshot_order())).await;
        let manifest_sha256 = snapshot::facts(&answer).manifest_sha256;
        let tables = MEMORIA.split("INSERT").next().unwrap();
        reference::build(&site.other_pod(), &format!("{tables}; {MIGRATION}")).await.is(true, "Done", None);
        Self { site, manifest_sha256 }
    }

    fn spawn(&self, pod: &Site) -> Running {
        let order = GuardOrder {
            database: self.site.task("prod-1"),
            directory: DIRECTORY.to_owned(),
            reference_directory: DIRECTORY.to_owned(),
            limit_seconds: 60,
        };
        let input = JobInput { manifest_sha256: Some(self.manifest_sha256.clone()), ..JobInput::default() };
        pod.spawn(&JobOrder::Guard(order), &input, &self.site.url())
    }

    /// A guard in a pod of its own that must not let anything begin.
    async fn refusal(&self) -> Answer {
        let pod = self.site.other_pod();
        let running = self.spawn(&pod);
        let go = pod.go().await;
        assert!(!go.proceed, "the runner was let begin");
        let _: serde_json::Value = pod.wait_for("verdict.json").await;
        running.terminate().await
    }

    /// A whole run: the runner's work is this SQL, its result these commands.
    async fn migrate(&self, sql: &str, commands: Vec<CommandResult>) -> Answer {
        let pod = self.site.other_pod();
        let running = self.spawn(&pod);
        let go = pod.go().await;
        assert!(go.proceed, "{go:?}");
        self.runs(sql);
        pod.result(commands);
        let _: serde_json::Value = pod.wait_for("verdict.json").await;
        running.terminate().await
    }

    /// As the runner's commands do, in another process.
    fn runs(&self, sql: &str) {
        let mut migration = Python::open(&self.site.database());
        for statement in sql.split(';').filter(|statement| !statement.trim().is_empty()) {
            migration.must(statement);
        }
    }

    fn marker(&self) -> (bool, Option<String>) {
        let steps = self.site.markers().steps;
        (steps[0].finished_at.is_some(), steps[0].outcome.clone())
    }
}

fn facts(answer: &Answer) -> MigrateFacts {
    match &answer.report.facts {
        Some(Facts::Migrate(facts)) => facts.clone(),
        other => panic!("{other:?}: {}", answer.report.message),
    }
}

#[tokio::test]
async fn migrations_run_once_and_the_journal_mode_stays() {
    for mode in ["wal", "delete"] {
        let ready = Ready::new(mode).await;
        let answer = ready.migrate(MIGRATION, vec![command("all", Some(0), "ok")]).await;
        answer.is(true, "Done", None);
        assert_eq!(facts(&answer).migrations[0].state, MigrationState::Ran);
        assert_eq!(ready.marker(), (true, Some("Done".to_owned())));
        assert_eq!(ready.site.journal_mode(), mode);
        // Another pod gets the same answer, and nothing runs twice.
        assert_eq!(ready.refusal().await.report, answer.report);
    }
}

#[tokio::test]
async fn a_migration_that_only_says_it_worked_is_a_schema_mismatch() {
    let ready = Ready::new("wal").await;
    let answer = ready.migrate("CREATE TABLE stray (a int)", vec![command("all", Some(0), "ok")]).await;
    answer.is(false, "SchemaMismatch", Some(Category::Candidate));
    let found = facts(&answer);
    assert_eq!(found.differences, ["column agents.nick: missing", "table consents: missing"]);
    assert_eq!(found.extra, ["table stray"]);
}

#[tokio::test]
async fn an_extra_object_is_reported_and_an_exit_code_decides_first() {
    let ready = Ready::new("delete").await;
    let sql = format!("{MIGRATION} CREATE TABLE stray (a int)");
    let answer = ready.migrate(&sql, vec![command("all", Some(0), "")]).await;
    answer.is(true, "Done", None);
    assert_eq!(facts(&answer).extra, ["table stray"]);

    let ready = Ready::new("delete").await;
    let answer = ready.migrate(MIGRATION, vec![command("all", Some(3), "Traceback\nBoom\n")]).await;
    answer.is(false, "MigrateFailed", Some(Category::Candidate));
    assert_eq!(answer.report.message, "migration all ended with exit code 3: Boom");
    assert_eq!(ready.marker(), (true, Some("MigrateFailed".to_owned())));
}

#[tokio::test]
async fn data_that_changed_after_the_snapshot_keeps_every_migration_from_running() {
    let ready = Ready::new("wal").await;
    // The same letters, in another storage class.
    ready.site.execute("UPDATE memory_access_events SET memory_id = CAST(memory_id AS BLOB) WHERE id = 7");
    let answer = ready.refusal().await;
    answer.is(false, "DataChangedSinceSnapshot", Some(Category::Conflict));
    assert!(answer.report.message.contains("table memory_access_events"), "{}", answer.report.message);
    ready.site.execute("UPDATE memory_access_events SET memory_id = CAST(memory_id AS TEXT) WHERE id = 7; CREATE INDEX late ON teams (lead)");
    let answer = ready.refusal().await;
    answer.is(false, "DataChangedSinceSnapshot", Some(Category::Conflict));
    assert!(answer.report.message.contains("table teams"), "{}", answer.report.message);
    ready.site.execute("DROP INDEX late; PRAGMA user_version=3");
    ready.refusal().await.is(false, "DataChangedSinceSnapshot", Some(Category::Conflict));
    ready.site.execute("PRAGMA user_version=0");
    ready.migrate(MIGRATION, vec![command("all", Some(0), "")]).await.is(true, "Done", None);
}

#[tokio::test]
async fn an_artifact_that_was_cut_short_or_changed_lets_nothing_begin() {
    let mut ready = Ready::new("delete").await;
    let copy = ready.site.storage.join(DIRECTORY).join("database.sqlite");
    let whole = fs::read(&copy).unwrap();
    fs::write(&copy, &whole[..whole.len() - 4096]).unwrap();
    ready.refusal().await.is(false, "SnapshotDamaged", Some(Category::Environment));
    let mut flipped = whole.clone();
    flipped[5000] ^= 1;
    fs::write(&copy, flipped).unwrap();
    ready.refusal().await.is(false, "SnapshotDamaged", Some(Category::Environment));
    fs::write(&copy, whole).unwrap();
    let kept = std::mem::replace(&mut ready.manifest_sha256, "0".repeat(64));
    ready.refusal().await.is(false, "ManifestMismatch", Some(Category::Environment));
    ready.manifest_sha256 = kept;
    ready.migrate(MIGRATION, vec![command("all", Some(0), "")]).await.is(true, "Done", None);
}

#[tokio::test]
async fn what_another_pod_began_is_never_run_again() {
    let ready = Ready::new("wal").await;
    let pod = ready.site.other_pod();
    let mut running = ready.spawn(&pod);
    assert!(pod.go().await.proceed);
    // While the first pod works, a second is refused at once.
    ready.refusal().await.is(false, "MigrateOutcomeUnknown", Some(Category::Environment));
    running.kill();
    ready.refusal().await.is(false, "MigrateOutcomeUnknown", Some(Category::Environment));
    assert_eq!(ready.marker(), (false, None));
    // Nor does anything else begin on it.
    let other = Ready { site: ready.site.other_pod(), manifest_sha256: ready.manifest_sha256.clone() };
    let mut order = GuardOrder {
        database: other.site.task("prod-2"),
        directory: DIRECTORY.to_owned(),
        reference_directory: DIRECTORY.to_owned(),
        limit_seconds: 60,
    };
    order.database.volumes = vec![ready.site.volume()];
    let input = JobInput { manifest_sha256: Some(other.manifest_sha256.clone()), ..JobInput::default() };
    let running = other.site.spawn(&JobOrder::Guard(order), &input, &ready.site.url());
    let _: serde_json::Value = other.site.wait_for("verdict.json").await;
    running.terminate().await.is(false, "UnfinishedAttempt", Some(Category::Conflict));
}

#[tokio::test]
async fn a_guard_that_is_killed_and_restarted_in_its_pod_finishes_its_work() {
    let ready = Ready::new("wal").await;
    let pod = ready.site.other_pod();
    let mut first = ready.spawn(&pod);
    assert!(pod.go().await.proceed);
    first.kill();
    let second = ready.spawn(&pod);
    ready.runs(MIGRATION);
    pod.result(vec![command("all", Some(0), "")]);
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    second.terminate().await.is(true, "Done", None);
    assert_eq!(ready.marker(), (true, Some("Done".to_owned())));
}

#[tokio::test]
async fn a_pod_that_is_ended_while_migrations_run_leaves_the_outcome_unknown() {
    let ready = Ready::new("delete").await;
    let pod = ready.site.other_pod();
    let running = ready.spawn(&pod);
    assert!(pod.go().await.proceed);
    running.terminate().await.is(false, "MigrateOutcomeUnknown", Some(Category::Environment));
    assert_eq!(ready.marker(), (false, None));
    ready.refusal().await.is(false, "MigrateOutcomeUnknown", Some(Category::Environment));
}
