//! The portable export of an SQLite file and its way back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use memoria_operator::{
    job::protocol::JobOrder,
    snapshot::{
        Error, Result,
        portable::{
            Compression, Form, Imported, Keys, Manifest, Options, Recipients, Source,
            shelf::{self, Fate},
            silent, sqlite,
            verify::{self, Change, Side},
        },
        sqlite::{
            content::{self, Content},
            open_beside,
        },
        store::ToPlace,
    },
};
use proptest::prelude::*;
use rusqlite::{Connection, types::Value};

use crate::{
    python::Python,
    site::{DIRECTORY, MEMORIA, Site},
    stand_in,
};

const ALL: [Options; 3] = [
    Options { form: Form::Ndjson, compression: Compression::Zstd, recipients: Recipients::NONE },
    Options { form: Form::Ndjson, compression: Compression::None, recipients: Recipients::NONE },
    Options { form: Form::Json, compression: Compression::Zstd, recipients: Recipients::NONE },
];

/// Every class of value in every kind of column.
const ZOO: &str = "
    CREATE TABLE zoo (id INTEGER PRIMARY KEY, anything, b BOOLEAN, j JSON, jr JSON NOT NULL, at DATETIME, f FLOAT, t TEXT, n NUMERIC,
        twice INTEGER AS (id * 2), thrice INTEGER AS (id * 3) STORED);
    CREATE TABLE keyed (k TEXT, v, PRIMARY KEY (k, v)) WITHOUT ROWID;
    CREATE TABLE strict (i INTEGER, a ANY, y BLOB) STRICT;
    CREATE TABLE \"odd \"\"name\" (\"a b\" TEXT, \"ключ\");
    CREATE VIRTUAL TABLE notes USING fts5(body);
    CREATE TRIGGER no BEFORE INSERT ON keyed BEGIN SELECT raise(ABORT, 'a trigger fired'); END;";

const ZOO_ROWS: &str = "
    DROP TRIGGER no;
    INSERT INTO zoo (anything, b, j, jr, at, f, t, n) VALUES
        (NULL, 1, '{\"b\":  1.10, \"a\": [1, NaN]}', 'null', '2026-01-10 00:00:00.000000', 100000.0, '', 1),
        (-9223372036854775808, 0, 'not json', '\"x\"', '2026-01-10T00:00:00', -0.0, 'a' || char(0) || 'b', 1.5),
        (1e300, 2, 'null', '[]', '2026-01-10 00:00:00.25', 9e999, CAST(x'ff00' AS TEXT), '12345678901234567890123'),
        (x'00ff', 'yes', '{\"a\":' || char(10) || '1}', 'true', 17, -9e999, 'Ξεσκεπάζω 👩‍👩‍👧‍👦', 'text'),
        ('1', x'01', '{\"$memoria\": \"text\", \"value\": \"x\"}', '{\"é\": \"\\u00e9\"}', x'', 5e-324, '\"\\/' || char(9, 13, 10), NULL);
    INSERT INTO keyed VALUES ('a', 1), ('a', 1.5), ('a', x'61'), ('', '');
    INSERT INTO strict VALUES (1, '1', x''), (NULL, 1, NULL);
    INSERT INTO \"odd \"\"name\" VALUES ('x', 1), ('x', 1);
    INSERT INTO notes VALUES ('to be found');
    CREATE TRIGGER no BEFORE INSERT ON keyed BEGIN SELECT raise(ABORT, 'a trigger fired'); END;";

fn export_to(site: &Site, directory: &Path, options: Options) -> Result<Manifest> {
    let directory = &directory.to_place();
    sqlite::export(&sqlite::Export { database: &site.database(), copy: false, directory, options, progress: silent() })
}

fn stored(directory: &Path) -> Side {
    Side::Stored(directory.to_place(), Keys::default())
}

fn import_from(site: &Site, source: &Path) -> Result<Imported> {
    let source = Source::open(source, &Keys::default())?;
    sqlite::import(&sqlite::Import { database: &site.database(), source: &source, progress: silent() })
}

fn content(site: &Site) -> Content {
    let path = site.database();
    content::read(&open_beside(&path).unwrap(), &path).unwrap()
}

