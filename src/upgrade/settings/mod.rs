//! Memoria's `config.yaml` over an upgrade: the new release's defaults, this installation's overrides on top. Pure.
//!
//! Mappings merge deeply, lists are replaced. `database` never comes from the defaults: what the installation has there
//! stays. No message and no report shows a value: settings hold keys and passwords.

mod merge;
#[cfg(test)]
mod tests;
mod yaml;

use sha2::{Digest, Sha256};

pub use self::{
    merge::{Merged, Report, merge},
    yaml::YamlError,
};

/// More than this is no file of default settings.
pub const MAX_DEFAULTS_BYTES: usize = 256 * 1024;

/// The four texts that a merge looks at.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// The new image's defaults.
    pub baseline: &'a str,
    /// The prior image's defaults, when it has such a file.
    pub prior_baseline: Option<&'a str>,
    /// What Memoria reads now.
    pub output: &'a str,
    /// What this installation sets differently.
    pub overrides: Option<&'a str>,
}

/// Which of the texts is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Baseline,
    PriorBaseline,
    Output,
    Overrides,
}

/// Why there is no merge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error("{error}")]
    Yaml { source_of: Source, error: YamlError },
    #[error(
        "the merged settings do not read back as they were written; this is a fault of the operator: please report it"
    )]
    RoundTrip,
}

/// SHA-256 of a text, in hex.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
