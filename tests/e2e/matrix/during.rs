//! What is done to an upgrade while it runs.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event, watcher},
};
use memoria_operator::api::{MemoriaRelease, MemoriaUpgrade, marks};
use serde_json::json;
use tokio::process::Command;

use crate::{
    Outcome,
    config::OVERRIDES,
    environment,
    rollback::write_as_a_client,
    site::{FROM, RELEASE, Site, UPGRADED, standing},
    untouched::abort,
};

#[derive(Clone, Copy)]
pub enum During {
    Nothing,
    /// The overrides cannot be read from the beginning.
    OverridesBroken,
    /// The overrides cannot be read any more when Migrate runs; somebody mends them once that was noticed.
    OverridesBreak,
    /// The pod of this step's Job is deleted, without grace, when it runs.
    PodOf(&'static str),
    /// The restore's pod is deleted while its session has a transaction open that has written; so many times.
    RestoreKilled {
        times: usize,
    },
    /// The database's pod is deleted when the restore runs.
    DatabaseRestarts,
    /// Another hand sets the former image when Migrate runs.
    ImageFlipped,
    /// Clients insert, update and delete once they are let in.
    LateWrites,
    /// Jobs come into the queue that no server accepts.
    QueueStuck,
    /// What the queue says of itself is years old, until it was seen that the upgrade holds.
    MetricStale,
    /// Workers of the new version have something to ingest.
    Ingestion,
    /// The volume for snapshots is full when writers are stopped.
    StorageFull,
    /// A person aborts the attempt in this phase.
    Abort(&'static str),
    /// A person deletes the release in this phase.
    Deletion(&'static str),
}

/// A Service through which the queue is asked for its depth.
pub const METRIC: &str = "queue-metric";
/// The name label of the pod that answers there with an old value.
const STALE: &str = "stale-metric";
/// A small claim for snapshots.
pub const CLAIM: &str = "small-snapshots";
/// Rows that clients insert, update and delete.
pub const LATE: [u32; 3] = [400, 300, 300];
/// Half a character, which no database can store: every version answers 500, and the worker tries it again.
const POISON: &str = r#"{"user_input": "\ud800"}"#;
/// What is no YAML mapping.
const UNREADABLE: &str = "verbose: true\nmemory: [production\n";

/// What has to stand before the release is adopted.
pub async fn prepare(site: &Site, during: During) -> Outcome {
    match during {
        During::OverridesBroken => set_overrides(site, UNREADABLE).await.map(drop),
        During::MetricStale => {
            let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": METRIC},
                "spec": {"selector": {NAME: QUEUE}, "ports": [{"port": 8080, "targetPort": 8080}]}});
            site.api::<Service>().create(&PostParams::default(), &serde_json::from_value(service)?).await?;
            site.api::<Pod>().create(&PostParams::default(), &stale_metric()?).await?;
            Ok(())
        }
        During::StorageFull => {
            let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM},
                "spec": {"storageClassName": "local-small", "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "16Mi"}}}});
            let claims = site.api::<PersistentVolumeClaim>();
            claims.create(&PostParams::default(), &serde_json::from_value(claim)?).await?;
            Ok(())
        }
        _ => Ok(()),
    }
}

const NAME: &str = "app.kubernetes.io/name";
const QUEUE: &str = "memoria-queue";

/// A pod that gives the same old answer for ever.
fn stale_metric() -> Result<Pod> {
    let script = "import http.server as h\n\
        class Old(h.BaseHTTPRequestHandler):\n\
        \x20   def do_GET(self):\n\
        \x20       body = b'{\"depth\": 0, \"updated_at\": \"2020-02-02T02:02:02+00:00\"}'\n\
        \x20       self.send_response(200)\n\
        \x20       self.send_header('Content-Length', str(len(body)))\n\
        \x20       self.end_headers()\n\
        \x20       self.wfile.write(body)\n\
        h.HTTPServer(('', 8080), Old).serve_forever()\n";
    let pod = json!({"metadata": {"name": STALE, "labels": {NAME: STALE}}, "spec": {
        "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "metric", "image": format!("registry.arca.run/memoria/server:{FROM}"),
            "command": ["python", "-c", script],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]}}}]}});
    serde_json::from_value(pod).context("a pod")
}

