//! Memoria's settings: kept whole before one key is written, and nothing else of the ConfigMap.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use memoria_operator::{
    api::{MemoriaUpgrade, marks, release::CheckResult, release::Verdict, settings::PlannedConfig},
    cluster::{Kind, preflight, settings},
    upgrade::{
        Action, Precondition,
        settings::{Texts, merge, sha256},
    },
};
use memoria_runner::pack::pack;
use serde_json::json;

use crate::world::World;

const BASELINE: &str = "agents: {max_parallel: 8}\nmemory: {team_mode: false}\ndatabase: {connection_string: x}\n";
const OVERRIDES: &str = "memory: {team_mode: true}\n";
const PRIOR: &str = "# by hand\nagents: {max_parallel: 4}\nmemory: {team_mode: true}\ndatabase: {pool: 3}\n";
const NEW: &str = "agents:\n  max_parallel: 8\nmemory:\n  team_mode: true\ndatabase:\n  pool: 3\n";

async fn world(ns: &str) -> World {
    let mut world = World::new(ns).await;
    let map = json!({"metadata": {"name": "memoria-config"}, "data": {"config.yaml": PRIOR, "other": "theirs"}});
    let output: ConfigMap = world.create(map).await;
    let map = json!({"metadata": {"name": "memoria-overrides"}, "data": {"config.yaml": OVERRIDES}});
    world.create::<ConfigMap>(map).await;
    let texts = Texts { baseline: BASELINE, prior_baseline: None, output: PRIOR, overrides: Some(OVERRIDES) };
    let merged = merge(&texts).unwrap();
    assert_eq!(merged.text, NEW);
    let key = |name: &str| json!({"name": name, "key": "config.yaml"});
    let config: PlannedConfig = serde_json::from_value(json!({
        "output": key("memoria-config"), "outputUid": output.uid(), "overrides": key("memoria-overrides"),
        "baseline": pack(BASELINE), "priorSha256": sha256(PRIOR), "overridesSha256": sha256(OVERRIDES),
        "newSha256": sha256(NEW), "keptIn": "memoria-1-config", "report": {},
    }))
    .unwrap();
    // The stored plan cannot be edited; the machine's copy is what is acted on.
    world.upgrade.spec.config = Some(config);
    world
}

async fn now(world: &World) -> Precondition {
    let map: ConfigMap = world.get("memoria-config").await;
    Precondition { uid: map.uid().unwrap(), resource_version: map.resource_version().unwrap() }
}

async fn data(world: &World, name: &str, key: &str) -> String {
    world.get::<ConfigMap>(name).await.data.unwrap()[key].clone()
}

#[tokio::test]
async fn settings_are_kept_then_written_then_put_back_and_other_keys_stay() {
    let world = world("settings-round").await;
    let seen = world.observe().await.config.unwrap();
    let output = seen.output.unwrap();
    assert_eq!((output.sha256, output.immutable), (Some(sha256(PRIOR)), false));
    assert_eq!((seen.overrides_sha256, seen.kept), (Some(sha256(OVERRIDES)), None));

    // Nothing is written that was not kept.
    let early = world.act(Action::SetConfig { precondition: now(&world).await, prior: false }).await;
    assert_eq!(early.unwrap_err().kind, Kind::Stale);
    world.act(Action::KeepConfig).await.unwrap();
    let kept: ConfigMap = world.get("memoria-1-config").await;
    assert_eq!(kept.immutable, Some(true));
    assert_eq!(kept.labels()[marks::ATTEMPT_LABEL], "memoria-1");
    assert_eq!(kept.owner_references()[0].uid, world.get::<MemoriaUpgrade>("memoria-1").await.uid().unwrap());
    assert_eq!(
        (data(&world, "memoria-1-config", "prior").await, data(&world, "memoria-1-config", "new").await),
        (PRIOR.into(), NEW.into())
    );
    let config = world.upgrade.spec.config.clone().unwrap();
    assert!(world.observe().await.config.unwrap().kept.unwrap().is_of(&config));
    // Once more: the next look sees it.
    assert_eq!(world.act(Action::KeepConfig).await.unwrap_err().kind, Kind::Stale);

    for (prior, expected) in [(false, NEW), (true, PRIOR)] {
        let before = now(&world).await;
        world.act(Action::SetConfig { precondition: before.clone(), prior }).await.unwrap();
        assert_eq!(data(&world, "memoria-config", "config.yaml").await, expected);
        assert_eq!(data(&world, "memoria-config", "other").await, "theirs");
        let late = world.act(Action::SetConfig { precondition: before, prior: !prior }).await;
        assert_eq!(late.unwrap_err().kind, Kind::Stale);
    }
    let restored: ConfigMap = world.get("memoria-config").await;
    assert_eq!(restored.annotations()[marks::SETTINGS_RESTORED_ANNOTATION], "memoria-1");
    // Once more: nothing changes.
    world.act(Action::SetConfig { precondition: now(&world).await, prior: true }).await.unwrap();
    let again: ConfigMap = world.get("memoria-config").await;
    assert_eq!((again.data, again.metadata.resource_version), (restored.data, restored.metadata.resource_version));
}

