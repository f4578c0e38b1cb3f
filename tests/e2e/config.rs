//! Memoria's settings follow the release, and come back with it.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use memoria_operator::api::{settings::ConfigState, upgrade::Outcome as Ended};
use serde_json::{Value, json};

use crate::{
    Outcome,
    checkers::Captured,
    environment,
    failures::untouched,
    site::{Options, SOON, Site, TO, ready, with_site},
};

pub const OUTPUT: &str = "memoria-config";
pub const OVERRIDES: &str = "memoria-overrides";
/// Its server changes the schema when it starts, and then dies: the settings are written by then.
const ALTERS_THEN_CRASHES: &str = "1.0.1-alters-then-crashes";

#[tokio::test]
async fn new_defaults_are_adopted_and_overrides_kept() -> Outcome {
    with_site("config", Options::default(), async |site| {
        let prior = configured(site).await?;
        site.set_version(TO).await?;
        let release = site.until_ended(Ended::Succeeded).await?;

        let new: Value = serde_saphyr::from_str(&text(site, OUTPUT, "config.yaml").await?)?;
        let expected = [
            ("/agents/default_model", json!("local-medium")),
            ("/agents/max_parallel", json!(8)),
            ("/agents/tools", json!(["search", "summarise"])),
            ("/memory/sovereign_ingest", json!(true)),
            ("/memory/namespace", json!("production")),
            ("/memory/team_mode", json!(true)),
            ("/verbose", json!(true)),
            ("/database", json!({"migration_auto": true})),
        ];
        for (path, value) in expected {
            ensure!(new.pointer(path) == Some(&value), "{path} is {:?}", new.pointer(path));
        }
        let attempt = site.attempt().await?;
        let record = attempt.status.as_ref().and_then(|journal| journal.config.clone()).context("a record")?;
        ensure!(record.state == ConfigState::Refreshed, "{record:?}");
        ensure!(record.report.adopted.iter().any(|key| key == "agents.max_parallel"), "{record:?}");
        ensure!(record.report.kept.iter().any(|key| key == "memory.namespace"), "{record:?}");
        let kept = record.kept_in.context("a place")?;
        ensure!(kept == format!("{}-config", attempt.name_any()), "{kept}");
        ensure!(text(site, &kept, "prior").await? == prior, "what was there is not kept");
        ensure!(site.api::<ConfigMap>().get(&kept).await?.immutable == Some(true), "{kept} can be changed");
        let served = site.server_settings().await?;
        ensure!(served.pointer("/agents/max_parallel") == Some(&json!(8)), "the servers do not see it: {served}");
        ensure!(ready(&release));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_failing_upgrade_puts_the_settings_back() -> Outcome {
    with_site("config-back", Options::default(), async |site| {
        let prior = configured(site).await?;
        let before = Captured::now(site).await?;
        site.set_version(ALTERS_THEN_CRASHES).await?;
        site.until_ended(Ended::RolledBack).await?;
        ensure!(text(site, OUTPUT, "config.yaml").await? == prior, "the settings are not those from before");
        let journal = site.attempt().await?.status.context("a journal")?;
        let refresh = journal.phases.iter().find(|record| record.name == "ConfigRefresh").context("the phase")?;
        ensure!(refresh.done.contains_key("write-1"), "the settings were never written: {refresh:?}");
        ensure!(journal.config.context("a record")?.state == ConfigState::Restored);
        untouched(site, &before).await
    })
    .await
}

/// Adopts a release that names its settings; answers what they are.
async fn configured(site: &Site) -> Result<String> {
    let mut release = site.new_release()?;
    let place = |name: &str| json!({"configMapKeyRef": {"name": name, "key": "config.yaml"}});
    release.spec.config =
        Some(serde_json::from_value(json!({"output": place(OUTPUT), "overrides": place(OVERRIDES)}))?);
    site.create(&release).await?;
    site.until("adopted", SOON, |release| ready(release).then_some(())).await?;
    text(site, OUTPUT, "config.yaml").await
}

async fn text(site: &Site, name: &str, key: &str) -> Result<String> {
    let map: ConfigMap = site.api().get(name).await.with_context(|| format!("configmap {name}"))?;
    map.data.and_then(|mut data| data.remove(key)).with_context(|| format!("configmap {name} has no {key}"))
}

impl Site {
    /// What a server says it runs with.
    async fn server_settings(&self) -> Result<Value> {
        let ask = "import os, urllib.request as r; print(r.urlopen(r.Request('http://127.0.0.1:8000/settings', \
                   headers={'X-API-Key': os.environ['MEMORIA_API_KEY']})).read().decode())";
        let command =
            ["-n", &self.namespace, "exec", "deployment/memoria-server", "-c", "server", "--", "python", "-c", ask];
        let answer = environment::kubectl(&command).await?;
        serde_json::from_str(&answer).context("the server's settings")
    }
}
