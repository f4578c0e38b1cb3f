//! What the Server keeps on claims: which volumes its container mounts, whether a Job may mount them too, and from
//! which nodes they can be reached. Live reads, nothing written.

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{
    NodeSelector, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, Volume, VolumeMount,
};
use kube::{Api, Client, ResourceExt, api::ListParams};

use super::{
    adopt::AdoptedTarget,
    client::bounded,
    error::{ClusterError, Kind},
    pods,
};
use crate::{
    api::{
        marks::RELEASE_LABEL,
        release::{WorkerKind, WorkerRef},
    },
    commands::Command,
    job::{manifest::OWN_MOUNTS, protocol::DataVolume},
};

/// What the Server's container mounts, and where its pod was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerData {
    /// In the order of the container's mounts.
    pub mounts: Vec<Mounted>,
    /// The node of a running pod of the Server.
    pub node: Option<String>,
    /// Pods that mount one of the claims and that belong to no workload of the release, as `claim: pod`.
    pub strangers: Vec<Stranger>,
}

/// One mount of the Server's container.
#[derive(Clone, Debug, PartialEq)]
pub struct Mounted {
    pub mount_path: String,
    pub what: Behind,
}

/// What lies behind a mount.
#[derive(Clone, Debug, PartialEq)]
pub enum Behind {
    /// A claim that Jobs can mount as the Server does.
    Claim(Box<DataClaim>),
    /// A claim that they cannot, and why, with what to do.
    Unfit { claim: String, why: String },
    /// No claim: what is written there ends with the pod or the node, as `emptyDir volume "tmp"`.
    Other(String),
}

/// A claim that Jobs can mount.
#[derive(Clone, Debug, PartialEq)]
pub struct DataClaim {
    pub volume: DataVolume,
    /// The Server mounts it so.
    pub read_only: bool,
    /// It can be mounted on several nodes at once.
    pub shared: bool,
    /// From which nodes its volume can be reached; absent when its volume does not say.
    pub nodes: Option<NodeSelector>,
}

/// A pod that could write to a claim although nobody would stop it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    pub claim: String,
    pub pod: String,
    /// The pod's controller as `replicaset/memoria-5d9`, when it has one.
    pub of: Option<String>,
}

/// The claim for snapshots, if it exists.
#[derive(Clone, Debug, PartialEq)]
pub struct StorageFound {
    pub claim: String,
    /// Where its volume can be reached; absent while it has none, or when that does not say.
    pub nodes: Option<NodeSelector>,
}

/// Reads what the Server's container mounts. `known` are the pods of the release's workloads, by UID.
pub(super) async fn read(
    client: &Client,
    ns: &str,
    server: &AdoptedTarget,
    known: &[&str],
) -> Result<ServerData, ClusterError> {
    let spec = server.workload.template.spec.as_ref();
    let volumes = spec.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let templates: Vec<&str> =
        server.workload.claim_templates.iter().filter_map(|t| t.metadata.name.as_deref()).collect();
    let mounts = server.spec().and_then(|c| c.volume_mounts.as_deref()).unwrap_or_default();
    let found = mounts.iter().map(async |mount| {
        let what = match source(&server.workload.workload, mount, volumes, &templates) {
            Source::Claim { name, read_only } => claim(client, ns, mount, &name, read_only).await?,
            Source::Unfit { claim, why } => Behind::Unfit { claim, why },
            Source::Other(kind) => Behind::Other(kind),
        };
        Ok::<_, ClusterError>(Mounted { mount_path: mount.mount_path.clone(), what })
    });
    let mounts = try_join_all(found).await?;
    let claims: Vec<&str> = mounts.iter().filter_map(Mounted::claim_name).collect();
    let strangers = match claims.is_empty() {
        true => Vec::new(),
        false => {
            let api: Api<Pod> = Api::namespaced(client.clone(), ns);
            let pods = bounded("list the pods of", ns, api.list(&ListParams::default())).await?.items;
            strangers(&pods, &claims, known)
        }
    };
    let running = server.workload.seen.pods.iter().filter(|pod| !pod.deleting);
    let node = running.filter_map(|pod| pod.node.clone()).next();
    Ok(ServerData { mounts, node, strangers })
}

/// Where the claim for snapshots is bound to, if they are kept on one.
pub(super) async fn storage(
    client: &Client,
    ns: &str,
    name: Option<&str>,
) -> Result<Option<StorageFound>, ClusterError> {
    let Some(name) = name else { return Ok(None) };
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), ns);
    let Some(claim) = bounded("read", format!("persistentvolumeclaim/{name}"), api.get_opt(name)).await? else {
        return Ok(None);
    };
    let nodes = nodes_of(client, claim.spec.as_ref()).await?;
    Ok(Some(StorageFound { claim: name.to_owned(), nodes }))
}

impl Mounted {
    /// The claim's name, fit or not.
    pub fn claim_name(&self) -> Option<&str> {
        match &self.what {
            Behind::Claim(claim) => Some(&claim.volume.claim_name),
            Behind::Unfit { claim, .. } => Some(claim),
            Behind::Other(_) => None,
        }
    }
}

