//! Late writes go back into the restored data, each table's all or none, and only where it is provable.

use std::{collections::BTreeMap, path::PathBuf};

use memoria_operator::snapshot::{
    digest::{self, TableDigest},
    late::{
        Reapply,
        reapplied::{Report, Why},
        reapply, set_aside,
    },
    schema,
};
use sqlx::AssertSqlSafe;

use crate::{late::Upgraded, restore::FAILED};

/// Values of every kind that JSON has other words for, keys of two columns, references, a table without a key.
const TABLES: &str = r#"
CREATE TABLE people (id SERIAL PRIMARY KEY, name TEXT NOT NULL UNIQUE, born DATE);
CREATE TABLE notes (a TEXT, b INT, author INT REFERENCES people, v TEXT, PRIMARY KEY (a, b));
CREATE TABLE kinds (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n NUMERIC, f FLOAT8, at TIMESTAMPTZ, raw BYTEA, j JSON, jb JSONB,
  words TEXT[], kind retention, span INT4RANGE, doubled INT GENERATED ALWAYS AS (2 * 21) STORED, note TEXT);
CREATE TABLE loose (t TEXT);
INSERT INTO people (name, born) SELECT 'p' || i, '1970-01-01'::date + i FROM generate_series(1, 20) i;
INSERT INTO notes SELECT 'n', i, i, 'v' || i FROM generate_series(1, 10) i;
INSERT INTO kinds (n, note) VALUES (1.10, 'one'), (2.20, 'two'), (3.30, 'three');"#;

