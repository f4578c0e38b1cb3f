//! Memoria's settings in ConfigMaps: what PreFlight finds of them, what an attempt sees (hashes only), and the two writes,
//! each fenced by what it was decided on. No error and no log line shows a value.

use k8s_openapi::{
    api::core::v1::{ConfigMap, PodSpec, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use memoria_runner::pack::unpack;
use serde_json::json;

use super::{
    client::bounded,
    error::{ClusterError, Kind},
    managers,
};
use crate::{
    api::{
        MemoriaRelease, MemoriaUpgrade, MemoriaUpgradeSpec,
        marks::{ATTEMPT_LABEL, OWNER_MANAGER, RELEASE_LABEL, SETTINGS_RESTORED_ANNOTATION},
        release::{CheckResult, Config, KeyRef, Verdict},
        settings::PlannedConfig,
    },
    upgrade::{
        Precondition,
        seen::{ConfigSeen, KeptSeen, OutputSeen},
        settings::{MAX_DEFAULTS_BYTES, Texts, merge, sha256},
    },
};

/// The keys of the ConfigMap that keeps both texts.
pub const PRIOR: &str = "prior";
pub const NEW: &str = "new";

/// The texts that PreFlight found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFound {
    pub output_uid: String,
    pub output: String,
    pub overrides: Option<String>,
}

async fn read(client: &Client, ns: &str, name: &str) -> Result<Option<ConfigMap>, ClusterError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    bounded("read", format!("configmap/{name}"), api.get_opt(name)).await
}

fn text<'a>(map: &'a ConfigMap, key: &str) -> Option<&'a String> {
    map.data.as_ref()?.get(key)
}

/// Reads the texts that the release names. The second part is a check of each place; where one failed, the first is absent.
pub async fn find(
    client: &Client,
    ns: &str,
    release: &MemoriaRelease,
) -> Result<(Option<ConfigFound>, Vec<CheckResult>), ClusterError> {
    let Some(Config { output, overrides, .. }) = &release.spec.config else { return Ok((None, Vec::new())) };
    let place = &output.config_map_key_ref;
    let map = read(client, ns, &place.name).await?;
    let mut found = None;
    let mut checks = vec![match usable(map.as_ref(), place, "output") {
        Ok(_) if map.as_ref().is_some_and(|map| map.immutable == Some(true)) => failed(
            "config-output",
            format!("configmap/{} is immutable, so it cannot be refreshed; make it mutable", place.name),
        ),
        Ok(text) => {
            let output_uid = map.as_ref().and_then(ResourceExt::uid).unwrap_or_default();
            found = Some(ConfigFound { output_uid, output: text.clone(), overrides: None });
            passed("config-output", format!("configmap/{} has key {:?}", place.name, place.key))
        }
        Err(message) => failed("config-output", message),
    }];
    if let Some(overrides) = overrides {
        let place = &overrides.config_map_key_ref;
        let map = read(client, ns, &place.name).await?;
        checks.push(match usable(map.as_ref(), place, "overrides") {
            Ok(text) => {
                if let Some(found) = &mut found {
                    found.overrides = Some(text.clone());
                }
                passed("config-overrides", format!("configmap/{} has key {:?}", place.name, place.key))
            }
            Err(message) => {
                found = None;
                failed("config-overrides", message)
            }
        });
    }
    Ok((found, checks))
}

fn usable<'a>(map: Option<&'a ConfigMap>, place: &KeyRef, field: &str) -> Result<&'a String, String> {
    let field = format!("spec.config.{field}.configMapKeyRef");
    let Some(map) = map else {
        return Err(format!("configmap/{} does not exist; create it or correct {field}", place.name));
    };
    let text = text(map, &place.key);
    text.ok_or_else(|| format!("configmap/{} has no key {:?}; add it or correct {field}", place.name, place.key))
}

fn passed(name: &str, message: String) -> CheckResult {
    CheckResult { name: name.to_owned(), result: Verdict::Passed, message }
}

fn failed(name: &str, message: String) -> CheckResult {
    CheckResult { name: name.to_owned(), result: Verdict::Failed, message }
}

/// Whether pods of that template read the ConfigMap: as a volume or as environment.
pub fn refers(template: &PodTemplateSpec, name: &str) -> bool {
    template.spec.as_ref().is_some_and(|spec| mounts(spec, name) || in_environment(spec, name))
}

fn mounts(spec: &PodSpec, name: &str) -> bool {
    spec.volumes.iter().flatten().any(|volume| {
        let whole = volume.config_map.as_ref().is_some_and(|map| map.name == name);
        let parts = volume.projected.as_ref().and_then(|projected| projected.sources.as_ref());
        whole || parts.into_iter().flatten().any(|part| part.config_map.as_ref().is_some_and(|map| map.name == name))
    })
}