enum Source {
    Claim { name: String, read_only: bool },
    Unfit { claim: String, why: String },
    Other(String),
}

/// What a mount's volume is, from the pod template alone.
fn source(workload: &WorkerRef, mount: &VolumeMount, volumes: &[Volume], templates: &[&str]) -> Source {
    let read_only = mount.read_only == Some(true);
    let path = &mount.mount_path;
    // As the StatefulSet controller does it: a claim template replaces a volume of its name.
    if workload.kind == WorkerKind::StatefulSet && templates.contains(&mount.name.as_str()) {
        return fit(mount, format!("{}-{}-0", mount.name, workload.name), read_only);
    }
    let Some(volume) = volumes.iter().find(|volume| volume.name == mount.name) else {
        return Source::Other(format!("no volume (there is none named {:?})", mount.name));
    };
    if let Some(claim) = &volume.persistent_volume_claim {
        return fit(mount, claim.claim_name.clone(), read_only || claim.read_only == Some(true));
    }
    if volume.ephemeral.is_some() {
        return Source::Unfit {
            claim: format!("<pod>-{}", volume.name),
            why: format!(
                "volume {:?} of {workload} (at {path}) is ephemeral: its claim ends with the pod, and stopping the \
                 Server would delete the data; copy it to a claim of its own and mount that",
                volume.name
            ),
        };
    }
    let kind = [
        (volume.empty_dir.is_some(), "emptyDir"),
        (volume.host_path.is_some(), "hostPath"),
        (volume.config_map.is_some(), "configMap"),
        (volume.secret.is_some(), "secret"),
        (volume.projected.is_some(), "projected"),
        (volume.nfs.is_some(), "nfs"),
        (volume.csi.is_some(), "inline csi"),
    ];
    let kind = kind.into_iter().find(|(is, _)| *is).map_or("other", |(_, kind)| kind);
    Source::Other(format!("{kind} volume {:?}", volume.name))
}

fn fit(mount: &VolumeMount, name: String, read_only: bool) -> Source {
    let path = &mount.mount_path;
    if let Some(expression) = &mount.sub_path_expr {
        let why = format!(
            "the mount at {path} of claim {name} has subPathExpr {expression:?}, which only the Server's own pod can \
             expand; write the directory into subPath"
        );
        return Source::Unfit { claim: name, why };
    }
    if OWN_MOUNTS.contains(&path.trim_end_matches('/')) {
        let why = format!(
            "claim {name} is mounted at {path}, where the operator's Jobs have a volume of their own; mount it \
             elsewhere, e.g. at /data"
        );
        return Source::Unfit { claim: name, why };
    }
    Source::Claim { name, read_only }
}

async fn claim(
    client: &Client,
    ns: &str,
    mount: &VolumeMount,
    name: &str,
    read_only: bool,
) -> Result<Behind, ClusterError> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), ns);
    let found = bounded("read", format!("persistentvolumeclaim/{name}"), api.get_opt(name)).await?;
    let unfit = |why: String| Behind::Unfit { claim: name.to_owned(), why };
    let Some(found) = found else {
        return Ok(unfit(format!("persistentvolumeclaim/{name} does not exist; create it, or correct the volume")));
    };
    if let Some(why) = problem(name, &found) {
        return Ok(unfit(why));
    }
    let modes = found.spec.as_ref().and_then(|spec| spec.access_modes.clone()).unwrap_or_default();
    Ok(Behind::Claim(Box::new(DataClaim {
        volume: DataVolume {
            claim_name: name.to_owned(),
            claim_uid: found.uid().unwrap_or_default(),
            mount_path: mount.mount_path.clone(),
            sub_path: mount.sub_path.clone(),
        },
        read_only,
        shared: modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany"),
        nodes: nodes_of(client, found.spec.as_ref()).await?,
    })))
}

/// Why no Job can mount a claim.
fn problem(name: &str, claim: &PersistentVolumeClaim) -> Option<String> {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() {
        return Some(format!(
            "persistentvolumeclaim/{name} is being deleted and goes as soon as the Server stops; copy its data to \
             another claim"
        ));
    }
    if phase != "Bound" {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let see = Command::ShowClaim { claim: name }.in_namespace(namespace);
        return Some(format!("persistentvolumeclaim/{name} is {phase}, not Bound, so it holds no data; see {see}"));
    }
    modes.iter().any(|mode| mode == "ReadWriteOncePod").then(|| {
        format!(
            "persistentvolumeclaim/{name} is ReadWriteOncePod: no Job can look at the data beside the Server; move the \
             data to a claim with accessModes [ReadWriteOnce]"
        )
    })
}

