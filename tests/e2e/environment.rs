//! What `cargo xtask test` tells these tests: programs, image digests, where the cluster keeps its data.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use kube::{Client, Config};
use tokio::{io::AsyncWriteExt, process::Command};

/// The operator's namespace, Deployment, ServiceAccount and Lease.
pub const OPERATOR: &str = "memoria-operator";
/// On the namespaces of these tests.
pub const NAMESPACE_LABEL: &str = "memoria-operator-test";

fn variable(name: &str) -> Result<PathBuf> {
    let value =
        std::env::var_os(name).with_context(|| format!("{name} is not set: run `cargo xtask test --tier cluster`"))?;
    Ok(PathBuf::from(value))
}

/// The built xtask.
pub fn xtask() -> Result<PathBuf> {
    variable("MEMORIA_TEST_XTASK")
}

/// The cluster's own directory on this machine.
pub fn cluster_state() -> Result<PathBuf> {
    variable("MEMORIA_TEST_CLUSTER_STATE")
}

/// KEDA: the program `keda-operator` and its kinds in `crds`.
pub fn keda() -> Result<PathBuf> {
    variable("MEMORIA_TEST_KEDA")
}

/// Image name and tag → digest.
pub fn digests() -> Result<BTreeMap<String, String>> {
    let file = variable("MEMORIA_TEST_IMAGES")?;
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).context("the image index is no JSON")
}

/// The OCI layout that the images were built into.
pub fn image_layout() -> Result<PathBuf> {
    Ok(variable("MEMORIA_TEST_IMAGES")?.with_file_name("layout"))
}

/// The digest of a stand-in's image.
pub fn digest(name: &str, tag: &str) -> Result<String> {
    digests()?.remove(&format!("{name}:{tag}")).with_context(|| format!("there is no image {name}:{tag}"))
}

/// Asked of cargo at run time: checkouts that share its target directory share one binary.
pub fn root() -> PathBuf {
    // Where somebody runs the program by hand, it is what cargo would start it in, too.
    std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_else(|| PathBuf::from("."))
}

/// A client as the cluster's administrator.
pub async fn client() -> Result<Client> {
    let mut config = Config::infer().await.context("no kubeconfig: run `cargo xtask test --tier cluster`")?;
    // A test asks in the middle of everything; an answer that takes longer is a finding.
    config.read_timeout = Some(Duration::from_secs(120));
    Ok(Client::try_from(config)?)
}

/// Runs a program and returns what it printed; a failure says what it said.
pub async fn run(command: &mut Command, input: Option<&str>) -> Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{:?} ended with {}: {}", command.as_std(), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `kubectl` with these arguments.
pub async fn kubectl(args: &[&str]) -> Result<String> {
    run(Command::new("kubectl").args(args), None).await
}

/// Removes a namespace in mid-test, and offers its volumes again: there are only so many, and its servers would take the
/// processor from the next ones.
pub async fn remove(namespace: &str) -> Result<()> {
    run(Command::new(xtask()?).args(["memoria", "down", "--namespace", namespace]), None).await?;
    run(Command::new(xtask()?).args(["cluster", "recycle"]), None).await.map(drop)
}
