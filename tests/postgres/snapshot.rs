//! The snapshot Job: what it stores is the database, whole, or it is no snapshot.

use std::{fs, process::Command, time::Duration};

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{DATABASE_URL_ENV, Facts, JobInput, JobOrder, RestoreOrder, SnapshotFacts},
    rescue::{self, RescueState},
    snapshot::{
        manifest::Manifest,
        portable::{
            Proof,
            manifest::{Found, find},
            shelf,
        },
    },
};
use serde_json::json;

use crate::{
    cluster::{Cluster, MEMORIA, PASSWORD, PASSWORD_ENCODED, bin, run},
    site::{DIRECTORY, RELEASE, Site, holds_no_password, snapshot_order},
};

fn facts(answer: &crate::site::Answer) -> SnapshotFacts {
    match &answer.report.facts {
        Some(Facts::Snapshot(facts)) => facts.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_snapshot_is_stored_read_back_and_restored_with_the_same_digests() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    // What a plain `--no-owner --no-privileges` restore would lose unseen.
    cluster
        .app(
            "GRANT SELECT ON agents TO visitor; GRANT UPDATE (name) ON teams TO visitor; ALTER TABLE teams ENABLE ROW LEVEL SECURITY;
             CREATE POLICY mine ON teams FOR SELECT TO visitor USING (lead = current_user); CREATE PUBLICATION p FOR TABLE agents;
             CREATE SCHEMA extra; CREATE TABLE extra.t (a int[], j jsonb, r int4range); INSERT INTO extra.t VALUES ('{1,NULL}', '{\"b\":1}', '[1,5)')",
        )
        .await;
    let order = JobOrder::Snapshot(snapshot_order(&cluster).await);
    let answer = site.run(&order, &cluster).await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert_eq!((found.tables, found.rows, found.restored_in_scratch), (6, 559, true));

    let directory = site.storage.join(DIRECTORY);
    let manifest: Manifest = serde_json::from_slice(&fs::read(directory.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest.tables["public.long_term_memory"].rows, 200);
    assert_eq!(manifest.sequences["public.memory_access_events_id_seq"].last_value, 300);
    assert_eq!(manifest.data_digest, found.data_digest);
    assert!(manifest.access_fingerprint.len() == 64 && manifest.session_settings["timezone"] == "UTC");
    // By hand: the dump is one that pg_restore reads, and its bytes are what the manifest says.
    let listed =
        Command::new(bin().join("pg_restore")).arg("--list").arg(directory.join("database.dump")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).matches(" TABLE DATA ").count(), 6);
    let hashed = Command::new("sha256sum").arg(directory.join("database.dump")).output().unwrap();
    assert!(String::from_utf8_lossy(&hashed.stdout).starts_with(&manifest.files["database.dump"].sha256));
    // Beside it lies what Memoria's own import reads, of the same moment, proved by the same digests.
    let place = directory.join(found.portable_directory.unwrap());
    let Found::Portable(exported) = find(&place).unwrap() else { panic!("no export") };
    assert_eq!((exported.data_digest, exported.proof), (manifest.data_digest.clone(), Proof::Server));
    let main = zstd::decode_all(fs::File::open(place.join("memoria.ndjson.zst")).unwrap()).unwrap();
    let rows = String::from_utf8(main).unwrap();
    assert_eq!(rows.lines().filter(|line| line.contains("\"long_term_memory\"")).count(), 201);
    // By hand it is not taken for an export that may go.
    assert_eq!(shelf::prune(&site.storage, 1, false).unwrap(), []);
    holds_no_password(&site.storage);
    // Nothing of it stays in the database.
    let left: (i64,) = sqlx::query_as("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mop-%'")
        .fetch_one(&mut cluster.admin().await)
        .await
        .unwrap();
    assert_eq!(left.0, 0);
}

#[tokio::test]
async fn what_rescue_needs_lies_beside_the_dump_under_the_manifests_hash() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    let mut order = snapshot_order(&cluster).await;
    let restore = RestoreOrder {
        database: order.database.clone(),
        directory: DIRECTORY.to_owned(),
        failed_directory: format!("{DIRECTORY}/failed"),
        baseline_directory: None,
        data_loss_budget_rows: 0,
        carry_forward: Vec::new(),
        limit_seconds: 60,
    };
    order.rescue = Some(Box::new(rescue_state(&JobOrder::Restore(restore))));
    let answer = site.run(&JobOrder::Snapshot(order.clone()), &cluster).await;
    answer.is(true, "Done", None);
    let found = rescue::find(&site.storage, None).unwrap();
    assert_eq!((Some(&found.state), found.stored.sha256), (order.rescue.as_deref(), facts(&answer).manifest_sha256));

    let rescue = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
        command.args(["rescue", "--attempt", "prod-1", "--storage"]).arg(&site.storage);
        command
    };
    let output = rescue().env(DATABASE_URL_ENV, cluster.url_text()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("markers in the database: none of this attempt"), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("\"name\": \"prod-1-rescue\""), "{printed}");
    for secret in [PASSWORD, PASSWORD_ENCODED] {
        assert!(!printed.contains(secret) && !said.contains(secret), "a password was printed");
    }

    // Another state than the one that was planned is none.
    let file = site.storage.join(DIRECTORY).join("rescue.json");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("0.9.0", "6.6.6")).unwrap();
    let refused = site.run(&JobOrder::Snapshot(order), &cluster).await;
    refused.is(false, "SnapshotDamaged", Some(Category::Environment));
    let refused = rescue().output().unwrap();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
}