/// The nodes that reach a claim's volume. Whoever may not read volumes does not know it; the scheduler does anyway.
async fn nodes_of(
    client: &Client,
    claim: Option<&PersistentVolumeClaimSpec>,
) -> Result<Option<NodeSelector>, ClusterError> {
    let Some(name) = claim.and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let api: Api<PersistentVolume> = Api::all(client.clone());
    match bounded("read", format!("persistentvolume/{name}"), api.get_opt(name)).await {
        Ok(volume) => Ok(volume.and_then(|v| v.spec).and_then(|s| s.node_affinity).and_then(|a| a.required)),
        Err(error) if error.kind == Kind::Refused => {
            tracing::debug!(%error, "the volume's nodes are not known");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Pods that mount one of the claims for writing, and that no workload of the release owns. Our own Jobs are none.
fn strangers(pods: &[Pod], claims: &[&str], known: &[&str]) -> Vec<Stranger> {
    let mut found = Vec::new();
    for pod in pods {
        let known = pod.metadata.uid.as_deref().is_some_and(|uid| known.contains(&uid));
        if known || pods::has_ended(pod) || pod.labels().contains_key(RELEASE_LABEL) {
            continue;
        }
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for claim in volumes.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
            if claim.read_only != Some(true) && claims.contains(&claim.claim_name.as_str()) {
                let of = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
                found.push(Stranger {
                    claim: claim.claim_name.clone(),
                    pod: pod.name_any(),
                    of: of.map(|owner| format!("{}/{}", owner.kind.to_lowercase(), owner.name)),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume, VolumeMount};
    use serde_json::{Value, json};

    use super::{Source, problem, source, strangers};
    use crate::api::release::{WorkerKind, WorkerRef};

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn found(kind: WorkerKind, mount: Value) -> String {
        let volumes: Vec<Volume> = read(json!([
            {"name": "data", "persistentVolumeClaim": {"claimName": "memoria-data"}},
            {"name": "lent", "persistentVolumeClaim": {"claimName": "lent", "readOnly": true}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "generic", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]));
        let workload = WorkerRef { kind, name: "memoria".to_owned() };
        let mount: VolumeMount = read(mount);
        match source(&workload, &mount, &volumes, &["data"]) {
            Source::Claim { name, read_only } => format!("{name}{}", if read_only { " read-only" } else { "" }),
            Source::Unfit { why, .. } => why,
            Source::Other(what) => what,
        }
    }

    #[test]
    fn a_claim_is_found_by_its_name_or_by_that_of_the_statefulsets_template() {
        let data = json!({"name": "data", "mountPath": "/data"});
        assert_eq!(found(WorkerKind::Deployment, data.clone()), "memoria-data");
        assert_eq!(found(WorkerKind::StatefulSet, data), "data-memoria-0");
        let lent = json!({"name": "lent", "mountPath": "/lent"});
        assert_eq!(found(WorkerKind::Deployment, lent), "lent read-only");
        assert_eq!(found(WorkerKind::Deployment, json!({"name": "tmp", "mountPath": "/x"})), "emptyDir volume \"tmp\"");
    }

    #[test]
    fn a_mount_that_no_job_can_repeat_says_what_to_do() {
        let deployment = |mount| found(WorkerKind::Deployment, mount);
        let said = deployment(json!({"name": "data", "mountPath": "/data", "subPathExpr": "$(POD_NAME)"}));
        assert!(said.contains("subPathExpr") && said.contains("memoria-data") && said.contains("subPath"), "{said}");
        assert!(deployment(json!({"name": "data", "mountPath": "/tmp/"})).contains("mount it elsewhere"));
        assert!(deployment(json!({"name": "generic", "mountPath": "/data"})).contains("ephemeral"));
    }

    #[test]
    fn only_a_bound_claim_that_two_pods_may_mount_is_fit() {
        let claim = |modes: Value, phase: &str| -> PersistentVolumeClaim {
            read(json!({"metadata": {"name": "d"}, "spec": {"accessModes": modes}, "status": {"phase": phase}}))
        };
        assert_eq!(problem("d", &claim(json!(["ReadWriteOnce"]), "Bound")), None);
        assert_eq!(problem("d", &claim(json!(["ReadWriteMany"]), "Bound")), None);
        let said = problem("d", &claim(json!(["ReadWriteOncePod"]), "Bound")).unwrap();
        assert!(said.contains("persistentvolumeclaim/d is ReadWriteOncePod") && said.contains("[ReadWriteOnce]"));
        assert!(problem("d", &claim(json!(["ReadWriteOnce"]), "Lost")).unwrap().contains("Lost, not Bound"));
    }

    #[test]
    fn only_pods_that_nobody_would_stop_are_strangers() {
        let pod = |name: &str, labels: Value, read_only: bool, phase: &str| -> Pod {
            read(json!({"metadata": {"name": name, "uid": name, "labels": labels}, "status": {"phase": phase},
                "spec": {"containers": [], "volumes": [
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data", "readOnly": read_only}}]}}))
        };
        let pods = [
            pod("server", json!({}), false, "Running"),
            pod("backup", json!({}), true, "Running"),
            pod("done", json!({}), false, "Succeeded"),
            pod("inspect", json!({"memoria.arca.run/release": "memoria"}), false, "Running"),
            pod("shell", json!({}), false, "Running"),
        ];
        let names: Vec<_> = strangers(&pods, &["data"], &["server"]).into_iter().map(|s| s.pod).collect();
        assert_eq!(names, ["shell"]);
    }
}
