//! How the cluster is: which processes run, which nodes are ready, which volumes are free.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::layout::Layout;
use super::process::{self, Processes};
use super::{cgroup, command, control_plane, dns, network, node, registry, storage};

/// The processes of the host that a cluster consists of, besides one per node.
pub const HOST_PROCESSES: &[&str] = &[
    network::FABRIC,
    control_plane::ETCD,
    control_plane::API_SERVER,
    control_plane::CONTROLLER_MANAGER,
    control_plane::SCHEDULER,
    registry::SERVER,
    dns::COREDNS,
];

/// What is wrong. Empty when the cluster is up.
pub fn problems(layout: &Layout) -> Vec<String> {
    let processes = Processes::of(layout);
    let nodes = layout.nodes.iter().map(|n| n.name);
    let names = HOST_PROCESSES.iter().copied().chain(nodes);
    let mut problems: Vec<_> =
        names.filter(|name| processes.running(name).is_none()).map(|name| format!("{name} does not run")).collect();
    if !problems.is_empty() {
        return problems;
    }
    if !control_plane::api_answers() {
        return vec!["the API server is not ready".into()];
    }
    if !dns::answers(layout) {
        problems.push("the cluster's DNS is not ready".into());
    }
    match ready_nodes() {
        Ok(ready) => {
            let unready = layout.nodes.iter().filter(|node| !ready.get(node.name).copied().unwrap_or(false));
            problems.extend(unready.map(|node| format!("{} is not ready", node.name)));
        }
        Err(error) => problems.push(format!("{error:#}")),
    }
    problems
}

/// Whether anything is left of a cluster: a process, a link or a cgroup.
pub fn anything_left(layout: &Layout) -> bool {
    let processes = Processes::of(layout);
    processes.known().iter().any(|name| processes.running(name).is_some())
        || network::link_exists(layout)
        || layout.nodes.iter().any(|node| cgroup::exists(&layout.cgroup(node)))
}

#[derive(Deserialize)]
struct Nodes {
    items: Vec<NodeObject>,
}

#[derive(Deserialize)]
struct NodeObject {
    metadata: Name,
    status: NodeStatus,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatus {
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

/// The nodes that Kubernetes knows, and whether they are ready.
pub fn ready_nodes() -> Result<BTreeMap<String, bool>> {
    let nodes = command::run(super::kubectl()?.args(["get", "nodes", "--output=json"]))?;
    let nodes: Nodes = serde_json::from_str(&nodes).context("cannot read the list of nodes")?;
    let ready = |node: &NodeObject| node.status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
    Ok(nodes.items.iter().map(|node| (node.metadata.name.clone(), ready(node))).collect())
}

/// Prints it all. Whether the cluster is up.
pub fn show(layout: &Layout) -> bool {
    let processes = Processes::of(layout);
    let shown = |name: &str| match processes.running(name) {
        Some(identity) => println!("  {name:<24} pid {}", identity.pid),
        None => println!("  {name:<24} not running"),
    };
    println!("processes of the host");
    HOST_PROCESSES.iter().for_each(|name| shown(name));
    for each in &layout.nodes {
        println!("{} ({})", each.name, layout.node_address(each));
        let Some(init) = node::init(&processes, each) else {
            println!("  not running");
            continue;
        };
        let mut children: Vec<_> = init.children().into_iter().map(|pid| (process::name(pid), pid)).collect();
        children.retain(|(name, _)| !name.starts_with("containerd-shim"));
        children.sort();
        for (name, pid) in children {
            println!("  {name:<24} pid {pid}");
        }
    }
    let problems = problems(layout);
    if let Ok(volumes) = storage::summary() {
        let counts: Vec<_> = volumes.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
        println!("volumes: {}", counts.join(", "));
    }
    if problems.is_empty() {
        println!("up; kubeconfig {}, audit log {}", layout.kubeconfig().display(), layout.audit_log().display());
    } else {
        println!("not up: {}", problems.join("; "));
    }
    problems.is_empty()
}
