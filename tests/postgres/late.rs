//! Rows that were written after the baseline: counted exactly, kept, and not taken back unasked.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use memoria_operator::{
    api::upgrade::{Category, TableLate},
    job::protocol::{BaselineFacts, BaselineOrder, Facts, JobInput, JobOrder},
};
use serde_json::Value;

use crate::{
    restore::{FAILED, Ready, facts},
    site::{Answer, Running, task},
};

pub const BASELINE: &str = "prod-0b8ff1f4/prod-1/baseline";

/// A table with a key that is spelled oddly, one without any, one with JSON over several lines.
const MORE: &str = r#"CREATE TABLE keyed (a text, b int, v text, PRIMARY KEY (a, b)); INSERT INTO keyed VALUES (E'"\\', 1, 'x'), (E'l\nf', 2, 'y'), ('z', 3, NULL);
CREATE TABLE loose (t text); INSERT INTO loose VALUES ('one'), ('one'), ('one'), ('two')"#;

/// What the failed upgrade left, and after the baseline the clients.
const UPGRADE: &str =
    "ALTER TABLE agents ADD COLUMN nick TEXT; CREATE TABLE consents (id SERIAL PRIMARY KEY, agent VARCHAR, extra JSON)";
const CLIENTS: &str = r#"INSERT INTO consents (agent, extra) VALUES ('a1', E'{"n":\n1.10}'), ('a2', NULL); UPDATE agents SET nick = 'n' WHERE agent_id IN ('a1', 'a2', 'a3');
UPDATE agents SET name = name; DELETE FROM keyed WHERE b < 3; DELETE FROM loose WHERE ctid = (SELECT min(ctid) FROM loose); INSERT INTO loose VALUES ('two'), ('two'), ('new')"#;

pub struct Upgraded {
    pub ready: Ready,
    pub carry_forward: Vec<String>,
    sha256: String,
}

impl Upgraded {
    async fn new() -> Self {
        let upgraded = Self::with(MORE).await;
        let facts = baseline_facts(&baseline(&upgraded.ready).await);
        assert_eq!((facts.tables, facts.rows), (8, 565));
        upgraded
    }

    /// A database with more in it, its snapshot, what an upgrade made of it, and the baseline of that.
    pub async fn with(more: &str) -> Self {
        Self::after(more, "").await
    }

    /// The same, where the upgrade did more as well.
    pub async fn after(more: &str, upgrade: &str) -> Self {
        let ready = Ready::new(more).await;
        ready.cluster.app(&format!("{UPGRADE}; {upgrade}")).await;
        let answer = baseline(&ready).await;
        answer.is(true, "Done", None);
        let facts = baseline_facts(&answer);
        let mut upgraded = Self { ready, carry_forward: Vec::new(), sha256: facts.sha256 };
        upgraded.ready.input.late_writes_possible = true;
        upgraded.ready.input.baseline_sha256 = Some(upgraded.sha256.clone());
        upgraded
    }

    pub async fn restore(&self, budget: i64) -> Answer {
        self.spawn(budget).await.end().await
    }

    pub async fn spawn(&self, budget: i64) -> Running {
        let mut order = self.ready.order().await;
        order.baseline_directory = Some(BASELINE.to_owned());
        order.data_loss_budget_rows = budget;
        order.carry_forward.clone_from(&self.carry_forward);
        let pod = self.ready.site.other_pod();
        pod.spawn_kept(&JobOrder::Restore(order), &self.ready.input, &self.ready.cluster.url_text())
    }

    /// Without the hashes of rows that have a key.
    fn lines(&self, table: &str) -> Vec<Value> {
        let mut lines = self.lines_with_hashes(table);
        for line in lines.iter_mut().filter_map(Value::as_object_mut).filter(|line| line.contains_key("key")) {
            line.remove("before");
            line.remove("rowHash");
        }
        lines.sort_by_key(Value::to_string);
        lines
    }

