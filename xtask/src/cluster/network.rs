//! The cluster's network: a bridge in a namespace of its own, with a cable to the host and one to each node.
//!
//! The host's packet filter and forwarding see none of the traffic between nodes. Nodes have no default route, so
//! nothing that runs in the cluster reaches the outside.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::command::{self, wait_for};
use super::layout::{Layout, Node};
use super::process::{Identity, Processes};

/// The process that keeps the bridge's namespace alive.
pub const FABRIC: &str = "fabric";
const BRIDGE: &str = "br0";
/// A node's end of its cable, inside the node.
const NODE_LINK: &str = "lan";

/// Starts the fabric and plugs the host into it.
pub fn start(layout: &Layout, processes: &Processes) -> Result<()> {
    refuse_foreign(layout)?;
    let args = ["--net", "sleep", "infinity"].map(String::from);
    let fabric = processes.start(FABRIC, Path::new("unshare"), &args)?;
    wait_for_namespace(&fabric)?;
    let inside = Namespace::of(&fabric);
    // The bridge has no address and must not route: it only switches.
    inside.run("sh", &["-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"])?;
    inside.ip("link set lo up")?;
    inside.ip(&format!("link add {BRIDGE} type bridge"))?;
    inside.ip(&format!("link set {BRIDGE} up"))?;
    let (host, link) = (Namespace::HOST, layout.host_link());
    host.ip(&format!("link add {link} type veth peer name host netns {}", fabric.pid))?;
    host.ip(&format!("addr add {}/24 dev {link}", layout.host_address()))?;
    host.ip(&format!("link set {link} up"))?;
    inside.ip(&format!("link set host master {BRIDGE}"))?;
    inside.ip("link set host up")
}

/// Another cluster of the same kind, or a local network that happens to use the range, would answer in our place.
fn refuse_foreign(layout: &Layout) -> Result<()> {
    let prefix = format!("{}.{}.0.", layout.lan[0], layout.lan[1]);
    let addresses = command::run(Command::new("ip").args(["-o", "-4", "addr", "show"]))?;
    if let Some(line) = addresses.lines().find(|line| line.contains(&format!("inet {prefix}"))) {
        bail!(
            "this machine already uses the cluster's addresses ({}): `{}`. Take that link down first, or run against \
             a cluster of yours with --use-current-context",
            layout.lan_range(),
            line.trim()
        );
    }
    Ok(())
}

/// Plugs in a node, whose first process is `node_init`, and routes to its pods and to the other nodes' pods.
pub fn attach(layout: &Layout, processes: &Processes, node: &Node, node_init: &Identity) -> Result<()> {
    let fabric = processes.running(FABRIC).context("the fabric does not run")?;
    wait_for_namespace(node_init)?;
    let (host, switch, inside) = (Namespace::HOST, Namespace::of(&fabric), Namespace::of(node_init));
    let address = layout.node_address(node);
    // Made inside the fabric, so that no name on the host can clash.
    switch.ip(&format!("link add {} type veth peer name {NODE_LINK} netns {}", node.name, node_init.pid))?;
    switch.ip(&format!("link set {} master {BRIDGE}", node.name))?;
    switch.ip(&format!("link set {} up", node.name))?;
    inside.ip(&format!("addr add {address}/24 dev {NODE_LINK}"))?;
    inside.ip(&format!("link set {NODE_LINK} up"))?;
    // kube-proxy rewrites a Service's address only after the kernel has found a route for it. This one leads to an
    // empty bridge: what no rule rewrites ends there and not on the host.
    inside.ip("link add svc type bridge")?;
    inside.ip("link set svc up")?;
    inside.ip(&format!("route add {} dev svc src {address}", layout.service_range()))?;
    for other in layout.nodes.iter().filter(|other| other.number != node.number) {
        inside.ip(&format!("route add {} via {}", layout.node_pod_range(other), layout.node_address(other)))?;
    }
    // The API server calls webhooks by their pod's address.
    host.ip(&format!("route replace {} via {address} dev {}", layout.node_pod_range(node), layout.host_link()))
}

/// Unplugs the host; its routes go with the link.
pub fn stop(layout: &Layout) -> Result<()> {
    if link_exists(layout) {
        Namespace::HOST.ip(&format!("link del {}", layout.host_link()))?;
    }
    Ok(())
}

pub fn link_exists(layout: &Layout) -> bool {
    Path::new("/sys/class/net").join(layout.host_link()).exists()
}

/// `unshare` has made the namespace once the process is no longer in ours.
fn wait_for_namespace(process: &Identity) -> Result<()> {
    let ours = fs::read_link("/proc/self/ns/net")?;
    wait_for("a network namespace", Duration::from_secs(5), || {
        if !process.is_running() {
            bail!("the process that should hold a network namespace has ended");
        }
        Ok(fs::read_link(format!("/proc/{}/ns/net", process.pid)).ok().filter(|theirs| *theirs != ours).map(|_| ()))
    })
}

/// Where a command about the network runs.
struct Namespace(Option<i32>);

impl Namespace {
    const HOST: Self = Self(None);

    fn of(process: &Identity) -> Self {
        Self(Some(process.pid))
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<()> {
        let mut command = match self.0 {
            None => Command::new(program),
            Some(pid) => {
                // Not `ip netns exec`: that hides /sys/fs/cgroup.
                let mut command = Command::new("nsenter");
                command.args(["-t", &pid.to_string(), "-n", program]);
                command
            }
        };
        command::run(command.args(args)).map(drop)
    }

    /// None of the arguments holds a space.
    fn ip(&self, args: &str) -> Result<()> {
        self.run("ip", &args.split_whitespace().collect::<Vec<_>>())
    }
}
