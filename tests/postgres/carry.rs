//! Audit tables whose newer rows outlive the restore: in the same transaction, proved, and never twice.

use std::{collections::BTreeMap, fs, time::Duration};

use memoria_operator::{
    api::upgrade::{Category, TableLate},
    job::protocol::RestoreFacts,
    snapshot::{
        digest::{self, DataDigest, TableDigest},
        late::{Reapply, reapply, set_aside},
        restore::Evidence,
        schema,
    },
};
use sqlx::AssertSqlSafe;

use crate::{
    late::Upgraded,
    restore::{FAILED, facts},
    site::Answer,
};

/// Tables to which rows are only ever added, one of them outside of `public`, and one that they refer to.
const TABLES: &str = r"
CREATE TABLE audits (id SERIAL PRIMARY KEY, who TEXT NOT NULL UNIQUE, details JSON, at TIMESTAMPTZ NOT NULL DEFAULT now());
CREATE SCHEMA ledger;
CREATE TABLE ledger.entries (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, audit INT NOT NULL REFERENCES audits, amount NUMERIC);
CREATE TABLE visits (id SERIAL PRIMARY KEY, team VARCHAR NOT NULL REFERENCES teams, note TEXT);
INSERT INTO audits (who) SELECT 'a' || i FROM generate_series(1, 5) i;
INSERT INTO ledger.entries (audit, amount) VALUES (1, 1.10), (2, 2.20);
INSERT INTO visits (team) VALUES ('t1')";

/// Five rows more.
const CLIENTS: &str = r#"
INSERT INTO audits (who, details) VALUES ('late', '{"n":  1.10}'), ('later', 'null'); INSERT INTO audits (id, who) VALUES (1000, 'latest');
INSERT INTO ledger.entries (audit, amount) VALUES (1, 'NaN'), (6, 3.30)"#;

async fn upgraded(upgrade: &str, clients: &str, carry_forward: &[&str]) -> Upgraded {
    let mut upgraded = Upgraded::after(TABLES, upgrade).await;
    upgraded.ready.cluster.app(clients).await;
    upgraded.carry_forward = carry_forward.iter().map(|name| (*name).to_owned()).collect();
    upgraded
}

impl Upgraded {
    async fn data(&self) -> DataDigest {
        let mut session = self.ready.cluster.pinned().await;
        let schema = schema::read(&mut session).await.unwrap();
        digest::all(&mut session, &schema, |_, _| {}).await.unwrap()
    }

    async fn tables(&self) -> BTreeMap<String, TableDigest> {
        self.data().await.tables
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut session = self.ready.cluster.session("app", "memoria").await;
        let (number,): (i64,) = sqlx::query_as(AssertSqlSafe(sql.to_owned())).fetch_one(&mut session).await.unwrap();
        number
    }