    fn lines_with_hashes(&self, table: &str) -> Vec<Value> {
        let directory = self.ready.site.storage.join(FAILED);
        let late: Value = serde_json::from_slice(&fs::read(directory.join("late.json")).unwrap()).unwrap();
        let path = directory.join(late["files"][table].as_str().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

async fn baseline(ready: &Ready) -> Answer {
    let database = task(&ready.cluster, "prod-1").await;
    let order = BaselineOrder { database, directory: BASELINE.to_owned(), limit_seconds: 60 };
    ready.site.other_pod().run(&JobOrder::Baseline(order), &ready.cluster).await
}

fn baseline_facts(answer: &Answer) -> BaselineFacts {
    match &answer.report.facts {
        Some(Facts::Baseline(facts)) => facts.clone(),
        other => panic!("{other:?}"),
    }
}

fn late(table: &str, inserted: i64, updated: i64, deleted: i64) -> TableLate {
    TableLate { table: table.to_owned(), inserted, updated, deleted, ..TableLate::default() }
}

#[tokio::test]
async fn late_writes_are_counted_exactly_and_refused_over_the_budget() {
    let mut upgraded = Upgraded::new().await;
    upgraded.ready.cluster.app(CLIENTS).await;
    let answer = upgraded.restore(10).await;
    answer.is(false, "DataLossOverBudget", Some(Category::Decision));
    let found = facts(&answer);
    assert!(!found.restored);
    assert_eq!((found.late_inserted, found.late_updated, found.late_deleted), (5, 3, 3));
    assert_eq!(
        found.late_tables,
        [
            late("public.loose", 3, 0, 1),
            late("public.agents", 0, 3, 0),
            late("public.consents", 2, 0, 0),
            late("public.keyed", 0, 0, 2)
        ]
    );
    let left: (i64,) = sqlx::query_as("SELECT count(*) FROM consents")
        .fetch_one(&mut upgraded.ready.cluster.admin().await)
        .await
        .unwrap();
    assert_eq!(left.0, 2, "nothing may be taken back unasked");

    assert_eq!(
        upgraded.lines("public.consents"),
        [
            r#"{"change":"inserted","key":{"id":"1"},"row":{"agent":"a1","extra":{"n":1.10},"id":1}}"#,
            r#"{"change":"inserted","key":{"id":"2"},"row":{"agent":"a2","extra":null,"id":2}}"#
        ]
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
    );
    let agents = upgraded.lines_with_hashes("public.agents");
    let hash = |line: &Value, name: &str| line[name].as_str().map(str::len);
    assert!(
        agents.iter().all(|line| hash(line, "before") == Some(64) && hash(line, "rowHash") == Some(64)),
        "{agents:?}"
    );
    assert!(agents.iter().all(|line| line["before"] != line["rowHash"]), "{agents:?}");
    assert_eq!(
        upgraded.lines("public.keyed"),
        [r#"{"change":"deleted","key":{"a":"\"\\","b":"1"}}"#, r#"{"change":"deleted","key":{"a":"l\nf","b":"2"}}"#]
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
    );
    let loose = upgraded.lines("public.loose");
    assert!(loose.iter().any(|line| line["row"]["t"] == "two" && line["times"] == 2), "{loose:?}");
    assert!(loose.iter().any(|line| line["row"]["t"] == "new" && line["times"].is_null()), "{loose:?}");
    assert!(loose.iter().any(|line| line["change"] == "deleted" && line["rowHash"].is_string()), "{loose:?}");

    // Accepted by a person, or within the budget: restored, with the same counts.
    upgraded.ready.input.accept_data_loss = true;
    let accepted = upgraded.restore(10).await;
    accepted.is(true, "Done", None);
    assert!(facts(&accepted).restored);
    assert_eq!(facts(&accepted).late_tables, found.late_tables);
}

#[tokio::test]
async fn a_budget_that_is_not_exceeded_lets_the_restore_go_on() {
    let upgraded = Upgraded::new().await;
    upgraded.ready.cluster.app(CLIENTS).await;
    let answer = upgraded.restore(11).await;
    answer.is(true, "Done", None);
    assert!(facts(&answer).restored);
}

#[tokio::test]
async fn nothing_written_is_nothing_lost() {
    let upgraded = Upgraded::new().await;
    let answer = upgraded.restore(0).await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert_eq!((found.late_inserted, found.late_updated, found.late_deleted, found.late_tables), (0, 0, 0, Vec::new()));
}

#[tokio::test]
async fn without_a_baseline_nobody_knows_and_a_person_decides() {
    let mut upgraded = Upgraded::new().await;
    let unknown = |answer: &Answer| {
        answer.is(false, "LateWritesUnknown", Some(Category::Decision));
        assert!(!facts(answer).restored && facts(answer).failed_state.is_some());
    };
    unknown(&upgraded.ready.restore().await);
    let good = upgraded.ready.input.clone();
    upgraded.ready.input = JobInput { baseline_sha256: Some("0".repeat(64)), ..good.clone() };
    unknown(&upgraded.restore(0).await);
    upgraded.ready.input = good;
    let rows = first_rows(&upgraded.ready.site.storage.join(BASELINE));
    let mut bytes = fs::read(&rows).unwrap();
    bytes[5] ^= 1;
    fs::write(&rows, bytes).unwrap();
    unknown(&upgraded.restore(0).await);
    upgraded.ready.input.accept_data_loss = true;
    upgraded.restore(0).await.is(true, "Done", None);
}

fn first_rows(directory: &Path) -> PathBuf {
    directory.join("baseline-0001.rows")
}

#[tokio::test]
async fn a_repeated_baseline_is_checked_and_never_made_anew() {
    let upgraded = Upgraded::new().await;
    upgraded.ready.cluster.app(CLIENTS).await;
    let again = baseline(&upgraded.ready).await;
    assert_eq!(baseline_facts(&again).sha256, upgraded.sha256);
    let rows = first_rows(&upgraded.ready.site.storage.join(BASELINE));
    fs::write(&rows, b"other").unwrap();
    baseline(&upgraded.ready).await.is(false, "SnapshotDamaged", Some(Category::Environment));
}
