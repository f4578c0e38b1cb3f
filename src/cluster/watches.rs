//! What wakes the reconciler: changes to all that a release consists of, as references to releases. Almost all
//! watches are of metadata only, and no object outlives its event; kept are the UIDs of attempts and a hash of what was
//! asked of each release, so that what the reconciler itself wrote does not wake it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
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
        batch::v1::{CronJob, Job},
        core::v1::{ConfigMap, Pod},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
    core::PartialObjectMeta,
    runtime::{
        Predicate, WatchStreamExt, predicates,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Config, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::{oneshot, watch};

use super::worker::scaled_objects;
use crate::api::{
    MemoriaDecision, MemoriaRelease, MemoriaUpgrade,
    marks::RELEASE_LABEL,
    release::{WorkerKind, WorkerRef},
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

    /// The same for a kind that is known by name only.
    fn dynamic_apis(&self, client: &Client, resource: &ApiResource) -> Vec<Api<PartialObjectMeta<DynamicObject>>> {
        match self {
            Self::All => vec![Api::all_with(client.clone(), resource)],
            Self::Only(names) => names.iter().map(|ns| Api::namespaced_with(client.clone(), ns, resource)).collect(),
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
    // All Jobs, not only ours: workers may be Jobs, and CronJobs make some.
    for api in namespaces.apis::<PartialObjectMeta<Job>>(client) {
        all.push(jobs(api, releases.clone()));
    }
    all.extend(
        namespaces.apis::<PartialObjectMeta<Pod>>(client).into_iter().map(|api| by_label(api, labelled.clone())),
    );
    for api in namespaces.apis::<PartialObjectMeta<MemoriaUpgrade>>(client) {
        all.push(attempts(api, labelled.clone()));
    }
    all.extend(namespaces.apis::<MemoriaDecision>(client).into_iter().map(decisions));
    for api in namespaces.apis::<PartialObjectMeta<Deployment>>(client) {
        all.push(by_name(api, releases.clone(), |release, name| names(release, WorkerKind::Deployment, name)));
    }
    for api in namespaces.apis::<PartialObjectMeta<StatefulSet>>(client) {
        all.push(by_name(api, releases.clone(), |release, name| names(release, WorkerKind::StatefulSet, name)));
    }
    for api in namespaces.apis::<PartialObjectMeta<CronJob>>(client) {
        all.push(by_name(api, releases.clone(), |release, name| names(release, WorkerKind::CronJob, name)));
    }
    all.extend(
        namespaces.dynamic_apis(client, &scaled_objects()).into_iter().map(|api| optional(api, releases.clone())),
    );
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

/// Attempts that come into being or go. Their journals are the reconciler's own, and no news to it.
fn attempts(api: Api<PartialObjectMeta<MemoriaUpgrade>>, config: Config) -> BoxStream<'static, ReleaseRef> {
    let mut known = BTreeSet::new();
    watcher(api, config)
        .default_backoff()
        .filter_map(move |event| {
            let news = match told(event) {
                Some(Event::Apply(attempt) | Event::InitApply(attempt)) => {
                    known.insert(attempt.metadata.uid.clone()).then_some(attempt)
                }
                Some(Event::Delete(attempt)) => {
                    known.remove(&attempt.metadata.uid);
                    Some(attempt)
                }
                Some(Event::Init | Event::InitDone) | None => None,
            };
            ready(news.and_then(|attempt| labelled_release(&attempt)))
        })
        .boxed()
}

/// Releases, where something was asked of them. Their status is the reconciler's own, and no news to it.
pub fn asked(
    api: Api<MemoriaRelease>,
    kept: Writer<MemoriaRelease>,
) -> impl Stream<Item = Result<MemoriaRelease, watcher::Error>> + Send + 'static {
    let spoken = predicates::generation.combine(predicates::annotations).combine(predicates::finalizers);
    watcher(api, Config::default())
        .default_backoff()
        .reflect(kept)
        .applied_objects()
        .predicate_filter(spoken, Default::default())
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

/// Jobs of ours by their label, and those of others that are workers, or that a worker made.
fn jobs(api: Api<PartialObjectMeta<Job>>, releases: Store<MemoriaRelease>) -> BoxStream<'static, ReleaseRef> {
    touched(api, Config::default())
        .flat_map(move |job| {
            let (ns, name) = (job.namespace().unwrap_or_default(), job.name_any());
            let mut woken: Vec<ReleaseRef> = labelled_release(&job).into_iter().collect();
            let others = releases.state().into_iter().filter(|r| r.metadata.namespace.as_ref() == Some(&ns));
            let others = others.filter(|r| names(r, WorkerKind::Job, &name) || may_have_made(r, &name));
            woken.extend(others.map(|r| ObjectRef::from_obj(&*r)));
            iter(woken)
        })
        .boxed()
}

/// How often it is looked whether a kind that a release names has come into being, or is gone.
const LOOK_FOR_KIND: Duration = Duration::from_secs(30);

/// Objects of a kind that the cluster may not have. It is asked for only while a release names one; a cluster without it
/// is no error.
fn optional(
    api: Api<PartialObjectMeta<DynamicObject>>,
    releases: Store<MemoriaRelease>,
) -> BoxStream<'static, ReleaseRef> {
    let wanted = releases.clone();
    let found = unfold(Duration::ZERO, move |mut pause| {
        let (api, wanted) = (api.clone(), wanted.clone());
        async move {
            loop {
                tokio::time::sleep(pause).await;
                pause = LOOK_FOR_KIND;
                let named = wanted.state().iter().any(|r| worker_kinds(r).any(|kind| kind == WorkerKind::ScaledObject));
                if named && api.list_metadata(&ListParams::default().limit(1)).await.is_ok() {
                    return Some((watch_while_there(api), pause));
                }
            }
        }
    });
    found
        .flatten()
        .flat_map(move |object| {
            let (ns, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let named = releases
                .state()
                .into_iter()
                .filter(|r| r.metadata.namespace.as_ref() == Some(&ns) && names(r, WorkerKind::ScaledObject, &name));
            iter(named.map(|r| ObjectRef::from_obj(&*r)).collect::<Vec<_>>())
        })
        .boxed()
}

/// Ends when the watch breaks: the kind may be gone, and is looked for anew.
fn watch_while_there(
    api: Api<PartialObjectMeta<DynamicObject>>,
) -> BoxStream<'static, PartialObjectMeta<DynamicObject>> {
    let events = watcher(api, Config::default());
    // A broken watch of a kind that is there is taken up again after the same pause.
    events.take_while(|event| ready(event.is_ok())).touched_objects().filter_map(|result| ready(result.ok())).boxed()
}

fn worker_kinds(release: &MemoriaRelease) -> impl Iterator<Item = WorkerKind> {
    release.spec.ingestion.workers.iter().map(|worker| worker.kind)
}

/// Targets and workers.
fn named(release: &MemoriaRelease) -> impl Iterator<Item = WorkerRef> {
    let targets = release.spec.targets.iter().map(|t| WorkerRef::from(&t.workload_ref));
    targets.chain(release.spec.ingestion.workers.iter().cloned())
}

fn names(release: &MemoriaRelease, kind: WorkerKind, name: &str) -> bool {
    named(release).any(|w| w.kind == kind && w.name == name)
}

fn names_flag(release: &MemoriaRelease, name: &str) -> bool {
    release.spec.ingestion.maintenance_flag.as_ref().is_some_and(|f| f.config_map_key_ref.name == name)
}

/// Kubernetes names pods after their workload, and cuts long names here before it adds a suffix.
const GENERATED_NAME: usize = 40;

/// Whether a pod or Job of this name may have been made by one of the release's workers or targets. Too many is harmless:
/// it only wakes.
fn may_have_made(release: &MemoriaRelease, object: &str) -> bool {
    named(release).any(|w| {
        let start = &w.name[..w.name.floor_char_boundary(GENERATED_NAME)];
        object.strip_prefix(start).is_some_and(|rest| start.len() < w.name.len() || rest.starts_with('-'))
    })
}

/// The same for pods; only the ScaledObject itself says whose pods it scales, so any may be.
fn may_own(release: &MemoriaRelease, pod: &str) -> bool {
    worker_kinds(release).any(|kind| kind == WorkerKind::ScaledObject) || may_have_made(release, pod)
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

    use super::{OpenAttempts, labelled_release, may_own, names, names_flag};
    use crate::api::{MemoriaRelease, release::WorkerKind};

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
        assert!(names(&r, WorkerKind::Deployment, "memoria") && names(&r, WorkerKind::StatefulSet, "worker"));
        assert!(!names(&r, WorkerKind::StatefulSet, "memoria"));
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
