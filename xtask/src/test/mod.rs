//! `cargo xtask test`: what CI runs, in tiers. The quick tier runs to its end, so that one run shows all of its failures;
//! in the dearer ones a part needs those before it. A tier starts only when the ones before it passed.

mod apiserver;
mod cluster_core;
#[cfg(test)]
mod documents;
mod getting_started;
mod matrix;
mod quick;
mod tags;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{cluster, place};

#[derive(clap::Args)]
pub struct Args {
    /// Only these tiers
    #[arg(long, value_delimiter = ',')]
    tier: Vec<Tier>,
    /// Also what takes longer than CI has time for
    #[arg(long)]
    all: bool,
    /// Of the upgrades on the cluster only those whose names contain one of these, e.g. sqlite::; or getting-started
    #[arg(long, value_name = "FILTER", value_delimiter = ',')]
    only: Vec<String>,
}

/// From cheap to dear; they run in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Tier {
    /// Formatting, lints, generated files, unit tests, tests against a private PostgreSQL
    Quick,
    /// The kinds on a real API server, without nodes
    Apiserver,
    /// Upgrades of real Memorias on a real cluster
    Cluster,
}

impl Tier {
    const ALL: [Self; 3] = [Self::Quick, Self::Apiserver, Self::Cluster];

    fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Apiserver => "apiserver",
            Self::Cluster => "cluster",
        }
    }

    fn stops_at_a_failure(self) -> bool {
        self != Self::Quick
    }

    fn parts(self, args: &Args) -> Vec<Part> {
        match self {
            Self::Quick => quick::parts(args.all),
            Self::Apiserver => apiserver::parts(),
            Self::Cluster => cluster_core::parts(args.all, &args.only),
        }
    }
}

/// One thing that is checked.
struct Part {
    name: &'static str,
    run: Box<dyn Fn() -> Result<Done>>,
}

/// How a part ended that did not fail.
enum Done {
    Passed,
    /// Nothing was checked; the text says why.
    Left(&'static str),
}

struct Line {
    tier: Tier,
    name: &'static str,
    took: Duration,
    result: Result<Done>,
}

pub fn run(args: Args) -> Result<()> {
    let wanted = |tier: &Tier| args.tier.is_empty() || args.tier.contains(tier);
    let begin = Instant::now();
    let mut lines: Vec<Line> = Vec::new();
    for tier in Tier::ALL.into_iter().filter(wanted) {
        if lines.iter().any(|line| line.result.is_err()) {
            println!("tier {} is left out: what is cheaper failed", tier.name());
            continue;
        }
        let _lock = (tier == Tier::Cluster).then(cluster::lock_operator).transpose()?;
        for part in tier.parts(&args) {
            println!("==> {}: {}", tier.name(), part.name);
            let start = Instant::now();
            let result = (part.run)();
            let took = start.elapsed();
            match &result {
                Ok(Done::Passed) => println!("    passed in {}", shown(took)),
                Ok(Done::Left(why)) => println!("    left out: {why}"),
                Err(error) => println!("    FAILED after {}: {error:#}", shown(took)),
            }
            let failed = result.is_err();
            lines.push(Line { tier, name: part.name, took, result });
            if failed && tier.stops_at_a_failure() {
                break;
            }
        }
    }
    summary(&lines, begin.elapsed())
}

/// Prints the table and, as the last line, the verdict.
fn summary(lines: &[Line], took: Duration) -> Result<()> {
    println!();
    for Line { tier, name, took, result } in lines {
        let verdict = match result {
            Ok(Done::Passed) => "passed".to_owned(),
            Ok(Done::Left(why)) => format!("left out: {why}"),
            Err(error) => format!("FAILED: {error}"),
        };
        println!("{:<10} {name:<34} {:>9}  {verdict}", tier.name(), shown(*took));
    }
    let failed: Vec<_> = lines.iter().filter(|line| line.result.is_err()).map(|line| line.name).collect();
    if failed.is_empty() {
        println!("test: {} parts passed in {}", lines.len(), shown(took));
        return Ok(());
    }
    println!("test: FAILED in {} after {}", failed.join(", "), shown(took));
    bail!("{} of {} parts failed: {}", failed.len(), lines.len(), failed.join(", "))
}

fn shown(took: Duration) -> String {
    let seconds = took.as_secs_f32();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", took.as_secs() / 60, took.as_secs() % 60)
    }
}

/// The whole workspace with all features: with any smaller selection the dependencies get other features, and cargo
/// compiles them a second time.
const EVERYTHING: [&str; 3] = ["--locked", "--workspace", "--all-features"];

/// `cargo` in the checkout, with the target directory that all chores share.
fn cargo(args: &[&str]) -> Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).current_dir(place::root()?).env("CARGO_TARGET_DIR", place::target()?);
    Ok(cargo)
}

/// Runs it with its output where ours goes. What it printed says what is wrong; the error only names it.
fn succeed(command: &mut Command) -> Result<Done> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status =
        command.stdin(std::process::Stdio::null()).status().with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{} ended with {status}; its output stands above", command_name(command));
    }
    Ok(Done::Passed)
}

/// Program and first argument, enough to know which command it was.
fn command_name(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let first = command.get_args().next().unwrap_or_default();
    format!("`{} {}`", program.to_string_lossy(), first.to_string_lossy()).replace(" `", "`")
}
