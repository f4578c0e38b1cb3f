//! What cannot be carried out, or must not: refused with one message that says what is wrong and what to do, and nothing
//! but the release's own status, events and pre-flight's Jobs is written, by the API server's own log.

mod cases;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{PersistentVolume, PersistentVolumeClaim, ResourceQuota, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use memoria_operator::api::{MemoriaRelease, release::Verdict};
use serde_json::{Value, json};
use tokio::process::Command;

use self::cases::{CASES, Case, FROM, How, LITERAL, SINGLE, TO};
use crate::{
    Outcome,
    audit::Mark,
    checkers::Captured,
    conditions, environment,
    failures::untouched,
    site::{Options, SOON, Site, condition, ready, standing, with_site},
    untouched::versions,
};

/// How many releases may have Jobs at once.
const AT_ONCE: usize = 4;
/// How long the Jobs of as many may take.
const LOOKED: Duration = Duration::from_secs(300);

/// What only a cluster shows, with the condition's reason, and words of the message.
struct Situation {
    name: &'static str,
    reason: &'static str,
    words: &'static [&'static str],
}

const MOVED: Situation = Situation {
    name: "moved-by-hand",
    reason: "UnmanagedImageChange",
    words: &["target server runs registry.arca.run/memoria/server:0.9.1", "Put the recorded image back", "kubectl -n"],
};
const REJECTED: Situation = Situation {
    name: "taken-back-before",
    reason: "PreFlightFailed",
    words: &["taken back by attempt taken-back-before-1", "MigrateFailed", "AcknowledgeRejection"],
};
const POLICY: Situation = Situation {
    name: "policy",
    reason: "PreFlightFailed",
    words: &["admit-job-inspect", "pods of policy need a cost centre", "change the admission policy"],
};
const QUOTA: Situation = Situation {
    name: "quota",
    reason: "PreFlightFailed",
    words: &["admit-job-inspect", "exceeded quota: none-more", "raise the ResourceQuota"],
};

#[tokio::test]
async fn what_is_wrong_is_refused_with_one_message_and_nothing_is_changed() -> Outcome {
    const { assert!(CASES.len() + 4 >= 25) };
    with_site("wrong", Options { rows: 300, ..Options::default() }, async |site| {
        let memoria = Captured::now(site).await?;
        let result = all(site).await;
        // What the namespace does not take with it.
        let volumes: Api<PersistentVolume> = Api::all(site.client.clone());
        let volume = volumes.delete(&volume_name(site), &DeleteParams::default()).await;
        let policy = environment::kubectl(&["delete", "--ignore-not-found", POLICY_OBJECTS, &policy_name(site)]).await;
        result?;
        volume.context("the volume of the claim for one pod")?;
        policy.context("the policy")?;
        remove(site).await?;
        untouched(site, &memoria).await
    })
    .await
}

async fn all(site: &Site) -> Outcome {
    prepare(site).await?;
    let before = at_rest(site).await?;
    let mark = Mark::now()?;

    site.say(&format!("{} releases that cannot be carried out", CASES.len()));
    for case in CASES.iter().filter(|case| case.how == How::NotTaken) {
        not_taken(site, case).await.with_context(|| format!("case {}", case.name))?;
    }
    let read: Vec<_> = CASES.iter().filter(|case| matches!(case.how, How::Read(_))).collect();
    for case in &read {
        create(site, &case.release()).await.with_context(|| format!("case {}", case.name))?;
    }
    for case in &read {
        let How::Read(reason) = case.how else { continue };
        refused(site, case.name, reason, case.words, SOON).await?;
    }
    refused(site, MOVED.name, MOVED.reason, MOVED.words, SOON).await?;
    create(site, &plain(&POLICY)).await?;
    refused(site, POLICY.name, POLICY.reason, POLICY.words, SOON).await?;
    site.say(&format!("{} were refused without a Job", read.len() + 2));

    let looked: Vec<_> = CASES.iter().filter(|case| case.how == How::Jobs).collect();
    for some in looked.chunks(AT_ONCE) {
        for case in some {
            create(site, &case.release()).await.with_context(|| format!("case {}", case.name))?;
        }
        for case in some {
            refused(site, case.name, "PreFlightFailed", case.words, LOOKED).await?;
        }
    }
    let go = json!({"spec": {"suspend": false}});
    site.api::<MemoriaRelease>().patch(REJECTED.name, &PatchParams::default(), &Patch::Merge(go)).await?;
    refused(site, REJECTED.name, REJECTED.reason, REJECTED.words, LOOKED).await?;
    quota(site).await?;

    nothing_is_changed(site, &before).await?;
    let with_jobs: Vec<_> = looked.iter().map(|case| case.name).chain([REJECTED.name]).collect();
    only_its_own_is_written(site, &mark, &with_jobs)
}