#[test]
fn every_class_of_value_comes_back_the_same_in_either_form() {
    let site = Site::with("wal", MEMORIA);
    site.execute(ZOO);
    site.execute(ZOO_ROWS);
    let before = content(&site);
    for (number, options) in ALL.into_iter().enumerate() {
        let directory = site.storage.join(number.to_string());
        let manifest = export_to(&site, &directory, options).unwrap();
        assert_eq!(manifest.data(), before.data);
        let copy = Site::with("delete", MEMORIA);
        copy.execute(ZOO);
        copy.execute("DELETE FROM teams; INSERT INTO strict VALUES (9, 9, x'09')");
        let imported = import_from(&copy, &directory).unwrap();
        assert!(imported.proved);
        let after = content(&copy);
        assert_eq!(before.differences(&after), Vec::<String>::new());
        // The index over the texts came with its tables.
        let connection = Connection::open(copy.database()).unwrap();
        let found: i64 =
            connection.query_row("SELECT count(*) FROM notes WHERE notes MATCH 'found'", [], |row| row.get(0)).unwrap();
        assert_eq!(found, 1);
        // Keys of rows that were deleted are not given out again.
        connection
            .execute("INSERT INTO memory_access_events (memory_id, accessed_at) VALUES ('m', 'now')", [])
            .unwrap();
        assert_eq!(connection.last_insert_rowid(), 301);
    }
}

#[test]
fn a_server_at_work_is_exported_at_one_moment_and_not_disturbed() {
    let site = Site::with("wal", MEMORIA);
    let mut server = Python::open(&site.database());
    server.must("INSERT INTO agents (agent_id, name) VALUES ('a3', 'committed')");
    server.must("BEGIN IMMEDIATE").must("INSERT INTO agents (agent_id, name) VALUES ('a4', 'not yet')");
    let manifest = export_to(&site, &site.storage.join("x"), Options::default()).unwrap();
    assert_eq!(manifest.tables["agents"].content.rows, 3);
    server.must("COMMIT");
    assert_eq!(site.journal_mode(), "wal");
    // A writer keeps an import out, and nothing is changed.
    server.must("BEGIN IMMEDIATE");
    let refused = import_from(&site, &site.storage.join("x")).unwrap_err();
    assert_eq!(refused.reason(), "DatabaseInUse", "{refused}");
    server.must("ROLLBACK");
    assert_eq!(content(&site).data.tables["agents"].rows, 4);
    import_from(&site, &site.storage.join("x")).unwrap();
    assert_eq!(server.run("SELECT count(*) FROM agents"), "ok [(3,)]");
}

#[test]
fn damage_is_refused_and_nothing_is_changed() {
    let site = Site::with("delete", MEMORIA);
    let before = content(&site);
    for compression in [Compression::Zstd, Compression::None] {
        let directory = site.storage.join(format!("{compression:?}"));
        let manifest =
            export_to(&site, &directory, Options { form: Form::Json, compression, recipients: Recipients::NONE })
                .unwrap();
        for name in manifest.files.keys() {
            let path = directory.join(name);
            let whole = fs::read(&path).unwrap();
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 1;
            for damaged in [&whole[..whole.len() - 1], &whole[..whole.len() / 2], &flipped] {
                fs::write(&path, damaged).unwrap();
                let refused = import_from(&site, &directory).unwrap_err();
                assert!(matches!(&refused, Error::Damaged { what, .. } if what.contains(name.as_str())), "{refused}");
            }
            fs::write(&path, whole).unwrap();
        }
    }
    assert_eq!(content(&site), before);
}

#[test]
fn a_target_without_the_tables_or_with_others_is_refused_by_name() {
    let site = Site::with("delete", MEMORIA);
    export_to(&site, &site.storage.join("x"), Options::default()).unwrap();
    let other = Site::with("delete", "CREATE TABLE teams (team_id VARCHAR NOT NULL PRIMARY KEY, name TEXT)");
    let refused = import_from(&other, &site.storage.join("x")).unwrap_err().to_string();
    assert!(
        refused.contains("table agents is missing") && refused.contains("column lead of teams is missing"),
        "{refused}"
    );
    site.execute("CREATE VIRTUAL TABLE away USING dbstat");
    let refused = export_to(&site, &site.storage.join("y"), Options::default()).unwrap_err();
    assert!(matches!(&refused, Error::Uncovered { what } if what.contains("away (module dbstat)")), "{refused}");
}

