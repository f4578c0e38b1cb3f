//! The portable export and its way back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use memoria_operator::{
    job::protocol::JobOrder,
    snapshot::{
        Error, Result,
        digest::{self, DataDigest},
        portable::{
            Compression, Form, Imported, Keys, Manifest, Options, Recipients, Source, postgres, silent, sqlite,
            verify::{self, Change, Side},
        },
        quote_literal,
        schema::{self, Schema},
        session,
        store::ToPlace,
        url::DatabaseUrl,
    },
};
use proptest::{prelude::*, strategy::ValueTree};

use crate::{
    cluster::{Cluster, MEMORIA, PASSWORD, PASSWORD_ENCODED, run},
    site::{DIRECTORY, Site, holds_no_password, snapshot_order},
    stand_in,
};

const APPLICATION: &str = "mop-portable-test";

/// A table of every type beside Memoria's tables, and what rows can be hard about.
const ZOO: &str = r#"
CREATE SCHEMA other;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'very "happy"');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TYPE pair AS (a integer, b text);
CREATE TABLE zoo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b boolean, i2 smallint, i4 integer, i8 bigint, n numeric,
  n2 numeric(12,4), f4 real, f8 double precision, t text, vc varchar(40), c char(7), qc "char", nm name, y bytea, d date, tm time,
  tmz timetz, ts timestamp, ts3 timestamp(3), tsz timestamptz, iv interval, u uuid, j json, jb jsonb, ia integer[], ta text[],
  ma mood[], m mood, dom positive, p pair, r int4range, tr tstzrange, ip inet, net cidr, mac macaddr, bits bit(5), vbits varbit,
  mny money, pt point, tv tsvector, "odd ""na\me" text, jr json NOT NULL DEFAULT '{}', half integer GENERATED ALWAYS AS (i4 / 2) STORED);
CREATE TABLE other."no columns" ();
CREATE TABLE other."Ünïcode	tab" ("ключ" text PRIMARY KEY, "a.b" integer);
CREATE SEQUENCE other.free INCREMENT -3 START -10 MAXVALUE -1;
CREATE TABLE parts (k integer NOT NULL, v text) PARTITION BY RANGE (k);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (200);
CREATE MATERIALIZED VIEW sums AS SELECT count(*) AS n, sum(k) AS total FROM parts;
"#;

