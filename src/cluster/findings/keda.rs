//! ScaledObjects that would start in mid-upgrade what an attempt stopped, because the release does not name them.

use kube::{Api, Client, ResourceExt, api::ListParams};

use super::{failed, is_denied};
use crate::{
    api::release::{CheckResult, Verdict, WorkerKind, WorkerRef},
    cluster::{
        adopt::AdoptedWorkload,
        client::bounded,
        error::{ClusterError, Kind},
        worker::{scaled_objects, scales},
    },
};

pub(super) async fn of(client: &Client, ns: &str, all: &[&AdoptedWorkload]) -> Result<Vec<CheckResult>, ClusterError> {
    let api: Api<kube::api::DynamicObject> = Api::namespaced_with(client.clone(), ns, &scaled_objects());
    let list = match bounded("list the ScaledObjects of", ns, api.list(&ListParams::default())).await {
        Ok(list) => list,
        // KEDA is not installed.
        Err(error) if error.kind == Kind::Missing => return Ok(Vec::new()),
        Err(error) if is_denied(&error) => {
            return Ok(vec![CheckResult {
                name: "scaled-objects".to_owned(),
                result: Verdict::Inconclusive,
                message: error.to_string(),
            }]);
        }
        Err(error) => return Err(error),
    };
    let named = list.items.iter().filter_map(|object| unnamed(&object.name_any(), scales(&object.data).as_ref(), all));
    Ok(named.collect())
}

fn unnamed(
    name: &str,
    scaled: Option<&crate::api::release::WorkloadRef>,
    all: &[&AdoptedWorkload],
) -> Option<CheckResult> {
    let scaled = scaled?;
    let own = WorkerRef { kind: WorkerKind::ScaledObject, name: name.to_owned() };
    if !all.iter().any(|w| w.workload.is(scaled)) || all.iter().any(|w| w.workload == own) {
        return None;
    }
    Some(failed(
        &format!("scaledobject-{name}"),
        format!(
            "{own} scales {scaled} and would start it in mid-upgrade; add {{kind: ScaledObject, name: {name}}} to \
             spec.ingestion.workers"
        ),
    ))
}
