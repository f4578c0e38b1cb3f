//! Gives the readers of stored files whatever libFuzzer thinks of.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cluster::command;
use crate::place;

const TARGETS: [&str; 3] = ["export", "manifest", "values"];
/// What builds and starts them.
pub const INSTALL: &str = "cargo-fuzz is not installed: `cargo install --locked cargo-fuzz@0.13.1`";

#[derive(clap::Args)]
pub struct Args {
    /// Which: export, manifest or values; without, one after the other
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each is fuzzed
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

pub fn run(args: Args) -> Result<()> {
    if !is_installed() {
        bail!(INSTALL);
    }
    let targets = args.target.map_or_else(|| TARGETS.map(str::to_owned).to_vec(), |target| vec![target]);
    for target in targets {
        println!("==> {target}, {} s", args.seconds);
        fuzz(&target, args.seconds)?;
    }
    println!("fuzz: nothing found");
    Ok(())
}

pub fn is_installed() -> bool {
    command::find("cargo-fuzz").is_some()
}

/// All of them, each for that long.
pub fn all(seconds: u32) -> Result<()> {
    run(Args { target: None, seconds })
}

/// What is found of use is kept for the next time.
fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let kept = place::cache()?.join("fuzz");
    let (inputs, faults) = (kept.join(target).join("corpus"), kept.join(target).join("faults"));
    for directory in [&inputs, &faults] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut fuzz = Command::new("cargo");
    // Without a sanitizer the compiler of this checkout is enough: no target has unsafe code of its own.
    fuzz.args(["fuzz", "run", "--dev", "--sanitizer", "none", target]).arg(&inputs);
    // Real files to begin with, where there are any.
    fuzz.args(Some(place::root()?.join("fuzz/seeds").join(target)).filter(|seeds| seeds.exists()));
    fuzz.args(["--", &format!("-max_total_time={seconds}"), "-rss_limit_mb=1024", "-print_final_stats=1"]);
    fuzz.arg(format!("-artifact_prefix={}/", faults.display()));
    fuzz.current_dir(place::root()?).env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", kept.join("target"));
    let status = fuzz.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("{target} found a fault; what led to it is in {}", faults.display());
    }
    Ok(())
}
