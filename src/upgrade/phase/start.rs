//! Start: for each target a candidate pod that no Service selects; once it is ready, the target comes back to its count.
//! The Server goes first, because the others may need it to become ready. A target that is also a worker has no
//! candidate: it takes its work from a queue, which no missing label would keep from it; it comes back with the workers.
//! Before the first target comes back, a baseline of every row is taken, by which later writes can be told apart.

use std::collections::BTreeMap;

use super::{
    Context, Done, Phase, Step, chain,
    import_snapshot::{BASELINE, CLIENTS_MAY_WRITE},
    intruder::images,
    pod_failure, take, to_prior,
};
use crate::{
    api::{
        release::{Role, Stage},
        upgrade::{Category, PlannedTarget},
    },
    job::protocol::{CheckFacts, Facts, JobInput, JobReport},
    upgrade::{Action, seen::JobState},
};

pub const PHASE: Phase = Phase {
    name: "Start",
    // The candidates one after the other, the checks of the Server's, then the rollouts.
    limit: |plan| {
        let parts = 1 + plan.targets.len() as u64;
        let checks = plan.candidate_seconds.unsigned_abs();
        Some(crate::api::GoDuration::from_secs(plan.timeouts.rollout.as_secs() * parts + checks))
    },
    step,
    uninterruptible: false,
};

/// How often a candidate may die before it is called broken.
const MAX_RESTARTS: i32 = 2;

fn step(cx: &Context<'_>) -> Step {
    let mut order: Vec<&PlannedTarget> = cx.plan.targets.iter().filter(|t| t.replicas > 0 && !t.worker).collect();
    order.sort_by_key(|t| t.role != Role::Server);
    if !cx.record.done.contains_key(CLIENTS_MAY_WRITE) {
        // What is written before the baseline would count as the upgrade's own.
        chain!(cx.breach());
    }
    chain!(images(cx, |target| &target.to_image));
    for target in order {
        chain!(candidate(cx, target));
        chain!(baseline(cx));
        chain!(to_prior(&take!(cx.with_scalers(target))));
    }
    // Also where workers alone come back after this.
    chain!(baseline(cx));
    // What had no replicas, but is scaled by something that was paused.
    chain!(to_prior(&take!(cx.servers())));
    let message = "every candidate was ready, and every server is back at its count";
    Step::Done(Box::new(Done { message: message.to_owned(), facts: checked(cx) }))
}

/// Whether this target's candidate is asked before it makes way.
fn asks(cx: &Context<'_>, target: &PlannedTarget) -> bool {
    target.role == Role::Server && cx.checks_of(Stage::BeforeIngestion).next().is_some()
}

/// What the candidate's checks said.
fn checked(cx: &Context<'_>) -> Option<Facts> {
    let reports = cx.checks_of(Stage::BeforeIngestion).filter_map(|job| match &cx.seen.jobs.get(&job.step)?.state {
        JobState::Finished { report: Some(JobReport { facts: Some(Facts::Check(facts)), .. }), .. } => Some(facts),
        _ => None,
    });
    let checks: Vec<_> = reports.flat_map(|facts| facts.checks.iter().cloned()).collect();
    (!checks.is_empty()).then(|| Facts::Check(CheckFacts { checks, baselines: BTreeMap::new() }))
}

/// Ends what was asked of an earlier candidate.
fn end_checks(cx: &Context<'_>) -> Vec<Action> {
    let jobs = cx.checks_of(Stage::BeforeIngestion);
    jobs.filter_map(|job| {
        let uid = cx.seen.jobs.get(&job.step)?.uid.clone();
        Some(Action::DeleteJob { step: job.step.clone(), uid })
    })
    .collect()
}

