//! Volumes: a pool of local PersistentVolumes on each node. Unlike host-path volumes they belong to a node, know
//! fsGroup and, in the class for it, fill up.
//!
//! The same path means another directory on every node: it is only mounted inside, see `node_init`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::layout::{Layout, Node};
use super::process::Processes;
use super::{command, node};

/// Where the volumes lie inside every node.
pub const MOUNT_POINT: &str = "/mnt/volumes";

/// A StorageClass and its volumes on each node.
struct Class {
    name: &'static str,
    default: bool,
    per_node: u16,
    mebibytes: u64,
    /// Whether the volume really ends at its capacity: it is a tmpfs then, and empty after its node has restarted.
    limited: bool,
}

const CLASSES: &[Class] = &[
    // Room for the snapshot of 440,000 rows, for which a claim of three times the database is made.
    Class { name: "local", default: true, per_node: 32, mebibytes: 8192, limited: false },
    Class { name: "local-small", default: false, per_node: 4, mebibytes: 24, limited: true },
];

/// A volume, which every node has.
pub struct Volume {
    class: &'static Class,
    number: u16,
}

impl Volume {
    fn directory_name(&self) -> String {
        format!("{}-{:02}", self.class.name, self.number)
    }

    /// Inside a node.
    pub fn path(&self) -> String {
        format!("{MOUNT_POINT}/{}", self.directory_name())
    }

    pub fn bytes(&self) -> u64 {
        self.class.mebibytes << 20
    }

    fn object_name(&self, node: &Node) -> String {
        format!("{}-{}", node.name, self.directory_name())
    }

    fn object(&self, node: &Node) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": self.object_name(node)},
            "spec": {
                "storageClassName": self.class.name,
                "capacity": {"storage": format!("{}Mi", self.class.mebibytes)},
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Filesystem",
                // Nobody deletes volumes of this kind; `recycle` does what a provisioner would.
                "persistentVolumeReclaimPolicy": "Retain",
                "local": {"path": self.path()},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]},
                ]}]}},
            },
        })
    }
}

fn volumes() -> impl Iterator<Item = Volume> {
    CLASSES.iter().flat_map(|class| (1..=class.per_node).map(move |number| Volume { class, number }))
}

/// Those that the node has to mount with a limit.
pub fn limited_volumes() -> impl Iterator<Item = Volume> {
    volumes().filter(|v| v.class.limited)
}

/// What appears as [`MOUNT_POINT`] inside the node.
pub fn directory(layout: &Layout, node: &Node) -> PathBuf {
    layout.node_dir(node).join("volumes")
}

pub fn create_directories(layout: &Layout, node: &Node) -> Result<()> {
    for volume in volumes() {
        let dir = directory(layout, node).join(volume.directory_name());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make the volume {}", dir.display()))?;
    }
    Ok(())
}

/// The classes and all volumes, as Kubernetes objects.
pub fn objects(layout: &Layout) -> Vec<Value> {
    let classes = CLASSES.iter().map(|class| {
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": class.name,
                "annotations": {"storageclass.kubernetes.io/is-default-class": class.default.to_string()},
            },
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        })
    });
    let volumes = layout.nodes.iter().flat_map(|node| volumes().map(|v| v.object(node)));
    classes.chain(volumes).collect()
}

#[derive(Deserialize)]
struct List {
    items: Vec<Existing>,
}

#[derive(Deserialize)]
struct Existing {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize, Default)]
struct Status {
    #[serde(default)]
    phase: String,
}

fn phases() -> Result<BTreeMap<String, String>> {
    let list = command::run(super::kubectl()?.args(["get", "pv", "--output=json"]))?;
    let list: List = serde_json::from_str(&list).context("cannot read the list of volumes")?;
    Ok(list.items.into_iter().map(|pv| (pv.metadata.name, pv.status.phase)).collect())
}

/// How many volumes are in each phase.
pub fn summary() -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for phase in phases()?.into_values() {
        *counts.entry(phase).or_default() += 1;
    }
    Ok(counts)
}

/// Empties the volumes whose claim is gone and offers them again. Returns how many.
///
/// A volume of a node that does not run stays as it is: it can only be reached through its node.
pub fn recycle(layout: &Layout) -> Result<usize> {
    let processes = Processes::of(layout);
    let phases = phases()?;
    let mut again = Vec::new();
    for node in &layout.nodes {
        let Some(init) = node::init(&processes, node) else { continue };
        let inside = PathBuf::from(format!("/proc/{}/root", init.pid));
        for volume in volumes() {
            let phase = phases.get(&volume.object_name(node));
            if phase.is_some_and(|p| p == "Released" || p == "Failed") {
                // Through the node's own view, because a limited volume is mounted nowhere else.
                empty(&inside.join(volume.path().trim_start_matches('/')))?;
                again.push((volume.object_name(node), volume.object(node)));
            }
        }
    }
    if again.is_empty() {
        return Ok(0);
    }
    let names = again.iter().map(|(name, _)| name);
    command::run(super::kubectl()?.args(["delete", "pv", "--timeout=30s"]).args(names))
        .context("cannot delete the released volumes")?;
    super::apply(again.iter().map(|(_, object)| object.clone()).collect())?;
    Ok(again.len())
}

/// Removes the content and what fsGroup has changed; the directory itself may be a mount.
fn empty(dir: &Path) -> Result<()> {
    let problem = || format!("cannot empty the volume {}", dir.display());
    for entry in fs::read_dir(dir).with_context(problem)? {
        let entry = entry.with_context(problem)?;
        let removed = match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        removed.with_context(problem)?;
    }
    std::os::unix::fs::chown(dir, Some(0), Some(0)).with_context(problem)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).with_context(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_volume_belongs_to_one_node_and_one_class_is_the_default() {
        let layout = Layout::local().unwrap();
        let objects = objects(&layout);
        let of_kind = |kind: &str| objects.iter().filter(|o| o["kind"] == kind).cloned().collect::<Vec<_>>();
        let default =
            |c: &&Value| c["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
        assert_eq!(of_kind("StorageClass").iter().filter(default).count(), 1);
        let volumes = of_kind("PersistentVolume");
        assert_eq!(volumes.len(), 2 * (32 + 4));
        let names: std::collections::BTreeSet<_> = volumes.iter().map(|v| v["metadata"]["name"].to_string()).collect();
        assert_eq!(names.len(), volumes.len());
        for volume in volumes {
            let name = volume["metadata"]["name"].as_str().unwrap();
            let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
            let node = terms[0]["matchExpressions"][0]["values"][0].as_str().unwrap();
            assert!(name.starts_with(node), "{name} is on {node}");
        }
    }

    #[test]
    fn emptying_leaves_the_directory_and_nothing_in_it() {
        let dir = std::env::temp_dir().join(format!("memoria-volume-{}", std::process::id()));
        fs::create_dir_all(dir.join("deep/er")).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
        if rustix::process::geteuid().is_root() {
            empty(&dir).unwrap();
            assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o755);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
            assert!(Path::new("/etc/passwd").exists());
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
