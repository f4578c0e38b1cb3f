//! Upgrades that fail after the image moved: image and data come back, proved by the independent checkers before the old
//! servers start, because those rewrite data. What a person has to decide is asked with writers stopped, and what the
//! release says to type works.

use anyhow::{Context, Result, ensure};
use memoria_operator::api::{
    MemoriaUpgradeStatus, marks,
    upgrade::{Category, Outcome as Ended, PhaseState},
};
use serde_json::json;

use crate::{
    Outcome,
    checkers::Captured,
    environment,
    failures::{next_action, untouched, writers_are_stopped},
    good::stored,
    site::{FROM, Options, SOON, Site, UPGRADED, condition, ready, standing, with_site},
};

/// One migration of this version dies after half of its DDL is committed.
pub const BAD_MIGRATION: &str = "1.0.1-bad-migrate";
/// One of its migrations exits 0 and leaves the schema wrong.
pub const SILENT_MIGRATION: &str = "1.0.1-silent-migrate";
/// Its server changes the schema when it starts, and then dies.
pub const ALTERS_THEN_CRASHES: &str = "1.0.1-alters-then-crashes";
/// Its sample bootstrap fails, when ingestion is long back.
pub const BOOTSTRAP_FAILS: &str = "1.0.1-bootstrap-fails";

#[tokio::test]
async fn a_failing_migration_is_taken_back_on_postgresql_15() -> Outcome {
    with_site("back-15", Options { small: false, ..Options::default() }, async |site| {
        taken_back(site, BAD_MIGRATION, "Migrate", Category::Candidate).await
    })
    .await
}

#[tokio::test]
async fn a_migration_that_lies_is_taken_back_on_postgresql_17() -> Outcome {
    with_site("back-17", Options { postgres: 17, ..Options::default() }, async |site| {
        // Rows of types that Memoria does not use, and of an extension, which only this major has here.
        site.as_superuser("memoria", include_str!("zoo.sql")).await?;
        taken_back(site, SILENT_MIGRATION, "Migrate", Category::Candidate).await
    })
    .await
}

#[tokio::test]
async fn a_server_that_alters_the_schema_and_dies_is_taken_back() -> Outcome {
    with_site("back-start", Options::default(), async |site| {
        taken_back(site, ALTERS_THEN_CRASHES, "Start", Category::Candidate).await
    })
    .await
}

/// The version fails in that phase; everything comes back without a person, and the next command ends it Ready.
pub async fn taken_back(site: &Site, version: &str, phase: &str, category: Category) -> Outcome {
    site.adopt().await?;
    let before = Captured::now(site).await?;
    site.set_version(version).await?;
    restored_exactly(site, &before).await?;
    let release = site.until_ended(Ended::RolledBack).await?;
    let (shown, reason, message) = standing(&release);
    ensure!(shown == "RolledBack" && reason == "RolledBack", "{shown}/{reason}");
    ensure!(message.contains(&format!("{phase} failed")), "it does not say what failed: {message}");
    ensure!(message.contains("restored and proved"), "it does not say what became of the data: {message}");
    ensure!(condition(&release, "IngestionStopped").is_none(), "ingestion is said to be stopped");

    let journal = journal(site).await?;
    let failure = journal.failure.as_ref().context("a failure")?;
    ensure!(failure.phase == phase && failure.category == category, "{failure:?}");
    let rollback = journal.rollback.as_ref().context("a rollback record")?;
    let digest = journal.snapshot.as_ref().map(|snapshot| snapshot.data_digest.clone());
    ensure!(rollback.restored == Some(true) && rollback.data_digest == digest, "{rollback:?} is not {digest:?}");
    evidence_is_stored(site, &journal).await?;
    untouched(site, &before).await?;

    next_action(&release)?.run(site).await?;
    let release = site.until("Ready", SOON, |release| ready(release).then(|| release.clone())).await?;
    ensure!(standing(&release).1 == "Adopted", "{:?}", standing(&release));
    // The same images again are refused before anything is touched.
    let again = json!({marks::REQUESTED_AT_ANNOTATION: "once more"});
    site.patch(json!({"metadata": {"annotations": again}, "spec": {"version": version}})).await?;
    let release =
        site.until("a verdict", UPGRADED, |release| condition(release, "Stalled").map(|_| release.clone())).await?;
    let (_, reason, message) = standing(&release);
    ensure!(reason == "PreFlightFailed" && message.contains("rejected-images"), "{reason}: {message}");
    untouched(site, &before).await
}

