//! The fault matrix: one fault, one database, one end. `MEMORIA_TEST_CELLS` says which cells are run: `all`, names like
//! `silent-migrate/sqlite` with commas, or `sample:SEED:N`. Each cell that ends as it must adds one line of JSON to
//! `MEMORIA_TEST_MATRIX`, from which `docs/fault-matrix.md` is made.

use std::{env, fs::OpenOptions, io::Write as _, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use memoria_operator::api::{
    marks,
    upgrade::{Category, Outcome as Ended},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    Outcome,
    checkers::Captured,
    environment,
    failures::untouched,
    rollback::{journal, restored_exactly, write_as_a_client},
    site::{FROM, Options, Site, TO, UPGRADED, condition, standing, with_site},
};

/// Cells at a time: more of them starve each other on two cores.
const AT_ONCE: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Database {
    Postgres15,
    Postgres17,
    Sqlite,
}

impl Database {
    const ALL: [Self; 3] = [Self::Postgres15, Self::Postgres17, Self::Sqlite];

    fn name(self) -> &'static str {
        match self {
            Self::Postgres15 => "postgresql-15",
            Self::Postgres17 => "postgresql-17",
            Self::Sqlite => "sqlite",
        }
    }

    fn options(self) -> Options {
        match self {
            Self::Postgres15 => Options::default(),
            Self::Postgres17 => Options { postgres: 17, ..Options::default() },
            Self::Sqlite => Options { sqlite: true, ..Options::default() },
        }
    }
}

/// What is done to an attempt while it runs.
#[derive(Clone, Copy)]
enum During {
    Nothing,
    /// The pod of this step's Job is deleted, without grace, when it runs.
    PodOf(&'static str),
    /// Another hand sets the former image when Migrate runs.
    ImageFlipped,
    /// Clients insert, update and delete once they are let in.
    LateWrites,
    /// The database's pod is deleted when the restore runs.
    DatabaseRestarts,
}

enum End {
    /// Refused before anything is touched; the message has these words.
    Refused(&'static [&'static str]),
    Succeeds,
    /// Image and data come back after this phase failed for this reason.
    Back(&'static str, Category),
}

struct Fault {
    name: &'static str,
    version: &'static str,
    spec: fn() -> Value,
    during: During,
    end: End,
    /// Why a cell makes no sense.
    not: fn(Database) -> Option<&'static str>,
}

fn as_it_is() -> Value {
    json!({})
}

fn everywhere(_: Database) -> Option<&'static str> {
    None
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "image missing",
        version: "1.0.9-never-built",
        spec: as_it_is,
        during: During::Nothing,
        end: End::Refused(&["1.0.9-never-built"]),
        not: everywhere,
    },
    Fault {
        name: "crash at start",
        version: "1.0.1-crash",
        spec: as_it_is,
        during: During::Nothing,
        end: End::Back("Start", Category::Candidate),
        not: everywhere,
    },
    Fault {
        name: "never ready",
        version: "1.0.1-never-ready",
        spec: || json!({"timeouts": {"rollout": "45s"}}),
        during: During::Nothing,
        end: End::Back("Start", Category::Environment),
        not: everywhere,
    },
    Fault {
        name: "migration exits 1 after half of its DDL",
        version: "1.0.1-bad-migrate",
        spec: as_it_is,
        during: During::Nothing,
        end: End::Back("Migrate", Category::Candidate),
        not: everywhere,
    },
    Fault {
        name: "migration exits 0 with the schema wrong",
        version: "1.0.1-silent-migrate",
        spec: as_it_is,
        during: During::Nothing,
        end: End::Back("Migrate", Category::Candidate),
        not: everywhere,
    },
    Fault {
        name: "migration prints a failure with the schema right",
        version: "1.0.1-loud-ok",
        spec: as_it_is,
        during: During::Nothing,
        end: End::Succeeds,
        not: everywhere,
    },
    Fault {
        name: "migration hangs",
        version: "1.0.1-hang-migrate",
        spec: || json!({"timeouts": {"migrate": "90s"}}),
        during: During::Nothing,
        end: End::Back("Migrate", Category::Environment),
        not: everywhere,
    },
    Fault {
        name: "server alters the schema and crashes",
        version: "1.0.1-alters-then-crashes",
        spec: as_it_is,
        during: During::Nothing,
        end: End::Back("Start", Category::Candidate),
        not: everywhere,
    },
    Fault {
        name: "bootstrap fails",
        version: "1.0.1-bootstrap-fails",
        spec: as_it_is,
        during: During::Nothing,
        end: End::Back("Verification", Category::Candidate),
        not: everywhere,
    },
    Fault {
        name: "verification fails after late writes of all three kinds",
        version: "1.0.1-bootstrap-fails",
        spec: || json!({"rollback": {"dataLossBudget": {"rows": 1000}}}),
        during: During::LateWrites,
        end: End::Back("Verification", Category::Candidate),
        not: |database| (database == Database::Sqlite).then_some("the clients of this test speak to a server"),
    },
    Fault {
        name: "pod evicted in mid-migration",
        version: TO,
        spec: as_it_is,
        during: During::PodOf("migrate"),
        end: End::Back("Migrate", Category::Environment),
        not: everywhere,
    },
    Fault {
        name: "restore killed",
        version: "1.0.1-alters-then-crashes",
        spec: as_it_is,
        during: During::PodOf("restore"),
        end: End::Back("Start", Category::Candidate),
        not: everywhere,
    },
    Fault {
        name: "database restarted in mid-restore",
        version: "1.0.1-alters-then-crashes",
        spec: as_it_is,
        during: During::DatabaseRestarts,
        end: End::Back("Start", Category::Candidate),
        not: |database| (database == Database::Sqlite).then_some("a file has no server"),
    },
    Fault {
        name: "image flipped back",
        version: TO,
        spec: as_it_is,
        during: During::ImageFlipped,
        end: End::Back("Start", Category::Conflict),
        not: everywhere,
    },
];

