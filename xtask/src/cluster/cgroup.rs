//! The cgroups that a node and its pods live in, so that the kubelets of two nodes never meet.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::command;

const MOUNT: &str = "/sys/fs/cgroup";
/// On version 2 a group with children holds no processes itself, so the node's own ones sit in this child.
const V2_SYSTEM: &str = "system";
const V2_CONTROLLERS: &[&str] = &["cpu", "cpuset", "memory", "pids", "io"];

pub fn is_v2() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// The directories that hold top-level groups: one per controller on version 1, a single one on version 2.
fn roots() -> Result<Vec<PathBuf>> {
    if is_v2() {
        return Ok(vec![MOUNT.into()]);
    }
    let mut roots = Vec::new();
    for entry in fs::read_dir(MOUNT).with_context(|| format!("there are no cgroups in {MOUNT}"))? {
        // `cpu` may be a link to `cpu,cpuacct`; `unified` takes no part on a hybrid system.
        let entry = entry?;
        let takes_part = entry.file_type()?.is_dir() && entry.file_name() != "unified";
        if takes_part && entry.path().join("cgroup.procs").exists() {
            roots.push(entry.path());
        }
    }
    Ok(roots)
}

/// Makes the group `name` for every controller.
pub fn create(name: &str) -> Result<()> {
    for root in roots()? {
        let dir = root.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make the cgroup {}", dir.display()))?;
        // A cpuset takes no process before it has processors and memory, and a new one has none.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if !is_v2() && root.join(file).exists() {
                fs::write(dir.join(file), fs::read(root.join(file))?)?;
            }
        }
        if is_v2() {
            fs::create_dir_all(dir.join(V2_SYSTEM))?;
            for group in [&root, &dir] {
                for controller in V2_CONTROLLERS {
                    fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")).with_context(|| {
                        format!("cannot hand the {controller} controller to the groups below {}", group.display())
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// Moves this process, and with it all that it starts, into the group.
pub fn join(name: &str) -> Result<()> {
    for root in roots()? {
        let dir = if is_v2() { root.join(name).join(V2_SYSTEM) } else { root.join(name) };
        fs::write(dir.join("cgroup.procs"), "0")
            .with_context(|| format!("cannot join the cgroup {}", dir.display()))?;
    }
    Ok(())
}

/// All that is left of the group. On a hybrid system runc makes one in the unified hierarchy, too, although nothing uses it.
fn remains(name: &str) -> Result<Vec<PathBuf>> {
    let mut groups = roots()?;
    groups.push(Path::new(MOUNT).join("unified"));
    Ok(groups.into_iter().map(|root| root.join(name)).filter(|group| group.exists()).collect())
}

/// Whether anything of the group is left.
pub fn exists(name: &str) -> bool {
    remains(name).is_ok_and(|remains| !remains.is_empty())
}

/// Removes the group and all below it. Its processes have just been killed, and the kernel takes a moment to notice.
pub fn remove(name: &str) -> Result<()> {
    command::wait_for(&format!("the end of the cgroups {name}"), Duration::from_secs(10), || {
        remains(name)?.iter().for_each(|group| remove_tree(group));
        Ok(remains(name)?.is_empty().then_some(()))
    })
}

/// Depth first: a group with children cannot be removed. What is still busy stays for the next round.
fn remove_tree(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path());
    }
    let _ = fs::remove_dir(dir);
}