fn in_environment(spec: &PodSpec, name: &str) -> bool {
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| {
        let all = container
            .env_from
            .iter()
            .flatten()
            .any(|from| from.config_map_ref.as_ref().is_some_and(|map| map.name == name));
        all || container.env.iter().flatten().any(|entry| {
            let from = entry.value_from.as_ref().and_then(|from| from.config_map_key_ref.as_ref());
            from.is_some_and(|map| map.name == name)
        })
    })
}

/// What an attempt sees of its settings; `None` when its plan has none.
pub async fn observe(
    client: &Client,
    ns: &str,
    plan: &MemoriaUpgradeSpec,
    attempt: &str,
) -> Result<Option<ConfigSeen>, ClusterError> {
    let Some(config) = &plan.config else { return Ok(None) };
    let overrides = async {
        match &config.overrides {
            Some(place) => Ok(read(client, ns, &place.name).await?.and_then(|map| text(&map, &place.key).cloned())),
            None => Ok(None),
        }
    };
    let (output, overrides, kept) =
        futures::try_join!(read(client, ns, &config.output.name), overrides, read(client, ns, &config.kept_in))?;
    let hash = |map: &ConfigMap, key: &str| text(map, key).map(|text| sha256(text));
    Ok(Some(ConfigSeen {
        output: output.map(|map| OutputSeen {
            uid: map.uid().unwrap_or_default(),
            resource_version: map.resource_version().unwrap_or_default(),
            immutable: map.immutable == Some(true),
            sha256: hash(&map, &config.output.key),
            managers: managers::of_key(&map.metadata, &config.output.key).into_iter().map(|m| m.name).collect(),
        }),
        overrides_sha256: overrides.map(|text| sha256(&text)),
        kept: kept.map(|map| {
            let ours =
                map.labels().get(ATTEMPT_LABEL).is_some_and(|label| label == attempt) && map.immutable == Some(true);
            KeptSeen { prior_sha256: hash(&map, PRIOR).filter(|_| ours), new_sha256: hash(&map, NEW).filter(|_| ours) }
        }),
    }))
}

/// Merges again what the plan was made of, and keeps both texts under the attempt's name. They go when the attempt does.
pub async fn keep(client: &Client, ns: &str, upgrade: &MemoriaUpgrade) -> Result<(), ClusterError> {
    let config = planned(&upgrade.spec)?;
    let object = format!("configmap/{}", config.kept_in);
    let map = kept(client, ns, &upgrade.spec, &upgrade.name_any(), upgrade.controller_owner_ref(&())).await?;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let params = PostParams { dry_run: false, field_manager: Some(OWNER_MANAGER.to_owned()) };
    match bounded("create", &object, api.create(&params, &map)).await {
        // The next look tells whether it is this attempt's.
        Err(error) if error.kind == Kind::Foreign => Err(ClusterError::stale("create", object, error.cause)),
        other => other.map(drop),
    }
}

async fn kept(
    client: &Client,
    ns: &str,
    plan: &MemoriaUpgradeSpec,
    attempt: &str,
    owner: Option<OwnerReference>,
) -> Result<ConfigMap, ClusterError> {
    let config = planned(plan)?;
    let output = current(client, ns, &config.output, Some(&config.prior_sha256)).await?;
    let overrides = match &config.overrides {
        Some(place) => Some(current(client, ns, place, config.overrides_sha256.as_deref()).await?),
        None => None,
    };
    let object = || format!("configmap/{}", config.output.name);
    let malformed = |cause: String| ClusterError::malformed("merge the settings of", object(), cause);
    let baseline = unpack(&config.baseline, MAX_DEFAULTS_BYTES)
        .map_err(|error| malformed(format!("the plan's baseline: {error}")))?;
    let texts = Texts { baseline: &baseline, prior_baseline: None, output: &output, overrides: overrides.as_deref() };
    let merged = merge(&texts).map_err(|error| malformed(error.to_string()))?;
    if sha256(&merged.text) != config.new_sha256 {
        return Err(malformed(
            "the merge is another than the plan's; was it made by another version of the operator?".to_owned(),
        ));
    }
    Ok(ConfigMap {
        metadata: ObjectMeta {
            name: Some(config.kept_in.clone()),
            labels: Some(
                [(RELEASE_LABEL.to_owned(), plan.release_name.clone()), (ATTEMPT_LABEL.to_owned(), attempt.to_owned())]
                    .into(),
            ),
            owner_references: owner.map(|owner| vec![OwnerReference { block_owner_deletion: None, ..owner }]),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        data: Some([(PRIOR.to_owned(), output), (NEW.to_owned(), merged.text)].into()),
        binary_data: None,
    })
}

/// A key's text, which must have that hash.
async fn current(client: &Client, ns: &str, place: &KeyRef, expected: Option<&str>) -> Result<String, ClusterError> {
    let map = read(client, ns, &place.name).await?;
    let text = map.as_ref().and_then(|map| text(map, &place.key));
    text.filter(|text| Some(sha256(text).as_str()) == expected).cloned().ok_or_else(|| {
        let cause = format!("key {:?} was changed since it was observed", place.key);
        ClusterError::stale("merge the settings of", format!("configmap/{}", place.name), cause)
    })
}

/// Writes the merged or the prior settings into the output's key: a merge patch of that key, on the object as it was seen.
pub async fn set(
    client: &Client,
    ns: &str,
    upgrade: &MemoriaUpgrade,
    precondition: &Precondition,
    prior: bool,
) -> Result<(), ClusterError> {
    let config = planned(&upgrade.spec)?;
    let (key, expected) = if prior { (PRIOR, &config.prior_sha256) } else { (NEW, &config.new_sha256) };
    let kept = KeyRef { name: config.kept_in.clone(), key: key.to_owned() };
    let text = current(client, ns, &kept, Some(expected)).await?;
    let attempt = upgrade.name_any();
    let change = Change { text: &text, restored_by: prior.then_some(&attempt), dry_run: false };
    write(client, ns, &config.output, precondition, &change).await
}

struct Change<'a> {
    text: &'a str,
    /// The attempt that puts it back: an annotation, so that the object changes even where its text does not.
    restored_by: Option<&'a String>,
    dry_run: bool,
}

