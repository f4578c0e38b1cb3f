//! Versions whose migrations fail, or lie, are refused by the rehearsal on a copy: before a single pod is stopped. What it
//! measures of a good version stands in the plan.

use anyhow::{Context, ensure};
use memoria_operator::api::{
    MemoriaUpgrade,
    release::{Mode, Rehearse, Verdict},
    upgrade::Outcome as Ended,
};
use serde_json::json;

use crate::{
    Outcome,
    checkers::Captured,
    failures::untouched,
    good::is_upgraded,
    rollback::{BAD_MIGRATION, SILENT_MIGRATION},
    site::{Options, Site, TO, UPGRADED, condition, standing, with_site},
    sqlite::SQLITE,
};

#[tokio::test]
async fn migrations_that_lie_or_fail_are_refused_while_memoria_serves() -> Outcome {
    with_site("rehearsed", Options::default(), only_what_succeeds).await
}

#[tokio::test]
async fn migrations_of_a_file_that_lie_or_fail_are_refused_while_memoria_serves() -> Outcome {
    with_site("rehearsed-sqlite", SQLITE, only_what_succeeds).await
}

async fn only_what_succeeds(site: &Site) -> Outcome {
    site.adopt().await?;
    let before = Captured::now(site).await?;
    // This one exits 0; only the schema tells.
    refused(site, SILENT_MIGRATION, &["rehearsal", "consent_scope: missing", "init-db builds", "was touched"]).await?;
    untouched(site, &before).await?;
    refused(site, BAD_MIGRATION, &["rehearsal", "add_consent_scope ended with exit code 1", "was touched"]).await?;
    untouched(site, &before).await?;

    site.patch(json!({"spec": {"version": TO, "rollback": {"rehearse": "Required"}}})).await?;
    let release = site.until_ended(Ended::Succeeded).await?;
    let plan = site.attempt().await?.spec;
    let estimates = plan.estimates.context("the plan has no estimates")?;
    ensure!(
        estimates.snapshot_seconds > 0 && estimates.migrate_seconds > 0 && estimates.restore_seconds > 0,
        "{estimates:?}"
    );
    ensure!(plan.checks.iter().any(|check| check.name == "rehearsal" && check.result == Verdict::Passed));
    is_upgraded(site, &release, &before).await
}

#[tokio::test]
async fn a_plan_shows_what_its_rehearsal_measured() -> Outcome {
    with_site("rehearsed-plan", Options { rows: 300, ..Options::default() }, async |site| {
        let before = Captured::now(site).await?;
        let mut release = site.new_release()?;
        release.spec.version = TO.to_owned();
        release.spec.mode = Mode::Plan;
        release.spec.rollback.rehearse = Rehearse::WhenPossible;
        site.create(&release).await?;
        let release = site.until_settled(UPGRADED).await?;
        let (phase, reason, message) = standing(&release);
        ensure!(reason == "PlanReady", "{phase}/{reason}: {message}");
        let plan = release.status.and_then(|status| status.pre_flight).and_then(|run| run.plan).context("a plan")?;
        ensure!(plan.estimates.is_some() && plan.warnings.is_empty(), "{plan:?}");
        untouched(site, &before).await
    })
    .await
}

async fn refused(site: &Site, version: &str, words: &[&str]) -> Outcome {
    site.say(&format!("version {version}"));
    site.patch(json!({"spec": {"version": version, "rollback": {"rehearse": "WhenPossible"}}})).await?;
    let release = site
        .until("a verdict", UPGRADED, |release| {
            let seen = release.status.as_ref().and_then(|status| status.observed_generation);
            let told = seen == release.metadata.generation && condition(release, "Stalled").is_some();
            told.then(|| release.clone())
        })
        .await?;
    let (phase, reason, message) = standing(&release);
    ensure!(reason == "PreFlightFailed", "{phase}/{reason}: {message}");
    for word in words {
        ensure!(message.contains(word), "the message does not name {word:?}: {message}");
    }
    let attempts: Vec<MemoriaUpgrade> = site.list().await?;
    ensure!(attempts.is_empty(), "an attempt was made");
    ensure!(condition(&release, "IngestionStopped").is_none(), "ingestion is said to be stopped");
    Ok(())
}
