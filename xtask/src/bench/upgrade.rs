//! `cargo xtask bench upgrade`: the same upgrade in three ways, in turns, each time of a new Memoria with the same data.
//! Setting up is not measured. All times come from the same watches and the same client, whatever carries the upgrade out.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::by_hand::{self, Migrations, Said};
use super::client;
use super::event::{Event, State, WORKLOADS};
use super::recorder::Recorder;
use super::report::{self, Run};
use super::timeline::{self, Gap, JobEnd, Window};
use crate::clock::Clock;
use crate::cluster::{self, REGISTRY, Target};
use crate::demo::{self, RELEASE, TO};
use crate::images::{self, OPERATOR, Profile, TOOLS};
use crate::kube::Kube;
use crate::memoria::{self, Database, Installation, VERSION};
use crate::{operator, place};

/// Made anew for each run.
const NAMESPACE: &str = "memoria-bench";
/// How long an upgrade by the operator may take.
const UPGRADED: Duration = Duration::from_secs(1800);
/// How long the nodes may take to pull all images.
const PULLED: Duration = Duration::from_secs(600);
const PULL: &str = "memoria-bench-images";

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
    let _lock = cluster::lock_operator()?;
    clock.say(&kube.target.ensure()?);
    let digests = images::ensure_available(kube.target, Profile::Release)?;
    clock.say("the operator, by its Helm chart");
    operator::install(&kube, &digests, &[])?;
    clock.say("every node pulls every image");
    pull(&kube, &digests, &options.postgres)?;
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
    println!("every event of every run: {}", records()?.display());
    if options.json {
        println!("{}", report::json(&runs));
    }
    Ok(())
}

fn measure(kube: &Kube, options: &Options, way: Way, number: u32, clock: &Clock) -> Result<Run> {
    kube.delete_namespaces(&[NAMESPACE])?;
    // Makes the volumes of the last run usable again, too.
    kube.target.ensure()?;
    memoria::install(kube, &installation(options), clock)?;
    let mut kinds = vec!["Deployment", "Pod", "Job", "ConfigMap"];
    if way == Way::Operator {
        demo::adopt(kube, NAMESPACE, Database::Postgresql)?;
        kinds.push("MemoriaRelease");
    }
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
    keep(&events, said.as_ref(), way, number)?;
    is_upgraded(kube)?;
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

fn installation(options: &Options) -> Installation {
    Installation {
        namespace: NAMESPACE.into(),
        database: Database::Postgresql,
        postgres: options.postgres.clone(),
        rows: options.rows,
        seed: 1,
        small: false,
        label: None,
        use_current_context: options.use_current_context,
    }
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

/// Whatever was done must have had its effect, or its times mean nothing.
fn is_upgraded(kube: &Kube) -> Result<()> {
    for name in WORKLOADS {
        let workload = kube.get(NAMESPACE, "deployment", name)?.with_context(|| format!("{name} is gone"))?;
        let image = workload["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        if !image.contains(&format!(":{TO}")) {
            bail!("after the upgrade {name} runs {image}");
        }
        kube.rolled_out(NAMESPACE, &format!("deployment/{name}"), Duration::from_secs(60))?;
    }
    Ok(())
}

/// Has each node pull what the upgrades will run, so that the first run is like the others.
fn pull(kube: &Kube, digests: &BTreeMap<String, String>, postgres: &str) -> Result<()> {
    let tools = format!("{TOOLS}:{}-pg{postgres}", images::version());
    let ours = digests.iter().filter(|(name, _)| name.starts_with(OPERATOR) || **name == tools);
    let pinned =
        ours.map(|(name, digest)| format!("{REGISTRY}/{}@{digest}", name.split(':').next().unwrap_or_default()));
    let memoria = [VERSION, TO]
        .into_iter()
        .flat_map(|version| ["server", "dashboard"].map(|part| format!("{REGISTRY}/memoria/{part}:{version}")));
    let images: Vec<_> = pinned.chain(memoria).collect();
    let pulled: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(number, image)| {
            json!({"name": format!("image-{number}"), "image": image, "imagePullPolicy": "Always", "command": ["true"]})
        })
        .collect();
    let image = images.last().context("there are images")?;
    let labels = json!({"app.kubernetes.io/name": PULL});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": PULL},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "initContainers": pulled,
            "containers": [{"name": "done", "image": image, "command": ["sleep", "infinity"]}],
        }}},
    });
    kube.apply("default", &set.to_string())?;
    kube.rolled_out("default", &format!("daemonset/{PULL}"), PULLED)?;
    kube.run(&["--namespace", "default", "delete", "daemonset", PULL]).map(drop)
}

/// Where the events are kept for whoever wants to add up themselves.
fn records() -> Result<PathBuf> {
    Ok(place::cache()?.join("bench"))
}

fn keep(events: &[Event], said: Option<&Said>, way: Way, number: u32) -> Result<()> {
    let directory = records()?;
    fs::create_dir_all(&directory)?;
    let name = way.variant().unwrap_or("operator");
    let file = directory.join(format!("{name}-{number}.json"));
    let text = serde_json::to_string_pretty(&json!({"events": events, "said": said}))?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
