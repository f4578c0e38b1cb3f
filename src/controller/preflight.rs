//! Drives pre-flight: adopt, look at the run's Jobs, ask what is next, create what is missing; and opens the attempt
//! once the plan stands.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
    runtime::controller::Action as Requeue,
};
use tracing::info;

use super::{
    attempt,
    reconcile::{Context, Subject, write_status},
    status,
};
use crate::{
    api::{
        MemoriaRelease, MemoriaUpgrade, MemoriaUpgradeSpec, marks,
        release::{CheckResult, Mode, Verdict},
        upgrade::Outcome,
    },
    cluster::{
        self, ClusterError,
        client::bounded,
        events::Notice,
        observe::acknowledged,
        preflight::{create_run_job, delete_run_jobs, dry_run, ensure_claim, first_refused},
    },
    upgrade::preflight::{Answer, Question, preflight, run_name, running},
};

/// Whether an attempt may still be taken back, or on, by what it stored.
fn needs_snapshot(attempt: &MemoriaUpgrade) -> bool {
    let outcome = attempt.status.as_ref().and_then(|journal| journal.outcome);
    matches!(outcome, None | Some(Outcome::Halted | Outcome::Unverified | Outcome::RollbackFailed))
}

/// One round of pre-flight.
pub async fn drive(context: &Context, mut subject: Subject) -> Result<Requeue, ClusterError> {
    let (client, ns, release) = (&context.client, subject.namespace.as_str(), &subject.release);
    let run = run_name(release);
    let name = release.name_any();
    let (adopted, jobs, acknowledged) = futures::try_join!(
        cluster::adopt(client, ns, release),
        cluster::observe_run(client, ns, &run),
        acknowledged(client, ns, &name),
    )?;
    let attempt = next_attempt(&subject);
    let known: Vec<String> = subject.attempts.iter().map(ResourceExt::name_any).collect();
    let needed: Vec<String> =
        subject.attempts.iter().filter(|attempt| needs_snapshot(attempt)).map(ResourceExt::name_any).collect();
    let ask = |dry_run: Option<&[CheckResult]>| {
        preflight(&Question {
            release,
            adopted: &adopted,
            jobs: &jobs,
            images: &context.images,
            attempt: &attempt,
            known_attempts: &known,
            needed_attempts: &needed,
            acknowledged: &acknowledged,
            dry_run,
            now: Timestamp::now(),
        })
    };
    let mut answer = ask(None);
    let began = matches!(answer, Answer::Settled(_) | Answer::Refused { .. });
    if !began && ended(release, &run) {
        // This run has its result; the same question is not asked twice.
        return Ok(Requeue::await_change());
    }
    if !began && release.spec.suspend {
        let next = status::suspended(release, Timestamp::now());
        write_status(context, release, next).await?;
        return Ok(Requeue::await_change());
    }
    if let Answer::DryRun { plan, .. } = &answer {
        let results = match context.dry_runs.of(plan) {
            Some(results) => results,
            None => {
                let results = dry_run(client, ns, release, &attempt, plan).await;
                context.dry_runs.keep(plan, &results);
                results
            }
        };
        answer = ask(Some(&results));
    }
    if let Answer::Checking { jobs: missing, .. } = &answer
        && let Some(refused) = first_refused(client, ns, missing).await
    {
        answer = answer.not_admitted(refused, release, Timestamp::now());
    }
    // Events are for people: nothing waits for them.
    let (carried, ()) =
        futures::join!(carry_out(context, &subject, &run, &attempt, &answer), tell(context, &subject, &answer));
    if let Some((held, opened)) = carried? {
        context.open.set(ns, &name, true);
        subject.release = held;
        return attempt::drive(context, &subject, opened).await;
    }
    let next = status::of_preflight(release, &answer, running(release, &adopted), Timestamp::now());
    write_status(context, release, next).await?;
    Ok(match &answer {
        // The limit must be noticed although nothing changes.
        Answer::Checking { status, .. } => {
            let limit = release.spec.timeouts.pre_flight;
            let until = status.started_at.0.checked_add(limit.signed()).unwrap_or_default();
            let left = until.duration_since(Timestamp::now());
            Requeue::requeue(
                std::time::Duration::try_from(left).unwrap_or_default() + std::time::Duration::from_secs(1),
            )
        }
        _ => Requeue::await_change(),
    })
}

