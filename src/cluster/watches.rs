//! What wakes the reconciler: changes to all that a release consists of, as references to releases. Nothing is kept:
//! almost all watches are of metadata only, and no object outlives its event.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
};

use futures::{
    Stream, StreamExt,
    future::ready,
    stream::{BoxStream, SelectAll, iter, select_all, unfold},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        batch::v1::Job,
        core::v1::{ConfigMap, Pod},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store},
        watcher::{self, Config, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::{oneshot, watch};

use crate::api::{
    MemoriaDecision, MemoriaRelease, MemoriaUpgrade,
    marks::RELEASE_LABEL,
    release::{WorkloadKind, WorkloadRef},
};

/// The release to reconcile.
pub type ReleaseRef = ObjectRef<MemoriaRelease>;

/// Where releases are looked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    All,
    Only(Vec<String>),
}

impl Namespaces {
    /// The APIs to watch: one for the whole cluster, or one for each namespace.
    pub fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::All => vec![Api::all(client.clone())],
            Self::Only(names) => names.iter().map(|ns| Api::namespaced(client.clone(), ns)).collect(),
        }
    }
}

/// Releases with an open attempt, as the reconciler knows them: only their namespaces have a watch on all pods.
#[derive(Clone, Debug)]
pub struct OpenAttempts(Arc<watch::Sender<BTreeSet<(String, String)>>>);

impl Default for OpenAttempts {
    fn default() -> Self {
        Self(Arc::new(watch::channel(BTreeSet::new()).0))
    }
}

impl OpenAttempts {
    /// Says whether a release has an open attempt. Repeating it costs nothing.
    pub fn set(&self, ns: &str, release: &str, open: bool) {
        let key = (ns.to_owned(), release.to_owned());
        self.0.send_if_modified(|all| if open { all.insert(key) } else { all.remove(&key) });
    }

    fn releases_in(&self, ns: &str) -> Vec<String> {
        self.0.borrow().iter().filter(|(n, _)| n == ns).map(|(_, name)| name.clone()).collect()
    }
}

/// Everything that wakes the reconciler, for `Controller::reconcile_on`. `releases` is the controller's own store.
pub fn triggers(
    client: &Client,
    namespaces: &Namespaces,
    releases: &Store<MemoriaRelease>,
    open: &OpenAttempts,
) -> impl Stream<Item = ReleaseRef> + Send + 'static {
    let mut all: Vec<BoxStream<'static, ReleaseRef>> = Vec::new();
    let labelled = Config::default().labels(RELEASE_LABEL);
    all.extend(
        namespaces.apis::<PartialObjectMeta<Job>>(client).into_iter().map(|api| by_label(api, labelled.clone())),
    );
    all.extend(
        namespaces.apis::<PartialObjectMeta<Pod>>(client).into_iter().map(|api| by_label(api, labelled.clone())),
    );
    all.extend(
        namespaces
            .apis::<PartialObjectMeta<MemoriaUpgrade>>(client)
            .into_iter()
            .map(|api| by_label(api, labelled.clone())),
    );
    all.extend(namespaces.apis::<MemoriaDecision>(client).into_iter().map(decisions));
    for api in namespaces.apis::<PartialObjectMeta<Deployment>>(client) {
        all.push(by_name(api, releases.clone(), |release, name| {
            names_workload(release, WorkloadKind::Deployment, name)
        }));
    }
    for api in namespaces.apis::<PartialObjectMeta<StatefulSet>>(client) {
        all.push(by_name(api, releases.clone(), |release, name| {
            names_workload(release, WorkloadKind::StatefulSet, name)
        }));
    }
    for api in namespaces.apis::<PartialObjectMeta<ConfigMap>>(client) {
        all.push(by_name(api, releases.clone(), names_flag));
    }
    all.push(pods_of_open_attempts(client, releases.clone(), open.clone()));
    select_all(all)
}

