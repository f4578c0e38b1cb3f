//! Whole attempts with workers of every kind: each stops in its own way and comes back as it was, on every way back and
//! after a crash at every act.

use proptest::prelude::*;

use super::{
    seen::{PodSeen, Switch, Terminating, Trouble, Workload},
    world::{Fault, World, running, worker, workload_ref},
};
use crate::api::{
    release::{WorkerKind, WorkerRef},
    upgrade::{Category, Outcome, PlannedWorker},
};

fn named(kind: WorkerKind, name: &str) -> WorkerRef {
    WorkerRef { kind, name: name.into() }
}

fn nightly() -> WorkerRef {
    named(WorkerKind::CronJob, "nightly")
}

fn backfill() -> WorkerRef {
    named(WorkerKind::Job, "backfill")
}

fn queue() -> WorkerRef {
    named(WorkerKind::ScaledObject, "queue")
}

impl World {
    fn add(&mut self, planned: PlannedWorker, seen: Workload) {
        self.seen.workers.insert(planned.workload.clone(), seen);
        self.plan.workers.push(planned);
    }
}

/// The usual world and: a CronJob with a Job that still runs, one that was suspended before, a Job, a ScaledObject, and an
/// autoscaler at the server and at the worker.
fn kinds() -> World {
    let mut world = World::new();
    let suspend = |suspended| Switch::Suspend { suspended, finished: false };
    let cron = Workload { switch: suspend(false), unfinished: vec!["nightly-1".into()], ..running("nightly", 1, "") };
    world.add(PlannedWorker { suspend: Some(false), ..worker(nightly(), 0) }, cron);
    let paused = named(WorkerKind::CronJob, "paused");
    let seen = Workload { switch: suspend(true), ..running("paused", 0, "") };
    world.add(PlannedWorker { suspend: Some(true), ..worker(paused, 0) }, seen);
    let job = Workload { switch: suspend(false), ..running("backfill", 1, "") };
    world.add(PlannedWorker { suspend: Some(false), ..worker(backfill(), 0) }, job);
    let scaled = Workload { switch: Switch::Paused { replicas: None }, ..running("queue", 4, "") };
    world.add(PlannedWorker { scales: Some(workload_ref("queue")), ..worker(queue(), 0) }, scaled);
    world.plan.targets[0].autoscaler = Some("server".into());
    world.plan.workers[0].autoscaler = Some("ingest".into());
    world
}

/// What tells how everything runs, without what time changes.
fn shape(world: &World) -> Vec<(String, i32, Switch)> {
    let targets = world.seen.targets.iter().map(|(name, w)| (name.clone(), w.replicas, w.switch.clone()));
    targets.chain(world.seen.workers.iter().map(|(r, w)| (r.to_string(), w.replicas, w.switch.clone()))).collect()
}

fn unmarked(world: &World) -> bool {
    world.seen.targets.values().chain(world.seen.workers.values()).all(|w| w.attempt.is_none())
}

#[test]
fn every_kind_is_stopped_before_the_fence_and_comes_back_as_it_was() {
    let mut world = kinds();
    let before = shape(&world);
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded), "{:?}", world.journal.failure);
    assert_eq!(shape(&world), before);
    assert!(unmarked(&world));
    let at =
        |what: &str| world.acts.iter().position(|act| act == what).unwrap_or_else(|| panic!("{what} was not done"));
    let fence = at("job fence");
    for stop in ["suspend cronjob/nightly true", "suspend job/backfill true", "pause scaledobject/queue 0"] {
        assert!(at(stop) < fence, "{stop}");
        assert!(at(&format!("mark {}", stop.split(' ').nth(1).unwrap())) < at(stop));
    }
    for start in ["suspend cronjob/nightly false", "suspend job/backfill false", "pause scaledobject/queue never"] {
        assert!(at(start) > at("flag false") && at(start) < at("job gate"), "{start}");
    }
    assert!(!world.acts.iter().any(|act| act.contains("suspend cronjob/paused")), "it was suspended before");
}

#[test]
fn a_failure_before_the_image_moved_brings_every_kind_back() {
    for step in ["fence", "snapshot"] {
        let mut world = kinds();
        let before = shape(&world);
        world.faults.push(Fault::JobFails { step, category: Category::Environment, reason: "StorageFull" });
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Resumed));
        assert_eq!(shape(&world), before);
        assert!(unmarked(&world));
    }
}

#[test]
fn jobs_of_a_cron_job_are_waited_for_and_named_when_the_limit_runs_out() {
    let mut world = kinds();
    world.workload(nightly()).unfinished = vec!["long-1".into()];
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Resumed));
    let failure = world.journal.failure.as_ref().unwrap();
    assert_eq!((failure.phase.as_str(), failure.reason.as_str()), ("Quiesce", "LimitExceeded"));
    assert!(failure.message.contains("job long-1 of cronjob/nightly") && failure.message.contains("job/long-1"));
    assert_eq!(world.seen.workers[&nightly()].switch, Switch::Suspend { suspended: false, finished: false });
}