fn rescue_state(restore: &JobOrder) -> RescueState {
    let order = serde_json::to_string(restore).unwrap();
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "prod-1-restore"}, "spec": {"template": {"spec":
        {"restartPolicy": "Never", "containers": [{"name": "main", "env": [{"name": "MEMORIA_OPERATOR_JOB", "value": order}]}]}}}});
    serde_json::from_value(
        json!({"v": 1, "namespace": "memoria", "release": "prod", "releaseUid": RELEASE, "attempt": "prod-1",
        "from": "0.9.0", "to": "1.0.0", "targets": [], "workers": [], "restore": job,
        "storage": {"claimName": "prod-snapshots", "directory": DIRECTORY}}),
    )
    .unwrap()
}

#[tokio::test]
async fn a_repeated_snapshot_is_checked_again_and_never_overwritten() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    let mut order = snapshot_order(&cluster).await;
    let first = site.run(&JobOrder::Snapshot(order.clone()), &cluster).await;
    first.is(true, "Done", None);
    cluster.app("DELETE FROM teams WHERE team_id = 't5'").await;
    let second = site.run(&JobOrder::Snapshot(order.clone()), &cluster).await;
    assert_eq!(facts(&first), facts(&second));

    order.database.attempt = "prod-2".to_owned();
    let other = site.run(&JobOrder::Snapshot(order.clone()), &cluster).await;
    other.is(false, "SnapshotOccupied", Some(Category::Conflict));

    order.database.attempt = "prod-1".to_owned();
    let exported = site.storage.join(DIRECTORY).join("portable/others.ndjson.zst");
    let whole = fs::read(&exported).unwrap();
    fs::write(&exported, &whole[1..]).unwrap();
    let damaged = site.run(&JobOrder::Snapshot(order.clone()), &cluster).await;
    damaged.is(false, "SnapshotDamaged", Some(Category::Environment));
    fs::write(&exported, whole).unwrap();
    let dump = site.storage.join(DIRECTORY).join("database.dump");
    let mut bytes = fs::read(&dump).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&dump, bytes).unwrap();
    let damaged = site.run(&JobOrder::Snapshot(order), &cluster).await;
    damaged.is(false, "SnapshotDamaged", Some(Category::Environment));
}

#[tokio::test]
async fn a_snapshot_killed_in_the_middle_is_made_anew() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    cluster.app("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 40) AS t FROM generate_series(1, 40000) i").await;
    let order = JobOrder::Snapshot(snapshot_order(&cluster).await);
    let directory = site.storage.join(DIRECTORY);
    let mut running = site.spawn(&order, &JobInput::default(), &cluster.url_text());
    while fs::metadata(directory.join("database.dump")).map_or(0, |file| file.len()) < 4096 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.kill();
    assert!(!directory.join("manifest.json").exists());
    // A kill leaves the passfile behind in the pod's own scratch; the pod goes, and with it the scratch.
    let again = site.other_pod();
    let answer = again.run(&order, &cluster).await;
    answer.is(true, "Done", None);
    assert_eq!(facts(&answer).rows, 40_558);
}

#[tokio::test]
async fn what_no_portable_export_holds_is_named_and_the_exact_snapshot_alone_can_be_had() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    cluster.app("SELECT lo_from_bytea(0, 'a large object')").await;
    let mut order = snapshot_order(&cluster).await;
    let refused = site.run(&JobOrder::Snapshot(order.clone()), &cluster).await;
    refused.is(false, "ExportIncomplete", Some(Category::Environment));
    for word in ["1 large objects", "spec.snapshot.portable: false"] {
        assert!(refused.report.message.contains(word), "{}", refused.report.message);
    }
    order.portable = false;
    let answer = site.run(&JobOrder::Snapshot(order), &cluster).await;
    answer.is(true, "Done", None);
    assert_eq!(facts(&answer).portable_directory, None);
    assert!(!site.storage.join(DIRECTORY).join("portable").exists());
}

#[tokio::test]
async fn another_database_is_refused_before_anything_is_read() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    let mut order = snapshot_order(&cluster).await;
    order.database.identity.as_mut().unwrap().oid += 1;
    let answer = site.run(&JobOrder::Snapshot(order), &cluster).await;
    answer.is(false, "WrongDatabase", Some(Category::Environment));
    assert!(!site.storage.join(DIRECTORY).join("database.dump").exists());
}

#[tokio::test]
async fn prepared_transactions_keep_a_snapshot_from_being_taken() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    cluster.app("BEGIN; DELETE FROM teams WHERE team_id = 't5'; PREPARE TRANSACTION 'hidden'").await;
    let answer = site.run(&JobOrder::Snapshot(snapshot_order(&cluster).await), &cluster).await;
    answer.is(false, "PreparedTransactions", Some(Category::Environment));
    assert!(answer.report.message.contains("hidden"));
}

#[tokio::test]
async fn a_writer_that_holds_a_table_is_named() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    cluster.app("GRANT ALL ON agents TO visitor").await;
    let mut visitor = cluster.session("visitor", "memoria").await;
    run(&mut visitor, "BEGIN; UPDATE agents SET name = 'late' WHERE agent_id = 'a1'").await;
    let answer = site.run(&JobOrder::Snapshot(snapshot_order(&cluster).await), &cluster).await;
    answer.is(false, "Locked", Some(Category::Conflict));
    assert!(answer.report.message.contains("visitor@test"), "{}", answer.report.message);
}
