//! Which cluster a command works on: the project's own or the one that the user's kubeconfig points at.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::command;

/// A cluster to work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The two nodes on this machine, started when they are not running.
    Local,
    /// Whatever the current context of the user's kubeconfig is. Nothing is started, and images are the user's job.
    CurrentContext,
}

impl Target {
    /// From the flag `--use-current-context`.
    pub fn from_flag(use_current_context: bool) -> Self {
        if use_current_context { Self::CurrentContext } else { Self::Local }
    }

    /// A `kubectl` that talks to this cluster.
    pub fn kubectl(self) -> Result<Command> {
        self.program("kubectl")
    }

    /// A `helm` that talks to this cluster.
    pub fn helm(self) -> Result<Command> {
        self.program("helm")
    }

    fn program(self, name: &str) -> Result<Command> {
        match self {
            Self::Local => super::program(name),
            Self::CurrentContext => {
                let built = || super::bin_dir().map(|dir| dir.join(name));
                command::find(name).map_or_else(built, Ok).map(Command::new)
            }
        }
    }

    /// Makes sure that there is a cluster, and returns what to call it.
    pub fn ensure(self) -> Result<String> {
        match self {
            Self::Local => {
                super::ensure_up()?;
                Ok("the local two-node cluster".into())
            }
            Self::CurrentContext => {
                let context = command::run(self.kubectl()?.args(["config", "current-context"])).context(
                    "--use-current-context needs a kubeconfig with a current context: set KUBECONFIG or run `kubectl \
                     config use-context`, or leave the flag out to get a local cluster",
                )?;
                let context = context.trim().to_owned();
                command::run(self.kubectl()?.args(["version", "--request-timeout=10s", "--output=json"]))
                    .with_context(|| format!("the cluster of context {context:?} does not answer"))?;
                Ok(format!("context {context}"))
            }
        }
    }

    /// Makes these images available: pushes them to the local registry, or says what the user's cluster must be able to pull.
    /// Each is a source for skopeo and a name without a registry.
    #[allow(dead_code, reason = "part of what other chores use")]
    pub fn publish(self, images: &[(String, String)]) -> Result<()> {
        match self {
            Self::Local => images.iter().try_for_each(|(source, name)| super::registry_push(source, name)),
            Self::CurrentContext => {
                println!("The nodes of this cluster must be able to pull these images; push them where they can:");
                for (source, name) in images {
                    println!("  {}/{name}   from {source}", super::REGISTRY);
                }
                Ok(())
            }
        }
    }

    /// The kubeconfig, where the choice is ours to make.
    #[allow(dead_code, reason = "part of what other chores use")]
    pub fn kubeconfig(self) -> Result<Option<PathBuf>> {
        match self {
            Self::Local => super::kubeconfig().map(Some),
            Self::CurrentContext => Ok(None),
        }
    }
}