const ZOO_ROWS: &str = r#"
INSERT INTO zoo (b) VALUES (NULL);
INSERT INTO zoo (b, i2, i4, i8, n, n2, f4, f8, t, vc, c, qc, nm, y, d, tm, tmz, ts, ts3, tsz, iv, u, j, jb, ia, ta, ma, m, dom, p, r, tr,
  ip, net, mac, bits, vbits, mny, pt, tv, "odd ""na\me", jr) VALUES
 (true, -32768, 2147483647, -9223372036854775808, 'NaN', 1.1, 'NaN', '-0', E'a\tb\nc\\d\r\b\f\v\x01"', '', 'ab', 'x', 'n', '\x00ff5c0a', '2025-01-01',
  '12:34:56.5', '12:34:56+05:30', '2025-01-01 00:00:00.25', '2025-01-01 00:00:00.123', '2025-06-01 00:00:00+02', '1 year -2 days 03:04:05.678',
  'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', E'{"b":  1.10, "a": 1e400, "a": [\n1, "\\u0000"]}', '{"b": 1.10, "a": null, "é": "🦊"}', '{{1,2},{3,NULL}}',
  ARRAY['', NULL, 'NULL', 'a"b\c', ' '], '{sad,"very \"happy\""}', 'very "happy"', 7, ROW(1, 'x,"y"'), '[1,5)', '[2025-01-01 00:00+00,)',
  '10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', '10101', '1', '1234.5', '(1.5,-2)', 'fat:1A cat', '\N', 'null'),
 (false, 0, 0, 9223372036854775807, '-Infinity', -99999999.9999, '-Infinity', '5e-324', '\.', 'NULL', '', '', '', '', 'infinity', '24:00', '00:00-15:59',
  'infinity', '-infinity', '0044-03-15 00:00:00+00 BC', '-178000000 years', NULL, 'null', 'null', '{}', '{}', '{}', 'sad', 1, ROW(NULL, ''), 'empty',
  'empty', '::1/64', '::/0', NULL, '00000', '', '-0.01', '(Infinity,NaN)', '', 'Ξεσκεπάζω 👩‍👩‍👧‍👦 \u202b', ' { } '),
 (NULL, NULL, -1, 1, 123456789012345678901234567890.123456789, 0, 1e30, 1.7976931348623157e308, '', NULL, NULL, NULL, NULL, NULL, '4713-01-01 BC', NULL,
  NULL, '12025-01-01 00:00:00', '2025-12-31 23:59:59.9999', NULL, NULL, NULL, '{"$memoria": "json", "value": "x"}', '"$memoria"', NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '"x"'),
 (NULL, NULL, 100000, 1, 0.10, 0, 100000, 100000, repeat('grüße ', 70000), NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, NULL, NULL, '1.0', 'true', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[1]');
INSERT INTO other."no columns" DEFAULT VALUES; INSERT INTO other."no columns" DEFAULT VALUES;
INSERT INTO other."Ünïcode	tab" VALUES ('é', 1), (E'e\u0301', 2);
INSERT INTO parts SELECT i, 'v' || i FROM generate_series(0, 199) i;
SELECT nextval('other.free'), nextval('other.free');
REFRESH MATERIALIZED VIEW sums;
"#;

const BOTH: [Options; 3] = [
    Options { form: Form::Ndjson, compression: Compression::Zstd, recipients: Recipients::NONE },
    Options { form: Form::Ndjson, compression: Compression::None, recipients: Recipients::NONE },
    Options { form: Form::Json, compression: Compression::Zstd, recipients: Recipients::NONE },
];

/// A database beside `memoria`, of the same role.
async fn database(cluster: &Cluster, name: &str) -> (DatabaseUrl, String) {
    let mut admin = cluster.session("postgres", "postgres").await;
    run(&mut admin, &format!("CREATE DATABASE {name} OWNER app")).await;
    let text = cluster.url_text().replace("/memoria?", &format!("/{name}?"));
    (text.parse().unwrap(), text)
}

async fn execute(cluster: &Cluster, database: &str, sql: &str) {
    run(&mut cluster.session("app", database).await, sql).await;
}

async fn export_to(url: &DatabaseUrl, directory: &Path, options: Options, snapshot: Option<&str>) -> Result<Manifest> {
    let request = postgres::Export {
        url,
        application: APPLICATION,
        directory: &directory.to_place(),
        options,
        snapshot,
        digests: postgres::Digests::Compute,
        progress: silent(),
    };
    postgres::export(&request).await
}

async fn import_from(url: &DatabaseUrl, source: &Path) -> Result<Imported> {
    let source = Source::open(source, &Keys::default())?;
    postgres::import(&postgres::Import { url, application: APPLICATION, source: &source, progress: silent() }).await
}

async fn content(url: &DatabaseUrl) -> (Schema, DataDigest) {
    let mut session = session::open(url, APPLICATION).await.unwrap();
    let schema = schema::read(&mut session).await.unwrap();
    let data = digest::all(&mut session, &schema, |_, _| {}).await.unwrap();
    (schema, data)
}

fn side(url: &DatabaseUrl) -> Side {
    Side::Postgres { url: Box::new(url.clone()), application: APPLICATION.to_owned() }
}

fn stored(directory: &Path) -> Side {
    Side::Stored(directory.to_place(), Keys::default())
}

struct Places {
    directory: tempfile::TempDir,
}

impl Places {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[tokio::test]
async fn every_type_comes_back_the_same_in_either_form() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    for sql in [MEMORIA, ZOO, ZOO_ROWS] {
        cluster.app(sql).await;
    }
    let (copy, _) = database(&cluster, "copy").await;
    for sql in [MEMORIA, ZOO] {
        execute(&cluster, "copy", sql).await;
    }
    let (schema, before) = content(&cluster.url()).await;
    for (number, options) in BOTH.into_iter().enumerate() {
        let directory = places.at(&number.to_string());
        let manifest = export_to(&cluster.url(), &directory, options, None).await.unwrap();
        assert_eq!(manifest.data(), before);
        assert_eq!(manifest.schema_fingerprint, schema.fingerprint());
        let imported = import_from(&copy, &directory).await.unwrap();
        assert_eq!((imported.proved, imported.rows), (true, before.rows()));
        let (_, after) = content(&copy).await;
        assert_eq!(before.differences(&after, &schema), Vec::<String>::new());
        let report = verify::compare(&side(&copy), &stored(&directory), 3, &silent()).await.unwrap();
        assert!(report.same, "{report:?}");
        // Another content for the next round to replace.
        execute(
            &cluster,
            "copy",
            "UPDATE zoo SET t = 'changed'; UPDATE agents SET team_id = NULL; DELETE FROM teams; INSERT INTO parts VALUES (7, 'more')",
        )
        .await;
    }
    // Views made of rows are filled anew.
    let mut session = cluster.session("app", "copy").await;
    let (rows,): (i64,) = sqlx::query_as("SELECT n FROM sums").fetch_one(&mut session).await.unwrap();
    assert_eq!(rows, 200);
    // Keys go on where they were.
    execute(&cluster, "copy", "INSERT INTO memory_access_events (memory_id, accessed_at) VALUES ('m1', now()); INSERT INTO zoo (b) VALUES (true)").await;
}

#[tokio::test]
async fn keys_and_triggers_are_as_they_were_and_none_of_them_fires() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    export_to(&cluster.url(), &places.at("x"), Options::default(), None).await.unwrap();
    cluster
        .app(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a trigger fired'; END $$;
             CREATE TRIGGER plain BEFORE INSERT OR DELETE OR TRUNCATE ON teams FOR EACH STATEMENT EXECUTE FUNCTION no();
             CREATE TRIGGER always AFTER INSERT ON agents FOR EACH ROW EXECUTE FUNCTION no();
             ALTER TABLE agents ENABLE ALWAYS TRIGGER always;
             CREATE TRIGGER off AFTER INSERT ON agents FOR EACH ROW EXECUTE FUNCTION no();
             ALTER TABLE agents DISABLE TRIGGER off;
             COMMENT ON CONSTRAINT agents_team_id_fkey ON agents IS 'it''s \\ kept';
             CREATE TABLE stranger (id integer, team VARCHAR); ALTER TABLE stranger ADD FOREIGN KEY (team) REFERENCES teams NOT VALID",
        )
        .await;
    let (before, data) = content(&cluster.url()).await;
    // A table that is not in the export keeps its rows, but may point into it.
    let imported = import_from(&cluster.url(), &places.at("x")).await.unwrap();
    assert!(imported.proved);
    assert_eq!(content(&cluster.url()).await, (before, data));
    let mut session = cluster.session("app", "memoria").await;
    let (comment,): (String,) =
        sqlx::query_as("SELECT obj_description(oid) FROM pg_constraint WHERE conname = 'agents_team_id_fkey'")
            .fetch_one(&mut session)
            .await
            .unwrap();
    assert_eq!(comment, "it's \\ kept");
    let refused = sqlx::query("INSERT INTO teams VALUES ('t9', 'n', 's', NULL)").execute(&mut session).await;
    assert!(refused.unwrap_err().to_string().contains("a trigger fired"));
}

