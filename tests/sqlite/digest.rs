//! Digests: what must differ differs, what must not does not.

use memoria_operator::snapshot::{
    digest::TableDigest,
    sqlite::{content, digest, schema},
};
use rusqlite::{Connection, params, types::Value};
use std::path::Path;

fn digest_of(connection: &Connection) -> TableDigest {
    let path = Path::new("test");
    let schema = schema::read(connection, path).unwrap();
    digest::table(connection, path, "t", &schema.tables["t"]).unwrap()
}

/// The digest of a table of one row with one value, in a column without affinity.
fn of_value(value: &Value) -> TableDigest {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("CREATE TABLE t (v)").unwrap();
    connection.execute("INSERT INTO t VALUES (?1)", params![value]).unwrap();
    digest_of(&connection)
}

#[test]
fn values_that_sqlite_calls_equal_or_prints_alike_have_digests_of_their_own() {
    let values = [
        Value::Null,
        Value::Integer(1),
        Value::Real(1.0),
        Value::Text("1".to_owned()),
        Value::Blob(b"1".to_vec()),
        Value::Text(String::new()),
        Value::Blob(Vec::new()),
        Value::Integer(0),
        Value::Real(0.0),
        Value::Real(-0.0),
        Value::Real(f64::INFINITY),
        Value::Real(f64::NEG_INFINITY),
        Value::Real(f64::MIN_POSITIVE / 2.0),
        Value::Integer(i64::MAX),
        Value::Real(9_223_372_036_854_775_807.0),
        Value::Text("a\0b".to_owned()),
        Value::Text("a".to_owned()),
        Value::Text("n".repeat(20_000_000)),
        Value::Text("n".repeat(20_000_001)),
        Value::Text("é".to_owned()),
        Value::Text("e\u{301}".to_owned()),
    ];
    let digests: Vec<_> = values.iter().map(of_value).collect();
    for (at, digest) in digests.iter().enumerate() {
        assert_eq!(digest.rows, 1);
        for (other, found) in digests.iter().enumerate().skip(at + 1) {
            // SQLite stores a real without a fraction that way only where that loses nothing: -0.0 it keeps.
            assert_ne!(digest.digest, found.digest, "values {at} and {other}");
        }
    }
    // It stores no NaN.
    assert_eq!(of_value(&Value::Real(f64::NAN)), of_value(&Value::Null));
}

#[test]
fn values_do_not_run_into_each_other_and_equal_rows_do_not_cancel() {
    let of = |sql: &str| {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&format!("CREATE TABLE t (a TEXT, b TEXT); {sql}")).unwrap();
        digest_of(&connection)
    };
    assert_ne!(of("INSERT INTO t VALUES ('ab', 'c')"), of("INSERT INTO t VALUES ('a', 'bc')"));
    assert_ne!(of("INSERT INTO t VALUES ('a', NULL)"), of("INSERT INTO t VALUES (NULL, 'a')"));
    let (none, two) = (of(""), of("INSERT INTO t VALUES ('x', 'y'), ('x', 'y')"));
    assert_ne!(none.digest, two.digest);
    assert_eq!((none.rows, two.rows), (0, 2));
}

#[test]
fn order_of_rows_and_columns_and_vacuum_do_not_matter() {
    let path = Path::new("test");
    let of = |sql: &str| {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(sql).unwrap();
        content::read(&connection, path).unwrap()
    };
    let one = of("CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'z')");
    let other = of(
        "CREATE TABLE t (b TEXT, a INT); INSERT INTO t VALUES ('gone', 9), ('z', 3), ('y', 2), ('x', 1); DELETE FROM t WHERE a = 9; VACUUM",
    );
    assert_eq!(one.data.tables, other.data.tables);
    // A key that is the rowid itself counts.
    let one = of("CREATE TABLE t (id INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, 'x')");
    let other = of("CREATE TABLE t (id INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (2, 'x')");
    assert_ne!(one.data.tables, other.data.tables);
}

#[test]
fn odd_tables_are_read_whole_and_unknown_modules_are_named() {
    let path = Path::new("test");
    let connection = Connection::open_in_memory().unwrap();
    connection
        .execute_batch(
            "CREATE TABLE w (k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO w VALUES ('a', 1);
             CREATE TABLE s (i INTEGER, a ANY) STRICT; INSERT INTO s VALUES (1, x'00');
             CREATE TABLE g (a INT, v INT AS (a + 1), st INT AS (a * 2) STORED); INSERT INTO g VALUES (4);
             CREATE TABLE \"odd \"\"name\" (\"a b\"); INSERT INTO \"odd \"\"name\" VALUES (1);
             CREATE VIRTUAL TABLE notes USING fts5(body); INSERT INTO notes VALUES ('to be found');
             CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO auto VALUES (41); DELETE FROM auto",
        )
        .unwrap();
    let before = content::read(&connection, path).unwrap();
    assert_eq!(before.data.sequences["auto"].last_value, 41);
    assert!(before.schema.tables["notes_content"].shadow);
    assert_eq!(before.data.tables["notes_content"].rows, 1);
    connection.execute_batch("UPDATE notes SET body = 'to be lost'").unwrap();
    let after = content::read(&connection, path).unwrap();
    assert!(
        before.differences(&after).iter().any(|line| line.contains("notes_content")),
        "{:?}",
        before.differences(&after)
    );
    connection.execute_batch("CREATE VIRTUAL TABLE away USING dbstat").unwrap();
    let refused = content::read(&connection, path).unwrap_err();
    assert_eq!(refused.reason(), "UnknownVirtualTables");
    assert!(refused.to_string().contains("away (module dbstat)"), "{refused}");
}
