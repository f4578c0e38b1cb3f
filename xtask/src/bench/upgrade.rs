//! `cargo xtask bench upgrade`: the same upgrade in three ways, in turns, each time of a new Memoria with the same data.
//! Setting up is not measured. All times come from the same watches and the same client, whatever carries the upgrade out.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::by_hand::{self, Migrations};
use super::client;
use super::event::{Event, State};
use super::recorder::Recorder;
use super::report::{self, Run};
use super::stage::{self, NAMESPACE, UPGRADED};
use super::timeline::{self, Gap, JobEnd, Window};
use crate::clock::Clock;
use crate::cluster::Target;
use crate::demo::{RELEASE, TO};
use crate::kube::Kube;

#[derive(clap::Args)]
pub struct Options {
    /// Upgrades in each of the three ways
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Rows of data in all tables together
    #[arg(long, default_value_t = 44_000)]
    pub rows: u32,
    /// Major version of PostgreSQL
    #[arg(long, default_value = "15", value_parser = ["15", "17"])]
    postgres: String,
    /// How the migrations run when the upgrade is done by hand
    #[arg(long, value_enum, default_value = "each")]
    pub by_hand_migrations: Migrations,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// The cluster of the kubeconfig's current context instead of the local one
    #[arg(long)]
    use_current_context: bool,
}

/// What carries the upgrade out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Operator,
    /// By hand, with servers, workers and dashboard stopped meanwhile.
    Quiesced,
    /// By hand, as the announcement says it: nothing is stopped.
    AsWritten,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Operator, Self::Quiesced, Self::AsWritten];

    pub fn title(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Quiesced => "by hand, quiesced",
            Self::AsWritten => "by hand, as written",
        }
    }

    /// What `by-hand.sh` calls it.
    fn variant(self) -> Option<&'static str> {
        match self {
            Self::Operator => None,
            Self::Quiesced => Some("quiesced"),
            Self::AsWritten => Some("as-written"),
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let clock = Clock::start();
    let kube = Kube { target: Target::from_flag(options.use_current_context) };
    let _lock = stage::set(&kube, &options.postgres, TO, &clock)?;
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        for way in Way::ALL {
            clock.say(&format!("run {number} of {}: {}", options.runs, way.title()));
            let run = measure(&kube, options, way, number, &clock)
                .with_context(|| format!("run {number}, {}; the namespace {NAMESPACE} stays", way.title()))?;
            clock.say(&run.in_short());
            runs.push(run);
        }
    }
    kube.delete_namespaces(&[NAMESPACE])?;
    report::print(&runs, options);
    println!("every event of every run: {}", stage::records()?.display());
    if options.json {
        println!("{}", report::json(&runs));
    }
    Ok(())
}

fn measure(kube: &Kube, options: &Options, way: Way, number: u32, clock: &Clock) -> Result<Run> {
    stage::install(kube, &options.postgres, options.rows, clock)?;
    let kinds = stage::kinds(kube, way == Way::Operator)?;
    client::start(kube, NAMESPACE)?;
    let mut recorder = Recorder::begin(kube, NAMESPACE, &kinds)?;
    clock.say(&format!("{NAMESPACE}: the upgrade to {TO} begins"));
    let begin = recorder.now();
    let (end, said) = match way.variant() {
        None => (by_operator(kube, &mut recorder)?, None),
        Some(variant) => {
            let said = by_hand::upgrade(kube, NAMESPACE, variant, options.by_hand_migrations)?;
            (recorder.now(), Some(said))
        }
    };
    let told = client::finish(kube, NAMESPACE)?;
    let events = recorder.finish()?;
    stage::keep(&events, said.as_ref(), &format!("{}-{number}", way.variant().unwrap_or("operator")))?;
    stage::runs_version(kube, TO)?;
    let window = Window { begin, end };
    let own = (way == Way::Operator).then(|| own_share(&events, end)).transpose()?;
    Ok(Run {
        way,
        wall: window.millis(),
        writers_stopped: timeline::writers_stopped(&events, window),
        down_seconds: told.down_seconds,
        polls: told.polls,
        own,
        said,
    })
}

/// Changes the version and waits until the release is Ready. Returns when the watch told that.
fn by_operator(kube: &Kube, recorder: &mut Recorder) -> Result<u64> {
    let patch = json!({"spec": {"version": TO}}).to_string();
    kube.run(&["--namespace", NAMESPACE, "patch", "memoriarelease", RELEASE, "--type=merge", "-p", &patch])?;
    recorder.wait("the operator to finish the upgrade", UPGRADED, |events| {
        for event in events {
            match &event.state {
                State::Release { version, stalled: true, message, .. } if version == TO => {
                    bail!("the upgrade did not succeed: {message}")
                }
                State::Release { version, ready: true, .. } if version == TO => return Ok(Some(event.millis)),
                _ => {}
            }
        }
        Ok(None)
    })
}

/// The stretches of the upgrade in which the operator alone was at work, by both rules for the end of a Job.
pub struct OwnShare {
    pub by_condition: Vec<Gap>,
    pub by_pod: Vec<Gap>,
}

/// From the moment when the watch told the new version: what kubectl takes to send it is not the operator's.
fn own_share(events: &[Event], end: u64) -> Result<OwnShare> {
    let asked = |event: &&Event| matches!(&event.state, State::Release { version, .. } if version == TO);
    let begin = events.iter().find(asked).context("no watch told the new version")?.millis;
    let window = Window { begin, end };
    let gaps = |job_end| timeline::gaps(events, window, job_end);
    Ok(OwnShare { by_condition: gaps(JobEnd::Condition), by_pod: gaps(JobEnd::Pod) })
}
