//! The third tier: upgrades of real Memorias on the two-node cluster, the operator installed by its chart.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Done, EVERYTHING, Part, cargo, getting_started, matrix, succeed};
use crate::cluster::{self, Target};
use crate::images::{self, Profile};
use crate::kube::Kube;
use crate::{operator, place};

/// On the namespaces of these tests; the tests know it, too.
const NAMESPACE_LABEL: &str = "memoria-operator-test";
/// A killed operator cannot give its Lease back: its successor waits for this long instead of the default's half a minute.
const SHORT_LEASE: [&str; 3] =
    ["leaderElection.leaseDuration=15s", "leaderElection.renewDeadline=10s", "leaderElection.retryPeriod=2s"];
/// Memorias that are upgraded at the same time.
const AT_ONCE: &str = "--test-threads=3";

/// Modules of upgrades that take longer than CI has time for.
const LONG: [&str; 5] = ["checks::", "holds::", "kinds::", "rehearsal::migrations", "sqlite::"];
/// Modules with parts of their own.
const APART: [&str; 5] =
    ["--skip=silence::", "--skip=killed::", "--skip=kills::", "--skip=matrix::", "--skip=rescue::"];
/// Two that kill the one operator would kill it for each other.
const ALONE: &str = "--test-threads=1";
/// Modules that kill or stop it.
const LONELY: [&str; 3] = ["killed", "kills", "rescue"];
/// Module whose workers KEDA scales, too.
const KEDA: &str = "kinds";
/// Kills at random instants with `--all`; whoever sets the variable decides otherwise.
const KILLS: (&str, &str) = ("MEMORIA_TEST_KILLS", "100");
/// One upgrade of each database, killed in every phase; the others take longer than CI has time for.
const KILLED_IN_CI: [&str; 2] = [
    "killed::the_operator_killed_once_in_every_phase_comes",
    "killed::the_operator_killed_once_in_every_phase_of_the_way_back",
];

pub fn parts(all: bool, only: &[String]) -> Vec<Part> {
    let mut parts = vec![
        Part { name: "the cluster", run: Box::new(|| Target::Local.ensure().map(|_| Done::Passed)) },
        Part {
            name: "the images",
            run: Box::new(|| images::ensure_available(Target::Local, Profile::Dev).map(|_| Done::Passed)),
        },
        Part { name: "leftovers of earlier runs", run: Box::new(clean_up) },
    ];
    if only == [matrix::FILTER] {
        parts.push(Part { name: "the operator, by its chart", run: Box::new(install) });
        parts.push(Part { name: "cells of the fault matrix", run: Box::new(matrix::chosen) });
        return parts;
    }
    if only == [getting_started::FILTER] {
        parts.push(getting_started());
        return parts;
    }
    if !only.is_empty() {
        let mut arguments = only.to_vec();
        let alone = only.iter().any(|filter| LONELY.iter().any(|module| filter.starts_with(module)));
        arguments.push(if alone { ALONE } else { AT_ONCE }.to_owned());
        let scaled = only.iter().any(|filter| filter.starts_with(KEDA));
        parts.push(Part { name: "the operator, by its chart", run: Box::new(install) });
        let chosen = move || e2e(&arguments, &if scaled { with_keda()? } else { Vec::new() });
        parts.push(Part { name: "chosen upgrades", run: Box::new(chosen) });
        return parts;
    }
    parts.extend([
        Part { name: "secrets planted in the cluster are found", run: Box::new(canaries) },
        Part { name: "the operator, by its chart", run: Box::new(install) },
        Part { name: "upgrades", run: Box::new(upgrades) },
    ]);
    if all {
        let more = || e2e(&[&LONG[..], &[AT_ONCE]].concat(), &with_keda()?);
        parts.push(Part { name: "more upgrades", run: Box::new(more) });
    }
    // All that the upgrades left behind is settled now.
    parts.push(Part { name: "silence of a settled operator", run: Box::new(|| e2e(&["silence::"], &[])) });
    parts.push(match all {
        true => Part { name: "the fault matrix", run: Box::new(matrix::all) },
        false => Part { name: "a sample of the fault matrix", run: Box::new(matrix::sample) },
    });
    // They kill the operator of all, so nothing else may be under way.
    let killed = if all { vec!["killed::"] } else { KILLED_IN_CI.to_vec() };
    let killed = [&killed[..], &[ALONE]].concat();
    parts.push(Part { name: "an operator killed in every phase", run: Box::new(move || e2e(&killed, &[])) });
    if all {
        parts.push(Part { name: "operator and jobs killed at random", run: Box::new(killed_at_random) });
        // It stops the operator of all for a while.
        parts.push(Part { name: "rescue without the operator", run: Box::new(|| e2e(&["rescue::", ALONE], &[])) });
    }
    parts.push(getting_started());
    parts.push(Part { name: "cleaning up", run: Box::new(clean_up) });
    parts
}

