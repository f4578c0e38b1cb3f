//! The one way to stop and start a target or worker, whatever its kind, and to tell who keeps it from stopping. Every
//! phase that moves writers, forward or back, uses these moves and no others.

use jiff::Timestamp;

use super::{Context, QUIESCE, Step, halt::moved};
use crate::{
    api::{
        marks::ATTEMPT_ANNOTATION,
        release::{WorkerKind, WorkerRef},
        upgrade::{Category, PlannedTarget, PlannedWorker},
    },
    commands::Command,
    upgrade::{
        Action, Precondition, Prior,
        seen::{Blame, PodSeen, Switch, Terminating, Trouble, Workload},
    },
};

/// At most so many pods or Jobs are named in a message.
const NAMED: usize = 3;

/// One target or worker of the plan beside what is seen of it.
pub struct Member<'a> {
    pub reference: WorkerRef,
    pub uid: &'a str,
    /// How it runs again in the end.
    pub prior: Prior,
    /// An autoscaler sets its count: it comes back to what it was at Quiesce, and whatever the autoscaler makes of that
    /// afterwards is right.
    pub autoscaled: bool,
    pub seen: &'a Workload,
    namespace: &'a str,
    now: Timestamp,
}

impl Member<'_> {
    pub fn precondition(&self) -> Precondition {
        Precondition { uid: self.uid.to_owned(), resource_version: self.seen.resource_version.clone() }
    }

    /// What stops it; nothing when it was told already.
    pub fn stop(&self) -> Option<Action> {
        if self.seen.is_told_to_stop() {
            return None;
        }
        self.turn(match &self.prior {
            Prior::Replicas(_) => Prior::Replicas(0),
            Prior::Suspend(_) => Prior::Suspend(true),
            Prior::Paused(_) => Prior::Paused(Some("0".to_owned())),
        })
    }

    /// What lets it run as before; nothing when it was told already.
    pub fn start(&self) -> Option<Action> {
        if self.is_told_prior() { None } else { self.turn(self.prior.clone()) }
    }

    fn is_told_prior(&self) -> bool {
        match (&self.prior, &self.seen.switch) {
            // Any other count is the autoscaler's own.
            (Prior::Replicas(count), _) if self.autoscaled => self.seen.replicas != 0 || *count == 0,
            (Prior::Replicas(count), _) => self.seen.replicas == *count,
            (Prior::Suspend(_), Switch::Suspend { finished: true, .. }) => true,
            (Prior::Suspend(suspend), Switch::Suspend { suspended, .. }) => suspend == suspended,
            (Prior::Paused(before), Switch::Paused { replicas }) => before == replicas,
            _ => false,
        }
    }

    fn turn(&self, to: Prior) -> Option<Action> {
        let (worker, precondition) = (self.reference.clone(), self.precondition());
        Some(match to {
            Prior::Replicas(replicas) => Action::Scale { workload: worker.workload()?, precondition, replicas },
            Prior::Suspend(suspend) => Action::Suspend { worker, precondition, suspend },
            Prior::Paused(replicas) => Action::PauseAutoscaler { worker, precondition, replicas },
        })
    }

    /// Whether it runs as before. What a CronJob, a Job or KEDA makes of being let go is theirs.
    fn is_back(&self) -> bool {
        match &self.prior {
            Prior::Replicas(_) if self.autoscaled => self.seen.is_rolled_out(self.seen.replicas),
            Prior::Replicas(count) => self.seen.is_rolled_out(*count),
            Prior::Suspend(_) | Prior::Paused(_) => true,
        }
    }

    fn back_in_words(&self) -> String {
        match &self.prior {
            Prior::Replicas(count) => format!("{} to {count}", self.reference),
            Prior::Suspend(suspend) => format!("{} to suspend {suspend}", self.reference),
            Prior::Paused(None) => format!("{} to autoscaling", self.reference),
            Prior::Paused(Some(count)) => format!("{} to its pause at {count}", self.reference),
        }
    }

    /// What is left of it, and what a person can do about that.
    fn left_in_words(&self) -> String {
        let hanging: Vec<_> = self.seen.pods.iter().filter_map(|pod| self.hanging(pod)).collect();
        if !hanging.is_empty() {
            return few(hanging, "; ");
        }
        let ending: Vec<_> = self.seen.pods.iter().map(|pod| self.ending(pod)).collect();
        let unfinished = &self.seen.unfinished;
        let jobs: Vec<_> = unfinished.iter().map(|job| format!("job {job}")).collect();
        let named = Command::ShowJobs { jobs: unfinished.get(..NAMED).unwrap_or(unfinished) };
        match (jobs.is_empty(), ending.is_empty()) {
            (false, _) => format!(
                "{} of {} still run and are waited for (see: {})",
                few(jobs, ", "),
                self.reference,
                named.in_namespace(self.namespace)
            ),
            (true, false) => format!("the pods of {} end: {}", self.reference, few(ending, ", ")),
            (true, true) => match self.reference.kind {
                WorkerKind::ScaledObject => format!("KEDA scales what {} scales to zero", self.reference),
                _ => format!("the controller of {} counts its pods down", self.reference),
            },
        }
    }

    fn ending(&self, pod: &PodSeen) -> String {
        match &pod.terminating {
            Some(Terminating { due, .. }) => format!("{} until {}", pod.name, clock(*due)),
            None => pod.name.clone(),
        }
    }

    /// A pod that outlived its grace period: its node has not confirmed its end. Never forced: a container on a node that
    /// does not answer may still run and write.
    fn hanging(&self, pod: &PodSeen) -> Option<String> {
        let Terminating { since, due } = pod.terminating.as_ref().filter(|ending| ending.hangs_at() <= self.now)?;
        let node = pod.node.as_deref()?;
        let look = Command::ShowNode { node };
        let end = Command::ForceDeletePod { pod: &pod.name }.in_namespace(self.namespace);
        let why = pod.trouble.as_ref().map(|t| format!(" ({}: {})", t.reason, t.message)).unwrap_or_default();
        Some(format!(
            "pod {} of {} on node {node} hangs: it is being deleted since {}, its grace period ended at {}, and the node \
             has not confirmed its end{why}; look at the node: {look}; only if that machine is off for good: {end}",
            pod.name,
            self.reference,
            clock(*since),
            clock(*due)
        ))
    }
}