#[tokio::test]
async fn putting_back_what_never_changed_shuts_a_late_write_out() {
    let world = world("settings-late").await;
    world.act(Action::KeepConfig).await.unwrap();
    let before = now(&world).await;
    world.act(Action::SetConfig { precondition: before.clone(), prior: true }).await.unwrap();
    let late = world.act(Action::SetConfig { precondition: before, prior: false }).await;
    assert_eq!(late.unwrap_err().kind, Kind::Stale);
    assert_eq!(data(&world, "memoria-config", "config.yaml").await, PRIOR);
}

#[tokio::test]
async fn settings_that_changed_are_neither_kept_nor_hidden() {
    let world = world("settings-changed").await;
    let patch = Patch::Merge(json!({"data": {"config.yaml": "a: 1\n"}}));
    let params = PatchParams { field_manager: Some("argocd-controller".into()), ..PatchParams::default() };
    world.api::<ConfigMap>().patch("memoria-config", &params, &patch).await.unwrap();
    assert_eq!(world.act(Action::KeepConfig).await.unwrap_err().kind, Kind::Stale);
    let output = world.observe().await.config.unwrap().output.unwrap();
    assert_eq!(output.sha256, Some(sha256("a: 1\n")));
    assert_eq!(output.by(), " (by argocd-controller)");
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_a_stranger_of_that_name_is_not_ours() {
    let world = world("settings-dry").await;
    settings::dry_run(&world.client, &world.ns, &world.upgrade.spec, "memoria-1").await.unwrap();
    assert!(world.api::<ConfigMap>().get_opt("memoria-1-config").await.unwrap().is_none());
    assert_eq!(data(&world, "memoria-config", "config.yaml").await, PRIOR);
    let map = json!({"metadata": {"name": "memoria-1-config"}, "data": {"prior": PRIOR, "new": NEW}});
    world.create::<ConfigMap>(map).await;
    let kept = world.observe().await.config.unwrap().kept.unwrap();
    assert!(!kept.is_of(world.upgrade.spec.config.as_ref().unwrap()), "it lacks the attempt's mark");
    let results = preflight::dry_run(&world.client, &world.ns, &world.release, "memoria-1", &world.upgrade.spec).await;
    let admit: &CheckResult = results.iter().find(|check| check.name == "admit-config").unwrap();
    assert_eq!(admit.result, Verdict::Failed, "{}", admit.message);
}

#[tokio::test]
async fn what_is_missing_or_immutable_is_said_with_the_fix() {
    let mut world = world("settings-found").await;
    let key = |name: &str, key: &str| json!({"configMapKeyRef": {"name": name, "key": key}});
    let mut look = async |config: serde_json::Value| {
        world.release.spec.config = Some(serde_json::from_value(config).unwrap());
        settings::find(&world.client, &world.ns, &world.release).await.unwrap()
    };
    let output = key("memoria-config", "config.yaml");
    let (found, checks) = look(json!({"output": output, "overrides": key("memoria-overrides", "config.yaml")})).await;
    let found = found.unwrap();
    assert_eq!((found.output.as_str(), found.overrides.as_deref()), (PRIOR, Some(OVERRIDES)));
    assert!(checks.len() == 2 && checks.iter().all(|check| check.result == Verdict::Passed), "{checks:?}");
    for (config, expected) in [
        (json!({"output": key("none", "config.yaml")}), "configmap/none does not exist; create it"),
        (json!({"output": key("memoria-config", "none")}), "configmap/memoria-config has no key \"none\""),
        (json!({"output": output, "overrides": key("none", "a")}), "correct spec.config.overrides.configMapKeyRef"),
    ] {
        let (found, checks) = look(config).await;
        assert_eq!(found, None);
        let failed = checks.iter().find(|check| check.result == Verdict::Failed).unwrap();
        assert!(failed.message.contains(expected), "{}", failed.message);
    }
    let patch = Patch::Merge(json!({"immutable": true}));
    world.api::<ConfigMap>().patch("memoria-config", &PatchParams::default(), &patch).await.unwrap();
    let (found, checks) = settings::find(&world.client, &world.ns, &{
        let mut release = world.release.clone();
        release.spec.config = Some(serde_json::from_value(json!({"output": output})).unwrap());
        release
    })
    .await
    .unwrap();
    assert!(found.is_none() && checks[0].message.contains("is immutable"), "{checks:?}");
}
