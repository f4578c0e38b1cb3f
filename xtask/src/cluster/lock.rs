//! Keeps two commands from doing the same work at once.

use std::fs::{self, File};

use anyhow::{Context, Result};

use crate::place;

/// Takes the lock of this name, waiting for whoever has it. It is free again when the file is dropped, or its process ends.
pub fn take(name: &str) -> Result<File> {
    let dir = place::cache()?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("waiting for another `cargo xtask` that works on the {name}");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