#[tokio::test]
async fn an_export_that_is_damaged_or_unfinished_changes_nothing() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    let before = content(&cluster.url()).await;
    for compression in [Compression::Zstd, Compression::None] {
        let directory = places.at(&format!("{compression:?}"));
        let options = Options { form: Form::Ndjson, compression, recipients: Recipients::NONE };
        let manifest = export_to(&cluster.url(), &directory, options, None).await.unwrap();
        for name in manifest.files.keys() {
            let path = directory.join(name);
            let whole = fs::read(&path).unwrap();
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 1;
            for damaged in [&whole[..whole.len() - 1], &whole[..whole.len() / 2], &flipped] {
                fs::write(&path, damaged).unwrap();
                let refused = import_from(&cluster.url(), &directory).await.unwrap_err();
                assert!(matches!(&refused, Error::Damaged { what, .. } if what.contains(name.as_str())), "{refused}");
                // Of a file by itself only its form can tell, and the last line break is not missed.
                let missing = whole.len() - damaged.len();
                if name.starts_with("memoria.") && missing > usize::from(compression == Compression::None) {
                    let refused = import_from(&cluster.url(), &path).await.unwrap_err();
                    assert_eq!(refused.reason(), "ExportUnreadable", "{refused}");
                }
            }
            fs::write(&path, whole).unwrap();
        }
        fs::remove_file(directory.join("manifest.json")).unwrap();
        assert_eq!(import_from(&cluster.url(), &directory).await.unwrap_err().reason(), "NoExport");
    }
    assert_eq!(content(&cluster.url()).await, before);
}

