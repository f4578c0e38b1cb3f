//! Whole attempts in a small world: the good one, every failure, and a crash at every single act.

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
    assert_eq!(world.journal.rollback.as_ref().unwrap().awaiting.as_deref(), Some("AcceptDataLoss"));
    stopped(&world);
    assert!(world.journal.writers_back_at.is_none());
    assert!(world.seen.targets.values().all(|target| target.image == NEW), "nothing moves before that word");
    world.seen.orders.accept_data_loss = Some("so-be-it".into());
    world.run();
    rolled_back(&world);
    at(&world, "job restore-accepted");
    assert_eq!(world.journal.decisions[0].name, "so-be-it");
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

mod config {
    //! The settings on the way there and back.

    use proptest::prelude::*;

    use super::{AFTER_THE_BUMP, as_before, at, rolled_back};
    use crate::{
        api::{settings::ConfigState, upgrade::Category, upgrade::Outcome},
        upgrade::world::{Fault, NEW_CONFIG, OLD, PRIOR_CONFIG, World},
    };

    fn sha(world: &mut World) -> String {
        world.config().sha256.clone().unwrap()
    }

    #[test]
    fn settings_are_kept_and_then_written_before_anything_of_the_new_version_starts() {
        let mut world = World::with_config([]);
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
        assert_eq!(sha(&mut world), NEW_CONFIG);
        let order = ["job migrate", "keep config", "config new", "candidate server", "scale deployment/server 2"];
        assert!(order.iter().map(|what| at(&world, what)).is_sorted(), "{:#?}", world.acts);
        let record = world.journal.config.unwrap();
        assert_eq!((record.state, record.kept_in.as_deref()), (ConfigState::Refreshed, Some("memoria-1-config")));
        assert_eq!(record.report.to_string(), "1 default adopted, 1 override kept, 0 obsolete");
    }

    #[test]
    fn a_failure_after_it_puts_the_prior_settings_back_before_the_prior_version_starts() {
        for fault in [Fault::CandidatePull, Fault::CandidateCrashes] {
            let mut world = World::with_config([fault]);
            world.run();
            rolled_back(&world);
            assert_eq!(sha(&mut world), PRIOR_CONFIG);
            let back = at(&world, "config prior");
            assert!(back < at(&world, &format!("image deployment/server {OLD}")));
            assert_eq!(world.journal.config.as_ref().unwrap().state, ConfigState::Restored);
        }
    }

    #[test]
    fn a_failure_before_it_leaves_the_settings_alone() {
        for fault in &AFTER_THE_BUMP[..3] {
            let mut world = World::with_config([fault.clone()]);
            world.run();
            rolled_back(&world);
            assert!(!world.acts.iter().any(|act| act.contains("config")), "{:#?}", world.acts);
            assert_eq!(world.journal.config, None);
        }
    }

    #[test]
    fn settings_that_changed_since_the_plan_stop_it_before_the_image_moves() {
        let changes: [fn(&mut World); 4] = [
            |world| world.config().set("theirs"),
            |world| world.seen.config.as_mut().unwrap().overrides_sha256 = Some("others".into()),
            |world| world.config().uid = "another".into(),
            |world| world.seen.config.as_mut().unwrap().output = None,
        ];
        for change in changes {
            let mut world = World::with_config([]);
            change(&mut world);
            world.run();
            assert_eq!(world.journal.outcome, Some(Outcome::Resumed));
            as_before(&world);
            let failure = world.journal.failure.unwrap();
            assert_eq!((failure.phase.as_str(), failure.category), ("SnapshotExport", Category::Conflict));
            assert!(failure.message.contains("configmap/memoria-"), "{}", failure.message);
        }
    }

    #[test]
    fn settings_that_another_hand_changes_are_never_overwritten() {
        // Before the attempt wrote them.
        let mut world = World::with_config([Fault::ConfigChangedIn("Migrate")]);
        world.run();
        rolled_back(&world);
        assert_eq!(sha(&mut world), "theirs");
        assert_eq!(world.journal.failure.unwrap().reason, "ConfigChanged");
        // After it.
        let mut world = World::with_config([Fault::CandidateCrashes, Fault::ConfigChangedIn("Start")]);
        world.run();
        rolled_back(&world);
        assert_eq!(sha(&mut world), "theirs");
        assert_eq!(world.journal.config.as_ref().unwrap().state, ConfigState::LeftAsFound);
        let record = world.journal.phases.iter().find(|record| record.name == "RestoreConfig").unwrap();
        assert!(record.message.contains("get configmap memoria-1-config"), "{}", record.message);
    }

    #[test]
    fn a_tool_that_puts_the_settings_back_is_named_and_not_fought_with() {
        let mut world = World::with_config([Fault::ConfigReverted]);
        world.config().managers = vec!["argocd-controller".into()];
        world.run();
        rolled_back(&world);
        assert_eq!(world.acts.iter().filter(|act| *act == "config new").count(), 2);
        let failure = world.journal.failure.unwrap();
        assert_eq!(failure.reason, "ConfigReverted");
        assert!(failure.message.contains("argocd-controller"), "{}", failure.message);
    }

    #[test]
    fn a_write_that_was_intended_and_never_came_is_shut_out() {
        let mut world = World::with_config([]);
        while !world.acts.iter().any(|act| act == "keep config") {
            world.turn(None);
        }
        let intended =
            |world: &World| world.journal.phases.last().and_then(|record| record.done.get("write-1")).cloned();
        while intended(&world).is_none() {
            world.turn(Some(0));
        }
        let at = intended(&world).unwrap();
        assert_eq!((world.config().resource_version.clone(), sha(&mut world)), (at.clone(), PRIOR_CONFIG.into()));
        world.seen.orders.abort = Some("memoria-1-abort".into());
        world.run();
        rolled_back(&world);
        assert_eq!(sha(&mut world), PRIOR_CONFIG);
        assert!(!world.acts.iter().any(|act| act == "config new"), "{:#?}", world.acts);
        assert_eq!(world.acts.iter().filter(|act| *act == "config prior").count(), 1);
        assert_ne!(world.config().resource_version, at, "the late write would still be taken");
    }

    #[test]
    fn settings_that_are_right_already_are_not_written() {
        let mut world = World::with_config([]);
        world.plan.config.as_mut().unwrap().new_sha256 = PRIOR_CONFIG.into();
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
        assert!(!world.acts.iter().any(|act| act.contains("config")));
        assert_eq!(world.journal.config.unwrap().state, ConfigState::Unchanged);
    }

    proptest! {
        #[test]
        fn crashes_change_neither_the_settings_nor_how_often_they_are_written(
            drops in proptest::collection::vec(proptest::option::weighted(0.4, 0_usize..3), 0..120),
            fails in any::<bool>(),
        ) {
            let mut world = World::with_config(fails.then_some(Fault::CandidateCrashes));
            for lose in drops {
                world.turn(lose);
            }
            world.run();
            let count = |what: &str| world.acts.iter().filter(|act| *act == what).count();
            prop_assert_eq!((count("keep config"), count("config new"), count("config prior")), (1, 1, usize::from(fails)));
            let expected = if fails { PRIOR_CONFIG } else { NEW_CONFIG };
            prop_assert_eq!(sha(&mut world), expected);
        }
    }
}

mod retry {
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

    const STORAGE: Fault =
        Fault::JobFails { step: "baseline", category: Category::Environment, reason: "StorageFailed" };

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
        world.seen.refusal =
            Some(Refusal { category: Category::Environment, reason: "RequestRefused".into(), message });
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
}
