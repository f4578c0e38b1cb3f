//! Leader election by a Lease: one instance acts, the others wait.
//!
//! A lease is taken or renewed only by a write with the resourceVersion that was read, and counts as abandoned only when
//! it did not change for its duration by *this* machine's monotonic clock: nobody's timestamps are believed. A leader
//! counts from the moment before it asked to renew, and gives up earlier than others may take over; the time between is
//! longer than any of its requests may last.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    client::{REQUEST_DEADLINE, bounded},
    error::{ClusterError, Kind},
};

/// Which lease, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    pub namespace: String,
    pub name: String,
    /// Unique to this process, e.g. the pod's name and UID: an equal one is taken for ourselves.
    pub identity: String,
    /// How long others wait for a silent leader. Whole seconds.
    pub lease_duration: Duration,
    /// When a leader that could not renew stops leading.
    pub renew_deadline: Duration,
    /// Time between two tries.
    pub retry_period: Duration,
}

impl LeaseConfig {
    /// The usual times: 15 s, 10 s, 2 s.
    pub fn new(namespace: String, name: String, identity: String) -> Self {
        Self {
            namespace,
            name,
            identity,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    fn check(&self) -> Result<(), BadTimes> {
        let fits =
            self.retry_period < self.renew_deadline && self.renew_deadline + REQUEST_DEADLINE <= self.lease_duration;
        if fits { Ok(()) } else { Err(BadTimes) }
    }
}

/// Times with which two instances could act at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the lease duration must exceed the renew deadline by the 5 s that a request may take, and the renew deadline the \
     retry period; e.g. 15s, 10s, 2s"
)]
pub struct BadTimes;

/// Whether this instance leads. Cheap to clone and ask.
#[derive(Clone, Debug)]
pub struct Leadership {
    leading: watch::Receiver<bool>,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Leadership {
    /// Asked right before every write. False as soon as the time to renew is up, even when this process slept through it.
    pub fn is_leading(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Tells of each change.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.leading.clone()
    }

    /// Waits until this instance leads (or, with false, no longer does). False when the election has ended.
    pub async fn wait_for(&mut self, leading: bool) -> bool {
        self.leading.wait_for(|now| *now == leading).await.is_ok()
    }
}

/// Takes part in the election until `shutdown` completes, and then gives the lease back. Complete `shutdown` only when
/// nothing acts any more. Await the handle to be sure that the lease was given back.
pub fn elect(
    client: Client,
    config: LeaseConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(Leadership, JoinHandle<()>), BadTimes> {
    config.check()?;
    let (sender, leading) = watch::channel(false);
    let until = Arc::new(Mutex::new(None));
    let leadership = Leadership { leading, until: until.clone() };
    let api = Api::namespaced(client, &config.namespace);
    let elector = Elector { api, config, leading: sender, until, own: None, foreign: None };
    Ok((leadership, tokio::spawn(elector.run(shutdown))))
}

struct Elector {
    api: Api<Lease>,
    config: LeaseConfig,
    leading: watch::Sender<bool>,
    until: Arc<Mutex<Option<Instant>>>,
    /// The lease as we last wrote it.
    own: Option<Lease>,
    /// resourceVersion of another's lease, and when we first saw it.
    foreign: Option<(String, Instant)>,
}

impl Elector {
    async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let mut until: Option<Instant> = None;
        loop {
            let started = Instant::now();
            // A leader's request may not outlast its leadership.
            let limit = until.map_or(self.config.renew_deadline, |u| u.saturating_duration_since(started));
            let answer = tokio::select! {
                answer = timeout(limit, self.try_lead()) => answer,
                () = &mut shutdown => break,
            };
            match answer {
                Ok(Ok(true)) => until = Some(started + self.config.renew_deadline),
                Ok(Ok(false)) => until = None,
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be read or renewed"),
                Err(_) => tracing::warn!("no answer about the lease"),
            }
            until = until.filter(|u| Instant::now() < *u);
            self.publish(until);
            let next = started + self.config.retry_period;
            let wake = until.map_or(next, |u| next.min(u));
            tokio::select! {
                () = sleep_until(wake) => {}
                () = &mut shutdown => break,
            }
        }
        self.publish(None);
        if let Err(error) = self.give_back().await {
            tracing::warn!(%error, "the lease could not be given back; it expires");
        }
    }

    fn publish(&self, until: Option<Instant>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        let leads = until.is_some();
        self.leading.send_if_modified(|now| {
            let changed = *now != leads;
            if changed {
                tracing::info!(leading = leads, identity = self.config.identity, "leadership changed");
            }
            *now = leads;
            changed
        });
    }

    /// One try: true when the lease is ours and was just written, false when it is another's. Writes nothing while
    /// another holds it.
    async fn try_lead(&mut self) -> Result<bool, ClusterError> {
        let found = match self.own.take() {
            Some(lease) => Some(lease),
            None => bounded("read", self.object(), self.api.get_opt(&self.config.name)).await?,
        };
        let params = PostParams::default();
        let written = match found {
            None => bounded("create", self.object(), self.api.create(&params, &self.next(None))).await,
            Some(lease) if self.may_write(&lease, Instant::now()) => {
                let next = self.next(Some(lease));
                bounded("renew", self.object(), self.api.replace(&self.config.name, &params, &next)).await
            }
            Some(_) => return Ok(false),
        };
        // Refused: another was faster, or somebody edited it. The next try reads it; until the deadline we may still lead.
        self.own = Some(written?);
        self.foreign = None;
        Ok(true)
    }

    /// Ours, free, or unchanged for its whole duration since we first saw it so.
    fn may_write(&mut self, lease: &Lease, now: Instant) -> bool {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == self.config.identity {
            return true;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.foreign {
            Some((known, since)) if *known == version => *since,
            _ => {
                self.foreign = Some((version, now));
                now
            }
        };
        // The holder's own duration counts, where it is longer than ours.
        let theirs = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
        now.duration_since(since) >= theirs.max(self.config.lease_duration)
    }

    /// The lease as we want it: over the one that was read, with its resourceVersion.
    fn next(&self, current: Option<Lease>) -> Lease {
        let now = MicroTime(jiff::Timestamp::now());
        let mut lease = current.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.config.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_deref() != Some(&self.config.identity) {
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |n| n.saturating_add(1)));
            spec.acquire_time = Some(now.clone());
            spec.holder_identity = Some(self.config.identity.clone());
        }
        spec.lease_duration_seconds = Some(i32::try_from(self.config.lease_duration.as_secs()).unwrap_or(i32::MAX));
        spec.renew_time = Some(now);
        lease
    }

    /// Lets the next leader begin at once.
    async fn give_back(&mut self) -> Result<(), ClusterError> {
        let found = match self.own.take() {
            Some(lease) => Some(lease),
            None => bounded("read", self.object(), self.api.get_opt(&self.config.name)).await?,
        };
        let Some(mut lease) = found else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.config.identity))
        else {
            return Ok(());
        };
        spec.holder_identity = None;
        match bounded("give back", self.object(), self.api.replace(&self.config.name, &PostParams::default(), &lease))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.kind == Kind::Stale => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn object(&self) -> String {
        format!("lease/{}", self.config.name)
    }
}
