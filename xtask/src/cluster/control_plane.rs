//! etcd and the Kubernetes control plane, as processes of the host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::Signal;

use super::audit;
use super::command;
use super::layout::Layout;
use super::process::Processes;

pub const ETCD: &str = "etcd";
pub const API_SERVER: &str = "kube-apiserver";
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
pub const SCHEDULER: &str = "kube-scheduler";

/// Starts one of them. All but etcd wait for the ones that they need.
pub fn start(layout: &Layout, processes: &Processes, bin: &Path, name: &str) -> Result<()> {
    let args = match name {
        ETCD => etcd(layout),
        API_SERVER => {
            audit::write_policy(layout)?;
            api_server(layout)
        }
        CONTROLLER_MANAGER => controller_manager(layout),
        SCHEDULER => scheduler(layout),
        other => bail!("the control plane has no {other}"),
    };
    processes.start(name, &bin.join(name), &args)?;
    Ok(())
}

pub fn wait_for_api(processes: &Processes) -> Result<()> {
    processes.wait_for(API_SERVER, "the API server", Duration::from_secs(90), || {
        processes.check(ETCD)?;
        Ok(api_answers().then_some(()))
    })
}

/// Whether the API server says that it is ready.
pub fn api_answers() -> bool {
    let ask = super::kubectl()
        .and_then(|mut kubectl| command::run(kubectl.args(["get", "--raw", "/readyz", "--request-timeout=5s"])));
    ask.is_ok_and(|answer| answer == "ok")
}

/// The API server is killed: it would wait for its watchers, and etcd has all it knows.
pub fn stop(processes: &Processes) -> Result<()> {
    processes.stop(&[API_SERVER], Signal::KILL)?;
    processes.stop(&[SCHEDULER, CONTROLLER_MANAGER], Signal::TERM)?;
    processes.stop(&[ETCD], Signal::TERM)
}

/// One `--name value` pair per line, the way the command line would have them.
fn flags(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

fn etcd(layout: &Layout) -> Vec<String> {
    let client = layout.etcd_url();
    let peer = format!("http://127.0.0.1:{}", layout.ports.etcd_peer);
    let mut args = vec!["--data-dir".to_owned(), layout.state.join("etcd").to_string_lossy().into_owned()];
    // Not syncing to disk survives the death of every process here, not that of the machine; it is several times as fast.
    args.extend(flags(&format!(
        "--listen-client-urls {client} --advertise-client-urls {client}
         --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster default={peer}
         --unsafe-no-fsync --log-level warn"
    )));
    args
}

fn api_server(layout: &Layout) -> Vec<String> {
    let host = layout.host_address();
    let file = |name: &str| layout.pki_file(name).to_string_lossy().into_owned();
    let mut args = Vec::new();
    for (flag, name) in [
        ("--tls-cert-file", "apiserver.crt"),
        ("--tls-private-key-file", "apiserver.key"),
        ("--client-ca-file", "ca.crt"),
        ("--service-account-key-file", "sa.pub"),
        ("--service-account-signing-key-file", "sa.key"),
        ("--kubelet-client-certificate", "admin.crt"),
        ("--kubelet-client-key", "admin.key"),
        ("--kubelet-certificate-authority", "ca.crt"),
    ] {
        args.extend([flag.to_owned(), file(name)]);
    }
    args.extend(audit::flags(layout));
    // Pods leave a dead node after 5 s instead of 5 min. There is no kube-proxy on the host, so the API server has to
    // call webhooks by pod address (aggregator routing).
    args.extend(flags(&format!(
        "--etcd-servers {etcd}
         --bind-address {host} --secure-port {port} --advertise-address {host}
         --service-account-issuer https://kubernetes.default.svc.cluster.local
         --service-cluster-ip-range {services}
         --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged=true
         --kubelet-preferred-address-types InternalIP --enable-aggregator-routing=true
         --default-not-ready-toleration-seconds 5 --default-unreachable-toleration-seconds 5",
        etcd = layout.etcd_url(),
        port = layout.ports.api_server,
        services = layout.service_range(),
    )));
    args
}

fn controller_manager(layout: &Layout) -> Vec<String> {
    let file = |name: &str| layout.pki_file(name).to_string_lossy().into_owned();
    let mut args = Vec::new();
    for (flag, name) in [
        ("--kubeconfig", "controller-manager.kubeconfig"),
        ("--service-account-private-key-file", "sa.key"),
        ("--root-ca-file", "ca.crt"),
        ("--cluster-signing-cert-file", "ca.crt"),
        ("--cluster-signing-key-file", "ca.key"),
    ] {
        args.extend([flag.to_owned(), file(name)]);
    }
    // A node that stops renewing its lease (every second, see the kubelet's configuration) is NotReady after 8 s.
    args.extend(flags(&format!(
        "--use-service-account-credentials --leader-elect=false
         --node-monitor-period 1s --node-monitor-grace-period 8s
         --bind-address 127.0.0.1 --secure-port {}",
        layout.ports.controller_manager
    )));
    args
}

fn scheduler(layout: &Layout) -> Vec<String> {
    let mut args =
        vec!["--kubeconfig".to_owned(), layout.pki_file("scheduler.kubeconfig").to_string_lossy().into_owned()];
    args.extend(flags(&format!(
        "--leader-elect=false --bind-address 127.0.0.1 --secure-port {}",
        layout.ports.scheduler
    )));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(args: &'a [String], flag: &str) -> &'a str {
        let at = args.iter().position(|a| a == flag).unwrap_or_else(|| panic!("{flag} is missing"));
        &args[at + 1]
    }

    #[test]
    fn everyone_meets_on_the_layout_s_addresses() {
        let layout = Layout::local().unwrap();
        let api = api_server(&layout);
        assert_eq!(value(&api, "--etcd-servers"), value(&etcd(&layout), "--listen-client-urls"));
        assert_eq!(
            layout.api_url(),
            format!("https://{}:{}", value(&api, "--bind-address"), value(&api, "--secure-port"))
        );
        assert_eq!(value(&api, "--service-cluster-ip-range"), "10.212.0.0/16");
        assert_ne!(value(&controller_manager(&layout), "--secure-port"), value(&scheduler(&layout), "--secure-port"));
    }

    #[test]
    fn a_state_directory_with_a_space_stays_one_argument() {
        let layout = Layout { state: "/some where".into(), ..Layout::local().unwrap() };
        assert_eq!(value(&etcd(&layout), "--data-dir"), "/some where/etcd");
        assert_eq!(value(&api_server(&layout), "--tls-cert-file"), "/some where/pki/apiserver.crt");
        assert_eq!(value(&scheduler(&layout), "--kubeconfig"), "/some where/pki/scheduler.kubeconfig");
    }
}
