//! A client of the server that asks every 100 ms, in a pod of its own: `poller.py` has the rule for downtime.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::json;

use crate::kube::Kube;
use crate::memoria::VERSION;

const POD: &str = "bench-client";
const PROGRAM: &str = include_str!("poller.py");
/// How long it may take until the first poll succeeds.
const STARTED: Duration = Duration::from_secs(120);
/// Twice the time between two of its lines, so that the last one is of after the end.
const LAST_LINE: Duration = Duration::from_secs(2);

/// What the client tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    pub polls: u64,
    pub failed: u64,
    pub down_seconds: f64,
    pub up: bool,
}

/// Starts it. Its first poll has succeeded when this returns.
pub fn start(kube: &Kube, namespace: &str) -> Result<()> {
    let restricted =
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD},
        "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "client",
                "image": format!("registry.arca.run/memoria/server:{VERSION}"),
                "command": ["python", "-SEc", PROGRAM],
                "env": [{"name": "MEMORIA_API_KEY", "valueFrom": {"secretKeyRef": {"name": "memoria-api", "key": "key"}}}],
                "securityContext": restricted,
            }],
        },
    });
    kube.apply(namespace, &pod.to_string())?;
    kube.wait("the client's first answer", STARTED, || {
        let phase = kube.get(namespace, "pod", POD)?.map(|pod| pod["status"]["phase"].clone()).unwrap_or_default();
        match phase.as_str() {
            Some("Failed" | "Succeeded") => bail!("the client has ended: kubectl -n {namespace} logs {POD}"),
            Some("Running") => match told(kube, namespace)? {
                Some(told) if told.failed > 0 => bail!("the server does not answer before the upgrade: {told:?}"),
                told => Ok(told.map(drop)),
            },
            _ => Ok(None),
        }
    })
}

/// What it has seen until now. The server must answer again.
pub fn finish(kube: &Kube, namespace: &str) -> Result<Told> {
    sleep(LAST_LINE);
    let told = told(kube, namespace)?.context("the client told nothing")?;
    if !told.up {
        bail!("the server does not answer after the upgrade: {told:?}");
    }
    Ok(told)
}

fn told(kube: &Kube, namespace: &str) -> Result<Option<Told>> {
    let printed = kube.run(&["--namespace", namespace, "logs", POD, "--tail=1"])?;
    match printed.trim() {
        "" => Ok(None),
        line => serde_json::from_str(line).with_context(|| format!("the client said {line:?}")).map(Some),
    }
}
