//! The chart's admission policies, tried as the users that they are about.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use kube::{Api, api::ListParams};
use memoria_operator::api::{
    MemoriaDecision,
    decision::DecisionAction,
    marks::{GUARD_ANNOTATION, GUARD_LIFTED},
};
use memoria_operator::commands::Command;
use serde_json::{Value, json};

use crate::{
    chart::{installed, of_kind, rendered, template},
    rules::upgrade,
    server::{server, text},
};

/// How long the API server may take to know a policy that was just made, and what it reads.
const KNOWN_WITHIN: Duration = Duration::from_secs(90);

/// A user who may do anything in one namespace, as a GitOps tool may.
const OTHER: &str = "system:serviceaccount:argocd:controller";
const AUTOSCALER: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
const KEDA: &str = "system:serviceaccount:keda:keda-operator";

/// A namespace with two Deployments and a StatefulSet, and the chart that guards it.
struct Guarded {
    namespace: String,
    operator: String,
}

impl Guarded {
    async fn new(namespace: &str, guard: &str) -> Self {
        let server = server();
        server.namespace(namespace).await;
        let watched = format!("watchNamespaces=[\"{namespace}\"]");
        let guard = format!("admission.imageGuard=\"{guard}\"");
        let operator = installed(&format!("memoria-operator-{namespace}"), &["crds.install=false", &watched, &guard]);
        let guarded = Self { namespace: namespace.to_owned(), operator };
        for (name, user) in [("other", OTHER), ("autoscaler", AUTOSCALER), ("keda", KEDA)] {
            guarded.admin(&["create", "rolebinding", name, "--clusterrole=cluster-admin", "--user", user]);
        }
        for (kind, name) in [("Deployment", "memoria"), ("Deployment", "ingest"), ("StatefulSet", "sync")] {
            guarded.apply(&workload(kind, name));
        }
        guarded
    }

    fn admin(&self, args: &[&str]) -> String {
        server().kubectl_ok(&[&["-n", &self.namespace], args].concat())
    }

    fn apply(&self, object: &Value) {
        let name = format!("{}-{}.json", self.namespace, object["metadata"]["name"].as_str().unwrap());
        let file = server().file(&name, &object.to_string());
        self.admin(&["apply", "-f", &file]);
    }

    fn try_as(&self, user: &str, args: &[&str]) -> Output {
        server().kubectl(&[&["-n", &self.namespace, "--as", user], args].concat())
    }

    fn allowed(&self, user: &str, args: &[&str]) -> String {
        let output = self.try_as(user, args);
        assert!(output.status.success(), "{user} {args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    /// What it said.
    fn refused(&self, user: &str, args: &[&str]) -> String {
        let output = self.try_as(user, args);
        assert!(!output.status.success(), "{user} {args:?} was allowed");
        let said = text(&output.stderr);
        assert!(said.contains("ValidatingAdmissionPolicy"), "{args:?} was refused by something else: {said}");
        said
    }

    fn uid(&self, object: &str) -> String {
        self.admin(&["get", object, "-o", "jsonpath={.metadata.uid}"])
    }

    /// An attempt over all three, as the operator makes it, its marks on them.
    fn attempt(&self) {
        let mut attempt = upgrade();
        let spec = &mut attempt["spec"];
        spec["targets"][0]["uid"] = json!(self.uid("deployment/memoria"));
        spec["workers"] = json!([
            {"workload": {"kind": "Deployment", "name": "ingest"}, "uid": self.uid("deployment/ingest"), "replicas": 2},
            {"workload": {"kind": "StatefulSet", "name": "sync"}, "uid": self.uid("statefulset/sync"), "replicas": 2},
        ]);
        self.apply(&attempt);
        for object in ["deployment/memoria", "deployment/ingest", "statefulset/sync"] {
            self.operator(&[
                "annotate",
                object,
                "memoria.arca.run/attempt=memoria-1",
                "memoria.arca.run/owner=c7e4",
                "memoria.arca.run/prior-replicas=2",
            ]);
        }
        self.journal(&json!({"phases": [
            {"name": "Quiesce", "state": "Running", "startedAt": "2026-01-10T03:00:00Z"}]}));
    }

    fn operator(&self, args: &[&str]) {
        self.allowed(&self.operator, args);
    }

    fn journal(&self, status: &Value) {
        let patch = json!({"status": status}).to_string();
        self.admin(&["patch", "mup", "memoria-1", "--subresource=status", "--type=merge", "-p", &patch]);
    }

    /// Waits until the API server's policy answers as it should by now.
    async fn until(&self, what: &str, args: &[&str], answered: impl Fn(&Output) -> bool) {
        let end = Instant::now() + KNOWN_WITHIN;
        loop {
            let output = self.try_as(OTHER, &[args, &["--dry-run=server"]].concat());
            if answered(&output) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {args:?} is answered by {}", text(&output.stderr));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Both policies work: the API server reads them, and the attempt, by and by.
    async fn until_guarded(&self) {
        for args in [IMAGE, SCALE] {
            self.until("the guard is on", args, |output| !output.status.success()).await;
        }
    }

    async fn until_free(&self) {
        for args in [IMAGE, SCALE] {
            self.until("the guard is off", args, |output| output.status.success()).await;
        }
    }
}

const IMAGE: &[&str] = &["set", "image", "deployment/memoria", "server=memoria/server:0.9.1"];
const SCALE: &[&str] = &["scale", "deployment/ingest", "--replicas=7"];

fn workload(kind: &str, name: &str) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {"replicas": 2, "serviceName": name, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "server", "image": "memoria/server:0.9.0"}]}}}
    })
    .as_object()
    .map(|object| {
        let mut object = object.clone();
        if kind == "Deployment" {
            object["spec"].as_object_mut().unwrap().remove("serviceName");
        }
        Value::Object(object)
    })
    .unwrap()
}

