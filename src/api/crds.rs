//! The CustomResourceDefinitions as YAML, the way `crds/` and the chart carry them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{MemoriaDecision, MemoriaRelease, MemoriaUpgrade};

/// All kinds, in the order of their names.
pub fn all() -> [CustomResourceDefinition; 3] {
    [MemoriaDecision::crd(), MemoriaRelease::crd(), MemoriaUpgrade::crd()]
}

/// The name of a definition's file: its plural.
pub fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}.yaml", crd.spec.names.plural)
}

/// One document with a line on top that says where it comes from.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    let body = serde_saphyr::to_string(crd)?;
    Ok(format!("# Written by `memoria-operator crds --out crds`; change src/api instead.\n{body}"))
}
