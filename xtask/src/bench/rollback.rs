//! `cargo xtask bench rollback`: an upgrade whose migration fails is taken back, by the operator and by the announcement's
//! commands with kubectl, in turns, with few rows and with many, each time of a new Memoria. Measured is the same stretch
//! of both: from the failure that is known until the previous version serves again and the evidence is stored. The upgrade
//! before it, with the export or snapshot to go back to, is not measured.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::by_hand::{self, SaidBack};
use super::event::{Event, State};
use super::memory::Sampler;
use super::recorder::Recorder;
use super::remains::Before;
use super::rollback_report::{self, Run};
use super::stage::{self, NAMESPACE, UPGRADED};
use super::timeline;
use crate::clock::Clock;
use crate::cluster::Target;
use crate::demo::RELEASE;
use crate::kube::Kube;
use crate::memoria::VERSION;

/// One of its migrations exits 1 after half of its DDL is committed.
const BAD: &str = "1.0.1-bad-migrate";
/// Parts of the names of the pods that restore and keep evidence, of each way.
const OPERATORS_PODS: &[&str] = &["-restore-"];
const PERSONS_PODS: &[&str] = &["by-hand-import-", "by-hand-evidence-"];

#[derive(clap::Args)]
pub struct Options {
    /// Ways back of each kind, for each number of rows
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Rows of data in all tables together; the ratio is that of the last number
    #[arg(long, value_delimiter = ',', default_value = "44000,440000")]
    rows: Vec<u32>,
    /// Major version of PostgreSQL
    #[arg(long, default_value = "15", value_parser = ["15", "17"])]
    postgres: String,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// What takes the upgrade back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Operator,
    ByHand,
}

impl Way {
    pub const ALL: [Self; 2] = [Self::Operator, Self::ByHand];

