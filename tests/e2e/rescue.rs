//! Neither the operator nor any object of it is left, and writers are stopped: what `memoria-operator rescue` prints from
//! the snapshots' volume brings everything back. The commands before it are those of the runbook, as they stand there.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use memoria_operator::api::{MemoriaDecision, MemoriaRelease, MemoriaUpgrade, upgrade::Outcome as Ended};
use serde_json::json;
use tokio::process::Command;

use crate::{
    Outcome,
    checkers::{Captured, no_secret_leaked},
    environment::{self, OPERATOR},
    failures::{untouched, writers_are_stopped},
    rollback::BAD_MIGRATION,
    site::{Options, RELEASE, SOON, Site, with_site},
    sqlite::SQLITE,
};

/// What the runbook leaves for a person to fill in.
const RUNBOOK: &str = "docs/runbooks/rescue.md";
/// The first part of the script that starts anything.
const STARTS: &str = "\n# 5. ";

#[tokio::test]
async fn what_rescue_prints_takes_image_and_data_back_without_the_operator() -> Outcome {
    with_site("rescue", Options::default(), rescued).await
}

#[tokio::test]
async fn what_rescue_prints_takes_an_sqlite_file_back_without_the_operator() -> Outcome {
    with_site("rescue-sqlite", SQLITE, rescued).await
}

async fn rescued(site: &Site) -> Outcome {
    site.adopt().await?;
    let before = Captured::now(site).await?;
    site.patch(json!({"spec": {"version": BAD_MIGRATION, "rollback": {"automatic": false}}})).await?;
    site.until_ended(Ended::Halted).await?;
    ensure!(
        Captured::now(site).await?.has_the_data_of(&before).await.is_err(),
        "the half-run migration left no trace; the test is void"
    );
    let operator = Operator::of(site).await?;
    operator.stop(site).await?;
    let done = without_an_operator(site, &operator, &before).await;
    // The other tests want it back, whatever came of this one.
    operator.start().await?;
    done?;
    // Nothing that was left behind hinders a new release.
    site.adopt().await?;
    untouched(site, &before).await?;
    no_secret_leaked(site).await
}

async fn without_an_operator(site: &Site, operator: &Operator, before: &Captured) -> Outcome {
    let attempt = site.attempt().await?.name_any();
    forget::<MemoriaRelease>(site).await?;
    forget::<MemoriaUpgrade>(site).await?;
    forget::<MemoriaDecision>(site).await?;
    writers_are_stopped(site).await?;

    let script = by_the_runbook(site, operator).await?;
    ensure!(script.contains(&attempt), "the script does not name {attempt}:\n{script}");
    site.say("$ sh rescue.sh");
    let refused = shell(&script, false).await.err().context("it took data back without a person's word")?.to_string();
    ensure!(
        refused.contains("LateWritesUnknown") && refused.contains("run this again with ACCEPT_DATA_LOSS=yes"),
        "{refused}"
    );
    writers_are_stopped(site).await?;

    // As it says; but first no further than the restore, because old servers rewrite data.
    let (restoring, _) = script.split_once(STARTS).context("the script starts nothing")?;
    site.say("$ ACCEPT_DATA_LOSS=yes sh rescue.sh (as far as the restore)");
    let said = shell(restoring, true).await?;
    ensure!(said.contains("\"restored\":true"), "the restore's report was not printed: {said}");
    writers_are_stopped(site).await?;
    Captured::now(site).await?.has_the_data_of(before).await?;
    // The whole from its beginning: the restore stands.
    site.say("$ ACCEPT_DATA_LOSS=yes sh rescue.sh");
    let said = shell(&script, true).await?;
    ensure!(said.contains("runs again. The snapshot and what else lies beside it stay in"), "{said}");
    untouched(site, before).await?;
    // Once more, when all is done: nothing is lost.
    site.say("$ sh rescue.sh, when all is done");
    shell(&script, false).await?;
    untouched(site, before).await
}

async fn shell(script: &str, accept: bool) -> Result<String> {
    // What it prints comes with what went wrong: the restore's report is on standard output.
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), script)?;
    let mut command = Command::new("sh");
    command.args(["-c", "sh \"$0\" 2>&1 || { code=$?; echo \"ended with $code\"; }"]).arg(file.path());
    if accept {
        command.env("ACCEPT_DATA_LOSS", "yes");
    }
    let said = environment::run(&mut command, None).await?;
    ensure!(!said.contains("ended with "), "{said}");
    Ok(said)
}

/// Types the runbook's own commands, with names filled in, as far as the script lies there.
async fn by_the_runbook(site: &Site, operator: &Operator) -> Result<String> {
    let text = std::fs::read_to_string(environment::root().join(RUNBOOK))?;
    let commands = text.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next());
    let commands = commands.with_context(|| format!("{RUNBOOK} has no commands"))?;
    let directory = tempfile::tempdir()?;
    let image = commands.lines().find_map(|line| line.trim().strip_prefix("image: ")).context("it names no image")?;
    let commands = commands
        .replace(image, &operator.image)
        .replace("NAME-snapshots", &format!("{RELEASE}-snapshots"))
        .replace("NS", &site.namespace);
    site.say("typing the runbook's commands");
    environment::run(Command::new("sh").args(["-euc", &commands]).current_dir(directory.path()), None).await?;
    std::fs::read_to_string(directory.path().join("rescue.sh")).context("the commands left no rescue.sh")
}

/// Every object of a kind goes, whatever it waits for.
async fn forget<K>(site: &Site) -> Outcome
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + serde::Serialize,
    K::DynamicType: Default,
{
    let api: Api<K> = site.api();
    for object in api.list(&ListParams::default()).await?.items {
        let name = object.name_any();
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        api.patch(&name, &PatchParams::default(), &free).await?;
        api.delete(&name, &DeleteParams::background()).await?;
    }
    let end = Instant::now() + SOON;
    while !api.list(&ListParams::default()).await?.items.is_empty() {
        ensure!(Instant::now() < end, "objects of the operator stay");
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    Ok(())
}

/// The operator of all namespaces.
struct Operator {
    deployments: Api<Deployment>,
    pods: Api<Pod>,
    replicas: i32,
    image: String,
}

impl Operator {
    async fn of(site: &Site) -> Result<Self> {
        let deployments: Api<Deployment> = Api::namespaced(site.client.clone(), OPERATOR);
        let spec = deployments.get(OPERATOR).await?.spec.context("the operator's Deployment has a spec")?;
        let container = spec.template.spec.and_then(|pod| pod.containers.into_iter().next());
        let image = container.and_then(|container| container.image).context("the operator has an image")?;
        let pods = Api::namespaced(site.client.clone(), OPERATOR);
        Ok(Self { deployments, pods, replicas: spec.replicas.unwrap_or(1), image })
    }

    async fn scale(&self, replicas: i32) -> Outcome {
        let change = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.deployments.patch_scale(OPERATOR, &PatchParams::default(), &change).await?;
        let mine = ListParams::default().labels(&format!("app.kubernetes.io/name={OPERATOR}"));
        let end = Instant::now() + SOON;
        loop {
            let pods = self.pods.list(&mine).await?.items.len();
            if i32::try_from(pods)? == replicas {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the operator has {pods} pods instead of {replicas}");
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    }

    async fn stop(&self, site: &Site) -> Outcome {
        site.say("the operator is stopped");
        self.scale(0).await
    }

    async fn start(&self) -> Outcome {
        self.scale(self.replicas).await
    }
}