/// Does what the answer asks for; the release as it is then and the attempt, where one was opened.
async fn carry_out(
    context: &Context,
    subject: &Subject,
    run: &str,
    attempt: &str,
    answer: &Answer,
) -> Result<Option<(MemoriaRelease, MemoriaUpgrade)>, ClusterError> {
    let (client, ns, release) = (&context.client, subject.namespace.as_str(), &subject.release);
    match answer {
        Answer::Checking { jobs: missing, claim, .. } => {
            if let Some(claim) = claim {
                ensure_claim(client, ns, &release.name_any(), &claim.name, claim.bytes).await?;
            }
            try_join_all(missing.iter().map(|job| create_run_job(client, ns, job))).await?;
        }
        Answer::Planned { plan, .. } if release.spec.mode == Mode::Apply => {
            return open(client, subject, attempt, plan).await.map(Some);
        }
        // A plan leaves nothing behind.
        Answer::Planned { .. } | Answer::NotPassed { .. } if release.spec.mode == Mode::Plan => {
            delete_run_jobs(client, ns, run).await?;
        }
        _ => {}
    }
    Ok(None)
}

/// Whether this run's result already stands in the status.
fn ended(release: &MemoriaRelease, run: &str) -> bool {
    let known = release.status.as_ref().and_then(|status| status.pre_flight.as_ref());
    known.is_some_and(|known| {
        let planned_only = known.plan.is_none() || release.spec.mode == Mode::Plan;
        known.run == run && known.finished_at.is_some() && planned_only
    })
}

/// Events at transitions only.
async fn tell(context: &Context, subject: &Subject, answer: &Answer) {
    let known = subject.release.status.as_ref().and_then(|status| status.pre_flight.as_ref());
    let (warning, reason, message) = match answer {
        Answer::Checking { status, .. } if known.is_none_or(|known| known.run != status.run) => {
            (false, "PreFlightStarted", format!("pre-flight run {} begins", status.run))
        }
        Answer::Planned { status, plan } => {
            let passed = status.checks.iter().filter(|check| check.result == Verdict::Passed).count();
            let rehearsed = plan.estimates.map(|estimates| format!("; rehearsed: {estimates}"));
            let warnings = status.plan.iter().flat_map(|plan| &plan.warnings).map(|warning| format!("; {warning}"));
            let text = format!(
                "{} -> {}: plan {}, {} targets, {} migrations, {passed} checks passed{}",
                plan.from,
                plan.to,
                plan.plan_hash.get(..12).unwrap_or_default(),
                plan.targets.len(),
                plan.migrations.len(),
                rehearsed.into_iter().chain(warnings).collect::<String>()
            );
            (false, "PlanReady", text)
        }
        Answer::NotPassed { reason, message, .. } => (true, *reason, message.clone()),
        _ => return,
    };
    let notice = Notice { warning, reason: reason.to_owned(), action: "PreFlight".to_owned(), message };
    info!(reason = notice.reason, message = notice.message, "transition");
    context.events.publish(&subject.release, None, &notice).await;
}

/// The next attempt's name: numbers are never used twice, even when an old attempt is gone.
fn next_attempt(subject: &Subject) -> String {
    let last = subject.attempts.last().map_or(0, |upgrade| status::number(&upgrade.name_any()));
    let counted = subject.release.status.as_ref().map_or(0, |status| status.attempts);
    format!("{}-{}", subject.release.name_any(), last.max(counted) + 1)
}

/// Opens the attempt: the finalizer first, so that from now on a deletion waits.
async fn open(
    client: &Client,
    subject: &Subject,
    attempt: &str,
    plan: &MemoriaUpgradeSpec,
) -> Result<(MemoriaRelease, MemoriaUpgrade), ClusterError> {
    let held = attempt::hold(client, &subject.release).await?;
    let labels = BTreeMap::from([(marks::RELEASE_LABEL.to_owned(), subject.release.name_any())]);
    let upgrade = MemoriaUpgrade {
        metadata: ObjectMeta {
            name: Some(attempt.to_owned()),
            namespace: Some(subject.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: plan.clone(),
        status: None,
    };
    let api: Api<MemoriaUpgrade> = Api::namespaced(client.clone(), &subject.namespace);
    let params = PostParams { field_manager: Some(marks::OWNER_MANAGER.to_owned()), ..PostParams::default() };
    let opened = bounded("open the attempt", attempt, api.create(&params, &upgrade)).await?;
    Ok((held, opened))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::world::World;

    #[test]
    fn an_attempt_that_may_be_taken_back_or_on_needs_its_snapshot() {
        let ended = |outcome| {
            let mut attempt = MemoriaUpgrade::new("memoria-1", World::new().plan);
            attempt.status = Some(crate::api::MemoriaUpgradeStatus { outcome, ..Default::default() });
            needs_snapshot(&attempt)
        };
        for outcome in [None, Some(Outcome::Halted), Some(Outcome::Unverified), Some(Outcome::RollbackFailed)] {
            assert!(ended(outcome), "{outcome:?}");
        }
        for outcome in [Outcome::Succeeded, Outcome::Resumed, Outcome::Aborted, Outcome::RolledBack] {
            assert!(!ended(Some(outcome)), "{outcome:?}");
        }
    }
}
