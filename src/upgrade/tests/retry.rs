//! A person has mended the cause, and orders that it be tried once more.

use proptest::prelude::*;

use super::{as_before, at, good, intrude, rollback_failed, rolled_back, stopped};
use crate::{
    api::{
        decision::DecisionAction,
        upgrade::{Category, Outcome},
    },
    upgrade::{
        Action,
        seen::{JobState, Refusal},
        world::{Fault, NEW, NEW_CONFIG, World, workload_ref},
    },
};

const STORAGE: Fault = Fault::JobFails { step: "baseline", category: Category::Environment, reason: "StorageFailed" };

fn fails(step: &'static str, category: Category, reason: &'static str) -> Fault {
    Fault::JobFails { step, category, reason }
}

fn halted_in(mut world: World) -> World {
    world.plan.rollback.automatic = false;
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Halted), "{:?}", world.journal.message);
    world
}

fn halted(fault: Fault) -> World {
    halted_in(World::with(fault))
}

fn order(world: &mut World) {
    world.faults.clear();
    world.seen.orders.retry = Some("again".into());
}

fn count(world: &World, what: &str) -> usize {
    world.acts.iter().filter(|act| *act == what).count()
}

fn succeeded(world: &World) {
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded), "{:?}", world.journal);
    as_before(world);
    assert!(world.seen.targets.values().all(|target| target.image == NEW));
    assert!(world.journal.failure.is_none() && world.journal.finished_at.is_some());
    let [decision] = &world.journal.decisions[..] else { panic!("{:?}", world.journal.decisions) };
    assert_eq!((decision.name.as_str(), decision.action), ("again", DecisionAction::Retry));
    assert_eq!(decision.refused, None);
}

/// Why the last order was refused; nothing but the answer is new.
fn refused(world: &mut World) -> String {
    let (acts, journal) = (world.acts.len(), world.journal.clone());
    world.seen.orders.retry = Some("again".into());
    world.run();
    assert_eq!(world.acts.len(), acts, "{:?}", world.acts);
    let decision = world.journal.decisions.pop().unwrap();
    assert_eq!(world.journal, journal);
    world.journal.decisions.push(decision.clone());
    let settled = world.decide();
    assert!(settled.actions.is_empty() && settled.journal == world.journal, "it is answered again and again");
    decision.refused.unwrap()
}

#[test]
fn a_halted_attempt_goes_on_with_the_phase_that_failed() {
    for (fault, migrated) in [
        (STORAGE, 1),
        (fails("migrate", Category::Transient, "Unreachable"), 2),
        (fails("migrate", Category::Conflict, "UnfinishedAttempt"), 2),
    ] {
        let mut world = halted(fault.clone());
        order(&mut world);
        world.run();
        succeeded(&world);
        assert_eq!(count(&world, "job migrate"), migrated, "{fault:?}");
        assert_eq!(count(&world, "job snapshot"), 1);
        // What failed is gone before it is made anew.
        let step = if migrated == 2 { "migrate" } else { "baseline" };
        let (gone, made) = (format!("delete job {step}"), format!("job {step}"));
        assert!(at(&world, &gone) < world.acts.iter().rposition(|act| *act == made).unwrap(), "{:#?}", world.acts);
    }
}

#[test]
fn what_may_not_be_tried_again_is_refused_and_can_still_be_taken_back() {
    for (fault, why) in [
        (fails("migrate", Category::Candidate, "MigrateFailed"), "the new version's own fault (MigrateFailed)"),
        (fails("migrate", Category::Environment, "MigrateOutcomeUnknown"), "are never run again"),
        (fails("migrate", Category::Environment, "MigrateInterrupted"), "are never run again"),
        (Fault::JobVanishes { step: "migrate" }, "nobody knows whether they were (JobLost)"),
        (Fault::JobHangs { step: "migrate" }, "nobody knows whether they were (LimitExceeded)"),
        (fails("migrate", Category::Conflict, "DataChangedSinceSnapshot"), "something wrote to the database"),
        (Fault::CandidateCrashes, "the new version's own fault (CandidateCrashed)"),
    ] {
        let mut world = halted(fault.clone());
        world.faults.clear();
        let said = refused(&mut world);
        assert!(said.contains(why) && said.contains("action Rollback"), "{fault:?}: {said}");
        stopped(&world);
        world.seen.orders.rollback = Some("take-it-back".into());
        world.run();
        rolled_back(&world);
    }
}

