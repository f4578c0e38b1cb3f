//! Installs the operator the way a user does: by its Helm chart, with images pinned by digest.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::{REGISTRY, command};
use crate::images::{self, OPERATOR, TOOLS};
use crate::kube::Kube;
use crate::place;

/// Its namespace, and the name of its Helm release, Deployment and ServiceAccount.
pub const NAME: &str = "memoria-operator";
const READY: Duration = Duration::from_secs(180);

/// Installs or upgrades it, with these values of the chart beside the images, and waits until it is ready.
/// `digests` maps images to digests, as [`images::ensure_available`] returns them.
pub fn install(kube: &Kube, digests: &BTreeMap<String, String>, values: &[&str]) -> Result<()> {
    let chart = place::root()?.join("charts/memoria-operator");
    let mut helm = kube.target.helm()?;
    helm.args(["upgrade", "--install", NAME]).arg(&chart);
    // Definitions stay when a chart is uninstalled, and may be from before, by whatever means.
    helm.args([
        "--namespace",
        NAME,
        "--create-namespace",
        "--take-ownership",
        "--force-conflicts",
        "--wait",
        "--timeout=3m",
    ]);
    for value in image_values(digests)?.iter().map(String::as_str).chain(values.iter().copied()) {
        helm.arg("--set-string").arg(value);
    }
    command::run(&mut helm).context("the chart could not be installed")?;
    kube.rolled_out(NAME, &format!("deployment/{NAME}"), READY)
}

/// The chart's values that pin our images.
fn image_values(digests: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let digest = |name: &str| digests.get(name).with_context(|| format!("there is no image {name}"));
    let version = images::version();
    let mut values = vec![
        format!("image.repository={REGISTRY}/{OPERATOR}"),
        format!("image.digest={}", digest(&format!("{OPERATOR}:{version}"))?),
    ];
    let tools = digests.keys().filter_map(|name| name.strip_prefix(&format!("{TOOLS}:{version}-pg")));
    for major in tools {
        let digest = digest(&format!("{TOOLS}:{version}-pg{major}"))?;
        values.push(format!("toolImages.{major}={REGISTRY}/{TOOLS}@{digest}"));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_pinned_by_digest() {
        let version = images::version();
        let names = [format!("{OPERATOR}:{version}"), format!("{TOOLS}:{version}-pg15"), "postgres:15".to_owned()];
        let digests = names.into_iter().map(|name| (name, "sha256:1".to_owned())).collect();
        assert_eq!(
            image_values(&digests).unwrap(),
            [
                "image.repository=registry.arca.run/memoria-operator/operator",
                "image.digest=sha256:1",
                "toolImages.15=registry.arca.run/memoria-operator/tools@sha256:1"
            ]
        );
    }
}