#[tokio::test]
async fn rows_that_are_not_the_manifest_s_are_rolled_back_and_their_table_named() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    let directory = places.at("x");
    let options = Options { form: Form::Ndjson, compression: Compression::None, recipients: Recipients::NONE };
    export_to(&cluster.url(), &directory, options, None).await.unwrap();
    // A file and a manifest that agree, but not with the rows' digests.
    let path = directory.join("memoria.ndjson");
    let text = fs::read_to_string(&path).unwrap().replace("\"agent 7\"", "\"agent 8\"");
    fs::write(&path, &text).unwrap();
    let manifest = fs::read_to_string(directory.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    manifest["files"]["memoria.ndjson"]["sha256"] = memoria_operator::snapshot::sha256_hex(&text).into();
    fs::write(directory.join("manifest.json"), manifest.to_string()).unwrap();
    let before = content(&cluster.url()).await;
    let refused = import_from(&cluster.url(), &directory).await.unwrap_err();
    assert!(
        matches!(&refused, Error::ImportParity { what } if what.contains("public.agents has 50 rows, but not the same")),
        "{refused}"
    );
    assert_eq!(content(&cluster.url()).await, before);
}

#[tokio::test]
async fn what_would_be_missing_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    let mut holder = cluster.pinned().await;
    run(&mut holder, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    let (snapshot,): (String,) = sqlx::query_as("SELECT pg_export_snapshot()").fetch_one(&mut holder).await.unwrap();
    // Later than the read point.
    cluster
        .app("CREATE TABLE newcomer (id int); ALTER TABLE teams ADD COLUMN motto text; CREATE SEQUENCE later; INSERT INTO newcomer VALUES (1)")
        .await;
    let refused = export_to(&cluster.url(), &places.at("x"), Options::default(), Some(&snapshot)).await.unwrap_err();
    let Error::Uncovered { what } = &refused else { panic!("{refused}") };
    for name in ["table public.newcomer", "column motto of table public.teams", "sequence public.later"] {
        assert!(what.contains(name), "{name}: {what}");
    }
    assert!(!places.at("x").join("manifest.json").exists());
    // What was left of it does not keep the next one out.
    run(&mut holder, "ROLLBACK").await;
    export_to(&cluster.url(), &places.at("x"), Options::default(), None).await.unwrap();
    let occupied = export_to(&cluster.url(), &places.at("x"), Options::default(), None).await.unwrap_err();
    assert_eq!(occupied.reason(), "DirectoryNotEmpty");

    run(
        &mut cluster.admin().await,
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE far (id int) SERVER s; SELECT lo_create(0)",
    )
    .await;
    let refused = export_to(&cluster.url(), &places.at("y"), Options::default(), None).await.unwrap_err();
    assert!(refused.to_string().contains("foreign table public.far; 1 large objects"), "{refused}");
}

#[tokio::test]
async fn an_export_shows_the_read_point_it_was_given() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    let (_, before) = content(&cluster.url()).await;
    let mut holder = cluster.pinned().await;
    run(&mut holder, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    let (snapshot,): (String,) = sqlx::query_as("SELECT pg_export_snapshot()").fetch_one(&mut holder).await.unwrap();
    cluster.app("DELETE FROM memory_access_events; UPDATE agents SET name = 'later'").await;
    let manifest = export_to(&cluster.url(), &places.at("x"), Options::default(), Some(&snapshot)).await.unwrap();
    assert_eq!(manifest.data().tables, before.tables);
    assert_eq!(manifest.read_point, format!("snapshot {snapshot}"));
}