const CLIENTS: &str = r#"
INSERT INTO people (name, born) VALUES ('late "\', '2001-02-03'), ('later', NULL);
UPDATE people SET name = 'renamed' WHERE id = 3; DELETE FROM notes WHERE b = 10; DELETE FROM people WHERE id = 10;
INSERT INTO notes VALUES (E'l\nf', 1, 21, E'tab\t\\'), ('n', 11, 22, NULL); UPDATE notes SET author = 21 WHERE b = 1 AND a = 'n';
INSERT INTO kinds (n, f, at, raw, j, jb, words, kind, span, note) VALUES
  (123456789012345678901234567890.0001000, 'NaN', '2025-06-01 12:00:00.123456+02', '\x00ff5c', '{"a":  1.10, "b": [null]}', '{"z": 1}', '{"a,b",NULL,"\""}', 'short', '[1,5)', 'all'),
  ('Infinity', 1e-300, 'infinity', '', NULL, 'null', '{}', NULL, 'empty', NULL);
UPDATE kinds SET n = 'NaN' WHERE note = 'two'; DELETE FROM kinds WHERE note = 'three';
INSERT INTO loose VALUES ('x')"#;

/// The tables whose late rows can go back.
const PROVABLE: [&str; 3] = ["public.kinds", "public.notes", "public.people"];

/// Written late, set aside, and taken back.
struct Restored {
    upgraded: Upgraded,
    /// The tables as they were before that.
    late: BTreeMap<String, TableDigest>,
}

impl Restored {
    async fn new(more: &str, clients: &str) -> Self {
        let mut upgraded = Upgraded::with(&format!("{TABLES} {more}")).await;
        upgraded.ready.cluster.app(clients).await;
        let late = tables(&upgraded).await;
        upgraded.ready.input.accept_data_loss = true;
        upgraded.restore(0).await.is(true, "Done", None);
        Self { upgraded, late }
    }

    fn directory(&self) -> PathBuf {
        self.upgraded.ready.site.storage.join(FAILED)
    }

    async fn reapply(&self, dry_run: bool) -> Report {
        let directory = self.directory();
        let late = set_aside::open(&directory).unwrap();
        let url = self.upgraded.ready.cluster.url();
        reapply(&Reapply { url: &url, application: "test", directory: &directory, late: &late, dry_run }).await.unwrap()
    }

    async fn now(&self) -> BTreeMap<String, TableDigest> {
        tables(&self.upgraded).await
    }

    async fn app(&self, sql: &str) {
        self.upgraded.ready.cluster.app(sql).await;
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut session = self.upgraded.ready.cluster.session("app", "memoria").await;
        let (number,): (i64,) = sqlx::query_as(AssertSqlSafe(sql.to_owned())).fetch_one(&mut session).await.unwrap();
        number
    }
}

async fn tables(upgraded: &Upgraded) -> BTreeMap<String, TableDigest> {
    let mut session = upgraded.ready.cluster.pinned().await;
    let schema = schema::read(&mut session).await.unwrap();
    digest::all(&mut session, &schema, |_, _| {}).await.unwrap().tables
}

/// Inserted, updated, deleted and already there.
fn counts(report: &Report, name: &str) -> [i64; 4] {
    let table = report.tables.iter().find(|table| table.table == name).unwrap();
    assert_eq!(table.aside, None, "{name}");
    [table.inserted, table.updated, table.deleted, table.already]
}

fn why(report: &Report, name: &str) -> String {
    report.tables.iter().find(|table| table.table == name).unwrap().aside.clone().unwrap().why
}

#[tokio::test]
async fn late_writes_go_back_exactly_and_a_second_time_changes_nothing() {
    let restored = Restored::new("", CLIENTS).await;
    let before = restored.now().await;
    let tried = restored.reapply(true).await;
    assert_eq!(restored.now().await, before, "a dry run changed something");
    let report = restored.reapply(false).await;
    assert_eq!(report.tables, tried.tables);
    assert_eq!(counts(&report, "public.people"), [2, 1, 1, 0]);
    assert_eq!(counts(&report, "public.notes"), [2, 1, 1, 0]);
    assert_eq!(counts(&report, "public.kinds"), [2, 1, 1, 0]);
    assert!(why(&report, "public.loose").starts_with("it has no primary key"), "{report:?}");
    assert!(!report.complete());
    let now = restored.now().await;
    for (name, expected) in &before {
        let expected = if PROVABLE.contains(&name.as_str()) { &restored.late[name] } else { expected };
        assert_eq!(&now[name], expected, "{name}");
    }
    // Keys that went in are not given out again.
    restored.app("INSERT INTO people (name) VALUES ('next'); INSERT INTO kinds (note) VALUES ('next')").await;
    restored.app("DELETE FROM people WHERE name = 'next'; DELETE FROM kinds WHERE note = 'next'").await;
    let again = restored.reapply(false).await;
    assert_eq!(PROVABLE.map(|name| counts(&again, name)), [[0, 0, 0, 4]; 3]);
    assert_eq!(restored.now().await, now);
}

#[tokio::test]
async fn what_contradicts_the_database_keeps_its_table_aside_and_is_named_by_key() {
    let restored = Restored::new("", CLIENTS).await;
    restored
        .app(
            "INSERT INTO notes VALUES ('n', 11, 1, 'private-7c1'); UPDATE notes SET v = 'private-7c1' WHERE b = 10;
             DELETE FROM notes WHERE a = 'n' AND b = 1",
        )
        .await;
    let before = restored.now().await;
    let report = restored.reapply(false).await;
    let notes = report.tables.iter().find(|table| table.table == "public.notes").unwrap().aside.clone().unwrap();
    assert_eq!(notes.conflicting, 3);
    let mut found: Vec<_> = notes.conflicts.iter().map(|c| (c.change.as_str(), c.key["b"].clone(), c.why)).collect();
    found.sort_by_key(|(change, _, _)| *change);
    assert_eq!(
        found,
        [
            ("deleted", "10".into(), Why::Changed),
            ("inserted", "11".into(), Why::KeyTaken),
            ("updated", "1".into(), Why::Gone)
        ]
    );
    assert!(!serde_json::to_string(&report).unwrap().contains("private-7c1"));
    // A note that stays still has an author that was deleted late: so that deletion, and with it its table, stays aside.
    assert!(why(&report, "public.people").contains("notes_author_fkey"), "{report:?}");
    let now = restored.now().await;
    assert_eq!((&now["public.notes"], &now["public.people"]), (&before["public.notes"], &before["public.people"]));
    assert_eq!(now["public.kinds"], restored.late["public.kinds"]);
}

#[tokio::test]
async fn rows_whose_parents_stay_aside_stay_aside_with_them() {
    let restored = Restored::new("", CLIENTS).await;
    // The name of one that was inserted late.
    restored.app("INSERT INTO people (name) VALUES ('later')").await;
    let before = restored.now().await;
    let report = restored.reapply(false).await;
    assert!(why(&report, "public.people").contains("people_name_key"), "{report:?}");
    assert!(why(&report, "public.notes").contains("notes_author_fkey"), "{report:?}");
    assert_eq!(counts(&report, "public.kinds"), [2, 1, 1, 0]);
    assert_eq!(restored.now().await["public.people"], before["public.people"]);
}

#[tokio::test]
async fn a_trigger_that_writes_more_than_was_predicted_has_everything_taken_back() {
    let trigger = "CREATE TABLE journal (id SERIAL PRIMARY KEY, what TEXT);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.journal (what) VALUES (NEW.name); RETURN NEW; END $$;
        CREATE TRIGGER noted AFTER INSERT ON people FOR EACH ROW EXECUTE FUNCTION note();";
    let restored = Restored::new(trigger, "INSERT INTO people (name) VALUES ('late')").await;
    let before = restored.now().await;
    let report = restored.reapply(false).await;
    // The row that the trigger wrote then goes in, and the one that it would write now is one too many.
    assert!(why(&report, "public.people").contains("public.journal"), "{report:?}");
    assert_eq!(restored.now().await["public.people"], before["public.people"]);
}

#[tokio::test]
async fn a_table_that_had_other_columns_stays_aside() {
    let restored =
        Restored::new("", "UPDATE agents SET nick = 'n' WHERE agent_id = 'a1'; INSERT INTO consents VALUES (1, 'a1')")
            .await;
    let before = restored.now().await;
    let report = restored.reapply(false).await;
    assert_eq!(why(&report, "public.agents"), "in the database it has no nick");
    assert_eq!(why(&report, "public.consents"), "the database has no such table");
    assert_eq!(restored.now().await, before);
    assert_eq!(restored.number("SELECT count(*) FROM agents").await, 50);
}

#[tokio::test]
async fn a_writer_who_is_in_the_way_is_named_and_nothing_is_changed() {
    let restored = Restored::new("", CLIENTS).await;
    let mut writer = restored.upgraded.ready.cluster.session("app", "memoria").await;
    crate::cluster::run(&mut writer, "BEGIN; UPDATE teams SET name = name").await;
    let directory = restored.directory();
    let late = set_aside::open(&directory).unwrap();
    let url = restored.upgraded.ready.cluster.url();
    let request = Reapply { url: &url, application: "test", directory: &directory, late: &late, dry_run: false };
    let error = reapply(&request).await.unwrap_err();
    assert_eq!(error.reason(), "Locked", "{error}");
}
