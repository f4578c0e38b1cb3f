//! Pre-flight: only looks, and names what cannot be handled.

use std::{fs, os::unix::fs::symlink};

use memoria_operator::{
    api::upgrade::{Category, Engine},
    job::protocol::{DatabaseTask, Facts, InspectFacts, InspectOrder, JobOrder},
};

use crate::{
    python::Python,
    site::{Answer, MEMORIA, Site},
};

fn order(database: DatabaseTask) -> JobOrder {
    order_for(database, &[])
}

fn order_for(database: DatabaseTask, carry_forward: &[&str]) -> JobOrder {
    let carry_forward = carry_forward.iter().map(|name| (*name).to_owned()).collect();
    JobOrder::Inspect(InspectOrder { database: DatabaseTask { identity: None, ..database }, carry_forward })
}

fn facts(answer: Answer) -> InspectFacts {
    match answer.report.facts {
        Some(Facts::Inspect(facts)) => facts,
        other => panic!("{other:?}: {}", answer.report.message),
    }
}

fn names(facts: &InspectFacts) -> Vec<&str> {
    facts.findings.iter().map(|finding| finding.name.as_str()).collect()
}

#[tokio::test]
async fn a_file_in_use_is_described_and_left_alone() {
    let site = Site::with("wal", MEMORIA);
    let mut app = Python::open(&site.database());
    app.must("BEGIN IMMEDIATE").must("INSERT INTO teams VALUES ('t9', 'ninth', NULL)");
    let listed = || {
        let mut names: Vec<_> = fs::read_dir(&site.data).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let (before, listed_before) = (fs::read(site.database()).unwrap(), listed());
    let answer = site.run(&order(site.task("run-1"))).await;
    answer.is(true, "Done", None);
    let found = facts(answer);
    assert_eq!((found.engine, found.major, found.server_version.as_str()), (Engine::Sqlite, 3, "SQLite"));
    assert_eq!(Some(found.identity.clone()), site.task("x").identity);
    assert_eq!(
        (found.data_volume.clone(), found.path.clone()),
        (Some(site.volume()), Some(site.database().to_string_lossy().into_owned()))
    );
    let wal = fs::metadata(site.data.join("memoria.db-wal")).unwrap().len();
    assert_eq!(found.bytes.cast_unsigned(), before.len() as u64 + wal);
    assert!(found.findings.is_empty() && found.unfinished.is_empty(), "{:?}", found.findings);
    assert_eq!((fs::read(site.database()).unwrap(), listed()), (before, listed_before));
    app.must("COMMIT");
}

#[tokio::test]
async fn tables_that_could_never_be_carried_forward_are_named_while_the_server_writes() {
    for mode in ["wal", "delete"] {
        let site = Site::with(mode, &format!("{MEMORIA} CREATE TABLE loose (t TEXT);"));
        let mut app = Python::open(&site.database());
        app.must("BEGIN IMMEDIATE").must("INSERT INTO teams VALUES ('t9', 'ninth', NULL)");
        let found = facts(site.run(&order_for(site.task("run-1"), &["agents", "Teams"])).await);
        assert!(found.findings.is_empty(), "{:?}", found.findings);
        let found = facts(site.run(&order_for(site.task("run-1"), &["agents", "public.teams", "loose"])).await);
        assert_eq!(names(&found), ["CarryForward"]);
        let message = &found.findings[0].message;
        assert!(message.contains("names public.teams, but the database has no such table"), "{message}");
        assert!(message.contains("names loose, which has no primary key"), "{message}");
        app.must("COMMIT");
    }
}

#[tokio::test]
async fn what_cannot_be_handled_is_named_with_its_fix() {
    let site = Site::new();
    let found = facts(site.run(&order(site.task("run-1"))).await);
    assert_eq!(names(&found), ["DatabaseFile"]);
    assert!(found.findings[0].message.contains("there is no file"), "{}", found.findings[0].message);

    fs::write(site.data.join("real.db"), "x").unwrap();
    symlink("real.db", site.database()).unwrap();
    let found = facts(site.run(&order(site.task("run-1"))).await);
    assert!(found.findings[0].message.contains("symbolic link to"), "{:?}", found.findings);

    fs::remove_file(site.database()).unwrap();
    fs::hard_link(site.data.join("real.db"), site.database()).unwrap();
    let found = facts(site.run(&order(site.task("run-1"))).await);
    assert!(found.findings[0].message.contains("2 names"), "{:?}", found.findings);

    // A file that nobody wrote, larger than half of what is free.
    fs::remove_file(site.database()).unwrap();
    let space = rustix::fs::statvfs(&site.data).unwrap();
    let large = fs::File::create(site.database()).unwrap();
    large.set_len(space.f_bavail * space.f_frsize / 2 + (64 << 20)).unwrap();
    let found = facts(site.run(&order(site.task("run-1"))).await);
    assert_eq!(names(&found), ["DataVolumeSpace"]);

    fs::write(site.data.join("memoria.db.memoria-operator.json"), "{\"v\":1,\"steps\":[{\"releaseUid\":\"r\",\"attempt\":\"prod-0\",\"step\":\"migrate\",\"startedAt\":\"2026-01-10T02:00:00Z\"}]}").unwrap();
    assert_eq!(facts(site.run(&order(site.task("run-1"))).await).unfinished, ["prod-0"]);
}

#[tokio::test]
async fn a_url_that_names_no_file_on_a_claim_is_refused() {
    let site = Site::with("delete", MEMORIA);
    let answer = site.run_with(&order(site.task("run-1")), "sqlite:////var/lib/memoria/memoria.db").await;
    answer.is(false, "DatabaseNotOnClaim", Some(Category::Environment));
    assert!(answer.report.message.contains("memoria-data at "), "{}", answer.report.message);
    let answer = site.run_with(&order(site.task("run-1")), "sqlite:///:memory:").await;
    answer.is(false, "DatabaseUrlInvalid", Some(Category::Environment));
    let answer = site.run_with(&order(site.task("run-1")), "sqlite:///memoria.db").await;
    answer.is(false, "DatabaseUrlInvalid", Some(Category::Environment));
    assert!(answer.report.message.contains("workingDir"), "{}", answer.report.message);
    let working_directory = Some(site.data.to_string_lossy().into_owned());
    let task = DatabaseTask { working_directory, ..site.task("run-1") };
    site.run_with(&order(task), "sqlite+pysqlite:///memoria.db?timeout=5").await.is(true, "Done", None);
}

#[tokio::test]
async fn the_innermost_mount_holds_the_file() {
    let site = Site::with("delete", MEMORIA);
    let mut outer = site.volume();
    outer.claim_name = "root".to_owned();
    outer.mount_path = site.data.parent().unwrap().to_string_lossy().into_owned();
    let task = DatabaseTask { volumes: vec![site.volume(), outer], ..site.task("run-1") };
    assert_eq!(facts(site.run(&order(task)).await).data_volume, Some(site.volume()));
}
