//! The rehearsal of a file: what would fail after the fence is found on a copy, while the Server has the file open and
//! writes to it.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use jiff::Timestamp;
use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{Facts, JobInput, JobOrder, RehearsalFacts, RehearsalOrder},
    snapshot::sqlite::beside,
};
use memoria_runner::order::CommandResult;
use rusqlite::Connection;

use crate::{
    python::Python,
    reference,
    site::{Answer, DIRECTORY, MEMORIA, Site, command},
};

const MIGRATION: &str = "ALTER TABLE agents ADD COLUMN nick TEXT; CREATE TABLE consents (id INTEGER NOT NULL PRIMARY KEY); \
                         UPDATE agents SET name = upper(name)";

/// A file with Memoria's tables, and the reference of the version whose migrations are to be rehearsed.
async fn ready(journal_mode: &str) -> Site {
    let site = Site::with(journal_mode, MEMORIA);
    let tables = MEMORIA.split("INSERT").next().unwrap();
    reference::build(&site.other_pod(), &format!("{tables}; {MIGRATION}")).await.is(true, "Done", None);
    site
}

fn order(site: &Site) -> RehearsalOrder {
    RehearsalOrder {
        database: site.task("prod-pf-1"),
        release: "prod".to_owned(),
        from_version: "0.9.0".to_owned(),
        operator_version: "0.1.0".to_owned(),
        portable: true,
        reference_directory: Some(DIRECTORY.to_owned()),
        needed_bytes: 1,
        limit_seconds: 60,
        until: Timestamp::now() + Duration::from_secs(100),
    }
}

fn ran(name: &str) -> Vec<CommandResult> {
    vec![command(name, Some(0), "ok")]
}

/// Runs this on the copy, as the runner does with the migrations, and answers what the Job says then.
async fn rehearse(site: &Site, sql: &str, commands: Vec<CommandResult>) -> Answer {
    let pod = site.other_pod();
    let running = pod.spawn(&JobOrder::Rehearsal(order(site)), &JobInput::default(), &site.url());
    let go = pod.go().await;
    assert!(go.proceed, "{go:?}");
    let copy = pod.shared("copy").join("memoria.db");
    assert_eq!(go.database_url.unwrap(), format!("sqlite:///{}", copy.display()));
    let mut migration = Python::open(&copy);
    for statement in sql.split(';').filter(|statement| !statement.trim().is_empty()) {
        migration.must(statement);
    }
    drop(migration);
    pod.result(commands);
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    let answer = running.terminate().await;
    assert!(!pod.shared("copy").exists(), "the copy is left");
    answer
}

/// One that ends before any migration.
async fn refusal(site: &Site, order: RehearsalOrder) -> Answer {
    let pod = site.other_pod();
    let running = pod.spawn(&JobOrder::Rehearsal(order), &JobInput::default(), &site.url());
    let go = pod.go().await;
    assert!(!go.proceed && go.database_url.is_none(), "{go:?}");
    running.terminate().await
}

fn facts(answer: &Answer) -> RehearsalFacts {
    match &answer.report.facts {
        Some(Facts::Rehearsal(facts)) => facts.clone(),
        other => panic!("{other:?}: {}", answer.report.message),
    }
}

#[track_caller]
fn says(answer: &Answer, words: &[&str]) {
    let message = &answer.report.message;
    assert!(words.iter().all(|word| message.contains(word)), "{words:?} are not all in {message}");
}

/// Everything that lies beside the database, with its bytes; of the `-shm` only that it is there.
fn beside_all(site: &Site) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(&site.data).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let bytes = |path: &PathBuf| {
        if path.to_string_lossy().ends_with("-shm") { Vec::new() } else { fs::read(path).unwrap() }
    };
    found.iter().map(|path| (path.clone(), bytes(path))).collect()
}

/// A Server that inserts without a pause and never checkpoints, so that only others could change the main file. Any
/// statement that meets a lock for 0.2 s fails the test.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Python, usize)>,
}

