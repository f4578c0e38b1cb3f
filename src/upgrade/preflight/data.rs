//! A database that is a file: which of the Server's claims holds it, on which nodes the Jobs that open it must run, and
//! why it cannot be upgraded. What the pod template shows is judged before any Job, the rest by what Inspect found.

use k8s_openapi::api::core::v1::NodeSelector;

use super::{Question, target::Wanted};
use crate::{
    api::{MemoriaReleaseSpec, upgrade::Engine},
    cluster::adopt::{Behind, DataClaim, Mounted, ServerData, Stranger},
    commands::Command,
    job::{
        manifest::{DataMount, PodShape, UrlSeen, both, excludes_all, in_words, node_named},
        protocol::InspectFacts,
    },
};

/// What Inspect is to mount.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub mounts: Vec<DataMount>,
    pub nodes: Option<NodeSelector>,
    /// Why claims of the Server are not among them: it matters only if the file lies there.
    pub unfit: Vec<String>,
}

/// The file's place, once Inspect has found it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct File {
    pub mount: DataMount,
    pub nodes: Option<NodeSelector>,
    pub path: String,
}

/// What Inspect is to mount, or why there is no use in asking it.
pub(super) fn before(question: &Question<'_>, server: &Wanted<'_>, shape: &PodShape) -> Result<Before, String> {
    let (spec, data) = (&question.release.spec, &question.adopted.data);
    let wanted = wanted_claim(spec);
    if let UrlSeen::Unknown(scheme) = &shape.url {
        return Err(format!(
            "the database URL of container {} has the scheme {scheme:?}, and the operator upgrades PostgreSQL and SQLite \
             only; correct it to postgresql://… or sqlite:////…, or upgrade this Memoria by hand",
            server.found.container
        ));
    }
    if shape.url == UrlSeen::Server {
        return match wanted {
            Some(claim) => Err(format!(
                "database.sqlite.claimName is {claim}, but the Server's URL names a database server; remove \
                 database.sqlite"
            )),
            None => Ok(Before::default()),
        };
    }
    if let Some(claim) = wanted
        && !data.mounts.iter().any(|mount| mount.claim_name() == Some(claim))
    {
        return Err(not_mounted(claim, server, data));
    }
    let many = too_many(question, server);
    if let UrlSeen::Sqlite(path) = &shape.url {
        if let Some(why) = many {
            return Err(why);
        }
        if let Some(path) = path {
            let holder = holder(path, shape, server, data)?;
            agrees(wanted, &holder.volume.claim_name, path)?;
            unstopped(data, &holder.volume.claim_name)?;
        }
    }
    let mut found = Before::default();
    let mut on_one_node = false;
    for mount in data.mounts.iter().filter(|mount| wanted.is_none() || mount.claim_name() == wanted) {
        match &mount.what {
            // Of several pods each may have its own idea of the file; there is none that a Job could look at.
            Behind::Claim(_) if many.is_some() => {}
            Behind::Claim(claim) => {
                found.mounts.push(mounted(claim));
                found.nodes = joined(found.nodes, claim.nodes.as_ref());
                on_one_node |= !claim.shared;
            }
            Behind::Unfit { why, .. } => found.unfit.push(why.clone()),
            Behind::Other(_) => {}
        }
    }
    if on_one_node && let Some(node) = &data.node {
        // The Server has the volume attached while Inspect runs.
        found.nodes = joined(found.nodes, Some(&node_named(node)));
    }
    found.unfit.extend(many);
    Ok(found)
}

/// Where the file lies by Inspect's own finding; nothing for a database server.
pub(super) fn after(
    question: &Question<'_>,
    server: &Wanted<'_>,
    facts: &InspectFacts,
) -> Result<Option<File>, String> {
    let (spec, data) = (&question.release.spec, &question.adopted.data);
    if facts.engine != Engine::Sqlite {
        return match wanted_claim(spec) {
            Some(claim) => Err(format!(
                "database.sqlite.claimName is {claim}, but the database is PostgreSQL; remove database.sqlite"
            )),
            None => Ok(None),
        };
    }
    let (Some(volume), Some(path)) = (&facts.data_volume, &facts.path) else {
        return Err("the inspection did not say on which volume the SQLite file lies; see its output".to_owned());
    };
    if let Some(why) = too_many(question, server) {
        return Err(why);
    }
    let claims = data.mounts.iter().filter_map(|mount| match &mount.what {
        Behind::Claim(claim) => Some(claim.as_ref()),
        _ => None,
    });
    let Some(claim) = claims.into_iter().find(|claim| claim.volume == *volume) else {
        return Err(format!(
            "the file {path} was found on claim {} at {}, which container {} does not mount so any more; ask again",
            volume.claim_name, volume.mount_path, server.found.container
        ));
    };
    agrees(wanted_claim(spec), &volume.claim_name, path)?;
    unstopped(data, &volume.claim_name)?;
    let seen = data.node.as_deref().filter(|_| !claim.shared).map(node_named);
    let nodes = claim.nodes.clone().or(seen);
    let storage = question.adopted.storage.as_ref().and_then(|found| Some((&found.claim, found.nodes.as_ref()?)));
    if let (Some(nodes), Some((name, there))) = (&nodes, storage)
        && excludes_all(&both(nodes, there))
    {
        return Err(format!(
            "persistentvolumeclaim/{name} for snapshots is bound to {}, but the data on persistentvolumeclaim/{} is \
             reached from {} only: no pod can mount both; name a claim there in spec.snapshot.storage",
            in_words(there),
            volume.claim_name,
            in_words(nodes)
        ));
    }
    Ok(Some(File { mount: mounted(claim), nodes, path: path.clone() }))
}

