//! Drives an open attempt: observe, decide, store the journal, act; and tidies up after a closed one.

use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::controller::Action as Requeue,
};
use serde_json::json;
use tracing::{Instrument as _, info, info_span, warn};

use super::{
    notices,
    reconcile::{Context, Subject, write_status},
    status,
};
use crate::{
    api::{MemoriaRelease, MemoriaUpgrade, MemoriaUpgradeStatus, marks, upgrade::Outcome},
    cluster::{self, ClusterError, Kind, client::bounded, events::Notice, preflight::delete_run_jobs},
    upgrade::{self, Action, Observed, seen::Refusal},
};

/// How many journals one reconcile stores at most before it lets other releases have their turn.
const MAX_ROUNDS: usize = 16;

/// How long the API server is left alone after it did not answer a write, or found the same write outdated twice.
const PAUSE: Duration = Duration::from_millis(500);

/// Carries an attempt as far as it goes without waiting.
pub async fn drive(context: &Context, subject: &Subject, mut upgrade: MemoriaUpgrade) -> Result<Requeue, ClusterError> {
    let phase = upgrade.status.as_ref().and_then(|journal| journal.phase.clone()).unwrap_or_default();
    let span = info_span!("attempt", attempt = upgrade.name_any(), namespace = subject.namespace, phase);
    async {
        let mut refusal = None;
        let mut done = Vec::new();
        for _ in 0..MAX_ROUNDS {
            let mut observed =
                cluster::observe(&context.client, &subject.namespace, &subject.release, &upgrade).await?;
            observed.refusal = refusal.take();
            let before = upgrade.status.clone().unwrap_or_default();
            let now = Timestamp::now();
            let name = upgrade.name_any();
            let decide =
                |seen: &Observed| upgrade::decide(&name, &subject.namespace, &upgrade.spec, &before, seen, now);
            let mut decision = decide(&observed);
            let strangers =
                cluster::strangers(&context.client, &subject.namespace, &upgrade, &decision.actions).await?;
            if !strangers.is_empty() {
                observed.jobs.extend(strangers);
                decision = decide(&observed);
            }
            // The observation took a while; only the leader may write.
            if !context.leadership.is_leading() {
                return Ok(Requeue::await_change());
            }
            let mut notices = Vec::new();
            if decision.journal != before {
                upgrade = store(&context.client, upgrade, decision.journal).await?;
                let after = upgrade.status.clone().unwrap_or_default();
                context.metrics.journal(&subject.namespace, &subject.release.name_any(), &before, &after);
                notices = notices::between(&before, &after);
            }
            // Events are for people: nothing waits for them.
            let told = tell(context, subject, &upgrade, &notices);
            let (acted, ()) = futures::join!(act(context, subject, &upgrade, &decision.actions), told);
            // What was just done is looked at right away; where that asks for the same once more, only a change helps.
            let mut again = !decision.actions.is_empty() && decision.actions != done;
            match acted {
                Acted::All => {}
                Acted::NotLeading => return Ok(Requeue::await_change()),
                // Such as a Job whose namesake still has to go.
                Acted::Outdated if decision.actions == done => return Ok(Requeue::requeue(PAUSE)),
                Acted::Outdated => again = true,
                Acted::Unreachable => return Ok(Requeue::requeue(PAUSE)),
                Acted::Refused(refused) => {
                    refusal = Some(refused);
                    again = true;
                }
            }
            again |= decision.wake.is_some_and(|wake| wake <= Timestamp::now());
            done = decision.actions;
            if !again || upgrade.status.as_ref().is_some_and(|journal| journal.outcome.is_some()) {
                return settle(context, subject, &upgrade, decision.wake).await;
            }
        }
        settle(context, subject, &upgrade, Some(Timestamp::now())).await
    }
    .instrument(span)
    .await
}

/// How far a decision's actions came.
enum Acted {
    All,
    NotLeading,
    /// What an action was decided on has changed.
    Outdated,
    Unreachable,
    Refused(Refusal),
}

async fn act(context: &Context, subject: &Subject, upgrade: &MemoriaUpgrade, actions: &[Action]) -> Acted {
    // One after the other, but what is apart goes at the same time.
    for together in actions.chunk_by(Action::goes_with) {
        if !context.leadership.is_leading() {
            return Acted::NotLeading;
        }
        let writes = together.iter().map(async |action| {
            let done = cluster::act(&context.client, &subject.namespace, &subject.release, upgrade, action).await;
            done.inspect(|()| info!(?action, "done"))
        });
        match join_all(writes).await.into_iter().find_map(Result::err) {
            None => {}
            Some(error) if together.iter().all(Action::only_counts) => {
                warn!(%error, "rows at risk are not counted now")
            }
            Some(error) if error.is_settled_by_observing_again() => {
                info!(%error, "observing again");
                return if error.kind == Kind::Stale { Acted::Outdated } else { Acted::Unreachable };
            }
            Some(error) => {
                let error = error.in_namespace(&subject.namespace);
                return Acted::Refused(Refusal {
                    category: error.category(),
                    reason: error.reason().to_owned(),
                    message: error.to_string(),
                });
            }
        }
    }
    Acted::All
}

