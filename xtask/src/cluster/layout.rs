//! What a test cluster is made of: its name, addresses, nodes and directories. Everything else takes these from here,
//! so that another cluster beside this one needs another [`Layout`] and nothing else.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;

use crate::place;

/// The registry's name, on the nodes and in pods. It answers on port 443, so image names need no port.
pub const REGISTRY: &str = "registry.arca.run";
/// The image that holds a pod's namespaces, below [`REGISTRY`].
pub const PAUSE_IMAGE: &str = "pause:1";

/// One test cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Prefix of the host's network link and of the nodes' cgroups.
    pub name: &'static str,
    /// All of its data.
    pub state: PathBuf,
    /// First two octets of the three ranges: machines (`.0.0/24` of it), pods and Services (`/16` each).
    pub lan: [u8; 2],
    pub pods: [u8; 2],
    pub services: [u8; 2],
    pub nodes: Vec<Node>,
    pub ports: Ports,
}

/// A node, which is a process tree in namespaces of its own.
#[derive(Debug, Clone)]
pub struct Node {
    pub name: &'static str,
    /// From 1; gives the node its address and its range of pod addresses.
    pub number: u8,
}

/// Ports of the control plane. The ones of the API server, DNS and registry are on the host's address in the cluster's
/// network, the others on loopback, where they must not meet another cluster's.
#[derive(Debug, Clone)]
pub struct Ports {
    pub api_server: u16,
    pub etcd_client: u16,
    pub etcd_peer: u16,
    pub controller_manager: u16,
    pub scheduler: u16,
    pub dns_ready: u16,
    pub registry: u16,
}

impl Layout {
    /// The one cluster that the demo and the tests use.
    pub fn local() -> Result<Self> {
        Ok(Self {
            name: "memoria",
            state: place::cache()?.join("cluster/state"),
            lan: [10, 210],
            pods: [10, 211],
            services: [10, 212],
            nodes: vec![Node { name: "node-a", number: 1 }, Node { name: "node-b", number: 2 }],
            ports: Ports {
                api_server: 7443,
                etcd_client: 3379,
                etcd_peer: 3380,
                controller_manager: 7257,
                scheduler: 7259,
                dns_ready: 8181,
                registry: 443,
            },
        })
    }

    /// The host's end of the cluster's network: API server, DNS and registry.
    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.lan[0], self.lan[1], 0, 1)
    }

    pub fn node_address(&self, node: &Node) -> Ipv4Addr {
        Ipv4Addr::new(self.lan[0], self.lan[1], 0, 10 + node.number)
    }

    pub fn lan_range(&self) -> String {
        format!("{}.{}.0.0/24", self.lan[0], self.lan[1])
    }

    pub fn pod_range(&self) -> String {
        format!("{}.{}.0.0/16", self.pods[0], self.pods[1])
    }

    pub fn node_pod_range(&self, node: &Node) -> String {
        format!("{}.{}.{}.0/24", self.pods[0], self.pods[1], node.number)
    }

    pub fn service_range(&self) -> String {
        format!("{}.{}.0.0/16", self.services[0], self.services[1])
    }

    /// The Service `kubernetes`, always the first address of the range.
    pub fn api_service(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.services[0], self.services[1], 0, 1)
    }

    pub fn dns_service(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.services[0], self.services[1], 0, 10)
    }

    pub fn api_url(&self) -> String {
        format!("https://{}:{}", self.host_address(), self.ports.api_server)
    }

    pub fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.etcd_client)
    }

    /// The host's network link; the kernel allows 15 characters.
    pub fn host_link(&self) -> String {
        format!("{}-host", self.name)
    }

    /// A node's cgroup, below every controller's root.
    pub fn cgroup(&self, node: &Node) -> String {
        format!("{}-{}", self.name, node.name)
    }

    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    pub fn pki_file(&self, name: &str) -> PathBuf {
        self.pki().join(name)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.pki_file("admin.kubeconfig")
    }

    pub fn node_dir(&self, node: &Node) -> PathBuf {
        self.state.join("nodes").join(node.name)
    }

    /// A link to the programs that the cluster was started with.
    pub fn programs(&self) -> PathBuf {
        self.state.join("bin")
    }

    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub fn audit_log(&self) -> PathBuf {
        self.state.join("audit.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_addresses_and_pod_ranges_of_their_own() {
        let layout = Layout::local().unwrap();
        let of = |n: usize| {
            let node = &layout.nodes[n];
            (layout.node_address(node).to_string(), layout.node_pod_range(node), layout.cgroup(node))
        };
        assert_eq!(of(0), ("10.210.0.11".into(), "10.211.1.0/24".into(), "memoria-node-a".into()));
        assert_eq!(of(1), ("10.210.0.12".into(), "10.211.2.0/24".into(), "memoria-node-b".into()));
    }

    #[test]
    fn the_host_link_has_a_name_that_the_kernel_accepts() {
        assert!(Layout::local().unwrap().host_link().len() <= 15);
    }
}