fn clock(at: Timestamp) -> impl std::fmt::Display {
    at.strftime("%Y-%m-%dT%H:%M:%SZ")
}

/// The first few, and how many more.
fn few(all: Vec<String>, separator: &str) -> String {
    let more = all.len().saturating_sub(NAMED);
    let named = all.into_iter().take(NAMED).collect::<Vec<_>>().join(separator);
    if more == 0 { named } else { format!("{named}{separator}and {more} more") }
}

impl<'a> Context<'a> {
    /// All that comes back at Start: targets that are no workers, and ScaledObjects that scale them.
    pub fn servers(&self) -> Result<Vec<Member<'a>>, Step> {
        let mut all = Vec::new();
        for target in self.plan.targets.iter().filter(|t| !t.worker) {
            all.extend(self.with_scalers(target)?);
        }
        Ok(all)
    }

    /// All that comes back at IngestionReenable: workers, and targets that are workers too.
    pub fn workers(&self) -> Result<Vec<Member<'a>>, Step> {
        let of_servers = |worker: &PlannedWorker| self.plan.targets.iter().any(|t| !t.worker && scales(worker, t));
        let workers = self.plan.workers.iter().filter(|worker| !of_servers(worker)).filter_map(|w| self.worker(w));
        let targets = self.plan.targets.iter().filter(|t| t.worker).map(|t| self.target(t));
        workers.chain(targets).collect()
    }

    /// Everything that can write.
    pub fn writers(&self) -> Result<Vec<Member<'a>>, Step> {
        let mut all = self.workers()?;
        all.extend(self.servers()?);
        Ok(all)
    }

    /// A target, after the ScaledObjects that would scale it down again were they left paused.
    pub fn with_scalers(&self, target: &'a PlannedTarget) -> Result<Vec<Member<'a>>, Step> {
        let scalers = self.plan.workers.iter().filter(|worker| scales(worker, target)).filter_map(|w| self.worker(w));
        scalers.chain([self.target(target)]).collect()
    }

    pub fn target(&self, planned: &'a PlannedTarget) -> Result<Member<'a>, Step> {
        let reference = WorkerRef::from(&planned.workload);
        let seen = self.seen.targets.get(&planned.name).filter(|seen| seen.uid == planned.uid);
        let Some(seen) = seen else { return Err(replaced(&reference)) };
        Ok(Member {
            prior: Prior::Replicas(self.replicas(&reference, planned.replicas, planned.autoscaler.as_ref())),
            reference,
            uid: &planned.uid,
            autoscaled: planned.autoscaler.is_some(),
            seen,
            namespace: self.namespace,
            now: self.now,
        })
    }

    /// Nothing for a Job that is gone: finished Jobs are collected, and there is nothing of it to stop or bring back.
    fn worker(&self, planned: &'a PlannedWorker) -> Option<Result<Member<'a>, Step>> {
        let reference = planned.workload.clone();
        let seen = self.seen.workers.get(&reference);
        if seen.is_none() && reference.kind == WorkerKind::Job {
            return None;
        }
        let Some(seen) = seen.filter(|seen| seen.uid == planned.uid) else { return Some(Err(replaced(&reference))) };
        Some(Ok(Member {
            prior: match reference.kind {
                WorkerKind::Deployment | WorkerKind::StatefulSet => {
                    Prior::Replicas(self.replicas(&reference, planned.replicas, planned.autoscaler.as_ref()))
                }
                WorkerKind::CronJob | WorkerKind::Job => Prior::Suspend(planned.suspend.unwrap_or_default()),
                WorkerKind::ScaledObject => Prior::Paused(planned.paused_replicas.clone()),
            },
            reference,
            uid: &planned.uid,
            autoscaled: planned.autoscaler.is_some(),
            seen,
            namespace: self.namespace,
            now: self.now,
        }))
    }

    /// The planned count, or what an autoscaler had made of it when Quiesce began.
    fn replicas(&self, reference: &WorkerRef, planned: i32, autoscaler: Option<&String>) -> i32 {
        let quiesce = self.journal.phases.iter().find(|record| autoscaler.is_some() && record.name == QUIESCE);
        let remembered = quiesce.and_then(|record| record.done.get(&remembered_key(reference)));
        remembered.and_then(|count| count.parse().ok()).unwrap_or(planned)
    }

    /// A failure when a writer came back although it must be gone: the proof that nothing writes is void.
    pub fn breach(&self) -> Result<(), Step> {
        for writer in self.writers()? {
            if !writer.seen.is_gone() {
                return Err(Step::fail(Category::Conflict, "WriterCameBack", came_back(&writer)));
            }
            if moved(self.record, &writer) {
                let reference = &writer.reference;
                let message =
                    format!("{reference} was scaled or changed while nobody watched it, and may have written");
                return Err(Step::fail(Category::Conflict, "WriterCameBack", message));
            }
        }
        Ok(())
    }
}

fn came_back(writer: &Member<'_>) -> String {
    let (reference, seen) = (&writer.reference, writer.seen);
    let pod = seen.pods.first().map(|pod| format!(", pod {}", pod.name)).unwrap_or_default();
    let job = seen.unfinished.first().map(|job| format!(", job {job}")).unwrap_or_default();
    let now = match &seen.switch {
        Switch::Replicas => format!("replicas {}{pod}", seen.replicas),
        Switch::Suspend { suspended, .. } => format!("suspend {suspended}{job}{pod}"),
        Switch::Paused { replicas } => {
            format!("paused-replicas {}, replicas {}{pod}", replicas.as_deref().unwrap_or("absent"), seen.replicas)
        }
    };
    let kept = match writer.prior {
        Prior::Replicas(_) | Prior::Paused(_) => "at zero; something else scales it",
        Prior::Suspend(_) => "suspended; something else starts it",
    };
    format!("{reference} runs again ({now}) although the attempt keeps it {kept}: pause that for the upgrade")
}

fn scales(worker: &PlannedWorker, target: &PlannedTarget) -> bool {
    worker.scales.as_ref() == Some(&target.workload)
}

fn remembered_key(reference: &WorkerRef) -> String {
    format!("replicas-{reference}")
}

fn replaced(workload: &WorkerRef) -> Step {
    Step::fail(
        Category::Conflict,
        "WorkloadReplaced",
        format!(
            "{workload} is not the object that was planned: it was deleted or made anew; \
             bring it back as it was, then start again"
        ),
    )
}

/// Remembers the counts that autoscalers have set by now, before anything is stopped. `Ok` when all are.
pub fn remember_autoscaled(cx: &Context<'_>) -> Result<(), Step> {
    for member in cx.writers()?.iter().filter(|member| member.autoscaled) {
        let key = remembered_key(&member.reference);
        if !cx.record.done.contains_key(&key) {
            return Err(Step::Remember { key, value: member.seen.replicas.to_string() });
        }
    }
    Ok(())
}

/// Tells everything to stop that was not told yet, then waits until nothing of it is left. `Ok` when nothing is.
pub fn to_zero(members: &[Member<'_>]) -> Result<(), Step> {
    let stop: Vec<_> = members.iter().filter_map(Member::stop).collect();
    if !stop.is_empty() {
        let names: Vec<_> = members.iter().map(|m| m.reference.to_string()).collect();
        return Err(Step::act(stop, format!("stopping {}", names.join(", "))));
    }
    let left: Vec<_> = members.iter().filter(|m| !m.seen.is_gone()).map(Member::left_in_words).collect();
    if left.is_empty() { Ok(()) } else { Err(Step::wait(left.join("; "))) }
}

/// Tells everything to run as before, without waiting for pods. `Ok` when all were told.
pub fn scale_back(members: &[Member<'_>]) -> Result<(), Step> {
    let (names, start): (Vec<_>, Vec<_>) =
        members.iter().filter_map(|m| m.start().map(|action| (m.back_in_words(), action))).unzip();
    if start.is_empty() { Ok(()) } else { Err(Step::act(start, format!("bringing back {}", names.join(", ")))) }
}

/// Tells everything to run as before, then waits for the rollouts. `Ok` when all are ready.
pub fn to_prior(members: &[Member<'_>]) -> Result<(), Step> {
    scale_back(members)?;
    let Some(member) = members.iter().find(|m| !m.is_back()) else { return Ok(()) };
    match lasting_trouble(&member.seen.pods) {
        Some((pod, trouble)) => Err(pod_failure(&format!("pod {} of {}", pod.name, member.reference), trouble)),
        None => Err(Step::wait(format!("{} comes to {} ready pods", member.reference, member.seen.replicas))),
    }
}

/// Where a pod that cannot start is waited for: there is nothing further to turn back to.
pub fn wait_only(part: Result<(), Step>) -> Result<(), Step> {
    part.map_err(|step| match step {
        Step::Fail { message, .. } => Step::wait(message),
        other => other,
    })
}

fn lasting_trouble(pods: &[PodSeen]) -> Option<(&PodSeen, &Trouble)> {
    pods.iter()
        .filter(|pod| !pod.deleting)
        .filter_map(|pod| pod.trouble.as_ref().map(|trouble| (pod, trouble)))
        .find(|(_, trouble)| trouble.is_lasting().is_some())
}

/// A pod that cannot run, as a failure.
pub fn pod_failure(what: &str, trouble: &Trouble) -> Step {
    let category = match trouble.is_lasting() {
        Some(Blame::Image) => Category::Candidate,
        _ => Category::Environment,
    };
    Step::fail(category, "PodCannotRun", format!("{what} does not run: {}: {}", trouble.reason, trouble.message))
}

/// Marks what does not bear this attempt's mark yet. `Ok` when all do.
pub fn mark(attempt: &str, members: &[Member<'_>], back: bool) -> Result<(), Step> {
    let mut actions = Vec::new();
    for member in members {
        match member.seen.attempt.as_deref() {
            Some(mark) if mark == attempt && member.seen.goes_back == back => {}
            Some(other) if other != attempt => {
                return Err(Step::fail(
                    Category::Conflict,
                    "MarkedByAnotherAttempt",
                    format!(
                        "{} bears the mark of attempt {other}, whose journal is not this one; if {other} is gone for \
                         good, check its data, then remove the annotation {ATTEMPT_ANNOTATION}",
                        member.reference
                    ),
                ));
            }
            _ => actions.push(Action::Mark {
                workload: member.reference.clone(),
                uid: member.uid.to_owned(),
                prior: member.prior.clone(),
                back,
            }),
        }
    }
    if actions.is_empty() { Ok(()) } else { Err(Step::act(actions, "marking targets and workers")) }
}

/// Takes the attempt's marks away. `Ok` when none is left.
pub fn unmark(members: &[Member<'_>]) -> Result<(), Step> {
    let actions: Vec<_> = members
        .iter()
        .filter(|m| m.seen.attempt.is_some())
        .map(|m| Action::Unmark { workload: m.reference.clone(), uid: m.uid.to_owned() })
        .collect();
    if actions.is_empty() { Ok(()) } else { Err(Step::act(actions, "removing the attempt's marks")) }
}
