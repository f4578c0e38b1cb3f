//! The first process of a node, inside its namespaces: mounts what makes it a machine of its own, starts containerd,
//! kubelet and kube-proxy, and starts them again when they die, as an init system would.

use std::fs;
use std::io::BufRead;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{WaitOptions, wait};

use super::layout::{Layout, Node};
use super::node_config::CONTAINERD_SOCKET;
use super::{cgroup, command, node, process, storage};

/// A program of the node and the pid that it has now, inside the node.
struct Daemon {
    name: &'static str,
    program: String,
    args: Vec<String>,
    pid: Option<i32>,
}

/// Does not return while the node lives.
pub fn run(layout: &Layout, node: &Node, bin: &Path) -> Result<()> {
    cgroup::join(&layout.cgroup(node))?;
    rustix::system::sethostname(node.name.as_bytes()).context("cannot set the node's host name")?;
    mounts(layout, node).context("cannot mount the node's own directories")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    command::run(Command::new("ip").args("link set lo up".split(' ')))?;
    wait_for_go()?;
    supervise(layout, node, daemons(layout, node, bin))
}

/// The host's file system stays visible, like one that both machines were installed from; what they write is their own.
fn mounts(layout: &Layout, node: &Node) -> Result<()> {
    let dir = layout.node_dir(node);
    // Pods want their mounts to be seen by containerd and kubelet, the host must not see any.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED)?;
    let tmpfs = |target: &Path, options: &std::ffi::CStr| {
        mount("tmpfs", target, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, Some(options))
            .with_context(|| format!("cannot mount a tmpfs on {}", target.display()))
    };
    tmpfs(Path::new("/run"), c"mode=755")?;
    for made in ["/run/lock", "/run/netns"] {
        fs::create_dir_all(made)?;
    }
    tmpfs(Path::new("/mnt"), c"mode=755")?;
    fs::create_dir_all(storage::MOUNT_POINT)?;
    let hosts = (dir.join("hosts"), "/etc/hosts");
    let volumes = (storage::directory(layout, node), storage::MOUNT_POINT);
    let covered = node::COVERED.iter().map(|(target, own)| (dir.join(own), *target));
    for (source, target) in covered.chain([hosts, volumes]) {
        mount_bind(&source, target).with_context(|| format!("cannot mount {} on {target}", source.display()))?;
    }
    for volume in storage::limited_volumes() {
        let options = std::ffi::CString::new(format!("mode=755,size={}", volume.bytes()))?;
        tmpfs(Path::new(&volume.path()), &options)?;
    }
    Ok(())
}

/// The host says when the network is there. If it goes away instead, so does the node.
fn wait_for_go() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line != "go\n" {
        bail!("the command that starts this node has ended before the node was plugged in");
    }
    Ok(())
}

fn daemons(layout: &Layout, node: &Node, bin: &Path) -> Vec<Daemon> {
    let own = |file: &str| layout.node_dir(node).join(file).to_string_lossy().into_owned();
    let pki = |file: &str| layout.pki_file(file).to_string_lossy().into_owned();
    let built = |name: &str| bin.join(name).to_string_lossy().into_owned();
    let mut kubelet = vec!["--kubeconfig".to_owned(), pki(&format!("{}.kubeconfig", node.name))];
    kubelet.extend(["--config".to_owned(), own("kubelet.json")]);
    kubelet.extend(["--hostname-override".to_owned(), node.name.to_owned()]);
    kubelet.extend(["--node-ip".to_owned(), layout.node_address(node).to_string()]);
    let mut kube_proxy = vec!["--kubeconfig".to_owned(), pki("kube-proxy.kubeconfig")];
    kube_proxy.extend(["--hostname-override".to_owned(), node.name.to_owned()]);
    kube_proxy.extend(["--cluster-cidr".to_owned(), layout.pod_range()]);
    // The machine's own limit of tracked connections stays as it is.
    kube_proxy.extend(["--proxy-mode", "iptables", "--conntrack-max-per-core", "0"].map(String::from));
    vec![
        Daemon {
            name: "containerd",
            program: "containerd".into(),
            args: vec!["-c".into(), own("containerd.toml")],
            pid: None,
        },
        Daemon { name: "kubelet", program: built("kubelet"), args: kubelet, pid: None },
        Daemon { name: "kube-proxy", program: built("kube-proxy"), args: kube_proxy, pid: None },
    ]
}

/// Reaps every orphan of the node and starts dead daemons again.
fn supervise(layout: &Layout, node: &Node, mut daemons: Vec<Daemon>) -> Result<()> {
    loop {
        for daemon in daemons.iter_mut().filter(|d| d.pid.is_none()) {
            start(layout, node, daemon)?;
        }
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let ended = daemons.iter_mut().find(|d| d.pid == Some(pid.as_raw_nonzero().get()));
                if let Some(daemon) = ended {
                    let how = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => format!("exit code {code}"),
                        (_, Some(signal)) => format!("signal {signal}"),
                        _ => "unknown cause".to_owned(),
                    };
                    println!("{} has ended ({how}), starting it again in a second", daemon.name);
                    daemon.pid = None;
                    sleep(Duration::from_secs(1));
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the node's processes"),
        }
    }
}

fn start(layout: &Layout, node: &Node, daemon: &mut Daemon) -> Result<()> {
    let log = process::open_log(&layout.logs().join(format!("{}-{}.log", node.name, daemon.name)))?;
    let child = Command::new(&daemon.program)
        .args(&daemon.args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", daemon.name))?;
    daemon.pid = Some(i32::try_from(child.id())?);
    if daemon.name == "containerd" {
        // A kubelet that finds no runtime ends. If containerd cannot start, waiting longer does not help either.
        let ready = || Ok(UnixStream::connect(CONTAINERD_SOCKET).ok().map(drop));
        if let Err(error) = command::wait_for("containerd's socket", Duration::from_secs(20), ready) {
            println!("{error}; starting the kubelet all the same");
        }
    }
    Ok(())
}
