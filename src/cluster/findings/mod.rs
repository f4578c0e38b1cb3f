//! What PreFlight says about the surroundings of targets and workers: who else manages them, what would keep pods from
//! ending or from being told apart, and whether the clocks agree. Each finding names the object and the fix. Read-only.

mod clock;
mod keda;
mod managed;
mod pods;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};

use super::{
    adopt::{Adopted, AdoptedWorkload},
    client::bounded,
    error::{ClusterError, Kind, cut},
    workload::selector_text,
};
use crate::{
    api::{
        MemoriaRelease,
        release::{CheckResult, Verdict, WorkerKind},
    },
    upgrade::seen::Switch,
};

/// Longest message of a finding, in bytes: a snippet to paste fits.
const MAX_MESSAGE: usize = 2048;

/// All findings about what a release names. What could not be asked is Inconclusive, not an error of the run.
pub async fn of(
    client: &Client,
    ns: &str,
    release: &MemoriaRelease,
    adopted: &Adopted,
) -> Result<Vec<CheckResult>, ClusterError> {
    let all = workloads(adopted);
    let lists = try_join_all(all.iter().filter(|w| is_selected(w)).map(|w| selected(client, ns, w)));
    let (lists, scaled, clock) = futures::try_join!(lists, keda::of(client, ns, &all), clock::of(client))?;
    let mut findings = managed::of(ns, &all, |workload| container(adopted, workload));
    let selected = all.iter().filter(|w| is_selected(w)).zip(lists);
    findings.extend(selected.filter_map(|(workload, found)| pods::foreign(workload, &found)));
    findings.extend(all.iter().filter_map(|workload| pods::slow_to_end(workload, &release.spec.timeouts)));
    findings.extend(all.iter().filter_map(|workload| coming_back(workload)));
    findings.extend(scaled);
    findings.push(clock);
    Ok(findings)
}

/// Targets and workers, each once.
fn workloads(adopted: &Adopted) -> Vec<&AdoptedWorkload> {
    let mut all: Vec<&AdoptedWorkload> = adopted.targets.iter().map(|target| &target.workload).collect();
    for worker in &adopted.workers {
        if all.iter().all(|known| known.workload != worker.workload) {
            all.push(worker);
        }
    }
    all
}

/// The container that the operator sets the image of, of a workload.
fn container<'a>(adopted: &'a Adopted, workload: &AdoptedWorkload) -> Option<&'a str> {
    let target = adopted.targets.iter().find(|target| target.workload.workload == workload.workload)?;
    Some(target.container.as_str())
}

fn is_selected(workload: &AdoptedWorkload) -> bool {
    workload.seen.switch == Switch::Replicas
}

/// All pods that a workload's selector finds, whoever made them.
async fn selected(client: &Client, ns: &str, workload: &AdoptedWorkload) -> Result<Vec<Pod>, ClusterError> {
    let Some(selector) = selector_text(&workload.selector) else { return Ok(Vec::new()) };
    let api: Api<Pod> = Api::namespaced(client.clone(), ns);
    let found = ListParams::default().labels(&selector);
    Ok(bounded("list the pods of", &workload.workload, api.list(&found)).await?.items)
}

/// What a person should know about how a kind comes back.
fn coming_back(workload: &AdoptedWorkload) -> Option<CheckResult> {
    let name = &workload.workload;
    let message = match (name.kind, &workload.seen.switch) {
        (WorkerKind::CronJob, Switch::Suspend { suspended: false, .. }) => format!(
            "{name} is suspended for the upgrade; a run that falls into it is missed, and is made up for when {name} comes \
             back unless spec.startingDeadlineSeconds forbids it; Jobs of it that run are waited for up to \
             spec.timeouts.quiesce"
        ),
        (WorkerKind::Job, Switch::Suspend { finished: true, .. }) => format!("{name} has finished: nothing to stop"),
        (WorkerKind::Job, Switch::Suspend { suspended: false, .. }) => format!(
            "{name} is suspended for the upgrade: its pods end, and start anew afterwards; spec.activeDeadlineSeconds then \
             begins again, and ended pods may count against spec.backoffLimit: leave room there"
        ),
        _ => return None,
    };
    Some(passed(&format!("resume-{}-{}", name.kind.resource(), name.name), message))
}

fn passed(name: &str, message: String) -> CheckResult {
    CheckResult { name: name.to_owned(), result: Verdict::Passed, message: cut(&message, MAX_MESSAGE) }
}

fn failed(name: &str, message: String) -> CheckResult {
    CheckResult { name: name.to_owned(), result: Verdict::Failed, message: cut(&message, MAX_MESSAGE) }
}

/// No right to ask is an answer that the finding must tell, not an error.
fn is_denied(error: &ClusterError) -> bool {
    error.kind == Kind::Refused
}