/// Does it when its time has come.
pub async fn disturb(site: &Site, during: During) -> Outcome {
    match during {
        During::Nothing | During::OverridesBroken => Ok(()),
        During::OverridesBreak => {
            running(site, "migrate").await?;
            let before = set_overrides(site, UNREADABLE).await?;
            begins(site, "RollbackQuiesce").await?;
            set_overrides(site, &before).await.map(drop)
        }
        During::PodOf(step) => {
            running(site, step).await?;
            delete(site, &pod_of(site, step).await?.context("its pod runs")?).await
        }
        During::RestoreKilled { times } => kill_restores(site, times).await,
        During::DatabaseRestarts => {
            running(site, "restore").await?;
            delete(site, "memoria-postgres-0").await
        }
        During::ImageFlipped => {
            running(site, "migrate").await?;
            let workload = if site.options.sqlite { "memoria" } else { "memoria-server" };
            let (workload, image) =
                (format!("deployment/{workload}"), format!("server=registry.arca.run/memoria/server:{FROM}"));
            environment::kubectl(&["-n", &site.namespace, "set", "image", &workload, &image]).await.map(drop)
        }
        During::LateWrites => {
            begins(site, "IngestionReenable").await?;
            match site.options.sqlite {
                false => write_as_a_client(site, LATE).await,
                true => write_into_the_file(site).await,
            }
        }
        During::QueueStuck => {
            begins(site, "SnapshotExport").await?;
            site.enqueue(&format!(r#"{{"jobs": [{}]}}"#, [POISON; 20].join(","))).await
        }
        During::MetricStale => {
            begins(site, "SnapshotExport").await?;
            select(site, STALE).await?;
            let hold = site
                .until("a hold for want of a fresh value", UPGRADED, |release| {
                    let hold = release.status.as_ref()?.hold.as_ref()?;
                    (hold.phase == "IngestionReenable" && hold.reason == "CheckInconclusive").then(|| hold.clone())
                })
                .await?;
            ensure!(hold.message.contains("the data is stale"), "it does not say what is wrong: {}", hold.message);
            select(site, QUEUE).await
        }
        During::Ingestion => site.ingest_while_stopped("never-to-be-seen").await,
        During::StorageFull => {
            begins(site, "Quiesce").await?;
            fill(site).await
        }
        During::Abort(phase) => {
            begins(site, phase).await?;
            site.say(&format!("aborting in {phase}"));
            abort(site).await
        }
        During::Deletion(phase) => {
            if phase == "PreFlight" {
                let checks = |release: &MemoriaRelease| (standing(release).0 == phase).then_some(());
                site.until(phase, UPGRADED, checks).await?;
            } else {
                begins(site, phase).await?;
            }
            site.say(&format!("deleting the release in {phase}"));
            site.api::<MemoriaRelease>().delete(RELEASE, &DeleteParams::default()).await?;
            Ok(())
        }
    }
}

/// Waits until the attempt's journal has this phase. A watch misses none, however short.
async fn begins(site: &Site, phase: &str) -> Outcome {
    let attempts: Api<MemoriaUpgrade> = site.api();
    let mut changes = Box::pin(watcher(attempts, watcher::Config::default()));
    loop {
        let change = tokio::time::timeout(UPGRADED, changes.next()).await;
        let change = change.with_context(|| format!("nothing moves towards {phase}"))?.context("the watch ended")??;
        let (Event::Apply(attempt) | Event::InitApply(attempt)) = change else { continue };
        let journal = attempt.status.unwrap_or_default();
        if journal.phases.iter().any(|record| record.name == phase) {
            return Ok(());
        }
        ensure!(journal.outcome.is_none(), "it ended before {phase}: {:?}", journal.failure);
    }
}

/// Waits until a container of this step's pod runs.
async fn running(site: &Site, step: &str) -> Outcome {
    let end = Instant::now() + UPGRADED;
    while pod_of(site, step).await?.is_none() {
        if Instant::now() > end {
            bail!("the job of {step} never ran");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn pod_of(site: &Site, step: &str) -> Result<Option<String>> {
    let labels = format!("{}={step},{}", marks::STEP_LABEL, marks::ATTEMPT_LABEL);
    let pods = site.api::<Pod>().list(&ListParams::default().labels(&labels)).await?.items;
    let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    Ok(pods.iter().find(runs).map(ResourceExt::name_any))
}

async fn delete(site: &Site, pod: &str) -> Outcome {
    site.say(&format!("deleting pod {pod}"));
    let pods: Api<Pod> = site.api();
    pods.delete(pod, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

/// The restore's session is stopped where it is inside its transaction, by the server's own word; its pod is deleted then,
/// and the session goes on to find nobody there.
async fn kill_restores(site: &Site, times: usize) -> Outcome {
    let mut last = String::from("0");
    for n in 1..=times {
        let said = in_the_database(site, &stop_inside(&last)).await.with_context(|| format!("kill {n}"))?;
        let (pid, inside) = said.trim().split_once(' ').with_context(|| format!("kill {n} came too late: {said:?}"))?;
        site.say(&format!("restore {n} of {times} is inside its transaction: {inside}"));
        let deleted = match pod_of(site, "restore").await? {
            Some(pod) => delete(site, &pod).await,
            None => Err(anyhow::anyhow!("no restore runs")),
        };
        in_the_database(site, &format!("kill -CONT {pid}")).await?;
        deleted?;
        last = pid.to_owned();
    }
    Ok(())
}

/// Waits for a restore's session that has written in its transaction, stops that server process, and prints its number and
/// what it was doing if it is still in there.
fn stop_inside(last: &str) -> String {
    let restore = format!("application_name LIKE 'mop-%-restore' AND backend_xid IS NOT NULL AND pid <> {last}");
    let wait = format!(
        "DO \\$\\$ BEGIN FOR n IN 1..30000 LOOP PERFORM pg_stat_clear_snapshot(); \
         EXIT WHEN EXISTS (SELECT FROM pg_stat_activity WHERE {restore}); PERFORM pg_sleep(0.005); END LOOP; END \\$\\$"
    );
    let psql = "psql -qAtX -h /tmp -U postgres memoria";
    format!(
        "pid=$({psql} -c \"{wait}\" -c \"SELECT pid FROM pg_stat_activity WHERE {restore}\") && kill -STOP $pid && \
         {psql} -c \"SELECT pid || ' ' || left(query, 60) FROM pg_stat_activity WHERE pid = $pid AND backend_xid IS NOT NULL\""
    )
}

async fn in_the_database(site: &Site, script: &str) -> Result<String> {
    environment::kubectl(&["-n", &site.namespace, "exec", "memoria-postgres-0", "--", "sh", "-c", script]).await
}

/// The same writes as [`write_as_a_client`], beside the server, in its file.
async fn write_into_the_file(site: &Site) -> Outcome {
    let file = site.volume("memoria-data").await?.join("memoria.db");
    let [inserted, updated, deleted] = LATE;
    let script = format!(
        "import sqlite3, sys\n\
         c = sqlite3.connect(sys.argv[1], timeout=30)\n\
         with c:\n\
         \x20   for n in range({inserted}):\n\
         \x20       c.execute(\"INSERT INTO teams (team_id, name, slug, created_at, updated_at) \
                      VALUES (?, 'late', ?, '2026-01-01 00:00:00', '2026-01-01 00:00:00')\", (f'late-{{n}}', f'late-{{n}}'))\n\
         \x20   c.execute(\"UPDATE chat_history SET user_input = 'late' WHERE chat_id IN \
                      (SELECT chat_id FROM chat_history ORDER BY 1 LIMIT {updated})\")\n\
         \x20   c.execute('DELETE FROM memory_access_events WHERE id IN \
                      (SELECT id FROM memory_access_events ORDER BY id DESC LIMIT {deleted})')\n\
         c.close()\n"
    );
    environment::run(Command::new("python3").args(["-c", &script]).arg(file), None).await.map(drop)
}

/// Answers what stood there.
async fn set_overrides(site: &Site, text: &str) -> Result<String> {
    let maps: Api<ConfigMap> = site.api();
    let before = maps.get(OVERRIDES).await?.data.and_then(|mut data| data.remove("config.yaml"));
    let change = Patch::Merge(json!({"data": {"config.yaml": text}}));
    maps.patch(OVERRIDES, &PatchParams::default(), &change).await?;
    before.context("there are overrides")
}

/// Who answers for the queue from now on.
async fn select(site: &Site, name: &str) -> Outcome {
    site.say(&format!("{METRIC} is answered by {name}"));
    let change = Patch::Merge(json!({"spec": {"selector": {NAME: name}}}));
    site.api::<Service>().patch(METRIC, &PatchParams::default(), &change).await?;
    Ok(())
}

/// Fills the volume of the small claim to its last byte.
async fn fill(site: &Site) -> Outcome {
    let claim: PersistentVolumeClaim = site.api().get(CLAIM).await?;
    let volume = claim.spec.and_then(|spec| spec.volume_name).context("the claim is bound")?;
    let (node, directory) = volume.split_once("-local-small").context("volumes are named after their nodes")?;
    let file = inside(node)?.join(format!("mnt/volumes/local-small{directory}/filler"));
    let mut bytes = 0;
    let chunk = vec![0; 64 << 10];
    let mut filler = std::fs::File::create(&file).with_context(|| file.display().to_string())?;
    loop {
        match std::io::Write::write(&mut filler, &chunk) {
            Ok(written) => bytes += written,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
            Err(error) => return Err(error).context("filling the volume"),
        }
        ensure!(bytes < 64 << 20, "the volume has no end");
    }
    site.say(&format!("{} MiB filled the volume of {CLAIM}", bytes >> 20));
    Ok(())
}

/// A node's own view of files: a volume with a limit is mounted nowhere else.
fn inside(node: &str) -> Result<PathBuf> {
    let file = environment::cluster_state()?.join("run").join(format!("{node}.json"));
    let holder: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).context("a node runs")?)?;
    let pid = holder["pid"].as_i64().context("a node has a process")?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let init = children.split_whitespace().next().context("a node has a first process")?;
    Ok(PathBuf::from(format!("/proc/{init}/root")))
}
