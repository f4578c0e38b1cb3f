//! Erasure on request, where the way back would need the data.

use std::{fs, process::Command};

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{GuardOrder, JobOrder},
};
use serde_json::Value;

use crate::{
    cluster::MEMORIA,
    late::Upgraded,
    reference,
    site::{DIRECTORY, task},
};

#[tokio::test]
async fn neither_migration_nor_restore_begins_on_an_erased_snapshot() {
    let upgraded = Upgraded::with("").await;
    let (cluster, site) = (&upgraded.ready.cluster, &upgraded.ready.site);
    cluster.app("INSERT INTO consents (agent) VALUES ('a1')").await;
    // With more lost than it may, the restore keeps the failed state and the late rows, and asks.
    upgraded.restore(0).await.is(false, "DataLossOverBudget", Some(Category::Decision));
    let directory = site.storage.join(DIRECTORY);
    // A run's, so it lies elsewhere.
    reference::build(&site.other_pod(), MEMORIA).await.is(true, "Done", None);
    fs::create_dir(site.storage.join("run")).unwrap();
    fs::rename(directory.join("reference.json"), site.storage.join("run/reference.json")).unwrap();
    let erase = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
        command.args(["snapshot", "erase"]).arg(&directory).args(["--reason", "request 4711", "--by", "ada"]);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let erased = erase(&["--yes", "--json"]);
    let gone: Vec<_> = erased["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    for name in ["/database.dump", "/portable/memoria.ndjson.zst", "/baseline/baseline-0001.rows"] {
        assert!(gone.iter().any(|file| file.ends_with(name)), "{name}: {gone:?}");
    }
    assert_eq!(gone.iter().filter(|file| file.contains("/failed/")).count(), 2, "dump and late rows: {gone:?}");
    assert!(directory.join("manifest.json").exists() && directory.join("failed/late.json").exists());

    let restore = upgraded.restore(9).await;
    restore.is(false, "SnapshotErased", Some(Category::Environment));
    assert!(restore.report.message.contains("by ada: request 4711"), "{}", restore.report.message);
    let pod = site.other_pod();
    let order = GuardOrder {
        database: task(cluster, "prod-1").await,
        directory: DIRECTORY.to_owned(),
        reference_directory: "run".to_owned(),
        limit_seconds: 60,
    };
    let guard = pod.spawn(&JobOrder::Guard(order), &upgraded.ready.input, &cluster.url_text());
    assert!(!pod.go().await.proceed);
    let _: Value = pod.wait_for("verdict.json").await;
    guard.terminate().await.is(false, "SnapshotErased", Some(Category::Environment));
    // Nothing of the database was touched.
    let kept: (i64,) =
        sqlx::query_as("SELECT count(*) FROM consents").fetch_one(&mut cluster.admin().await).await.unwrap();
    assert_eq!(kept.0, 1);
    let again = erase(&["--yes", "--json"]);
    assert_eq!((again["files"].as_array().unwrap().len(), &again["record"]), (0, &erased["record"]));
    assert!(fs::read_dir(directory.join("baseline")).unwrap().count() == 2, "baseline.json and the record");
}
