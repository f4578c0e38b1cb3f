//! The snapshot Job: what it stores is the database, whole, or it is no snapshot.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{Facts, JobInput, JobOrder, SnapshotFacts},
    rescue,
    snapshot::{
        manifest::Manifest,
        portable::{
            manifest::{Found, find},
            shelf,
        },
    },
};
use serde_json::json;

use crate::{
    python::Python,
    site::{Answer, DIRECTORY, MEMORIA, Site},
};

pub fn facts(answer: &Answer) -> SnapshotFacts {
    match &answer.report.facts {
        Some(Facts::Snapshot(facts)) => facts.clone(),
        other => panic!("{other:?}: {}", answer.report.message),
    }
}

#[tokio::test]
async fn a_snapshot_holds_the_wal_too_and_the_live_file_is_as_before() {
    let site = Site::with("wal", MEMORIA);
    let mut app = Python::open(&site.database());
    app.must("PRAGMA wal_autocheckpoint=0")
        .must("INSERT INTO teams VALUES ('t9', 'ninth', NULL)")
        .must("PRAGMA user_version=7");
    app.kill();
    let answer = site.run(&JobOrder::Snapshot(site.snapshot_order())).await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert_eq!((found.tables, found.rows, found.restored_in_scratch), (3, 300, true));
    let directory = site.storage.join(DIRECTORY);
    let manifest: Manifest = serde_json::from_slice(&fs::read(directory.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((manifest.kind.as_str(), manifest.tables["teams"].rows), ("sqlite", 3));
    assert_eq!(manifest.sequences["memory_access_events"].last_value, 300);
    let file = manifest.sqlite.unwrap();
    assert_eq!((file.journal_mode.as_str(), file.header.user_version, file.dangling_rows), ("wal", 7, 0));
    // By hand: another library reads the copy, and its bytes are what the manifest says.
    let copy = directory.join("database.sqlite");
    let hashed = Command::new("sha256sum").arg(&copy).output().unwrap();
    assert!(String::from_utf8_lossy(&hashed.stdout).starts_with(&manifest.files["database.sqlite"].sha256));
    let mut reader = Python::open(&copy);
    assert!(reader.run("SELECT name FROM teams WHERE team_id = 't9'").contains("ninth"));
    assert_eq!(reader.run("PRAGMA integrity_check"), "ok [('ok',)]");
    drop(reader);
    assert_eq!((site.journal_mode().as_str(), site.markers().journal_mode), ("wal", None));
    let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
    // Beside it lies what Memoria's own import reads, of the same moment.
    let place = directory.join(found.portable_directory.unwrap());
    let Found::Portable(exported) = find(&place).unwrap() else { panic!("no export") };
    assert_eq!(exported.data_digest, manifest.data_digest);
    assert_eq!(shelf::prune(&site.storage, 1, false).unwrap(), []);
    let exported = place.join("memoria.ndjson.zst");
    fs::write(&exported, &fs::read(&exported).unwrap()[1..]).unwrap();
    let damaged = site.run(&JobOrder::Snapshot(site.snapshot_order())).await;
    damaged.is(false, "SnapshotDamaged", Some(Category::Environment));
}

#[tokio::test]
async fn what_rescue_needs_lies_beside_the_copy_under_the_manifests_hash() {
    let site = Site::with("delete", MEMORIA);
    let mut order = site.snapshot_order();
    let state = json!({"v": 1, "namespace": "memoria", "release": "prod", "releaseUid": order.database.release_uid,
        "attempt": "prod-1", "from": "0.9.0", "to": "1.0.0", "engine": "Sqlite", "targets": [], "workers": [],
        "storage": {"claimName": "prod-snapshots", "directory": DIRECTORY}, "restore": {}});
    order.rescue = Some(serde_json::from_value(state).unwrap());
    let answer = site.run(&JobOrder::Snapshot(order.clone())).await;
    answer.is(true, "Done", None);
    let found = rescue::find(&site.storage, None).unwrap();
    assert_eq!((Some(&found.state), found.stored.sha256), (order.rescue.as_deref(), facts(&answer).manifest_sha256));
    site.run(&JobOrder::Snapshot(order.clone())).await.is(true, "Done", None);

    let file = site.storage.join(DIRECTORY).join("rescue.json");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("0.9.0", "6.6.6")).unwrap();
    let refused = site.run(&JobOrder::Snapshot(order)).await;
    refused.is(false, "SnapshotDamaged", Some(Category::Environment));
    assert!(rescue::find(&site.storage, None).is_err());
}

#[tokio::test]
async fn a_repeated_snapshot_is_checked_again_and_never_overwritten() {
    let site = Site::with("delete", MEMORIA);
    let mut order = site.snapshot_order();
    let first = site.run(&JobOrder::Snapshot(order.clone())).await;
    first.is(true, "Done", None);
    site.execute("DELETE FROM teams");
    let second = site.run(&JobOrder::Snapshot(order.clone())).await;
    assert_eq!(facts(&first), facts(&second));

    order.database.attempt = "prod-2".to_owned();
    let other = site.run(&JobOrder::Snapshot(order.clone())).await;
    other.is(false, "SnapshotOccupied", Some(Category::Conflict));

    order.database.attempt = "prod-1".to_owned();
    let copy = site.storage.join(DIRECTORY).join("database.sqlite");
    let mut bytes = fs::read(&copy).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&copy, bytes).unwrap();
    let damaged = site.run(&JobOrder::Snapshot(order)).await;
    damaged.is(false, "SnapshotDamaged", Some(Category::Environment));
}

