//! Names: CoreDNS as a process of the host, so that it survives whatever happens to nodes, and the Service in front.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::layout::{Layout, REGISTRY};
use super::process::Processes;

pub const COREDNS: &str = "coredns";

pub fn start(layout: &Layout, processes: &Processes, bin: &Path) -> Result<()> {
    let file = layout.state.join("Corefile");
    fs::write(&file, corefile(layout))?;
    processes.start(COREDNS, &bin.join(COREDNS), &["-conf".into(), file.to_string_lossy().into_owned()])?;
    Ok(())
}

/// Whether CoreDNS has read the cluster's Services.
pub fn answers(layout: &Layout) -> bool {
    let address = SocketAddr::from((layout.host_address(), layout.ports.dns_ready));
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.0 200"))
}

/// The registry, the cluster, and for everything else "no such name": no query leaves the machine.
fn corefile(layout: &Layout) -> String {
    let host = layout.host_address();
    format!(
        r#".:53 {{
  bind {host}
  errors
  ready {host}:{ready}
  hosts {{
    {host} {REGISTRY}
    fallthrough
  }}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig "{kubeconfig}"
    fallthrough in-addr.arpa
  }}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"#,
        ready = layout.ports.dns_ready,
        kubeconfig = layout.pki_file("coredns.kubeconfig").display(),
    )
}

/// The Service that pods ask, without a selector because its one endpoint is the host, and what CoreDNS may read.
pub fn objects(layout: &Layout) -> Vec<Value> {
    let ports =
        json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]);
    let role = "system:coredns";
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role}],
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": layout.dns_service().to_string(), "ports": ports},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-host",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [layout.host_address().to_string()], "conditions": {"ready": true}}],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_is_answered_last() {
        let corefile = corefile(&Layout::local().unwrap());
        let at = |plugin: &str| corefile.find(plugin).unwrap_or_else(|| panic!("{plugin} is missing"));
        assert!(at("hosts {") < at("kubernetes ") && at("kubernetes ") < at("template "));
    }
}
