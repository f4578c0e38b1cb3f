//! The image registry on the host's end of the cluster's network, and pushes to it.

use std::process::Command;

use anyhow::{Context, Result};

use super::command;
use super::layout::{Layout, REGISTRY};

/// Copies an image into the registry. `source` is what skopeo takes (`oci:<dir>:<ref>`, `oci-archive:<file>`);
/// `name_tag` is the name without the registry (`memoria/server:1.0.0`).
pub fn push(layout: &Layout, source: &str, name_tag: &str) -> Result<()> {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-cert-dir"]).arg(ca_dir(layout));
    skopeo.args([source, &format!("docker://{}/{name_tag}", layout.host_address())]);
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"] {
        skopeo.env_remove(proxy);
    }
    command::run(&mut skopeo).with_context(|| format!("cannot push {REGISTRY}/{name_tag}"))?;
    Ok(())
}

/// A directory with nothing but the authority's certificate, the way skopeo wants it.
pub fn ca_dir(layout: &Layout) -> std::path::PathBuf {
    layout.pki_file("registry-ca")
}
