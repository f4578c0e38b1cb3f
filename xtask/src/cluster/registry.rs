//! The image registry on the host's end of the cluster's network, and pushes to it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::command;
use super::layout::{Layout, PAUSE_IMAGE, REGISTRY};
use super::process::Processes;
use crate::images::layer::Entry;
use crate::images::oci;

/// The process that serves it.
pub const SERVER: &str = "registry";

pub fn start(layout: &Layout, processes: &Processes) -> Result<()> {
    let file = layout.state.join("registry.json");
    fs::write(&file, serde_json::to_string_pretty(&config(layout))?)?;
    let program = command::find("docker-registry").context("docker-registry is not installed")?;
    processes.start(SERVER, &program, &["serve".into(), file.to_string_lossy().into_owned()])?;
    Ok(())
}

fn config(layout: &Layout) -> serde_json::Value {
    json!({
        "version": 0.1,
        "log": {"accesslog": {"disabled": true}, "level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": layout.state.join("registry")},
            "delete": {"enabled": true},
        },
        "http": {
            "addr": format!("{}:{}", layout.host_address(), layout.ports.registry),
            "tls": {"certificate": layout.pki_file("registry.crt"), "key": layout.pki_file("registry.key")},
        },
    })
}

/// Whether it takes connections.
pub fn answers(layout: &Layout) -> bool {
    let address = SocketAddr::from((layout.host_address(), layout.ports.registry));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// Pushes the image that every pod needs first.
pub fn push_pause(layout: &Layout, bin: &Path) -> Result<()> {
    let pause = Entry::File { path: "pause".into(), source: bin.join("pause"), mode: 0o755 };
    let images = oci::Layout::open(layout.state.join("pause-image"))?;
    oci::from_files(&images, PAUSE_IMAGE, &[pause], |image| image.set("Entrypoint", json!(["/pause"])))?;
    push(layout, &images.source(PAUSE_IMAGE), PAUSE_IMAGE)
}

/// Copies an image into the registry. `source` is what skopeo takes (`oci:<dir>:<ref>`, `oci-archive:<file>`);
/// `name_tag` is the name without the registry (`memoria/server:1.0.0`).
pub fn push(layout: &Layout, source: &str, name_tag: &str) -> Result<()> {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-cert-dir"]).arg(ca_dir(layout));
    skopeo.args([source, &format!("docker://{}/{name_tag}", layout.host_address())]);
    without_proxies(&mut skopeo);
    command::run(&mut skopeo).with_context(|| format!("cannot push {REGISTRY}/{name_tag}"))?;
    Ok(())
}

/// The digest that the registry has under this name, or nothing when it does not have it.
/// With curl, because skopeo takes ten times as long to start and there are dozens of images to ask for.
pub fn digest(layout: &Layout, name_tag: &str) -> Result<Option<String>> {
    let (name, tag) = name_tag.rsplit_once(':').with_context(|| format!("{name_tag:?} has no tag"))?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10", "--noproxy", "*", "--head", "--output", "/dev/null"]);
    curl.args(["--header", "Accept: application/vnd.oci.image.manifest.v1+json", "--cacert"]);
    curl.arg(ca_dir(layout).join("ca.crt")).args(["--write-out", "%{http_code} %header{docker-content-digest}"]);
    curl.arg(format!("https://{}:{}/v2/{name}/manifests/{tag}", layout.host_address(), layout.ports.registry));
    let answer = command::run(&mut curl).with_context(|| format!("cannot ask for {REGISTRY}/{name_tag}"))?;
    match answer.trim().split_once(' ').unwrap_or((answer.trim(), "")) {
        ("200", digest) if digest.starts_with("sha256:") => Ok(Some(digest.to_owned())),
        ("404", _) => Ok(None),
        _ => bail!("the registry answered {answer:?} when asked for {REGISTRY}/{name_tag}"),
    }
}

/// The registry is on this machine, whatever the environment says about reaching others.
fn without_proxies(command: &mut Command) {
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(proxy);
    }
}

/// A directory with nothing but the authority's certificate, the way skopeo wants it.
pub fn ca_dir(layout: &Layout) -> PathBuf {
    layout.pki_file("registry-ca")
}
