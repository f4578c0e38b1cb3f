//! The fault matrix: one fault, one database, one end. `MEMORIA_TEST_CELLS` says which cells are run: `all`, names like
//! `silent-migrate/sqlite` with commas, or `sample:SEED:N`. Each cell adds one line of JSON to `MEMORIA_TEST_MATRIX`, from
//! which `docs/fault-matrix.md` is made. `MEMORIA_TEST_SEED` is what data and made-up names come from.

mod during;
mod ends;
mod faults;

use std::{env, fs::OpenOptions, io::Write as _, time::Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::process::Command;

use self::{
    during::prepare,
    faults::{Database, Fault},
};
use crate::{
    Outcome,
    checkers::Captured,
    environment,
    site::{Site, with_site},
};

/// Cells at a time: more of them starve each other on two cores.
const AT_ONCE: usize = 2;

type Cell<'a> = (&'a Fault, Database);

#[tokio::test]
async fn every_chosen_cell_ends_as_it_must() -> Outcome {
    let faults = faults::all();
    let cells: Vec<Cell<'_>> = faults
        .iter()
        .flat_map(|fault| Database::ALL.map(|database| (fault, database)))
        .filter(|(fault, database)| !fault.not.contains_key(database))
        .collect();
    let wanted = env::var("MEMORIA_TEST_CELLS").unwrap_or_else(|_| "sample:0:1".to_owned());
    let chosen = choose(&cells, &wanted)?;
    let names: Vec<_> = chosen.iter().map(name).collect();
    println!("{} of {} cells, seed {}: {}", chosen.len(), cells.len(), seed()?, names.join(", "));
    record_table(&faults)?;
    let ends: Vec<_> = stream::iter(chosen).map(run).buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<_> = ends.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// A sample takes every n-th of CI's cells, from a place that the seed names.
fn choose<'a>(cells: &[Cell<'a>], wanted: &str) -> Result<Vec<Cell<'a>>> {
    if wanted == "all" {
        return Ok(cells.to_vec());
    }
    if let Some((seed, count)) = wanted.strip_prefix("sample:").and_then(|rest| rest.split_once(':')) {
        let of_ci: Vec<_> = cells.iter().copied().filter(|(fault, _)| fault.in_ci).collect();
        let count: usize = count.parse().context("how many cells")?;
        let seed = seed.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let step = (of_ci.len() / count.max(1)).max(1);
        return Ok((0..count).map(|n| of_ci[(seed % of_ci.len() + n * step) % of_ci.len()]).collect());
    }
    let named = |wanted: &str| {
        let found = cells.iter().copied().find(|cell| name(cell) == wanted);
        found.with_context(|| {
            format!("there is no cell {wanted}; there are {}", cells.iter().map(name).collect::<Vec<_>>().join(", "))
        })
    };
    wanted.split(',').map(named).collect()
}

/// Example: `image-missing/sqlite`.
fn name((fault, database): &Cell<'_>) -> String {
    format!("{}/{}", slug(&fault.name), database.name())
}

fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

/// What data and made-up names come from.
fn seed() -> Result<u32> {
    env::var("MEMORIA_TEST_SEED").map_or(Ok(1), |text| text.parse().context("MEMORIA_TEST_SEED is a number"))
}

async fn run((fault, database): Cell<'_>) -> Outcome {
    let begin = Instant::now();
    let mut short = slug(&fault.name);
    short.truncate(30);
    let namespace = format!("matrix-{}-{}", short.trim_end_matches('-'), database.name());
    let options = database.options(fault, seed()?);
    let result = with_site(&namespace, options, async |site| cell(site, fault, database, begin).await).await;
    if let Err(error) = &result {
        let why = format!("{error:#}");
        record(json!({"fault": fault.name, "database": database.name(), "error": why.lines().next()}))?;
    }
    result.with_context(|| format!("{} on {}", fault.name, database.name()))
}

async fn cell(site: &Site, fault: &Fault, database: Database, begin: Instant) -> Outcome {
    prepare(site, fault.during).await?;
    let mut release = site.new_release()?;
    (fault.release)(&mut release)?;
    site.adopt_as(&release).await?;
    let before = Captured::now(site).await?;
    let version = match fault.under_a_random_tag {
        true => under_a_random_tag(site, fault.version).await?,
        false => fault.version.to_owned(),
    };
    site.set_version(&version).await?;
    ends::meet(site, fault, &before).await?;

    let journal = site.attempt().await.ok().and_then(|attempt| attempt.status);
    let stopped = journal.as_ref().and_then(|journal| {
        let (from, to) = (journal.writers_stopped_at.as_ref()?, journal.writers_back_at.as_ref()?);
        Some(to.0.duration_since(from.0).as_secs())
    });
    let failure = journal.as_ref().and_then(|journal| journal.failure.as_ref());
    let end = journal.as_ref().and_then(|journal| journal.outcome).map(|outcome| format!("{outcome:?}"));
    record(json!({
        "fault": fault.name,
        "database": database.name(),
        "end": end.unwrap_or_else(|| "nothing touched".to_owned()),
        "failed": failure.map(|failure| failure.phase.as_str()).unwrap_or_default(),
        "seconds": begin.elapsed().as_secs(),
        "writersStoppedSeconds": stopped,
    }))?;
    environment::remove(&site.namespace).await
}

/// Pushes the version's images under a tag that nothing can know, and answers the tag.
async fn under_a_random_tag(site: &Site, version: &str) -> Result<String> {
    // Letters alone, so that it stays a version whatever comes.
    let mut left = u64::from(seed()?).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut word = String::new();
    for _ in 0..10 {
        word.push(char::from(b'a' + u8::try_from(left % 26)?));
        left /= 26;
    }
    let tag = format!("1.0.1-{word}");
    site.say(&format!("{version} is called {tag}"));
    let layout = environment::image_layout()?;
    // A small installation has no dashboard, but its release may name one.
    for repository in ["memoria/server", "memoria/dashboard"] {
        let source = format!("oci:{}:{repository}:{version}", layout.display());
        let name = format!("{repository}:{tag}");
        let mut push = Command::new(environment::xtask()?);
        environment::run(push.args(["cluster", "push", &source, &name]), None).await?;
    }
    Ok(tag)
}

/// The order of the faults, and the cells that make no sense.
fn record_table(faults: &[Fault]) -> Outcome {
    record(json!({"faults": faults.iter().map(|fault| &fault.name).collect::<Vec<_>>()}))?;
    for fault in faults {
        for (database, why) in &fault.not {
            record(json!({"fault": fault.name, "database": database.name(), "not": why}))?;
        }
    }
    Ok(())
}

fn record(mut line: Value) -> Outcome {
    line["seed"] = seed()?.into();
    line["commit"] = env::var("MEMORIA_TEST_COMMIT").unwrap_or_default().into();
    if line.get("end").is_some() || line.get("error").is_some() {
        println!("cell {line}");
    }
    let Ok(path) = env::var("MEMORIA_TEST_MATRIX") else { return Ok(()) };
    let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(|| path.clone())?;
    writeln!(file, "{line}").context(path)
}
