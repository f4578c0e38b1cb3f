//! `cargo xtask memoria`: installs the stand-in for Memoria the way a user installs Memoria, with `kubectl apply`, and
//! fills its database. The demo and the tests on the cluster use it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::cluster::Target;
use crate::kube::Kube;
use crate::place;

/// How long a workload may take to become ready: on a busy machine a server needs half a minute for its imports alone.
const READY: Duration = Duration::from_secs(300);
/// How long writing the data may take.
const GENERATE: Duration = Duration::from_secs(900);
/// The version that is installed.
pub const VERSION: &str = "0.9.0";

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Install Memoria 0.9.0 with data into a namespace of its own, and wait until it is ready
    Up(Installation),
    /// Remove the namespace
    Down {
        #[arg(long)]
        namespace: String,
        #[arg(long)]
        use_current_context: bool,
    },
}

/// What a Memoria keeps its data in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Database {
    /// Server, workers, queue and dashboard beside a database server
    #[default]
    Postgresql,
    /// One server with a file on a claim, and nothing else
    Sqlite,
}

impl Database {
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgresql => "postgresql",
            Self::Sqlite => "sqlite",
        }
    }

    /// The MemoriaRelease of what is installed, below the checkout's root.
    pub fn release(self) -> &'static str {
        match self {
            Self::Postgresql => "tests/memoria/release.yaml",
            Self::Sqlite => "tests/memoria/release-sqlite.yaml",
        }
    }
}

#[derive(clap::Args)]
pub struct Installation {
    #[arg(long)]
    pub namespace: String,
    /// What it keeps its data in
    #[arg(long, value_enum, default_value_t)]
    pub database: Database,
    /// Major version of PostgreSQL
    #[arg(long, default_value = "15", value_parser = ["15", "17"])]
    pub postgres: String,
    /// Rows of data in all tables together
    #[arg(long, default_value_t = 44_000)]
    pub rows: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u32,
    /// One pod of each workload, and no dashboard
    #[arg(long)]
    pub small: bool,
    /// A label for the namespace, key=value
    #[arg(long)]
    pub label: Option<String>,
    /// The cluster of the kubeconfig's current context instead of the local one
    #[arg(long)]
    pub use_current_context: bool,
}

pub fn run(args: Args) -> Result<()> {
    match args.action {
        Action::Up(installation) => {
            let kube = Kube { target: Target::from_flag(installation.use_current_context) };
            install(&kube, &installation, &Clock::start())
        }
        Action::Down { namespace, use_current_context } => {
            Kube { target: Target::from_flag(use_current_context) }.delete_namespaces(&[&namespace])
        }
    }
}

/// Installs it. The database comes first and gets its data before a server starts: a server that finds no database dies.
pub fn install(kube: &Kube, wanted: &Installation, clock: &Clock) -> Result<()> {
    let ns = wanted.namespace.as_str();
    create_namespace(kube, wanted)?;
    if wanted.database == Database::Sqlite {
        return install_sqlite(kube, wanted, clock);
    }
    for file in ["00-config.yaml", "10-postgres.yaml"] {
        kube.apply(ns, &manifest(wanted, file)?)?;
    }
    kube.rolled_out(ns, "statefulset/memoria-postgres", READY)?;
    clock.say(&format!("{ns}: PostgreSQL {} is ready; generating {} rows", wanted.postgres, wanted.rows));
    generate(kube, wanted)?;
    clock.say(&format!("{ns}: the data is written; starting Memoria {VERSION}"));
    let mut workloads = vec!["deployment/memoria-queue", "deployment/memoria-server", "deployment/memoria-worker"];
    let mut files = vec!["20-queue.yaml", "30-server.yaml", "40-worker.yaml"];
    if !wanted.small {
        workloads.push("deployment/memoria-dashboard");
        files.push("50-dashboard.yaml");
    }
    for file in files {
        kube.apply(ns, &manifest(wanted, file)?)?;
    }
    for workload in workloads {
        kube.rolled_out(ns, workload, READY)?;
    }
    clock.say(&format!("{ns}: Memoria {VERSION} is ready"));
    Ok(())
}

/// Claim and Secret first; the data is written before the server starts, as with PostgreSQL.
fn install_sqlite(kube: &Kube, wanted: &Installation, clock: &Clock) -> Result<()> {
    let ns = wanted.namespace.as_str();
    let all = manifest(wanted, "sqlite/memoria.yaml")?;
    kube.apply(ns, &without_workloads(&all))?;
    clock.say(&format!("{ns}: generating {} rows in an SQLite file", wanted.rows));
    generate(kube, wanted)?;
    clock.say(&format!("{ns}: the data is written; starting Memoria {VERSION}"));
    kube.apply(ns, &all)?;
    kube.rolled_out(ns, "deployment/memoria", READY)?;
    clock.say(&format!("{ns}: Memoria {VERSION} is ready"));
    Ok(())
}

