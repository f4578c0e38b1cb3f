//! Whole attempts in a small world: the good one, every failure, and a crash at every single act.

mod at_risk;
mod config;
mod retry;

use proptest::prelude::*;

use super::{
    Action,
    seen::JobState,
    world::{Fault, NEW, OLD, World, workload_ref},
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
        "job baseline",
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

/// Image, data, replicas, flag and marks are as before, by the acts that the way back is made of, in their order.
fn rolled_back(world: &World) {
    assert_eq!(world.journal.outcome, Some(Outcome::RolledBack), "{:?}", world.journal.message);
    as_before(world);
    assert!(world.seen.targets.values().all(|target| target.image == OLD));
    assert!(world.seen.candidates.is_empty());
    let rollback = world.journal.rollback.as_ref().unwrap();
    assert_eq!((rollback.restored, rollback.data_digest.as_deref()), (Some(true), Some("d")));
    assert!(rollback.failure.is_none() && rollback.awaiting.is_none());
    let restore = world.acts.iter().rposition(|act| act.starts_with("job restore")).unwrap();
    let rest = &world.acts[restore..];
    let after =
        |what: &str| rest.iter().position(|act| act.starts_with(what)).unwrap_or_else(|| panic!("{what}: {rest:?}"));
    let image = format!("image deployment/server {OLD}");
    let mut order = vec!["scale deployment/server 2", "flag false", "scale deployment/ingest 3"];
    if world.acts.iter().any(|act| act.ends_with(NEW)) {
        order.insert(0, &image);
    }
    let places: Vec<_> = order.into_iter().map(after).collect();
    assert!(places.is_sorted(), "{rest:?}");
    assert!(!world.acts[..restore].iter().any(|act| act.starts_with("image") && act.ends_with(OLD)));
}

const AFTER_THE_BUMP: [Fault; 5] = [
    Fault::JobFails { step: "migrate", category: Category::Candidate, reason: "MigrateFailed" },
    Fault::JobVanishes { step: "migrate" },
    Fault::JobHangs { step: "migrate" },
    Fault::CandidatePull,
    Fault::CandidateCrashes,
];

#[test]
fn a_failure_after_the_image_moved_takes_image_and_data_back() {
    for fault in AFTER_THE_BUMP {
        let mut world = World::with(fault.clone());
        world.run();
        rolled_back(&world);
        assert!(world.seen.jobs.values().all(|job| job.ttl_armed), "{fault:?}");
    }
}

#[test]
fn where_that_was_not_asked_for_it_stops_until_a_person_orders_it() {
    for fault in AFTER_THE_BUMP {
        let mut world = World::with(fault.clone());
        world.plan.rollback.automatic = false;
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Halted), "{fault:?}");
        stopped(&world);
        assert!(world.journal.snapshot.is_some());
        assert!(world.journal.writers_back_at.is_none());
        assert!(world.seen.targets.values().all(|target| target.attempt.is_some()), "the marks stay");
        world.seen.orders.rollback = Some("take-it-back".into());
        world.run();
        rolled_back(&world);
        assert_eq!(world.journal.decisions.len(), 1);
    }
}

#[test]
fn a_failure_after_ingestion_was_back_is_taken_back_too_and_knows_that_clients_wrote() {
    for step in ["gate", "bootstrap", "parity", "verify"] {
        let fault = Fault::JobFails { step, category: Category::Candidate, reason: "CheckFailed" };
        let mut world = World::with(fault.clone());
        world.run();
        rolled_back(&world);
        let start = world.journal.phases.iter().find(|record| record.name == "Start").unwrap();
        assert_eq!(start.done["baseline"], "b");
        assert!(start.done.contains_key("clients-may-write"));

        let mut world = World::with(fault);
        world.plan.rollback.automatic = false;
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Unverified), "{step}");
        as_before(&world);
        assert!(world.seen.targets.values().all(|target| target.image == NEW));
    }
}

#[test]
fn a_succeeded_attempt_is_taken_back_by_decision_once() {
    let mut world = good();
    world.seen.orders.rollback = Some("take-it-back".into());
    world.run();
    rolled_back(&world);
    let decision = world.decide();
    assert!(decision.actions.is_empty() && decision.journal == world.journal);
}