#[tokio::test]
async fn a_snapshot_killed_at_any_moment_is_made_anew() {
    let site = Site::with("wal", MEMORIA);
    site.execute(
        "CREATE TABLE big (i INTEGER PRIMARY KEY, t TEXT); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
            INSERT INTO big SELECT i, hex(randomblob(700)) FROM n",
    );
    let order = JobOrder::Snapshot(site.snapshot_order());
    let manifest = site.storage.join(DIRECTORY).join("manifest.json");
    let started = Instant::now();
    let mut kills = 0;
    for millis in [30, 80, 200, 400, 700, 1000, 1500] {
        let pod = site.other_pod();
        let mut running = pod.spawn(&order, &JobInput::default(), &site.url());
        tokio::time::sleep(Duration::from_millis(millis)).await;
        if manifest.exists() {
            break;
        }
        running.kill();
        kills += 1;
        assert!(!manifest.exists() || millis > 400, "after {:?}", started.elapsed());
    }
    assert!(kills > 2, "it was never killed while it worked");
    let answer = site.other_pod().run(&order).await;
    answer.is(true, "Done", None);
    assert_eq!(facts(&answer).rows, 30_299);
    assert_eq!((site.journal_mode().as_str(), site.markers().journal_mode), ("wal", None));
}

#[tokio::test]
async fn a_holder_a_damaged_file_and_dangling_rows() {
    let site = Site::with("wal", MEMORIA);
    site.execute("INSERT INTO teams VALUES ('t8', 'eighth', 'nobody')");
    let answer = site.run(&JobOrder::Snapshot(site.snapshot_order())).await;
    answer.is(true, "Done", None);
    let bytes = fs::read(site.storage.join(DIRECTORY).join("manifest.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Manifest>(&bytes).unwrap().sqlite.unwrap().dangling_rows, 1);

    let site = Site::with("delete", MEMORIA);
    let mut hand = Python::open(&site.database());
    hand.must("CREATE INDEX by_memory ON memory_access_events (memory_id)").must("PRAGMA writable_schema=ON");
    hand.must("UPDATE sqlite_schema SET sql = 'CREATE INDEX by_memory ON memory_access_events (score)' WHERE name = 'by_memory'");
    drop(hand);
    assert!(Python::open(&site.database()).run("PRAGMA integrity_check").contains("missing from index"));
    let answer = site.run(&JobOrder::Snapshot(site.snapshot_order())).await;
    answer.is(false, "DatabaseDamaged", Some(Category::Environment));
    assert!(!site.storage.join(DIRECTORY).join("database.sqlite").exists());
}
