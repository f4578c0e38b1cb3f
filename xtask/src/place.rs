//! Where things lie: the checkout, and the caches outside it.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The root of the checkout that this is run for: above what cargo says it runs, or above the working directory.
///
/// Never what this was built from: checkouts that share cargo's target directory share one binary, which cargo takes
/// for fresh in each of them.
pub fn root() -> Result<PathBuf> {
    let from = match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => std::env::current_dir().context("there is no working directory")?,
    };
    let root = from.ancestors().find(|above| above.join("xtask/Cargo.toml").is_file());
    Ok(root.with_context(|| format!("{} is not in a checkout of the operator", from.display()))?.to_path_buf())
}

/// `$XDG_CACHE_HOME/memoria-operator`, or the same under `~/.cache`: built Kubernetes, images and cluster state.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache")
        }
    };
    Ok(base.join("memoria-operator"))
}

/// Where cargo builds what this program asks it to: `$CARGO_TARGET_DIR`, or a directory among the caches.
pub fn target() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR").filter(|v| !v.is_empty()) {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => Ok(cache()?.join("target")),
    }
}