#[test]
fn a_loss_over_the_budget_waits_for_a_persons_word_with_writers_stopped() {
    let mut world =
        World::with(Fault::JobFails { step: "verify", category: Category::Candidate, reason: "CheckFailed" });
    world.faults.push(Fault::JobFails { step: "restore", category: Category::Decision, reason: "DataLossOverBudget" });
    world.run();
    assert_eq!(world.journal.outcome, None);
    let record = world.journal.rollback.clone().unwrap();
    assert_eq!(record.awaiting.as_deref(), Some("AcceptDataLoss"));
    // Whoever decides sees what is at stake.
    assert_eq!((record.restored, record.late_inserted, record.late_carried), (None, 5, 3));
    assert_eq!(record.failed_state.as_deref(), Some("memoria-0b8ff1f4/memoria-1/failed"));
    let told: Vec<_> = record.late_tables.iter().map(|table| (table.carried, table.not_carried.as_deref())).collect();
    assert_eq!(told, [(3, None), (0, Some("it has no primary key"))]);
    stopped(&world);
    assert!(world.journal.writers_back_at.is_none());
    assert!(world.seen.targets.values().all(|target| target.image == NEW), "nothing moves before that word");
    world.seen.orders.accept_data_loss = Some("so-be-it".into());
    world.run();
    rolled_back(&world);
    at(&world, "job restore-accepted");
    assert_eq!(world.journal.decisions[0].name, "so-be-it");
    // What the restore itself says at last counts.
    let record = world.journal.rollback.clone().unwrap();
    assert_eq!(
        (record.restored, record.awaiting, record.late_inserted, record.late_tables),
        (Some(true), None, 0, vec![])
    );
}

#[test]
fn lost_restore_jobs_are_made_anew_and_too_many_of_them_stop_the_way_back() {
    let failing = Fault::JobFails { step: "migrate", category: Category::Candidate, reason: "MigrateFailed" };
    let mut world = World::with(failing.clone());
    world.faults.push(Fault::JobLost { step: "restore", times: 3 });
    world.run();
    rolled_back(&world);
    assert_eq!(world.acts.iter().filter(|act| *act == "job restore").count(), 4);

    let mut world = World::with(failing);
    world.faults.push(Fault::JobVanishes { step: "restore" });
    world.run();
    rollback_failed(&world, "RestoreLost");
}

fn rollback_failed(world: &World, reason: &str) {
    assert_eq!(world.journal.outcome, Some(Outcome::RollbackFailed), "{:?}", world.journal.message);
    stopped(world);
    let rollback = world.journal.rollback.as_ref().unwrap();
    assert_eq!(rollback.failure.as_ref().unwrap().reason, reason);
    assert!(world.journal.failure.is_some() && world.journal.snapshot.is_some());
    assert!(world.seen.targets.values().all(|target| target.attempt.is_some()), "the marks stay");
}

#[test]
fn a_way_back_that_fails_keeps_writers_stopped_and_a_person_can_order_it_again() {
    let mut world = World::with(Fault::CandidateCrashes);
    world.faults.push(Fault::JobFails {
        step: "restore",
        category: Category::Environment,
        reason: "RestoreParityFailed",
    });
    world.run();
    rollback_failed(&world, "RestoreParityFailed");
    assert!(world.seen.targets.values().all(|target| target.image == NEW), "old code never meets unproved data");
    world.faults.clear();
    world.seen.orders.rollback = Some("again".into());
    world.run();
    rolled_back(&world);
}

#[test]
fn suspend_holds_on_the_way_back_too_once_nothing_writes() {
    let mut world = World::with(Fault::CandidateCrashes);
    while world.journal.phase.as_deref() != Some("ImportSnapshot") {
        world.turn(None);
    }
    world.seen.orders.suspend = true;
    for _ in 0..20 {
        world.turn(None);
    }
    let message = world.journal.message.clone().unwrap();
    assert_eq!(message, "suspended before RestoreConfig by spec.suspend; writers are stopped meanwhile");
    stopped(&world);
    world.seen.orders.suspend = false;
    world.run();
    rolled_back(&world);
}

#[test]
fn an_image_that_is_flipped_back_is_rewritten_once_and_then_everything_stops() {
    let mut world = World::with(Fault::CandidateCrashes);
    world.faults.push(Fault::ImageFlipped);
    world.run();
    rollback_failed(&world, "ImageChanged");
}