#[test]
fn what_ran_while_nobody_watched_is_not_built_upon() {
    type Change = fn(&mut World);
    let changes: [(Change, &str); 3] = [
        (
            |world| {
                intrude(world);
                world.turn(None);
            },
            "deployment/ingest runs although the attempt keeps it stopped",
        ),
        (
            |world| world.workload(workload_ref("server")).generation += 2,
            "deployment/server may have run while nobody watched",
        ),
        (|world| world.workload(workload_ref("ingest")).attempt = None, "does not bear the attempt's mark"),
    ];
    for (change, why) in changes {
        let mut world = halted(STORAGE);
        change(&mut world);
        let said = refused(&mut world);
        assert!(said.contains(why) && said.contains("Rollback"), "{said}");
    }
    // Before the migrations the guard compares every row.
    let mut world = halted(fails("migrate", Category::Transient, "Unreachable"));
    world.workload(workload_ref("server")).generation += 2;
    order(&mut world);
    world.run();
    succeeded(&world);
}

#[test]
fn what_ran_just_before_it_was_opened_again_is_seen_too() {
    let mut world = halted(STORAGE);
    order(&mut world);
    while world.journal.outcome.is_some() {
        world.turn(None);
    }
    world.workload(workload_ref("server")).generation += 2;
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Halted));
    assert_eq!(world.journal.failure.as_ref().unwrap().reason, "WriterCameBack");
    world.seen.orders.retry = None;
    world.seen.orders.rollback = Some("take-it-back".into());
    world.run();
    rolled_back(&world);
}

#[test]
fn a_writer_that_came_and_went_while_it_was_halted_is_told_to_the_restore() {
    for (visit, told) in [(0, false), (2, true)] {
        let mut world = halted(STORAGE);
        world.faults.clear();
        world.workload(workload_ref("ingest")).generation += visit;
        world.seen.orders.rollback = Some("take-it-back".into());
        let mut late = None;
        while world.journal.outcome != Some(Outcome::RolledBack) {
            late = world.decide().actions.into_iter().find_map(restore_is_told).or(late);
            world.turn(None);
        }
        assert_eq!(late, Some(told));
        rolled_back(&world);
    }
}

/// Whether a restore Job looks for rows of others.
fn restore_is_told(action: Action) -> Option<bool> {
    match action {
        Action::CreateJob { step, input } if step == "restore" => Some(input.late_writes_possible),
        _ => None,
    }
}

#[test]
fn a_writer_that_comes_while_it_halts_is_stopped_and_not_forgotten() {
    let mut world = World::with(STORAGE);
    world.plan.rollback.automatic = false;
    while world.journal.phase.as_deref() != Some("Halt") {
        world.turn(None);
    }
    intrude(&mut world);
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Halted));
    stopped(&world);
    assert!(world.journal.phases.last().unwrap().done.contains_key("writer-came-back"));
    let said = refused(&mut world);
    assert!(said.contains("something wrote to the database"), "{said}");
}

#[test]
fn clients_that_were_let_in_stay_counted_from_the_first_baseline() {
    let mut world = World::new();
    world.plan.rollback.automatic = false;
    let let_in =
        |world: &World| world.journal.phases.last().and_then(|start| start.done.get("clients-may-write")).cloned();
    while let_in(&world).is_none() {
        world.turn(None);
    }
    let (since, message) = (let_in(&world), "exceeded quota".to_owned());
    world.seen.refusal = Some(Refusal { category: Category::Environment, reason: "RequestRefused".into(), message });
    world.turn(None);
    world.seen.refusal = None;
    let mut world = halted_in(world);
    order(&mut world);
    world.run();
    succeeded(&world);
    let start = world.journal.phases.iter().rfind(|record| record.name == "Start").unwrap();
    assert_eq!((start.done.get("clients-may-write"), start.done["baseline"].as_str()), (since.as_ref(), "b"));
    assert_eq!(count(&world, "job baseline"), 1);
}

