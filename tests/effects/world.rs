//! A namespace with one Memoria in it, and shorthands to read and change it.

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        batch::v1::Job,
        core::v1::{ConfigMap, Pod, Service},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use memoria_operator::{
    api::{
        MemoriaRelease, MemoriaUpgrade,
        release::{WorkloadKind, WorkloadRef},
    },
    cluster::{self, ClusterError},
    upgrade::{Action, Observed, Precondition},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::server::server;

pub struct World {
    pub ns: String,
    pub client: Client,
    pub release: MemoriaRelease,
    pub upgrade: MemoriaUpgrade,
}

impl World {
    /// Server and worker, a flag, two Services, a release and its open attempt `memoria-1`.
    pub async fn new(ns: &str) -> Self {
        server().namespace(ns).await;
        let client = server().client();
        let mut world = Self { ns: ns.to_owned(), release: release("memoria"), upgrade: plan(), client };
        let made: Deployment = world.create(deployment("memoria")).await;
        world.create::<StatefulSet>(stateful_set("worker")).await;
        world
            .create::<ConfigMap>(
                json!({"metadata": {"name": "flags"}, "data": {"maintenance": "false", "other": "kept"}}),
            )
            .await;
        for (name, selector) in [("memoria", json!({"app": "memoria"})), ("web", json!({"tier": "web"}))] {
            world
                .create::<Service>(
                    json!({"metadata": {"name": name}, "spec": {"selector": selector, "ports": [{"port": 80}]}}),
                )
                .await;
        }
        world.release = world.create(serde_json::to_value(&world.release).unwrap()).await;
        world.upgrade.spec.release_uid = world.release.uid().unwrap();
        world.upgrade.spec.targets[0].uid = made.uid().unwrap();
        world.upgrade = world.create(serde_json::to_value(&world.upgrade).unwrap()).await;
        world
    }

    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.ns)
    }

    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        self.api::<K>().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
    }

    pub async fn get<K>(&self, name: &str) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.api::<K>().get(name).await.unwrap()
    }

    /// As its controller would.
    pub async fn set_status<K>(&self, name: &str, status: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let patch = Patch::Merge(json!({"status": status}));
        self.api::<K>().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub async fn act(&self, action: Action) -> Result<(), ClusterError> {
        self.act_for(&self.release, action).await
    }

    pub async fn act_for(&self, release: &MemoriaRelease, action: Action) -> Result<(), ClusterError> {
        cluster::act(&self.client, &self.ns, release, &self.upgrade, &action).await
    }

    pub async fn observe(&self) -> Observed {
        cluster::observe(&self.client, &self.ns, &self.release, &self.upgrade).await.unwrap()
    }

    pub async fn precondition(&self, workload: &WorkloadRef) -> Precondition {
        let meta = match workload.kind {
            WorkloadKind::Deployment => self.get::<Deployment>(&workload.name).await.metadata,
            WorkloadKind::StatefulSet => self.get::<StatefulSet>(&workload.name).await.metadata,
        };
        Precondition { uid: meta.uid.unwrap(), resource_version: meta.resource_version.unwrap() }
    }

    /// A pod of one of the attempt's Jobs, with this status.
    pub async fn job_pod(&self, job: &Job, status: Value) -> Pod {
        let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": job.name_any(), "uid": job.uid(), "controller": true}]);
        let name = format!("{}-x", job.name_any());
        let pod = self
            .create(json!({
                "metadata": {"name": name, "labels": job.labels(), "ownerReferences": owner},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "memoria:1"}]}
            }))
            .await;
        self.set_status::<Pod>(&name, status).await;
        pod
    }
}

pub fn server_ref() -> WorkloadRef {
    WorkloadRef { kind: WorkloadKind::Deployment, name: "memoria".to_owned() }
}

pub fn worker_ref() -> WorkloadRef {
    WorkloadRef { kind: WorkloadKind::StatefulSet, name: "worker".to_owned() }
}

pub fn release(name: &str) -> MemoriaRelease {
    serde_json::from_value(json!({
        "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaRelease", "metadata": {"name": name},
        "spec": {
            "version": "1.0.0",
            "targets": [{"name": "server", "role": "Server", "workloadRef": {"kind": "Deployment", "name": "memoria"}}],
            "ingestion": {
                "workers": [{"kind": "StatefulSet", "name": "worker"}],
                "maintenanceFlag": {"configMapKeyRef": {"name": "flags", "key": "maintenance"}}
            }
        }
    }))
    .unwrap()
}

pub fn deployment(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"team": "data"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name, "tier": "web", "team": "data"}},
                "spec": {"containers": [{
                    "name": "server", "image": "registry.arca.run/memoria/server:0.9.0",
                    "env": [{"name": "MODE", "value": "prod"}], "ports": [{"containerPort": 8000}]
                }]}
            }
        }
    })
}

pub fn stateful_set(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "serviceName": name, "replicas": 3,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "worker", "image": "registry.arca.run/memoria/worker:0.9.0"}]}
            }
        }
    })
}

fn job(step: &str) -> Value {
    let labels = json!({"memoria.arca.run/release": "memoria", "memoria.arca.run/attempt": "memoria-1", "memoria.arca.run/step": step});
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": format!("memoria-1-{step}"), "labels": labels},
        "spec": {"backoffLimit": 0, "template": {
            "metadata": {"labels": labels},
            "spec": {"restartPolicy": "Never", "containers": [{
                "name": "main", "image": "memoria-operator:0.1.0", "env": [{"name": "MEMORIA_OPERATOR_JOB", "value": "{}"}]
            }]}
        }}
    })
}

fn plan() -> MemoriaUpgrade {
    let sha = "0".repeat(64);
    serde_json::from_value(json!({
        "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaUpgrade",
        "metadata": {"name": "memoria-1", "labels": {"memoria.arca.run/release": "memoria"}},
        "spec": {
            "machineVersion": 1, "releaseName": "memoria", "releaseUid": "later", "releaseGeneration": 1, "run": "memoria-run-1",
            "planHash": sha, "operatorVersion": "0.1.0", "from": "0.9.0", "to": "1.0.0",
            "targets": [{
                "name": "server", "role": "Server", "workload": server_ref(), "uid": "later", "container": "server",
                "fromImage": "registry.arca.run/memoria/server:0.9.0", "fromDigest": format!("registry.arca.run/memoria/server@sha256:{sha}"),
                "toImage": format!("registry.arca.run/memoria/server@sha256:{sha}"), "replicas": 2, "worker": false,
                "candidate": {
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": "memoria-1-server-candidate", "labels": {
                        "memoria.arca.run/release": "memoria", "memoria.arca.run/attempt": "memoria-1", "team": "data"}},
                    "spec": {"containers": [{"name": "server", "image": "registry.arca.run/memoria/server:1.0.0"}]}
                }
            }],
            "workers": [{"workload": worker_ref(), "uid": "w", "replicas": 3}],
            "maintenanceFlag": {"configMapKeyRef": {"name": "flags", "key": "maintenance"}},
            "database": {
                "major": 15, "bytes": 1024,
                "identity": {"systemIdentifier": "7300", "name": "memoria", "oid": 16384, "host": "db:5432"}
            },
            "storage": {"claimName": "memoria-snapshots", "directory": "memoria-c7e4/memoria-1"},
            "migrations": [], "timeouts": {}, "gateSeconds": 0,
            "jobs": [{"step": "fence", "manifest": job("fence")}, {"step": "migrate", "manifest": job("migrate")}],
            "checks": []
        }
    }))
    .unwrap()
}