/// Holds the way back before the old servers start: not one bit of the data may differ then.
pub async fn restored_exactly(site: &Site, before: &Captured) -> Outcome {
    held_when_restored(site).await?;
    Captured::now(site).await?.has_the_data_of(before).await?;
    site.patch(json!({"spec": {"suspend": false}})).await
}

/// The same after clients wrote.
pub async fn restored_but_for_sequences(site: &Site, before: &Captured) -> Outcome {
    held_when_restored(site).await?;
    Captured::now(site).await?.has_the_rows_of(before).await?;
    site.patch(json!({"spec": {"suspend": false}})).await
}

/// Waits until the data is back, and lets nothing go on after that.
async fn held_when_restored(site: &Site) -> Outcome {
    site.until("the way back", UPGRADED, |release| (standing(release).0 == "ImportSnapshot").then_some(())).await?;
    site.patch(json!({"spec": {"suspend": true}})).await?;
    site.until("the restore", UPGRADED, |release| standing(release).2.contains("before RestoreConfig").then_some(()))
        .await?;
    writers_are_stopped(site).await
}

#[tokio::test]
async fn where_a_person_shall_decide_writers_stay_stopped_until_the_next_command() -> Outcome {
    with_site("halted", Options::default(), async |site| {
        site.adopt().await?;
        let before = Captured::now(site).await?;
        let rollback = json!({"automatic": false});
        site.patch(json!({"spec": {"version": BAD_MIGRATION, "rollback": rollback}})).await?;
        let release = site.until_ended(Ended::Halted).await?;
        let (phase, reason, message) = standing(&release);
        ensure!(phase == "Halted" && reason == "Halted", "{phase}/{reason}");
        for word in ["add_consent_scope", "writers stay stopped", "snapshot"] {
            ensure!(message.contains(word), "the message does not name {word:?}: {message}");
        }
        ensure!(condition(&release, "IngestionStopped").is_some(), "IngestionStopped is not True");
        let journal = journal(site).await?;
        ensure!(journal.phases.last().is_some_and(|last| last.name == "Halt" && last.state == PhaseState::Passed));
        ensure!(journal.writers_back_at.is_none(), "writers came back");
        writers_are_stopped(site).await?;
        // One copy is the snapshot, whole; the other the database as the failure left it, readable.
        let snapshot = journal.snapshot.as_ref().context("a snapshot")?;
        stored(site, snapshot, "manifest.json").await?;
        ensure!(
            Captured::now(site).await?.has_the_data_of(&before).await.is_err(),
            "the half-run migration left no trace; the test is void"
        );

        next_action(&release)?.run(site).await?;
        restored_exactly(site, &before).await?;
        site.until_ended(Ended::RolledBack).await?;
        untouched(site, &before).await
    })
    .await
}

#[tokio::test]
async fn late_writes_are_set_aside_only_with_a_persons_word() -> Outcome {
    with_site("late", Options::default(), async |site| {
        site.adopt().await?;
        let before = Captured::now(site).await?;
        site.set_version(BOOTSTRAP_FAILS).await?;
        site.until("Verification", UPGRADED, |release| {
            ["IngestionReenable", "Verification"].contains(&standing(release).0.as_str()).then_some(())
        })
        .await?;
        write_as_a_client(site, [3, 2, 1]).await?;
        let release = site
            .until("the question", UPGRADED, |release| {
                condition(release, "AwaitingDecision").is_some().then(|| release.clone())
            })
            .await?;
        let (phase, reason, message) = standing(&release);
        ensure!(phase == "ImportSnapshot" && reason == "DataLossOverBudget", "{phase}/{reason}: {message}");
        ensure!(condition(&release, "IngestionStopped").is_some(), "IngestionStopped is not True");
        writers_are_stopped(site).await?;

        next_action(&release)?.run(site).await?;
        restored_exactly(site, &before).await?;
        site.until_ended(Ended::RolledBack).await?;
        let journal = journal(site).await?;
        let late = journal.rollback.as_ref().context("a rollback record")?;
        ensure!(
            late.late_inserted >= 3 && late.late_updated >= 2 && late.late_deleted >= 1,
            "writes are missing from the count: {late:?}"
        );
        let teams = late.late_tables.iter().find(|table| table.table == "public.teams").context("the teams")?;
        let in_all: i64 = late.late_tables.iter().map(|table| table.inserted).sum();
        ensure!(teams.inserted >= 3 && in_all <= late.late_inserted, "by table: {late:?}");
        ensure!(journal.decisions.len() == 1, "{:?}", journal.decisions);
        evidence_is_stored(site, &journal).await?;
        untouched(site, &before).await
    })
    .await
}

