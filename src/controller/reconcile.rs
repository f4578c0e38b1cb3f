//! One look at one release: which of the two halves, pre-flight or attempt, has the next move.

use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
    runtime::controller::Action as Requeue,
};

use super::{attempt, dry_runs::DryRuns, metrics::Metrics, preflight, retries::Retries, status};
use crate::{
    api::{
        MemoriaRelease, MemoriaReleaseStatus, MemoriaUpgrade,
        conditions::reason,
        marks,
        upgrade::{MACHINE_VERSION, Outcome},
    },
    cluster::{
        ClusterError, client::bounded, events::Events, lease::Leadership, observe::orders, watches::OpenAttempts,
    },
    upgrade::{
        preflight::{Answer, OperatorImages, run_name},
        seen::Orders,
    },
};

/// What every reconcile needs.
pub struct Context {
    pub client: Client,
    pub events: Events,
    pub images: OperatorImages,
    pub open: OpenAttempts,
    pub retries: Retries,
    pub dry_runs: DryRuns,
    pub metrics: Metrics,
    /// Asked before every write: another instance may act once this one no longer leads.
    pub leadership: Leadership,
}

/// A release and its attempts, from live reads.
pub struct Subject {
    pub namespace: String,
    pub release: MemoriaRelease,
    /// By number, oldest first.
    pub attempts: Vec<MemoriaUpgrade>,
}

/// Looks at a release once. The answer says when to look again although nothing changed.
///
/// # Errors
/// [`ClusterError`] when the cluster could not be read or written; the caller tries again later.
pub async fn reconcile(context: &Context, namespace: &str, name: &str) -> Result<Requeue, ClusterError> {
    if !context.leadership.is_leading() {
        return Ok(Requeue::await_change());
    }
    let Some(mut subject) = read(&context.client, namespace, name).await? else {
        context.open.set(namespace, name, false);
        return Ok(Requeue::await_change());
    };
    let latest = subject.attempts.last().cloned();
    let outcome = latest.as_ref().and_then(|upgrade| upgrade.status.as_ref()).and_then(|journal| journal.outcome);
    if let Some(newer) = latest.as_ref().filter(|upgrade| upgrade.spec.machine_version > MACHINE_VERSION) {
        return needs_newer(context, &subject, newer).await;
    }
    match (latest, outcome) {
        (Some(upgrade), None) => {
            context.open.set(namespace, name, true);
            attempt::drive(context, &subject, upgrade).await
        }
        (Some(upgrade), Some(Outcome::Halted | Outcome::RollbackFailed)) => {
            context.open.set(namespace, name, false);
            attempt::drive(context, &subject, upgrade).await
        }
        (Some(upgrade), Some(ended)) => {
            let ordered = ordered(context, &subject, &upgrade).await?;
            if ordered.rollback.is_some() && matches!(ended, Outcome::Succeeded | Outcome::Unverified) {
                subject.release = attempt::hold(&context.client, &subject.release).await?;
                context.open.set(namespace, name, true);
                return attempt::drive(context, &subject, upgrade).await;
            }
            context.open.set(namespace, name, false);
            if ordered.retry.is_some() {
                // There is nothing to be tried again, which is the answer.
                return attempt::drive(context, &subject, upgrade).await;
            }
            attempt::finish(context, &mut subject, &upgrade, ended).await?;
            if subject.release.metadata.deletion_timestamp.is_some() {
                return Ok(Requeue::await_change());
            }
            if ended != Outcome::Succeeded && upgrade.spec.run == run_name(&subject.release) {
                // The same request would end the same way: a person changes the spec or asks again.
                let next = status::of_attempt(&subject.release, &upgrade, Timestamp::now());
                write_status(context, &subject.release, next).await?;
                return Ok(Requeue::await_change());
            }
            if recorded(&subject.release, &upgrade) {
                preflight::drive(context, subject).await
            } else {
                let next = status::of_attempt(&subject.release, &upgrade, Timestamp::now());
                write_status(context, &subject.release, next).await?;
                Ok(Requeue::requeue(std::time::Duration::ZERO))
            }
        }
        (None, _) => {
            context.open.set(namespace, name, false);
            if subject.release.metadata.deletion_timestamp.is_some() {
                attempt::let_go(&context.client, &subject.release).await?;
                return Ok(Requeue::await_change());
            }
            preflight::drive(context, subject).await
        }
    }
}

/// What people ordered about the ended attempt. A release that goes away takes no more orders.
async fn ordered(context: &Context, subject: &Subject, upgrade: &MemoriaUpgrade) -> Result<Orders, ClusterError> {
    if subject.release.metadata.deletion_timestamp.is_some() {
        return Ok(Orders::default());
    }
    orders(&context.client, &subject.namespace, &subject.release, upgrade).await
}

/// Whether the release's status already tells how this attempt ended: only then may its images be compared with it.
fn recorded(release: &MemoriaRelease, upgrade: &MemoriaUpgrade) -> bool {
    let summary = release.status.as_ref().and_then(|status| status.attempt.as_ref());
    let outcome = upgrade.status.as_ref().and_then(|journal| journal.outcome);
    summary.is_some_and(|summary| summary.id == upgrade.name_any() && summary.outcome == outcome)
}

async fn needs_newer(context: &Context, subject: &Subject, upgrade: &MemoriaUpgrade) -> Result<Requeue, ClusterError> {
    let message = format!(
        "attempt {} has plan version {}, this operator knows up to {MACHINE_VERSION}: run the operator version {} or newer",
        upgrade.name_any(),
        upgrade.spec.machine_version,
        upgrade.spec.operator_version
    );
    let answer = Answer::Refused { reason: reason::NEEDS_NEWER_OPERATOR, message, current: None };
    let next = status::of_preflight(&subject.release, &answer, None, Timestamp::now());
    write_status(context, &subject.release, next).await?;
    Ok(Requeue::await_change())
}

async fn read(client: &Client, namespace: &str, name: &str) -> Result<Option<Subject>, ClusterError> {
    let releases: Api<MemoriaRelease> = Api::namespaced(client.clone(), namespace);
    let upgrades: Api<MemoriaUpgrade> = Api::namespaced(client.clone(), namespace);
    let mine = ListParams::default().labels(&format!("{}={name}", marks::RELEASE_LABEL));
    let (release, attempts) = futures::try_join!(
        bounded("read the release", name, releases.get_opt(name)),
        bounded("list the attempts of", name, upgrades.list(&mine)),
    )?;
    let Some(release) = release else { return Ok(None) };
    let mut attempts = attempts.items;
    let uid = release.uid().unwrap_or_default();
    attempts.retain(|upgrade| upgrade.spec.release_uid == uid);
    attempts.sort_by_key(|upgrade| status::number(&upgrade.name_any()));
    Ok(Some(Subject { namespace: namespace.to_owned(), release, attempts }))
}

/// Stores the status if it differs; the release must be the one that was read. Answers whether it was stored.
pub async fn write_status(
    context: &Context,
    release: &MemoriaRelease,
    next: MemoriaReleaseStatus,
) -> Result<bool, ClusterError> {
    if release.status.as_ref() == Some(&next) {
        return Ok(false);
    }
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let api: Api<MemoriaRelease> = Api::namespaced(context.client.clone(), &namespace);
    let mut release = release.clone();
    release.metadata.managed_fields = None;
    context.metrics.release(&namespace, &name, &next);
    release.status = Some(next);
    let params = PostParams { field_manager: Some(marks::OWNER_MANAGER.to_owned()), ..PostParams::default() };
    bounded("store the status of release", &name, api.replace_status(&name, &params, &release)).await.map(|_| true)
}