#[tokio::test]
async fn a_database_that_lacks_what_the_export_needs_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    export_to(&cluster.url(), &places.at("x"), Options::default(), None).await.unwrap();
    let (empty, _) = database(&cluster, "empty").await;
    let refused = import_from(&empty, &places.at("x")).await.unwrap_err();
    assert!(
        matches!(&refused, Error::TargetUnfit { what } if what.contains("table public.\"Odd name\" is missing")),
        "{refused}"
    );
    execute(&cluster, "empty", MEMORIA).await;
    execute(&cluster, "empty", "ALTER TABLE teams DROP COLUMN name; ALTER TABLE agents ADD extra int").await;
    let refused = import_from(&empty, &places.at("x")).await.unwrap_err().to_string();
    for part in ["column name of public.teams is missing", "column extra of public.agents is not in the export"] {
        assert!(refused.contains(part), "{refused}");
    }
}

#[tokio::test]
async fn a_role_that_owns_less_is_refused_and_nothing_is_changed() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    export_to(&cluster.url(), &places.at("x"), Options::default(), None).await.unwrap();
    run(&mut cluster.admin().await, "ALTER TABLE teams OWNER TO postgres; GRANT ALL ON teams TO app").await;
    let before = content(&cluster.url()).await;
    let refused = import_from(&cluster.url(), &places.at("x")).await.unwrap_err();
    assert_eq!(refused.reason(), "PrivilegeMissing", "{refused}");
    assert_eq!(content(&cluster.url()).await, before);
}

#[tokio::test]
async fn differences_are_told_by_table_and_row_and_shown_by_key_alone() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    export_to(&cluster.url(), &places.at("x"), Options::default(), None).await.unwrap();
    cluster
        .app(
            "UPDATE agents SET name = 'secret text' WHERE agent_id = 'a7'; INSERT INTO agents VALUES ('new', 'secret text', NULL, now(), NULL);
             DELETE FROM memory_access_events WHERE id IN (1, 2); UPDATE \"Odd name\" SET \"a\"\"b\" = 'secret text' WHERE \"select\" = 1; CREATE TABLE more ()",
        )
        .await;
    let report = verify::compare(&stored(&places.at("x")), &side(&cluster.url()), 5, &silent()).await.unwrap();
    let text = serde_json::to_string(&report).unwrap();
    assert!(!report.same && !text.contains("secret text"), "{text}");
    let of = |name: &str| report.tables.iter().find(|table| table.table == name).unwrap();
    let agents = of("public.agents").differing.clone().unwrap();
    assert_eq!((agents.only_first, agents.only_second, agents.changed), (0, 1, 1));
    assert!(agents.keys.contains(&(Change::Changed, "{\"agent_id\": \"a7\"}".to_owned())), "{text}");
    assert!(agents.keys.contains(&(Change::OnlySecond, "{\"agent_id\": \"new\"}".to_owned())), "{text}");
    let events = of("public.memory_access_events").differing.clone().unwrap();
    assert_eq!((events.only_first, events.only_second, events.changed, events.keys.len()), (2, 0, 0, 2));
    // Without a primary key a changed row is another row.
    let odd = of("public.\"Odd name\"").differing.clone().unwrap();
    assert_eq!((odd.only_first, odd.only_second, odd.changed), (1, 1, 0));
    assert_eq!(of("public.more").rows, [None, Some(0)]);
    assert!(report.schema.iter().any(|line| line.contains("more")), "{text}");
    let same = verify::compare(&side(&cluster.url()), &side(&cluster.url()), 0, &silent()).await.unwrap();
    assert!(same.same && same.tables_compared == 6, "{same:?}");
}

