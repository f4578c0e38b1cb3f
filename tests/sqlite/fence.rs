//! The fence: who has the file open, and what is put back afterwards.

use std::fs;

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{FenceOrder, JobOrder},
    snapshot::sqlite::{
        hold::Hold,
        markers::{Lock, MARKERS},
    },
};
use std::time::Duration;

use crate::{
    python::Python,
    site::{MEMORIA, Site},
};

fn order(site: &Site, quiet_seconds: u64, limit_seconds: u64) -> JobOrder {
    JobOrder::Fence(FenceOrder { database: site.task("prod-1"), quiet_seconds, limit_seconds })
}

#[tokio::test]
async fn an_idle_holder_of_a_wal_file_is_seen() {
    let site = Site::with("wal", MEMORIA);
    let mut app = Python::open(&site.database());
    app.must("SELECT count(*) FROM teams");
    let answer = site.run(&order(&site, 1, 3)).await;
    answer.is(false, "WritersRemain", Some(Category::Environment));
    app.must("INSERT INTO teams VALUES ('t9', 'ninth', NULL)");
    app.kill();
    site.run(&order(&site, 1, 20)).await.is(true, "Done", None);
    assert_eq!((site.journal_mode().as_str(), site.markers().journal_mode), ("wal", None));
}

#[tokio::test]
async fn what_a_killed_process_left_in_its_wal_is_not_lost() {
    let site = Site::with("wal", MEMORIA);
    let mut app = Python::open(&site.database());
    app.must("PRAGMA wal_autocheckpoint=0").must("INSERT INTO teams VALUES ('t9', 'ninth', NULL)");
    app.kill();
    assert!(fs::metadata(site.data.join("memoria.db-wal")).unwrap().len() > 0);
    let answer = site.run(&order(&site, 1, 20)).await;
    answer.is(true, "Done", None);
    assert!(answer.report.message.contains("left WAL"), "{}", answer.report.message);
    assert!(Python::open(&site.database()).run("SELECT name FROM teams WHERE team_id = 't9'").contains("ninth"));
}

#[tokio::test]
async fn a_hot_journal_is_rolled_back() {
    let site = Site::with("delete", MEMORIA);
    let mut app = Python::open(&site.database());
    app.must("PRAGMA cache_size=1").must("PRAGMA cache_spill=1").must("BEGIN IMMEDIATE");
    app.must("UPDATE memory_access_events SET memory_id = memory_id || hex(zeroblob(4000))");
    app.kill();
    assert!(fs::metadata(site.data.join("memoria.db-journal")).unwrap().len() > 0);
    site.run(&order(&site, 1, 20)).await.is(true, "Done", None);
    assert_eq!(
        Python::open(&site.database()).run("SELECT max(length(memory_id)) FROM memory_access_events"),
        "ok [(4,)]"
    );
    assert!(!site.data.join("memoria.db-journal").exists());
}

#[tokio::test]
async fn in_a_rollback_journal_file_writers_are_seen_and_idle_holders_are_said_not_to_be() {
    let site = Site::with("delete", MEMORIA);
    let mut app = Python::open(&site.database());
    app.must("SELECT count(*) FROM teams");
    let answer = site.run(&order(&site, 1, 20)).await;
    answer.is(true, "Done", None);
    assert!(answer.report.message.contains("rests on its pods being gone"), "{}", answer.report.message);
    assert_eq!(site.journal_mode(), "delete");
    app.must("BEGIN IMMEDIATE");
    site.run(&order(&site, 1, 3)).await.is(false, "WritersRemain", Some(Category::Environment));
    app.must("COMMIT");
    // One that writes now and then is caught while quiet is awaited.
    let running = site.spawn(&order(&site, 3, 4), &Default::default(), &site.url());
    let until = std::time::Instant::now() + Duration::from_secs(8);
    while std::time::Instant::now() < until {
        let _ = app.run("UPDATE teams SET name = name || '.' WHERE team_id = 't1'");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    running.end().await.is(false, "WritersRemain", Some(Category::Environment));
}

#[tokio::test]
async fn nobody_reads_or_writes_while_the_file_is_held() {
    for mode in ["wal", "delete"] {
        let site = Site::with(mode, MEMORIA);
        let database = site.database();
        let lock = Lock::take(&database, Duration::ZERO).unwrap();
        let hold = Hold::take(&lock, Duration::ZERO).unwrap();
        assert_eq!(hold.journal_mode(), mode);
        let mut other = Python::open(&database);
        assert!(other.run("SELECT count(*) FROM teams").contains("locked"));
        assert!(other.run("DELETE FROM teams").contains("locked"));
        assert!(hold.connection().unwrap().execute("DELETE FROM teams", []).is_err(), "a held file is only read");
        assert!(Lock::take(&database, Duration::ZERO).is_err(), "two of our own Jobs at once");
        hold.release().unwrap();
        assert_eq!(other.run("SELECT count(*) FROM teams"), "ok [(2,)]");
        drop(other);
        assert_eq!(site.journal_mode(), mode);
    }
}

#[tokio::test]
async fn the_journal_mode_of_a_job_that_was_killed_is_put_back_by_the_next() {
    let site = Site::with("wal", MEMORIA);
    let mut running = site.spawn(&order(&site, 30, 60), &Default::default(), &site.url());
    // Between its two proofs the mode is noted; the fence puts it back at once, so what a kill leaves is made by hand.
    while !site.data.join(format!("memoria.db{MARKERS}")).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.kill();
    site.execute("PRAGMA journal_mode=DELETE");
    fs::write(site.data.join(format!("memoria.db{MARKERS}")), "{\"v\":1,\"journalMode\":\"wal\",\"steps\":[]}")
        .unwrap();
    site.run(&order(&site, 0, 20)).await.is(true, "Done", None);
    assert_eq!((site.journal_mode().as_str(), site.markers().journal_mode), ("wal", None));
}

#[tokio::test]
async fn another_file_of_the_same_name_is_refused() {
    let site = Site::with("delete", MEMORIA);
    let mut task = site.task("prod-1");
    task.volumes[0].claim_uid = "another".to_owned();
    let order = JobOrder::Fence(FenceOrder { database: task, quiet_seconds: 0, limit_seconds: 5 });
    site.run(&order).await.is(false, "WrongDatabase", Some(Category::Environment));
    fs::write(site.database(), "no database at all, but long enough to be taken for one".repeat(40)).unwrap();
    let answer = site.run(&self::order(&site, 0, 5)).await;
    answer.is(false, "DatabaseDamaged", Some(Category::Environment));
}
