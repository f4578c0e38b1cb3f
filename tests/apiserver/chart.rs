//! The chart, rendered by Helm and given to the API server.

use std::{path::Path, process::Output};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use memoria_operator::config::Config;
use serde_json::{Value, json};

use crate::server::{server, text};

pub fn template(release: &str, settings: &[&str]) -> Output {
    let chart = crate::root().join("charts/memoria-operator").display().to_string();
    let mut args = vec!["template", release, chart.as_str(), "--namespace", "operators"];
    settings.iter().for_each(|setting| args.extend(["--set-json", setting]));
    server().helm(&args)
}

/// What Helm makes of the chart with these values, each `path=<json>`.
pub fn rendered(release: &str, settings: &[&str]) -> Vec<Value> {
    let output = template(release, settings);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_saphyr::from_multiple(&text(&output.stdout)).unwrap()
}

pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn config_of(objects: &[Value]) -> Config {
    let [map] = of_kind(objects, "ConfigMap")[..] else { panic!("one ConfigMap expected") };
    Config::parse(map["data"]["config.yaml"].as_str().unwrap(), Path::new("config.yaml")).unwrap()
}

#[tokio::test]
async fn helm_finds_nothing_to_complain_about() {
    let chart = crate::root().join("charts/memoria-operator").display().to_string();
    let output = server().helm(&["lint", "--strict", &chart]);
    assert!(output.status.success(), "{}", text(&output.stdout));
}

#[tokio::test]
async fn the_values_defaults_are_the_operators_own() {
    let mut config = config_of(&rendered("memoria-operator", &[]));
    assert_eq!(config.leader_election.namespace.take().as_deref(), Some("operators"));
    assert_eq!(config, Config::default());
}

#[tokio::test]
async fn every_value_reaches_the_configuration() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let settings = [
        "watchNamespaces=[\"prod\",\"on\"]".to_owned(),
        format!("image={{\"repository\":\"host:5000/op\",\"digest\":\"{digest}\"}}"),
        "toolImages={\"15\":null,\"16\":\"tools:16\"}".to_owned(),
        "leaderElection={\"leaseDuration\":\"1m\",\"renewDeadline\":\"40s\",\"retryPeriod\":\"5s\"}".to_owned(),
        "log={\"format\":\"Text\",\"level\":\"info,kube=debug\"}".to_owned(),
        "metrics.port=9090".to_owned(),
        "health.port=9091".to_owned(),
    ];
    let objects = rendered("other", &settings.iter().map(String::as_str).collect::<Vec<_>>());
    let config = config_of(&objects);
    assert_eq!(config.watch_namespaces, ["prod", "on"]);
    assert_eq!(config.operator_image, format!("host:5000/op@{digest}"));
    assert_eq!(config.tool_images.keys().collect::<Vec<_>>(), ["16", "17"]);
    assert_eq!(config.leader_election.lease_name, "other-memoria-operator");
    assert_eq!(config.leader_election.lease_duration.to_string(), "1m");
    assert_eq!((config.metrics.listen.port(), config.health.listen.port()), (9090, 9091));
    assert_eq!(config.log.level, "info,kube=debug");
    let deployment = of_kind(&objects, "Deployment")[0];
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], json!(config.operator_image));
    assert_eq!(container["ports"][1]["containerPort"], 9091);
}

#[tokio::test]
async fn a_value_that_is_unknown_or_impossible_is_refused() {
    for (setting, complaint) in [
        ("replicaCount=2", "replicaCount"),
        ("replicas=3", "replicas"),
        ("image.repository=\"host/op:1.0\"", "repository"),
        ("image.digest=\"sha256:12\"", "digest"),
        ("watchNamespaces=[\"Prod\"]", "watchNamespaces"),
        ("leaderElection.leaseDuration=\"30\"", "leaseDuration"),
        ("toolImages.nine=\"x\"", "nine"),
        ("serviceAccount={\"create\":false}", "serviceAccount.name is needed"),
    ] {
        let output = template("memoria-operator", &[setting]);
        assert!(!output.status.success(), "{setting} was accepted");
        assert!(text(&output.stderr).contains(complaint), "{setting}: {}", text(&output.stderr));
    }
}

