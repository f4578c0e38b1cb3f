//! The good upgrade, looked at from every side.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::{Api, ResourceExt as _, api::DeleteParams};
use memoria_operator::{
    api::{
        GoDuration, MemoriaRelease, MemoriaUpgrade, marks,
        release::Verdict,
        upgrade::{MigrationState, Outcome as Ended, PhaseState, SnapshotRecord},
    },
    upgrade::{phase::FORWARD, preflight::digest_plan},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    Outcome,
    checkers::{self, Captured},
    environment,
    site::{FROM, Options, RELEASE, SOON, Site, TO, ready, standing, with_site},
};

#[tokio::test]
async fn an_upgrade_on_postgresql_15_keeps_every_promise() -> Outcome {
    let options = Options { postgres: 15, small: false, ..Options::default() };
    with_site("good-15", options, async |site| {
        upgrade(site).await?;
        a_second_owner_is_refused(site).await
    })
    .await
}

#[tokio::test]
async fn an_upgrade_on_postgresql_17_keeps_every_promise() -> Outcome {
    let options = Options { postgres: 17, rows: 6_000, small: false, ..Options::default() };
    with_site("good-17", options, async |site| upgrade(site).await).await
}

pub async fn upgrade(site: &Site) -> Outcome {
    let (pods, workloads) = (site.pods().await?, site.workloads().await?);
    let mut release = site.new_release()?;
    let demanded = demand_events(&mut release);
    site.adopt_as(&release).await?;
    let adopted = site.release().await?;
    ensure!(standing(&adopted).1 == "Adopted", "{:?}", standing(&adopted));
    ensure!(site.pods().await? == pods, "adoption restarted a pod");
    for (before, now) in workloads.iter().zip(site.workloads().await?) {
        ensure!(
            before.metadata.generation == now.metadata.generation,
            "adoption changed the spec of {}",
            now.name_any()
        );
    }
    let before = Captured::now(site).await?;
    let rehearse = if site.options.small { "Never" } else { "Required" };
    site.patch(json!({"spec": {"version": TO, "rollback": {"rehearse": rehearse}}})).await?;
    if demanded {
        site.ingest_while_stopped("ingested-by-the-new-version").await?;
    }
    let release = site.until_ended(Ended::Succeeded).await?;
    if demanded {
        let checks = site.attempt().await?.status.context("a journal")?.checks;
        let telemetry = checks.iter().find(|check| check.name == TELEMETRY).context("a result of the check")?;
        ensure!(telemetry.result == Verdict::Passed, "{telemetry:?}");
    }
    is_upgraded(site, &release, &before).await
}

/// The sample's check that telemetry shows what the new version's workers ingest.
pub const TELEMETRY: &str = "telemetry";

/// Fails the upgrade when telemetry shows no event since the new servers started. Answers false where there are no workers
/// whose events it could show.
pub fn demand_events(release: &mut MemoriaRelease) -> bool {
    let Some(check) = release.spec.checks.iter_mut().find(|check| check.name == TELEMETRY) else { return false };
    check.required = true;
    check.within = GoDuration::from_secs(60);
    true
}

