//! When there is nothing to do, the operator writes nothing but its Lease. It is asked once for all namespaces that the
//! other tests left behind: settled well, halted, resumed, planned.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use memoria_operator::api::MemoriaRelease;
use serde_json::json;

use crate::{
    Outcome,
    audit::Mark,
    conditions,
    environment::{self, NAMESPACE_LABEL},
    site::{condition, ready},
};

/// How long it must be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the last of its work may take to be done before that.
const SETTLE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_settled_operator_writes_nothing_but_its_lease() -> Outcome {
    let client = environment::client().await?;
    let releases: Api<MemoriaRelease> = Api::all(client.clone());
    let namespaces: Api<Namespace> = Api::all(client);
    let end = Instant::now() + SETTLE;
    loop {
        let all = releases.list(&ListParams::default()).await?.items;
        ensure!(all.len() >= 4, "only {} releases are left of the other tests", all.len());
        let busy: Vec<_> = all.iter().filter(|r| !ready(r) && condition(r, "Stalled").is_none()).collect();
        for release in &all {
            conditions::lint(release).with_context(|| release.namespace().unwrap_or_default())?;
        }
        if busy.is_empty() {
            println!("{} releases are settled", all.len());
            break;
        }
        ensure!(Instant::now() < end, "still busy: {:?}", busy.iter().map(|r| r.namespace()).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mark = Mark::now()?;
    tokio::time::sleep(SILENCE).await;
    // A write of our own shows that the log would have had the operator's.
    let own = namespaces.list(&ListParams::default().labels(NAMESPACE_LABEL)).await?.items;
    let own = own.first().context("a namespace of these tests")?.name_any();
    let touch = json!({"metadata": {"annotations": {"memoria-operator-test/silence": "over"}}});
    namespaces.patch(&own, &PatchParams::default(), &Patch::Merge(touch)).await?;
    let writes = mark.since()?;
    ensure!(
        writes.iter().any(|write| write.of("namespaces") && write.object_ref.as_ref().is_some_and(|o| o.name == own)),
        "the audit log does not even have this test's write"
    );
    let (leases, others): (Vec<_>, Vec<_>) =
        writes.iter().filter(|write| write.is_the_operators()).partition(|write| write.of("leases"));
    ensure!(!leases.is_empty(), "the operator did not even renew its Lease: does it run?");
    ensure!(others.is_empty(), "{} writes within {} s: {others:#?}", others.len(), SILENCE.as_secs());
    Ok(())
}
