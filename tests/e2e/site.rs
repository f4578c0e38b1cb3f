//! One running Memoria in a namespace of its own, and the release that the operator carries out for it.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Event, PersistentVolume, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use memoria_operator::api::{
    MemoriaRelease, MemoriaUpgrade, marks,
    release::{Rehearse, Role},
    upgrade::Outcome as Ended,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{conditions, dump, environment};

pub const RELEASE: &str = "memoria";
pub const FROM: &str = "0.9.0";
pub const TO: &str = "1.0.0";
/// How long an upgrade of a small Memoria may take when three run at once on a busy machine.
pub const UPGRADED: Duration = Duration::from_secs(900);
/// How long the operator may take for what needs no pods.
pub const SOON: Duration = Duration::from_secs(90);

/// What is installed.
#[derive(Clone, Copy)]
pub struct Options {
    pub postgres: u32,
    pub rows: u32,
    /// One pod of each workload and no dashboard.
    pub small: bool,
    /// One server with an SQLite file instead of all that.
    pub sqlite: bool,
    /// What the data is made from.
    pub seed: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { postgres: 15, rows: 2_000, small: true, sqlite: false, seed: 1 }
    }
}

pub struct Site {
    pub namespace: String,
    pub client: Client,
    pub options: Options,
    /// Ids of memories that went into the queue: an upgraded Memoria must hold them.
    queued: Mutex<Vec<String>>,
    begin: Instant,
}

/// Installs a Memoria, runs the test on it, and shows what the cluster knows when it fails. The namespace stays: xtask
/// removes it, after the silence of all of them was tested.
pub async fn with_site(
    name: &str,
    options: Options,
    test: impl AsyncFnOnce(&Site) -> crate::Outcome,
) -> crate::Outcome {
    let site = Site::install(name, options).await?;
    let result = test(&site).await;
    match &result {
        Ok(()) => site.say("as expected"),
        Err(error) => {
            site.say(&format!("FAILED: {error:#}"));
            dump::namespace(&site.namespace).await;
        }
    }
    result
}

impl Site {
    async fn install(name: &str, options: Options) -> Result<Self> {
        let namespace = format!("e2e-{name}");
        let mut up = Command::new(environment::xtask()?);
        up.args(["memoria", "up", "--namespace", &namespace, "--postgres", &options.postgres.to_string()]);
        up.args(["--rows", &options.rows.to_string(), "--label", &format!("{}=true", environment::NAMESPACE_LABEL)]);
        up.args(["--seed", &options.seed.to_string()]);
        if options.small {
            up.arg("--small");
        }
        if options.sqlite {
            up.args(["--database", "sqlite"]);
        }
        let client = environment::client().await?;
        let site = Self { namespace, client, options, queued: Mutex::default(), begin: Instant::now() };
        site.say("installing Memoria");
        environment::run(&mut up, None).await.context("cannot install Memoria")?;
        site.say("Memoria runs");
        Ok(site)
    }

    /// Runs SQL in the database's pod, where the socket needs no password.
    pub async fn as_superuser(&self, database: &str, sql: &str) -> crate::Outcome {
        let mut psql = Command::new("kubectl");
        psql.args(["-n", &self.namespace, "exec", "-i", "memoria-postgres-0", "--"]);
        psql.args(["psql", "-qAt", "-v", "ON_ERROR_STOP=1", "-h", "/tmp", "-U", "postgres", database]);
        environment::run(&mut psql, Some(sql)).await.map(drop)
    }

    /// A line of progress.
    pub fn say(&self, text: &str) {
        println!("[{:>5.1} s] {}: {text}", self.begin.elapsed().as_secs_f32(), self.namespace);
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn list<K>(&self) -> Result<Vec<K>>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        Ok(self.api::<K>().list(&ListParams::default()).await?.items)
    }

    /// The release that fits what is installed. Without a rehearsal: most of what these tests break is to break behind the
    /// fence, and a rehearsal upgrades twice.
    pub fn new_release(&self) -> Result<MemoriaRelease> {
        let file = if self.options.sqlite { "release-sqlite.yaml" } else { "release.yaml" };
        let text = std::fs::read_to_string(environment::root().join("tests/memoria").join(file))?;
        let mut release: MemoriaRelease = serde_saphyr::from_str(&text).context("the sample release")?;
        release.spec.rollback.rehearse = Rehearse::Never;
        if self.options.small {
            release.spec.targets.retain(|target| target.role != Role::Dashboard);
        }
        Ok(release)
    }

