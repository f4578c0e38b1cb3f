//! The files that a node's programs read: kubelet, containerd and the pod network.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::layout::{Layout, Node, PAUSE_IMAGE, REGISTRY};

/// containerd's address inside a node. Each node has a `/run` of its own.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Writes them all below the node's directory.
pub fn write(layout: &Layout, node: &Node, cni_plugins: &Path) -> Result<()> {
    let dir = layout.node_dir(node);
    let hosts = format!("127.0.0.1 localhost {}\n{} {REGISTRY}\n", node.name, layout.host_address());
    for (file, content) in [
        ("hosts", hosts),
        ("resolv.conf", format!("nameserver {}\n", layout.host_address())),
        ("kubelet.json", serde_json::to_string_pretty(&kubelet(layout, node))?),
        ("containerd.toml", containerd(layout, node, cni_plugins)),
        ("cni/10-pods.conflist", serde_json::to_string_pretty(&pod_network(layout, node))?),
        ("certs.d/registry.arca.run/hosts.toml", registry_trust(layout)),
    ] {
        let path = dir.join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn kubelet(layout: &Layout, node: &Node) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", layout.cgroup(node)),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "address": layout.node_address(node).to_string(),
        "authentication": {
            "anonymous": {"enabled": false},
            "x509": {"clientCAFile": layout.pki_file("ca.crt")},
            "webhook": {"enabled": true},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": layout.pki_file(&format!("{}.crt", node.name)),
        "tlsPrivateKeyFile": layout.pki_file(&format!("{}.key", node.name)),
        "clusterDomain": "cluster.local",
        "clusterDNS": [layout.dns_service().to_string()],
        "resolvConf": layout.node_dir(node).join("resolv.conf"),
        // Everything shares the machine's memory and disk; a full disk is the user's to see, not a reason to evict.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        // Death and crashes are noticed in seconds; see the controller manager's grace period.
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 4,
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        "serializeImagePulls": false,
        "registryPullQPS": 0,
    })
}

/// Version 2 is what containerd 1.6 and 1.7 both read.
fn containerd(layout: &Layout, node: &Node, cni_plugins: &Path) -> String {
    let dir = layout.node_dir(node);
    let quoted = |path: &Path| toml_string(&path.to_string_lossy());
    format!(
        r#"version = 2
root = {root}
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  # Without CAP_SYS_RESOURCE nobody may lower a process's OOM score.
  restrict_oom_score_adj = true
  sandbox_image = "{REGISTRY}/{PAUSE_IMAGE}"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {cni_plugins}
    conf_dir = {cni_config}

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {certificates}

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    # The registry has the layers; a second compressed copy per node is only disk.
    discard_unpacked_layers = true

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#,
        root = quoted(&dir.join("containerd")),
        cni_plugins = quoted(cni_plugins),
        cni_config = quoted(&dir.join("cni")),
        certificates = quoted(&dir.join("certs.d")),
    )
}

/// `ptp` rather than `bridge`: a pod reaches a Service that leads back to its own node without br_netfilter.
fn pod_network(layout: &Layout, node: &Node) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": layout.node_pod_range(node)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// containerd 1.6 wants at least one host table, and after a 404 goes on to the server itself, which needs the
/// authority at the top level.
fn registry_trust(layout: &Layout) -> String {
    let url = format!("https://{REGISTRY}");
    let ca = toml_string(&layout.pki_file("ca.crt").to_string_lossy());
    format!(
        "server = \"{url}\"\ncapabilities = [\"pull\", \"resolve\"]\nca = {ca}\n\n\
         [host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = {ca}\n"
    )
}

fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_of_two_nodes_share_neither_cgroup_nor_address() {
        let layout = Layout::local().unwrap();
        let [a, b] = [0, 1].map(|n| kubelet(&layout, &layout.nodes[n]));
        for field in ["cgroupRoot", "address", "tlsCertFile", "resolvConf"] {
            assert_ne!(a[field], b[field], "{field}");
        }
        assert_eq!(a["clusterDNS"], json!(["10.212.0.10"]));
    }

    #[test]
    fn a_quote_in_a_path_does_not_end_the_string() {
        assert_eq!(toml_string(r#"/a "b"\c"#), r#""/a \"b\"\\c""#);
    }

    #[test]
    fn the_registry_is_trusted_before_and_after_a_404() {
        let trust = registry_trust(&Layout::local().unwrap());
        assert_eq!(trust.matches("ca = \"").count(), 2);
        assert!(trust.find("ca = ").unwrap() < trust.find("[host.").unwrap());
    }
}