#[tokio::test]
async fn memoria_s_own_import_reads_the_main_file_and_its_own_exports_are_read() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    stand_in::fill(&cluster.url_text(), 900);
    let exported = stand_in::exported(&cluster.url_text());
    for (number, form) in [Form::Ndjson, Form::Json].into_iter().enumerate() {
        let (_, text) = database(&cluster, &format!("theirs{number}")).await;
        stand_in::run(&["memoria.cli", "init-db", "--database-url", &text]);
        let directory = places.at(&format!("theirs{number}"));
        let options = Options { form, compression: Compression::None, recipients: Recipients::NONE };
        let manifest = export_to(&cluster.url(), &directory, options, None).await.unwrap();
        let main = directory.join(format!("memoria.{}", form.word()));
        let said = stand_in::run(&["memoria.cli", "import-data", main.to_str().unwrap(), "--database-url", &text]);
        assert_eq!(said.trim(), "Imported dataset for 14 tables (truncate=yes)");
        // It spells nested JSON anew, so by values and not by digests.
        assert_eq!(stand_in::exported(&text), exported);
        assert!(manifest.tables["public.policy_artifacts"].file.starts_with("others."));
        assert!(manifest.tables["public.retention_policy_audits"].content.rows > 0);

        let (url, text) = database(&cluster, &format!("ours{number}")).await;
        stand_in::run(&["memoria.cli", "init-db", "--database-url", &text]);
        let file = places.at(&format!("official{number}"));
        stand_in::run(&[
            "memoria.cli",
            "export-data",
            file.to_str().unwrap(),
            "--format",
            form.word(),
            "--database-url",
            &cluster.url_text(),
        ]);
        let imported = import_from(&url, &file).await.unwrap();
        assert_eq!((imported.proved, imported.tables), (false, 14));
        assert_eq!(stand_in::exported(&text), exported);
        // Unlike after its own import, the next key is a new one.
        execute(&cluster, &format!("ours{number}"), "INSERT INTO memory_access_events (memory_id, namespace, accessed_at, access_type) VALUES ('m', 'n', now(), 'read')").await;
    }
}

/// Refused with its digests, which only the same engine can compute, but the rows themselves move.
#[tokio::test]
async fn the_main_file_moves_memoria_to_the_other_engine_and_back() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    stand_in::fill(&cluster.url_text(), 300);
    let rows = |url: &str| stand_in::exported(url)["data"].clone();
    let expected = rows(&cluster.url_text());
    let options = Options { form: Form::Ndjson, compression: Compression::Zstd, recipients: Recipients::NONE };
    let directory = places.at("postgres");
    export_to(&cluster.url(), &directory, options.clone(), None).await.unwrap();

    let file = places.at("memoria.db");
    let sqlite_url = format!("sqlite:///{}", file.display());
    stand_in::run(&["memoria.cli", "init-db", "--database-url", &sqlite_url]);
    let into_sqlite = |source: PathBuf| {
        let source = Source::open(&source, &Keys::default())?;
        sqlite::import(&sqlite::Import { database: &file, source: &source, progress: silent() })
    };
    assert_eq!(into_sqlite(directory.clone()).unwrap_err().reason(), "OtherEngine");
    let imported = into_sqlite(directory.join("memoria.ndjson.zst")).unwrap();
    assert_eq!((imported.proved, imported.tables), (false, 14));
    let moved = rows(&sqlite_url);
    assert!(moved.as_object().is_some_and(|tables| tables.len() == 14));
    assert_eq!(moved, expected);

    let directory = places.at("sqlite");
    let request = sqlite::Export { database: &file, copy: false, directory: &directory, options, progress: silent() };
    sqlite::export(&request).unwrap();
    let (url, text) = database(&cluster, "back").await;
    stand_in::run(&["memoria.cli", "init-db", "--database-url", &text]);
    let imported = import_from(&url, &directory.join("memoria.ndjson.zst")).await.unwrap();
    assert!(!imported.proved);
    assert_eq!(rows(&text), expected);
}