    pub async fn create(&self, release: &MemoriaRelease) -> Result<()> {
        self.api().create(&PostParams::default(), release).await.context("the release was refused").map(drop)
    }

    /// Creates the release with the running version, and waits until it is adopted.
    pub async fn adopt(&self) -> Result<()> {
        self.adopt_as(&self.new_release()?).await
    }

    /// The same with a release of the test's own.
    pub async fn adopt_as(&self, release: &MemoriaRelease) -> Result<()> {
        self.create(release).await?;
        self.until("adopted", SOON, |release| ready(release).then_some(())).await
    }

    /// The one change that starts an upgrade.
    pub async fn set_version(&self, version: &str) -> Result<()> {
        self.patch(json!({"spec": {"version": version}})).await
    }

    pub async fn patch(&self, change: Value) -> Result<()> {
        let api: Api<MemoriaRelease> = self.api();
        api.patch(RELEASE, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    pub async fn release(&self) -> Result<MemoriaRelease> {
        Ok(self.api::<MemoriaRelease>().get(RELEASE).await?)
    }

    /// The latest attempt.
    pub async fn attempt(&self) -> Result<MemoriaUpgrade> {
        let mut all: Vec<MemoriaUpgrade> = self.list().await?;
        all.sort_by_key(ResourceExt::creation_timestamp);
        all.pop().context("there is no attempt")
    }

    /// Asks twice a second until there is an answer; conditions must make sense all the time. Tells each new message.
    pub async fn until<T>(&self, what: &str, limit: Duration, ask: impl Fn(&MemoriaRelease) -> Option<T>) -> Result<T> {
        let end = Instant::now() + limit;
        let mut told = String::new();
        loop {
            let release = self.release().await?;
            conditions::lint(&release)?;
            let (phase, _, message) = standing(&release);
            let now = format!("{phase}: {message}");
            if now != told {
                self.say(&now);
                told = now;
            }
            if let Some(answer) = ask(&release) {
                return Ok(answer);
            }
            if Instant::now() > end {
                bail!("waited {} s for {what} in vain; the release says: {told}", limit.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until the operator has nothing more to do for this generation.
    pub async fn until_settled(&self, limit: Duration) -> Result<MemoriaRelease> {
        self.until("the operator to settle", limit, |release| {
            (ready(release) || condition(release, "Stalled").is_some()).then(|| release.clone())
        })
        .await
    }

    /// Waits for the end of the current generation's attempt, which must be this one.
    pub async fn until_ended(&self, expected: Ended) -> Result<MemoriaRelease> {
        let release = self
            .until("the attempt to end", UPGRADED, |release| {
                let settled = ready(release) || condition(release, "Stalled").is_some();
                settled.then(|| release.clone())
            })
            .await?;
        let outcome = release.status.as_ref().and_then(|s| s.attempt.as_ref()).and_then(|attempt| attempt.outcome);
        let (phase, reason, message) = standing(&release);
        ensure!(outcome == Some(expected), "the attempt ended as {outcome:?}, {phase}/{reason}: {message}");
        Ok(release)
    }

    pub async fn deployment(&self, name: &str) -> Result<Deployment> {
        self.api::<Deployment>().get(name).await.with_context(|| format!("deployment {name}"))
    }

    /// The Deployments that the release names.
    pub async fn workloads(&self) -> Result<Vec<Deployment>> {
        let names: &[&str] = match self.options {
            Options { sqlite: true, .. } => &["memoria"],
            Options { small: true, .. } => &["memoria-server", "memoria-worker"],
            _ => &["memoria-server", "memoria-worker", "memoria-dashboard"],
        };
        let mut found = Vec::new();
        for name in names {
            found.push(self.deployment(name).await?);
        }
        Ok(found)
    }

    /// Waits a while for every wanted pod of the release's workloads to be ready; what is then still missing is for the
    /// caller to judge.
    pub async fn calm(&self) -> Result<()> {
        let end = Instant::now() + SOON;
        loop {
            let waiting = self.workloads().await?.into_iter().any(|workload| {
                let wanted = workload.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                let ready = workload.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
                ready != wanted
            });
            if !waiting || Instant::now() > end {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Pods by name with UID and restarts: what changes when anything is restarted.
    pub async fn pods(&self) -> Result<BTreeMap<String, (String, i32)>> {
        let pods: Vec<Pod> = self.list().await?;
        let one = |pod: Pod| {
            let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
            let restarts = statuses.unwrap_or_default().iter().map(|status| status.restart_count).sum();
            (pod.name_any(), (pod.uid().unwrap_or_default(), restarts))
        };
        Ok(pods.into_iter().map(one).collect())
    }

    /// The maintenance flag is off, where there is one.
    pub async fn maintenance_is_off(&self) -> Result<()> {
        if !self.options.sqlite {
            let flag = self.flag().await?;
            ensure!(flag == "false", "the maintenance flag is {flag}");
        }
        Ok(())
    }

    /// The directory on this machine that holds a claim's volume.
    pub async fn volume(&self, claim: &str) -> Result<PathBuf> {
        let claim: PersistentVolumeClaim = self.api().get(claim).await?;
        let name = claim.spec.and_then(|spec| spec.volume_name).context("the claim is bound")?;
        let volume: PersistentVolume = Api::all(self.client.clone()).get(&name).await?;
        let directory = volume.spec.and_then(|spec| spec.local).map(|local| local.path).context("a local volume")?;
        let directory = directory.rsplit('/').next().unwrap_or_default().to_owned();
        let node = name.strip_suffix(&format!("-{directory}")).context("volumes are named after their nodes")?;
        Ok(environment::cluster_state()?.join("nodes").join(node).join("volumes").join(directory))
    }

    /// Puts a memory into the queue as soon as writers are stopped: the first who can take it is a worker of the version
    /// that comes back.
    pub async fn ingest_while_stopped(&self, memory_id: &str) -> Result<()> {
        self.until("writers to be stopped", UPGRADED, |release| condition(release, "IngestionStopped")).await?;
        let job = json!({"memory_id": memory_id, "user_input": "written while the upgrade ran"});
        self.enqueue(&job.to_string()).await?;
        self.queued.lock().unwrap_or_else(PoisonError::into_inner).push(memory_id.to_owned());
        Ok(())
    }

    /// Ids of all memories that went into the queue.
    pub fn queued(&self) -> Vec<String> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the queue one job, or `{"jobs": […]}`, as text.
    pub async fn enqueue(&self, jobs: &str) -> Result<()> {
        let post =
            "import sys, urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:8080/jobs', sys.argv[1].encode()))";
        let exec = ["-n", &self.namespace, "exec", "deployment/memoria-queue", "--", "python", "-c", post];
        environment::kubectl(&[&exec[..], &[jobs]].concat()).await.map(drop)
    }

    async fn flag(&self) -> Result<String> {
        let flags: ConfigMap = self.api().get("memoria-flags").await?;
        flags.data.and_then(|mut data| data.remove("maintenance")).context("the flag is gone")
    }

    /// The operator's Jobs.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        let mine = ListParams::default().labels(&format!("{}={RELEASE}", marks::RELEASE_LABEL));
        Ok(self.api::<Job>().list(&mine).await?.items)
    }

    /// Reasons of the events about the release and its attempts.
    pub async fn event_reasons(&self) -> Result<Vec<String>> {
        let events: Vec<Event> = self.list().await?;
        let ours = events
            .into_iter()
            .filter(|event| matches!(event.involved_object.kind.as_deref(), Some("MemoriaRelease" | "MemoriaUpgrade")));
        Ok(ours.filter_map(|event| event.reason).collect())
    }
}

/// Phase, reason and message, as a person reads them.
pub fn standing(release: &MemoriaRelease) -> (String, String, String) {
    let status = release.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let (reason, message) = ready.map(|ready| (ready.reason.clone(), ready.message.clone())).unwrap_or_default();
    (status.phase.unwrap_or_default(), reason, message)
}

/// The message of a condition that is True and of the current generation.
pub fn condition(release: &MemoriaRelease, type_: &str) -> Option<String> {
    let status = release.status.as_ref()?;
    if status.observed_generation != release.metadata.generation {
        return None;
    }
    let found = status.conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")?;
    Some(found.message.clone())
}

pub fn ready(release: &MemoriaRelease) -> bool {
    condition(release, "Ready").is_some()
}
