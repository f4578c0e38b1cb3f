//! What this machine must offer before a cluster can start: rights, and programs that come as Debian packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::command;

/// A program that the cluster runs, and the Debian package it comes from.
const PROGRAMS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("openssl", "openssl"),
];
const CNI_PACKAGE: &str = "containernetworking-plugins";
const CNI_DIRS: &[&str] = &["/usr/lib/cni", "/opt/cni/bin"];
/// What another cluster is good for when this machine cannot run one.
const OTHERWISE: &str = "Or run against a cluster of yours with --use-current-context.";

/// Where the CNI plugins lie.
pub fn cni_dir() -> Result<&'static Path> {
    installed_cni_dir().with_context(|| format!("the CNI plugins are missing: install {CNI_PACKAGE}"))
}

fn installed_cni_dir() -> Option<&'static Path> {
    CNI_DIRS.iter().map(Path::new).find(|dir| ["ptp", "host-local", "portmap"].iter().all(|p| dir.join(p).is_file()))
}

/// Fails with what to do when namespaces cannot be made here; installs the packages that are missing.
pub fn ensure() -> Result<()> {
    let missing = missing();
    if !rustix::process::geteuid().is_root() {
        let mut todo = String::new();
        if !missing.is_empty() {
            todo = format!(" Missing as well: `sudo apt-get install {}`.", missing.join(" "));
        }
        bail!(
            "a local cluster needs root: nodes are network, mount and process namespaces. \
             Run it as root, for example `sudo -E cargo xtask cluster up`.{todo} {OTHERWISE}"
        );
    }
    if !missing.is_empty() {
        install(&missing)?;
        let still = self::missing();
        if !still.is_empty() {
            bail!("apt-get installed {}, but their programs are not on the PATH", still.join(", "));
        }
    }
    command::run(Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "true"])).context(
        "root may not create namespaces here (no CAP_SYS_ADMIN?). In a container, run it privileged. \
         Or run against a cluster of yours with --use-current-context.",
    )?;
    Ok(())
}

/// Installs the packages whose programs are not here; for chores beside the cluster. Needs root.
pub fn ensure_programs(programs: &[(&str, &str)]) -> Result<()> {
    let missing = missing_of(programs);
    if !missing.is_empty() {
        install(&missing)?;
        let still = missing_of(programs);
        if !still.is_empty() {
            bail!("apt-get installed {}, but their programs are not on the PATH", still.join(", "));
        }
    }
    Ok(())
}

fn missing_of<'a>(programs: &[(&str, &'a str)]) -> Vec<&'a str> {
    programs.iter().filter(|(p, _)| command::find(p).is_none()).map(|&(_, d)| d).collect()
}

fn missing() -> Vec<&'static str> {
    let mut packages = missing_of(PROGRAMS);
    if installed_cni_dir().is_none() {
        packages.push(CNI_PACKAGE);
    }
    packages.dedup();
    packages
}

/// Installs Debian packages. Needs root and apt-get.
pub fn install(packages: &[&str]) -> Result<()> {
    if command::find("apt-get").is_none() {
        bail!(
            "missing on this machine: {}. These are the Debian packages; without apt-get, install what \
             your system calls them. {OTHERWISE}",
            packages.join(", ")
        );
    }
    println!("installing {}", packages.join(" "));
    let apt = |args: &[&str]| {
        command::run(Command::new("apt-get").args(args).args(["-q", "-y"]).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update"]).context("cannot refresh apt's package lists")?;
    apt(&[&["install", "--no-install-recommends"], packages].concat())
        .with_context(|| format!("cannot install {}", packages.join(", ")))
        .map(drop)
}