impl Writer {
    fn start(mut server: Python) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut written = 0;
            while !told.load(Ordering::Relaxed) {
                server.must(&format!("INSERT INTO agents (agent_id, name) VALUES ('late-{written}', 'comer')"));
                written += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            (server, written)
        });
        Self { stop, thread }
    }

    fn stop(self) -> (Python, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[tokio::test]
async fn good_migrations_are_measured_while_the_server_writes() {
    let site = ready("wal").await;
    let mut server = Python::open(&site.database());
    server.must("PRAGMA wal_autocheckpoint=0").must("INSERT INTO agents (agent_id, name) VALUES ('a3', 'in the WAL')");
    let (main, wal) = (site.database(), beside(&site.database(), "-wal"));
    let (main_before, wal_before) = (fs::read(&main).unwrap(), fs::read(&wal).unwrap());
    let writer = Writer::start(server);
    let answer = rehearse(&site, MIGRATION, ran("all")).await;
    let (mut server, written) = writer.stop();
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert!(!found.conclusive && found.tables == 3 && written > 0);
    // What lay in the WAL alone was copied too, and perhaps some of what was written meanwhile.
    let rows = usize::try_from(found.rows).unwrap();
    assert!((300..=300 + written).contains(&rows), "{rows} rows were copied, {written} written meanwhile");
    assert!(found.copy_millis > 0 && found.snapshot_millis > 0 && found.migrate_millis > 0 && found.restore_millis > 0);
    says(&answer, &["1 migrations ran", "init-db builds", "restored, it was the copy again"]);
    // Nobody checkpointed, and the WAL only grew.
    assert_eq!(fs::read(&main).unwrap(), main_before, "the main file was written");
    assert!(fs::read(&wal).unwrap().starts_with(&wal_before), "the WAL was begun anew");
    let names: BTreeSet<_> = beside_all(&site).into_iter().map(|(path, _)| path).collect();
    assert_eq!(names, BTreeSet::from([main, wal, beside(&site.database(), "-shm")]));
    let all = server.run("SELECT count(*) FROM agents WHERE name = 'comer'");
    assert_eq!(all, format!("ok [({written},)]"));
    let columns = server.run("SELECT count(*) FROM pragma_table_info('agents')");
    assert_eq!(columns, "ok [(4,)]", "the live file was migrated");
    assert!(server.run("PRAGMA integrity_check").contains("'ok'") && site.journal_mode() == "wal");
}

#[tokio::test]
async fn an_idle_server_finds_its_file_and_its_sidecars_as_they_were() {
    for mode in ["wal", "delete"] {
        let site = ready(mode).await;
        let mut server = Python::open(&site.database());
        server.must("PRAGMA wal_autocheckpoint=0").must("DELETE FROM agents WHERE agent_id = 'nobody'");
        server.must("UPDATE teams SET name = 'renamed' WHERE team_id = 't2'");
        let before = beside_all(&site);
        assert_eq!(before.len(), if mode == "wal" { 3 } else { 1 });
        let answer = rehearse(&site, MIGRATION, ran("all")).await;
        answer.is(true, "Done", None);
        assert_eq!(facts(&answer).rows, 299);
        assert!(beside_all(&site) == before, "{mode}: something of the live database was changed");
        server.must("INSERT INTO teams VALUES ('t3', 'third', NULL)");
    }
}

#[tokio::test]
async fn a_file_that_nobody_has_open_is_only_read_too() {
    for mode in ["wal", "delete"] {
        let site = ready(mode).await;
        let before = fs::read(site.database()).unwrap();
        rehearse(&site, MIGRATION, ran("all")).await.is(true, "Done", None);
        assert_eq!(fs::read(site.database()).unwrap(), before);
        // A reader of a WAL leaves an empty one behind, with nothing in it for the next who opens the file.
        let wal = fs::metadata(beside(&site.database(), "-wal")).map_or(0, |wal| wal.len());
        assert_eq!((wal, site.journal_mode().as_str()), (0, mode));
    }
}

#[tokio::test]
async fn what_a_killed_server_left_in_its_wal_is_copied_and_stays_there() {
    let site = ready("wal").await;
    let mut server = Python::open(&site.database());
    server.must("PRAGMA wal_autocheckpoint=0").must("INSERT INTO agents (agent_id, name) VALUES ('a3', 'unfolded')");
    server.kill();
    let (main, wal) = (site.database(), beside(&site.database(), "-wal"));
    let before = (fs::read(&main).unwrap(), fs::read(&wal).unwrap());
    let answer = rehearse(&site, MIGRATION, ran("all")).await;
    answer.is(true, "Done", None);
    assert_eq!(facts(&answer).rows, 300);
    assert!((fs::read(&main).unwrap(), fs::read(&wal).unwrap()) == before, "the WAL was folded in");
}

#[tokio::test]
async fn migrations_that_lie_or_fail_are_found_out() {
    let site = ready("wal").await;
    let before = fs::read(site.database()).unwrap();
    let answer = rehearse(&site, "CREATE TABLE stray (a int)", ran("add_nick")).await;
    answer.is(false, "SchemaMismatch", Some(Category::Candidate));
    assert!(facts(&answer).conclusive);
    says(&answer, &["ran add_nick", "consents", "init-db builds", "Nothing of Memoria was touched"]);
    let failed = vec![command("add_nick", Some(3), "Boom")];
    let answer = rehearse(&site, "CREATE TABLE stray (a int)", failed).await;
    answer.is(false, "MigrateFailed", Some(Category::Candidate));
    assert!(facts(&answer).conclusive);
    says(&answer, &["add_nick ended with exit code 3", "Boom"]);
    assert_eq!(fs::read(site.database()).unwrap(), before);
}

#[tokio::test]
async fn a_migration_that_cannot_be_taken_back_is_found_out() {
    let site = ready("wal").await;
    // As an extension's table stands in the schema, whose rows nobody without the extension can keep.
    let sql = format!(
        "{MIGRATION}; PRAGMA writable_schema=ON; INSERT INTO sqlite_schema VALUES ('table', 'nearest', 'nearest', 0, \
         'CREATE VIRTUAL TABLE nearest USING vec0(embedding float[4])')"
    );
    let answer = rehearse(&site, &sql, ran("add_vectors")).await;
    answer.is(false, "MigrationIrreversible", Some(Category::Candidate));
    assert!(facts(&answer).conclusive);
    says(&answer, &["ran add_vectors", "nearest (module vec0)", "another version"]);
}

#[tokio::test]
async fn a_file_whose_snapshot_would_not_restore_is_found_out() {
    let site = ready("wal").await;
    site.execute(
        "PRAGMA writable_schema=ON; INSERT INTO sqlite_schema VALUES ('table', 'nearest', 'nearest', 0, \
         'CREATE VIRTUAL TABLE nearest USING vec0(embedding float[4])')",
    );
    let answer = refusal(&site, order(&site)).await;
    answer.is(false, "SnapshotNotRestorable", Some(Category::Environment));
    assert!(facts(&answer).conclusive);
    says(&answer, &["nearest (module vec0)", "would stop at its snapshot"]);

    // An index without one of its rows.
    let site = ready("delete").await;
    let connection = Connection::open(site.database()).unwrap();
    connection
        .execute_batch(
            "PRAGMA writable_schema=ON;
             UPDATE sqlite_schema SET sql = 'CREATE UNIQUE INDEX ix_teams_name ON teams (lead)' WHERE name = 'ix_teams_name'",
        )
        .unwrap();
    drop(connection);
    let answer = refusal(&site, order(&site)).await;
    answer.is(false, "SnapshotNotRestorable", Some(Category::Environment));
    assert!(facts(&answer).conclusive);
    says(&answer, &["integrity check of", "memoria.db", "ix_teams_name", ".recover"]);
}

#[tokio::test]
async fn no_space_no_time_and_a_locked_file_say_nothing_of_the_version() {
    let site = ready("wal").await;
    let answer = refusal(&site, RehearsalOrder { needed_bytes: i64::MAX, ..order(&site) }).await;
    answer.is(false, "ScratchTooSmall", Some(Category::Environment));
    assert!(!facts(&answer).conclusive);
    says(&answer, &[&i64::MAX.to_string(), "jobs.nodeSelector", "rollback.rehearse: Never"]);
    let answer = refusal(&site, RehearsalOrder { until: Timestamp::now(), ..order(&site) }).await;
    answer.is(false, "RehearsalTimedOut", Some(Category::Environment));
    assert_eq!(answer.report.facts, None);

    let site = ready("delete").await;
    let mut holder = Python::open(&site.database());
    holder.must("BEGIN EXCLUSIVE");
    let until = Timestamp::now() + Duration::from_secs(4);
    let answer = refusal(&site, RehearsalOrder { until, ..order(&site) }).await;
    answer.is(false, "RehearsalTimedOut", Some(Category::Environment));
    assert_eq!(answer.report.facts, None);
    // It was only ever asked for, never waited for by the holder.
    holder.must("COMMIT");
}

#[tokio::test]
async fn another_volume_or_another_file_is_never_copied() {
    let site = ready("wal").await;
    let mut order = order(&site);
    order.database.identity.as_mut().unwrap().system_identifier = "another claim".to_owned();
    let answer = refusal(&site, order).await;
    answer.is(false, "WrongDatabase", Some(Category::Environment));
    assert!(!facts(&answer).conclusive);
}
