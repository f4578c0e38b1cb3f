//! Bringing the whole cluster up and down.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;

use super::layout::Layout;
use super::process::Processes;
use super::{
    binary, cgroup, command, control_plane, dns, lock, network, node, packages, pki, registry, status, storage,
};

/// Keeps two commands from working on the cluster at once.
const LOCK: &str = "cluster";

/// Starts the cluster unless it is up. What is missing of a cluster that is partly up is started; if that does not
/// help, everything is stopped, keeping its data, and started again.
pub fn up(layout: &Layout) -> Result<()> {
    let _lock = lock::take(LOCK)?;
    if layout.programs().exists() && status::problems(layout).is_empty() {
        println!("the cluster is up already");
        return recycle_volumes(layout);
    }
    packages::ensure()?;
    refuse_foreign(layout)?;
    let bin = binary::ensure()?;
    if status::anything_left(layout) {
        println!("the cluster is only partly up: {}", status::problems(layout).join("; "));
        match repair(layout) {
            Ok(()) => {
                println!("repaired");
                return recycle_volumes(layout);
            }
            Err(error) => println!("{error:#}; starting over"),
        }
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

/// Starts what does not run, with the programs that the rest was started with, and waits for everything to be ready.
fn repair(layout: &Layout) -> Result<()> {
    let processes = Processes::of(layout);
    if processes.running(network::FABRIC).is_none() || !network::link_exists(layout) {
        bail!("its network is gone");
    }
    let nodes = layout.nodes.iter().map(|node| node.name);
    for name in status::HOST_PROCESSES.iter().copied().chain(nodes) {
        if processes.running(name).is_none() {
            start_one(layout, name)?;
        }
        if name == control_plane::API_SERVER {
            control_plane::wait_for_api(&processes)?;
        }
    }
    // The start that left it so may not have come this far.
    registry::push_pause(layout, &layout.programs())?;
    super::apply(objects(layout))?;
    command::wait_for("the cluster to be ready", Duration::from_secs(60), || {
        Ok(status::problems(layout).is_empty().then_some(()))
    })
}

/// Starts a process of the host, or a node, that is not running.
fn start_one(layout: &Layout, name: &str) -> Result<()> {
    let processes = Processes::of(layout);
    let bin = fs::canonicalize(layout.programs()).context("the programs of this cluster are gone")?;
    match name {
        network::FABRIC => bail!("without its network the cluster has to start over: `cargo xtask cluster up`"),
        registry::SERVER => registry::start(layout, &processes),
        dns::COREDNS => dns::start(layout, &processes, &bin),
        name if status::HOST_PROCESSES.contains(&name) => control_plane::start(layout, &processes, &bin, name),
        name => {
            let each = node::find(layout, name)?;
            // It may have ended by itself and left its cgroups.
            node::kill(layout, &processes, each)?;
            node::start(layout, &processes, each, &bin)
        }
    }
}

fn start(layout: &Layout, bin: &Path, begin: Instant) -> Result<()> {
    let done = |what: &str| println!("  {:>4.1} s  {what}", begin.elapsed().as_secs_f32());
    let processes = Processes::of(layout);
    fs::create_dir_all(layout.logs())?;
    remember_programs(layout, bin)?;
    pki::ensure(layout)?;
    network::start(layout, &processes).context("cannot make the cluster's network")?;
    // The API server waits for etcd.
    for name in [control_plane::ETCD, control_plane::API_SERVER] {
        control_plane::start(layout, &processes, bin, name)?;
    }
    registry::start(layout, &processes)?;
    processes.wait_for(registry::SERVER, "the registry", Duration::from_secs(20), || {
        Ok(registry::answers(layout).then_some(()))
    })?;
    registry::push_pause(layout, bin)?;
    done("network, registry and etcd");
    control_plane::wait_for_api(&processes)?;
    done("API server");
    let before = lease_renewals()?;
    for name in [control_plane::CONTROLLER_MANAGER, control_plane::SCHEDULER] {
        control_plane::start(layout, &processes, bin, name)?;
    }
    for each in &layout.nodes {
        node::start(layout, &processes, each, bin)?;
    }
    super::apply(objects(layout))?;
    dns::start(layout, &processes, bin)?;
    done("controllers, nodes and DNS started");
    for each in &layout.nodes {
        processes.wait_for(each.name, &format!("{} to be ready", each.name), Duration::from_secs(90), || {
            Ok(has_returned(each.name, &before)?.then_some(()))
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

/// The host's link lives as long as the fabric. A link without our fabric is another cluster's, whose processes only the
/// directory that it was started from knows.
fn refuse_foreign(layout: &Layout) -> Result<()> {
    let known = || Processes::of(layout).running(network::FABRIC).is_some();
    let clear = || Ok((known() || !network::link_exists(layout)).then_some(()));
    // A fabric that has just died takes the link with it in a moment.
    command::wait_for("the link to go", Duration::from_secs(3), clear).with_context(|| {
        format!(
            "the link {} belongs to a cluster that was started with another cache directory (XDG_CACHE_HOME, HOME) than {}: \
             run `cargo xtask cluster down` with that setting first",
            layout.host_link(),
            layout.state.display()
        )
    })
}

/// What every cluster holds from the beginning.
fn objects(layout: &Layout) -> Vec<Value> {
    [dns::objects(layout), storage::objects(layout)].concat()
}

/// `<state>/bin` leads to the programs that this cluster was started with.
fn remember_programs(layout: &Layout, bin: &Path) -> Result<()> {
    let link = layout.programs();
    let _ = fs::remove_file(&link);
    symlink(bin, &link).with_context(|| format!("cannot make the link {}", link.display()))
}

pub fn recycle(layout: &Layout) -> Result<()> {
    let _lock = lock::take(LOCK)?;
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
    let _lock = lock::take(LOCK)?;
    let begin = Instant::now();
    if status::anything_left(layout) {
        if !rustix::process::geteuid().is_root() {
            bail!("stopping the cluster needs root, as starting it did");
        }
        refuse_foreign(layout)?;
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

/// Kills a process of the host, or a node the way a power cut would: Kubernetes notices that after some eight seconds.
pub fn kill(layout: &Layout, name: &str) -> Result<()> {
    let _lock = lock::take(LOCK)?;
    let processes = Processes::of(layout);
    if status::HOST_PROCESSES.contains(&name) {
        return processes.stop(&[name], Signal::KILL);
    }
    node::kill(layout, &processes, node::find(layout, name)?)
}

/// Starts what was killed, with what it had on its disk, and waits until it works.
pub fn start_again(layout: &Layout, name: &str) -> Result<()> {
    let _lock = lock::take(LOCK)?;
    let processes = Processes::of(layout);
    if processes.running(name).is_some() {
        println!("{name} runs already");
        return Ok(());
    }
    // Without an API server there are no leases to compare with, and no node to wait for.
    let before = lease_renewals().unwrap_or_default();
    start_one(layout, name)?;
    processes.wait_for(name, &format!("{name} to be ready"), Duration::from_secs(60), || {
        let ready = match name {
            control_plane::ETCD | control_plane::CONTROLLER_MANAGER | control_plane::SCHEDULER => true,
            control_plane::API_SERVER => control_plane::api_answers(),
            registry::SERVER => registry::answers(layout),
            dns::COREDNS => dns::answers(layout),
            node => has_returned(node, &before)?,
        };
        Ok(ready.then_some(()))
    })
}

/// Whether the node is ready and has given a sign of life since `before`: what a kept cluster remembers of its nodes
/// is from then.
fn has_returned(node: &str, before: &BTreeMap<String, String>) -> Result<bool> {
    let renewed = lease_renewals()?.get(node).is_some_and(|now| before.get(node) != Some(now));
    Ok(renewed && status::ready_nodes()?.get(node).copied().unwrap_or(false))
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
