//! Bringing the whole cluster up and down.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::Deserialize;

use super::layout::Layout;
use super::process::Processes;
use super::{binary, cgroup, command, control_plane, dns, network, node, packages, pki, registry, status, storage};

/// Keeps two commands from working on the cluster at once.
const LOCK: &str = "cluster";

/// Starts the cluster unless it is up. One that is only partly up is stopped, keeping its data, and started again.
pub fn up(layout: &Layout) -> Result<()> {
    let _lock = binary::lock(LOCK)?;
    if layout.kubeconfig().exists() && status::problems(layout).is_empty() {
        println!("the cluster is up already");
        return recycle_volumes(layout);
    }
    packages::ensure()?;
    let bin = binary::ensure()?;
    if status::anything_left(layout) {
        println!("the cluster is only partly up: {}; stopping what is left", status::problems(layout).join("; "));
        stop(layout)?;
    }
    let begin = Instant::now();
    start(layout, &bin, begin)
        .context("the cluster did not come up. Its logs are kept; `cargo xtask cluster up` starts over")?;
    println!(
        "  {:>4.1} s  the cluster is up; `eval \"$(cargo xtask cluster env)\"` sets KUBECONFIG and PATH",
        begin.elapsed().as_secs_f32()
    );
    Ok(())
}

fn start(layout: &Layout, bin: &Path, begin: Instant) -> Result<()> {
    let done = |what: &str| println!("  {:>4.1} s  {what}", begin.elapsed().as_secs_f32());
    let processes = Processes::of(layout);
    fs::create_dir_all(layout.logs())?;
    remember_programs(layout, bin)?;
    pki::ensure(layout)?;
    network::start(layout, &processes).context("cannot make the cluster's network")?;
    control_plane::start_api(layout, &processes, bin)?;
    registry::start(layout, &processes)?;
    registry::wait(layout, &processes)?;
    registry::push_pause(layout, bin)?;
    done("network, registry and etcd");
    control_plane::wait_for_api(&processes)?;
    done("API server");
    let before = lease_renewals()?;
    control_plane::start_controllers(layout, &processes, bin)?;
    for each in &layout.nodes {
        node::start(layout, &processes, each, bin)?;
    }
    super::apply([dns::objects(layout), storage::objects(layout)].concat())?;
    dns::start(layout, &processes, bin)?;
    done("controllers, nodes and DNS started");
    for each in &layout.nodes {
        processes.wait_for(each.name, &format!("{} to be ready", each.name), Duration::from_secs(90), || {
            // What a kept cluster remembers of its nodes is from before: only a new sign of life counts.
            let renewed = lease_renewals()?.get(each.name).is_some_and(|now| before.get(each.name) != Some(now));
            let ready = renewed && status::ready_nodes()?.get(each.name).copied().unwrap_or(false);
            Ok(ready.then_some(()))
        })?;
    }
    done("nodes ready");
    processes.wait_for(dns::COREDNS, "the cluster's DNS", Duration::from_secs(30), || {
        Ok(dns::answers(layout).then_some(()))
    })?;
    processes.wait_for(
        control_plane::CONTROLLER_MANAGER,
        "the default service account",
        Duration::from_secs(30),
        || {
            let found =
                command::run(super::kubectl()?.args(["get", "serviceaccount", "default", "--namespace=default"]));
            Ok(found.ok().map(drop))
        },
    )?;
    recycle_volumes(layout)
}

/// `<state>/bin` leads to the programs that this cluster was started with.
fn remember_programs(layout: &Layout, bin: &Path) -> Result<()> {
    let link = layout.programs();
    let _ = fs::remove_file(&link);
    symlink(bin, &link).with_context(|| format!("cannot make the link {}", link.display()))
}

pub fn recycle(layout: &Layout) -> Result<()> {
    let _lock = binary::lock(LOCK)?;
    recycle_volumes(layout)
}

fn recycle_volumes(layout: &Layout) -> Result<()> {
    let count = storage::recycle(layout)?;
    if count > 0 {
        println!("recycled {count} released volumes");
    }
    Ok(())
}

/// Stops everything; with `purge`, also forgets all data.
pub fn down(layout: &Layout, purge: bool) -> Result<()> {
    let _lock = binary::lock(LOCK)?;
    let begin = Instant::now();
    if status::anything_left(layout) {
        if !rustix::process::geteuid().is_root() {
            bail!("stopping the cluster needs root, as starting it did");
        }
        stop(layout)?;
        println!("the cluster is down ({:.1} s)", begin.elapsed().as_secs_f32());
    } else {
        println!("the cluster is down already");
    }
    if purge {
        match fs::remove_dir_all(&layout.state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", layout.state.display()));
            }
            _ => println!("removed {}", layout.state.display()),
        }
    }
    Ok(())
}

fn stop(layout: &Layout) -> Result<()> {
    let processes = Processes::of(layout);
    for each in &layout.nodes {
        node::kill(layout, &processes, each).with_context(|| format!("cannot stop {}", each.name))?;
    }
    control_plane::stop(&processes)?;
    processes.stop(&[dns::COREDNS, registry::SERVER], Signal::TERM)?;
    processes.stop(&[network::FABRIC], Signal::KILL)?;
    network::stop(layout)?;
    node::remove_made_dirs(layout);
    let left: Vec<_> = layout.nodes.iter().map(|n| layout.cgroup(n)).filter(|name| cgroup::exists(name)).collect();
    if !left.is_empty() || network::link_exists(layout) {
        bail!("something is left: cgroups {left:?}, link {}: {}", layout.host_link(), network::link_exists(layout));
    }
    Ok(())
}

/// Kills a node as a power cut would; Kubernetes notices after some eight seconds.
pub fn kill_node(layout: &Layout, name: &str) -> Result<()> {
    let _lock = binary::lock(LOCK)?;
    node::kill(layout, &Processes::of(layout), node::find(layout, name)?)
}

/// Starts a killed node again, with what it had on its disk.
pub fn start_node(layout: &Layout, name: &str) -> Result<()> {
    let _lock = binary::lock(LOCK)?;
    let (processes, each) = (Processes::of(layout), node::find(layout, name)?);
    if processes.running(name).is_some() {
        println!("{name} runs already");
        return Ok(());
    }
    let before = lease_renewals()?;
    node::start(layout, &processes, each, &fs::canonicalize(layout.programs())?)?;
    processes.wait_for(name, &format!("{name} to be ready"), Duration::from_secs(60), || {
        let renewed = lease_renewals()?.get(name).is_some_and(|now| before.get(name) != Some(now));
        Ok((renewed && status::ready_nodes()?.get(name).copied().unwrap_or(false)).then_some(()))
    })
}

#[derive(Deserialize)]
struct Leases {
    items: Vec<Lease>,
}

#[derive(Deserialize)]
struct Lease {
    metadata: LeaseName,
    spec: LeaseSpec,
}

#[derive(Deserialize)]
struct LeaseName {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct LeaseSpec {
    renew_time: String,
}

/// When each node's kubelet last said that it lives.
fn lease_renewals() -> Result<BTreeMap<String, String>> {
    let leases =
        command::run(super::kubectl()?.args(["get", "leases", "--namespace=kube-node-lease", "--output=json"]))?;
    let leases: Leases = serde_json::from_str(&leases).context("cannot read the nodes' leases")?;
    Ok(leases.items.into_iter().map(|lease| (lease.metadata.name, lease.spec.renew_time)).collect())
}