    fn evidence(&self) -> Evidence {
        let path = self.ready.site.storage.join(FAILED).join("evidence-restore.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    async fn is_marked(&self) -> bool {
        let sql = "SELECT count(*) FROM pg_tables WHERE schemaname = 'memoria_operator'";
        self.number(sql).await > 0
            && self.number("SELECT count(*) FROM memoria_operator.attempt_step WHERE step = 'restore'").await > 0
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
async fn late_rows_of_audit_tables_are_in_the_restored_data_and_count_for_nothing_lost() {
    let upgraded = upgraded("", CLIENTS, &["audits", "ledger.entries"]).await;
    let failed = upgraded.tables().await;
    let answer = upgraded.restore(0).await;
    answer.is(true, "Done", None);
    let found = facts(&answer);
    assert!(found.restored);
    assert_eq!(counts(&found), [5, 0, 0, 5]);
    let late = |table: &str, inserted| TableLate {
        table: table.to_owned(),
        inserted,
        carried: inserted,
        ..TableLate::default()
    };
    assert_eq!(found.late_tables, [late("public.audits", 3), late("ledger.entries", 2)]);

    // These tables are as the failed state had them, all others as the snapshot.
    let snapshot: memoria_operator::snapshot::manifest::Manifest = serde_json::from_slice(
        &fs::read(upgraded.ready.site.storage.join(crate::site::DIRECTORY).join("manifest.json")).unwrap(),
    )
    .unwrap();
    let now = upgraded.data().await;
    for (name, digest) in &now.tables {
        let carried = ["public.audits", "ledger.entries"].contains(&name.as_str());
        let expected = if carried { &failed[name] } else { &snapshot.tables[name] };
        assert_eq!(digest, expected, "{name}");
    }
    assert_eq!((found.rows, now.tables.len()), (snapshot.data().rows() + 5, snapshot.tables.len()));
    let evidence = upgraded.evidence();
    assert_eq!(found.data_digest, now.total(&snapshot.schema_fingerprint));
    assert_ne!(found.data_digest, snapshot.data_digest);
    assert_eq!(evidence.verified_digest.as_deref(), Some(found.data_digest.as_str()));
    assert_eq!(evidence.snapshot.data_digest, snapshot.data_digest);
    let rows: Vec<_> = evidence.carried.iter().map(|(name, carried)| (name.as_str(), carried.rows)).collect();
    assert_eq!(rows, [("ledger.entries", 2), ("public.audits", 3)]);
    // Keys that were carried forward are not given out again, whoever chose them.
    assert_eq!(evidence.sequences_after["public.audits_id_seq"].last_value, 1000);

    // A repeated Job answers the same and doubles nothing, with the evidence or without.
    assert_eq!(upgraded.restore(0).await.report, answer.report);
    fs::remove_file(upgraded.ready.site.storage.join(FAILED).join("evidence-restore.json")).unwrap();
    assert_eq!(upgraded.restore(0).await.report, answer.report);
    assert_eq!(upgraded.evidence().verified_digest.as_deref(), Some(found.data_digest.as_str()));
    assert_eq!(upgraded.tables().await, now.tables);
    // By hand there is nothing left to do.
    let (directory, url) = (upgraded.ready.site.storage.join(FAILED), upgraded.ready.cluster.url());
    let late = set_aside::open(&directory).unwrap();
    let request = Reapply { url: &url, application: "test", directory: &directory, late: &late, dry_run: false };
    let by_hand = reapply(&request).await.unwrap();
    assert!(by_hand.complete() && by_hand.tables.iter().all(|table| table.inserted == 0), "{by_hand:?}");
    assert_eq!(by_hand.tables.iter().map(|table| table.already).sum::<i64>(), 5);

    upgraded.ready.cluster.app("INSERT INTO audits (who) VALUES ('next')").await;
    assert_eq!(upgraded.number("SELECT max(id)::bigint FROM audits").await, 1001);
    // Which is a change after the restore like any other.
    upgraded.restore(0).await.is(false, "DataChangedAfterRestore", Some(Category::Conflict));
}

#[tokio::test]
async fn updated_and_deleted_rows_stay_aside_and_count() {
    let clients =
        format!("{CLIENTS}; UPDATE audits SET who = 'private-7c1' WHERE id = 3; DELETE FROM audits WHERE id = 4");
    let upgraded = upgraded("", &clients, &["public.audits", "ledger.entries"]).await;
    let before = upgraded.tables().await;
    let answer = upgraded.restore(1).await;
    answer.is(false, "DataLossOverBudget", Some(Category::Decision));
    let found = facts(&answer);
    assert!(!found.restored);
    assert_eq!(counts(&found), [5, 1, 1, 5]);
    let message = &answer.report.message;
    assert!(
        message.contains("of which 5 can be carried into the restored data; the other 2 are more than"),
        "{message}"
    );
    assert_eq!(
        of(&answer, "public.audits").not_carried.unwrap(),
        "only inserted rows are carried: 1 updated and 1 deleted ones stay aside"
    );
    assert!(!format!("{:?}", answer.report).contains("private-7c1"));
    assert_eq!(upgraded.tables().await, before, "nothing may be taken back unasked");
    assert!(!upgraded.is_marked().await);

    let answer = upgraded.restore(2).await;
    answer.is(true, "Done", None);
    assert_eq!(counts(&facts(&answer)), [5, 1, 1, 5]);
    let sql = "SELECT count(*) FROM audits WHERE (id, who) IN ((3, 'a3'), (4, 'a4'), (6, 'late'), (7, 'later'), (1000, 'latest'))";
    assert_eq!(upgraded.number(sql).await, 5);
    assert_eq!(upgraded.number("SELECT count(*) FROM audits").await, 8);
}

#[tokio::test]
async fn what_cannot_be_carried_stays_aside_counts_and_says_why() {
    // The upgrade took a row's key away, which a client then took; it made a table, and one more column.
    let upgrade = "DELETE FROM ledger.entries WHERE audit = 2; DELETE FROM audits WHERE id = 2";
    let clients = r"INSERT INTO audits (id, who) VALUES (2, 'private-7c1'), (8, 'late'); INSERT INTO ledger.entries (audit) VALUES (8);
        INSERT INTO teams (team_id, name, slug) VALUES ('t99', 'late', 'late'); INSERT INTO visits (team) VALUES ('t99'), ('t1');
        INSERT INTO agents (agent_id, name, nick) VALUES ('late', 'late', 'n'); INSERT INTO consents (agent) VALUES ('a1')";
    let names = ["audits", "ledger.entries", "visits", "agents", "consents"];
    let mut upgraded = upgraded(upgrade, clients, &names).await;
    let answer = upgraded.restore(7).await;
    answer.is(false, "DataLossOverBudget", Some(Category::Decision));
    // Nothing of it goes in, so each of the eight rows counts.
    assert_eq!(counts(&facts(&answer)), [8, 0, 0, 0]);
    let taken = why(&answer, "public.audits");
    assert!(
        taken.contains("1 of its rows contradict the database ({\"id\":\"2\"}: another row has this key)"),
        "{taken}"
    );
    assert!(why(&answer, "ledger.entries").contains("entries_audit_fkey"), "a row that it refers to stays aside");
    assert!(why(&answer, "public.visits").contains("visits_team_fkey"), "its parent is no table to carry forward");
    assert_eq!(why(&answer, "public.agents"), "in the database it has no nick");
    assert_eq!(why(&answer, "public.consents"), "the database has no such table");
    assert_eq!(of(&answer, "public.teams").not_carried, None);
    assert!(!format!("{:?}", answer.report).contains("private-7c1"));
    assert!(!upgraded.is_marked().await);

    // A person accepts just that, and gets just that.
    upgraded.ready.input.accept_data_loss = true;
    let accepted = upgraded.restore(7).await;
    accepted.is(true, "Done", None);
    assert_eq!((counts(&facts(&accepted)), facts(&accepted).late_tables), ([8, 0, 0, 0], facts(&answer).late_tables));
    assert_eq!(upgraded.number("SELECT count(*) FROM audits").await, 5);
    assert!(upgraded.evidence().carried.is_empty());
}

#[tokio::test]
async fn a_table_that_can_be_carried_goes_in_where_another_cannot() {
    let clients = format!(
        "{CLIENTS}; INSERT INTO teams (team_id, name, slug) VALUES ('t99', 'l', 'l'); INSERT INTO visits (team) VALUES ('t99')"
    );
    let upgraded = upgraded("", &clients, &["audits", "ledger.entries", "visits"]).await;
    let answer = upgraded.restore(2).await;
    answer.is(true, "Done", None);
    assert_eq!(counts(&facts(&answer)), [7, 0, 0, 5]);
    assert!(why(&answer, "public.visits").contains("visits_team_fkey"));
    assert_eq!(upgraded.number("SELECT count(*) FROM visits").await, 1);
    assert_eq!(upgraded.number("SELECT count(*) FROM audits").await, 8);
}

#[tokio::test]
async fn a_trigger_that_writes_more_and_a_right_that_is_missing_keep_rows_aside() {
    let more = "CREATE TABLE journal (id SERIAL PRIMARY KEY, what TEXT);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.journal (what) VALUES (NEW.who); RETURN NEW; END $$;
        CREATE TRIGGER noted AFTER INSERT ON audits FOR EACH ROW EXECUTE FUNCTION note();";
    let mut upgraded = Upgraded::with(&format!("{TABLES}; {more}")).await;
    upgraded.carry_forward = vec!["audits".to_owned()];
    upgraded.ready.cluster.app("INSERT INTO audits (who) VALUES ('late')").await;
    // The row, and the one that the trigger wrote then.
    let answer = upgraded.restore(1).await;
    answer.is(false, "DataLossOverBudget", Some(Category::Decision));
    assert!(why(&answer, "public.audits").contains("public.journal otherwise than predicted"));
    upgraded.restore(2).await.is(true, "Done", None);
    assert_eq!(upgraded.number("SELECT count(*) FROM audits").await, 5);

    // The owner took the right from himself before the upgrade, and got it back by it.
    let mut upgraded =
        Upgraded::after(&format!("{TABLES}; REVOKE INSERT ON audits FROM app"), "GRANT INSERT ON audits TO app").await;
    upgraded.carry_forward = vec!["audits".to_owned()];
    upgraded.ready.cluster.app("INSERT INTO audits (who) VALUES ('late')").await;
    let answer = upgraded.restore(0).await;
    answer.is(false, "DataLossOverBudget", Some(Category::Decision));
    assert_eq!(why(&answer, "public.audits"), "the server refuses it (42501)");
    upgraded.restore(1).await.is(true, "Done", None);
}

#[tokio::test]
async fn without_a_baseline_nothing_is_carried_and_that_is_said() {
    let mut upgraded = upgraded("", CLIENTS, &["audits"]).await;
    upgraded.ready.input.baseline_sha256 = None;
    let answer = upgraded.restore(0).await;
    answer.is(false, "LateWritesUnknown", Some(Category::Decision));
    assert!(
        answer.report.message.ends_with("nor can anything be carried forward of audits"),
        "{}",
        answer.report.message
    );
    assert!(why(&answer, "audits").starts_with("what was written late is unknown: "));
    upgraded.ready.input.accept_data_loss = true;
    let answer = upgraded.restore(0).await;
    answer.is(true, "Done", None);
    assert!(why(&answer, "audits").starts_with("what was written late is unknown: "));
    assert_eq!(upgraded.number("SELECT count(*) FROM audits").await, 5);
}

#[tokio::test]
async fn a_restore_that_is_killed_around_the_carried_rows_leaves_all_or_nothing() {
    let upgraded = upgraded("", CLIENTS, &["audits", "ledger.entries"]).await;
    let failed = upgraded.tables().await;
    let mut committed = false;
    for moment in ["dropping what it left", "rows are back", "late rows were carried forward", "committing"] {
        if committed {
            break;
        }
        let mut running = upgraded.spawn(0).await;
        while !running.output().contains(moment) && !running.ended() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !running.ended() {
            running.kill();
        }
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mop-prod-1-%'";
        while upgraded.number(sessions).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        committed = upgraded.is_marked().await;
        let audits = &upgraded.tables().await["public.audits"];
        assert_eq!(audits, &failed["public.audits"], "{moment}");
        let nick =
            "SELECT count(*) FROM information_schema.columns WHERE table_name = 'agents' AND column_name = 'nick'";
        assert_eq!(upgraded.number(nick).await, i64::from(!committed), "{moment}: neither of the two");
    }
    let answer = upgraded.restore(0).await;
    answer.is(true, "Done", None);
    assert_eq!(counts(&facts(&answer)), [5, 0, 0, 5]);
    assert_eq!(upgraded.number("SELECT count(*) FROM audits").await, 8);
    assert_eq!(upgraded.number("SELECT count(*) FROM ledger.entries").await, 4);
}
