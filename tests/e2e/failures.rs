//! Upgrades that fail before the image moves: everything comes back, and what the release says to do next works.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use memoria_operator::api::{
    GoDuration, MemoriaRelease, marks,
    upgrade::{Category, Outcome as Ended},
};
use tokio::process::Command;

use crate::{
    Outcome,
    checkers::Captured,
    environment,
    good::is_upgraded,
    site::{FROM, Options, SOON, Site, TO, condition, standing, with_site},
};

#[tokio::test]
async fn a_failure_before_the_image_moves_resumes_what_ran_and_the_next_command_upgrades() -> Outcome {
    with_site("resumed", Options::default(), async |site| {
        let mut release = site.new_release()?;
        release.spec.timeouts.quiesce = GoDuration::from_secs(75);
        site.create(&release).await?;
        site.until("adopted", SOON, |release| condition(release, "Ready")).await?;
        let before = Captured::now(site).await?;

        let intruder = Intruder::start(site).await?;
        site.set_version(TO).await?;
        let release = site.until_ended(Ended::Resumed).await?;
        let (phase, reason, message) = standing(&release);
        ensure!(phase == "Resumed" && reason == "Resumed", "{phase}/{reason}");
        ensure!(message.contains(FROM) && message.contains("runs again"), "it does not say what runs: {message}");
        ensure!(condition(&release, "IngestionStopped").is_none(), "ingestion is said to be stopped");

        let attempt = site.attempt().await?;
        let journal = attempt.status.as_ref().context("a journal")?;
        let failure = journal.failure.as_ref().context("a failure")?;
        ensure!(failure.phase == "Quiesce" && failure.category == Category::Environment, "{failure:?}");
        ensure!(failure.message.contains("session"), "it does not say what writes: {}", failure.message);
        ensure!(journal.snapshot.is_none(), "a snapshot was taken of a database that is written to");
        ensure!(journal.phases.iter().all(|record| record.name != "ImageBump"), "the image moved");
        untouched(site, &before).await?;

        intruder.stop(site).await?;
        next_action(&release)?.run(site).await?;
        site.until("the checks to begin again", SOON, |release| condition(release, "Reconciling")).await?;
        let release = site.until_ended(Ended::Succeeded).await?;
        is_upgraded(site, &release, &before).await
    })
    .await
}

/// Nothing differs from before, but for the data that a starting server rewrites.
pub async fn untouched(site: &Site, before: &Captured) -> Outcome {
    let after = Captured::now(site).await?;
    after.has_the_workloads_of(before, &[]).await?;
    after.is_what_an_upgrade_makes_of(before, site, FROM, FROM).await?;
    for workload in site.workloads().await? {
        ensure!(
            !workload.annotations().contains_key(marks::ATTEMPT_ANNOTATION),
            "{} bears a mark",
            workload.name_any()
        );
    }
    site.maintenance_is_off().await
}

pub async fn writers_are_stopped(site: &Site) -> Outcome {
    for workload in site.workloads().await? {
        let replicas = workload.spec.as_ref().and_then(|spec| spec.replicas);
        ensure!(replicas == Some(0), "{} has {replicas:?} replicas", workload.name_any());
    }
    let pods: Api<Pod> = site.api();
    let pods = pods.list(&Default::default()).await?.items;
    let writer = pods.iter().find(|pod| {
        let name = pod.labels().get("app.kubernetes.io/name").map(String::as_str);
        matches!(name, Some("memoria" | "memoria-server" | "memoria-worker"))
    });
    ensure!(writer.is_none(), "pod {} runs", writer.map(|pod| pod.name_any()).unwrap_or_default());
    Ok(())
}

/// What the release tells a person to type.
pub struct NextAction(String);

pub fn next_action(release: &MemoriaRelease) -> Result<NextAction> {
    let action = release.status.as_ref().and_then(|status| status.next_action.clone());
    action.map(NextAction).context("the release says no next action")
}

impl NextAction {
    /// Types it.
    pub async fn run(&self, site: &Site) -> Outcome {
        site.say(&format!("$ {}", self.0));
        environment::run(Command::new("sh").args(["-c", &self.0]), None).await.context("the next action").map(drop)
    }
}

/// A client that nobody thought of: it opens sessions as the application, again and again.
struct Intruder {
    process: tokio::process::Child,
}

impl Intruder {
    async fn start(site: &Site) -> Result<Self> {
        // It ends by its file: a signal would only end the client of the exec.
        let script = "touch /tmp/intruder; while [ -e /tmp/intruder ]; do \
                      psql -qAt -h /tmp -U memoria memoria -c 'SELECT pg_sleep(0.5)' >/dev/null 2>&1; done";
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["-n", &site.namespace, "exec", "memoria-postgres-0", "--", "sh", "-c", script]);
        Ok(Self { process: kubectl.kill_on_drop(true).spawn().context("cannot start kubectl")? })
    }

    async fn stop(mut self, site: &Site) -> Outcome {
        environment::kubectl(&["-n", &site.namespace, "exec", "memoria-postgres-0", "--", "rm", "/tmp/intruder"])
            .await?;
        self.process.wait().await.context("the intruder did not end").map(drop)
    }
}