#[test]
fn a_worker_of_any_kind_that_comes_back_voids_the_snapshot() {
    type Wake = fn(&mut Workload);
    let wake: [(WorkerRef, Wake); 3] = [
        (nightly(), |seen| seen.unfinished = vec!["long-by-hand".into()]),
        (backfill(), |seen| seen.switch = Switch::Suspend { suspended: false, finished: false }),
        (queue(), |seen| seen.switch = Switch::Paused { replicas: Some("2".into()) }),
    ];
    for (reference, change) in wake {
        let mut world = kinds();
        while !world.acts.contains(&"job snapshot".to_owned()) {
            world.turn(None);
        }
        change(world.workload(&reference));
        for _ in 0..8 {
            world.turn(None);
        }
        let failure = world.journal.failure.as_ref().unwrap_or_else(|| panic!("{reference} was not noticed"));
        assert_eq!(failure.reason, "WriterCameBack");
        assert!(failure.message.contains(&reference.to_string()), "{}", failure.message);
    }
}

#[test]
fn a_job_that_finished_or_is_gone_needs_neither_stopping_nor_starting() {
    for gone in [false, true] {
        let mut world = kinds();
        world.workload(backfill()).switch = Switch::Suspend { suspended: false, finished: true };
        world.workload(backfill()).pods.clear();
        world.workload(backfill()).status_replicas = 0;
        if gone {
            world.seen.workers.remove(&backfill());
        }
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
        assert!(!world.acts.iter().any(|act| act.starts_with("suspend job/")));
    }
}

#[test]
fn what_an_autoscaler_sets_comes_back_to_its_count_at_quiesce_and_may_change_after() {
    let mut world = kinds();
    world.workload(workload_ref("server")).replicas = 7;
    world.workload(workload_ref("ingest")).replicas = 9;
    // It acts once more as soon as its workload is back.
    while !world.acts.contains(&"scale deployment/server 7".to_owned()) {
        assert!(world.turn(None) || world.journal.outcome.is_none(), "{:?}", world.journal.failure);
    }
    world.workload(workload_ref("server")).replicas = 5;
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded), "{:?}", world.journal.failure);
    assert_eq!(world.seen.targets["server"].replicas, 5, "the autoscaler is not fought");
    assert_eq!(world.seen.workers[&workload_ref("ingest").into()].replicas, 9);
}

#[test]
fn a_scaled_object_that_scales_a_server_comes_back_with_it() {
    let mut world = kinds();
    world.plan.workers.iter_mut().find(|w| w.workload == queue()).unwrap().scales = Some(workload_ref("server"));
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    let at = |what: &str| world.acts.iter().position(|act| act == what).unwrap();
    assert!(at("pause scaledobject/queue never") < at("candidate dashboard"));
    assert_eq!(world.acts.iter().filter(|act| *act == "mark scaledobject/queue").count(), 1);
}

#[test]
fn a_pod_that_hangs_is_named_with_its_node_and_the_command_and_never_forced() {
    let mut world = kinds();
    let now = world.now;
    let due = now.checked_add(jiff::SignedDuration::from_secs(30)).unwrap();
    let pod = PodSeen {
        name: "ingest-0".into(),
        node: Some("node-b".into()),
        deleting: true,
        terminating: Some(Terminating { since: now, due }),
        trouble: Some(Trouble { reason: "NodeNotReady".into(), message: "Node is not ready".into() }),
        ..PodSeen::default()
    };
    while world.journal.phase.as_deref() != Some("Quiesce") || !world.acts.iter().any(|act| act.starts_with("scale")) {
        world.turn(None);
    }
    let stuck = |world: &mut World| {
        *world.workload(workload_ref("ingest")) =
            Workload { pods: vec![pod.clone()], ..world.workload(workload_ref("ingest")).clone() };
        world.decide()
    };
    let decision = stuck(&mut world);
    let hangs = due.checked_add(jiff::SignedDuration::from_secs(10)).unwrap();
    assert_eq!(decision.wake, Some(hangs), "it must be noticed although nothing changes");
    world.now = due;
    assert!(!stuck(&mut world).journal.message.unwrap().contains("--force"), "a node needs a moment to say so");
    world.now = hangs;
    let message = stuck(&mut world).journal.message.unwrap();
    for part in [
        "pod ingest-0 of deployment/ingest on node node-b hangs",
        "since 2026-11-22T01:0",
        "NodeNotReady",
        "kubectl get node node-b",
        "kubectl -n ns delete pod ingest-0 --grace-period=0 --force",
    ] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Losing any actions at any turns changes neither the end nor what was done, whichever way it ends.
    #[test]
    fn crashes_anywhere_bring_every_kind_back_as_it_was(
        losses in proptest::collection::vec((0usize..60, 0usize..4), 0..12),
        fails in any::<bool>(),
    ) {
        let mut world = kinds();
        if fails {
            world.faults.push(Fault::JobFails { step: "snapshot", category: Category::Environment, reason: "StorageFull" });
        }
        let before = shape(&world);
        for turn in 0..400 {
            let lose = losses.iter().find(|(at, _)| *at == turn).map(|(_, keep)| *keep);
            let moved = world.turn(lose);
            if !moved && world.journal.outcome.is_some() {
                break;
            }
        }
        prop_assert_eq!(world.journal.outcome, Some(if fails { Outcome::Resumed } else { Outcome::Succeeded }));
        prop_assert_eq!(shape(&world), before);
        prop_assert!(unmarked(&world));
    }
}
