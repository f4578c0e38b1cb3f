//! Holds: each kind is entered, explained, and left by itself once what it waits for is there.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::api::PostParams;
use memoria_operator::api::{
    GoDuration, MemoriaRelease,
    release::{Check, OnHold},
    upgrade::{Outcome as Ended, PhaseState},
};
use serde_json::json;

use crate::{
    Outcome,
    checkers::Captured,
    environment,
    failures::{next_action, untouched, writers_are_stopped},
    good::is_upgraded,
    rollback::write_as_a_client,
    site::{FROM, Options, SOON, Site, TO, UPGRADED, condition, ready, standing, with_site},
    sqlite::SQLITE,
};

/// A check of data that nobody serves yet.
fn late(name: &str, stage: &str) -> Result<Check> {
    serde_json::from_value(json!({
        "name": name, "stage": stage, "within": "5s", "every": "1s", "passWhen": "value < 1000.0",
        "http": {"url": format!("http://{name}:8080/depth"), "valueOf": "body.depth", "timeOf": "body.updated_at"},
    }))
    .context("a check")
}

/// Serves it from now on: the queue under another name.
async fn serve(site: &Site, name: &str) -> Outcome {
    let service = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app.kubernetes.io/name": "memoria-queue"}, "ports": [{"port": 8080, "targetPort": "http"}]},
    }))?;
    site.api::<Service>().create(&PostParams::default(), &service).await?;
    Ok(())
}

/// Waits for a hold of that phase that says all it has to.
async fn held(site: &Site, phase: &str, reason: &str) -> Result<MemoriaRelease> {
    let release = site
        .until(&format!("a hold in {phase}"), UPGRADED, |release| {
            let hold = release.status.as_ref()?.hold.as_ref()?;
            (hold.phase == phase && hold.reason == reason).then(|| release.clone())
        })
        .await?;
    ensure!(condition(&release, "Held").is_some(), "the condition Held is not True");
    ensure!(!ready(&release), "a release that holds is Ready");
    ensure!(release.status.as_ref().is_some_and(|s| s.next_action.is_some()), "it says no next action");
    Ok(release)
}

#[tokio::test]
async fn a_check_without_data_holds_in_every_stage_until_there_is_some() -> Outcome {
    with_site("holds", Options::default(), held_in_every_stage).await
}

#[tokio::test]
async fn a_check_without_data_holds_every_stage_of_an_sqlite_upgrade_until_there_is_some() -> Outcome {
    with_site("holds-sqlite", SQLITE, held_in_every_stage).await
}

async fn held_in_every_stage(site: &Site) -> Outcome {
    if site.options.sqlite {
        // It has none of its own; here it is only something that answers.
        let queue = environment::root().join("tests/memoria/manifests/20-queue.yaml");
        let queue = queue.display().to_string();
        environment::kubectl(&["-n", &site.namespace, "apply", "-f", &queue]).await?;
        let rollout = ["rollout", "status", "deployment/memoria-queue", "--timeout=90s"];
        environment::kubectl(&[&["-n", &site.namespace], &rollout[..]].concat()).await?;
    }
    let mut release = site.new_release()?;
    let stages = [
        ("late-preflight", "PreFlight"),
        ("late-candidate", "BeforeIngestion"),
        ("late-gate", "IngestionReenable"),
        ("late-verify", "AfterIngestion"),
    ];
    for (name, stage) in stages {
        release.spec.checks.push(late(name, stage)?);
    }
    // The new server itself is asked too, before any client reaches it.
    release.spec.checks.push(serde_json::from_value(json!({
        "name": "candidate-settings", "stage": "BeforeIngestion", "within": "2m", "every": "2s",
        "passWhen": "status == 200",
        "http": {"url": "http://candidate:8000/settings", "headersFrom": [
            {"name": "X-API-Key", "secretKeyRef": {"name": "memoria-api", "key": "key"}}]},
    }))?);
    site.create(&release).await?;
    site.until("adopted", SOON, |release| ready(release).then_some(())).await?;
    let before = Captured::now(site).await?;
    site.set_version(TO).await?;

    let release = held(site, "PreFlight", "Inconclusive").await?;
    untouched(site, &before).await?;
    serve(site, "late-preflight").await?;
    next_action(&release)?.run(site).await?;

    let release = held(site, "Start", "CheckInconclusive").await?;
    let hold = release.status.as_ref().and_then(|s| s.hold.clone()).context("a hold")?;
    ensure!(hold.message.contains("late-candidate") && hold.deadline.is_some(), "{hold:?}");
    ensure!(condition(&release, "IngestionStopped").is_some(), "ingestion is not said to be stopped");
    writers_are_stopped(site).await?;
    next_action(&release)?.run(site).await?;
    site.patch(json!({"spec": {"historyLimit": 5}})).await?;
    site.until("the changed spec to be said to wait", SOON, |release| {
        standing(release).2.contains("of the spec (version 1.0.0) waits until attempt").then_some(())
    })
    .await?;
    serve(site, "late-candidate").await?;

    for (name, phase) in [("late-gate", "IngestionReenable"), ("late-verify", "Verification")] {
        let release = held(site, phase, "CheckInconclusive").await?;
        let hold = release.status.as_ref().and_then(|s| s.hold.clone()).context("a hold")?;
        ensure!(hold.message.contains(name) && hold.deadline.is_none(), "{hold:?}");
        ensure!(condition(&release, "IngestionStopped").is_none(), "writers run, but are said to be stopped");
        serve(site, name).await?;
    }
    let release = site.until_ended(Ended::Succeeded).await?;
    is_upgraded(site, &release, &before).await?;
    let journal = site.attempt().await?.status.context("a journal")?;
    let phases = journal.phases.iter().filter(|record| record.held_seconds > 0).count();
    ensure!(phases == 3 && journal.hold.is_none(), "{phases} phases held");
    ensure!(journal.checks.iter().any(|check| check.name == "candidate-settings"), "{:?}", journal.checks);
    let events = site.event_reasons().await?;
    ensure!(["Held", "HoldLeft"].iter().all(|reason| events.iter().any(|e| e == reason)), "{events:?}");
    Ok(())
}

