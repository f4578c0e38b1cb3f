//! KEDA's own operator, beside the test and for its namespace alone: the same program as in a cluster's pod.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context, Result};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::{Outcome, environment, site::Site};

pub struct Keda {
    process: Child,
    directory: PathBuf,
}

impl Keda {
    /// Installs its kinds, which stay, and starts it.
    pub async fn start(site: &Site) -> Result<Self> {
        let keda = environment::keda()?;
        let crds = keda.join("crds");
        // What it serves to a metrics API server is asked for by nobody here; but it wants a certificate for it.
        let directory = std::env::temp_dir().join(format!("{}-keda-{}", site.namespace, std::process::id()));
        fs::create_dir_all(&directory)?;
        let pki = environment::cluster_state()?.join("pki");
        for (from, to) in [("ca.crt", "ca.crt"), ("admin.crt", "tls.crt"), ("admin.key", "tls.key")] {
            fs::copy(pki.join(from), directory.join(to)).with_context(|| format!("cannot copy {from}"))?;
        }
        let crds = crds.to_str().context("a path of UTF-8")?;
        environment::kubectl(&["apply", "--server-side", "--force-conflicts", "-f", crds]).await?;
        environment::kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", crds]).await?;
        let log = File::create(directory.join("log"))?;
        let process = Command::new(keda.join("keda-operator"))
            .args(["--metrics-bind-address=0", "--health-probe-bind-address=0"])
            .args(["--metrics-service-bind-address=127.0.0.1:0", "--enable-prometheus-metrics=false"])
            .arg(format!("--cert-dir={}", directory.display()))
            .env("WATCH_NAMESPACE", &site.namespace)
            .env("POD_NAMESPACE", &site.namespace)
            .env("KEDA_CLUSTER_OBJECT_NAMESPACE", &site.namespace)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start KEDA's operator")?;
        Ok(Self { process, directory })
    }

    /// Ends it, and takes away what would keep the namespace from going without it.
    pub async fn stop(mut self, site: &Site, scaled_object: &str) -> Outcome {
        self.process.kill().await.context("cannot end KEDA's operator")?;
        let api = scaled_objects(site);
        let unheld = json!({"metadata": {"finalizers": null}});
        api.patch(scaled_object, &PatchParams::default(), &Patch::Merge(unheld)).await?;
        api.delete(scaled_object, &DeleteParams::default()).await?;
        fs::remove_dir_all(&self.directory).context("cannot remove KEDA's files")
    }

    /// The last lines of its log.
    pub fn said(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_else(|error| error.to_string());
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

pub fn scaled_objects(site: &Site) -> Api<DynamicObject> {
    let kind = ApiResource {
        group: "keda.sh".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "keda.sh/v1alpha1".to_owned(),
        kind: "ScaledObject".to_owned(),
        plural: "scaledobjects".to_owned(),
    };
    Api::namespaced_with(site.client.clone(), &site.namespace, &kind)
}
