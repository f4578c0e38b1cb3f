//! Memoria's settings in plan and journal: names, hashes and key paths, never a value.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::release::KeyRef;

/// How many key paths each list of a plan or journal names.
pub const MAX_KEYS: usize = 64;
/// How many characters of a key path are named.
const MAX_PATH: usize = 253;

/// The settings that were merged, as they will be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedConfig {
    /// The key that is rewritten.
    pub output: KeyRef,
    /// The ConfigMap's UID: another object of the same name is not touched.
    pub output_uid: String,
    /// The key with what this installation sets differently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<KeyRef>,
    /// The new image's file of default settings: zlib, then base64.
    #[schemars(length(max = 4096))]
    pub baseline: String,
    /// SHA-256 of the output as it was, in hex.
    pub prior_sha256: String,
    /// SHA-256 of the overrides, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides_sha256: Option<String>,
    /// SHA-256 of the merged settings, in hex.
    pub new_sha256: String,
    /// The immutable ConfigMap that will keep both, under `prior` and `new`.
    pub kept_in: String,
    /// What the merge found.
    pub report: ConfigReport,
}

/// Which settings a merge changed, by key path. Each list names at most 64; the counts are whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigReport {
    /// Defaults that are new or changed. Example: `agents.max_parallel`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub adopted: Vec<String>,
    /// How many.
    #[serde(default)]
    pub adopted_count: i64,
    /// Overrides that differ from the new default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub kept: Vec<String>,
    /// How many.
    #[serde(default)]
    pub kept_count: i64,
    /// Overrides that the new defaults have no key for; they stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub obsolete: Vec<String>,
    /// How many.
    #[serde(default)]
    pub obsolete_count: i64,
}

impl ConfigReport {
    /// Lists cut to what a plan may name, with whole counts.
    pub fn new(adopted: Vec<String>, kept: Vec<String>, obsolete: Vec<String>) -> Self {
        let count = |list: &Vec<String>| i64::try_from(list.len()).unwrap_or(i64::MAX);
        let (adopted_count, kept_count, obsolete_count) = (count(&adopted), count(&kept), count(&obsolete));
        let cut = |mut list: Vec<String>| {
            list.truncate(MAX_KEYS);
            list.into_iter().map(shortened).collect()
        };
        Self {
            adopted: cut(adopted),
            adopted_count,
            kept: cut(kept),
            kept_count,
            obsolete: cut(obsolete),
            obsolete_count,
        }
    }
}

fn shortened(path: String) -> String {
    match path.char_indices().nth(MAX_PATH) {
        Some((end, _)) => format!("{}…", &path[..end]),
        None => path,
    }
}

/// `3 defaults adopted, 2 overrides kept, 1 obsolete: memory.team_mode`.
impl std::fmt::Display for ConfigReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |count: i64, one: &str, more: &str| format!("{count} {}", if count == 1 { one } else { more });
        write!(
            f,
            "{} adopted, {} kept, {} obsolete",
            plural(self.adopted_count, "default", "defaults"),
            plural(self.kept_count, "override", "overrides"),
            self.obsolete_count
        )?;
        if !self.obsolete.is_empty() {
            let some: Vec<&str> = self.obsolete.iter().take(3).map(String::as_str).collect();
            let more = if self.obsolete_count > 3 { ", …" } else { "" };
            write!(f, ": {}{more}", some.join(", "))?;
        }
        Ok(())
    }
}

/// What became of Memoria's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigRecord {
    /// `Refreshed`, `Unchanged`, `Restored`, or `LeftAsFound` where somebody else had changed them.
    pub state: ConfigState,
    /// The immutable ConfigMap with what was there before (`prior`) and what was written (`new`); absent when nothing was
    /// written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_in: Option<String>,
    /// What the merge found.
    #[serde(flatten)]
    pub report: ConfigReport,
}

/// Which settings Memoria reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConfigState {
    /// The merged ones.
    Refreshed,
    /// The merge is what was there already.
    Unchanged,
    /// Those from before the attempt.
    Restored,
    /// Somebody else's: neither those from before nor those that the attempt wrote.
    LeftAsFound,
}