#[tokio::test]
async fn rows_at_risk_are_counted_while_an_attempt_holds_after_clients_were_let_in() -> Outcome {
    with_site("holds-at-risk", Options::default(), async |site| {
        let mut release = site.new_release()?;
        release.spec.checks.push(late("late-verify", "AfterIngestion")?);
        site.adopt_as(&release).await?;
        site.set_version(TO).await?;
        let cost = |release: &MemoriaRelease| release.status.as_ref().and_then(|status| status.rollback.clone());
        let none = site.until("a way back that costs no row", UPGRADED, |release| {
            cost(release).filter(|cost| cost.rows_at_risk == Some(0))
        });
        ensure!(none.await?.rows_at_risk_at.is_none(), "somebody counted before a client was let in");
        held(site, "Verification", "CheckInconclusive").await?;
        write_as_a_client(site, [3, 1, 2]).await?;
        // The first count comes three minutes after clients were let in, and may be of the moment before.
        let counted = site.until("six rows at risk", UPGRADED, |release| {
            cost(release).filter(|cost| cost.rows_at_risk.is_some_and(|rows| rows >= 6))
        });
        let counted = counted.await?;
        ensure!(counted.rows_at_risk_at.is_some() && counted.estimate_seconds.is_some_and(|s| s > 0), "{counted:?}");
        ensure!(counted.to_version == FROM, "{counted:?}");
        serve(site, "late-verify").await?;
        let release = site.until_ended(Ended::Succeeded).await?;
        ensure!(cost(&release).is_none(), "a way back is offered that nobody goes: {:?}", cost(&release));
        ensure!(release.status.is_some_and(|status| status.current.is_some_and(|now| now.version == TO)));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_hold_past_its_deadline_is_taken_back_where_the_release_says_so() -> Outcome {
    with_site("hold-back", Options::default(), expired).await
}

#[tokio::test]
async fn a_hold_of_an_sqlite_upgrade_past_its_deadline_is_taken_back_where_the_release_says_so() -> Outcome {
    with_site("hold-sqlite-back", SQLITE, expired).await
}

async fn expired(site: &Site) -> Outcome {
    let mut release = site.new_release()?;
    release.spec.checks.push(late("never-there", "BeforeIngestion")?);
    release.spec.timeouts.hold = GoDuration::from_secs(30);
    release.spec.timeouts.on_hold = OnHold::Rollback;
    site.create(&release).await?;
    site.until("adopted", SOON, |release| ready(release).then_some(())).await?;
    site.set_version(TO).await?;
    held(site, "Start", "CheckInconclusive").await?;
    site.until_ended(Ended::RolledBack).await?;
    let journal = site.attempt().await?.status.context("a journal")?;
    let failure = journal.failure.context("a failure")?;
    ensure!(failure.phase == "Start" && failure.reason == "HoldExpired", "{failure:?}");
    Ok(())
}

#[tokio::test]
async fn a_suspension_is_a_hold_that_its_next_command_ends() -> Outcome {
    with_site("hold-suspended", Options::default(), suspended).await
}

#[tokio::test]
async fn a_suspension_of_an_sqlite_upgrade_is_a_hold_that_its_next_command_ends() -> Outcome {
    with_site("hold-sqlite-suspended", SQLITE, suspended).await
}

async fn suspended(site: &Site) -> Outcome {
    site.adopt().await?;
    let before = Captured::now(site).await?;
    site.set_version(TO).await?;
    site.until("writers to be stopped", UPGRADED, |release| condition(release, "IngestionStopped")).await?;
    site.patch(json!({"spec": {"suspend": true}})).await?;
    let release = site
        .until("the suspension to hold", UPGRADED, |release| {
            let hold = release.status.as_ref()?.hold.as_ref()?;
            (hold.reason == "Suspended").then(|| release.clone())
        })
        .await?;
    let journal = site.attempt().await?.status.context("a journal")?;
    ensure!(journal.phases.iter().all(|record| record.state == PhaseState::Passed), "a phase runs on");
    next_action(&release)?.run(site).await?;
    let release = site.until_ended(Ended::Succeeded).await?;
    is_upgraded(site, &release, &before).await
}
