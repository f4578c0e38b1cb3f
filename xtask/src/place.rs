//! Where things lie: the checkout, and the caches outside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout that this xtask was built from.
pub fn root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(manifest.parent().context("xtask lies directly below the checkout")?.to_path_buf())
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