/// The documents that start no pod.
fn without_workloads(documents: &str) -> String {
    let quiet = documents.split("\n---\n").filter(|document| !document.lines().any(|line| line == "kind: Deployment"));
    quiet.collect::<Vec<_>>().join("\n---\n")
}

/// A namespace that enforces PodSecurity `restricted`, as a careful user's does.
fn create_namespace(kube: &Kube, wanted: &Installation) -> Result<()> {
    let mut labels =
        json!({"pod-security.kubernetes.io/enforce": "restricted", "app.kubernetes.io/part-of": "memoria"});
    if let Some(label) = &wanted.label {
        let (key, value) = label.split_once('=').context("--label takes key=value")?;
        labels[key] = json!(value);
    }
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": wanted.namespace, "labels": labels}});
    kube.apply("default", &namespace.to_string())
}

fn manifest(wanted: &Installation, file: &str) -> Result<String> {
    let path = place::root()?.join("tests/memoria/manifests").join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = with_fresh_images(&text.replace("${PG_MAJOR}", &wanted.postgres));
    Ok(if wanted.small { text.replace("replicas: 2", "replicas: 1") } else { text })
}

/// Nodes keep images by tag, and here a tag is another image after each change of the stand-in.
fn with_fresh_images(text: &str) -> String {
    let fresh = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        match line.trim_start().starts_with("image: ") {
            true => format!("{line}\n{:indent$}imagePullPolicy: Always\n", ""),
            false => format!("{line}\n"),
        }
    };
    text.lines().map(fresh).collect()
}

/// Fills the database from a pod of the server's image. The URL reaches it as the server's does.
fn generate(kube: &Kube, wanted: &Installation) -> Result<()> {
    let name = "memoria-generate";
    let restricted =
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
    let (url, mounts, volumes) = match wanted.database {
        Database::Postgresql => {
            (json!({"valueFrom": {"secretKeyRef": {"name": "memoria-db", "key": "url"}}}), json!([]), json!([]))
        }
        Database::Sqlite => (
            json!({"value": "sqlite:////data/memoria.db"}),
            json!([{"name": "data", "mountPath": "/data"}]),
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": "memoria-data"}}]),
        ),
    };
    let mut container = json!({
        "name": "generate",
        "image": format!("registry.arca.run/memoria/server:{VERSION}"),
        "imagePullPolicy": "Always",
        "command": ["python", "-m", "memoria_generate", "--rows", wanted.rows.to_string(), "--seed", wanted.seed.to_string()],
        "env": [url],
        "securityContext": restricted,
        "volumeMounts": mounts,
    });
    container["env"][0]["name"] = json!("MEMORIA_DATABASE__CONNECTION_STRING");
    push(&mut container["volumeMounts"], json!({"name": "tmp", "mountPath": "/tmp"}));
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        }}},
    });
    push(&mut job["spec"]["template"]["spec"]["volumes"], json!({"name": "tmp", "emptyDir": {}}));
    let ns = wanted.namespace.as_str();
    kube.apply(ns, &job.to_string())?;
    kube.wait("the data to be written", GENERATE, || {
        let status = kube.get(ns, "job", name)?.map(|job| job["status"].clone()).unwrap_or_default();
        if status["failed"].as_i64().unwrap_or_default() > 0 {
            let log = kube.run(&["--namespace", ns, "logs", "job/memoria-generate"]).unwrap_or_default();
            bail!("generating the data failed: {}", log.trim());
        }
        Ok((status["succeeded"].as_i64() == Some(1)).then_some(()))
    })?;
    kube.run(&["--namespace", ns, "delete", "job", name]).map(drop)
}

fn push(list: &mut Value, entry: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_asked_for_anew() {
        let text = "containers:\n  - name: a\n    image: r/a:1\n    command: [a]\n";
        let expected = "containers:\n  - name: a\n    image: r/a:1\n    imagePullPolicy: Always\n    command: [a]\n";
        assert_eq!(with_fresh_images(text), expected);
    }

    #[test]
    fn claim_and_secret_come_before_the_server() {
        let path = place::root().unwrap().join("tests/memoria/manifests/sqlite/memoria.yaml");
        let quiet = without_workloads(&fs::read_to_string(path).unwrap());
        let kinds: Vec<_> = quiet.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
        assert_eq!(kinds, ["Secret", "PersistentVolumeClaim", "Service"]);
    }
}
