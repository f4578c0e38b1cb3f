//! What every measurement needs around it and does not measure: the cluster with the operator, a new Memoria for each run,
//! and a place for what was recorded.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;

use super::event::{Event, WORKLOADS};
use crate::clock::Clock;
use crate::cluster::{self, REGISTRY, Target};
use crate::images::{self, OPERATOR, Profile, TOOLS};
use crate::kube::Kube;
use crate::memoria::{self, Database, Installation, VERSION};
use crate::{demo, operator, place};

/// Made anew for each run.
pub const NAMESPACE: &str = "memoria-bench";
/// How long an attempt of the operator may take, its way back included.
pub const UPGRADED: Duration = Duration::from_secs(1800);
/// How long the nodes may take to pull all images.
const PULLED: Duration = Duration::from_secs(600);
const PULL: &str = "memoria-bench-images";

/// Brings up cluster and operator, and has every node pull every image of an upgrade to `version`. The answer is the lock
/// on the one operator of the cluster: keep it until the last run is over.
pub fn set(kube: &Kube, postgres: &str, version: &str, clock: &Clock) -> Result<File> {
    let lock = cluster::lock_operator()?;
    clock.say(&kube.target.ensure()?);
    let digests = images::ensure_available(kube.target, Profile::Release)?;
    clock.say("the operator, by its Helm chart");
    operator::install(kube, &digests, &[])?;
    clock.say("every node pulls every image");
    pull(kube, &digests, postgres, version)?;
    Ok(lock)
}

/// A Memoria with so many rows in a new namespace; that of the run before is removed.
pub fn install(kube: &Kube, postgres: &str, rows: u32, clock: &Clock) -> Result<()> {
    kube.delete_namespaces(&[NAMESPACE])?;
    // Makes the volumes of the last run usable again, too.
    kube.target.ensure()?;
    let wanted = Installation {
        namespace: NAMESPACE.into(),
        database: Database::Postgresql,
        postgres: postgres.to_owned(),
        rows,
        seed: 1,
        small: false,
        label: None,
        use_current_context: kube.target == Target::CurrentContext,
    };
    memoria::install(kube, &wanted, clock)
}

/// The kinds to watch. Where the operator is measured, it adopts the installation first.
pub fn kinds(kube: &Kube, operator: bool) -> Result<Vec<&'static str>> {
    let mut kinds = vec!["Deployment", "Pod", "Job", "ConfigMap"];
    if operator {
        demo::adopt(kube, NAMESPACE, Database::Postgresql)?;
        kinds.push("MemoriaRelease");
    }
    Ok(kinds)
}

/// Whatever was done must have had its effect, or its times mean nothing: every workload runs this version.
pub fn runs_version(kube: &Kube, version: &str) -> Result<()> {
    for name in WORKLOADS {
        let workload = kube.get(NAMESPACE, "deployment", name)?.with_context(|| format!("{name} is gone"))?;
        let image = workload["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        // With or without a digest behind it, and not the beginning of another version.
        if !image.split('@').next().unwrap_or_default().ends_with(&format!(":{version}")) {
            bail!("at the end {name} runs {image}, which is not {version}");
        }
        kube.rolled_out(NAMESPACE, &format!("deployment/{name}"), Duration::from_secs(60))?;
    }
    Ok(())
}

/// Has each node pull what the upgrades will run, so that the first run is like the others.
fn pull(kube: &Kube, digests: &BTreeMap<String, String>, postgres: &str, version: &str) -> Result<()> {
    let tools = format!("{TOOLS}:{}-pg{postgres}", images::version());
    let ours = digests.iter().filter(|(name, _)| name.starts_with(OPERATOR) || **name == tools);
    let pinned =
        ours.map(|(name, digest)| format!("{REGISTRY}/{}@{digest}", name.split(':').next().unwrap_or_default()));
    let memoria = [VERSION, version]
        .into_iter()
        .flat_map(|tag| ["server", "dashboard"].map(|part| format!("{REGISTRY}/memoria/{part}:{tag}")));
    let images: Vec<_> = pinned.chain(memoria).collect();
    let pulled: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(number, image)| {
            json!({"name": format!("image-{number}"), "image": image, "imagePullPolicy": "Always", "command": ["true"]})
        })
        .collect();
    let image = images.last().context("there are images")?;
    let labels = json!({"app.kubernetes.io/name": PULL});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": PULL},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "initContainers": pulled,
            "containers": [{"name": "done", "image": image, "command": ["sleep", "infinity"]}],
        }}},
    });
    kube.apply("default", &set.to_string())?;
    kube.rolled_out("default", &format!("daemonset/{PULL}"), PULLED)?;
    kube.run(&["--namespace", "default", "delete", "daemonset", PULL]).map(drop)
}

/// Where the events are kept for whoever wants to add up themselves.
pub fn records() -> Result<PathBuf> {
    Ok(place::cache()?.join("bench"))
}

/// Keeps one run's events, and what a script said of itself.
pub fn keep(events: &[Event], said: Option<&impl Serialize>, name: &str) -> Result<()> {
    let directory = records()?;
    fs::create_dir_all(&directory)?;
    let file = directory.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&json!({"events": events, "said": said}))?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
