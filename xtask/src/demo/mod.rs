//! `cargo xtask demo`: a running Memoria with data is upgraded while one watches, then to a version that breaks, and is
//! taken back. What the operator promises is proved by programs that share no code with it.

mod proof;
mod rollback;
pub mod view;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::cluster::{self, Target};
use crate::images::{self, Profile};
use crate::kube::Kube;
use crate::memoria::{self, Database, Installation, VERSION};
use crate::{operator, place};
use proof::Proof;
use rollback::TakenBack;
use view::Ended;

/// Made anew at each run.
const NAMESPACE: &str = "memoria-demo";
pub const RELEASE: &str = "memoria";
/// What the installed version is upgraded to.
pub const TO: &str = "1.0.0";
/// How long the operator may take to adopt what runs.
const ADOPTED: Duration = Duration::from_secs(120);
/// How long the upgrade may take: more than its own limits add up to on good days, less than anybody would watch.
const UPGRADED: Duration = Duration::from_secs(1800);

#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// Rows of data in all tables together
    #[arg(long, default_value_t = 44_000)]
    rows: u32,
    /// What Memoria keeps its data in
    #[arg(long, value_enum, default_value_t)]
    database: Database,
    /// Major version of PostgreSQL
    #[arg(long, default_value = "15", value_parser = ["15", "17"])]
    postgres: String,
    /// The cluster of the kubeconfig's current context instead of the local one
    #[arg(long)]
    use_current_context: bool,
}

pub fn run(args: Args) -> Result<()> {
    let mut clock = Clock::start();
    let shown = show(&args, &mut clock);
    clock.table();
    let (ended, back, proof) = shown?;
    let mut problems = problems(&ended, &proof);
    problems.extend(back.iter().flat_map(TakenBack::problems));
    println!();
    for problem in &problems {
        println!("NOT AS EXPECTED: {problem}");
    }
    if problems.is_empty() {
        println!("Memoria {VERSION} became {TO} with its data as expected.");
        if back.is_some() {
            println!("{} spoiled the data and died; {TO} runs again, with the data of before.", rollback::BAD);
        }
    }
    look_around(&args);
    if args.json {
        println!("{}", answer(args.database, &ended, back.as_ref(), &proof));
    }
    if problems.is_empty() { Ok(()) } else { bail!("{} things are not as expected", problems.len()) }
}

fn show(args: &Args, clock: &mut Clock) -> Result<(Ended, Option<TakenBack>, Proof)> {
    let kube = Kube { target: Target::from_flag(args.use_current_context) };
    let _lock = cluster::lock_operator()?;
    clock.part("the cluster", |_| kube.target.ensure())?;
    let digests = clock.part("the images", |_| images::ensure_available(kube.target, Profile::Dev))?;
    clock.part("the operator, by its Helm chart", |_| operator::install(&kube, &digests, &[]))?;
    let database = match args.database {
        Database::Postgresql => format!("on PostgreSQL {}", args.postgres),
        Database::Sqlite => "in an SQLite file".to_owned(),
    };
    clock.part(&format!("Memoria {VERSION} with {} rows {database}", args.rows), |clock| {
        kube.delete_namespaces(&[NAMESPACE])?;
        let wanted = Installation {
            namespace: NAMESPACE.into(),
            database: args.database,
            postgres: args.postgres.clone(),
            rows: args.rows,
            seed: 1,
            small: false,
            label: None,
            use_current_context: args.use_current_context,
        };
        memoria::install(&kube, &wanted, clock)
    })?;
    clock.part("adoption: a MemoriaRelease with the running version changes nothing", |_| {
        adopt(&kube, NAMESPACE, args.database)
    })?;
    let mut proof =
        clock.part("the state before, captured by the checkers", |_| Proof::begin(kube, NAMESPACE, args.database))?;
    clock.say(&format!(
        "kubectl -n {NAMESPACE} patch mrel {RELEASE} --type=merge -p '{{\"spec\":{{\"version\":\"{TO}\"}}}}'"
    ));
    let ended = clock.part(&format!("the upgrade to {TO}"), |_| upgrade(&kube))?;
    clock.part("the proof", |clock| proof.finish(clock, VERSION, &ended.version()))?;
    // While no server runs, the file can only be read where its volume lies, which is here or on somebody else's node.
    let back = match (args.database, kube.target) {
        (Database::Sqlite, Target::CurrentContext) => None,
        _ => Some(rollback::show(&kube, clock, &mut proof)?),
    };
    clock.part("the search for secrets", |clock| proof.finish_secrets(clock))?;
    Ok((ended, back, proof))
}

/// Creates the release with the version that runs, and waits until the operator says that this is so.
pub fn adopt(kube: &Kube, namespace: &str, database: Database) -> Result<()> {
    let file = place::root()?.join(database.release());
    let release = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    kube.apply(namespace, &release)?;
    kube.wait("the operator to adopt Memoria", ADOPTED, || {
        let release = view::release(kube, namespace, RELEASE)?;
        match view::standing(&release) {
            view::Standing::Ready => Ok(Some(())),
            view::Standing::Stalled => bail!("the operator refuses: {}", view::ready_message(&release)),
            view::Standing::Working => Ok(None),
        }
    })
}

fn upgrade(kube: &Kube) -> Result<Ended> {
    let patch = json!({"spec": {"version": TO}}).to_string();
    kube.run(&["--namespace", NAMESPACE, "patch", "memoriarelease", RELEASE, "--type=merge", "-p", &patch])?;
    view::follow(kube, NAMESPACE, RELEASE, UPGRADED)
}

/// What is not as it should be, in words.
fn problems(ended: &Ended, proof: &Proof) -> Vec<String> {
    let mut problems = Vec::new();
    if ended.phase != "Succeeded" {
        problems.push(format!("the upgrade ended as {}: {}", ended.phase, ended.message));
    }
    problems.extend(proof.problems());
    problems
}

fn answer(database: Database, ended: &Ended, back: Option<&TakenBack>, proof: &Proof) -> Value {
    json!({
        "upgrade": {
            "database": database.name(),
            "phase": ended.phase,
            "seconds": ended.seconds,
            "writersStoppedSeconds": ended.writers_stopped_seconds,
            "dataAsExpected": proof.data_as_expected(),
        },
        "rollback": back.map(|back| back.answer(proof)),
        "secretsLeaked": proof.secrets_leaked(),
    })
}

fn look_around(args: &Args) {
    let kubectl = if args.use_current_context { "kubectl" } else { "cargo xtask cluster kubectl" };
    println!("\nEverything still runs. Look around:");
    for command in [
        format!("-n {NAMESPACE} describe mrel {RELEASE}"),
        format!("-n {NAMESPACE} get mup -o wide"),
        format!("-n {NAMESPACE} get events --sort-by=.lastTimestamp"),
        format!("-n {} logs deploy/{}", operator::NAME, operator::NAME),
    ] {
        println!("  {kubectl} {command}");
    }
    println!("Tear down:");
    println!(
        "  cargo xtask memoria down --namespace {NAMESPACE}{}",
        if args.use_current_context { " --use-current-context" } else { "" }
    );
    if !args.use_current_context {
        println!("  cargo xtask cluster down          # --purge also forgets its data");
    }
}
