//! The restore: whatever happens to it, the file is the failed state or the snapshot, and a repeated run ends with the
//! snapshot.

use std::{
    fs,
    time::{Duration, Instant},
};

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{BaselineOrder, Facts, JobInput, JobOrder, RestoreFacts, RestoreOrder},
    snapshot::{
        late::{
            reapplied::{Report, Why},
            set_aside::{self, Change},
        },
        manifest::Manifest,
        portable::sqlite::row_hash,
        sqlite::{content, digest, hold::Hold, markers::Lock, open_copy, open_live, reapply, schema},
    },
};
use rusqlite::types::ValueRef;

use crate::{
    dice::Dice,
    python::Python,
    site::{Answer, DIRECTORY, MEMORIA, Running, Site},
    snapshot,
};

pub const FAILED: &str = "prod-0b8ff1f4/prod-1/failed";
const BASELINE: &str = "prod-0b8ff1f4/prod-1/baseline";
/// What a failed upgrade and its clients leave.
const FAILURE: &str = "ALTER TABLE agents ADD COLUMN nick TEXT; DROP VIEW team_leads; DELETE FROM teams WHERE team_id = 't2';
    INSERT INTO memory_access_events (memory_id, accessed_at) VALUES ('late', 'x'), ('later', 'x'); DELETE FROM memory_access_events WHERE memory_id LIKE 'late%'";

/// A database with a snapshot, and what happened to it since.
pub struct Failed {
    pub site: Site,
    pub carry_forward: Vec<String>,
    pub budget: i64,
    manifest_sha256: String,
}

impl Failed {
    pub async fn new(journal_mode: &str, extra: &str) -> Self {
        Self::of(Site::with(journal_mode, &format!("{MEMORIA}{extra}"))).await
    }

    /// The same, of the database that is there.
    pub async fn of(site: Site) -> Self {
        let answer = site.run(&JobOrder::Snapshot(site.snapshot_order())).await;
        let manifest_sha256 = snapshot::facts(&answer).manifest_sha256;
        site.execute(FAILURE);
        Self { site, carry_forward: Vec::new(), budget: 2, manifest_sha256 }
    }

    /// What the file holds from now on is a client's. Gives the baseline's hash.
    pub async fn baseline(&self) -> String {
        let answer = self
            .site
            .run(&JobOrder::Baseline(BaselineOrder {
                database: self.site.task("prod-1"),
                directory: BASELINE.to_owned(),
                limit_seconds: 30,
            }))
            .await;
        match answer.report.facts {
            Some(Facts::Baseline(kept)) => kept.sha256,
            other => panic!("{other:?}: {}", answer.report.message),
        }
    }

    pub fn spawn(&self, pod: &Site, change: impl FnOnce(&mut JobInput)) -> Running {
        let order = RestoreOrder {
            database: self.site.task("prod-1"),
            directory: DIRECTORY.to_owned(),
            failed_directory: FAILED.to_owned(),
            baseline_directory: Some(BASELINE.to_owned()),
            data_loss_budget_rows: self.budget,
            carry_forward: self.carry_forward.clone(),
            limit_seconds: 60,
        };
        let mut input = JobInput { manifest_sha256: Some(self.manifest_sha256.clone()), ..JobInput::default() };
        change(&mut input);
        pod.spawn(&JobOrder::Restore(order), &input, &self.site.url())
    }

    async fn restore(&self) -> Answer {
        self.spawn(&self.site.other_pod(), |_| {}).end().await
    }