#[tokio::test]
async fn a_volume_that_fills_up_in_mid_export_is_said_and_the_next_export_starts_anew() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    let filler = "CREATE TABLE bulk AS SELECT i, md5(i::text) AS v FROM generate_series(1, 100000) i";
    cluster.app(&format!("{MEMORIA}; {filler}")).await;
    let volume = places.at("volume");
    fs::create_dir(&volume).unwrap();
    // In a mount namespace of its own, which goes with the process.
    let script = "mount -t tmpfs -o size=1m tmpfs \"$1\" && \"$2\" snapshot export \"$1/export\"; code=$?
        ls \"$1/export\"; mount -o remount,size=64m \"$1\"
        \"$2\" snapshot export \"$1/export\" && \"$2\" snapshot show \"$1/export\" >&2; exit $code";
    let flags: &[&str] =
        if rustix::process::geteuid().is_root() { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] };
    let output = Command::new("unshare")
        .args(flags)
        .args(["sh", "-c", script, "sh"])
        .arg(&volume)
        .arg(env!("CARGO_BIN_EXE_memoria-operator"))
        .env("MEMORIA_OPERATOR_DATABASE_URL", cluster.url_text())
        .output()
        .unwrap();
    let (said, told) = (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device") && said.contains("check the volume's space"), "{said}");
    assert!(!told.lines().any(|file| file == "manifest.json"), "an unfinished export has a manifest: {told}");
    assert!(told.contains("Exported 1005"), "the next export failed: {told}{said}");
}

#[tokio::test]
async fn progress_is_told_by_table() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster
        .app("CREATE TABLE big AS SELECT i AS id, repeat(md5(i::text), 20) AS t FROM generate_series(1, 5000) i")
        .await;
    let seen = std::sync::Arc::new(Mutex::new(Vec::new()));
    let progress = {
        let seen = seen.clone();
        std::sync::Arc::new(move |table: &str, rows: i64, of: Option<i64>| {
            seen.lock().unwrap().push((table.to_owned(), rows, of))
        })
    };
    let url = cluster.url();
    let request = postgres::Export {
        url: &url,
        application: APPLICATION,
        directory: &places.at("x"),
        options: Options::default(),
        snapshot: None,
        digests: postgres::Digests::Unproved,
        progress,
    };
    postgres::export(&request).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 5, "{seen:?}");
    assert_eq!(seen.last().unwrap(), &("public.big".to_owned(), 5000, Some(5000)));
}

/// Text without NUL, which no PostgreSQL holds.
fn any_text() -> impl Strategy<Value = String> {
    "\\PC{0,12}|[\\x01-\\x7f]{0,8}|[\\\\N.\\t\\n\"']{0,4}"
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any_text().prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Into::into),
            proptest::collection::hash_map(any_text(), inner, 0..3)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// One row of `(t, f, i, j, y, ts, a)`, each a literal or NULL.
fn any_row() -> impl Strategy<Value = String> {
    let literal = |text: String| quote_literal(&text);
    let values = (
        any_text().prop_map(literal),
        any::<f64>().prop_map(|float| {
            format!("'{}'::float8", if float.is_infinite() { "-Infinity".to_owned() } else { float.to_string() })
        }),
        any::<i64>().prop_map(|integer| format!("'{integer}'")),
        (any_json(), any::<bool>()).prop_map(move |(json, pretty)| {
            literal(if pretty { serde_json::to_string_pretty(&json) } else { serde_json::to_string(&json) }.unwrap())
        }),
        proptest::collection::vec(any::<u8>(), 0..6)
            .prop_map(|bytes| format!("'\\x{}'", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())),
        (-400_000_000_000i64..2_000_000_000_000).prop_map(|seconds| format!("to_timestamp({seconds}::float8 / 7)")),
        proptest::collection::vec(any_text(), 0..3).prop_map(move |texts| {
            format!("ARRAY[{}]::text[]", texts.into_iter().map(literal).collect::<Vec<_>>().join(", "))
        }),
    );
    (values, any::<u8>()).prop_map(|((t, f, i, j, y, ts, a), null)| {
        let values = [t, f, i, j, y, ts, a].into_iter().enumerate();
        let some =
            |(at, value): (usize, String)| if null >> at & 1 == 1 && null > 127 { "NULL".to_owned() } else { value };
        format!("({})", values.map(some).collect::<Vec<_>>().join(", "))
    })
}