#[tokio::test]
async fn while_an_attempt_is_open_only_the_operator_changes_images_replicas_and_marks() {
    let at = Guarded::new("guarded", "Enforce").await;
    at.allowed(OTHER, IMAGE);
    at.allowed(OTHER, &["set", "image", "deployment/memoria", "server=memoria/server:0.9.0"]);
    at.attempt();
    at.until_guarded().await;

    for args in [
        IMAGE,
        &[
            "patch",
            "deployment/ingest",
            "-p",
            r#"{"spec":{"template":{"spec":{"initContainers":[{"name":"x","image":"x"}]}}}}"#,
        ],
        &["patch", "deployment/memoria", "-p", r#"{"spec":{"replicas":3}}"#],
        &["patch", "deployment/memoria", "--type=merge", "-p", r#"{"spec":{"replicas":null}}"#],
        SCALE,
        &["scale", "deployment/memoria", "--replicas=0"],
        &["scale", "statefulset/sync", "--replicas=1"],
        &["patch", "statefulset/sync", "-p", r#"{"spec":{"replicas":3}}"#],
        &["annotate", "deployment/memoria", "memoria.arca.run/attempt-"],
        &["annotate", "deployment/memoria", "memoria.arca.run/owner-"],
        &["annotate", "statefulset/sync", "memoria.arca.run/prior-replicas=9", "--overwrite"],
        &["annotate", "deployment/ingest", "memoria.arca.run/goes-back=true"],
    ] {
        let said = at.refused(OTHER, args);
        for part in
            ["attempt memoria-1 of MemoriaRelease memoria keeps", "action Abort", "-n guarded annotate mup memoria-1"]
        {
            assert!(said.contains(part), "{args:?}: {said}");
        }
    }
    // What heals itself puts back the whole object.
    let file = server().file("healed.json", &workload("Deployment", "memoria").to_string());
    at.allowed(OTHER, &["apply", "--server-side", "--field-manager=argocd", "-f", &file]);
    let changed = workload("Deployment", "memoria").to_string().replace("0.9.0", "1.0.0");
    let file = server().file("changed.json", &changed);
    at.refused(OTHER, &["apply", "--server-side", "--force-conflicts", "--field-manager=argocd", "-f", &file]);

    // Everything else goes on: the Deployment controller notes its revision, people label, an autoscaler scales what runs.
    at.allowed(OTHER, &["annotate", "deployment/memoria", "deployment.kubernetes.io/revision=2", "--overwrite"]);
    at.allowed(OTHER, &["label", "deployment/memoria", "team=a"]);
    at.allowed(OTHER, &["set", "env", "deployment/memoria", "LEVEL=debug"]);
    at.allowed(OTHER, &["scale", "deployment/ingest", "--replicas=2"]);
    at.allowed(AUTOSCALER, &["scale", "deployment/ingest", "--replicas=3"]);
    at.refused(AUTOSCALER, IMAGE);

    at.operator(&[
        "patch",
        "deployment/ingest",
        "--subresource=scale",
        "--type=merge",
        "-p",
        r#"{"spec":{"replicas":0}}"#,
    ]);
    at.operator(&[
        "patch",
        "deployment/memoria",
        "-p",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"server","image":"memoria/server:1.0.0"}]}}}}"#,
    ]);
    // Nobody brings up what is held at zero.
    at.refused(AUTOSCALER, &["scale", "deployment/ingest", "--replicas=1"]);
    at.refused(KEDA, &["scale", "deployment/ingest", "--replicas=1"]);

    // Stopped for good, it stays guarded; released, it is anybody's again.
    let quiesced = json!([{"name": "Quiesce", "state": "Passed", "startedAt": "2026-01-10T03:00:00Z"}]);
    at.journal(&json!({"phases": quiesced, "outcome": "Halted"}));
    at.until("a halted attempt says so", SCALE, |output| text(&output.stderr).contains("stopped (Halted)")).await;
    let said = at.refused(OTHER, IMAGE);
    assert!(said.contains("a MemoriaDecision with action Rollback"), "{said}");
    for object in ["deployment/memoria", "deployment/ingest", "statefulset/sync"] {
        at.operator(&["annotate", object, "memoria.arca.run/attempt-", "memoria.arca.run/prior-replicas-"]);
    }
    at.journal(&json!({"outcome": "Aborted"}));
    at.until_free().await;
    at.allowed(OTHER, IMAGE);
    at.allowed(OTHER, SCALE);
    at.allowed(OTHER, &["annotate", "deployment/memoria", "memoria.arca.run/owner-"]);
}