/// A release of that situation as it should be.
fn plain(situation: &Situation) -> Value {
    of_name(situation.name).release()
}

fn of_name(name: &'static str) -> Case {
    Case { name, how: cases::FAILED, words: &[], objects: |_| {}, release: |_| {} }
}

fn objects() -> Value {
    let mut objects: Vec<Value> = CASES.iter().flat_map(Case::objects).collect();
    for situation in [MOVED, REJECTED, POLICY, QUOTA] {
        objects.extend(of_name(situation.name).objects());
    }
    json!({"apiVersion": "v1", "kind": "List", "items": objects})
}

/// What this test added, so that Memoria can be compared with how it was before.
async fn remove(site: &Site) -> Outcome {
    let of_ours = ["-n", site.namespace.as_str(), "delete", "--ignore-not-found"];
    // Without the older one it would be carried out.
    environment::kubectl(&[&of_ours[..], &["mrel/twice"]].concat()).await?;
    environment::kubectl(&[&of_ours[..], &["mrel", "--all"]].concat()).await?;
    let mut kubectl = Command::new("kubectl");
    kubectl.args(of_ours).args(["-f", "-"]);
    environment::run(&mut kubectl, Some(&objects().to_string())).await?;
    environment::kubectl(&[&of_ours[..], &["secret/wrong", &format!("pvc/{SINGLE}")]].concat()).await.map(drop)
}

/// Everything that stands before the operator is asked.
async fn prepare(site: &Site) -> Outcome {
    databases(site).await?;
    apply(site, &single(site)).await?;
    apply(site, &policy(site)).await?;
    apply(site, &objects()).await?;

    let mut moved = plain(&MOVED);
    moved["spec"]["version"] = json!(FROM);
    create(site, &moved).await?;
    let mut rejected = plain(&REJECTED);
    rejected["spec"]["suspend"] = json!(true);
    create(site, &rejected).await?;
    until(site, MOVED.name, SOON, |release| ready(release).then_some(())).await?;
    until(site, "older", SOON, |release| ready(release).then_some(())).await?;
    until(site, REJECTED.name, SOON, |release| (standing(release).1 == "Suspended").then_some(())).await?;
    let image = format!("server=registry.arca.run/memoria/server:{FROM}").replace(FROM, "0.9.1");
    let moves = ["-n", &site.namespace, "set", "image", "deployment/moved-by-hand", &image];
    environment::kubectl(&moves).await?;
    // As an attempt that was taken back for the images' own fault leaves it.
    let digests = [environment::digest("memoria/server", TO)?];
    let status = json!({"status": {"rejected": [{
        "attempt": "taken-back-before-1", "version": TO, "digests": digests, "reason": "MigrateFailed",
        "at": "2026-01-10T03:00:00Z"}]}});
    let releases: Api<MemoriaRelease> = site.api();
    releases.patch_status(REJECTED.name, &PatchParams::default(), &Patch::Merge(status)).await?;

    let claims: Api<PersistentVolumeClaim> = site.api();
    for _ in 0..SOON.as_secs() {
        let phase = claims.get(SINGLE).await?.status.and_then(|status| status.phase);
        if phase.as_deref() == Some("Bound") && is_enforced(site).await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    bail!("the claim is not bound, or the policy not in force, within {} s", SOON.as_secs())
}

/// Databases beside Memoria's, each with one thing that no snapshot or restore could handle, and a Secret with their URLs.
async fn databases(site: &Site) -> Outcome {
    let script = "\
        CREATE DATABASE wrong_rows OWNER memoria;\nCREATE DATABASE wrong_view OWNER memoria;\n\
        CREATE DATABASE wrong_table OWNER memoria;\nCREATE DATABASE wrong_large OWNER memoria;\n\
        \\connect wrong_rows\nSET ROLE memoria;\nCREATE TABLE public.notes (id int PRIMARY KEY);\n\
        ALTER TABLE public.notes ENABLE ROW LEVEL SECURITY;\nALTER TABLE public.notes FORCE ROW LEVEL SECURITY;\n\
        \\connect wrong_view\nCREATE TABLE public.notes (id int PRIMARY KEY);\nALTER TABLE public.notes OWNER TO memoria;\n\
        CREATE SCHEMA reports;\nCREATE VIEW reports.everything AS SELECT * FROM public.notes;\n\
        \\connect wrong_table\nCREATE TABLE public.audits (id int PRIMARY KEY);\n\
        \\connect wrong_large\nSET ROLE memoria;\nSELECT lo_create(0);\n";
    site.as_superuser("postgres", script).await.context("the databases")?;

    let secret: Secret = site.api().get("memoria-db").await?;
    let url = secret.data.and_then(|mut data| data.remove("url")).context("the database's URL")?;
    let url = String::from_utf8(url.0)?;
    let (server, query) = url.split_once("/memoria?").context("a URL of the database memoria")?;
    let of = |database: &str| json!(format!("{server}/wrong_{database}?{query}"));
    let secret = json!({"metadata": {"name": "wrong"}, "stringData": {
        "rows": of("rows"), "view": of("view"), "table": of("table"), "large": of("large"), "nowhere": of("nowhere"),
        "mysql": "mysql://memoria@memoria-postgres/memoria"}});
    site.api::<Secret>().create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    Ok(())
}

fn volume_name(site: &Site) -> String {
    format!("{}-{SINGLE}", site.namespace)
}

/// A claim for a single pod, and a volume for it: the cluster's own volumes offer no such thing.
fn single(site: &Site) -> Value {
    let volume = volume_name(site);
    let common = json!({"accessModes": ["ReadWriteOncePod"], "storageClassName": ""});
    let (mut claim, mut spec) = (common.clone(), common);
    claim["volumeName"] = json!(volume);
    claim["resources"] = json!({"requests": {"storage": "1Mi"}});
    spec["capacity"] = json!({"storage": "1Mi"});
    spec["csi"] = json!({"driver": "memoria-operator-test", "volumeHandle": volume});
    spec["claimRef"] = json!({"namespace": site.namespace, "name": SINGLE});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": SINGLE}, "spec": claim},
    ]})
}

