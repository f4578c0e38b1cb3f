//! The commands of `docs/getting-started.md`, run in their order on the test cluster: what a newcomer types first must
//! work.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Done, succeed};
use crate::cluster::{self, Target};
use crate::kube::Kube;
use crate::place;

/// What `--only` calls it.
pub const FILTER: &str = "getting-started";
const DOCUMENT: &str = "docs/getting-started.md";
/// The namespaces that its commands make.
const NAMESPACES: [&str; 2] = ["memoria-file", "memoria-server"];

/// One shell runs all blocks, as one person would; it ends at the first command that fails.
pub fn run() -> Result<Done> {
    let root = place::root()?;
    let text = std::fs::read_to_string(root.join(DOCUMENT)).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let blocks = shell_blocks(&text);
    ensure!(blocks.len() > 5, "{DOCUMENT} has only {} blocks of shell commands", blocks.len());
    // A run that was broken off leaves them.
    Kube { target: Target::Local }.delete_namespaces(&NAMESPACES)?;
    let mut shell = Command::new("sh");
    shell.args(["-eux", "-c", &blocks.join("\n")]).current_dir(root);
    succeed(shell.envs(cluster::client_environment()?))
}

/// What stands between a line "```sh" and the next fence.
fn shell_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<Vec<&str>> = None;
    for line in text.lines() {
        match (&mut open, line) {
            (None, "```sh") => open = Some(Vec::new()),
            (Some(_), "```") => blocks.extend(open.take().map(|lines| lines.join("\n"))),
            (Some(lines), line) => lines.push(line),
            (None, _) => {}
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_of_shell_commands_are_run() {
        let text = "a\n```sh\none\ntwo\n```\n```yaml\nno: 1\n```\n```\nnor this\n```\n```sh\nthree\n```\n";
        assert_eq!(shell_blocks(text), ["one\ntwo", "three"]);
    }

    #[test]
    fn the_commands_clean_up_what_they_make() {
        let text = std::fs::read_to_string(place::root().unwrap().join(DOCUMENT)).unwrap();
        let commands = shell_blocks(&text).join("\n");
        for namespace in NAMESPACES {
            assert!(commands.contains(&format!("kubectl create namespace {namespace}")));
        }
        assert!(commands.contains(&format!("kubectl delete namespace {}", NAMESPACES.join(" "))));
    }
}