#[test]
fn an_image_that_another_hand_puts_back_takes_the_attempt_back() {
    for phase in ["Start", "IngestionReenable", "Verification"] {
        let mut world = World::new();
        while world.journal.phase.as_deref() != Some(phase) {
            world.turn(None);
        }
        let server = world.workload(workload_ref("server"));
        server.image = OLD.into();
        server.generation += 1;
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::RolledBack), "{phase}");
        assert_eq!(world.journal.failure.as_ref().unwrap().reason, "ImageChanged", "{phase}");
        assert!(world.seen.targets.values().all(|target| target.image == OLD));
        as_before(&world);
    }
}

/// Another hand asks for a worker's replica.
fn intrude(world: &mut World) {
    let worker = world.workload(workload_ref("ingest"));
    worker.replicas = 1;
    worker.generation += 1;
}

#[test]
fn the_restore_looks_for_rows_of_a_writer_that_nobody_let_in() {
    for phase in ["ImageBump", "Migrate", "Start", "RollbackQuiesce"] {
        let mut world = World::with(Fault::CandidateCrashes);
        while world.journal.phase.as_deref() != Some(phase) {
            world.turn(None);
        }
        intrude(&mut world);
        let mut told = None;
        for _ in 0..50 {
            for action in world.decide().actions {
                if let Action::CreateJob { step, input } = action
                    && step == "restore"
                {
                    told = Some((input.late_writes_possible, input.baseline_sha256));
                }
            }
            world.turn(None);
        }
        assert_eq!(told, Some((true, None)), "{phase}");
    }
}

#[test]
fn a_writer_that_meets_the_restored_data_stops_the_way_back_and_the_proof_is_made_anew() {
    let mut world =
        World::with(Fault::JobFails { step: "migrate", category: Category::Candidate, reason: "MigrateFailed" });
    while !world.acts.contains(&"job restore".to_owned()) {
        world.turn(None);
    }
    intrude(&mut world);
    world.run();
    rollback_failed(&world, "WriterCameBack");
    world.seen.orders.rollback = Some("again".into());
    world.run();
    rolled_back(&world);
    assert_eq!(world.acts.iter().filter(|act| *act == "job restore").count(), 2);
}

#[test]
fn a_return_to_the_old_version_takes_the_attempt_back() {
    let mut world = World::new();
    while world.journal.phase.as_deref() != Some("Start") {
        world.turn(None);
    }
    world.seen.orders.returned = true;
    world.run();
    rolled_back(&world);
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
fn an_abort_before_the_image_moved_resumes_and_after_it_takes_back() {
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
            Outcome::RolledBack => {
                assert!(moved);
                rolled_back(&world);
            }
            Outcome::Resumed => {
                as_before(&world);
                assert!(!world.acts.iter().any(|act| act.starts_with("image")));
            }
            other => panic!("{other:?} after an abort at turn {turns}"),
        }
    }
    assert!(outcomes.contains("Resumed") && outcomes.contains("RolledBack"), "{outcomes:?}");
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
fn an_abort_on_the_way_back_is_answered_and_releases_nothing_later() {
    let mut world = World::new();
    let (category, reason) = (Category::Environment, "Broken");
    world.faults.push(Fault::JobFails { step: "migrate", category, reason });
    world.faults.push(Fault::JobFails { step: "restore", category, reason });
    while world.journal.phase.as_deref() != Some("RollbackQuiesce") {
        world.turn(None);
    }
    world.seen.orders.abort = Some("stop-it".into());
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::RollbackFailed));
    let answered: Vec<_> = world.journal.decisions.iter().map(|decision| decision.name.as_str()).collect();
    assert_eq!(answered, ["stop-it"]);
    // Another one releases it.
    world.seen.orders.abort = Some("let-go".into());
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Aborted));
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

    /// The same on the way back: whatever is lost on the way, image and data come back, each restore under its own name.
    #[test]
    fn crashes_anywhere_on_the_way_back_end_as_an_undisturbed_one(
        losses in proptest::collection::vec((0usize..100, 0usize..3), 0..16),
        fault in 0..AFTER_THE_BUMP.len(),
    ) {
        let mut world = World::with(AFTER_THE_BUMP[fault].clone());
        for turn in 0..600 {
            let lose = losses.iter().find(|(at, _)| *at == turn).map(|(_, keep)| *keep);
            if !world.turn(lose) {
                match (world.journal.outcome, world.decide().wake) {
                    (None, Some(wake)) if wake > world.now => world.now = wake,
                    _ => break,
                }
            }
        }
        rolled_back(&world);
        prop_assert_eq!(world.acts.iter().filter(|act| *act == "job restore").count(), 1);
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