async fn write(
    client: &Client,
    ns: &str,
    place: &KeyRef,
    precondition: &Precondition,
    change: &Change<'_>,
) -> Result<(), ClusterError> {
    let mut metadata = json!({"uid": precondition.uid, "resourceVersion": precondition.resource_version});
    if let Some(attempt) = change.restored_by {
        metadata["annotations"] = json!({SETTINGS_RESTORED_ANNOTATION: attempt});
    }
    let patch = json!({"metadata": metadata, "data": {place.key.clone(): change.text}});
    let dry_run = change.dry_run;
    let params = PatchParams { dry_run, field_manager: Some(OWNER_MANAGER.to_owned()), ..PatchParams::default() };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let object = format!("configmap/{}", place.name);
    bounded("write the settings in", &object, api.patch(&place.name, &params, &Patch::Merge(patch))).await.map(drop)
}

/// Asks the server to admit both writes, without making them.
pub async fn dry_run(client: &Client, ns: &str, plan: &MemoriaUpgradeSpec, attempt: &str) -> Result<(), ClusterError> {
    let config = planned(plan)?;
    let map = kept(client, ns, plan, attempt, None).await?;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let params = PostParams { dry_run: true, field_manager: Some(OWNER_MANAGER.to_owned()) };
    bounded("create", format!("configmap/{}", config.kept_in), api.create(&params, &map)).await?;
    let Some(output) = read(client, ns, &config.output.name).await? else {
        let next = "create it, or correct spec.config.output.configMapKeyRef".to_owned();
        return Err(ClusterError::missing("write the settings in", format!("configmap/{}", config.output.name), next));
    };
    let now = Precondition {
        uid: config.output_uid.clone(),
        resource_version: output.resource_version().unwrap_or_default(),
    };
    let text = text(&map, NEW).cloned().unwrap_or_default();
    let change = Change { text: &text, restored_by: None, dry_run: true };
    write(client, ns, &config.output, &now, &change).await
}

fn planned(plan: &MemoriaUpgradeSpec) -> Result<&PlannedConfig, ClusterError> {
    plan.config
        .as_ref()
        .ok_or_else(|| ClusterError::malformed("write", "the settings".to_owned(), "the plan has none".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::refers;

    #[test]
    fn a_template_refers_to_a_config_map_by_volume_or_environment() {
        let container = |rest: serde_json::Value| {
            let mut container = json!({"name": "server"});
            container.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            json!({"spec": {"containers": [container]}})
        };
        let volume = |volume: serde_json::Value| json!({"spec": {"containers": [], "volumes": [volume]}});
        for (template, expected) in [
            (volume(json!({"name": "c", "configMap": {"name": "memoria-config"}})), true),
            (volume(json!({"name": "c", "configMap": {"name": "other"}})), false),
            (volume(json!({"name": "c", "projected": {"sources": [{"configMap": {"name": "memoria-config"}}]}})), true),
            (container(json!({"envFrom": [{"configMapRef": {"name": "memoria-config"}}]})), true),
            (
                container(json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef":
                    {"name": "memoria-config", "key": "config.yaml"}}}]})),
                true,
            ),
            (container(json!({})), false),
            (json!({}), false),
        ] {
            let read = serde_json::from_value(template.clone()).unwrap();
            assert_eq!(refers(&read, "memoria-config"), expected, "{template}");
        }
    }
}
