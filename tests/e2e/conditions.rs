//! The linter of conditions: what every client that follows kstatus may rely on, at every moment.

use anyhow::{Result, bail, ensure};
use memoria_operator::api::MemoriaRelease;

/// Fails with what is wrong. A release that the operator has not seen yet has no conditions.
pub fn lint(release: &MemoriaRelease) -> Result<()> {
    let Some(status) = &release.status else { return Ok(()) };
    let generation = release.metadata.generation;
    ensure!(
        status.observed_generation <= generation,
        "status speaks of generation {:?}, the spec is {generation:?}",
        status.observed_generation
    );
    let value = |type_: &str| status.conditions.iter().find(|c| c.type_ == type_).map(|c| c.status.as_str());
    for condition in &status.conditions {
        let name = &condition.type_;
        ensure!(
            status.conditions.iter().filter(|other| other.type_ == *name).count() == 1,
            "condition {name} stands twice"
        );
        ensure!(
            condition.observed_generation.is_some() && condition.observed_generation <= generation,
            "condition {name} is of generation {:?}",
            condition.observed_generation
        );
        ensure!(!condition.reason.is_empty() && !condition.message.is_empty(), "condition {name} says nothing");
        ensure!(
            name == "Ready" || condition.status == "True",
            "condition {name} is {}; it is present only while True",
            condition.status
        );
    }
    match (value("Ready"), value("Reconciling"), value("Stalled")) {
        (Some("True"), None, None)
        | (Some("Unknown" | "False"), Some("True"), None)
        | (Some("False"), None, Some("True")) => Ok(()),
        (None, None, None) if status.conditions.is_empty() => Ok(()),
        other => bail!("Ready, Reconciling and Stalled do not fit together: {other:?}"),
    }
}
