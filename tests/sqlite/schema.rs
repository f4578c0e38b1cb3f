//! Schemas: spelling does not matter, structure does.

use memoria_operator::snapshot::sqlite::schema::{self, Neutral, Schema, compare, compare_neutral};
use rusqlite::Connection;
use std::path::Path;

fn of(sql: &str) -> Schema {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(sql).unwrap();
    schema::read(&connection, Path::new("test")).unwrap()
}

#[test]
fn what_migrations_leave_is_what_init_db_builds_however_it_is_written() {
    let built = of("CREATE TABLE p (id INTEGER NOT NULL PRIMARY KEY);
        CREATE TABLE t (id INTEGER NOT NULL, name VARCHAR(20) NOT NULL, n FLOAT DEFAULT 1, p INTEGER, PRIMARY KEY (id), UNIQUE (name), FOREIGN KEY(p) REFERENCES p (id), CHECK (n > 0));
        CREATE INDEX ix ON t (n) WHERE n IS NOT NULL; CREATE VIEW v AS SELECT id FROM t");
    let migrated = of("create table p (\"id\" integer not null primary key);
        CREATE TABLE `t` (name TEXT NOT NULL, id INTEGER NOT NULL PRIMARY KEY, p INT REFERENCES p, CHECK(n>0));
        ALTER TABLE t ADD COLUMN n REAL DEFAULT (1);
        CREATE UNIQUE INDEX other ON t (name); CREATE INDEX other2 ON t(\"n\") where n is not null; CREATE VIEW v  AS SELECT \"id\" FROM t"
        .replace("CHECK(n>0)", "n2 INT").as_str());
    let found = compare(&built, &migrated);
    // Only what was really left out or added.
    assert_eq!(found.differences, ["table t: check ( n > 0 ) missing"]);
    assert_eq!(found.extra, ["column t.n2"]);
    assert_ne!(built.fingerprint(), migrated.fingerprint());
}

#[test]
fn every_kind_of_difference_is_named() {
    let built = of("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT NOT NULL, b INT DEFAULT 1, c TEXT COLLATE NOCASE);
        CREATE TABLE gone (x); CREATE TABLE s (i INT) STRICT; CREATE INDEX i ON t (lower(a) DESC);
        CREATE TRIGGER tr AFTER INSERT ON t BEGIN SELECT 1; END");
    let found = of("CREATE TABLE t (id INTEGER, a BLOB, b INT DEFAULT 2, c TEXT, z INT NOT NULL, PRIMARY KEY (id, a));
        CREATE TABLE s (i INT); CREATE TABLE stray (x)");
    let found = compare(&built, &found);
    for expected in [
        "table gone: missing",
        "column t.a: type is blob (BLOB), expected text (TEXT)",
        "column t.a: is nullable, expected NOT NULL",
        "column t.b: default is 2, expected 1",
        "column t.c: collation or generation is different",
        "column t.z: not expected, and NOT NULL without a default",
        "table t: primary key is (id, a), expected (id)",
        "table s: STRICT or WITHOUT ROWID is different",
        "table t: index ( lower ( a ) desc ) missing",
        "trigger tr: missing",
    ] {
        assert!(found.differences.iter().any(|line| line == expected), "{expected}: {:?}", found.differences);
    }
    assert_eq!(found.extra, ["table stray"]);
}

#[test]
fn databases_of_different_engines_are_compared_by_names_and_nullability() {
    let built = of("CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a TEXT NOT NULL, b JSON)");
    let found = of("CREATE TABLE t (id INTEGER PRIMARY KEY, a VARCHAR, c INT NOT NULL); CREATE TABLE more (x)");
    let found = compare_neutral(&Neutral::from(&built), &Neutral::from(&found));
    assert_eq!(
        found.differences,
        [
            "column t.a: is nullable, expected NOT NULL",
            "column t.b: missing",
            "column t.c: not expected, and NOT NULL without a default"
        ]
    );
    assert_eq!(found.extra, ["table more"]);
}