#[tokio::test]
async fn every_chosen_cell_ends_as_it_must() -> Outcome {
    let all: Vec<(&Fault, Database)> = FAULTS
        .iter()
        .flat_map(|fault| Database::ALL.map(|database| (fault, database)))
        .filter(|(fault, database)| (fault.not)(*database).is_none())
        .collect();
    let wanted = env::var("MEMORIA_TEST_CELLS").unwrap_or_else(|_| "sample:0:1".to_owned());
    let chosen = choose(&all, &wanted)?;
    println!("{} of {} cells", chosen.len(), all.len());
    let ends: Vec<_> = stream::iter(chosen)
        .map(|(fault, database)| async move {
            let begin = Instant::now();
            let site = format!("matrix-{}-{}", slug(fault.name), database.name());
            let result = with_site(&site, database.options(), async |site| cell(site, fault, begin).await).await;
            result.with_context(|| format!("{} on {}", fault.name, database.name()))
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failed: Vec<_> = ends.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n"));
    for fault in FAULTS {
        for database in Database::ALL {
            if let Some(why) = (fault.not)(database) {
                record(&json!({"fault": fault.name, "database": database.name(), "not": why}))?;
            }
        }
    }
    Ok(())
}

/// A sample takes every n-th cell from a place that the seed names.
fn choose<'a>(all: &[(&'a Fault, Database)], wanted: &str) -> Result<Vec<(&'a Fault, Database)>> {
    if wanted == "all" {
        return Ok(all.to_vec());
    }
    if let Some((seed, count)) = wanted.strip_prefix("sample:").and_then(|rest| rest.split_once(':')) {
        let count: usize = count.parse().context("how many cells")?;
        let seed = seed.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let step = (all.len() / count.max(1)).max(1);
        return Ok((0..count).map(|n| all[(seed + n * step) % all.len()]).collect());
    }
    let named = |name: &str| {
        let found =
            all.iter().find(|(fault, database)| format!("{}/{}", slug(fault.name), database.name()) == name).copied();
        found.with_context(|| format!("there is no cell {name}"))
    };
    wanted.split(',').map(named).collect()
}

fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.take(4).map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

async fn cell(site: &Site, fault: &Fault, begin: Instant) -> Outcome {
    site.adopt().await?;
    let before = Captured::now(site).await?;
    let mut spec = (fault.spec)();
    spec["version"] = fault.version.into();
    site.patch(json!({ "spec": spec })).await?;
    match fault.end {
        End::Refused(words) => refused(site, &before, words).await?,
        End::Succeeds => {
            site.until_ended(Ended::Succeeded).await?;
            Captured::now(site).await?.is_what_an_upgrade_makes_of(&before, site, FROM, TO).await?;
        }
        End::Back(phase, category) => {
            tokio::try_join!(restored_exactly(site, &before), disturb(site, fault.during))?;
            comes_back(site, &before, phase, category).await?;
        }
    }
    let attempt = site.attempt().await.ok().and_then(|attempt| attempt.status);
    let stopped = attempt.as_ref().and_then(|journal| {
        let (from, to) = (journal.writers_stopped_at.as_ref()?, journal.writers_back_at.as_ref()?);
        Some(to.0.duration_since(from.0).as_secs())
    });
    record(&json!({
        "fault": fault.name,
        "database": match site.options { Options { sqlite: true, .. } => "sqlite".to_owned(), o => format!("postgresql-{}", o.postgres) },
        "end": attempt.and_then(|journal| journal.outcome).map_or("refused".to_owned(), |outcome| format!("{outcome:?}")),
        "failed": match fault.end { End::Back(phase, _) => phase, _ => "" },
        "seconds": begin.elapsed().as_secs(),
        "writersStoppedSeconds": stopped,
    }))?;
    // Its servers would only take the processor from the next cells.
    environment::run(
        Command::new(environment::xtask()?).args(["memoria", "down", "--namespace", &site.namespace]),
        None,
    )
    .await
    .map(drop)
}

