//! The quick tier: what needs no cluster.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Done, EVERYTHING, Part, cargo, succeed, tags};
use crate::{cluster, fuzz, place};

/// Of its own, with other dependencies: built and linted only where it is fuzzed.
const FUZZ: &str = "fuzz/Cargo.toml";
/// How long each target is fuzzed.
const FUZZED_SECONDS: u32 = 60;

pub fn parts(all: bool) -> Vec<Part> {
    let mut parts = vec![
        Part { name: "formatting", run: Box::new(formatting) },
        Part { name: "no stand-in's tag in src, charts", run: Box::new(tags::check) },
        Part { name: "clippy", run: Box::new(clippy) },
        Part { name: "generated CRDs", run: Box::new(crds) },
        Part { name: "documentation", run: Box::new(documentation) },
        Part { name: "dependencies (cargo deny)", run: Box::new(dependencies) },
        Part { name: "unit and PostgreSQL tests", run: Box::new(unit_tests) },
        Part { name: "the checkers' own tests", run: Box::new(checkers) },
        Part { name: "conformance of the stand-in", run: Box::new(conformance) },
    ];
    if all {
        parts.push(Part { name: "readers of stored files, fuzzed", run: Box::new(fuzzed) });
    }
    parts
}

fn formatting() -> Result<Done> {
    succeed(&mut cargo(&["fmt", "--all", "--check"])?)?;
    succeed(&mut cargo(&["fmt", "--check", "--manifest-path", FUZZ])?)
}

fn fuzzed() -> Result<Done> {
    if !fuzz::is_installed() {
        return Ok(Done::Left(fuzz::INSTALL));
    }
    let mut clippy = cargo(&["clippy", "--quiet", "--locked", "--manifest-path", FUZZ])?;
    succeed(clippy.args(["--", "-D", "warnings"]))?;
    fuzz::all(FUZZED_SECONDS).map(|()| Done::Passed)
}

fn clippy() -> Result<Done> {
    let mut clippy = cargo(&["clippy", "--all-targets", "--quiet"])?;
    succeed(clippy.args(EVERYTHING).args(["--", "-D", "warnings"]))
}

fn documentation() -> Result<Done> {
    let mut doc = cargo(&["doc", "--locked", "--workspace", "--no-deps", "--document-private-items", "--quiet"])?;
    succeed(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// The committed CRDs and the chart's are what the types say.
fn crds() -> Result<Done> {
    let directory = place::target()?.join("generated-crds");
    let _ = fs::remove_dir_all(&directory);
    succeed(cargo(&["build", "--quiet", "--bin", "memoria-operator"])?.args(EVERYTHING))?;
    let mut generate = Command::new(place::target()?.join("debug/memoria-operator"));
    succeed(generate.args(["crds", "--out"]).arg(&directory))?;
    same_files(&place::root()?.join("crds"), &directory)
        .context("run `cargo run -- crds --out crds` and read the difference")?;
    same_files(&place::root()?.join("charts/memoria-operator/files/crds"), &directory)
        .context("run `cargo run -- crds --out charts/memoria-operator/files/crds` and read the difference")?;
    Ok(Done::Passed)
}

fn same_files(committed: &Path, generated: &Path) -> Result<()> {
    succeed(Command::new("diff").args(["--unified", "--recursive"]).arg(committed).arg(generated))
        .with_context(|| format!("{} is not up to date", committed.display()))
        .map(drop)
}

fn dependencies() -> Result<Done> {
    if !place::root()?.join("deny.toml").exists() {
        return Ok(Done::Left("there is no deny.toml"));
    }
    match cargo(&["deny", "--version"])?.output() {
        Ok(output) if output.status.success() => {
            succeed(&mut cargo(&["deny", "--workspace", "check", "bans", "licenses", "sources"])?)?;
            advisories()
        }
        _ => Ok(Done::Left("cargo-deny is not installed: `cargo install --locked cargo-deny`")),
    }
}

/// The advisories lie in a repository of their own, which not every machine can reach.
fn advisories() -> Result<Done> {
    let output = cargo(&["deny", "--workspace", "check", "advisories"])?.output()?;
    if output.status.success() {
        return Ok(Done::Passed);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("failed to fetch advisory database") {
        return Ok(Done::Left("bans, licenses and sources passed; the advisories cannot be fetched from here"));
    }
    eprintln!("{said}");
    bail!("`cargo deny check advisories` ended with {}", output.status)
}

fn unit_tests() -> Result<Done> {
    postgresql()?;
    python()?;
    let mut test = cargo(&["test", "--lib", "--bins"])?;
    test.args(EVERYTHING);
    for name in integration_tests(None)? {
        test.arg("--test").arg(name);
    }
    succeed(&mut test)
}

/// The integration tests that require this feature; `None`: those that require none.
pub fn integration_tests(feature: Option<&str>) -> Result<Vec<String>> {
    let output =
        cargo(&["metadata", "--locked", "--no-deps", "--format-version=1"])?.output().context("cannot start cargo")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata printed")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let tests =
        packages.filter_map(|package| package["targets"].as_array()).flatten().filter(|t| t["kind"][0] == "test");
    let wanted = tests.filter(|test| test["required-features"][0].as_str() == feature);
    let names: Vec<_> = wanted.filter_map(|test| test["name"].as_str().map(str::to_owned)).collect();
    if names.is_empty() {
        bail!("cargo metadata names no integration test that requires {feature:?}");
    }
    Ok(names)
}

fn conformance() -> Result<Done> {
    postgresql()?;
    python()?;
    succeed(&mut Command::new(place::root()?.join("tests/memoria/conformance/run.sh")))
}

/// The programs that judge upgrades must fail on seeded corruptions and find planted secrets.
fn checkers() -> Result<Done> {
    postgresql()?;
    python()?;
    succeed(&mut Command::new(place::root()?.join("tests/checkers/selftest.sh")))
}

/// Makes sure that some major of PostgreSQL's server is here. Tests start servers of their own, so the one that Debian
/// would start on installation is not wanted.
fn postgresql() -> Result<()> {
    let majors = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    if majors.map(|major| major.path().join("bin/initdb")).any(|initdb| initdb.is_file()) {
        return Ok(());
    }
    let settings = Path::new("/etc/postgresql-common");
    if !settings.exists() {
        fs::create_dir_all(settings)
            .and_then(|()| fs::write(settings.join("createcluster.conf"), "create_main_cluster = false\n"))
            .context("tests need PostgreSQL's server, and installing it needs root: install postgresql")?;
    }
    cluster::install_packages(&["postgresql"])
}

/// Makes sure that Python can make virtual environments.
fn python() -> Result<()> {
    cluster::ensure_programs(&[("python3", "python3")])?;
    let able =
        || Command::new("python3").args(["-c", "import ensurepip, venv"]).output().is_ok_and(|o| o.status.success());
    if !able() {
        cluster::ensure_programs(&[("python3-venv", "python3-venv")])
            .or_else(|e| if able() { Ok(()) } else { Err(e) })?;
    }
    if !able() {
        bail!("python3 cannot make virtual environments: install its venv module (Debian: python3-venv)");
    }
    Ok(())
}
