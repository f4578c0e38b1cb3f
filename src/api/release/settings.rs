//! `spec.config`: which of the installation's ConfigMaps hold Memoria's settings.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::KeyRef;

/// How Memoria's `config.yaml` follows the releases: the new image's defaults with this installation's overrides on top.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = (
    // Field by field: to CEL the two references are of different types.
    "!has(self.overrides) || self.overrides.configMapKeyRef.name != self.output.configMapKeyRef.name || self.overrides.configMapKeyRef.key != self.output.configMapKeyRef.key",
    "output is overwritten; use another key than overrides"
))]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The key that Memoria's pods read as `config.yaml`. The upgrade writes it before the new version starts, keeps what
    /// was there in an immutable ConfigMap, and a rollback puts that back. Its settings under `database` stay as they are.
    pub output: ConfigSource,
    /// What this installation sets differently from the defaults, and nothing else: mappings are merged key by key, lists
    /// and values replace the default. Only read. Default: nothing is set differently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<ConfigSource>,
    /// The file of default settings in the Server's images; a relative path begins in the container's working directory.
    /// Default: `config.example.yaml` in the working directory, then in `/app` and `/opt/memoria`.
    /// Example: `/srv/memoria/config.example.yaml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub baseline_path: Option<String>,
}

/// A place for settings.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigSource {
    /// The ConfigMap and its key.
    pub config_map_key_ref: KeyRef,
}