/// Workloads that a release has upgraded are its own.
async fn a_second_owner_is_refused(site: &Site) -> Outcome {
    let mut second = site.new_release()?;
    second.metadata.name = Some("second".into());
    site.create(&second).await?;
    let api: Api<MemoriaRelease> = site.api();
    for _ in 0..SOON.as_secs() {
        let (_, reason, message) = standing(&api.get("second").await?);
        if reason == "TargetClaimed" {
            ensure!(
                message.contains("memoria-server") && message.contains(RELEASE),
                "whose it is is not said: {message}"
            );
            return Ok(api.delete("second", &DeleteParams::default()).await.map(drop)?);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    bail!("a second owner is not refused: {:?}", standing(&api.get("second").await?))
}

/// Everything that holds after a good upgrade.
pub async fn is_upgraded(site: &Site, release: &MemoriaRelease, before: &Captured) -> Outcome {
    let attempt = site.attempt().await?;
    status_tells_it(release, &attempt)?;
    site.until("the finalizer to go", SOON, |release| {
        (!release.finalizers().iter().any(|f| f == marks::FINALIZER)).then_some(())
    })
    .await?;
    journal_is_complete(site, &attempt)?;
    let images = expected_images(site, &attempt).await?;
    workloads_are_back(site).await?;
    jobs_are_armed(site, &attempt).await?;
    manifest_is_the_journals(site, &attempt).await?;
    events_tell_it(site).await?;
    let after = Captured::now(site).await?;
    after.has_the_workloads_of(before, &images).await?;
    after.is_what_an_upgrade_makes_of(before, site, FROM, TO).await?;
    checkers::no_secret_leaked(site).await
}

fn status_tells_it(release: &MemoriaRelease, attempt: &MemoriaUpgrade) -> Result<()> {
    let (phase, reason, message) = standing(release);
    ensure!(ready(release) && phase == "Succeeded" && reason == "ReleaseSucceeded", "{phase}/{reason}: {message}");
    let status = release.status.as_ref().context("a status")?;
    let current = status.current.as_ref().context("status.current")?;
    ensure!(current.version == TO, "current.version is {}", current.version);
    for target in &attempt.spec.targets {
        let shown =
            current.images.iter().find(|image| image.target == target.name).context("each target in current")?;
        ensure!(shown.image == target.to_image, "current shows {} for {}", shown.image, target.name);
    }
    let summary = status.attempt.as_ref().context("status.attempt")?;
    ensure!(summary.id == attempt.name_any() && summary.outcome == Some(Ended::Succeeded), "{summary:?}");
    ensure!(summary.writers_stopped_seconds.is_some_and(|seconds| seconds > 0), "{summary:?}");
    ensure!(status.next_action.is_none(), "nothing is to be done, but it says {:?}", status.next_action);
    Ok(())
}

fn journal_is_complete(site: &Site, attempt: &MemoriaUpgrade) -> Result<()> {
    let (plan, journal) = (&attempt.spec, attempt.status.as_ref().context("a journal")?);
    ensure!(digest_plan(plan)? == plan.plan_hash, "the plan is not what its hash says");
    let names: Vec<_> = journal.phases.iter().map(|record| record.name.as_str()).collect();
    let expected: Vec<_> = FORWARD.iter().map(|phase| phase.name).collect();
    ensure!(names == expected, "phases: {names:?}");
    for record in &journal.phases {
        ensure!(record.state == PhaseState::Passed && record.finished_at.is_some(), "{record:?}");
        ensure!(!record.message.is_empty(), "{} says nothing of what it found", record.name);
    }
    let snapshot = journal.snapshot.as_ref().context("a snapshot")?;
    ensure!(snapshot.rows > 0 && snapshot.bytes > 0 && snapshot.tables >= 17, "{snapshot:?}");
    ensure!(snapshot.data_digest.len() == 64, "{snapshot:?}");
    ensure!(!plan.migrations.is_empty(), "the plan has no migrations");
    let ran: Vec<_> = journal.migrations.iter().map(|migration| &migration.name).collect();
    ensure!(ran == plan.migrations.iter().collect::<Vec<_>>(), "planned {:?}, ran {ran:?}", plan.migrations);
    for migration in &journal.migrations {
        let ran = matches!(migration.state, MigrationState::Ran | MigrationState::ReportedFailure);
        ensure!(ran, "{migration:?}");
    }
    let checks: &[&str] = if site.options.sqlite { &[] } else { &["queue-depth", "settings"] };
    for check in checks {
        ensure!(journal.checks.iter().any(|result| result.name == *check), "no result of the check {check}");
    }
    let (stopped, back) = (journal.writers_stopped_at.clone(), journal.writers_back_at.clone());
    ensure!(
        stopped.zip(back).is_some_and(|(stopped, back)| stopped.0 < back.0),
        "writers never stopped, or never came back"
    );
    ensure!(journal.failure.is_none() && journal.finished_at.is_some(), "{:?}", journal.failure);
    Ok(())
}

/// The images that must run: the plan's, which must be what was built.
async fn expected_images(site: &Site, attempt: &MemoriaUpgrade) -> Result<Vec<String>> {
    let mut images = Vec::new();
    for target in &attempt.spec.targets {
        let repository = if target.name == "dashboard" { "memoria/dashboard" } else { "memoria/server" };
        let digest = environment::digest(repository, TO)?;
        ensure!(target.to_image.ends_with(&format!("@{digest}")), "{} is planned as {}", target.name, target.to_image);
        let from = environment::digest(repository, FROM)?;
        ensure!(
            target.from_digest.ends_with(&format!("@{from}")),
            "{} was found as {}",
            target.name,
            target.from_digest
        );
        images.push(format!("{}/{}={}", target.workload.name, target.container, target.to_image));
    }
    ensure!(images.len() == site.workloads().await?.len(), "targets: {images:?}");
    Ok(images)
}

async fn workloads_are_back(site: &Site) -> Outcome {
    for workload in site.workloads().await? {
        let annotations = workload.annotations();
        for mark in [marks::ATTEMPT_ANNOTATION, marks::PRIOR_REPLICAS_ANNOTATION] {
            ensure!(!annotations.contains_key(mark), "{} still bears {mark}", workload.name_any());
        }
        ensure!(annotations.contains_key(marks::OWNER_ANNOTATION), "{} is not owned", workload.name_any());
    }
    site.maintenance_is_off().await?;
    let pods = site.pods().await?;
    ensure!(!pods.keys().any(|name| name.ends_with("-candidate")), "a candidate is left: {pods:?}");
    Ok(())
}

/// Finished Jobs of the attempt are left to Kubernetes; no Job exists that nobody cleans up.
async fn jobs_are_armed(site: &Site, attempt: &MemoriaUpgrade) -> Outcome {
    let mut jobs = site.jobs().await?;
    // One that was taken back before it may have left some.
    jobs.retain(|job| job.name_any().starts_with(&format!("{}-", attempt.name_any())));
    // What is only for the way back is never made when all goes well, and a count of rows at risk only where it takes long.
    let only_sometimes = |step: &str| step.starts_with("restore") || step == "at-risk";
    let forward = attempt.spec.jobs.iter().filter(|job| !only_sometimes(&job.step));
    let steps: Vec<_> = forward.map(|job| format!("{}-{}", attempt.name_any(), job.step)).collect();
    for job in &jobs {
        let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
        ensure!(ttl.is_some(), "job {} has no TTL", job.name_any());
    }
    ensure!(!jobs.iter().any(|job| job.name_any().contains("-restore")), "a restore ran although all went well");
    for step in steps {
        ensure!(jobs.iter().any(|job| job.name_any() == step), "job {step} is gone before anybody could read its log");
    }
    Ok(())
}

/// The manifest in storage is the one whose hash the journal keeps.
async fn manifest_is_the_journals(site: &Site, attempt: &MemoriaUpgrade) -> Outcome {
    let snapshot = attempt.status.as_ref().and_then(|journal| journal.snapshot.as_ref()).context("a snapshot")?;
    let manifest = stored(site, snapshot, "manifest.json").await?;
    let digest: String = Sha256::digest(&manifest).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(digest == snapshot.manifest_sha256, "the manifest in storage hashes to {digest}");
    let exported = snapshot.portable_directory.as_ref().context("a portable export")?;
    let exported = stored(site, snapshot, &format!("{exported}/manifest.json")).await?;
    let exported: Value = serde_json::from_slice(&exported)?;
    ensure!(exported["dataDigest"] == snapshot.data_digest.as_str(), "the export holds {}", exported["dataDigest"]);
    Ok(())
}

/// A file of a snapshot that is kept on a claim, read on the node that holds its volume.
pub async fn stored(site: &Site, snapshot: &SnapshotRecord, file: &str) -> Result<Vec<u8>> {
    let claim = snapshot.claim_name.as_deref().context("the snapshot is on no claim")?;
    let path = site.volume(claim).await?.join(&snapshot.directory).join(file);
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

async fn events_tell_it(site: &Site) -> Outcome {
    let reasons = site.event_reasons().await?;
    let started = FORWARD.iter().flat_map(|phase| [format!("{}Started", phase.name), format!("{}Passed", phase.name)]);
    let expected = ["PreFlightStarted", "PlanReady", "Succeeded"].map(str::to_owned).into_iter().chain(started);
    for reason in expected {
        ensure!(reasons.contains(&reason), "no event {reason} among {reasons:?}");
    }
    Ok(())
}
