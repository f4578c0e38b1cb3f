//! Builds the one Go binary that holds every Kubernetes program, and keeps it for as long as its sources stay the same.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{command, lock};
use crate::place;

/// The names that the binary answers to.
const PROGRAMS: &[&str] = &[
    "etcd",
    "coredns",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "helm",
];
/// What the build depends on, below `tests/cluster`.
const SOURCES: &[&str] = &["go.mod", "go.sum", "main.go", "pause/main.go"];
/// As many packages as a build from nothing compiles, to show how far it is.
const PACKAGES: usize = 2800;

/// The directory with the programs for the sources of this checkout; builds them when they are not there.
pub fn ensure() -> Result<PathBuf> {
    let sources = place::root()?.join("tests/cluster");
    let bin = place::cache()?.join("kubernetes").join(key(&sources)?);
    let built = || bin.join("cluster").exists();
    if built() {
        return Ok(bin);
    }
    let _lock = lock::take("kubernetes")?;
    if !built() {
        fill_whole(&bin, |partial| build(&sources, partial)).context("cannot build the Kubernetes programs")?;
    }
    Ok(bin)
}

/// Names the build by everything it is made from.
fn key(sources: &Path) -> Result<String> {
    let version = command::run(go(sources)?.args(["env", "GOVERSION"]))?;
    let mut hash = Sha256::new();
    for name in SOURCES {
        let file = sources.join(name);
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    hash.update(version);
    hash.update(link_flags(sources)?);
    Ok(super::hex(&hash.finalize())[..16].to_owned())
}

/// Go's command in the directory of a module.
pub(super) fn go(sources: &Path) -> Result<Command> {
    let go = command::find("go").context(
        "Go is not installed, and the test cluster is built from source: install Go 1.26 or later from \
         https://go.dev/dl/, or run against a cluster of yours with --use-current-context",
    )?;
    let mut command = Command::new(go);
    // Another CGO_ENABLED would compile everything a second time, and the pause program must be static.
    command.current_dir(sources).env("CGO_ENABLED", "0");
    Ok(command)
}

/// Kubernetes takes its own version from the linker.
fn link_flags(sources: &Path) -> Result<String> {
    let modules = fs::read_to_string(sources.join("go.mod"))?;
    let (major, minor, patch) =
        kubernetes_version(&modules).context("go.mod requires no release of k8s.io/kubernetes")?;
    let package = "k8s.io/component-base/version";
    Ok(format!(
        "-s -w -X {package}.gitVersion=v{major}.{minor}.{patch} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    ))
}

fn kubernetes_version(modules: &str) -> Option<(&str, &str, &str)> {
    let line = modules.lines().find_map(|l| l.trim().strip_prefix("k8s.io/kubernetes v"))?;
    let mut parts = line.split_whitespace().next()?.splitn(3, '.');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// Fills a directory, which has its final name only when it is complete.
pub(super) fn fill_whole(directory: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = directory.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    fill(&partial)?;
    fs::rename(&partial, directory)?;
    Ok(())
}

fn build(sources: &Path, partial: &Path) -> Result<()> {
    println!("building Kubernetes, etcd, CoreDNS and Helm from source; about eight minutes the first time");
    compile(
        go(sources)?
            .args(["build", "-v", "-trimpath", "-ldflags", &link_flags(sources)?, "-o"])
            .args([partial.join("cluster").as_os_str(), ".".as_ref()]),
        PACKAGES,
    )?;
    command::run(
        go(sources)?.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(partial.join("pause")).arg("./pause"),
    )?;
    for name in PROGRAMS {
        symlink("cluster", partial.join(name))?;
    }
    Ok(())
}

/// Runs `go build -v`, which prints a line per package, and says every 15 seconds how far it is. `packages` is how many a
/// build from nothing compiles.
pub(super) fn compile(build: &mut Command, packages: usize) -> Result<()> {
    let begin = Instant::now();
    let mut child = build.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let messages = BufReader::new(child.stderr.take().context("the build's messages are piped")?);
    let (compiled, downloaded) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (status, rest) = std::thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| {
            let mut other = Vec::new();
            for line in messages.lines().map_while(Result::ok) {
                if line.starts_with("go: downloading ") {
                    downloaded.fetch_add(1, Ordering::Relaxed);
                } else if line.contains(' ') || line.starts_with('#') {
                    other.push(line);
                } else {
                    compiled.fetch_add(1, Ordering::Relaxed);
                }
            }
            other
        });
        let mut told = begin;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if told.elapsed() >= Duration::from_secs(15) {
                told = Instant::now();
                let (done, modules) = (compiled.load(Ordering::Relaxed), downloaded.load(Ordering::Relaxed));
                let doing = match (done, modules) {
                    (0, 0) => "reading what the build cache already has".to_owned(),
                    (0, _) => format!("{modules} modules downloaded"),
                    _ => format!("{done} of at most {packages} packages compiled"),
                };
                println!("  {:>3} s: {doing}", begin.elapsed().as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        Ok((status, reader.join().unwrap_or_default()))
    })?;
    if !status.success() {
        bail!("go build failed ({status}):\n{}", rest.join("\n"));
    }
    println!("  built in {} s", begin.elapsed().as_secs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_the_module_requires() {
        let modules = "require (\n\tk8s.io/kubectl v0.36.3\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n";
        assert_eq!(kubernetes_version(modules), Some(("1", "36", "3")));
        assert_eq!(kubernetes_version("module x\n"), None);
    }

    #[test]
    fn this_checkout_names_its_build() {
        let flags = link_flags(&place::root().unwrap().join("tests/cluster")).unwrap();
        assert!(flags.contains("gitVersion=v1."), "{flags}");
    }
}
