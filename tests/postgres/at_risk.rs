//! Rows at risk: what a restore would take back is counted while clients write, and nothing but the count comes of it.

use std::{fs, path::Path};

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{AtRiskFacts, AtRiskOrder, Facts, JobOrder},
};

use crate::{
    late::{BASELINE, Upgraded},
    restore::facts as restored,
    site::{Answer, task},
};

const MORE: &str = "CREATE TABLE loose (t text); INSERT INTO loose VALUES ('one'), ('one'), ('two')";
const CLIENTS: &str = "INSERT INTO consents (agent) VALUES ('a1'), ('a2'); UPDATE agents SET nick = 'n' WHERE agent_id IN ('a1', 'a2', 'a3');
UPDATE agents SET name = name; DELETE FROM loose WHERE t = 'two'; INSERT INTO loose VALUES ('one')";

async fn count(upgraded: &Upgraded) -> Answer {
    let ready = &upgraded.ready;
    let order = AtRiskOrder {
        database: task(&ready.cluster, "prod-1").await,
        baseline_directory: BASELINE.to_owned(),
        limit_seconds: 60,
    };
    let pod = ready.site.other_pod();
    pod.spawn(&JobOrder::AtRisk(order), &ready.input, &ready.cluster.url_text()).end().await
}

fn facts(answer: &Answer) -> AtRiskFacts {
    answer.is(true, "Done", None);
    match &answer.report.facts {
        Some(Facts::AtRisk(facts)) => facts.clone(),
        other => panic!("{other:?}"),
    }
}

fn changes(facts: &AtRiskFacts) -> [i64; 3] {
    [facts.inserted, facts.updated, facts.deleted]
}

/// Names and sizes of all files below.
fn listing(directory: &Path) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let (path, data) = {
            let entry = entry.unwrap();
            (entry.path(), entry.metadata().unwrap())
        };
        if data.is_dir() {
            all.extend(listing(&path));
        } else {
            all.push((path.display().to_string(), data.len()));
        }
    }
    all.sort();
    all
}

#[tokio::test]
async fn what_a_restore_would_take_back_is_counted_while_clients_write() {
    let upgraded = Upgraded::with(MORE).await;
    let (cluster, storage) = (&upgraded.ready.cluster, &upgraded.ready.site.storage);
    let before = listing(storage);
    let nothing = facts(&count(&upgraded).await);
    assert_eq!((changes(&nothing), nothing.tables.len()), ([0, 0, 0], 0));

    cluster.app(CLIENTS).await;
    // A client at work, with rows and a table locked as clients lock them, keeps nobody waiting and is not seen yet.
    let mut client = cluster.admin().await;
    for sql in
        ["BEGIN", "LOCK TABLE teams IN ROW EXCLUSIVE MODE", "UPDATE agents SET nick = 'open' WHERE agent_id = 'a4'"]
    {
        sqlx::query(sql).execute(&mut client).await.unwrap();
    }
    let found = facts(&count(&upgraded).await);
    assert_eq!(changes(&found), [3, 3, 1]);
    let of: Vec<_> = found.tables.iter().map(|t| (t.table.as_str(), t.inserted, t.updated, t.deleted)).collect();
    assert_eq!(of, [("public.agents", 0, 3, 0), ("public.consents", 2, 0, 0), ("public.loose", 1, 0, 1)]);
    assert!(found.millis > 0 && found.read_at > nothing.read_at);
    sqlx::query("COMMIT").execute(&mut client).await.unwrap();
    assert_eq!(changes(&facts(&count(&upgraded).await)), [3, 4, 1]);
    assert_eq!(listing(storage), before, "nothing is set aside by counting");

    // The restore finds the same.
    let asked = upgraded.restore(0).await;
    asked.is(false, "DataLossOverBudget", Some(Category::Decision));
    let lost = restored(&asked);
    assert_eq!([lost.late_inserted, lost.late_updated, lost.late_deleted], [3, 4, 1]);
}

#[tokio::test]
async fn without_the_very_baseline_nothing_is_counted() {
    let mut upgraded = Upgraded::with("").await;
    let right = upgraded.ready.input.baseline_sha256.replace("00".repeat(32));
    count(&upgraded).await.is(false, "BaselineMismatch", Some(Category::Environment));
    upgraded.ready.input.baseline_sha256 = right;
    let directory = upgraded.ready.site.storage.join(BASELINE);
    let rows = directory.join("baseline-0001.rows");
    let whole = fs::read(&rows).unwrap();
    fs::write(&rows, &whole[..whole.len() - 1]).unwrap();
    count(&upgraded).await.is(false, "SnapshotDamaged", Some(Category::Environment));
    fs::write(&rows, whole).unwrap();
    facts(&count(&upgraded).await);
    fs::remove_dir_all(directory).unwrap();
    count(&upgraded).await.is(false, "BaselineMissing", Some(Category::Environment));
}