/// Metadata of what changed, deletions included. A broken watch is taken up again, ever more slowly.
fn touched<K>(
    api: Api<PartialObjectMeta<K>>,
    config: Config,
) -> impl Stream<Item = PartialObjectMeta<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config).default_backoff().touched_objects().filter_map(|result| ready(told(result)))
}

fn told<T>(result: Result<T, watcher::Error>) -> Option<T> {
    result
        .inspect_err(|error| tracing::warn!(error = super::error::chain(error), "a watch broke; it is taken up again"))
        .ok()
}

/// Objects of ours bear their release's name.
fn by_label<K>(api: Api<PartialObjectMeta<K>>, config: Config) -> BoxStream<'static, ReleaseRef>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    touched(api, config).filter_map(|object| ready(labelled_release(&object))).boxed()
}

fn labelled_release(object: &impl ResourceExt) -> Option<ReleaseRef> {
    let release = object.labels().get(RELEASE_LABEL)?;
    Some(ObjectRef::new(release).within(&object.namespace()?))
}

/// People write decisions: only the spec says which release is meant.
fn decisions(api: Api<MemoriaDecision>) -> BoxStream<'static, ReleaseRef> {
    watcher(api, Config::default())
        .default_backoff()
        .touched_objects()
        .filter_map(|result| {
            let decision = told(result);
            ready(decision.and_then(|d| Some(ObjectRef::new(&d.spec.release_name).within(&d.namespace()?))))
        })
        .boxed()
}

/// Objects of others, which a release names in its spec.
fn by_name<K>(
    api: Api<PartialObjectMeta<K>>,
    releases: Store<MemoriaRelease>,
    names: impl Fn(&MemoriaRelease, &str) -> bool + Send + 'static,
) -> BoxStream<'static, ReleaseRef>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    touched(api, Config::default())
        .flat_map(move |object| {
            let (ns, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let named =
                releases.state().into_iter().filter(|r| r.metadata.namespace.as_ref() == Some(&ns) && names(r, &name));
            iter(named.map(|r| ObjectRef::from_obj(&*r)).collect::<Vec<_>>())
        })
        .boxed()
}

fn workloads(release: &MemoriaRelease) -> impl Iterator<Item = &WorkloadRef> {
    release.spec.targets.iter().map(|t| &t.workload_ref).chain(&release.spec.ingestion.workers)
}

fn names_workload(release: &MemoriaRelease, kind: WorkloadKind, name: &str) -> bool {
    workloads(release).any(|w| w.kind == kind && w.name == name)
}

fn names_flag(release: &MemoriaRelease, name: &str) -> bool {
    release.spec.ingestion.maintenance_flag.as_ref().is_some_and(|f| f.config_map_key_ref.name == name)
}

/// Kubernetes names pods after their workload, and cuts long names here before it adds a suffix.
const GENERATED_NAME: usize = 40;

/// Whether a pod of this name may belong to one of the release's workloads. Too many is harmless: it only wakes.
fn may_own(release: &MemoriaRelease, pod: &str) -> bool {
    workloads(release).any(|w| {
        let start = &w.name[..w.name.floor_char_boundary(GENERATED_NAME)];
        pod.strip_prefix(start).is_some_and(|rest| start.len() < w.name.len() || rest.starts_with('-'))
    })
}

/// Pods of targets and workers, watched in a namespace only while an attempt is open there.
fn pods_of_open_attempts(
    client: &Client,
    releases: Store<MemoriaRelease>,
    open: OpenAttempts,
) -> BoxStream<'static, ReleaseRef> {
    let state = PodWatches {
        client: client.clone(),
        wanted: open.0.subscribe(),
        running: BTreeMap::new(),
        streams: SelectAll::new(),
    };
    unfold(state, PodWatches::next)
        .flat_map(move |pod| {
            let (ns, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let woken = open.releases_in(&ns).into_iter().map(|release| ObjectRef::new(&release).within(&ns));
            let woken = woken.filter(|r| releases.get(r).is_none_or(|release| may_own(&release, &name)));
            iter(woken.collect::<Vec<ReleaseRef>>())
        })
        .boxed()
}

