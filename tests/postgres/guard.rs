//! The guard: begins at most once, only on the snapshot's own data, and judges by the schema.

use memoria_operator::{
    api::upgrade::{Category, MigrationState},
    commands,
    job::protocol::{Facts, GuardOrder, JobInput, JobOrder, MigrateFacts},
    snapshot::markers,
};
use memoria_runner::order::CommandResult;

use crate::{
    cluster::{Cluster, MEMORIA},
    reference,
    site::{Answer, DIRECTORY, RELEASE, Running, Site, command, snapshot_order, task},
};

/// What the new version's schema has more.
const MIGRATION: &str = "ALTER TABLE agents ADD COLUMN nick TEXT; CREATE TABLE consents (id SERIAL PRIMARY KEY)";

/// A database with snapshot and reference, ready for its migration.
struct Ready {
    cluster: Cluster,
    site: Site,
    manifest_sha256: String,
}

impl Ready {
    async fn new() -> Self {
        let (cluster, site) = (Cluster::start().await, Site::new());
        cluster.app(MEMORIA).await;
        let answer = site.run(&JobOrder::Snapshot(snapshot_order(&cluster).await), &cluster).await;
        let Some(Facts::Snapshot(facts)) = answer.report.facts else { panic!("{:?}", answer.report) };
        reference::build(&site.other_pod(), &format!("{MEMORIA}; {MIGRATION}")).await.is(true, "Done", None);
        Self { cluster, site, manifest_sha256: facts.manifest_sha256 }
    }

    async fn spawn(&self, pod: &Site) -> Running {
        let order = GuardOrder {
            database: task(&self.cluster, "prod-1").await,
            directory: DIRECTORY.to_owned(),
            reference_directory: DIRECTORY.to_owned(),
            limit_seconds: 60,
        };
        let input = JobInput { manifest_sha256: Some(self.manifest_sha256.clone()), ..JobInput::default() };
        pod.spawn(&JobOrder::Guard(order), &input, &self.cluster.url_text())
    }

    /// A guard in a pod of its own that must not let anything begin.
    async fn refusal(&self) -> Answer {
        let pod = self.site.other_pod();
        let running = self.spawn(&pod).await;
        let go = pod.go().await;
        assert!(!go.proceed, "the runner was let begin");
        let _: serde_json::Value = pod.wait_for("verdict.json").await;
        running.terminate().await
    }

    /// A whole run: the runner's work is this SQL, its result these commands.
    async fn migrate(&self, sql: &str, commands: Vec<CommandResult>) -> Answer {
        let pod = self.site.other_pod();
        let running = self.spawn(&pod).await;
        let go = pod.go().await;
        assert!(go.proceed, "{go:?}");
        self.cluster.app(sql).await;
        pod.result(commands);
        let _: serde_json::Value = pod.wait_for("verdict.json").await;
        running.terminate().await
    }

    async fn marker(&self) -> (bool, Option<String>) {
        sqlx::query_as(
            "SELECT finished_at IS NOT NULL, outcome FROM memoria_operator.attempt_step WHERE attempt = 'prod-1'",
        )
        .fetch_one(&mut self.cluster.admin().await)
        .await
        .unwrap()
    }
}

