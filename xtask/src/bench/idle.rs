//! `cargo xtask bench idle`: what the operator costs while nothing happens. One release is upgraded and settled; then its
//! process's memory is sampled and its writes are counted in the API server's audit log.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::cluster::{self, Target};
use crate::demo::{self, RELEASE, TO, view};
use crate::images::{self, Profile};
use crate::kube::Kube;
use crate::memoria::{self, Database, Installation};
use crate::operator;

/// Made anew for each run.
const NAMESPACE: &str = "memoria-bench";
/// How long the upgrade may take.
const UPGRADED: Duration = Duration::from_secs(1800);
/// What ends after the upgrade, before anything is counted: the clean-up of its last Jobs.
const SETTLED: Duration = Duration::from_secs(20);
const SAMPLE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Options {
    /// How long the idle operator is watched
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let clock = Clock::start();
    let kube = Kube { target: Target::Local };
    let _lock = cluster::lock_operator()?;
    clock.say(&kube.target.ensure()?);
    let digests = images::ensure_available(kube.target, Profile::Release)?;
    clock.say("the operator, by its Helm chart");
    operator::install(&kube, &digests, &[])?;
    kube.delete_namespaces(&[NAMESPACE])?;
    let installation = Installation {
        namespace: NAMESPACE.into(),
        database: Database::Sqlite,
        postgres: "15".to_owned(),
        rows: 2_000,
        seed: 1,
        small: false,
        label: None,
        use_current_context: false,
    };
    memoria::install(&kube, &installation, &clock)?;
    clock.say(&format!("an upgrade to {TO}, so that there is a settled release"));
    demo::adopt(&kube, NAMESPACE, Database::Sqlite)?;
    let patch = json!({"spec": {"version": TO}}).to_string();
    kube.run(&["--namespace", NAMESPACE, "patch", "memoriarelease", RELEASE, "--type=merge", "-p", &patch])?;
    let ended = view::follow(&kube, NAMESPACE, RELEASE, UPGRADED)?;
    if ended.phase != "Succeeded" {
        bail!("the upgrade ended as {}: {}", ended.phase, ended.message);
    }
    sleep(SETTLED);
    clock.say(&format!("watching the idle operator for {} min", options.minutes));
    let seen = watch(Duration::from_secs(options.minutes * 60))?;
    kube.delete_namespaces(&[NAMESPACE])?;
    println!(
        "\nidle for {} min: resident memory {:.1} MiB at most (median {:.1}), {} renewals of its Lease, {} other writes",
        options.minutes,
        mib(seen.memory.last().copied().unwrap_or_default()),
        mib(seen.memory[seen.memory.len() / 2]),
        seen.leases,
        seen.others.len()
    );
    if options.json {
        let answer = json!({
            "minutes": options.minutes,
            "rssMiB": {"max": mib(seen.memory.last().copied().unwrap_or_default()), "median": mib(seen.memory[seen.memory.len() / 2])},
            "leaseWrites": seen.leases,
            "otherWrites": seen.others.len(),
        });
        println!("{answer}");
    }
    if !seen.others.is_empty() {
        bail!("an idle operator writes nothing but its Lease, but it wrote: {}", seen.others.join(", "));
    }
    Ok(())
}

struct Seen {
    /// Bytes, ascending; at least one.
    memory: Vec<u64>,
    leases: usize,
    /// Verb and path of each other write.
    others: Vec<String>,
}

fn watch(time: Duration) -> Result<Seen> {
    let process = process()?;
    let log = Log::end()?;
    let end = Instant::now() + time;
    let mut memory = vec![resident(process)?];
    while Instant::now() < end {
        sleep(SAMPLE);
        memory.push(resident(process)?);
    }
    memory.sort_unstable();
    let user = format!("system:serviceaccount:{0}:{0}", operator::NAME);
    let (mut leases, mut others) = (0, Vec::new());
    for write in log.since()? {
        if write["user"]["username"] != user.as_str() {
            continue;
        }
        if write["objectRef"]["resource"] == "leases" {
            leases += 1;
        } else {
            others.push(format!("{} {}", text(&write["verb"]), text(&write["requestURI"])));
        }
    }
    if leases == 0 {
        bail!("the audit log does not even have a renewal of the Lease: does the operator run?");
    }
    Ok(Seen { memory, leases, others })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The operator's process, as this machine sees it.
fn process() -> Result<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        if program.ends_with(b"memoria-operator") && words.next() == Some(b"run") {
            found.push(pid);
        }
    }
    match found.as_slice() {
        [one] => Ok(*one),
        many => bail!("{} processes are `memoria-operator run`; this measures one", many.len()),
    }
}

/// Resident memory in bytes.
fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("the operator's process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc tells no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
    Ok(kib * 1024)
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with one digit")]
fn mib(bytes: u64) -> f64 {
    (bytes as f64 / 1_048_576.0 * 10.0).round() / 10.0
}

/// A place in the API server's audit log.
struct Log {
    path: PathBuf,
    inode: u64,
    offset: u64,
}

impl Log {
    fn end() -> Result<Self> {
        let path = cluster::audit_log()?;
        let metadata = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path, inode: metadata.ino(), offset: metadata.len() })
    }

    fn since(&self) -> Result<Vec<Value>> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.ino() != self.inode {
            bail!("the audit log was put aside meanwhile; run this again");
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        text.lines().map(|line| serde_json::from_str(line).context("a line of the audit log")).collect()
    }
}
