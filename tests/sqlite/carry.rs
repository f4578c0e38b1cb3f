//! Audit tables whose newer rows outlive the restore: they are in the new file before it is swapped in, and never twice.

use std::{
    fs,
    time::{Duration, Instant},
};

use memoria_operator::{
    api::upgrade::{Category, TableLate},
    job::protocol::{JobInput, RestoreFacts},
};
use serde_json::{Value, json};

use crate::{
    dice::Dice,
    python::Python,
    restore::{FAILED, Failed, facts, fate},
    site::{Answer, DIRECTORY},
};

/// Tables to which rows are only ever added, and what they refer to. The trigger's own row is among the late ones.
const TABLES: &str = r"
    CREATE TABLE audits (id INTEGER PRIMARY KEY AUTOINCREMENT, who TEXT NOT NULL UNIQUE, details JSON);
    CREATE TABLE entries (a TEXT COLLATE NOCASE, b, audit INT NOT NULL REFERENCES audits, PRIMARY KEY (a, b));
    CREATE TABLE visits (id INTEGER PRIMARY KEY, team TEXT NOT NULL REFERENCES teams);
    CREATE TABLE journal (id INTEGER PRIMARY KEY, what TEXT);
    CREATE TRIGGER noted AFTER INSERT ON audits BEGIN INSERT INTO journal (what) VALUES (NEW.who); END;
    INSERT INTO audits (who) VALUES ('a1'), ('a2'), ('a3');
    INSERT INTO entries VALUES ('n', 1, 1);";
/// Three audits, two entries and what the trigger made of them.
const CLIENTS: &str = r#"INSERT INTO audits (who, details) VALUES ('late', '{"n":  1.10}'), ('later', x'00ff'); INSERT INTO audits (id, who) VALUES (1000, 'latest');
    INSERT INTO entries VALUES ('n', 9e999, 4), ('m', 1.0, 1);"#;
const NAMES: [&str; 3] = ["audits", "Entries", "journal"];

/// A failed upgrade with rows that were written late, of which these tables' are to be carried forward.
struct Late {
    failed: Failed,
    baseline: String,
    accept: bool,
}

impl Late {
    async fn new(upgrade: &str, clients: &str, names: &[&str]) -> Self {
        let mut failed = Failed::new("wal", TABLES).await;
        failed.site.execute(upgrade);
        let baseline = failed.baseline().await;
        failed.site.execute(clients);
        failed.carry_forward = names.iter().map(|name| (*name).to_owned()).collect();
        failed.budget = 0;
        Self { failed, baseline, accept: false }
    }

    fn input(&self) -> impl FnOnce(&mut JobInput) + use<> {
        let (baseline, accept) = (self.baseline.clone(), self.accept);
        move |input| {
            (input.late_writes_possible, input.accept_data_loss) = (true, accept);
            input.baseline_sha256 = Some(baseline);
        }
    }

    async fn restore(&self) -> Answer {
        self.failed.spawn(&self.failed.site.other_pod(), self.input()).end().await
    }

    fn read(&self, sql: &str) -> String {
        Python::open(&self.failed.site.database()).run(sql)
    }