fn facts(answer: &Answer) -> MigrateFacts {
    match &answer.report.facts {
        Some(Facts::Migrate(facts)) => facts.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_schema_decides_and_a_failure_that_was_only_printed_does_not() {
    let ready = Ready::new().await;
    let commands =
        vec![command("add_consents", Some(0), false, "ok"), command("add_nick", Some(0), true, "Failed to add nick")];
    let answer = ready.migrate(MIGRATION, commands).await;
    answer.is(true, "Done", None);
    let states: Vec<_> = facts(&answer).migrations.iter().map(|migration| migration.state).collect();
    assert_eq!(states, [MigrationState::Ran, MigrationState::ReportedFailure]);
    assert_eq!(ready.marker().await, (true, Some("Done".to_owned())));
    // Another pod gets the same answer, and nothing runs twice.
    assert_eq!(ready.refusal().await.report, answer.report);
}

#[tokio::test]
async fn a_migration_that_only_says_it_worked_is_a_schema_mismatch() {
    let ready = Ready::new().await;
    let answer = ready.migrate("CREATE TABLE stray (a int)", vec![command("add_consents", Some(0), false, "ok")]).await;
    answer.is(false, "SchemaMismatch", Some(Category::Candidate));
    let found = facts(&answer);
    assert_eq!(found.differences, ["column agents.nick: missing", "table consents: missing"]);
    assert_eq!(found.extra, ["table stray"]);
}

#[tokio::test]
async fn an_exit_code_decides_before_the_schema() {
    let ready = Ready::new().await;
    let commands =
        vec![command("add_nick", Some(0), false, ""), command("add_consents", Some(3), false, "Traceback\nBoom\n")];
    let answer = ready.migrate(MIGRATION, commands).await;
    answer.is(false, "MigrateFailed", Some(Category::Candidate));
    assert_eq!(answer.report.message, "migration add_consents ended with exit code 3: Boom");
    assert_eq!(facts(&answer).migrations[1].state, MigrationState::Failed);
    assert_eq!(ready.marker().await, (true, Some("MigrateFailed".to_owned())));
    ready.refusal().await.is(false, "MigrateFailed", Some(Category::Candidate));
}

#[tokio::test]
async fn data_that_changed_after_the_snapshot_keeps_every_migration_from_running() {
    let ready = Ready::new().await;
    ready.cluster.app("UPDATE teams SET name = 'late' WHERE team_id = 't1'").await;
    let answer = ready.refusal().await;
    answer.is(false, "DataChangedSinceSnapshot", Some(Category::Conflict));
    assert!(answer.report.message.contains("public.teams"), "{}", answer.report.message);
    ready.cluster.app("UPDATE teams SET name = 'team' WHERE team_id = 't1'; ALTER TABLE teams ADD COLUMN x INT").await;
    let answer = ready.refusal().await;
    answer.is(false, "DataChangedSinceSnapshot", Some(Category::Conflict));
    ready.cluster.app("ALTER TABLE teams DROP COLUMN x").await;
    ready.migrate(MIGRATION, vec![command("all", Some(0), false, "")]).await.is(true, "Done", None);
}

#[tokio::test]
async fn another_manifest_and_another_database_are_refused() {
    let mut ready = Ready::new().await;
    let kept = std::mem::replace(&mut ready.manifest_sha256, "0".repeat(64));
    ready.refusal().await.is(false, "ManifestMismatch", Some(Category::Environment));
    ready.manifest_sha256 = kept;
    // The URL now leads to a copy: the same system, name and oid, another place.
    let copy = Cluster::start().await;
    let pod = ready.site.other_pod();
    let order = JobOrder::Guard(GuardOrder {
        database: task(&ready.cluster, "prod-1").await,
        directory: DIRECTORY.to_owned(),
        reference_directory: DIRECTORY.to_owned(),
        limit_seconds: 60,
    });
    let input = JobInput { manifest_sha256: Some(ready.manifest_sha256.clone()), ..JobInput::default() };
    let running = pod.spawn(&order, &input, &copy.url_text());
    assert!(!pod.go().await.proceed);
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    running.terminate().await.is(false, "WrongDatabase", Some(Category::Environment));
}

#[tokio::test]
async fn what_another_pod_began_is_never_run_again() {
    let ready = Ready::new().await;
    let pod = ready.site.other_pod();
    let mut running = ready.spawn(&pod).await;
    assert!(pod.go().await.proceed);
    // While the first pod works, a second is refused at once.
    let answer = ready.refusal().await;
    answer.is(false, "MigrateOutcomeUnknown", Some(Category::Environment));
    running.kill();
    ready.refusal().await.is(false, "MigrateOutcomeUnknown", Some(Category::Environment));
    assert_eq!(ready.marker().await, (false, None));
}

#[tokio::test]
async fn the_statement_in_its_refusal_closes_the_other_attempt_and_nothing_that_ended() {
    let ready = Ready::new().await;
    let mut session = ready.cluster.pinned().await;
    markers::ensure(&mut session).await.unwrap();
    markers::begin(&mut session, RELEASE, "prod-0", "migrate", "token").await.unwrap();
    markers::begin(&mut session, RELEASE, "prod-0", "restore", "token").await.unwrap();
    drop(session);
    ready
        .cluster
        .app("UPDATE memoria_operator.attempt_step SET finished_at = now(), outcome = 'Done' WHERE step = 'restore'")
        .await;
    let answer = ready.refusal().await;
    answer.is(false, "UnfinishedAttempt", Some(Category::Conflict));
    let statement = commands::abandon(RELEASE, "prod-0");
    assert!(answer.report.message.contains(&statement), "{}", answer.report.message);
    // As a person runs it, with the application's rights.
    ready.cluster.app(&statement).await;
    ready.migrate(MIGRATION, vec![command("all", Some(0), false, "")]).await.is(true, "Done", None);
    let ends: Vec<(String, Option<String>)> = sqlx::query_as(
        "SELECT step, outcome FROM memoria_operator.attempt_step WHERE attempt = 'prod-0' ORDER BY step",
    )
    .fetch_all(&mut ready.cluster.admin().await)
    .await
    .unwrap();
    let ends: Vec<_> = ends.iter().map(|(step, outcome)| (step.as_str(), outcome.as_deref())).collect();
    assert_eq!(ends, [("migrate", Some("Abandoned")), ("restore", Some("Done"))]);
}

#[tokio::test]
async fn a_guard_that_is_killed_and_restarted_in_its_pod_finishes_its_work() {
    let ready = Ready::new().await;
    let pod = ready.site.other_pod();
    let mut first = ready.spawn(&pod).await;
    assert!(pod.go().await.proceed);
    first.kill();
    // A command whose client died with the first life is still at work in the server.
    let left = ready.cluster.session("app", "memoria").await;
    let second = ready.spawn(&pod).await;
    ready.cluster.app(MIGRATION).await;
    drop(left);
    pod.result(vec![command("all", Some(0), false, "")]);
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    second.terminate().await.is(true, "Done", None);
    assert_eq!(ready.marker().await, (true, Some("Done".to_owned())));
}

#[tokio::test]
async fn a_pod_that_is_ended_while_migrations_run_leaves_the_outcome_unknown() {
    let ready = Ready::new().await;
    let pod = ready.site.other_pod();
    let running = ready.spawn(&pod).await;
    assert!(pod.go().await.proceed);
    running.terminate().await.is(false, "MigrateOutcomeUnknown", Some(Category::Environment));
    assert_eq!(ready.marker().await, (false, None));
    ready.refusal().await.is(false, "MigrateOutcomeUnknown", Some(Category::Environment));
}
