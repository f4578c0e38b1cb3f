//! The local two-node Kubernetes that the demo and the tests run on.

#![allow(dead_code, unused_imports, reason = "the images and the demo are about to use all of it")]

mod command;
mod layout;
mod registry;
mod target;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

pub use layout::REGISTRY;
pub use target::Target;

use layout::Layout;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    ensure_up()
}

/// Starts the local cluster when it is not running. Returns when both nodes are ready.
pub fn ensure_up() -> Result<()> {
    bail!("the local cluster cannot be started yet")
}

/// Where the cluster keeps its data.
pub fn state_dir() -> Result<PathBuf> {
    Ok(Layout::local()?.state)
}

/// The administrator's kubeconfig; it exists once the cluster has been up.
pub fn kubeconfig() -> Result<PathBuf> {
    Ok(Layout::local()?.kubeconfig())
}

/// The directory with the built programs (`kubectl`, `helm`, `etcd`, …); builds them when needed.
pub fn bin_dir() -> Result<PathBuf> {
    bail!("the local cluster cannot be built yet")
}

/// Pushes an image to the cluster's registry; see [`registry::push`].
pub fn registry_push(source: &str, name_tag: &str) -> Result<()> {
    registry::push(&Layout::local()?, source, name_tag)
}

/// A `kubectl` with the administrator's kubeconfig.
pub fn kubectl() -> Result<Command> {
    let mut kubectl = Command::new(built_kubectl()?);
    kubectl.env("KUBECONFIG", kubeconfig()?);
    Ok(kubectl)
}

fn built_kubectl() -> Result<PathBuf> {
    Ok(bin_dir()?.join("kubectl"))
}
