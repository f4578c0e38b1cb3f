//! Releases and objects that are wrong or dangerous, each with the words that its one message must have. What needs no
//! kubelet is tried by the tests of the effects, too, from this same table.

use serde_json::{Value, json};

pub const FROM: &str = "0.9.0";
pub const TO: &str = "1.0.0";

/// One thing that is wrong.
pub struct Case {
    /// Of its release, and of the Deployment that the release names as its Server.
    pub name: &'static str,
    pub how: How,
    /// Words of its message: the field or object, and the fix.
    pub words: &'static [&'static str],
    /// What is there: the first is a Server as it should be.
    pub objects: fn(&mut Vec<Value>),
    /// Who asks for what: a release as it should be.
    pub release: fn(&mut Value),
}

/// How it is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The API server does not take the release.
    NotTaken,
    /// From what the API server knows, with the condition's reason.
    Read(&'static str),
    /// By pre-flight's Jobs.
    Jobs,
}

pub const FAILED: How = How::Read("PreFlightFailed");
const INVALID: How = How::Read("InvalidSpec");

impl Case {
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![server(self.name)];
        (self.objects)(&mut objects);
        objects
    }

    pub fn release(&self) -> Value {
        let mut release = json!({
            "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaRelease", "metadata": {"name": self.name},
            "spec": {
                "version": TO, "mode": "Plan",
                "targets": [{
                    "name": "server", "role": "Server", "workloadRef": {"kind": "Deployment", "name": self.name},
                    "image": {"repository": "registry.arca.run/memoria/server"},
                }],
            }
        });
        (self.release)(&mut release);
        release
    }
}

/// A Server without pods: its template is what matters.
fn server(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod(json!([{
                "name": "MEMORIA_DATABASE__CONNECTION_STRING",
                "valueFrom": {"secretKeyRef": {"name": "memoria-db", "key": "url"}},
            }]))},
        },
    })
}