    fn evidence(&self) -> Value {
        let path = self.failed.site.storage.join(FAILED).join("evidence-restore.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The restore's marker as a Job left it that was killed before it wrote the end.
    fn unfinish(&self) {
        let path = self.failed.site.data.join("memoria.db.memoria-operator.json");
        let mut markers: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let steps = markers["steps"].as_array_mut().unwrap();
        steps.retain(|step| step["step"] == "restore");
        for step in steps.iter_mut().filter_map(Value::as_object_mut) {
            step.remove("finishedAt");
            step.remove("outcome");
        }
        fs::write(path, markers.to_string()).unwrap();
    }
}

fn counts(found: &RestoreFacts) -> [i64; 4] {
    [found.late_inserted, found.late_updated, found.late_deleted, found.late_carried]
}

fn of(answer: &Answer, table: &str) -> TableLate {
    facts(answer).late_tables.into_iter().find(|found| found.table == table).unwrap()
}

fn why(answer: &Answer, table: &str) -> String {
    let found = of(answer, table);
    assert_eq!(found.carried, 0, "{found:?}");
    found.not_carried.unwrap()
}

#[tokio::test]
async fn late_rows_of_audit_tables_are_in_the_restored_file_and_count_for_nothing_lost() {
    let late = Late::new("", CLIENTS, &NAMES).await;
    let answer = late.restore().await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert!(found.restored);
    assert_eq!(counts(&found), [8, 0, 0, 8]);
    let snapshot = late.failed.manifest(DIRECTORY);
    assert_eq!((found.rows, &found.data_digest), (snapshot.data().rows() + 8, &late.failed.digest()));
    assert_ne!(found.data_digest, snapshot.data_digest);
    let (now, then) = (late.failed.site.database(), late.failed.site.storage.join(FAILED).join("database.sqlite"));
    for name in ["audits", "entries", "journal"] {
        assert_eq!(late.failed.table(&now, name), late.failed.table(&then, name), "{name}");
    }
    assert_eq!(late.failed.table(&now, "teams"), snapshot.tables["teams"]);
    let evidence = late.evidence();
    assert_eq!(evidence["verifiedDigest"], found.data_digest.as_str());
    assert_eq!(evidence["snapshot"]["dataDigest"], snapshot.data_digest.as_str());
    assert_eq!(
        (&evidence["carried"]["audits"]["rows"], &evidence["carried"]["entries"]["rows"]),
        (&json!(3), &json!(2))
    );

    // A repeated Job answers the same, also one that comes after a kill between the swap and its end.
    assert_eq!(late.restore().await.report, answer.report);
    late.unfinish();
    assert_eq!(late.restore().await.report, answer.report);
    assert!(late.failed.site.markers().steps.iter().all(|step| step.finished_at.is_some()));
    // And one after a kill between its note and the swap: the failed state is still in place.
    late.unfinish();
    fs::copy(&then, &now).unwrap();
    let again = late.restore().await;
    again.is(true, "Done", None);
    assert_eq!(facts(&again), found);
    assert_eq!(late.read("SELECT count(*) FROM audits"), "ok [(6,)]");
    // By hand there is nothing left to do.
    let by_hand = late.failed.reapply(false);
    assert_eq!([fate(&by_hand, "audits"), fate(&by_hand, "entries")], [Ok([0, 0, 0, 3]), Ok([0, 0, 0, 2])]);
    // Keys that were carried forward are not given out again, whoever chose them.
    assert_eq!(late.read("INSERT INTO audits (who) VALUES ('next') RETURNING id"), "ok [(1001,)]");
    late.failed.site.execute("DELETE FROM teams");
    late.restore().await.is(false, "DataChangedAfterRestore", Some(Category::Conflict));
}

#[tokio::test]
async fn updated_and_deleted_rows_stay_aside_and_count() {
    let clients =
        format!("{CLIENTS} UPDATE audits SET who = 'private-7c1' WHERE id = 2; DELETE FROM audits WHERE id = 3;");
    let mut late = Late::new("", &clients, &NAMES).await;
    let before = late.failed.digest();
    late.failed.budget = 1;
    let answer = late.restore().await;
    answer.is(false, "DataLossOverBudget", Some(Category::Decision));
    assert_eq!((facts(&answer).restored, counts(&facts(&answer))), (false, [8, 1, 1, 8]));
    assert!(answer.report.message.contains("the other 2 are more than the budget of 1"), "{}", answer.report.message);
    assert_eq!(
        of(&answer, "audits").not_carried.unwrap(),
        "only inserted rows are carried: 1 updated and 1 deleted ones stay aside"
    );
    assert!(!format!("{:?}", answer.report).contains("private-7c1"));
    assert_eq!(late.failed.digest(), before, "nothing may be taken back unasked");
    assert!(late.failed.site.markers().steps.is_empty());
    let left = fs::read_dir(&late.failed.site.data).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.contains("restore")).count(), 0, "the new file stayed");

    late.failed.budget = 2;
    late.restore().await.is(true, "Done", None);
    assert_eq!(late.read("SELECT id, who FROM audits WHERE id < 4"), "ok [(1, 'a1'), (2, 'a2'), (3, 'a3')]");
    assert_eq!(late.read("SELECT count(*) FROM audits"), "ok [(6,)]");
}

