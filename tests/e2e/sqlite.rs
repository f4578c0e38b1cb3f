//! Upgrades of a Memoria that keeps its data in an SQLite file on a claim: from the smallest release, without any
//! database's tools and without workers.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use memoria_operator::api::{
    GoDuration,
    release::Mode,
    upgrade::{Category, Engine, MemoriaUpgradeStatus, Outcome as Ended, PhaseState},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    Outcome,
    checkers::Captured,
    environment,
    failures::{next_action, untouched, writers_are_stopped},
    good::{is_upgraded, stored, upgrade},
    rollback::{BAD_MIGRATION, restored_exactly, taken_back},
    site::{Options, SOON, Site, TO, UPGRADED, condition, standing, with_site},
};

pub const SQLITE: Options = Options { postgres: 15, rows: 2_000, small: true, sqlite: true, seed: 1 };

#[tokio::test]
async fn an_upgrade_of_an_sqlite_file_keeps_every_promise() -> Outcome {
    with_site("sqlite", SQLITE, async |site| {
        upgrade(site).await?;
        let plan = site.attempt().await?.spec;
        ensure!(plan.database.engine == Engine::Sqlite, "{:?}", plan.database);
        let event = environment::kubectl(&["-n", &site.namespace, "get", "mup", "-o", "wide"]).await?;
        ensure!(event.contains("Succeeded"), "{event}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_plan_of_an_sqlite_file_shows_what_was_inferred() -> Outcome {
    with_site("sqlite-plan", Options { rows: 300, ..SQLITE }, async |site| {
        let before = Captured::now(site).await?;
        let mut release = site.new_release()?;
        release.spec.version = TO.to_owned();
        release.spec.mode = Mode::Plan;
        site.create(&release).await?;
        let release = site.until_settled(UPGRADED).await?;
        let (phase, reason, message) = standing(&release);
        ensure!(reason == "PlanReady", "{phase}/{reason}: {message}");
        let status = release.status.context("a status")?;
        let plan = status.pre_flight.and_then(|status| status.plan).context("a plan")?;
        ensure!(plan.database.starts_with("SQLite, file /data/memoria.db on claim memoria-data"), "{}", plan.database);
        let all = plan.inferred.join("\n");
        for word in
            ["claimName: memoria-data (uid ", "kubernetes.io/hostname in (node-", "user 1000", "memoria-snapshots"]
        {
            ensure!(all.contains(word), "{word:?} is not among what was inferred:\n{all}");
        }
        untouched(site, &before).await
    })
    .await
}

#[tokio::test]
async fn a_file_that_somebody_holds_open_stops_the_upgrade_before_the_image_moves() -> Outcome {
    with_site("sqlite-resumed", SQLITE, async |site| {
        let mut release = site.new_release()?;
        release.spec.timeouts.quiesce = GoDuration::from_secs(90);
        site.create(&release).await?;
        site.until("adopted", SOON, |release| condition(release, "Ready")).await?;
        let before = Captured::now(site).await?;

        let holder = Holder::start(site).await?;
        site.set_version(TO).await?;
        // The servers that come back cannot write either while the file is held.
        site.until("the fence to fail", UPGRADED, |release| {
            let (phase, reason, _) = standing(release);
            (phase.starts_with("Resume") || reason == "PreFlightFailed").then_some(())
        })
        .await?;
        holder.stop().await?;
        let release = site.until_ended(Ended::Resumed).await?;
        let (phase, reason, message) = standing(&release);
        ensure!(phase == "Resumed" && reason == "Resumed", "{phase}/{reason}: {message}");
        let journal = journal(site).await?;
        let failure = journal.failure.as_ref().context("a failure")?;
        ensure!(failure.phase == "Quiesce" && failure.category == Category::Environment, "{failure:?}");
        ensure!(failure.message.contains("memoria.db"), "it does not say what is held: {}", failure.message);
        ensure!(journal.snapshot.is_none() && journal.phases.iter().all(|record| record.name != "ImageBump"));
        untouched(site, &before).await?;

        next_action(&release)?.run(site).await?;
        site.until("the checks to begin again", SOON, |release| condition(release, "Reconciling")).await?;
        let release = site.until_ended(Ended::Succeeded).await?;
        is_upgraded(site, &release, &before).await
    })
    .await
}

#[tokio::test]
async fn a_failing_migration_of_a_file_is_taken_back() -> Outcome {
    with_site("sqlite-back", SQLITE, async |site| taken_back(site, BAD_MIGRATION, "Migrate", Category::Candidate).await)
        .await
}

#[tokio::test]
async fn where_a_person_shall_decide_the_file_is_kept_as_it_is_until_the_next_command() -> Outcome {
    with_site("sqlite-halted", SQLITE, async |site| {
        site.adopt().await?;
        let before = Captured::now(site).await?;
        let rollback = json!({"automatic": false});
        site.patch(json!({"spec": {"version": BAD_MIGRATION, "rollback": rollback}})).await?;
        let release = site.until_ended(Ended::Halted).await?;
        let (phase, reason, message) = standing(&release);
        ensure!(phase == "Halted" && reason == "Halted", "{phase}/{reason}: {message}");
        for word in ["add_consent_scope", "writers stay stopped", "snapshot"] {
            ensure!(message.contains(word), "the message does not name {word:?}: {message}");
        }
        ensure!(condition(&release, "IngestionStopped").is_some(), "IngestionStopped is not True");
        let journal = journal(site).await?;
        let failure = journal.failure.as_ref().context("a failure")?;
        ensure!(failure.phase == "Migrate" && failure.category == Category::Candidate, "{failure:?}");
        ensure!(journal.phases.last().is_some_and(|last| last.name == "Halt" && last.state == PhaseState::Passed));
        writers_are_stopped(site).await?;
        // One copy is the snapshot, whole; the other the file as the failure left it, readable.
        let snapshot = journal.snapshot.as_ref().context("a snapshot")?;
        stored(site, snapshot, "manifest.json").await?;
        let after = Captured::now(site).await?;
        ensure!(
            after.has_the_data_of(&before).await.is_err(),
            "the half-run migration left no trace; the test is void"
        );

        next_action(&release)?.run(site).await?;
        restored_exactly(site, &before).await?;
        site.until_ended(Ended::RolledBack).await?;
        untouched(site, &before).await
    })
    .await
}

async fn journal(site: &Site) -> Result<MemoriaUpgradeStatus> {
    site.attempt().await?.status.context("a journal")
}

/// A reader that does not let go, on the node's own disk: no pod of it is to be seen.
struct Holder {
    process: Child,
}

impl Holder {
    async fn start(site: &Site) -> Result<Self> {
        let file = site.volume("memoria-data").await?.join("memoria.db");
        let script = "import sqlite3, sys\n\
                      c = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True, isolation_level=None)\n\
                      c.execute('BEGIN')\n\
                      c.execute('SELECT count(*) FROM sqlite_master').fetchall()\n\
                      print('held', flush=True)\n\
                      sys.stdin.read()\n";
        let mut python = Command::new("python3");
        python.args(["-c", script]).arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = python.spawn().context("cannot start python3")?;
        let said = process.stdout.take().context("its output")?;
        let line = BufReader::new(said).lines().next_line().await?;
        ensure!(line.as_deref() == Some("held"), "the file {} could not be held", file.display());
        Ok(Self { process })
    }

    /// It ends when nobody talks to it any more.
    async fn stop(mut self) -> Outcome {
        drop(self.process.stdin.take());
        self.process.wait().await.context("the holder did not end").map(drop)
    }
}