#[test]
fn settings_that_were_written_are_not_written_again_and_those_that_were_not_are() {
    let mut world = World::with_config([STORAGE]);
    world.plan.rollback.automatic = false;
    let mut world = halted_in(world);
    order(&mut world);
    world.run();
    succeeded(&world);
    assert_eq!(count(&world, "config new"), 1);

    let mut world = halted_in(World::with_config([Fault::ConfigReverted]));
    order(&mut world);
    world.run();
    succeeded(&world);
    assert_eq!(world.config().sha256.as_deref(), Some(NEW_CONFIG));
}

#[test]
fn a_way_back_that_failed_begins_anew_and_restores_by_a_job_of_its_own() {
    let mut world = World::with(Fault::CandidateCrashes);
    world.faults.push(fails("restore", Category::Environment, "StorageFailed"));
    world.run();
    rollback_failed(&world, "StorageFailed");
    order(&mut world);
    world.run();
    rolled_back(&world);
    assert_eq!(world.journal.decisions[0].action, DecisionAction::Retry);
    assert_eq!((count(&world, "job restore"), count(&world, "delete job restore")), (2, 1));
    assert!(!world.acts.iter().any(|act| act == "job gate"), "it never goes forward again");
}

#[test]
fn an_attempt_that_works_or_is_over_has_nothing_to_try_again() {
    let mut world = World::new();
    while world.journal.phase.as_deref() != Some("SnapshotExport") {
        world.turn(None);
    }
    world.seen.orders.retry = Some("again".into());
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    assert!(world.journal.decisions[0].refused.as_ref().unwrap().contains("it is under way"));

    let mut taken_back = World::with(Fault::CandidateCrashes);
    taken_back.run();
    let mut resumed = World::with(fails("fence", Category::Environment, "WritersRemain"));
    resumed.run();
    for (mut world, why) in [(good(), "has succeeded"), (taken_back, "requested-at"), (resumed, "requested-at")] {
        let said = refused(&mut world);
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn while_a_loss_waits_for_a_persons_word_retry_is_not_that_word() {
    let mut world = World::with(fails("verify", Category::Candidate, "CheckFailed"));
    world.faults.push(fails("restore", Category::Decision, "DataLossOverBudget"));
    world.run();
    let said = refused(&mut world);
    assert!(said.contains("AcceptDataLoss"), "{said}");
}

#[test]
fn it_is_tried_again_only_while_the_journal_has_room_for_the_way_back() {
    let mut world = halted(STORAGE);
    for turn in 0..60 {
        world.seen.orders.retry = Some(format!("again-{turn}"));
        world.run();
        if world.journal.decisions.last().unwrap().refused.is_some() {
            break;
        }
    }
    let said = world.journal.decisions.last().unwrap().refused.clone().unwrap();
    assert!(said.contains("tried too often"), "{said}");
    world.seen.orders.rollback = Some("take-it-back".into());
    world.run();
    rolled_back(&world);
    assert!(world.journal.phases.len() <= 64, "the API server takes no more");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is lost on the way, it succeeds, and migrations ran as often as the failure allows.
    #[test]
    fn crashes_while_it_is_tried_again_change_nothing(
        losses in proptest::collection::vec((0usize..60, 0usize..3), 0..12),
        before_migrations in any::<bool>(),
    ) {
        let early = fails("migrate", Category::Transient, "Unreachable");
        let mut world = halted(if before_migrations { early } else { STORAGE });
        order(&mut world);
        for turn in 0..400 {
            let lose = losses.iter().find(|(at, _)| *at == turn).map(|(_, keep)| *keep);
            let moved = world.turn(lose);
            if !moved && world.journal.outcome == Some(Outcome::Succeeded) {
                break;
            }
        }
        succeeded(&world);
        prop_assert_eq!(count(&world, "job migrate"), if before_migrations { 2 } else { 1 });
        let ended = |job: &JobState| matches!(job, JobState::Finished { succeeded: true, .. });
        prop_assert!(world.seen.jobs.values().all(|job| ended(&job.state)));
    }
}
