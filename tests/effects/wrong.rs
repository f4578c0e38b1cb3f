//! The table of what is wrong or dangerous, as far as it is known without a kubelet: each case is refused with its words
//! and one message, no Job is asked for, and nothing is written.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
};
use memoria_operator::{
    api::{MemoriaRelease, release::Verdict},
    cluster::{adopt, preflight::first_refused},
    upgrade::preflight::{Answer, OperatorImages, Question, preflight},
};
use serde_json::{Value, json};

use crate::server::server;

#[path = "../e2e/wrong/cases.rs"]
mod cases;

use cases::{CASES, Case, How, LITERAL, SINGLE};

const NS: &str = "wrong";
const VOLUME: &str = "wrong-single";

async fn create(client: &Client, object: &Value) -> Result<DynamicObject, kube::Error> {
    let text = |key: &str| object[key].as_str().unwrap();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind")));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NS, &kind);
    api.create(&PostParams::default(), &serde_json::from_value(object.clone()).unwrap()).await
}

/// A claim for one pod, as the volume controller would bind it.
async fn single(client: &Client) {
    let common = json!({"accessModes": ["ReadWriteOncePod"], "storageClassName": ""});
    let (mut volume, mut claim) = (common.clone(), common);
    volume["capacity"] = json!({"storage": "1Mi"});
    volume["csi"] = json!({"driver": "none", "volumeHandle": VOLUME});
    claim["volumeName"] = json!(VOLUME);
    claim["resources"] = json!({"requests": {"storage": "1Mi"}});
    let object = json!({"metadata": {"name": VOLUME}, "spec": volume});
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let object =
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": SINGLE}, "spec": claim});
    create(client, &object).await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), NS);
    let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    claims.patch_status(SINGLE, &PatchParams::default(), &bound).await.unwrap();
}

/// As the controller asks, up to the first Jobs.
async fn ask(client: &Client, release: &MemoriaRelease) -> Answer {
    let adopted = adopt(client, NS, release).await.unwrap();
    let images = OperatorImages {
        operator: "registry.arca.run/memoria-operator:0.1.0".to_owned(),
        tools: BTreeMap::from([(15, "registry.arca.run/memoria-operator-tools:15".to_owned())]),
    };
    let now = Timestamp::now();
    let answer = preflight(&Question {
        release,
        adopted: &adopted,
        jobs: &BTreeMap::new(),
        images: &images,
        attempt: "wrong-1",
        known_attempts: &[],
        needed_attempts: &[],
        acknowledged: &[],
        dry_run: None,
        now,
    });
    match &answer {
        Answer::Checking { jobs, .. } => match first_refused(client, NS, jobs).await {
            Some(refused) => answer.not_admitted(refused, release, now),
            None => answer,
        },
        _ => answer,
    }
}

fn judge(case: &Case, answer: &Answer) {
    let (reason, message, failed) = match answer {
        Answer::Refused { reason, message, .. } => (*reason, message, 1),
        Answer::NotPassed { status, reason, message } => {
            (*reason, message, status.checks.iter().filter(|check| check.result != Verdict::Passed).count())
        }
        Answer::Checking { jobs, .. } => {
            assert_eq!(case.how, How::Jobs, "{} is not found out", case.name);
            assert_eq!(jobs.len(), 3, "{}", case.name);
            return;
        }
        other => panic!("{}: {other:?}", case.name),
    };
    assert_eq!(case.how, How::Read(reason), "{}: {message}", case.name);
    assert_eq!(failed, 1, "{}: not one message but {message}", case.name);
    for word in case.words {
        assert!(message.contains(word), "{}: no {word:?} in {message}", case.name);
    }
    assert!(!message.contains(LITERAL), "{}: {message}", case.name);
}

#[tokio::test]
async fn each_case_is_refused_with_one_message_and_nothing_is_written() {
    server().namespace(NS).await;
    let client = server().client();
    let restricted = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.patch(NS, &PatchParams::default(), &Patch::Merge(restricted)).await.unwrap();
    // The server learns of the label by a watch of its own.
    tokio::time::sleep(Duration::from_secs(2)).await;
    single(&client).await;
    let mut releases = Vec::new();
    for case in CASES {
        for object in case.objects() {
            create(&client, &object).await.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        }
        match (case.how, create(&client, &case.release()).await) {
            (How::NotTaken, refused) => {
                let message = refused.expect_err(case.name).to_string();
                for word in case.words {
                    assert!(message.contains(word), "{}: no {word:?} in {message}", case.name);
                }
            }
            (_, made) => {
                let made = serde_json::to_value(made.unwrap_or_else(|error| panic!("{}: {error}", case.name))).unwrap();
                releases.push((case, serde_json::from_value::<MemoriaRelease>(made).unwrap()));
            }
        }
    }
    let before = versions(&client).await;
    for (case, release) in &releases {
        judge(case, &ask(&client, release).await);
    }
    assert_eq!(versions(&client).await, before);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.delete(VOLUME, &DeleteParams::default()).await.unwrap();
}

/// Name and version of everything that pre-flight could have touched.
async fn versions(client: &Client) -> BTreeMap<String, Option<String>> {
    let mut all = BTreeMap::new();
    for (group, kind) in [
        ("apps", "Deployment"),
        ("apps", "StatefulSet"),
        ("batch", "Job"),
        ("", "Pod"),
        ("", "ConfigMap"),
        ("", "PersistentVolumeClaim"),
        ("memoria.arca.run", "MemoriaRelease"),
        ("memoria.arca.run", "MemoriaUpgrade"),
    ] {
        let version = if group == "memoria.arca.run" { "v1alpha1" } else { "v1" };
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NS, &kind);
        for object in api.list(&ListParams::default()).await.unwrap().items {
            all.insert(format!("{}/{}", kind.kind, object.name_any()), object.resource_version());
        }
    }
    all
}
