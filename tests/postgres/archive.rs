//! Jobs whose snapshots stay elsewhere, encrypted: each pod has a workplace of its own, so what a Job finds is what an
//! earlier one kept.

use std::{fs, path::Path};

use age::{secrecy::ExposeSecret, x25519::Identity};
use memoria_operator::job::protocol::{BaselineOrder, Facts, GuardOrder, JobInput, JobOrder, RestoreOrder};

use crate::{
    cluster::{Cluster, MEMORIA, give, private_directory},
    restore::{FAILED, Ready, facts},
    s3::{S3, url},
    site::{DIRECTORY, Site, snapshot_order, task},
};

const BASELINE: &str = "prod-0b8ff1f4/prod-1/baseline";
const PERSONAL: &str = "Ada Lovelace";

fn holds(path: &Path, text: &str) -> bool {
    fs::read(path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

/// Keys in a directory that the Jobs' user may read, and the variables that name them with this place.
fn archive(keys: &Path, place: &str) -> Vec<(String, String)> {
    let identity = Identity::generate();
    let (own, public) = (keys.join("identity"), keys.join("recipients"));
    fs::write(&own, identity.to_string().expose_secret()).unwrap();
    fs::write(&public, identity.to_public().to_string()).unwrap();
    give(keys);
    [
        ("MEMORIA_OPERATOR_ARCHIVE", place.to_owned()),
        ("MEMORIA_OPERATOR_RECIPIENTS_FILE", public.display().to_string()),
        ("MEMORIA_OPERATOR_IDENTITY_FILE", own.display().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Snapshot, guard, migration, baseline, a client's rows, and the way back.
async fn goes_and_comes_back(variables: Vec<(String, String)>, kept: &dyn Fn(&str) -> Vec<String>) {
    let (cluster, mut site) = (Cluster::start().await, Site::new());
    site.archive = variables;
    cluster.app(&format!("{MEMORIA}; UPDATE agents SET name = '{PERSONAL}' WHERE agent_id = 'a1'")).await;
    let mut ready = Ready::of(cluster, site).await;
    assert_eq!(kept(DIRECTORY), ["database.dump.age", "manifest.json", "portable", "schema.json"]);

    let task = task(&ready.cluster, "prod-1").await;
    ready.cluster.app("ALTER TABLE agents ADD COLUMN nick TEXT").await;
    let order = BaselineOrder { database: task.clone(), directory: BASELINE.to_owned(), limit_seconds: 30 };
    let answer = ready.site.other_pod().run(&JobOrder::Baseline(order), &ready.cluster).await;
    let Some(Facts::Baseline(found)) = &answer.report.facts else { panic!("{}", answer.report.message) };
    ready.input.late_writes_possible = true;
    ready.input.baseline_sha256 = Some(found.sha256.clone());
    ready.input.accept_data_loss = true;
    ready.cluster.app(&format!("INSERT INTO agents (agent_id, name) VALUES ('late', '{PERSONAL}')")).await;

    let order = RestoreOrder { baseline_directory: Some(BASELINE.to_owned()), ..ready.order().await };
    for _ in 0..2 {
        let pod = ready.site.other_pod();
        let answer = pod.spawn(&JobOrder::Restore(order.clone()), &ready.input, &ready.cluster.url_text()).end().await;
        answer.is(true, "Done", None);
        assert!(facts(&answer).restored);
        ready.is_the_snapshot().await;
    }
    let failed = kept(FAILED);
    for name in ["database.dump.age", "evidence-restore.json.age", "late-0002.ndjson.age", "late.json", "manifest.json"]
    {
        assert!(failed.iter().any(|found| found == name), "{failed:?}");
    }
}

#[tokio::test]
async fn an_attempt_is_kept_encrypted_in_a_bucket_and_taken_back_from_there() {
    let (s3, keys) = (S3::start(), private_directory("keys"));
    let variables = [s3.environment(), archive(keys.path(), &url("memoria"))].concat();
    goes_and_comes_back(variables, &|directory| s3.names(&format!("memoria/{directory}"))).await;
    assert!(!holds(&s3.object(&format!("memoria/{DIRECTORY}/manifest.json")), PERSONAL));
}

#[tokio::test]
async fn an_attempt_is_kept_encrypted_on_a_volume_and_taken_back_from_there() {
    let (keys, volume) = (private_directory("keys"), private_directory("volume"));
    let names = |directory: &str| {
        let entries = fs::read_dir(volume.path().join(directory)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    goes_and_comes_back(archive(keys.path(), &volume.path().display().to_string()), &names).await;
    let kept = volume.path().join(DIRECTORY);
    for name in ["manifest.json", "schema.json", "failed/late.json", "failed/late-0002.ndjson.age", "database.dump.age"]
    {
        assert!(!holds(&kept.join(name), PERSONAL), "{name}");
    }
}

#[tokio::test]
async fn the_guard_compares_with_what_is_kept() {
    let (keys, volume) = (private_directory("keys"), private_directory("volume"));
    let (cluster, mut site) = (Cluster::start().await, Site::new());
    site.archive = archive(keys.path(), &volume.path().display().to_string());
    cluster.app(MEMORIA).await;
    let answer = site.run(&JobOrder::Snapshot(snapshot_order(&cluster).await), &cluster).await;
    let Some(Facts::Snapshot(facts)) = answer.report.facts else { panic!("{:?}", answer.report) };
    fs::write(
        volume.path().join(DIRECTORY).join("reference.json"),
        r#"{"v": 1, "attempt": "run-1", "madeAt": "2026-01-01T00:00:00Z", "builtOn": "none", "why": "a test's"}"#,
    )
    .unwrap();
    let order = JobOrder::Guard(GuardOrder {
        database: task(&cluster, "prod-1").await,
        directory: DIRECTORY.to_owned(),
        reference_directory: DIRECTORY.to_owned(),
        limit_seconds: 60,
    });
    let input = JobInput { manifest_sha256: Some(facts.manifest_sha256), ..JobInput::default() };
    let pod = site.other_pod();
    let mut running = pod.spawn(&order, &input, &cluster.url_text());
    assert!(pod.go().await.proceed);
    running.kill();
    cluster.app("UPDATE agents SET name = 'another'").await;
    let pod = site.other_pod();
    let running = pod.spawn(&order, &input, &cluster.url_text());
    assert!(!pod.go().await.proceed);
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    assert!(!running.terminate().await.report.ok);
}