/// After everything else, because its commands install the operator anew, with the chart's own values.
fn getting_started() -> Part {
    Part { name: "the commands of getting started", run: Box::new(getting_started::run) }
}

fn upgrades() -> Result<Done> {
    let long = LONG.map(|module| format!("--skip={module}"));
    let mut arguments = vec![AT_ONCE];
    arguments.extend(APART);
    arguments.extend(long.iter().map(String::as_str));
    e2e(&arguments, &[])
}

/// Where KEDA is, which is built first.
fn with_keda() -> Result<Vec<(&'static str, OsString)>> {
    Ok(vec![("MEMORIA_TEST_KEDA", cluster::ensure_keda()?.into())])
}

fn killed_at_random() -> Result<Done> {
    let (name, kills) = KILLS;
    let kills = std::env::var_os(name).unwrap_or_else(|| kills.into());
    e2e(&["kills::", ALONE], &[(name, kills)])
}

fn install() -> Result<Done> {
    // Built a part earlier, so this only reads their digests.
    let digests = images::ensure_available(Target::Local, Profile::Dev)?;
    operator::install(&Kube { target: Target::Local }, &digests, &SHORT_LEASE)?;
    Ok(Done::Passed)
}

/// The search for secrets must find those that are planted before its zero counts for anything.
fn canaries() -> Result<Done> {
    let mut tests = Command::new(place::root()?.join("tests/checkers/selftest.sh"));
    tests.args(["--pattern", "test_cluster.py"]).env("MEMORIA_CHECKERS_CLUSTER", "1");
    succeed(tests.envs(cluster::client_environment()?))
}

/// Runs the tests of `tests/e2e` that the arguments choose, with more of an environment.
pub fn e2e(arguments: &[impl AsRef<OsStr>], environment: &[(&str, OsString)]) -> Result<Done> {
    let mut test = cargo(&["test", "--test", "e2e"])?;
    test.args(EVERYTHING).arg("--").args(arguments).arg("--nocapture");
    // A failed test's own words say more than where they were put together.
    test.envs(cluster::client_environment()?).env("RUST_BACKTRACE", "0");
    test.env("MEMORIA_TEST_XTASK", std::env::current_exe().context("cannot tell which program this is")?);
    test.env("MEMORIA_TEST_IMAGES", images::index_file()?);
    test.env("MEMORIA_TEST_CLUSTER_STATE", cluster::state_dir()?)
        .envs(environment.iter().map(|(name, value)| (name, value)));
    succeed(&mut test)
}

/// Removes the namespaces of these tests and makes their volumes usable again.
fn clean_up() -> Result<Done> {
    let kube = Kube { target: Target::Local };
    let printed = kube.run(&["get", "namespaces", "--selector", NAMESPACE_LABEL, "--output=name"])?;
    let left: Vec<_> = printed.lines().filter_map(|line| line.strip_prefix("namespace/")).collect();
    kube.delete_namespaces(&left)?;
    succeed(Command::new(std::env::current_exe()?).args(["cluster", "recycle"]))
}
