//! What changes nothing, or puts everything back: a plan, a suspended release, an abort.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service},
};
use kube::{ResourceExt, api::ObjectMeta, core::NamespaceResourceScope};
use memoria_operator::api::{
    MemoriaDecision, MemoriaDecisionSpec, MemoriaUpgrade,
    decision::DecisionAction,
    release::Mode,
    upgrade::{Category, Outcome as Ended},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    Outcome,
    checkers::Captured,
    failures::{next_action, untouched},
    site::{Options, RELEASE, SOON, Site, TO, UPGRADED, condition, ready, standing, with_site},
};

#[tokio::test]
async fn a_plan_leaves_no_job_no_claim_and_no_changed_workload() -> Outcome {
    with_site("plan", Options::default(), async |site| {
        let before = versions(site).await?;
        let mut release = site.new_release()?;
        release.spec.mode = Mode::Plan;
        release.spec.version = TO.to_owned();
        site.create(&release).await?;
        let release = site.until_settled(UPGRADED).await?;
        let (phase, reason, message) = standing(&release);
        ensure!(ready(&release) && reason == "PlanReady", "{phase}/{reason}: {message}");
        let status = release.status.as_ref().context("a status")?;
        let pre_flight = status.pre_flight.as_ref().context("status.preFlight")?;
        let plan = pre_flight.plan.as_ref().context("a plan")?;
        ensure!(plan.to == TO && plan.migrations.len() > 12 && plan.images.len() == 2, "{plan:?}");
        ensure!(message.contains(&plan.hash), "the message does not name the plan: {message}");
        ensure!(plan.database.contains("PostgreSQL 15"), "{}", plan.database);
        // The Jobs of the checks go in the background.
        site.until("the checks' jobs to go", SOON, |_| Some(())).await?;
        for _ in 0..60 {
            if versions(site).await? == before {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        let after = versions(site).await?;
        let changed: Vec<_> = after.iter().filter(|(name, version)| before.get(*name) != Some(version)).collect();
        let gone: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
        ensure!(changed.is_empty() && gone.is_empty(), "changed: {changed:?}, gone: {gone:?}");
        ensure!(site.list::<MemoriaUpgrade>().await?.is_empty(), "a plan opened an attempt");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_suspended_release_waits_and_an_abort_puts_everything_back() -> Outcome {
    with_site("suspended", Options::default(), async |site| {
        let before = Captured::now(site).await?;
        let mut release = site.new_release()?;
        release.spec.version = TO.to_owned();
        release.spec.suspend = true;
        site.create(&release).await?;
        site.until("the release to be suspended", SOON, |release| (standing(release).1 == "Suspended").then_some(()))
            .await?;
        ensure!(site.jobs().await?.is_empty(), "a suspended release runs jobs");

        site.patch(json!({"spec": {"suspend": false}})).await?;
        site.until("Quiesce", UPGRADED, |release| (standing(release).0 == "Quiesce").then_some(())).await?;
        site.patch(json!({"spec": {"suspend": true}})).await?;
        let release = site
            .until("the attempt to be suspended", UPGRADED, |release| {
                (standing(release).1 == "Suspended").then(|| release.clone())
            })
            .await?;
        let message = standing(&release).2;
        ensure!(message.contains("writers are stopped"), "it does not say that writers are stopped: {message}");
        ensure!(condition(&release, "IngestionStopped").is_some(), "IngestionStopped is not True");
        ensure!(next_action(&release).is_ok(), "it does not say how to go on");

        abort(site).await?;
        let release = site.until_ended(Ended::Resumed).await?;
        let message = standing(&release).2;
        ensure!(message.contains("aborted") && message.contains("enough"), "it does not say who ended it: {message}");
        let journal = site.attempt().await?.status.context("a journal")?;
        let category = journal.failure.as_ref().map(|failure| failure.category);
        ensure!(category == Some(Category::Decision), "{:?}", journal.failure);
        untouched(site, &before).await
    })
    .await
}

/// A person orders the end of the attempt.
pub async fn abort(site: &Site) -> Outcome {
    let decision = MemoriaDecision {
        metadata: ObjectMeta { name: Some("enough".into()), ..ObjectMeta::default() },
        spec: MemoriaDecisionSpec {
            release_name: RELEASE.into(),
            action: DecisionAction::Abort,
            attempt: site.attempt().await?.name_any(),
            reason: "the tests end it".into(),
            decided_by: None,
        },
    };
    site.api().create(&Default::default(), &decision).await.context("the decision was refused").map(drop)
}

/// Every object that a plan must leave alone, with its resourceVersion. What has a status that kubelets and controllers
/// write is compared without both: how ready a pod is may change at any time.
pub async fn versions(site: &Site) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    add::<Deployment>(site, &mut all).await?;
    add::<StatefulSet>(site, &mut all).await?;
    add::<ReplicaSet>(site, &mut all).await?;
    add::<Pod>(site, &mut all).await?;
    add::<Job>(site, &mut all).await?;
    add::<ConfigMap>(site, &mut all).await?;
    add::<Secret>(site, &mut all).await?;
    add::<Service>(site, &mut all).await?;
    add::<PersistentVolumeClaim>(site, &mut all).await?;
    Ok(all)
}

async fn add<K>(site: &Site, all: &mut BTreeMap<String, String>) -> Outcome
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Serialize
        + std::fmt::Debug,
{
    for object in site.list::<K>().await? {
        let mut wanted = serde_json::to_value(&object)?;
        let observed =
            wanted.pointer("/status/observedGeneration").is_some() || ["Pod", "Job"].contains(&&*K::kind(&()));
        for part in ["/status", "/metadata/resourceVersion", "/metadata/managedFields"] {
            if let Some(part) = wanted.pointer_mut(part).filter(|_| observed) {
                part.take();
            }
        }
        all.insert(format!("{}/{}", K::kind(&()), object.name_any()), wanted.to_string());
    }
    Ok(())
}