struct PodWatches {
    client: Client,
    wanted: watch::Receiver<BTreeSet<(String, String)>>,
    /// Dropping the sender ends that namespace's watch.
    running: BTreeMap<String, oneshot::Sender<()>>,
    streams: SelectAll<BoxStream<'static, PartialObjectMeta<Pod>>>,
}

impl PodWatches {
    async fn next(mut self) -> Option<(PartialObjectMeta<Pod>, Self)> {
        loop {
            self.adjust();
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                }
                Some(pod) = self.streams.next() => return Some((pod, self)),
            }
        }
    }

    /// Ends watches that nobody needs and begins those that are missing.
    fn adjust(&mut self) {
        let wanted: BTreeSet<String> = self.wanted.borrow_and_update().iter().map(|(ns, _)| ns.clone()).collect();
        self.running.retain(|ns, _| wanted.contains(ns));
        for ns in wanted {
            self.running.entry(ns).or_insert_with_key(|ns| {
                let (stop, stopped) = oneshot::channel();
                let pods =
                    touched(Api::<PartialObjectMeta<Pod>>::namespaced(self.client.clone(), ns), Config::default());
                self.streams.push(pods.take_until(stopped).boxed());
                stop
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::{ResourceExt, core::PartialObjectMeta};
    use serde_json::json;

    use super::{OpenAttempts, labelled_release, may_own, names_flag, names_workload};
    use crate::api::{MemoriaRelease, release::WorkloadKind};

    fn release(worker: &str) -> MemoriaRelease {
        serde_json::from_value(json!({
            "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaRelease", "metadata": {"name": "memoria", "namespace": "prod"},
            "spec": {"version": "1.0.1",
                "targets": [{"name": "server", "role": "Server", "workloadRef": {"kind": "Deployment", "name": "memoria"}}],
                "ingestion": {"workers": [{"kind": "StatefulSet", "name": worker}],
                    "maintenanceFlag": {"configMapKeyRef": {"name": "flags", "key": "maintenance"}}}}
        }))
        .unwrap()
    }

    #[test]
    fn a_release_is_woken_by_what_it_names_and_nothing_else() {
        let r = release("worker");
        assert!(
            names_workload(&r, WorkloadKind::Deployment, "memoria")
                && names_workload(&r, WorkloadKind::StatefulSet, "worker")
        );
        assert!(!names_workload(&r, WorkloadKind::StatefulSet, "memoria"));
        assert!(names_flag(&r, "flags") && !names_flag(&r, "other"));
        assert!(may_own(&r, "memoria-7d9c6b5f4-x2k8p") && may_own(&r, "worker-0"));
        assert!(!may_own(&r, "memoriadb-0") && !may_own(&r, "other-0"));
    }

    #[test]
    fn pods_of_workloads_with_long_names_are_known_by_their_start() {
        let long = "w".repeat(60);
        assert!(may_own(&release(&long), &format!("{}-abcde", &long[..52])));
    }

    #[test]
    fn objects_of_ours_lead_to_their_release() {
        let job: PartialObjectMeta<k8s_openapi::api::batch::v1::Job> = serde_json::from_value(
            json!({"metadata": {"name": "j", "namespace": "prod", "labels": {"memoria.arca.run/release": "memoria"}}}),
        )
        .unwrap();
        let found = labelled_release(&job).unwrap();
        assert_eq!((found.name.as_str(), found.namespace.as_deref()), ("memoria", Some("prod")));
        assert_eq!(job.name_any(), "j");
    }

    #[test]
    fn open_attempts_are_kept_by_namespace() {
        let open = OpenAttempts::default();
        let mut seen = open.0.subscribe();
        open.set("prod", "memoria", true);
        assert!(seen.has_changed().unwrap());
        seen.mark_unchanged();
        open.set("prod", "memoria", true);
        assert!(!seen.has_changed().unwrap());
        assert_eq!(open.releases_in("prod"), ["memoria"]);
        open.set("prod", "memoria", false);
        assert!(open.releases_in("prod").is_empty());
    }
}
