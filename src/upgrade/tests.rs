//! Whole attempts in a small world: the good one, every failure, and a crash at every single act.

use proptest::prelude::*;

use super::{
    seen::JobState,
    world::{Fault, NEW, OLD, World},
};
use crate::api::upgrade::{Category, Outcome, PhaseState};

fn at(world: &World, what: &str) -> usize {
    let found = world.acts.iter().position(|act| act.starts_with(what));
    found.unwrap_or_else(|| panic!("{what} was never done: {:#?}", world.acts))
}

fn as_before(world: &World) {
    assert_eq!(world.seen.targets["server"].replicas, 2);
    assert_eq!(world.seen.targets["dashboard"].replicas, 1);
    assert!(world.seen.workers.values().all(|worker| worker.replicas == 3));
    assert_eq!(world.seen.flag.as_deref(), Some("false"));
    assert!(world.seen.targets.values().chain(world.seen.workers.values()).all(|w| w.attempt.is_none()));
}

fn stopped(world: &World) {
    assert!(world.seen.targets.values().chain(world.seen.workers.values()).all(super::seen::Workload::is_gone));
    assert!(world.seen.candidates.is_empty());
}

fn good() -> World {
    let mut world = World::new();
    world.run();
    world
}

#[test]
fn a_good_upgrade_ends_with_the_new_image_and_everything_else_as_it_was() {
    let world = good();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    as_before(&world);
    assert!(world.seen.targets.values().all(|target| target.image == NEW));
    assert_eq!(world.journal.snapshot.as_ref().unwrap().rows, 44_000);
    assert!(world.journal.phases.iter().all(|phase| phase.state == PhaseState::Passed));
    assert!(world.journal.writers_stopped_at.is_some() && world.journal.writers_back_at.is_some());
    assert!(world.seen.jobs.values().all(|job| job.ttl_armed));
}

#[test]
fn nothing_irreversible_happens_before_what_it_rests_on() {
    let world = good();
    let order = [
        "mark deployment/server",
        "flag true",
        "scale deployment/ingest 0",
        "scale deployment/server 0",
        "job fence",
        "job snapshot",
        "image deployment/server",
        "job migrate",
        "candidate server",
        "delete candidate server",
        "scale deployment/server 2",
        "candidate dashboard",
        "scale deployment/dashboard 1",
        "flag false",
        "scale deployment/ingest 3",
        "job gate",
        "job bootstrap",
        "job verify",
        "unmark",
    ];
    let places: Vec<_> = order.iter().map(|what| at(&world, what)).collect();
    assert!(places.is_sorted(), "{:#?}", world.acts);
}

#[test]
fn a_settled_attempt_asks_for_nothing_more() {
    let world = good();
    let decision = world.decide();
    assert!(decision.actions.is_empty() && decision.wake.is_none());
    assert_eq!(decision.journal, world.journal);
}

#[test]
fn a_failure_before_the_image_moved_brings_back_what_ran_before() {
    for fault in [
        Fault::JobFails { step: "fence", category: Category::Environment, reason: "WritersRemain" },
        Fault::JobFails { step: "snapshot", category: Category::Environment, reason: "StorageFull" },
        Fault::JobVanishes { step: "snapshot" },
        Fault::JobHangs { step: "snapshot" },
        Fault::JobHangs { step: "fence" },
        Fault::ScaledUpByOther,
    ] {
        let mut world = World::with(fault.clone());
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Resumed), "{fault:?}");
        as_before(&world);
        assert!(world.seen.targets.values().all(|target| target.image == OLD));
        assert!(!world.acts.iter().any(|act| act.starts_with("image") || act == "job migrate"));
    }
}

#[test]
fn a_failure_after_the_image_moved_leaves_writers_stopped_and_both_copies() {
    for fault in [
        Fault::JobFails { step: "migrate", category: Category::Candidate, reason: "MigrateFailed" },
        Fault::JobVanishes { step: "migrate" },
        Fault::JobHangs { step: "migrate" },
        Fault::CandidatePull,
        Fault::CandidateCrashes,
    ] {
        let mut world = World::with(fault.clone());
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Halted), "{fault:?}");
        stopped(&world);
        assert!(world.journal.snapshot.is_some());
        assert!(world.journal.writers_back_at.is_none());
        assert!(world.seen.targets.values().all(|target| target.attempt.is_some()), "the marks stay");
    }
}

#[test]
fn a_failure_after_ingestion_was_back_leaves_the_new_version_running() {
    for step in ["gate", "bootstrap", "verify"] {
        let mut world = World::with(Fault::JobFails { step, category: Category::Candidate, reason: "CheckFailed" });
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Unverified), "{step}");
        as_before(&world);
        assert!(world.seen.targets.values().all(|target| target.image == NEW));
    }
}

#[test]
fn a_limit_that_runs_out_says_what_was_awaited() {
    let mut world = World::with(Fault::JobHangs { step: "snapshot" });
    world.run();
    let failure = world.journal.failure.as_ref().unwrap();
    assert_eq!((failure.phase.as_str(), failure.reason.as_str()), ("SnapshotExport", "LimitExceeded"));
    assert!(failure.message.contains("limit of 1h: job memoria-1-snapshot runs"), "{}", failure.message);
}