    pub fn title(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::ByHand => "by hand",
        }
    }

    /// In JSON, and in the names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::ByHand => "byHand",
        }
    }

    fn pods(self) -> &'static [&'static str] {
        match self {
            Self::Operator => OPERATORS_PODS,
            Self::ByHand => PERSONS_PODS,
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let clock = Clock::start();
    // Processes are looked at from outside, so they must be on this machine.
    let kube = Kube { target: Target::Local };
    let _lock = stage::set(&kube, &options.postgres, BAD, &clock)?;
    let mut runs = Vec::new();
    for rows in &options.rows {
        for number in 1..=options.runs {
            for way in Way::ALL {
                clock.say(&format!("{rows} rows, run {number} of {}: {}", options.runs, way.title()));
                // Once of each way; reading every row of many takes longer than the way back.
                let compare = number == 1 && Some(rows) == options.rows.first();
                let run = measure(&kube, options, (way, *rows, number), compare, &clock)
                    .with_context(|| format!("{}; the namespace {NAMESPACE} stays", way.title()))?;
                clock.say(&run.in_short());
                runs.push(run);
            }
        }
    }
    kube.delete_namespaces(&[NAMESPACE])?;
    rollback_report::print(&runs);
    println!("every event of every run: {}", stage::records()?.display());
    if options.json {
        println!("{}", rollback_report::json(&runs));
    }
    Ok(())
}

fn measure(
    kube: &Kube,
    options: &Options,
    (way, rows, number): (Way, u32, u32),
    compare: bool,
    clock: &Clock,
) -> Result<Run> {
    stage::install(kube, &options.postgres, rows, clock)?;
    let kinds = stage::kinds(kube, way == Way::Operator)?;
    let before = compare.then(|| Before::capture(kube)).transpose()?;
    let record = format!("rollback-{}-{rows}-{number}", way.name());
    clock.say(&format!("{NAMESPACE}: the upgrade to {BAD} begins, and will fail"));
    let done = match way {
        Way::Operator => by_operator(kube, &kinds, &record)?,
        Way::ByHand => a_person(kube, &kinds, &record)?,
    };
    stage::runs_version(kube, VERSION)?;
    let remains = before.map(|before| before.remains(kube, way.name())).transpose()?;
    Ok(Run { way, rows, wall: done.end - done.begin, peak_mib: done.peak_mib, parts: done.parts, remains })
}

/// One way back. Milliseconds of the recorder's clock.
struct Done {
    begin: u64,
    end: u64,
    peak_mib: f64,
    /// Parts and their seconds, in the order of their beginnings, as the way itself tells them.
    parts: Vec<(String, f64)>,
}

/// The failure is known when the watch tells that the pod of the failed migration has ended.
fn by_operator(kube: &Kube, kinds: &[&'static str], record: &str) -> Result<Done> {
    let mut recorder = Recorder::begin(kube, NAMESPACE, kinds)?;
    let sampler = Sampler::begin();
    // A rehearsal would find the failure while everything serves, and there would be nothing to take back.
    let spec = json!({"version": BAD, "rollback": {"rehearse": "Never"}});
    let patch = json!({ "spec": spec }).to_string();
    kube.run(&["--namespace", NAMESPACE, "patch", "memoriarelease", RELEASE, "--type=merge", "-p", &patch])?;
    let said = recorder.wait("the operator to take the upgrade back", UPGRADED, |events| {
        let over = |event: &Event| match &event.state {
            State::Release { version, ready, stalled, message } if version == BAD && (*ready || *stalled) => {
                Some(message.clone())
            }
            _ => None,
        };
        Ok(events.iter().find_map(over))
    })?;
    let attempt = taken_back(kube).with_context(|| format!("the release says: {said}"))?;
    let peak_mib = sampler.finish(&uids(kube, Way::Operator)?)?;
    let events = recorder.finish()?;
    stage::keep(&events, None::<&SaidBack>, record)?;
    let name = attempt["metadata"]["name"].as_str().unwrap_or_default();
    let log = kube.run(&["--namespace", NAMESPACE, "logs", &format!("job/{name}-restore"), "--all-containers"])?;
    let file = stage::records()?.join(format!("{record}.log"));
    fs::write(&file, log).with_context(|| format!("cannot write {}", file.display()))?;
    let begin = timeline::pod_ended(&events, "-migrate-").context("no watch told the end of the migration's pod")?;
    let served = timeline::serves_again(&events, begin).context("no watch told that the previous version serves")?;
    let stored = timeline::pod_ended(&events, "-restore-").context("no watch told the end of the restore's pod")?;
    Ok(Done { begin, end: served.max(stored), peak_mib, parts: parts(&attempt) })
}

/// Whoever carries the upgrade out by hand knows of the failure when the command has failed.
fn a_person(kube: &Kube, kinds: &[&'static str], record: &str) -> Result<Done> {
    let recorder = Recorder::begin(kube, NAMESPACE, kinds)?;
    by_hand::failing_upgrade(kube, NAMESPACE, BAD)?;
    let sampler = Sampler::begin();
    let begin = recorder.now();
    let said = by_hand::rollback(kube, NAMESPACE)?;
    let end = recorder.now();
    let peak_mib = sampler.finish(&uids(kube, Way::ByHand)?)?;
    let events = recorder.finish()?;
    stage::keep(&events, Some(&said), record)?;
    let served = timeline::serves_again(&events, begin).context("no watch told that the previous version serves")?;
    let parts = vec![
        ("stop and import".to_owned(), said.imported - said.begin),
        ("start".to_owned(), said.started - said.imported),
        ("evidence".to_owned(), said.end - said.started),
    ];
    Ok(Done { begin, end: served.max(end), peak_mib, parts })
}

/// The attempt, which must have ended as one that was taken back after its image had moved.
fn taken_back(kube: &Kube) -> Result<Value> {
    let attempts = kube.list(NAMESPACE, "memoriaupgrades")?;
    let [attempt] = attempts.as_slice() else { bail!("there are {} attempts instead of one", attempts.len()) };
    let status = &attempt["status"];
    if status["outcome"] != "RolledBack" || status["rollback"]["restored"] != true {
        bail!("the attempt ended as {}: {}", status["outcome"], status["failure"]["message"]);
    }
    Ok(attempt.clone())
}

/// What the journal says of the phases of the way back; only told, never measured with.
fn parts(attempt: &Value) -> Vec<(String, f64)> {
    let time = |value: &Value| value.as_str()?.parse::<jiff::Timestamp>().ok();
    let records = attempt["status"]["phases"].as_array();
    let back = records.into_iter().flatten().skip_while(|record| record["name"] != "RollbackQuiesce");
    let part = |record: &Value| {
        let (from, to) = (time(&record["startedAt"])?, time(&record["finishedAt"])?);
        Some((record["name"].as_str()?.to_owned(), to.duration_since(from).as_secs_f64()))
    };
    back.filter_map(part).collect()
}

/// UIDs of the pods whose memory counts.
fn uids(kube: &Kube, way: Way) -> Result<Vec<String>> {
    let pods = kube.list(NAMESPACE, "pods")?;
    let named = |pod: &&Value| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        way.pods().iter().any(|part| name.contains(part))
    };
    let uids = pods.iter().filter(named).filter_map(|pod| pod["metadata"]["uid"].as_str());
    Ok(uids.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_phases_of_the_way_back_are_told() {
        let record = |name: &str, from: &str, to: &str| json!({"name": name, "startedAt": format!("2026-01-01T00:00:{from}Z"), "finishedAt": format!("2026-01-01T00:00:{to}Z")});
        let attempt = json!({"status": {"phases": [
            record("Migrate", "00", "10"), record("RollbackQuiesce", "10", "11"), record("ImportSnapshot", "11", "31"),
            {"name": "RestoreImage", "startedAt": "2026-01-01T00:00:31Z"},
        ]}});
        assert_eq!(parts(&attempt), [("RollbackQuiesce".to_owned(), 1.0), ("ImportSnapshot".to_owned(), 20.0)]);
    }
}