    pub fn manifest(&self, directory: &str) -> Manifest {
        let path = self.site.storage.join(directory).join("manifest.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The digest of what the file holds now, wherever it is in its life.
    pub fn digest(&self) -> String {
        let lock = Lock::take(&self.site.database(), Duration::from_secs(5)).unwrap();
        let hold = Hold::take(&lock, Duration::from_secs(5)).unwrap();
        let found = content::read(hold.connection().unwrap(), hold.path()).unwrap().data_digest();
        hold.release().unwrap();
        found
    }
}

pub fn facts(answer: &Answer) -> RestoreFacts {
    match &answer.report.facts {
        Some(Facts::Restore(facts)) => facts.clone(),
        other => panic!("{other:?}: {}", answer.report.message),
    }
}

#[tokio::test]
async fn the_snapshot_is_live_again_and_the_failed_state_is_kept() {
    for mode in ["wal", "delete"] {
        let failed = Failed::new(mode, "").await;
        let (before, snapshot) = (failed.digest(), failed.manifest(DIRECTORY));
        let answer = failed.restore().await;
        answer.is(true, "Done", None);
        let found = facts(&answer);
        assert_eq!((found.restored, found.rows, &found.data_digest), (true, 299, &snapshot.data_digest));
        assert_eq!(failed.digest(), snapshot.data_digest);
        assert_eq!(failed.manifest(FAILED).data_digest, before);
        let evidence = fs::read(failed.site.storage.join(FAILED).join("evidence-restore.json")).unwrap();
        let evidence: serde_json::Value = serde_json::from_slice(&evidence).unwrap();
        assert_eq!(evidence["verifiedDigest"], snapshot.data_digest.as_str());
        assert_eq!(evidence["sequencesAfter"]["memory_access_events"]["lastValue"], 302);
        let kept = open_copy(&failed.site.storage.join(FAILED).join("database.sqlite")).unwrap();
        assert_eq!(kept.query_row("SELECT count(*) FROM teams", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
        assert_eq!((failed.site.journal_mode().as_str(), failed.site.markers().journal_mode), (mode, None));
        let mut left: Vec<_> =
            fs::read_dir(&failed.site.data).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["memoria.db", "memoria.db.memoria-operator.json", "memoria.db.memoria-operator.lock"]);
        // Ids that were given out since the snapshot are not given out again.
        let mut app = Python::open(&failed.site.database());
        app.must("INSERT INTO memory_access_events (memory_id, accessed_at) VALUES ('next', 'x')");
        assert_eq!(app.run("SELECT max(id) FROM memory_access_events"), "ok [(303,)]");
        app.must("DELETE FROM memory_access_events WHERE memory_id = 'next'");
        drop(app);
        // Once more is harmless.
        let again = failed.restore().await;
        assert_eq!(again.report, answer.report);
    }
}

#[tokio::test]
async fn what_was_not_changed_is_not_restored() {
    let site = Site::with("wal", MEMORIA);
    let answer = site.run(&JobOrder::Snapshot(site.snapshot_order())).await;
    let manifest_sha256 = snapshot::facts(&answer).manifest_sha256;
    let failed = Failed { site, carry_forward: Vec::new(), budget: 0, manifest_sha256 };
    let answer = failed.restore().await;
    answer.is(true, "Done", None);
    assert!(!facts(&answer).restored && !failed.site.storage.join(FAILED).exists());
}

#[tokio::test]
async fn a_damaged_portable_export_does_not_stand_in_the_way() {
    let failed = Failed::new("wal", "").await;
    let exported = failed.site.storage.join(DIRECTORY).join("portable");
    fs::write(exported.join("memoria.ndjson.zst"), "no zstd").unwrap();
    fs::remove_file(exported.join("others.ndjson.zst")).unwrap();
    failed.restore().await.is(true, "Done", None);
    assert_eq!(failed.digest(), failed.manifest(DIRECTORY).data_digest);
}

#[tokio::test]
async fn late_writes_are_a_persons_decision() {
    let failed = Failed::new("delete", "").await;
    let before = failed.digest();
    let late = |input: &mut JobInput| input.late_writes_possible = true;
    let answer = failed.spawn(&failed.site.other_pod(), late).end().await;
    answer.is(false, "LateWritesUnknown", Some(Category::Decision));
    assert!(!facts(&answer).restored && failed.digest() == before);
    let accepted = |input: &mut JobInput| (input.late_writes_possible, input.accept_data_loss) = (true, true);
    failed.spawn(&failed.site.other_pod(), accepted).end().await.is(true, "Done", None);
    assert_eq!(failed.digest(), failed.manifest(DIRECTORY).data_digest);
}

#[tokio::test]
async fn rows_written_since_the_baseline_are_counted_while_the_server_runs() {
    for mode in ["wal", "delete"] {
        let failed =
            Failed::new(mode, "CREATE TABLE plain (v TEXT COLLATE NOCASE); INSERT INTO plain VALUES ('a'), ('b');")
                .await;
        let mut app = Python::open(&failed.site.database());
        app.must("SELECT count(*) FROM teams");
        let baseline = JobOrder::Baseline(BaselineOrder {
            database: failed.site.task("prod-1"),
            directory: BASELINE.to_owned(),
            limit_seconds: 30,
        });
        let answer = failed.site.run(&baseline).await;
        answer.is(true, "Done", None);
        assert_eq!(failed.site.other_pod().run(&baseline).await.report, answer.report);
        let Some(Facts::Baseline(kept)) = answer.report.facts else { panic!("no facts") };
        app.must("INSERT INTO plain VALUES ('c')").must("UPDATE plain SET v = 'A' WHERE v = 'a'");
        let late = |input: &mut JobInput| {
            (input.late_writes_possible, input.baseline_sha256) = (true, Some(kept.sha256.clone()));
        };
        app.must("DELETE FROM agents WHERE agent_id = 'a2'");
        drop(app);
        let answer = failed.spawn(&failed.site.other_pod(), late).end().await;
        answer.is(false, "DataLossOverBudget", Some(Category::Decision));
        let found = facts(&answer);
        assert_eq!((found.late_inserted, found.late_updated, found.late_deleted), (1, 1, 1));
        assert_eq!(found.late_tables.iter().map(|table| table.table.as_str()).collect::<Vec<_>>(), ["plain", "agents"]);
        // The rows themselves are set aside, with their keys.
        let directory = failed.site.storage.join(FAILED);
        let kept = set_aside::open(&directory).unwrap();
        assert_eq!((kept.rows(), kept.files.len()), (3, 2));
        let lines = |table: &str| {
            let mut lines = Vec::new();
            let seen = |line: &str, _: &Change| {
                lines.push(line.to_owned());
                Ok(())
            };
            set_aside::visit(&directory, &kept.files[table], seen).unwrap();
            lines
        };
        let [deleted] = &lines("agents")[..] else { panic!("not one line") };
        let hash = deleted.strip_prefix(r#"{"change":"deleted","key":{"agent_id":"a2"},"before":""#).unwrap();
        assert_eq!(hash.len(), 64 + 2);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let [a, c, upper] = ["a", "c", "A"].map(|text| hex(&row_hash([ValueRef::Text(text.as_bytes())].into_iter())));
        assert_eq!(
            lines("plain"),
            [
                format!(r#"{{"change":"inserted","key":{{"rowid":3}},"rowHash":"{c}","row":{{"v":"c"}}}}"#),
                format!(
                    r#"{{"change":"updated","key":{{"rowid":1}},"before":"{a}","rowHash":"{upper}","row":{{"v":"A"}}}}"#
                )
            ]
        );
        let file = directory.join(&kept.files["plain"]);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[1..]).unwrap();
        assert_eq!(set_aside::open(&directory).unwrap_err().reason(), "SnapshotDamaged");
        let accepted = |input: &mut JobInput| {
            late(input);
            input.accept_data_loss = true;
        };
        let answer = failed.spawn(&failed.site.other_pod(), accepted).end().await;
        answer.is(true, "Done", None);
        assert_eq!(failed.digest(), failed.manifest(DIRECTORY).data_digest);
    }
}

/// Tables that the upgrade leaves as they are.
const TABLES: &str = r#"
    CREATE TABLE people (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
    CREATE TABLE notes (a TEXT COLLATE NOCASE, b, author INT REFERENCES people, v JSON, at DATETIME, twice AS (b * 2) STORED, PRIMARY KEY (a, b));
    CREATE TABLE loose (t TEXT);
    CREATE TABLE journal (what TEXT);
    CREATE TRIGGER noted AFTER INSERT ON people BEGIN INSERT INTO journal VALUES (NEW.name); END;
    INSERT INTO people (name) VALUES ('p1'), ('p2'), ('p3');
    INSERT INTO notes (a, b, author, v) VALUES ('n', 1, 1, '1'), ('n', 2, 2, '{"k": 1.10}'), ('n', 3, 3, NULL);"#;
const CLIENTS: &str = r#"
    INSERT INTO people (name) VALUES ('late'), ('later'); UPDATE people SET name = 'renamed' WHERE id = 3;
    DELETE FROM notes WHERE b = 2; DELETE FROM people WHERE id = 2; UPDATE notes SET author = 4, v = 'null' WHERE b = 1;
    INSERT INTO notes (a, b, author, v, at) VALUES ('n', 9e999, 4, x'00ff', '2025-01-01 12:00:00.250000'), ('n', '1', 5, '[1,  NaN]', 7), ('m', 1.0, NULL, 1e-300, x'');
    INSERT INTO loose VALUES ('x');"#;

/// A failed upgrade with rows that were written late, taken back.
async fn restored() -> Failed {
    let failed = Failed::new("wal", TABLES).await;
    let kept = failed.baseline().await;
    failed.site.execute(CLIENTS);
    let accepted = |input: &mut JobInput| {
        (input.late_writes_possible, input.accept_data_loss) = (true, true);
        input.baseline_sha256 = Some(kept);
    };
    failed.spawn(&failed.site.other_pod(), accepted).end().await.is(true, "Done", None);
    failed
}

impl Failed {
    pub fn reapply(&self, dry_run: bool) -> Report {
        let directory = self.site.storage.join(FAILED);
        let (database, late) = (self.site.database(), set_aside::open(&directory).unwrap());
        let request = reapply::Request { database: &database, directory: &directory, late: &late, dry_run };
        reapply::reapply(&request).unwrap()
    }

    /// The digest of a table, in a file of this name.
    pub fn table(&self, file: &std::path::Path, name: &str) -> memoria_operator::snapshot::digest::TableDigest {
        let connection = open_live(file).unwrap();
        let schema = schema::read(&connection, file).unwrap();
        digest::table(&connection, file, name, &schema.tables[name]).unwrap()
    }
}

/// Inserted, updated, deleted and already there, or why none of it was done.
pub fn fate(report: &Report, name: &str) -> Result<[i64; 4], String> {
    let table = report.tables.iter().find(|table| table.table == name).unwrap();
    match &table.aside {
        None => Ok([table.inserted, table.updated, table.deleted, table.already]),
        Some(aside) => Err(aside.why.clone()),
    }
}

#[tokio::test]
async fn late_writes_go_back_exactly_and_a_second_time_changes_nothing() {
    let failed = restored().await;
    let before = failed.digest();
    let tried = failed.reapply(true);
    assert_eq!(failed.digest(), before, "a dry run changed something");
    let report = failed.reapply(false);
    assert_eq!(report.tables, tried.tables);
    assert_eq!(fate(&report, "people"), Ok([2, 1, 1, 0]));
    assert_eq!(fate(&report, "notes"), Ok([3, 1, 1, 0]));
    for name in ["loose", "journal"] {
        assert!(fate(&report, name).unwrap_err().starts_with("it has no primary key"), "{report:?}");
    }
    let (now, then) = (failed.site.database(), failed.site.storage.join(FAILED).join("database.sqlite"));
    for name in ["people", "notes"] {
        assert_eq!(failed.table(&now, name), failed.table(&then, name), "{name}");
    }
    let mut app = Python::open(&now);
    assert_eq!(app.run("SELECT count(*) FROM journal"), "ok [(3,)]", "a trigger fired");
    assert_eq!(app.run("INSERT INTO people (name) VALUES ('next') RETURNING id"), "ok [(6,)]");
    app.must("DELETE FROM people WHERE name = 'next'");
    drop(app);
    let again = failed.reapply(false);
    assert_eq!([fate(&again, "people"), fate(&again, "notes")], [Ok([0, 0, 0, 4]), Ok([0, 0, 0, 5])]);
}

#[tokio::test]
async fn late_writes_that_contradict_the_file_stay_aside_with_their_table() {
    let failed = restored().await;
    // A name that was inserted late, and a note of an author whom the late writes delete.
    failed.site.execute("INSERT INTO people (name) VALUES ('later'); UPDATE notes SET v = 'private-7c1' WHERE b = 2");
    let before = failed.digest();
    let report = failed.reapply(false);
    let notes = report.tables.iter().find(|table| table.table == "notes").unwrap().aside.clone().unwrap();
    assert_eq!((notes.conflicting, notes.conflicts[0].why, &notes.conflicts[0].key["b"]), (1, Why::Changed, &2.into()));
    assert_eq!(fate(&report, "people").unwrap_err(), "it would break a constraint of that table");
    assert!(!serde_json::to_string(&report).unwrap().contains("private-7c1"));
    assert_eq!(failed.digest(), before);
}

#[tokio::test]
async fn a_late_deletion_that_leaves_a_row_without_its_parent_stays_aside() {
    let failed = restored().await;
    failed.site.execute("UPDATE notes SET v = 'other' WHERE b = 2");
    let report = failed.reapply(false);
    let why = fate(&report, "people").unwrap_err();
    assert_eq!(why, "rows of notes would point to rows of people that are not there");
    assert!(fate(&report, "notes").is_err() && !report.complete());
}

#[tokio::test]
async fn a_holder_a_damaged_snapshot_and_another_manifest_change_nothing() {
    let mut failed = Failed::new("wal", "").await;
    let before = failed.digest();
    let copy = failed.site.storage.join(DIRECTORY).join("database.sqlite");
    let whole = fs::read(&copy).unwrap();
    fs::write(&copy, &whole[..whole.len() / 2]).unwrap();
    failed.restore().await.is(false, "SnapshotDamaged", Some(Category::Environment));
    fs::write(&copy, whole).unwrap();
    let kept = std::mem::replace(&mut failed.manifest_sha256, "0".repeat(64));
    failed.restore().await.is(false, "ManifestMismatch", Some(Category::Environment));
    failed.manifest_sha256 = kept;
    assert_eq!(failed.digest(), before);
    failed.restore().await.is(true, "Done", None);
    // What writes afterwards is not taken for the failed upgrade's.
    failed.site.execute("DELETE FROM teams");
    failed.restore().await.is(false, "DataChangedAfterRestore", Some(Category::Conflict));
}

/// Kills that must have hit, and how often it may be tried: a restore that had ended was not killed.
const KILLS: usize = 20;
const TRIES: usize = 60;

#[tokio::test]
async fn twenty_kills_at_random_instants_leave_the_failed_state_or_the_snapshot() {
    let big = "CREATE TABLE big (i INTEGER PRIMARY KEY, t TEXT); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
        INSERT INTO big SELECT i, hex(randomblob(500)) FROM n;";
    let failed = Failed::new("wal", big).await;
    let (before, snapshot) = (failed.digest(), failed.manifest(DIRECTORY).data_digest);
    // Undisturbed, to know how long it takes; then the same failure again, as if nothing had been done about it.
    let started = Instant::now();
    failed.restore().await.is(true, "Done", None);
    let whole = u64::try_from(started.elapsed().as_micros()).unwrap();
    let again = || {
        fs::remove_dir_all(failed.site.storage.join(FAILED)).unwrap();
        fs::remove_file(failed.site.data.join("memoria.db.memoria-operator.json")).unwrap();
        failed.site.execute(FAILURE);
        assert_eq!(failed.digest(), before);
    };
    let mut dice = Dice::new().unwrap();
    let (mut not_done, mut done) = (0, 0);
    for _ in 0..TRIES {
        again();
        let mut running = failed.spawn(&failed.site.other_pod(), |_| {});
        tokio::time::sleep(Duration::from_micros(dice.below(whole))).await;
        let hit = running.kill_if_running();
        let found = failed.digest();
        assert!(found == before || found == snapshot, "neither of the two; {dice}");
        if hit {
            *(if found == snapshot { &mut done } else { &mut not_done }) += 1;
        }
        // The next try succeeds, wherever the one before was.
        let answer = failed.restore().await;
        answer.is(true, "Done", None);
        assert_eq!(failed.digest(), snapshot, "{dice}");
        assert_eq!((failed.site.journal_mode().as_str(), failed.site.markers().journal_mode), ("wal", None));
        assert!(failed.site.markers().steps.iter().all(|step| step.finished_at.is_some()));
        if done + not_done == KILLS {
            break;
        }
    }
    println!("{dice}: {not_done} times the failed state, {done} times the snapshot");
    assert!(done + not_done == KILLS && not_done > 0, "{done} and {not_done}; {dice}");
}
