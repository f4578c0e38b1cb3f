//! Compiles the two binaries that the images hold.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::progress::Progress;
use crate::place;

/// How the operator's binary in the images is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As its tests have compiled it anyway: for whoever asks whether it works.
    Dev,
    /// As users get it: for whoever asks how fast it is.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }
}

pub struct Binaries {
    pub operator: PathBuf,
    /// Static: it runs in images with another libc or none.
    pub runner: PathBuf,
}

impl Binaries {
    pub fn path(&self, name: &str) -> Result<&PathBuf> {
        match name {
            "memoria-operator" => Ok(&self.operator),
            "memoria-runner" => Ok(&self.runner),
            _ => bail!("there is no binary {name:?}"),
        }
    }
}

/// Compiles what changed.
pub fn build(progress: &Progress, profile: Profile) -> Result<Binaries> {
    progress.say("memoria-operator", &format!("compiling (profile {})", profile.name()));
    let mut operator = cargo()?;
    operator.args(["--profile", profile.name(), "--bin", "memoria-operator"]);
    // What the tests compile, so that it is compiled once. No feature but the tests' own is behind the flag.
    operator.args(match profile {
        Profile::Dev => ["--workspace", "--all-features"].as_slice(),
        Profile::Release => &["--package", "memoria-operator"],
    });
    let operator = stripped(executable(&mut operator, "memoria-operator")?)?;

    progress.say("memoria-runner", "compiling (profile release, static)");
    let mut runner = cargo()?;
    // With --target the flag stays away from build scripts and from everything that is not built for a target.
    runner.args(["--profile", "release", "--package", "memoria-runner", "--target"]);
    runner.arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    runner.env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static").trim());
    let runner = executable(&mut runner, "memoria-runner")?;
    Ok(Binaries { operator, runner })
}

/// A copy without symbols, a third of the size: two nodes pull it after every change.
fn stripped(program: PathBuf) -> Result<PathBuf> {
    let copy = program.with_extension("stripped");
    let status = Command::new("strip").args(["--strip-all", "-o"]).arg(&copy).arg(&program).status();
    if !status.context("cannot start strip, of Debian's binutils")?.success() {
        bail!("strip cannot read {}", program.display());
    }
    Ok(copy)
}

/// `cargo build` in the checkout, into a target directory outside it unless the environment names one.
fn cargo() -> Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(place::root()?).args(["build", "--locked", "--message-format=json-render-diagnostics"]);
    cargo.env("CARGO_TARGET_DIR", place::target()?);
    Ok(cargo)
}

/// Runs it and asks cargo itself where the program is.
fn executable(cargo: &mut Command, name: &str) -> Result<PathBuf> {
    let output = cargo.stderr(std::process::Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("{name} does not compile; cargo says why above");
    }
    let artifact = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        if message["target"]["name"] != name {
            return None;
        }
        message["executable"].as_str().map(PathBuf::from)
    };
    let messages = String::from_utf8_lossy(&output.stdout);
    messages.lines().filter_map(artifact).next_back().with_context(|| format!("cargo built no program {name}"))
}