#[tokio::test]
async fn crds_stay_at_an_uninstall_and_can_be_left_out() {
    let objects = rendered("memoria-operator", &[]);
    let crds = of_kind(&objects, "CustomResourceDefinition");
    assert_eq!(crds.len(), 3);
    for crd in crds {
        assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
    assert!(of_kind(&rendered("memoria-operator", &["crds.install=false"]), "CustomResourceDefinition").is_empty());
}

#[tokio::test]
async fn no_role_is_aggregated_into_view_or_edit() {
    for role in of_kind(&rendered("memoria-operator", &[]), "ClusterRole") {
        let labels = role["metadata"]["labels"].as_object().unwrap();
        assert!(!labels.keys().any(|key| key.contains("aggregate-to")), "{labels:?}");
    }
}

#[tokio::test]
async fn the_pod_is_admitted_where_pod_security_is_restricted() {
    let server = server();
    server.kubectl_ok(&["create", "namespace", "restricted"]);
    server.kubectl_ok(&["label", "namespace", "restricted", "pod-security.kubernetes.io/enforce=restricted"]);
    let objects = rendered("memoria-operator", &["replicas=2", "imagePullSecrets=[\"pull\"]"]);
    let template = &of_kind(&objects, "Deployment")[0]["spec"]["template"];
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": template["spec"]});
    let file = server.file("operator-pod.json", &pod.to_string());
    server.kubectl_ok(&["create", "-n", "restricted", "--dry-run=server", "--validate=strict", "-f", &file]);
}

/// Applies a rendered chart, which also proves that each object is valid, and returns its service account.
pub fn installed(release: &str, settings: &[&str]) -> String {
    let server = server();
    server.kubectl(&["create", "namespace", "operators"]);
    let output = template(release, settings);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let file = server.file(&format!("{release}.yaml"), &text(&output.stdout));
    server.kubectl_ok(&["apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", &file]);
    format!("system:serviceaccount:operators:{release}")
}

/// `verb resource[.group]` in a namespace, optionally of one object: `get leases.coordination.k8s.io/name`.
async fn may(client: &Client, user: &str, namespace: &str, act: &str) -> bool {
    let (verb, what) = act.split_once(' ').unwrap();
    let (what, subresource) = what.split_once('#').map_or((what, None), |(w, s)| (w, Some(s.to_owned())));
    let (what, name) = what.split_once('/').map_or((what, None), |(w, n)| (w, Some(n.to_owned())));
    let (resource, group) = what.split_once('.').unwrap_or((what, ""));
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            groups: Some(vec!["system:authenticated".to_owned(), "system:serviceaccounts".to_owned()]),
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                name,
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await.unwrap();
    answer.status.unwrap().allowed
}

const NEEDED: [&str; 20] = [
    "patch memoriareleases.memoria.arca.run",
    "update memoriareleases.memoria.arca.run#status",
    "create memoriaupgrades.memoria.arca.run",
    "update memoriaupgrades.memoria.arca.run#status",
    "watch memoriadecisions.memoria.arca.run",
    "patch deployments.apps",
    "update statefulsets.apps#scale",
    "create pods",
    "delete pods",
    "create jobs.batch",
    "patch cronjobs.batch",
    "patch scaledobjects.keda.sh",
    "watch scaledobjects.keda.sh",
    "patch configmaps",
    "create configmaps",
    "create persistentvolumeclaims",
    "list services",
    "list horizontalpodautoscalers.autoscaling",
    "list events",
    "create events.events.k8s.io",
];

const FORBIDDEN: [&str; 15] = [
    "get secrets",
    "list secrets",
    "update memoriareleases.memoria.arca.run",
    "update memoriaupgrades.memoria.arca.run",
    "create memoriadecisions.memoria.arca.run",
    "update deployments.apps",
    "delete deployments.apps",
    "delete cronjobs.batch",
    "delete scaledobjects.keda.sh",
    "delete configmaps",
    "delete persistentvolumeclaims",
    "create pods#exec",
    "get nodes",
    "create serviceaccounts#token",
    "update roles.rbac.authorization.k8s.io",
];

#[tokio::test]
async fn the_operator_may_do_what_it_needs_in_all_namespaces_and_never_read_secrets() {
    let user = installed("memoria-operator", &[]);
    let client = server().client();
    for act in NEEDED {
        assert!(may(&client, &user, "anywhere", act).await, "{act} is needed");
    }
    for act in FORBIDDEN {
        assert!(!may(&client, &user, "anywhere", act).await, "{act} must not be allowed");
    }
    for act in ["create", "get", "update"] {
        let lease = format!("{act} leases.coordination.k8s.io/memoria-operator");
        assert!(may(&client, &user, "operators", &lease).await, "{lease} is needed");
    }
    assert!(!may(&client, &user, "operators", "update leases.coordination.k8s.io/another").await);
    assert!(!may(&client, &user, "kube-system", "get leases.coordination.k8s.io/memoria-operator").await);
}

#[tokio::test]
async fn with_named_namespaces_the_operator_has_no_right_anywhere_else() {
    let server = server();
    server.namespace("watched").await;
    let user = installed("memoria-operator-watching", &["watchNamespaces=[\"watched\"]", "crds.install=false"]);
    let client = server.client();
    for act in NEEDED {
        assert!(may(&client, &user, "watched", act).await, "{act} is needed");
        assert!(!may(&client, &user, "default", act).await, "{act} in another namespace");
    }
    // Volumes belong to no namespace.
    assert!(may(&client, &user, "", "get persistentvolumes").await);
    for act in ["list persistentvolumes", "patch persistentvolumes", "delete persistentvolumes"] {
        assert!(!may(&client, &user, "", act).await, "{act} must not be allowed");
    }
    for act in FORBIDDEN {
        assert!(!may(&client, &user, "watched", act).await, "{act} must not be allowed");
    }
}

#[tokio::test]
async fn writing_releases_and_deciding_about_them_are_two_roles() {
    installed("memoria-operator-people", &["crds.install=false", "watchNamespaces=[\"default\"]"]);
    let server = server();
    for (user, role) in [("ana", "editor"), ("ben", "decider"), ("cleo", "viewer")] {
        let role = format!("--clusterrole=memoria-operator-people-{role}");
        server.kubectl_ok(&["create", "rolebinding", user, &role, "--user", user, "-n", "default"]);
    }
    let client = server.client();
    let (write, decide) = ("patch memoriareleases.memoria.arca.run", "create memoriadecisions.memoria.arca.run");
    for (user, may_write, may_decide) in [("ana", true, false), ("ben", false, true), ("cleo", false, false)] {
        assert_eq!(may(&client, user, "default", write).await, may_write, "{user}");
        assert_eq!(may(&client, user, "default", decide).await, may_decide, "{user}");
        assert!(may(&client, user, "default", "get memoriaupgrades.memoria.arca.run").await, "{user}");
        for act in ["update memoriadecisions.memoria.arca.run", "delete memoriadecisions.memoria.arca.run"] {
            assert!(!may(&client, user, "default", act).await, "{user} {act}");
        }
    }
}