/// Takes the baseline, once, after the Server's candidate did what a starting server does to the data; and remembers that
/// clients may write before the first of them can.
fn baseline(cx: &Context<'_>) -> Result<(), Step> {
    let remember = |key: &str, value: String| Err(Step::Remember { key: key.to_owned(), value });
    let planned = cx.plan.jobs.iter().any(|job| job.step == BASELINE);
    if planned && !cx.record.done.contains_key(BASELINE) {
        let report = cx.job(BASELINE, JobInput::default())?;
        return match &report.facts {
            Some(Facts::Baseline(facts)) => remember(BASELINE, facts.sha256.clone()),
            _ => {
                Err(Step::fail(Category::Bug, "NoBaselineFacts", "the baseline job succeeded without naming its file"))
            }
        };
    }
    if !cx.record.done.contains_key(CLIENTS_MAY_WRITE) {
        return remember(CLIENTS_MAY_WRITE, cx.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    Ok(())
}

/// Brings the candidate of one target from absent to proved and gone.
fn candidate(cx: &Context<'_>, target: &PlannedTarget) -> Result<(), Step> {
    let key = format!("candidate-{}", target.name);
    let proved = cx.record.done.contains_key(&key);
    let pod = cx.seen.candidates.get(&target.name);
    match (proved, pod) {
        (true, None) => Ok(()),
        // Two pods that only show the data may overlap.
        (true, Some(pod)) if pod.deleting && target.role == Role::Dashboard => Ok(()),
        (true, Some(pod)) if pod.deleting => {
            Err(Step::wait(format!("the candidate of {} ends before its target starts", target.name)))
        }
        (true, Some(pod)) => Err(Step::act(
            vec![Action::DeleteCandidate { target: target.name.clone(), uid: pod.uid.clone() }],
            format!("the candidate of {} is ready; it makes way for its target", target.name),
        )),
        // What was asked of an earlier candidate says nothing of the next one.
        (false, None) if asks(cx, target) && !end_checks(cx).is_empty() => {
            let message = format!("the candidate of {} is gone; its checks begin anew", target.name);
            Err(Step::act(end_checks(cx), message))
        }
        (false, None) => Err(Step::act(
            vec![Action::CreateCandidate { target: target.name.clone() }],
            format!("starting one candidate of {}", target.name),
        )),
        (false, Some(pod)) if pod.gated && !pod.deleting => Err(Step::act(
            vec![Action::AdmitCandidate { target: target.name.clone(), uid: pod.uid.clone() }],
            format!("starting one candidate of {}", target.name),
        )),
        (false, Some(pod)) if pod.ready && asks(cx, target) => {
            let Some(address) = pod.ip else {
                return Err(Step::wait(format!("candidate {} gets its address", pod.name)));
            };
            let input = JobInput { candidate_address: Some(address), ..JobInput::default() };
            let message = cx.checks(Stage::BeforeIngestion, &input)?.map(|done| done.message).unwrap_or_default();
            Err(Step::Remember { key, value: format!("ready: {}; {message}", pod.name) })
        }
        (false, Some(pod)) if pod.ready => Err(Step::Remember { key, value: format!("ready: {}", pod.name) }),
        (false, Some(pod)) => {
            let what = format!("candidate {}", pod.name);
            if let Some(trouble) = pod.trouble.as_ref().filter(|trouble| trouble.is_lasting().is_some()) {
                return Err(pod_failure(&what, trouble));
            }
            if pod.restarts >= MAX_RESTARTS || pod.phase == "Failed" || pod.phase == "Succeeded" {
                let why = pod.trouble.as_ref().map(|t| format!(" ({})", t.message)).unwrap_or_default();
                return Err(Step::fail(
                    Category::Candidate,
                    "CandidateCrashed",
                    // The candidate goes with what comes next, and its output with it.
                    format!(
                        "{what} ended {} times{why}; what it printed is where the cluster keeps the output of pods that \
                         are gone",
                        pod.restarts.max(1)
                    ),
                ));
            }
            Err(Step::wait(format!("{what} becomes ready")))
        }
    }
}