#[tokio::test]
async fn any_rows_survive_export_import_and_export() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    let (copy, _) = database(&cluster, "copy").await;
    let table = "CREATE TABLE t (t text, f float8, i bigint, j json, y bytea, ts timestamptz, a text[])";
    for database in ["memoria", "copy"] {
        execute(&cluster, database, table).await;
    }
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let rows = proptest::collection::vec(any_row(), 0..8);
    for case in 0..24 {
        let rows = rows.new_tree(&mut runner).unwrap().current();
        let insert = if rows.is_empty() { String::new() } else { format!("INSERT INTO t VALUES {}", rows.join(", ")) };
        cluster.app(&format!("TRUNCATE t; {insert}")).await;
        let options = BOTH[case % BOTH.len()].clone();
        let directory = places.at(&format!("{case}"));
        let first = export_to(&cluster.url(), &directory, options.clone(), None).await.unwrap();
        assert!(import_from(&copy, &directory).await.unwrap().proved, "{rows:?}");
        let again = export_to(&copy, &places.at(&format!("{case}-again")), options, None).await.unwrap();
        assert_eq!((first.data(), first.data_digest), (again.data(), again.data_digest), "{rows:?}");
        let read = verify::compare(&stored(&directory), &side(&copy), 0, &silent()).await.unwrap();
        assert!(read.same, "{rows:?}: {read:?}");
    }
}

#[tokio::test]
async fn by_hand_no_password_is_told_whatever_happens() {
    let cluster = Cluster::start().await;
    let places = Places::new();
    cluster.app(MEMORIA).await;
    let directory = places.at("x");
    let said = |url: &str, arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_memoria-operator"))
            .arg("snapshot")
            .args(arguments)
            .env("MEMORIA_OPERATOR_DATABASE_URL", url)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        for form in [PASSWORD, PASSWORD_ENCODED, "wi\\\"th space"] {
            assert!(!text.contains(form), "{text}");
        }
        (output.status.code().unwrap(), text)
    };
    let url = cluster.url_text();
    let target = directory.to_str().unwrap();
    assert_eq!(said(&url, &["export", target]).0, 0);
    assert_eq!(said(&url, &["verify", "-", &url]).0, 0);
    assert_eq!(said(&url, &["import", target]).0, 0);
    let (code, text) = said(&url.replace("app:", "nobody:"), &["export", places.at("y").to_str().unwrap()]);
    assert!(code == 1 && text.contains("nobody@127.0.0.1"), "{text}");
    let (code, _) = said(&url.replace("/memoria?", "/nowhere?"), &["import", target]);
    assert_eq!(code, 1);
    assert_eq!(said(&url, &["export", "--help"]).0, 0);
    assert_eq!(said(&url.replace("postgresql+psycopg2", "postgres"), &["verify", "-", target]).0, 1);
    holds_no_password(&directory);
}

#[tokio::test]
async fn database_export_and_exact_snapshot_are_compared_with_each_other() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    let places = Places::new();
    cluster.app(MEMORIA).await;
    site.run(&JobOrder::Snapshot(snapshot_order(&cluster).await), &cluster).await.is(true, "Done", None);
    export_to(&cluster.url(), &places.at("x"), Options::default(), None).await.unwrap();
    let sides = [side(&cluster.url()), stored(&places.at("x")), stored(&site.storage.join(DIRECTORY))];
    for first in &sides {
        for second in &sides {
            let report = verify::compare(first, second, 1, &silent()).await.unwrap();
            assert!(report.same && report.rows_compared == 558, "{report:?}");
        }
    }
    cluster.app("DELETE FROM teams WHERE team_id = 't5'").await;
    // Its rows lie in a dump: the table is named, the rows are not.
    let report = verify::compare(&sides[2], &sides[0], 1, &silent()).await.unwrap();
    let [teams] = report.tables.as_slice() else { panic!("{report:?}") };
    assert_eq!((teams.table.as_str(), teams.rows, &teams.differing), ("public.teams", [Some(5), Some(4)], &None));
}
