//! `memoria-operator rescue`: prints, from storage and the database's markers alone, the plain commands that take an
//! attempt back by hand. It changes nothing itself, and needs neither the operator nor any object of it.

mod find;
mod marker;
mod script;
mod shell;
mod state;
#[cfg(test)]
mod tests;

use std::{fmt::Write as _, path::Path};

pub use find::{Found, NotFound, find};
pub use marker::{Looked, look};
pub use script::{Unwritable, script};
pub use state::{RescueSettings, RescueState, RescueTarget};

use shell::plain;

/// What a person reads beside the script.
pub fn summary(root: &Path, found: &Found, looked: &Looked) -> String {
    let (state, manifest) = (&found.state, &found.stored.manifest);
    let mut text = String::new();
    let mut say = |line: String| {
        let _ = writeln!(text, "{}", plain(&line));
    };
    say(format!(
        "attempt {} of release {} in namespace {}: {} to {}, snapshot of {}",
        state.attempt, state.release, state.namespace, state.from, state.to, manifest.read_at
    ));
    say(format!(
        "verified: {} (SHA-256 {}) and the files that it names, in {}",
        crate::snapshot::manifest::MANIFEST,
        found.stored.sha256,
        found.directory.display()
    ));
    for kept in &found.kept {
        say(format!("beside it: {kept}"));
    }
    say(format!("markers in the database: {looked}"));
    for other in &found.others {
        say(format!("also in {}: {other}; choose by --attempt", root.display()));
    }
    say("next: read the script on standard output, then run it with sh where kubectl reaches the cluster".to_owned());
    text
}
