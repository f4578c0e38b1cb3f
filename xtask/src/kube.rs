//! What chores ask of a cluster, by way of its `kubectl`.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::{Target, command};

/// One cluster.
#[derive(Debug, Clone, Copy)]
pub struct Kube {
    pub target: Target,
}

impl Kube {
    pub fn kubectl(&self, args: &[&str]) -> Result<Command> {
        let mut kubectl = self.target.kubectl()?;
        kubectl.args(args);
        Ok(kubectl)
    }

    /// What it prints.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        command::run(&mut self.kubectl(args)?)
    }

    /// `kubectl apply`, as a user types it, so that the objects look as a user's do.
    pub fn apply(&self, namespace: &str, yaml: &str) -> Result<()> {
        command::run_with_input(&mut self.kubectl(&["--namespace", namespace, "apply", "--filename=-"])?, yaml)
            .map(drop)
    }

    /// One object, or `None` when it does not exist.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Option<Value>> {
        let args = ["--namespace", namespace, "get", kind, name, "--ignore-not-found", "--output=json"];
        let printed = self.run(&args)?;
        if printed.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&printed).with_context(|| format!("cannot read {kind}/{name}")).map(Some)
    }

    /// All objects of a kind in a namespace.
    pub fn list(&self, namespace: &str, kind: &str) -> Result<Vec<Value>> {
        let printed = self.run(&["--namespace", namespace, "get", kind, "--output=json"])?;
        let mut list: Value = serde_json::from_str(&printed).with_context(|| format!("cannot read the {kind}"))?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("kubectl printed no list of {kind}"),
        }
    }

    /// Waits until the workload's rollout is complete.
    pub fn rolled_out(&self, namespace: &str, workload: &str, limit: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        self.run(&["--namespace", namespace, "rollout", "status", workload, &timeout])
            .with_context(|| format!("{workload} did not come up; its events: kubectl -n {namespace} get events"))
            .map(drop)
    }

    /// Asks once a second until there is an answer.
    pub fn wait<T>(&self, what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            if Instant::now() > end {
                bail!("waited {} s for {what} in vain", limit.as_secs());
            }
            sleep(Duration::from_secs(1));
        }
    }

    /// Removes namespaces with all that is in them and waits until they are gone. MemoriaReleases go first: their
    /// finalizers need an operator, which may not be there.
    pub fn delete_namespaces(&self, namespaces: &[&str]) -> Result<()> {
        for namespace in namespaces {
            if self.get("default", "namespace", namespace)?.is_none() {
                continue;
            }
            let releases = self.list(namespace, "memoriareleases.memoria.arca.run").unwrap_or_default();
            for name in releases.iter().filter_map(|release| release["metadata"]["name"].as_str()) {
                let of = ["--namespace", namespace];
                self.run(
                    &[&of, ["delete", "memoriarelease"].as_slice(), &[name, "--wait=false", "--ignore-not-found"]]
                        .concat(),
                )?;
                // Gone already when nothing held it.
                let free =
                    ["patch", "memoriarelease", name, "--type=merge", "-p", "{\"metadata\":{\"finalizers\":null}}"];
                let _ = self.run(&[of.as_slice(), &free].concat());
            }
            self.run(&["delete", "namespace", namespace, "--wait=false"])?;
        }
        for namespace in namespaces {
            self.wait(&format!("the namespace {namespace} to go"), Duration::from_secs(300), || {
                Ok(self.get("default", "namespace", namespace)?.is_none().then_some(()))
            })?;
        }
        Ok(())
    }
}
