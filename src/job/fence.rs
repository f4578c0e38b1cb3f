//! Quiesce: ends the application's sessions and proves that none comes back for a while. Sessions of other roles are
//! only named: this Job has no right to end them, and the snapshot's locks keep their writes out or fail.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use sqlx::Connection;
use tracing::info;

use super::{
    context::Context,
    protocol::{Facts, FenceFacts, FenceOrder, JobReport},
    report::{self, LIST_LIMIT},
};
use crate::{
    api::upgrade::Category,
    snapshot::{
        Result, dump,
        peers::{self, Peer},
        session::session_prefix,
    },
};

pub async fn run(context: &Context, order: &FenceOrder) -> Result<JobReport> {
    let task = &order.database;
    let limit = Duration::from_secs(order.limit_seconds);
    let quiet = Duration::from_secs(order.quiet_seconds);
    let mut session = context.patient_session(task, "fence", limit.min(Duration::from_secs(60))).await?;
    let own = session_prefix(&task.attempt);
    let (started, mut quiet_since, mut ended) = (Instant::now(), Instant::now(), BTreeSet::new());
    loop {
        let peers = peers::all(&mut session).await?;
        let ours: Vec<&Peer> = peers.iter().filter(|p| p.own_role && !p.application.starts_with(&own)).collect();
        if !ours.is_empty() {
            quiet_since = Instant::now();
        }
        for peer in &ours {
            if ended.insert(peer.pid) {
                info!(session = peer.name(), pid = peer.pid, "ending a session of the application's role");
            }
            peers::terminate(&mut session, peer.pid).await?;
        }
        let others: BTreeSet<String> = peers.iter().filter(|p| !p.own_role).map(Peer::name).collect();
        let writers: Vec<String> =
            peers.iter().filter(|p| !p.own_role && p.writes).map(|p| format!("{} (pid {})", p.name(), p.pid)).collect();
        let prepared = peers::prepared(&mut session).await?;
        let is_quiet = ours.is_empty() && quiet_since.elapsed() >= quiet;
        if is_quiet && writers.is_empty() && prepared.is_empty() {
            let _ = session.close().await;
            let count = others.len();
            let facts = FenceFacts {
                terminated: i32::try_from(ended.len()).unwrap_or(i32::MAX),
                others: others.into_iter().take(LIST_LIMIT).collect(),
            };
            let message = format!(
                "{} sessions of the application were ended and none came back for {} s; other roles have {count}",
                ended.len(),
                order.quiet_seconds
            );
            return Ok(report::done(message, Facts::Fence(facts)));
        }
        if started.elapsed() >= limit {
            return Ok(not_quiet(order, &ours, ended.len(), &writers, &prepared));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn not_quiet(order: &FenceOrder, ours: &[&Peer], ended: usize, writers: &[String], prepared: &[String]) -> JobReport {
    if !prepared.is_empty() {
        return prepared_transactions(prepared);
    }
    if !writers.is_empty() {
        let message = format!(
            "another role has an open transaction that wrote: {}; end it, or let it commit, and try again",
            dump::first(writers)
        );
        return report::refused(Category::Environment, "ForeignWriter", message);
    }
    let names: BTreeSet<String> = ours.iter().map(|peer| peer.name()).collect();
    let message = format!(
        "the application's sessions keep coming back ({ended} ended within {} s, last {}); stop whatever opens them: a \
         workload that is neither target nor worker, another cluster, or a person",
        order.limit_seconds,
        if names.is_empty() { "none".to_owned() } else { names.into_iter().collect::<Vec<_>>().join(", ") }
    );
    report::refused(Category::Environment, "WritersRemain", message)
}

/// Prepared transactions hold writes that no lock of ours waits for.
pub fn prepared_transactions(gids: &[String]) -> JobReport {
    let message = format!(
        "prepared transactions are open on this database: {}; run COMMIT PREPARED or ROLLBACK PREPARED for each",
        dump::first(gids)
    );
    report::refused(Category::Environment, "PreparedTransactions", message)
}