fn pod(env: Value) -> Value {
    json!({
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{
            "name": "server", "image": format!("registry.arca.run/memoria/server:{FROM}"), "env": env,
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
    })
}

fn container(objects: &mut [Value]) -> &mut Value {
    &mut objects[0]["spec"]["template"]["spec"]["containers"][0]
}

/// The Server's URL, written into the template.
fn url(objects: &mut [Value], url: &str) {
    container(objects)["env"] = json!([{"name": "MEMORIA_DATABASE__CONNECTION_STRING", "value": url}]);
}

/// With that claim at `/data`.
fn on(objects: &mut [Value], claim: &str) {
    mounts(objects, json!({"persistentVolumeClaim": {"claimName": claim}}));
}

fn mounts(objects: &mut [Value], mut volume: Value) {
    volume["name"] = json!("data");
    objects[0]["spec"]["template"]["spec"]["volumes"] = json!([volume]);
    container(objects)["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
}

/// The same as a StatefulSet.
fn stateful(objects: &mut [Value], strategy: Value) {
    let server = &mut objects[0];
    server["kind"] = json!("StatefulSet");
    server["spec"]["serviceName"] = server["metadata"]["name"].clone();
    server["spec"]["updateStrategy"] = strategy;
}

fn names_stateful(release: &mut Value) {
    release["spec"]["targets"][0]["workloadRef"]["kind"] = json!("StatefulSet");
}

fn worker(release: &mut Value, kind: &str, name: &str) {
    release["spec"]["ingestion"] = json!({"workers": [{"kind": kind, "name": name}]});
}

fn flag(release: &mut Value, map: &str) {
    release["spec"]["ingestion"] = json!({"maintenanceFlag": {"configMapKeyRef": {"name": map, "key": "maintenance"}}});
}

fn from_secret(release: &mut Value, secret: &str, key: &str) {
    release["spec"]["database"] = json!({"urlFrom": {"secretKeyRef": {"name": secret, "key": key}}});
}

fn check(release: &mut Value, stage: &str, pass_when: &str, url: &str) {
    release["spec"]["checks"] = json!([{"name": "depth", "stage": stage, "passWhen": pass_when, "http": {"url": url}}]);
}

fn template(release: &mut Value) {
    let job = json!({"templateRef": {"name": "smoke"}});
    release["spec"]["checks"] = json!([{"name": "smoke", "stage": "AfterIngestion", "job": job}]);
}

fn nothing(_: &mut Value) {}
fn as_it_is(_: &mut Vec<Value>) {}

/// The claim for a single pod, which must be bound.
pub const SINGLE: &str = "single";
const FILE: &str = "sqlite:////data/memoria.db";
/// What the literal password of one of them is.
pub const LITERAL: &str = "correct-horse";

pub const CASES: &[Case] = &[
    Case {
        name: "daemonset-as-worker",
        how: How::NotTaken,
        words: &["spec.ingestion.workers[0].kind", "\"DaemonSet\"", "\"StatefulSet\"", "\"CronJob\""],
        objects: as_it_is,
        release: |r| worker(r, "DaemonSet", "collector"),
    },
    Case {
        name: "moving-tag",
        how: How::NotTaken,
        words: &["spec.version", "name one release, e.g. version: \"1.0.0\""],
        objects: as_it_is,
        release: |r| r["spec"]["version"] = json!("latest"),
    },
    Case {
        name: "no-server",
        how: How::NotTaken,
        words: &["spec", "set role: Server on exactly one target"],
        objects: as_it_is,
        release: |r| r["spec"]["targets"][0]["role"] = json!("Dashboard"),
    },
    Case {
        name: "credentials-in-a-check",
        how: How::NotTaken,
        words: &["spec.checks[0].http.url", "use headersFrom"],
        objects: as_it_is,
        release: |r| check(r, "AfterIngestion", "status == 200", "http://me:secret@queue/depth"),
    },
    Case {
        name: "a-limit-that-fails-always",
        how: How::NotTaken,
        words: &["spec.timeouts.snapshot", "write at least 30s"],
        objects: as_it_is,
        release: |r| r["spec"]["timeouts"] = json!({"snapshot": "5s"}),
    },
    Case {
        name: "no-workload",
        how: INVALID,
        words: &["deployment/memoria-servre does not exist", "spec.targets[name=server].workloadRef"],
        objects: as_it_is,
        release: |r| r["spec"]["targets"][0]["workloadRef"]["name"] = json!("memoria-servre"),
    },
    Case {
        name: "no-container",
        how: INVALID,
        words: &["spec.targets[name=server].container is \"sidecar\"", "deployment/no-container has server"],
        objects: as_it_is,
        release: |r| r["spec"]["targets"][0]["container"] = json!("sidecar"),
    },
    Case {
        name: "which-container",
        how: INVALID,
        words: &["spec.targets[name=server].container is not set", "proxy, server", "the one that runs Memoria"],
        objects: |o| {
            let mut proxy = container(o).clone();
            proxy["name"] = json!("proxy");
            o[0]["spec"]["template"]["spec"]["containers"] = json!([container(o).clone(), proxy]);
        },
        release: nothing,
    },
    Case {
        name: "no-worker",
        how: INVALID,
        words: &["cronjob/nightly does not exist", "correct spec.ingestion.workers"],
        objects: as_it_is,
        release: |r| worker(r, "CronJob", "nightly"),
    },
    Case {
        name: "scaledobject-without-keda",
        how: INVALID,
        words: &["scaledobject/ingest does not exist", "KEDA is not installed", "spec.ingestion.workers"],
        objects: as_it_is,
        release: |r| worker(r, "ScaledObject", "ingest"),
    },
    Case {
        name: "paused-deployment",
        how: INVALID,
        words: &["deployment/paused-deployment is paused", "rollout resume deployment/paused-deployment"],
        objects: |o| o[0]["spec"]["paused"] = json!(true),
        release: nothing,
    },
    Case {
        name: "on-delete",
        how: INVALID,
        words: &["statefulset/on-delete has updateStrategy OnDelete", "to RollingUpdate"],
        objects: |o| stateful(o, json!({"type": "OnDelete"})),
        release: names_stateful,
    },
    Case {
        name: "partition",
        how: INVALID,
        words: &["statefulset/partition holds pods back", "partition to 0"],
        objects: |o| stateful(o, json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}})),
        release: names_stateful,
    },
    Case {
        name: "scaled-by-keda",
        how: INVALID,
        words: &["deployment/scaled-by-keda is scaled by KEDA", "{kind: ScaledObject, name: queue}"],
        objects: |o| {
            // Of a version that no cluster serves: where KEDA is installed, the garbage collector would look the owner
            // up, and delete what it is said to own.
            let keda = json!({"apiVersion": "keda.sh/v1", "kind": "ScaledObject", "name": "queue", "uid": "k"});
            o.push(json!({
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "keda-hpa-queue", "ownerReferences": [keda]},
                "spec": {"maxReplicas": 3, "scaleTargetRef":
                    {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled-by-keda"}},
            }));
        },
        release: nothing,
    },
    Case {
        name: "twice",
        how: How::Read("TargetClaimed"),
        words: &["deployment/twice is named by release older too", "delete release older"],
        objects: |o| {
            // It has nothing to do: its version runs.
            let workload = json!({"kind": "Deployment", "name": "twice"});
            o.push(json!({
                "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaRelease", "metadata": {"name": "older"},
                "spec": {"version": FROM, "targets": [{"name": "server", "role": "Server", "workloadRef": workload}]},
            }));
        },
        release: |r| r["spec"]["mode"] = json!("Apply"),
    },
    Case {
        name: "downgrade",
        how: How::Read("DowngradeUnsupported"),
        words: &["spec.version 0.8.0 is older than the running 0.9.0", "set spec.version back to 0.9.0"],
        objects: as_it_is,
        release: |r| r["spec"]["version"] = json!("0.8.0"),
    },
    Case {
        name: "runs-without-tag",
        how: INVALID,
        words: &["target server", "registry.arca.run/memoria/server has no tag", "name it by tag"],
        objects: |o| container(o)["image"] = json!("registry.arca.run/memoria/server"),
        release: nothing,
    },
    Case {
        name: "runs-a-moving-tag",
        how: INVALID,
        words: &["the running version (the Server image's tag)", "\"main\" is no version", "write numbers"],
        objects: |o| container(o)["image"] = json!("registry.arca.run/memoria/server:main"),
        release: nothing,
    },
    Case {
        name: "journal-lost",
        how: How::Read("JournalLost"),
        words: &["deployment/journal-lost bears the mark of attempt memoria-7", "kubectl -n", "attempt-"],
        objects: |o| o[0]["metadata"]["annotations"] = json!({"memoria.arca.run/attempt": "memoria-7"}),
        release: nothing,
    },
    Case {
        name: "argo-cd",
        how: FAILED,
        words: &["Argo CD keeps image and replicas of deployment/argo-cd", "RespectIgnoreDifferences=true"],
        objects: |o| {
            let id = "prod:apps/Deployment:memoria/argo-cd";
            o[0]["metadata"]["annotations"] = json!({"argocd.argoproj.io/tracking-id": id});
        },
        release: nothing,
    },
    Case {
        name: "flux",
        how: FAILED,
        words: &["Flux keeps image and replicas of deployment/flux", "flux suspend kustomization apps -n flux-system"],
        objects: |o| {
            o[0]["metadata"]["labels"] = json!({
                "kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"});
        },
        release: nothing,
    },
    Case {
        name: "stray-pod",
        how: FAILED,
        words: &["the selector of deployment/stray-pod also finds", "stray (made by hand)", "delete pod stray"],
        objects: |o| {
            let mut spec = pod(json!([]));
            spec["nodeSelector"] = json!({"memoria-operator-test/nowhere": "true"});
            let metadata = json!({"name": "stray", "labels": {"app": "stray-pod"}});
            o.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
        },
        release: nothing,
    },
    Case {
        name: "slow-to-end",
        how: FAILED,
        words: &["pods of deployment/slow-to-end may take 3600 s", "raise spec.timeouts.quiesce"],
        objects: |o| o[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(3600),
        release: nothing,
    },
    Case {
        name: "password-in-the-template",
        how: FAILED,
        words: &["entry MEMORIA_DATABASE__CONNECTION_STRING", "literal with a password", "move it into a Secret"],
        objects: |o| url(o, &format!("postgresql://memoria:{LITERAL}@db/memoria")),
        release: nothing,
    },
    Case {
        name: "no-url",
        how: FAILED,
        words: &["has no environment entry MEMORIA_DATABASE__CONNECTION_STRING", "database.urlFrom.secretKeyRef"],
        objects: |o| container(o)["env"] = json!([]),
        release: nothing,
    },
    Case {
        name: "url-from-all-of-a-secret",
        how: FAILED,
        words: &["it has envFrom", "database.urlFrom.secretKeyRef"],
        objects: |o| {
            container(o)["env"] = json!([]);
            container(o)["envFrom"] = json!([{"secretRef": {"name": "memoria-db"}}]);
        },
        release: nothing,
    },
    Case {
        name: "mysql",
        how: FAILED,
        words: &["container server has the scheme \"mysql\"", "PostgreSQL and SQLite only", "postgresql://"],
        objects: |o| url(o, "mysql://db/memoria"),
        release: nothing,
    },
    Case {
        name: "root",
        how: FAILED,
        words: &["container \"server\" runs as root", "jobs.securityContext: AsServer"],
        objects: |o| o[0]["spec"]["template"]["spec"]["securityContext"]["runAsUser"] = json!(0),
        release: nothing,
    },
    Case {
        name: "root-where-none-may-be",
        how: FAILED,
        words: &[
            "admit-job-inspect: could not create pod/root-where-none-may-be-pf-",
            "violates PodSecurity",
            "correct the",
        ],
        objects: |o| {
            let context = &mut o[0]["spec"]["template"]["spec"]["securityContext"];
            context["runAsUser"] = json!(0);
            context["runAsNonRoot"] = json!(false);
        },
        release: |r| r["spec"]["jobs"] = json!({"securityContext": "AsServer"}),
    },
    Case {
        name: "no-flag",
        how: INVALID,
        words: &["configmap/memoria-flag does not exist", "spec.ingestion.maintenanceFlag.configMapKeyRef"],
        objects: as_it_is,
        release: |r| flag(r, "memoria-flag"),
    },
    Case {
        name: "flag-that-nobody-can-set",
        how: INVALID,
        words: &["configmap/fixed is immutable", "make it mutable"],
        objects: |o| {
            o.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fixed"}, "immutable": true,
                "data": {"maintenance": "false"}}));
        },
        release: |r| flag(r, "fixed"),
    },
    Case {
        name: "check-that-does-not-compile",
        how: FAILED,
        words: &["checks[depth].passWhen"],
        objects: as_it_is,
        release: |r| check(r, "AfterIngestion", "body.depth <=", "http://queue/depth"),
    },
    Case {
        name: "check-of-no-candidate",
        how: FAILED,
        words: &["checks[depth].http.url asks the candidate", "it has no replicas"],
        objects: as_it_is,
        release: |r| check(r, "BeforeIngestion", "status == 200", "http://candidate:8000/settings"),
    },
    Case {
        name: "check-without-cronjob",
        how: FAILED,
        words: &["checks[smoke].job.templateRef.name: cronjob/smoke does not exist in this namespace", "create it"],
        objects: as_it_is,
        release: template,
    },
    Case {
        name: "no-place-for-snapshots",
        how: FAILED,
        words: &[
            "persistentvolumeclaim/backup does not exist",
            "spec.snapshot.storage.persistentVolumeClaim.claimName",
        ],
        objects: as_it_is,
        release: |r| r["spec"]["snapshot"] = json!({"storage": {"persistentVolumeClaim": {"claimName": "backup"}}}),
    },
    Case {
        name: "file-for-one-pod",
        how: FAILED,
        words: &["persistentvolumeclaim/single is ReadWriteOncePod", "accessModes [ReadWriteOnce]"],
        objects: |o| {
            url(o, FILE);
            on(o, SINGLE);
        },
        release: nothing,
    },
    Case {
        name: "relative-file",
        how: FAILED,
        words: &["the relative path \"memoria.db\"", "workingDir", FILE],
        objects: |o| {
            url(o, "sqlite:///memoria.db");
            on(o, SINGLE);
        },
        release: nothing,
    },
    Case {
        name: "file-in-memory",
        how: FAILED,
        words: &["container server is an SQLite database in memory", "put it into a file on a claim"],
        objects: |o| url(o, "sqlite:///:memory:"),
        release: nothing,
    },
    Case {
        name: "file-on-no-claim",
        how: FAILED,
        words: &["/data/memoria.db", "lies on emptyDir volume \"data\"", "copy it to a claim"],
        objects: |o| {
            url(o, FILE);
            mounts(o, json!({"emptyDir": {}}));
        },
        release: nothing,
    },
    Case {
        name: "file-outside-all-mounts",
        how: FAILED,
        words: &["/elsewhere/memoria.db", "none of its volumes", "let the URL name it"],
        objects: |o| {
            url(o, "sqlite:////elsewhere/memoria.db");
            on(o, SINGLE);
        },
        release: nothing,
    },
    Case {
        name: "file-on-a-missing-claim",
        how: FAILED,
        words: &["persistentvolumeclaim/nowhere does not exist", "correct the volume"],
        objects: |o| {
            url(o, FILE);
            on(o, "nowhere");
        },
        release: nothing,
    },
    Case {
        name: "file-that-ends-with-the-pod",
        how: FAILED,
        words: &["volume \"data\" of deployment/file-that-ends-with-the-pod", "ephemeral", "claim of its own"],
        objects: |o| {
            url(o, FILE);
            let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
            mounts(o, json!({"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}));
        },
        release: nothing,
    },
    Case {
        name: "two-servers-on-one-file",
        how: FAILED,
        words: &["deployment/two-servers-on-one-file has 2 replicas", "--replicas=1"],
        objects: |o| {
            url(o, FILE);
            on(o, SINGLE);
            o[0]["spec"]["replicas"] = json!(2);
            o[0]["spec"]["template"]["spec"]["nodeSelector"] = json!({"memoria-operator-test/nowhere": "true"});
        },
        release: nothing,
    },
    Case {
        name: "another-claim-than-named",
        how: FAILED,
        words: &["database.sqlite.claimName is data", "mounts only single", "remove database.sqlite"],
        objects: |o| {
            url(o, FILE);
            on(o, SINGLE);
        },
        release: |r| r["spec"]["database"] = json!({"sqlite": {"claimName": "data"}}),
    },
    Case {
        name: "claim-of-a-server",
        how: FAILED,
        words: &["database.sqlite.claimName is single", "names a database server", "remove database.sqlite"],
        objects: |o| {
            url(o, "postgresql://memoria@db/memoria");
            on(o, SINGLE);
        },
        release: |r| r["spec"]["database"] = json!({"sqlite": {"claimName": SINGLE}}),
    },
    Case {
        name: "no-secret",
        how: How::Jobs,
        words: &["secret \"nowhere\" not found", "mend that"],
        objects: as_it_is,
        release: |r| from_secret(r, "nowhere", "url"),
    },
    Case {
        name: "no-key",
        how: How::Jobs,
        words: &["couldn't find key dsn in Secret", "memoria-db", "mend that"],
        objects: as_it_is,
        release: |r| from_secret(r, "memoria-db", "dsn"),
    },
    Case {
        name: "no-database",
        how: How::Jobs,
        words: &["wrong_nowhere", "correct"],
        objects: as_it_is,
        release: |r| from_secret(r, "wrong", "nowhere"),
    },
    Case {
        name: "hidden-mysql",
        how: How::Jobs,
        words: &["driver \"mysql\" is not known", "write postgresql://"],
        objects: as_it_is,
        release: |r| from_secret(r, "wrong", "mysql"),
    },
    Case {
        name: "row-security",
        how: How::Jobs,
        words: &["RowSecurity", "public.notes", "NO FORCE ROW LEVEL SECURITY"],
        objects: as_it_is,
        release: |r| from_secret(r, "wrong", "rows"),
    },
    Case {
        name: "anothers-view",
        how: How::Jobs,
        words: &["ForeignDependents", "reports.everything (owner postgres)", "ALTER VIEW"],
        objects: as_it_is,
        release: |r| from_secret(r, "wrong", "view"),
    },
    Case {
        name: "anothers-table",
        how: How::Jobs,
        words: &["DatabasePrivileges", "public.audits (owner postgres)", "OWNER TO \"memoria\""],
        objects: as_it_is,
        release: |r| from_secret(r, "wrong", "table"),
    },
    Case {
        name: "large-objects",
        how: How::Jobs,
        words: &["LargeObjects", "1 large objects", "move them into bytea columns"],
        objects: as_it_is,
        release: |r| from_secret(r, "wrong", "large"),
    },
    Case {
        name: "no-image",
        how: How::Jobs,
        words: &["registry.arca.run/memoria/server:9.9.9", "mend that"],
        objects: as_it_is,
        release: |r| r["spec"]["version"] = json!("9.9.9"),
    },
    Case {
        name: "no-memoria",
        how: How::Jobs,
        words: &["probe-server", "python -m memoria.cli", "cli.command"],
        objects: as_it_is,
        release: |r| {
            r["spec"]["targets"][0]["image"] = json!({"repository": "registry.arca.run/postgres", "tag": "15"});
        },
    },
    Case {
        name: "no-such-migration",
        how: How::Jobs,
        words: &["migrations.names has \"add_everything\"", "which the new version does not list"],
        objects: as_it_is,
        release: |r| r["spec"]["migrations"] = json!({"mode": "Named", "names": ["add_everything"]}),
    },
];