async fn tell(context: &Context, subject: &Subject, upgrade: &MemoriaUpgrade, notices: &[Notice]) {
    for notice in notices {
        info!(reason = notice.reason, phase = notice.action, message = notice.message, "transition");
        context.events.publish(&subject.release, Some(upgrade), notice).await;
    }
}

/// Shows the attempt in the release's status, and says when to look again.
async fn settle(
    context: &Context,
    subject: &Subject,
    upgrade: &MemoriaUpgrade,
    wake: Option<Timestamp>,
) -> Result<Requeue, ClusterError> {
    let next = status::of_attempt(&subject.release, upgrade, Timestamp::now());
    let stored = write_status(context, &subject.release, next).await?;
    let closed = upgrade.status.as_ref().is_some_and(|journal| journal.outcome.is_some());
    Ok(match wake {
        // An attempt that has just ended is tidied up.
        _ if closed && stored => Requeue::requeue(Duration::ZERO),
        Some(wake) => {
            let left = wake.duration_since(Timestamp::now());
            Requeue::requeue(Duration::try_from(left).unwrap_or_default().max(Duration::from_millis(20)))
        }
        None => Requeue::await_change(),
    })
}

/// Stores the journal; another writer since the read is a conflict, never overwritten.
async fn store(
    client: &Client,
    mut upgrade: MemoriaUpgrade,
    journal: MemoriaUpgradeStatus,
) -> Result<MemoriaUpgrade, ClusterError> {
    let name = upgrade.name_any();
    let api: Api<MemoriaUpgrade> = Api::namespaced(client.clone(), &upgrade.namespace().unwrap_or_default());
    upgrade.status = Some(journal);
    upgrade.metadata.managed_fields = None;
    let params = PostParams { field_manager: Some(marks::OWNER_MANAGER.to_owned()), ..PostParams::default() };
    bounded("store the journal of", &name, api.replace_status(&name, &params, &upgrade)).await
}

/// After an attempt: its pre-flight Jobs, attempts past the history limit and the finalizer go.
pub async fn finish(
    context: &Context,
    subject: &mut Subject,
    upgrade: &MemoriaUpgrade,
    outcome: Outcome,
) -> Result<(), ClusterError> {
    let client = &context.client;
    let stopped = matches!(outcome, Outcome::Halted | Outcome::RollbackFailed);
    if !stopped && subject.release.finalizers().iter().any(|f| f == marks::FINALIZER) {
        delete_run_jobs(client, &subject.namespace, &upgrade.spec.run).await?;
        subject.release = let_go(client, &subject.release).await?;
    }
    let limit = usize::try_from(subject.release.spec.history_limit).unwrap_or(1).max(1);
    let api: Api<MemoriaUpgrade> = Api::namespaced(client.clone(), &subject.namespace);
    for old in subject.attempts.iter().rev().skip(limit) {
        let name = old.name_any();
        let uid =
            DeleteParams::default().preconditions(kube::api::Preconditions { uid: old.uid(), resource_version: None });
        bounded("delete the old attempt", &name, api.delete(&name, &uid)).await?;
    }
    Ok(())
}

/// Holds the release while an attempt is open, so that deleting it waits for what ran before to run again; and gives it
/// as it is then.
pub async fn hold(client: &Client, release: &MemoriaRelease) -> Result<MemoriaRelease, ClusterError> {
    if release.finalizers().iter().any(|f| f == marks::FINALIZER) {
        return Ok(release.clone());
    }
    let mut finalizers = release.finalizers().to_vec();
    finalizers.push(marks::FINALIZER.to_owned());
    patch_finalizers(client, release, finalizers).await
}

/// Lets a release go, and gives it as it is then.
pub async fn let_go(client: &Client, release: &MemoriaRelease) -> Result<MemoriaRelease, ClusterError> {
    if !release.finalizers().iter().any(|f| f == marks::FINALIZER) {
        return Ok(release.clone());
    }
    let finalizers = release.finalizers().iter().filter(|f| *f != marks::FINALIZER).cloned().collect();
    patch_finalizers(client, release, finalizers).await
}

async fn patch_finalizers(
    client: &Client,
    release: &MemoriaRelease,
    finalizers: Vec<String>,
) -> Result<MemoriaRelease, ClusterError> {
    let name = release.name_any();
    let api: Api<MemoriaRelease> = Api::namespaced(client.clone(), &release.namespace().unwrap_or_default());
    // A merge patch replaces the whole list; the version makes sure that nobody else changed it meanwhile.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": release.resource_version()}});
    let params = PatchParams { field_manager: Some(marks::OWNER_MANAGER.to_owned()), ..PatchParams::default() };
    bounded("set the finalizers of release", &name, api.patch(&name, &params, &Patch::Merge(patch))).await
}