#[test]
fn a_workload_of_the_same_name_that_was_made_anew_is_not_touched() {
    let mut world = World::new();
    world.turn(None);
    world.seen.targets.get_mut("server").unwrap().uid = "another".into();
    for _ in 0..20 {
        world.turn(None);
    }
    assert!(!world.acts.iter().any(|act| act.contains("deployment/server")), "{:?}", world.acts);
    assert_eq!(world.journal.failure.as_ref().unwrap().reason, "WorkloadReplaced");
}

#[test]
fn the_mark_of_an_attempt_without_its_journal_is_not_overwritten() {
    let mut world = World::new();
    world.seen.targets.get_mut("server").unwrap().attempt = Some("memoria-0".into());
    for _ in 0..20 {
        world.turn(None);
    }
    let failure = world.journal.failure.as_ref().unwrap();
    assert_eq!(failure.reason, "MarkedByAnotherAttempt");
    assert_eq!(world.seen.targets["server"].replicas, 2);
}

#[test]
fn an_abort_before_the_image_moved_resumes_and_after_it_halts() {
    let total = good().stored;
    let mut outcomes = std::collections::BTreeSet::new();
    for turns in 0..total * 2 {
        let mut world = World::new();
        for _ in 0..turns {
            world.turn(None);
        }
        if world.journal.outcome.is_some() {
            break;
        }
        let moved = world.journal.phases.iter().any(|phase| phase.name == "ImageBump");
        world.seen.orders.abort = Some("stop-it".into());
        world.run();
        let outcome = world.journal.outcome.unwrap();
        outcomes.insert(format!("{outcome:?}"));
        match outcome {
            Outcome::Aborted if world.acts.is_empty() => as_before(&world),
            // A halted attempt is released by the same decision: writers stay stopped.
            Outcome::Aborted => {
                assert!(moved);
                stopped(&world);
            }
            Outcome::Resumed => {
                as_before(&world);
                assert!(!world.acts.iter().any(|act| act.starts_with("image")));
            }
            Outcome::Unverified => as_before(&world),
            other => panic!("{other:?} after an abort at turn {turns}"),
        }
    }
    assert!(outcomes.contains("Resumed") && outcomes.contains("Unverified"), "{outcomes:?}");
}

#[test]
fn an_abort_in_mid_migrate_waits_for_its_end() {
    let mut world = World::new();
    while !world.acts.contains(&"job migrate".to_owned()) {
        world.turn(None);
    }
    world.faults.push(Fault::JobHangs { step: "migrate" });
    world.seen.jobs.get_mut("migrate").unwrap().state = JobState::Running { trouble: None };
    world.seen.orders.abort = Some("stop-it".into());
    for _ in 0..5 {
        world.turn(None);
    }
    assert_eq!(world.journal.phase.as_deref(), Some("Migrate"));
    assert!(!world.acts.iter().any(|act| act.starts_with("delete job")));
}

#[test]
fn suspend_holds_between_phases_and_says_whether_writers_are_stopped() {
    let mut world = World::new();
    while world.journal.phase.as_deref() != Some("SnapshotExport") {
        world.turn(None);
    }
    world.seen.orders.suspend = true;
    for _ in 0..10 {
        world.turn(None);
    }
    let message = world.journal.message.clone().unwrap();
    assert_eq!(message, "suspended before ImageBump by spec.suspend; writers are stopped meanwhile");
    world.seen.orders.suspend = false;
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Losing any actions at any turns (a crash after the journal was stored) changes neither the end nor what was done.
    #[test]
    fn crashes_anywhere_end_as_an_undisturbed_run(losses in proptest::collection::vec((0usize..60, 0usize..3), 0..12)) {
        let calm = good();
        let mut world = World::new();
        for turn in 0..400 {
            let lose = losses.iter().find(|(at, _)| *at == turn).map(|(_, keep)| *keep);
            let moved = world.turn(lose);
            if !moved && world.journal.outcome.is_some() {
                break;
            }
        }
        prop_assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
        prop_assert_eq!(&world.seen.jobs, &calm.seen.jobs);
        let done = |world: &World| {
            let mut acts = world.acts.clone();
            acts.sort();
            acts.dedup();
            acts
        };
        prop_assert_eq!(done(&world), done(&calm));
        for (name, target) in &world.seen.targets {
            prop_assert_eq!(&target.image, &calm.seen.targets[name].image);
            prop_assert_eq!(target.replicas, calm.seen.targets[name].replicas);
        }
    }

    /// The same question has the same answer: the machine reads nothing but its arguments.
    #[test]
    fn the_same_question_has_the_same_answer(turns in 0usize..80) {
        let mut world = World::new();
        for _ in 0..turns {
            world.turn(None);
        }
        let (first, second) = (world.decide(), world.decide());
        prop_assert_eq!(first.journal, second.journal);
        prop_assert_eq!(first.actions, second.actions);
    }
}