#[tokio::test]
async fn differences_are_told_by_table_and_row_and_shown_by_key_alone() {
    let site = Site::with("delete", MEMORIA);
    export_to(&site, &site.storage.join("x"), Options::default()).unwrap();
    site.execute(
        "UPDATE agents SET name = 'secret text' WHERE agent_id = 'a1'; DELETE FROM memory_access_events WHERE id < 11",
    );
    let (first, second) = (stored(&site.storage.join("x")), Side::Sqlite(site.database()));
    let report = verify::compare(&first, &second, 2, &silent()).await.unwrap();
    let text = serde_json::to_string(&report).unwrap();
    assert!(!report.same && !text.contains("secret text"), "{text}");
    let [agents, events] = report.tables.as_slice() else { panic!("{text}") };
    let (agents, events) = (agents.differing.as_ref().unwrap(), events.differing.as_ref().unwrap());
    assert_eq!(agents.keys, [(Change::Changed, "{\"agent_id\": \"a1\"}".to_owned())]);
    assert_eq!((events.only_first, events.only_second, events.changed, events.keys.len()), (10, 0, 0, 2));
    assert!(verify::compare(&second, &second, 0, &silent()).await.unwrap().same);
}

#[test]
fn memoria_s_own_import_reads_the_main_file_and_its_own_exports_are_read() {
    let site = Site::new();
    stand_in::fill(&site.url(), 900);
    let exported = stand_in::exported(&site.url());
    for form in [Form::Ndjson, Form::Json] {
        let theirs = Site::new();
        stand_in::run(&["memoria.cli", "init-db", "--database-url", &theirs.url()]);
        let directory = site.storage.join(form.word());
        export_to(&site, &directory, Options { form, compression: Compression::None, recipients: Recipients::NONE })
            .unwrap();
        let main = directory.join(format!("memoria.{}", form.word()));
        let said =
            stand_in::run(&["memoria.cli", "import-data", main.to_str().unwrap(), "--database-url", &theirs.url()]);
        assert_eq!(said.trim(), "Imported dataset for 14 tables (truncate=yes)");
        // It spells nested JSON anew, so by values and not by digests.
        assert_eq!(stand_in::exported(&theirs.url()), exported);

        let ours = Site::new();
        stand_in::run(&["memoria.cli", "init-db", "--database-url", &ours.url()]);
        let file = site.storage.join("official");
        stand_in::run(&[
            "memoria.cli",
            "export-data",
            file.to_str().unwrap(),
            "--format",
            form.word(),
            "--database-url",
            &site.url(),
        ]);
        let imported = import_from(&ours, &file).unwrap();
        assert_eq!((imported.proved, imported.tables), (false, 14));
        assert_eq!(stand_in::exported(&ours.url()), exported);
    }
}

#[test]
fn old_exports_go_and_the_newest_that_is_whole_stays() {
    let site = Site::with("delete", MEMORIA);
    for name in ["1", "2", "3", "4"] {
        export_to(&site, &site.storage.join("daily").join(name), Options::default()).unwrap();
    }
    fs::create_dir_all(site.storage.join("unfinished")).unwrap();
    let listed = shelf::list(&site.storage).unwrap();
    let names: Vec<_> = listed.iter().map(|entry| entry.directory.name().file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["1", "2", "3", "4"]);
    assert!(listed.iter().all(|entry| entry.rows == 299 && entry.tables == 3 && entry.fault.is_none()), "{listed:?}");
    fs::write(site.storage.join("daily/4/schema.json"), "{}").unwrap();
    let fates = |dry| -> Vec<_> {
        let fates = shelf::prune(&site.storage, 1, dry).unwrap().into_iter();
        fates.map(|pruned| matches!(pruned.fate, Fate::Removed)).collect()
    };
    assert_eq!(fates(true), [false, false, true, true]);
    assert_eq!(fates(false), [false, false, true, true]);
    assert!(!site.storage.join("daily/1").exists() && site.storage.join("daily/3/manifest.json").exists());
    assert_eq!(fates(false), [false, false]);
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Integer),
        any::<f64>().prop_map(Value::Real),
        "\\PC{0,12}|[\\x00-\\x7f]{0,6}".prop_map(Value::Text),
        "[{}\\[\\]\":,0-9 truefalsn]{0,8}".prop_map(Value::Text),
        "2026-01-10[ T]00:00:00(\\.[0-9]{6})?".prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..8).prop_map(Value::Blob),
    ]
}

