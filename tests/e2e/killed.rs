//! The operator dies, once in every phase, and the upgrade comes to the same end.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
    runtime::watcher::{self, Event, watcher},
};
use memoria_operator::{
    api::{MemoriaUpgrade, upgrade::Outcome as Ended},
    upgrade::phase::{BACK, FORWARD, Phase},
};

use crate::{
    Outcome,
    audit::Mark,
    checkers::Captured,
    environment::OPERATOR,
    failures::untouched,
    good::is_upgraded,
    rollback::{ALTERS_THEN_CRASHES, restored_exactly},
    site::{Options, SOON, Site, TO, UPGRADED, standing, with_site},
    sqlite::SQLITE,
};

#[tokio::test]
async fn the_operator_killed_once_in_every_phase_comes_to_the_same_end() -> Outcome {
    with_site("killed", Options::default(), forth).await
}

#[tokio::test]
async fn the_operator_killed_once_in_every_phase_of_an_sqlite_upgrade_comes_to_the_same_end() -> Outcome {
    with_site("killed-sqlite", SQLITE, forth).await
}

#[tokio::test]
async fn the_operator_killed_once_in_every_phase_of_the_way_back_brings_everything_back() -> Outcome {
    with_site("killed-back", Options::default(), back).await
}

#[tokio::test]
async fn the_operator_killed_once_in_every_phase_of_an_sqlite_way_back_brings_everything_back() -> Outcome {
    with_site("killed-sqlite-back", SQLITE, back).await
}

async fn forth(site: &Site) -> Outcome {
    site.adopt().await?;
    let before = Captured::now(site).await?;
    let mark = Mark::now()?;
    site.set_version(TO).await?;
    site.until("PreFlight", SOON, |release| (standing(release).0 == "PreFlight").then_some(())).await?;
    kill(site, "PreFlight").await?;
    kill_once_in_each(site, FORWARD).await?;
    let release = site.until_ended(Ended::Succeeded).await?;
    each_was_created_once(site, &mark)?;
    is_upgraded(site, &release, &before).await
}

/// What is killed on the way forth is killed in the tests of that; here it is the way back alone.
async fn back(site: &Site) -> Outcome {
    site.adopt().await?;
    let before = Captured::now(site).await?;
    let mark = Mark::now()?;
    site.set_version(ALTERS_THEN_CRASHES).await?;
    tokio::try_join!(kill_once_in_each(site, BACK), restored_exactly(site, &before))?;
    let release = site.until_ended(Ended::RolledBack).await?;
    ensure!(standing(&release).2.contains("restored and proved"), "{:?}", standing(&release));
    each_was_created_once(site, &mark)?;
    untouched(site, &before).await
}

/// Kills the operator's pods, without a chance to say goodbye, when a phase is first seen. A watch misses no phase,
/// however short.
async fn kill_once_in_each(site: &Site, phases: &[Phase]) -> Outcome {
    let mut left: Vec<&str> = phases.iter().map(|phase| phase.name).collect();
    let attempts: Api<MemoriaUpgrade> = site.api();
    let mut changes = Box::pin(watcher(attempts, watcher::Config::default()));
    while !left.is_empty() {
        let change = tokio::time::timeout(UPGRADED, changes.next()).await;
        let change = change.with_context(|| format!("nothing moves; not yet seen: {left:?}"))?;
        let (Event::Apply(attempt) | Event::InitApply(attempt)) = change.context("the watch ended")?? else { continue };
        let journal = attempt.status.unwrap_or_default();
        ensure!(journal.outcome.is_none(), "it ended before {left:?}: {:?}", journal.failure);
        // One that had nothing to do begins and ends in one write.
        let seen = left.len();
        left.retain(|name| journal.phases.iter().all(|record| record.name != *name));
        if left.len() < seen {
            kill(site, &journal.phase.unwrap_or_default()).await?;
        }
    }
    Ok(())
}

pub async fn kill(site: &Site, phase: &str) -> Outcome {
    let pods: Api<Pod> = Api::namespaced(site.client.clone(), OPERATOR);
    let mine = ListParams::default().labels(&format!("app.kubernetes.io/name={OPERATOR}"));
    let running = pods.list(&mine).await?;
    ensure!(!running.items.is_empty(), "there is no operator to kill in {phase}");
    for pod in running {
        site.say(&format!("killing {} in {phase}", pod.name_any()));
        pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
    }
    Ok(())
}

/// No Job, candidate or attempt was made twice, whoever was alive.
fn each_was_created_once(site: &Site, mark: &Mark) -> Result<()> {
    let created = created(site, mark)?;
    ensure!(!created.is_empty(), "the audit log knows of no object that the operator made");
    let twice: Vec<_> = created.iter().filter(|(_, times)| **times > 1).collect();
    ensure!(twice.is_empty(), "made more than once: {twice:?}");
    Ok(())
}

/// How often the operator made each Job, candidate and attempt since then, by `resource/name`.
pub fn created(site: &Site, mark: &Mark) -> Result<BTreeMap<String, usize>> {
    let mut created: BTreeMap<String, usize> = BTreeMap::new();
    for write in mark.since()?.into_iter().filter(|write| write.is_the_operators() && write.succeeded()) {
        let made = write.verb == "create" && ["jobs", "pods", "memoriaupgrades"].iter().any(|kind| write.of(kind));
        let object = write.object_ref.context("a write has an object")?;
        if made && object.namespace == site.namespace {
            *created.entry(format!("{}/{}", object.resource, object.name)).or_default() += 1;
        }
    }
    Ok(created)
}
