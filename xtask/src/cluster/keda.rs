//! KEDA, for the tests of workloads that it scales: its operator and its kinds, built from source and kept like the
//! Kubernetes programs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::binary::{compile, fill_whole, go};
use super::{command, lock};
use crate::place;

const MODULE: &str = "github.com/kedacore/keda/v2";
/// As many packages as a build from nothing compiles.
const PACKAGES: usize = 3250;

/// What `go mod download -json` answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    dir: PathBuf,
}

/// The directory with `keda-operator` and, in `crds`, its kinds; builds them when they are not there.
pub fn ensure() -> Result<PathBuf> {
    let pinned = place::root()?.join("tests/keda");
    let kept = place::cache()?.join("keda").join(key(&pinned)?);
    if !kept.exists() {
        let _lock = lock::take("keda")?;
        if !kept.exists() {
            fill_whole(&kept, |partial| build(&pinned, partial)).context("cannot build KEDA")?;
        }
    }
    Ok(kept)
}

fn key(pinned: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(fs::read(pinned.join("go.sum"))?);
    hash.update(command::run(go(pinned)?.args(["env", "GOVERSION"]))?);
    Ok(super::hex(&hash.finalize())[..16].to_owned())
}

/// In the module's own directory, so with the versions that its makers test; `go.sum` says that it is theirs.
fn build(pinned: &Path, partial: &Path) -> Result<()> {
    println!("building KEDA's operator from source; about six minutes the first time");
    let answer = command::run(go(pinned)?.args(["mod", "download", "-json", MODULE]))?;
    let Downloaded { dir } = serde_json::from_str(&answer).context("go mod download says something else")?;
    compile(
        go(&dir)?
            .args(["build", "-v", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o"])
            .args([partial.join("keda-operator").as_os_str(), "./cmd/operator".as_ref()]),
        PACKAGES,
    )?;
    let crds = partial.join("crds");
    fs::create_dir(&crds)?;
    for kind in fs::read_dir(dir.join("config/crd/bases"))? {
        let kind = kind?;
        // Copied by content: what lies in Go's cache is not writable.
        fs::write(crds.join(kind.file_name()), fs::read(kind.path())?)?;
    }
    Ok(())
}
