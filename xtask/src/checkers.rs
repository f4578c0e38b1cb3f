//! Starts the programs of `tests/checkers`, which decide what became of data and workloads and share no code with the
//! operator.

use std::process::Command;

use anyhow::Result;

use crate::kube::Kube;
use crate::{cluster, place};

/// One of them, which talks to the same cluster as this `kubectl` does.
pub fn program(kube: &Kube, name: &str) -> Result<Command> {
    let mut python = Command::new("python3");
    python.arg("-B").arg(place::root()?.join("tests/checkers").join(name));
    for (name, value) in kube.kubectl(&[])?.get_envs() {
        python.env(name, value.unwrap_or_default());
    }
    Ok(python)
}

/// The program `kubectl`, as a word for `--kubectl`.
pub fn kubectl(kube: &Kube) -> Result<String> {
    Ok(cluster::shell_quoted(&kube.kubectl(&[])?.get_program().to_string_lossy()))
}

/// A psql in the database's own pod, for `--psql`: there the socket needs no password.
pub fn psql(kube: &Kube, namespace: &str) -> Result<String> {
    let kubectl = kubectl(kube)?;
    Ok(format!("{kubectl} -n {namespace} exec -i memoria-postgres-0 -- psql -h /tmp -U memoria memoria"))
}