#[tokio::test]
async fn rows_inserted_into_a_table_that_is_carried_forward_outlive_the_way_back() -> Outcome {
    with_site("carried", Options::default(), async |site| {
        site.adopt().await?;
        let before = Captured::now(site).await?;
        // Servers rewrite rows when they start, and clients change some: that much may go.
        let rollback = json!({"carryForward": ["teams"], "dataLossBudget": {"rows": 100_000}});
        site.patch(json!({"spec": {"version": BOOTSTRAP_FAILS, "rollback": rollback}})).await?;
        site.until("Verification", UPGRADED, |release| {
            ["IngestionReenable", "Verification"].contains(&standing(release).0.as_str()).then_some(())
        })
        .await?;
        write_as_a_client(site, [3, 2, 1]).await?;
        site.until_ended(Ended::RolledBack).await?;
        let journal = journal(site).await?;
        let late = journal.rollback.as_ref().context("a rollback record")?;
        let teams = late.late_tables.iter().find(|table| table.table == "public.teams").context("the teams")?;
        ensure!((late.late_carried, teams.carried) == (3, 3), "not carried: {late:?}");
        ensure!(late.late_updated >= 2 && late.late_deleted >= 1 && late.restored == Some(true), "{late:?}");
        evidence_is_stored(site, &journal).await?;
        // They are there; without them, all is as before.
        let taken = "DO $$ BEGIN IF (SELECT count(*) FROM teams WHERE team_id LIKE 'late-%' AND name = 'late') <> 3 THEN \
                     RAISE 'the rows are missing'; END IF; END $$; DELETE FROM teams WHERE team_id LIKE 'late-%'";
        site.as_superuser("memoria", taken).await?;
        untouched(site, &before).await
    })
    .await
}

/// That many rows come, change and go while the new version serves.
pub async fn write_as_a_client(site: &Site, [inserted, updated, deleted]: [u32; 3]) -> Outcome {
    let sql = &format!(
        "INSERT INTO teams (team_id, name, slug, created_at, updated_at) \
           SELECT 'late-' || n, 'late', 'late-' || n, now(), now() FROM generate_series(1, {inserted}) n; \
         UPDATE chat_history SET user_input = 'late' WHERE chat_id IN (SELECT chat_id FROM chat_history ORDER BY 1 LIMIT {updated}); \
         DELETE FROM memory_access_events WHERE id IN (SELECT id FROM memory_access_events ORDER BY id DESC LIMIT {deleted})"
    );
    let psql = [
        "exec",
        "memoria-postgres-0",
        "--",
        "psql",
        "-h",
        "/tmp",
        "-U",
        "memoria",
        "memoria",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        sql,
    ];
    environment::kubectl(&[&["-n", site.namespace.as_str()], &psql[..]].concat()).await.map(drop)
}

pub async fn journal(site: &Site) -> Result<MemoriaUpgradeStatus> {
    site.attempt().await?.status.context("a journal")
}

/// The failed state and the evidence lie beside the snapshot.
async fn evidence_is_stored(site: &Site, journal: &MemoriaUpgradeStatus) -> Outcome {
    let snapshot = journal.snapshot.as_ref().context("a snapshot")?;
    for file in ["failed/manifest.json", "failed/evidence-restore.json"] {
        stored(site, snapshot, file).await?;
    }
    ensure!(site.release().await?.spec.version != FROM, "the spec was changed by the operator");
    Ok(())
}
