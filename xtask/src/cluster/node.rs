//! A node seen from the host: started as a process tree in namespaces of its own, plugged in, killed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::layout::{Layout, Node};
use super::process::{Identity, Processes};
use super::{cgroup, command, network, node_config, packages, storage};

/// Mount points that a node covers with directories of its own. The host may not have them.
pub const COVERED: &[(&str, &str)] =
    &[("/var/log", "log"), ("/var/lib/cni", "cni-state"), ("/var/lib/kubelet", "kubelet")];
/// Which of those were made for us, so that `down` takes them away again.
const MADE_DIRS: &str = "made-dirs.json";

/// Starts the node's first process in new namespaces and gives it its network. Returns before the node is ready.
pub fn start(layout: &Layout, processes: &Processes, node: &Node, bin: &Path) -> Result<()> {
    prepare(layout, node)?;
    let mut args: Vec<String> = [
        "--net",
        "--mount",
        "--propagation",
        "slave",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--uts",
        "--ipc",
    ]
    .map(String::from)
    .into();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let this = std::env::current_exe().context("cannot find this program's own file")?;
    args.extend([text(&this), "cluster".into(), "node-init".into(), "--state".into(), text(&layout.state)]);
    args.extend(["--bin".into(), text(bin), node.name.to_owned()]);
    let (holder, mut go) = processes.start_waiting(node.name, Path::new("unshare"), &args)?;
    let init = processes.wait_for(node.name, "the node's first process", Duration::from_secs(10), || {
        holder.children().first().map_or(Ok(None), |&pid| Identity::of(pid))
    })?;
    network::attach(layout, processes, node, &init).with_context(|| format!("cannot plug in {}", node.name))?;
    go.write_all(b"go\n").with_context(|| format!("{} ended early{}", node.name, processes.last_words(node.name)))
}

fn prepare(layout: &Layout, node: &Node) -> Result<()> {
    let dir = layout.node_dir(node);
    let file = layout.state.join(MADE_DIRS);
    let mut made = made_dirs(layout);
    for (covered, own) in COVERED {
        fs::create_dir_all(dir.join(own))?;
        if !Path::new(covered).exists() {
            fs::create_dir_all(covered)?;
            made.push((*covered).to_owned());
            fs::write(&file, serde_json::to_vec(&made)?)?;
        }
    }
    storage::create_directories(layout, node)?;
    node_config::write(layout, node, packages::cni_dir()?)?;
    cgroup::create(&layout.cgroup(node))
}

fn made_dirs(layout: &Layout) -> Vec<String> {
    let content = fs::read(layout.state.join(MADE_DIRS)).unwrap_or_default();
    serde_json::from_slice(&content).unwrap_or_default()
}

/// The node's first process, as the host numbers it.
pub fn init(processes: &Processes, node: &Node) -> Option<Identity> {
    let holder = processes.running(node.name)?;
    Identity::of(*holder.children().first()?).ok()?
}

/// Like a power cut: ends every process of the node at once, and with the last one its namespaces, links and mounts.
pub fn kill(layout: &Layout, processes: &Processes, node: &Node) -> Result<()> {
    let init = init(processes, node);
    if let Some(init) = &init {
        init.signal(Signal::KILL)?;
    }
    processes.stop(&[node.name], Signal::KILL)?;
    if let Some(init) = init {
        let what = format!("the end of {}", node.name);
        command::wait_for(&what, Duration::from_secs(10), || Ok((!init.is_running()).then_some(())))?;
    }
    cgroup::remove(&layout.cgroup(node))
}

/// After the last node: takes away the mount points that were made for them, when nothing has come to lie there since.
pub fn remove_made_dirs(layout: &Layout) {
    for dir in made_dirs(layout) {
        let _ = fs::remove_dir(dir);
    }
    let _ = fs::remove_file(layout.state.join(MADE_DIRS));
}

/// The node of this name.
pub fn find<'a>(layout: &'a Layout, name: &str) -> Result<&'a Node> {
    let Some(node) = layout.nodes.iter().find(|n| n.name == name) else {
        let names: Vec<_> = layout.nodes.iter().map(|n| n.name).collect();
        bail!("there is no node {name:?}; there are {}", names.join(" and "));
    };
    Ok(node)
}