#[tokio::test]
async fn before_quiesce_an_attempt_keeps_nobody_from_scaling() {
    let at = Guarded::new("unbegun", "Enforce").await;
    at.attempt();
    at.until_guarded().await;
    at.journal(&json!({"phases": null}));
    at.until("nothing was begun", SCALE, |output| output.status.success()).await;
}

#[tokio::test]
async fn keda_brings_back_what_the_attempt_lets_it_scale_and_nothing_else() {
    let at = Guarded::new("keda-guarded", "Enforce").await;
    let mut attempt = upgrade();
    attempt["spec"]["workers"] = json!([
        {"workload": {"kind": "ScaledObject", "name": "queue"}, "uid": "s1", "replicas": 0,
            "scales": {"kind": "Deployment", "name": "ingest"}},
        {"workload": {"kind": "StatefulSet", "name": "sync"}, "uid": at.uid("statefulset/sync"), "replicas": 2},
    ]);
    at.apply(&attempt);
    at.journal(&json!({"phases": [{"name": "Quiesce", "state": "Running", "startedAt": "2026-01-10T03:00:00Z"}]}));
    at.until("the guard is on", SCALE, |output| !output.status.success()).await;
    for replicas in ["--replicas=0", "--replicas=1"] {
        at.allowed(KEDA, &["scale", "deployment/ingest", replicas]);
        at.allowed(KEDA, &["scale", "statefulset/sync", "--replicas=1"]);
    }
    at.operator(&[
        "patch",
        "statefulset/sync",
        "--subresource=scale",
        "--type=merge",
        "-p",
        r#"{"spec":{"replicas":0}}"#,
    ]);
    at.refused(KEDA, &["scale", "statefulset/sync", "--replicas=1"]);
}

#[tokio::test]
async fn a_person_in_the_operators_place_lifts_the_guard_by_the_printed_command() {
    let at = Guarded::new("lifted", "Enforce").await;
    at.attempt();
    at.until_guarded().await;
    let said = at.refused(OTHER, SCALE);
    let command = said.split("Without the operator: kubectl ").nth(1).unwrap().trim();
    assert!(command.ends_with(&format!("annotate mup memoria-1 {GUARD_ANNOTATION}={GUARD_LIFTED}")), "{command}");
    at.allowed(OTHER, &command.split_whitespace().collect::<Vec<_>>());
    at.until_free().await;
    // As the rescue script does.
    at.allowed(OTHER, &["scale", "deployment.apps/memoria", "--replicas=0"]);
    at.allowed(OTHER, IMAGE);
    at.allowed(OTHER, &["annotate", "deployment/memoria", "memoria.arca.run/attempt-"]);
}

#[tokio::test]
async fn a_warning_keeps_nobody_from_anything() {
    let at = Guarded::new("warned", "Warn").await;
    at.attempt();
    let warned = |output: &Output| {
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr).contains("Warning: Validation failed for ValidatingAdmissionPolicy")
    };
    for args in [IMAGE, SCALE] {
        at.until("it warns", args, warned).await;
        assert!(at.allowed(OTHER, args).contains("attempt memoria-1 of MemoriaRelease memoria keeps"));
    }
}

