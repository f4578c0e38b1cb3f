//! Where Jobs of a file database run, and what they mount of it: the Server's claim at the Server's place, on a node
//! that reaches its volume. A node is never set by name: the scheduler must still judge it.

use k8s_openapi::api::core::v1::{
    Affinity, Container, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, VolumeMount,
};

use super::{
    JobContext,
    archive::{self, ARCHIVE},
    pod::STORAGE,
};
use crate::job::protocol::DataVolume;

/// A volume of the Server, as its container mounts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataMount {
    pub volume: DataVolume,
    /// Only where the Server's own mount is.
    pub read_only: bool,
}

/// The names of the data volumes in a pod begin so; their number follows.
const DATA_VOLUME: &str = "data-";

/// The mounts of the Server's claims, for a container that opens the data.
pub(super) fn mounts(ctx: &JobContext) -> impl Iterator<Item = VolumeMount> {
    ctx.data.iter().enumerate().map(|(at, mount)| VolumeMount {
        name: format!("{DATA_VOLUME}{at}"),
        mount_path: mount.volume.mount_path.clone(),
        sub_path: mount.volume.sub_path.clone(),
        read_only: mount.read_only.then_some(true),
        ..VolumeMount::default()
    })
}

/// The claim behind a mount of that name: the Server's data, or the storage of snapshots.
pub(super) fn claim(ctx: &JobContext, name: &str) -> Option<String> {
    if name == STORAGE.0 {
        return archive::workplace(ctx);
    }
    if name == ARCHIVE.0 {
        return archive::claim(ctx);
    }
    let at: usize = name.strip_prefix(DATA_VOLUME)?.parse().ok()?;
    ctx.data.get(at).map(|mount| mount.volume.claim_name.clone())
}

/// Binds a pod that mounts data or snapshots to the nodes that reach them: the first pod to mount a fresh claim decides
/// where its volume is made.
pub(super) fn affinity<'a>(ctx: &JobContext, mut containers: impl Iterator<Item = &'a Container>) -> Option<Affinity> {
    let bound = |mount: &VolumeMount| claim(ctx, &mount.name).is_some();
    let binds = containers.any(|container| container.volume_mounts.iter().flatten().any(bound));
    let required = ctx.nodes.clone().filter(|_| binds)?;
    Some(Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(required),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    })
}

/// Only this node.
pub fn node_named(name: &str) -> NodeSelector {
    let only = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![name.to_owned()]),
    };
    NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm { match_fields: Some(vec![only]), match_expressions: None }],
    }
}

/// The nodes that both select: one of the terms of each must hold, so one of the pairs.
pub fn both(a: &NodeSelector, b: &NodeSelector) -> NodeSelector {
    if a == b {
        return a.clone();
    }
    let joined = |x: &Option<Vec<NodeSelectorRequirement>>, y: &Option<Vec<NodeSelectorRequirement>>| {
        let mut all: Vec<_> = x.iter().flatten().cloned().collect();
        all.extend(y.iter().flatten().filter(|new| !x.iter().flatten().any(|old| old == *new)).cloned());
        (!all.is_empty()).then_some(all)
    };
    let pairs = a.node_selector_terms.iter().flat_map(|x| b.node_selector_terms.iter().map(move |y| (x, y)));
    NodeSelector {
        node_selector_terms: pairs
            .map(|(x, y)| NodeSelectorTerm {
                match_expressions: joined(&x.match_expressions, &y.match_expressions),
                match_fields: joined(&x.match_fields, &y.match_fields),
            })
            .collect(),
    }
}

/// Whether no node can satisfy it: every term asks two disjoint lists of values of one label. What labels a node has is
/// not known here, so everything else may hold.
pub fn excludes_all(nodes: &NodeSelector) -> bool {
    let disjoint = |a: &NodeSelectorRequirement, b: &NodeSelectorRequirement| {
        let values = |r: &NodeSelectorRequirement| r.values.clone().unwrap_or_default();
        a.key == b.key && a.operator == "In" && b.operator == "In" && !values(a).iter().any(|v| values(b).contains(v))
    };
    let impossible = |term: &NodeSelectorTerm| {
        [&term.match_expressions, &term.match_fields].into_iter().flatten().any(|requirements| {
            requirements.iter().enumerate().any(|(at, a)| requirements[at + 1..].iter().any(|b| disjoint(a, b)))
        })
    };
    !nodes.node_selector_terms.is_empty() && nodes.node_selector_terms.iter().all(impossible)
}

/// As a person reads it: `kubernetes.io/hostname in (node-a)`.
pub fn in_words(nodes: &NodeSelector) -> String {
    let requirement = |r: &NodeSelectorRequirement| {
        let values = r.values.clone().unwrap_or_default().join(", ");
        match (r.key.as_str(), r.operator.as_str()) {
            ("metadata.name", "In") => format!("node {values}"),
            (key, "In") => format!("{key} in ({values})"),
            (key, operator) => format!("{key} {operator} ({values})"),
        }
    };
    let term = |t: &NodeSelectorTerm| {
        let all = t.match_fields.iter().chain(&t.match_expressions).flatten();
        all.map(requirement).collect::<Vec<_>>().join(" and ")
    };
    nodes.node_selector_terms.iter().map(term).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSelector;
    use serde_json::json;

    use super::{both, excludes_all, in_words, node_named};

    fn hosts(names: &[&str]) -> NodeSelector {
        serde_json::from_value(json!({"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": names}]}]}))
        .unwrap()
    }

    #[test]
    fn two_volumes_of_different_nodes_have_no_node_in_common() {
        assert!(excludes_all(&both(&hosts(&["a"]), &hosts(&["b"]))));
        assert!(!excludes_all(&both(&hosts(&["a", "b"]), &hosts(&["b"]))));
        assert!(!excludes_all(&both(&hosts(&["a"]), &hosts(&["a"]))));
        assert!(!excludes_all(&both(&hosts(&["a"]), &node_named("b"))), "a node's label need not be its name");
        assert!(excludes_all(&both(&node_named("a"), &node_named("b"))));
    }

    #[test]
    fn of_several_terms_one_pair_is_enough() {
        let either: NodeSelector = serde_json::from_value(json!({"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["1"]}]},
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["2"]}]}]}))
        .unwrap();
        let second: NodeSelector = serde_json::from_value(json!({"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["2"]}]}]}))
        .unwrap();
        let common = both(&either, &second);
        assert_eq!(common.node_selector_terms.len(), 2);
        assert!(!excludes_all(&common));
        assert_eq!(in_words(&common), "zone in (1) and zone in (2) or zone in (2)");
        assert_eq!(in_words(&node_named("node-a")), "node node-a");
    }
}