#[tokio::test]
async fn what_cannot_be_carried_stays_aside_counts_and_says_why() {
    // The upgrade took a row's key away, which a client then took; it made a table, and one more column.
    let upgrade = "DELETE FROM audits WHERE id = 2; CREATE TABLE consents (id INTEGER PRIMARY KEY, agent TEXT);";
    let clients =
        "INSERT INTO audits (id, who) VALUES (2, 'private-7c1'), (8, 'late'); INSERT INTO entries VALUES ('x', 1, 8);
        INSERT INTO teams VALUES ('t99', 'late', NULL); INSERT INTO visits VALUES (5, 't99'), (6, 't1');
        INSERT INTO agents (agent_id, name, nick) VALUES ('late', 'late', 'n'); INSERT INTO consents VALUES (1, 'a1');";
    let names = ["audits", "entries", "visits", "agents", "consents", "journal"];
    let mut late = Late::new(upgrade, clients, &names).await;
    let answer = late.restore().await;
    answer.is(false, "DataLossOverBudget", Some(Category::Decision));
    // What the trigger wrote of the two audits is itself a row that can go in.
    assert_eq!(counts(&facts(&answer)), [10, 0, 0, 2]);
    let taken = why(&answer, "audits");
    assert!(taken.contains("1 of its rows contradict the database ({\"id\":2}: another row has this key)"), "{taken}");
    assert_eq!(why(&answer, "entries"), "rows of entries would point to rows of audits that are not there");
    assert_eq!(why(&answer, "visits"), "rows of visits would point to rows of teams that are not there");
    assert_eq!(why(&answer, "agents"), "in the database it has no nick");
    assert_eq!(why(&answer, "consents"), "the database has no such table");
    assert!(!format!("{:?}", answer.report).contains("private-7c1"));

    late.accept = true;
    let accepted = late.restore().await;
    accepted.is(true, "Done", None);
    assert_eq!((counts(&facts(&accepted)), facts(&accepted).late_tables), ([10, 0, 0, 2], facts(&answer).late_tables));
    assert_eq!(late.read("SELECT count(*) FROM audits"), "ok [(3,)]");
    assert_eq!(late.read("SELECT count(*) FROM visits"), "ok [(0,)]");
    assert_eq!(late.evidence()["carried"]["journal"]["rows"], 2);
}

#[tokio::test]
async fn without_a_baseline_nothing_is_carried_and_that_is_said() {
    let mut late = Late::new("", CLIENTS, &NAMES).await;
    late.baseline = "0".repeat(64);
    let answer = late.restore().await;
    answer.is(false, "LateWritesUnknown", Some(Category::Decision));
    assert!(why(&answer, "Entries").starts_with("what was written late is unknown: "));
    late.accept = true;
    let answer = late.restore().await;
    answer.is(true, "Done", None);
    assert!(why(&answer, "audits").starts_with("what was written late is unknown: "));
    assert_eq!(late.failed.digest(), late.failed.manifest(DIRECTORY).data_digest);
}

/// Kills that must have hit, and how often it may be tried: a restore that had ended was not killed.
const KILLS: usize = 12;
const TRIES: usize = 40;

#[tokio::test]
async fn kills_at_random_instants_leave_the_failed_state_or_all_of_the_restored_one() {
    let late = Late::new("", CLIENTS, &NAMES).await;
    let before = late.failed.digest();
    let started = Instant::now();
    let answer = late.restore().await;
    answer.is(true, "Done", None);
    let (whole, goal) = (u64::try_from(started.elapsed().as_micros()).unwrap(), facts(&answer).data_digest);
    let mut dice = Dice::new().unwrap();
    let (mut not_done, mut done) = (0, 0);
    for _ in 0..TRIES {
        // The same failure again, as if nothing had been done about it.
        let copy = late.failed.site.storage.join(FAILED).join("database.sqlite");
        fs::copy(&copy, late.failed.site.database()).unwrap();
        fs::remove_dir_all(late.failed.site.storage.join(FAILED)).unwrap();
        fs::remove_file(late.failed.site.data.join("memoria.db.memoria-operator.json")).unwrap();
        assert_eq!(late.failed.digest(), before);
        let mut running = late.failed.spawn(&late.failed.site.other_pod(), late.input());
        tokio::time::sleep(Duration::from_micros(dice.below(whole))).await;
        let hit = running.kill_if_running();
        let found = late.failed.digest();
        assert!(found == before || found == goal, "neither of the two; {dice}");
        if hit {
            *(if found == goal { &mut done } else { &mut not_done }) += 1;
        }
        let again = late.restore().await;
        again.is(true, "Done", None);
        assert_eq!((late.failed.digest(), counts(&facts(&again))), (goal.clone(), [8, 0, 0, 8]), "{dice}");
        assert!(late.failed.site.markers().steps.iter().all(|step| step.finished_at.is_some()));
        if done + not_done == KILLS {
            break;
        }
    }
    println!("{dice}: {not_done} times the failed state, {done} times the restored one");
    assert!(done + not_done == KILLS && not_done > 0, "{done} and {not_done}; {dice}");
}