#[derive(Clone, Debug)]
struct AnyTable {
    name: String,
    columns: Vec<(String, &'static str)>,
    rows: Vec<Vec<Value>>,
}

fn any_table() -> impl Strategy<Value = AnyTable> {
    let kinds = ["", "BOOLEAN", "JSON", "DATETIME", "FLOAT", "INTEGER", "TEXT", "BLOB", "NUMERIC"];
    let name = "[a-zA-Zäж \"'.\\\\]{1,6}";
    (name, proptest::collection::btree_map(name, proptest::sample::select(kinds.to_vec()), 1..5)).prop_flat_map(
        |(name, columns)| {
            // Names of columns are the same whatever their case.
            let mut seen = std::collections::BTreeSet::new();
            let columns: Vec<_> =
                columns.into_iter().filter(|(column, _)| seen.insert(column.to_ascii_lowercase())).collect();
            let row = proptest::collection::vec(any_value(), columns.len());
            proptest::collection::vec(row, 0..6).prop_map(move |rows| AnyTable {
                name: name.clone(),
                columns: columns.clone(),
                rows,
            })
        },
    )
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn fill(path: &Path, tables: &[AnyTable], with_rows: bool) {
    let connection = Connection::open(path).unwrap();
    for AnyTable { name, columns, rows } in tables {
        let list: Vec<_> = columns.iter().map(|(column, kind)| format!("{} {kind}", quoted(column))).collect();
        connection.execute_batch(&format!("CREATE TABLE {} ({})", quoted(name), list.join(", "))).unwrap();
        let places = vec!["?"; columns.len()].join(", ");
        for row in rows.iter().filter(|_| with_rows) {
            let sql = format!("INSERT INTO {} VALUES ({places})", quoted(name));
            connection.execute(&sql, rusqlite::params_from_iter(row)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_schema_and_rows_survive_export_import_and_export(
        tables in proptest::collection::vec(any_table(), 0..4), json in any::<bool>(), compressed in any::<bool>()
    ) {
        let mut names = std::collections::BTreeSet::new();
        let tables: Vec<_> = tables.into_iter().filter(|table| names.insert(table.name.to_ascii_lowercase())).collect();
        let options = Options {
            form: if json { Form::Json } else { Form::Ndjson },
            compression: if compressed { Compression::Zstd } else { Compression::None },
            recipients: Recipients::NONE,
        };
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| -> PathBuf { place.path().join(name) };
        fill(&at("a.db"), &tables, true);
        fill(&at("b.db"), &tables, false);
        let export = |database: &str, directory: &str| {
            let request = sqlite::Export { database: &at(database), copy: false, directory: &at(directory), options: options.clone(), progress: silent() };
            sqlite::export(&request).unwrap()
        };
        let first = export("a.db", "a");
        let source = Source::open(&at("a"), &Keys::default()).unwrap();
        let imported = sqlite::import(&sqlite::Import { database: &at("b.db"), source: &source, progress: silent() }).unwrap();
        prop_assert!(imported.proved);
        let second = export("b.db", "b");
        prop_assert_eq!(first.data(), second.data());
        prop_assert_eq!(first.data_digest, second.data_digest);
    }
}

#[tokio::test]
async fn database_export_and_exact_snapshot_are_compared_with_each_other() {
    let site = Site::with("wal", MEMORIA);
    site.run(&JobOrder::Snapshot(site.snapshot_order())).await.is(true, "Done", None);
    export_to(&site, &site.storage.join("x"), Options::default()).unwrap();
    let exact = stored(&site.storage.join(DIRECTORY));
    let sides = [Side::Sqlite(site.database()), stored(&site.storage.join("x")), exact];
    for first in &sides {
        for second in &sides {
            let report = verify::compare(first, second, 1, &silent()).await.unwrap();
            assert!(report.same && report.rows_compared == 299, "{report:?}");
        }
    }
    site.execute("DELETE FROM teams WHERE team_id = 't2'");
    let report = verify::compare(&sides[2], &sides[0], 1, &silent()).await.unwrap();
    let [teams] = report.tables.as_slice() else { panic!("{report:?}") };
    let keys = &teams.differing.as_ref().unwrap().keys;
    assert_eq!(keys, &[(Change::OnlyFirst, "{\"team_id\": \"t2\"}".to_owned())]);
}