#[tokio::test]
async fn the_guard_is_the_installers_choice() {
    let policies = |settings: &[&str]| {
        let objects = rendered("memoria-operator", settings);
        let names = of_kind(&objects, "ValidatingAdmissionPolicy").into_iter();
        names.map(|policy| policy["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let guards = ["memoria-operator-image-guard", "memoria-operator-scale-guard"];
    assert!(policies(&[]).iter().all(|name| !guards.contains(&name.as_str())));
    let enforced = policies(&["admission.imageGuard=\"Enforce\""]);
    assert!(guards.iter().all(|guard| enforced.iter().any(|name| name == guard)), "{enforced:?}");
    // What YAML 1.1 makes of a bare Off.
    for setting in ["admission.imageGuard=false", "admission.imageGuard=\"enforce\"", "admission.imageguard=\"Warn\""] {
        assert!(!template("memoria-operator", &[setting]).status.success(), "{setting} was accepted");
    }
}

/// A namespace, the chart that looks after it, and two people who may decide in it.
async fn deciding(namespace: &str, settings: &[&str]) -> Api<MemoriaDecision> {
    let server = server();
    server.namespace(namespace).await;
    let (name, watched) = (format!("memoria-operator-{namespace}"), format!("watchNamespaces=[\"{namespace}\"]"));
    installed(&name, &[&["crds.install=false", &watched], settings].concat());
    let user = |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "deciders"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": format!("{name}-decider")},
        "subjects": [user("ben"), user(ODD)],
    });
    let file = server.file(&format!("{namespace}-deciders.json"), &binding.to_string());
    server.kubectl_ok(&["create", "-n", namespace, "-f", &file]);
    Api::namespaced(server.client(), namespace)
}

/// As an identity provider may name people.
const ODD: &str = r#"oidc:https://id.example.org/#Ben "the \nib" O'Hara & 50% $HOME"#;

/// Makes a decision as `ben`, by name, and returns what was said.
fn decide(namespace: &str, name: &str, by: Option<&str>) -> Result<(), String> {
    let mut decision = json!({
        "apiVersion": "memoria.arca.run/v1alpha1", "kind": "MemoriaDecision", "metadata": {"name": name},
        "spec": {"releaseName": "memoria", "action": "Abort", "attempt": "memoria-1", "reason": "withdrawn"}
    });
    if let Some(by) = by {
        decision["spec"]["decidedBy"] = json!(by);
    }
    let file = server().file(&format!("{namespace}-{name}.json"), &decision.to_string());
    let output = server().kubectl(&["create", "-n", namespace, "--as", "ben", "-f", &file]);
    if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
}

/// Tries until the API server knows the policy.
async fn until_refused(namespace: &str, by: Option<&str>) -> String {
    let end = Instant::now() + KNOWN_WITHIN;
    for attempt in 0.. {
        match decide(namespace, &format!("early-{attempt}"), by) {
            Err(said) => return said,
            Ok(()) => assert!(Instant::now() < end, "{by:?} is not refused"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    unreachable!()
}

#[tokio::test]
async fn nobody_decides_in_the_name_of_another() {
    deciding("authors", &[]).await;
    let said = until_refused("authors", Some("ana")).await;
    assert!(said.contains("nobody decides in the name of another: spec.decidedBy is ana, set it to ben"), "{said}");
    assert_eq!(decide("authors", "own", Some("ben")), Ok(()));
    assert_eq!(decide("authors", "unnamed", None), Ok(()), "by default a decision need not say who made it");
}

#[tokio::test]
async fn where_the_installer_requires_it_a_decision_says_who_made_it() {
    deciding("named-authors", &["admission.decidedBy=\"Required\""]).await;
    let said = until_refused("named-authors", None).await;
    assert!(said.contains("say who decides: set spec.decidedBy to ben"), "{said}");
    assert_eq!(decide("named-authors", "own", Some("ben")), Ok(()));
}

fn command(action: DecisionAction) -> String {
    Command::Decide { release: "memoria", attempt: "memoria-7", action }.in_namespace("typed")
}

#[tokio::test]
async fn the_printed_command_decides_in_the_name_of_whoever_types_it() {
    let decisions = deciding("typed", &["admission.decidedBy=\"Required\""]).await;
    until_refused("typed", Some("ana")).await;
    for (user, action) in [("ben", DecisionAction::Abort), (ODD, DecisionAction::Rollback)] {
        let command = command(action);
        let output = server().shell_as(user, &command);
        assert!(output.status.success(), "{user}: {command}: {}", text(&output.stderr));
        let stored = decisions.list(&ListParams::default()).await.unwrap().items;
        let made =
            stored.iter().find(|decision| decision.spec.action == action && decision.spec.attempt == "memoria-7");
        let made = &made.unwrap().spec;
        assert_eq!((made.release_name.as_str(), made.decided_by.as_deref()), ("memoria", Some(user)));
    }
    // Not everybody may.
    let output = server().shell_as("ana", &command(DecisionAction::Abort));
    assert!(
        text(&output.stderr).contains("memoriadecisions.memoria.arca.run is forbidden"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn a_claim_is_unchecked_only_where_the_installer_says_so() {
    let names = |settings: &[&str]| {
        let objects = rendered("memoria-operator", settings);
        of_kind(&objects, "ValidatingAdmissionPolicy").iter().map(|p| p["metadata"]["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), [json!("memoria-operator-decided-by")]);
    assert!(names(&["admission.decidedBy=\"Unchecked\""]).is_empty());
}