async fn refused(site: &Site, before: &Captured, words: &[&str]) -> Outcome {
    let release =
        site.until("a verdict", UPGRADED, |release| condition(release, "Stalled").map(|_| release.clone())).await?;
    let (phase, reason, message) = standing(&release);
    ensure!(reason == "PreFlightFailed", "{phase}/{reason}: {message}");
    for word in words {
        ensure!(message.contains(word), "the message does not name {word:?}: {message}");
    }
    untouched(site, before).await
}

async fn comes_back(site: &Site, before: &Captured, phase: &str, category: Category) -> Outcome {
    let release = site.until_ended(Ended::RolledBack).await?;
    let (shown, reason, message) = standing(&release);
    ensure!(shown == "RolledBack" && reason == "RolledBack", "{shown}/{reason}: {message}");
    let journal = journal(site).await?;
    let failure = journal.failure.as_ref().context("a failure")?;
    ensure!(failure.phase == phase && failure.category == category, "{failure:?}");
    let rollback = journal.rollback.as_ref().context("a rollback record")?;
    let digest = journal.snapshot.as_ref().map(|snapshot| snapshot.data_digest.clone());
    ensure!(rollback.data_digest == digest, "{rollback:?} is not {digest:?}");
    untouched(site, before).await
}

async fn disturb(site: &Site, during: During) -> Outcome {
    match during {
        During::Nothing => Ok(()),
        During::PodOf(step) => {
            running(site, step).await?;
            delete(site, &pod_of(site, step).await?.context("its pod runs")?).await
        }
        During::DatabaseRestarts => {
            running(site, "restore").await?;
            delete(site, "memoria-postgres-0").await
        }
        During::ImageFlipped => {
            running(site, "migrate").await?;
            let (workload, container) =
                if site.options.sqlite { ("memoria", "memoria") } else { ("memoria-server", "server") };
            let deployment = site.deployment(workload).await?;
            let containers = deployment.spec.and_then(|spec| spec.template.spec).map(|pod| pod.containers);
            let found = containers.unwrap_or_default();
            let name = found.first().map_or(container, |container| container.name.as_str()).to_owned();
            let image = format!("{name}=registry.arca.run/memoria/server:{FROM}");
            let workload = format!("deployment/{workload}");
            environment::kubectl(&["-n", &site.namespace, "set", "image", &workload, &image]).await.map(drop)
        }
        During::LateWrites => {
            site.until("ingestion", UPGRADED, |release| (standing(release).0 == "Verification").then_some(())).await?;
            write_as_a_client(site).await
        }
    }
}

/// Waits until a container of this step's pod runs.
async fn running(site: &Site, step: &str) -> Outcome {
    let end = Instant::now() + UPGRADED;
    while pod_of(site, step).await?.is_none() {
        if Instant::now() > end {
            bail!("the job of {step} never ran");
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn pod_of(site: &Site, step: &str) -> Result<Option<String>> {
    let labels = format!("{}={step},{}", marks::STEP_LABEL, marks::ATTEMPT_LABEL);
    let pods = site.api::<Pod>().list(&ListParams::default().labels(&labels)).await?.items;
    let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    Ok(pods.iter().find(runs).map(ResourceExt::name_any))
}

async fn delete(site: &Site, pod: &str) -> Outcome {
    site.say(&format!("deleting pod {pod}"));
    let pods: Api<Pod> = site.api();
    pods.delete(pod, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

fn record(line: &Value) -> Outcome {
    println!("cell {line}");
    let Ok(path) = env::var("MEMORIA_TEST_MATRIX") else { return Ok(()) };
    let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(|| path.clone())?;
    writeln!(file, "{line}").context(path)
}