fn wanted_claim(spec: &MemoriaReleaseSpec) -> Option<&str> {
    spec.database.sqlite.as_ref().map(|sqlite| sqlite.claim_name.as_str())
}

fn mounted(claim: &DataClaim) -> DataMount {
    DataMount { volume: claim.volume.clone(), read_only: claim.read_only }
}

fn joined(nodes: Option<NodeSelector>, more: Option<&NodeSelector>) -> Option<NodeSelector> {
    match (nodes, more) {
        (Some(nodes), Some(more)) => Some(both(&nodes, more)),
        (nodes, more) => nodes.or_else(|| more.cloned()),
    }
}

fn not_mounted(claim: &str, server: &Wanted<'_>, data: &ServerData) -> String {
    let names: Vec<_> = data.mounts.iter().filter_map(Mounted::claim_name).collect();
    format!(
        "database.sqlite.claimName is {claim}, but container {} of {} mounts {}; correct it, or remove database.sqlite",
        server.found.container,
        server.found.workload.workload,
        if names.is_empty() { "no claim".to_owned() } else { format!("only {}", names.join(", ")) }
    )
}

/// SQLite has one writer's host; several pods would only seem to share the file.
fn too_many(question: &Question<'_>, server: &Wanted<'_>) -> Option<String> {
    let (workload, replicas) = (server.found.workload.workload.to_string(), server.found.workload.seen.replicas);
    let namespace = question.release.metadata.namespace.as_deref().unwrap_or_default();
    (replicas > 1).then(|| {
        let run = Command::OneReplica { workload: &workload }.in_namespace(namespace);
        format!("{workload} has {replicas} replicas, but an SQLite file belongs to one pod; run {run}")
    })
}

/// The claim at a path that the template shows.
fn holder<'a>(
    path: &str,
    shape: &PodShape,
    server: &Wanted<'_>,
    data: &'a ServerData,
) -> Result<&'a DataClaim, String> {
    let container = &server.found.container;
    if path.is_empty() || path == ":memory:" {
        return Err(format!(
            "the database URL of container {container} is an SQLite database in memory, which holds nothing to \
             upgrade; put it into a file on a claim, e.g. sqlite:////data/memoria.db"
        ));
    }
    let absolute = match (path.starts_with('/'), &shape.working_dir) {
        (true, _) => path.to_owned(),
        (false, Some(directory)) => format!("{}/{path}", directory.trim_end_matches('/')),
        (false, None) => {
            return Err(format!(
                "the database URL of container {container} has the relative path {path:?}, and the container no \
                 workingDir, so only its image knows where the file is; write the whole path, with four slashes \
                 (sqlite:////data/{path}), or set workingDir"
            ));
        }
    };
    let inside = |mount: &&Mounted| {
        let root = mount.mount_path.trim_end_matches('/');
        absolute.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
    };
    let behind = data.mounts.iter().filter(inside).max_by_key(|mount| mount.mount_path.trim_end_matches('/').len());
    match behind.map(|mount| (&mount.what, &mount.mount_path)) {
        Some((Behind::Claim(claim), _)) => Ok(claim),
        Some((Behind::Unfit { why, .. }, _)) => Err(why.clone()),
        Some((Behind::Other(what), at)) => Err(format!(
            "the SQLite file {absolute} of container {container} lies on {what} at {at}, not on a \
             PersistentVolumeClaim: it would be lost as soon as the Server stops; copy it to a claim and mount that \
             there"
        )),
        None => Err(format!(
            "the SQLite file {absolute} of container {container} lies on none of its volumes: it would be lost as soon \
             as the Server stops; copy it to a claim, mount that, and let the URL name it"
        )),
    }
}

fn agrees(wanted: Option<&str>, found: &str, path: &str) -> Result<(), String> {
    match wanted {
        Some(wanted) if wanted != found => Err(format!(
            "database.sqlite.claimName is {wanted}, but the SQLite file {path} lies on claim {found}; correct \
             the one or the database URL"
        )),
        _ => Ok(()),
    }
}

/// With a file there is no server that would say who else writes: whoever mounts it may.
fn unstopped(data: &ServerData, claim: &str) -> Result<(), String> {
    let named = |stranger: &Stranger| match &stranger.of {
        Some(of) => format!("pod {} (of {of})", stranger.pod),
        None => format!("pod {}", stranger.pod),
    };
    let names: Vec<_> = data.strangers.iter().filter(|s| s.claim == claim).map(named).take(5).collect();
    match names.as_slice() {
        [] => Ok(()),
        names => Err(format!(
            "{} mounts claim {claim}, which holds the database, and belongs to no workload of this release, so nothing \
             would stop it; name its workload in ingestion.workers, mount the claim read-only there, or remove the pod",
            names.join(", ")
        )),
    }
}