const POLICY_OBJECTS: &str = "validatingadmissionpolicies,validatingadmissionpolicybindings";

fn policy_name(site: &Site) -> String {
    format!("{}-cost-centre", site.namespace)
}

/// A policy for the pods of one release of this namespace.
fn policy(site: &Site) -> Value {
    let (name, namespace) = (policy_name(site), &site.namespace);
    let release = "'memoria.arca.run/release'";
    let labels = "object.metadata.?labels";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                    "resourceRules": [
                        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                },
                "matchConditions": [
                    {"name": "release", "expression": format!("{labels}[?{release}].orValue('') == 'policy'")}],
                "validations": [{
                    "expression": format!("{labels}[?'cost-centre'].hasValue()"),
                    "message": "pods of policy need a cost centre",
                }],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]})
}

/// The API server learns of policies by a watch of its own.
async fn is_enforced(site: &Site) -> Result<bool> {
    let mut pod = of_name(POLICY.name).objects()[0]["spec"]["template"].clone();
    pod["metadata"] = json!({"name": "policy-trial", "labels": {"memoria.arca.run/release": POLICY.name}});
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let api: Api<k8s_openapi::api::core::v1::Pod> = site.api();
    match api.create(&params, &serde_json::from_value(pod)?).await {
        Ok(_) => Ok(false),
        Err(error) if error.to_string().contains("cost centre") => Ok(true),
        Err(error) => Err(error).context("the policy's trial"),
    }
}

async fn apply(site: &Site, object: &Value) -> Outcome {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(["-n", &site.namespace, "apply", "-f", "-"]);
    environment::run(&mut kubectl, Some(&object.to_string())).await.map(drop)
}

async fn create(site: &Site, release: &Value) -> Outcome {
    site.create(&serde_json::from_value(release.clone())?).await
}

/// The API server's own answer to somebody who writes it by hand.
async fn not_taken(site: &Site, case: &Case) -> Outcome {
    let kind = kube::api::ApiResource::erase::<MemoriaRelease>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(site.client.clone(), &site.namespace, &kind);
    let Err(refused) = api.create(&PostParams::default(), &serde_json::from_value(case.release())?).await else {
        bail!("the release was taken")
    };
    let message = refused.to_string();
    for word in case.words {
        ensure!(message.contains(word), "the message does not name {word:?}: {message}");
    }
    Ok(())
}

