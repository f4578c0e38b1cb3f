//! The local two-node Kubernetes that the demo and the tests run on: real programs, nodes as process trees in
//! namespaces of their own, no container engine needed. `tests/cluster/README.md` describes it.

mod audit;
mod binary;
mod cgroup;
pub mod command;
mod control_plane;
mod dns;
mod keda;
mod layout;
mod lifecycle;
mod lock;
mod network;
mod node;
mod node_config;
mod node_init;
mod packages;
mod pki;
mod process;
mod registry;
mod status;
mod storage;
mod target;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

#[allow(unused_imports, reason = "part of what other chores use")]
pub use keda::ensure as ensure_keda;
pub use layout::REGISTRY;
pub use packages::{ensure_programs, install as install_packages};
pub use target::Target;

use layout::Layout;

/// Where the system's programs are, for processes that start with an empty environment.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start the cluster and wait until it is ready; does nothing when it is
    Up {
        /// Use the cluster of the kubeconfig's current context: start nothing, only check that it answers
        #[arg(long)]
        use_current_context: bool,
    },
    /// Stop the cluster; its data stays for the next `up`
    Down {
        /// Remove its data, too
        #[arg(long)]
        purge: bool,
    },
    /// Show processes, nodes and volumes; exit code 1 when the cluster is not up
    Status,
    /// Empty the volumes whose claims are gone and offer them again (`up` does it, too)
    Recycle,
    /// Kill a node the way a power cut would, or a process of the host, by its name in `status`
    Kill { name: String },
    /// Start what was killed again
    Start { name: String },
    /// Push an image to the cluster's registry
    Push {
        /// Where it is, in skopeo's words: `oci:<directory>:<reference>`, `oci-archive:<file>`, `docker://<name>`
        source: String,
        /// What to call it, without the registry: memoria/server:1.0.0
        name: String,
    },
    /// Run kubectl against the cluster
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run helm against the cluster
    #[command(disable_help_flag = true)]
    Helm {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Print the settings that make a shell's kubectl and helm use the cluster: eval "$(cargo xtask cluster env)"
    Env,
    /// The first process of a node
    #[command(hide = true)]
    NodeInit {
        #[arg(long)]
        state: PathBuf,
        #[arg(long)]
        bin: PathBuf,
        name: String,
    },
}

pub fn run(args: Args) -> Result<()> {
    let layout = Layout::local()?;
    match args.action {
        Action::Up { use_current_context } => {
            let target = Target::from_flag(use_current_context);
            let cluster = target.ensure()?;
            if target == Target::CurrentContext {
                println!("{cluster} answers; nothing to start");
            }
            Ok(())
        }
        Action::Down { purge } => lifecycle::down(&layout, purge),
        Action::Status => {
            if !status::show(&layout) {
                std::process::exit(1);
            }
            Ok(())
        }
        Action::Recycle => lifecycle::recycle(&layout),
        Action::Kill { name } => lifecycle::kill(&layout, &name),
        Action::Start { name } => lifecycle::start_again(&layout, &name),
        Action::Push { source, name } => registry_push(&source, &name),
        Action::Kubectl { args } => replace("kubectl", &args),
        Action::Helm { args } => replace("helm", &args),
        Action::Env => {
            for (name, value) in environment(&layout) {
                println!("export {name}={}", shell_quoted(&value));
            }
            println!("export PATH={}:\"$PATH\"", shell_quoted(&layout.programs().to_string_lossy()));
            Ok(())
        }
        Action::NodeInit { state, bin, name } => {
            let layout = Layout { state, ..layout };
            node_init::run(&layout, node::find(&layout, &name)?, &bin)
        }
    }
}

/// Starts the local cluster when it is not running. Returns when both nodes are ready.
pub fn ensure_up() -> Result<()> {
    lifecycle::up(&Layout::local()?)
}

/// Where the cluster keeps its data.
pub fn state_dir() -> Result<PathBuf> {
    Ok(Layout::local()?.state)
}

/// The API server's audit log: one JSON object a line, one line a write.
pub fn audit_log() -> Result<PathBuf> {
    Ok(Layout::local()?.audit_log())
}

/// The administrator's kubeconfig; it exists once the cluster has been up.
#[allow(dead_code, reason = "part of what other chores use")]
pub fn kubeconfig() -> Result<PathBuf> {
    Ok(Layout::local()?.kubeconfig())
}

/// The directory with the built programs (`kubectl`, `helm`, `etcd`, …); builds them when needed.
pub fn bin_dir() -> Result<PathBuf> {
    binary::ensure()
}

/// There is one operator in a cluster: whoever installs it and upgrades with it holds this, or waits for it.
pub fn lock_operator() -> Result<std::fs::File> {
    lock::take("operator")
}

/// Pushes an image to the cluster's registry; see [`registry::push`].
pub fn registry_push(source: &str, name_tag: &str) -> Result<()> {
    registry::push(&Layout::local()?, source, name_tag)
}

/// The digest that the cluster's registry has under this name; see [`registry::digest`].
pub fn registry_digest(name_tag: &str) -> Result<Option<String>> {
    registry::digest(&Layout::local()?, name_tag)
}

/// A `kubectl` with the administrator's kubeconfig, of the version that the cluster was started with.
pub fn kubectl() -> Result<Command> {
    program("kubectl")
}

fn program(name: &str) -> Result<Command> {
    let layout = Layout::local()?;
    let file = layout.programs().join(name);
    if !file.exists() {
        bail!("there is no cluster yet: start one with `cargo xtask cluster up`");
    }
    let mut command = Command::new(file);
    command.envs(environment(&layout));
    Ok(command)
}

/// What a client needs to find the cluster. A proxy of the user's must not be asked for it.
fn environment(layout: &Layout) -> Vec<(&'static str, String)> {
    let mut own = vec![layout.host_address().to_string(), layout.lan_range(), REGISTRY.to_owned()];
    own.extend(std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy")).ok().filter(|v| !v.is_empty()));
    let kubeconfig = layout.kubeconfig().to_string_lossy().into_owned();
    vec![("KUBECONFIG", kubeconfig), ("NO_PROXY", own.join(",")), ("no_proxy", own.join(","))]
}

/// What makes a program's kubectl, helm and Kubernetes client use the cluster.
pub fn client_environment() -> Result<Vec<(&'static str, String)>> {
    let layout = Layout::local()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut variables = environment(&layout);
    variables.push(("PATH", format!("{}:{path}", layout.programs().display())));
    Ok(variables)
}

/// Becomes the program, so that exit code, signals and terminal are its own.
fn replace(name: &str, args: &[OsString]) -> Result<()> {
    Err(program(name)?.args(args).exec()).with_context(|| format!("cannot start {name}"))
}

/// Creates or updates these objects.
fn apply(objects: Vec<Value>) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let mut kubectl = kubectl()?;
    kubectl.args(["apply", "--server-side", "--force-conflicts", "--field-manager=cargo-xtask", "--filename=-"]);
    command::run_with_input(&mut kubectl, &list.to_string()).map(drop)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As one word of a shell's command line.
pub fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_value_is_what_the_shell_reads() {
        let value = "/it's a $HOME/dir";
        let read =
            command::run(Command::new("sh").args(["-c", &format!("printf %s {}", shell_quoted(value))])).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn bytes_are_written_as_two_digits_each() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