/// The release says what is wrong in one message, and does not go on.
async fn refused(site: &Site, name: &str, reason: &str, words: &[&str], limit: Duration) -> Outcome {
    let release = until(site, name, limit, |release| condition(release, "Stalled").map(|_| release.clone())).await?;
    let (phase, found, message) = standing(&release);
    ensure!(found == reason, "case {name}: {phase}/{found}, not {reason}: {message}");
    for word in words {
        ensure!(message.contains(word), "case {name}: the message does not name {word:?}: {message}");
    }
    let failed: Vec<_> =
        release.status.iter().flat_map(|status| &status.pre_flight).flat_map(|run| &run.checks).collect();
    let failed: Vec<_> = failed.into_iter().filter(|check| check.result == Verdict::Failed).collect();
    ensure!(failed.len() <= 1, "case {name}: not one message but {failed:#?}");
    let text = serde_json::to_string(&release.status)?;
    ensure!(!text.contains(LITERAL), "case {name}: a password stands in the status");
    site.say(&format!("{name}: {}", message.lines().next().unwrap_or_default()));
    Ok(())
}

async fn until<T>(site: &Site, name: &str, limit: Duration, ask: impl Fn(&MemoriaRelease) -> Option<T>) -> Result<T> {
    let (api, end): (Api<MemoriaRelease>, _) = (site.api(), Instant::now() + limit);
    loop {
        let release = api.get(name).await.with_context(|| format!("release {name}"))?;
        conditions::lint(&release).with_context(|| format!("release {name}"))?;
        if let Some(answer) = ask(&release) {
            return Ok(answer);
        }
        let (phase, reason, message) = standing(&release);
        ensure!(Instant::now() < end, "case {name}: after {} s {phase}/{reason}: {message}", limit.as_secs());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A namespace that is full: the last of all, because it holds for every release in it.
async fn quota(site: &Site) -> Outcome {
    let quotas: Api<ResourceQuota> = site.api();
    let quota = json!({"metadata": {"name": "none-more"}, "spec": {"hard": {"pods": "1"}}});
    quotas.create(&PostParams::default(), &serde_json::from_value(quota)?).await?;
    for _ in 0..SOON.as_secs() {
        let counted = quotas.get("none-more").await?.status.and_then(|status| status.used);
        if counted.is_some_and(|used| used.contains_key("pods")) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    create(site, &plain(&QUOTA)).await?;
    let result = refused(site, QUOTA.name, QUOTA.reason, QUOTA.words, SOON).await;
    quotas.delete("none-more", &DeleteParams::default()).await?;
    result
}

/// What is there once the controllers of Kubernetes have seen all of it and made theirs of it.
async fn at_rest(site: &Site) -> Result<BTreeMap<String, String>> {
    let end = Instant::now() + SOON;
    let mut last = versions(site).await?;
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let deployments: Vec<Deployment> = site.list().await?;
        let seen = |d: &Deployment| d.status.as_ref().and_then(|s| s.observed_generation) == d.metadata.generation;
        let now = versions(site).await?;
        if now == last && deployments.iter().all(seen) {
            return Ok(now);
        }
        ensure!(Instant::now() < end, "the controllers do not come to rest");
        last = now;
    }
}

/// What was there is there as it was, and no more than that. The Jobs of the checks go in the background.
async fn nothing_is_changed(site: &Site, before: &BTreeMap<String, String>) -> Outcome {
    let end = Instant::now() + SOON;
    loop {
        let after = versions(site).await?;
        let changed: Vec<_> = after.iter().filter(|(name, version)| before.get(*name) != Some(version)).collect();
        let gone: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
        if changed.is_empty() && gone.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "changed: {changed:?}, gone: {gone:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// By the API server's log, the operator wrote status and events, and Jobs only for those releases.
fn only_its_own_is_written(site: &Site, mark: &Mark, with_jobs: &[&str]) -> Outcome {
    let mut written = 0;
    for write in mark.since()?.iter().filter(|write| write.is_the_operators() && write.succeeded()) {
        let object = write.object_ref.clone().unwrap_or_default();
        if object.namespace != site.namespace {
            continue;
        }
        written += 1;
        let expected = match object.resource.as_str() {
            "events" => true,
            "memoriareleases" => object.subresource == "status",
            "jobs" => with_jobs.iter().any(|name| object.name.starts_with(&format!("{name}-pf-"))),
            _ => false,
        };
        ensure!(expected, "the operator wrote something else: {write:?}");
    }
    ensure!(written > CASES.len(), "the log has only {written} writes of the operator: is it the right one?");
    Ok(())
}
