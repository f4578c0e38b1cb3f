//! Checks that run a CronJob's template, in the small world: side by side with those that ask, failed, held, only
//! reported, asked anew, and with a crash at any act.

use proptest::prelude::*;

use super::world::{Fault, NEW, World};
use crate::api::{
    release::{Stage, Verdict},
    upgrade::{Category, Outcome, PlannedCheck, PlannedJob},
};

const FAILED: (Category, &str) = (Category::Candidate, "CheckFailed");
const INCONCLUSIVE: (Category, &str) = (Category::Environment, "CheckInconclusive");

fn fault(step: &'static str, (category, reason): (Category, &'static str)) -> Fault {
    Fault::JobFails { step, category, reason }
}

/// A world with such checks, and those that it has without them.
fn world(checks: &[(&str, Stage, bool)], faults: impl IntoIterator<Item = Fault>) -> World {
    let mut world = World::new();
    world.plan.candidate_seconds = 600;
    world.plan.jobs.extend(checks.iter().map(|(name, stage, required)| PlannedJob {
        step: format!("check-{name}"),
        check: Some(PlannedCheck { stage: *stage, required: *required }),
        manifest: serde_json::json!({}),
    }));
    world.faults.extend(faults);
    world
}

const SMOKE: [(&str, Stage, bool); 1] = [("smoke", Stage::AfterIngestion, true)];
const EVERY_STAGE: [(&str, Stage, bool); 4] = [
    ("first", Stage::BeforeIngestion, true),
    ("settled", Stage::IngestionReenable, true),
    ("smoke", Stage::AfterIngestion, true),
    ("told", Stage::AfterIngestion, false),
];

fn result(world: &World, check: &str) -> Option<Verdict> {
    world.journal.checks.iter().find(|found| found.name == check).map(|found| found.result)
}

fn held(world: &mut World) {
    for _ in 0..300 {
        world.turn(None);
        if world.journal.hold.is_some() {
            return;
        }
    }
    panic!("it never holds: {:?}", world.journal.message);
}

#[test]
fn each_runs_in_its_stage_and_its_result_stands_in_the_journal() {
    let mut world = world(&EVERY_STAGE, []);
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    let at = |what: &str| world.acts.iter().position(|act| act == what).unwrap();
    let order = [
        "admit candidate server",
        "job check-first",
        "delete candidate server",
        "scale deployment/ingest 3",
        "job check-settled",
        "job check-smoke",
    ];
    assert!(order.map(at).is_sorted(), "{:#?}", world.acts);
    for (name, ..) in EVERY_STAGE {
        assert_eq!(result(&world, name), Some(Verdict::Passed), "{name}");
    }
    assert!(world.seen.jobs.values().all(|job| job.ttl_armed));
}

#[test]
fn one_that_fails_takes_the_attempt_back_and_one_that_is_only_reported_does_not() {
    for (name, stage, _) in EVERY_STAGE.into_iter().filter(|(.., required)| *required) {
        let step = match name {
            "first" => "check-first",
            "settled" => "check-settled",
            _ => "check-smoke",
        };
        let mut world = world(&[(name, stage, true)], [fault(step, FAILED)]);
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::RolledBack), "{name}");
        assert_eq!(world.journal.failure.as_ref().unwrap().reason, "CheckFailed");
    }
    for (kind, verdict) in [(FAILED, Verdict::Failed), (INCONCLUSIVE, Verdict::Inconclusive)] {
        let mut world = world(&EVERY_STAGE, [fault("check-told", kind)]);
        world.run();
        assert_eq!((world.journal.outcome, result(&world, "told")), (Some(Outcome::Succeeded), Some(verdict)));
        assert!(world.journal.phases.iter().all(|phase| phase.held_seconds == 0));
        assert!(world.seen.targets.values().all(|target| target.image == NEW));
    }
}

#[test]
fn one_without_a_verdict_holds_and_alone_is_asked_again() {
    let mut world = world(&SMOKE, [fault("check-smoke", INCONCLUSIVE)]);
    held(&mut world);
    let hold = world.journal.hold.clone().unwrap();
    assert_eq!((hold.phase.as_str(), hold.reason.as_str()), ("Verification", "CheckInconclusive"));
    assert!(hold.next_command.starts_with("kubectl -n ns logs job/memoria-1-check-smoke --all-containers ||"));
    for _ in 0..100 {
        world.turn(None);
    }
    let made = |world: &World, act: &str| world.acts.iter().filter(|made| *made == act).count();
    assert!((3..=4).contains(&made(&world, "job check-smoke")), "{:#?}", world.acts);
    assert_eq!(made(&world, "job verify"), 1, "the one that passed is not asked again");
    world.faults.clear();
    world.run();
    assert_eq!((world.journal.outcome, result(&world, "smoke")), (Some(Outcome::Succeeded), Some(Verdict::Passed)));
}

#[test]
fn two_without_a_verdict_are_named_together_and_a_failure_outweighs_them() {
    let checks = [("a", Stage::AfterIngestion, true), ("b", Stage::AfterIngestion, true)];
    let mut world = world(&checks, [fault("check-a", INCONCLUSIVE), fault("check-b", INCONCLUSIVE)]);
    held(&mut world);
    let message = world.journal.hold.clone().unwrap().message;
    assert!(message.contains("check-a") && message.contains("check-b"), "{message}");
    world.faults = vec![fault("check-a", INCONCLUSIVE), fault("check-b", FAILED)];
    world.run();
    assert_eq!(world.journal.failure.as_ref().unwrap().reason, "CheckFailed");
    assert_eq!(world.journal.outcome, Some(Outcome::RolledBack));
}

#[test]
fn those_of_a_candidate_that_is_replaced_begin_anew() {
    let mut world = world(&EVERY_STAGE, [fault("check-first", INCONCLUSIVE)]);
    held(&mut world);
    world.seen.candidates.clear();
    world.faults.clear();
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    assert_eq!(world.acts.iter().filter(|act| *act == "job check-first").count(), 2);
}

#[test]
fn the_way_back_ends_one_that_still_runs() {
    let mut world = world(&SMOKE, [fault("verify", FAILED), Fault::JobHangs { step: "check-smoke" }]);
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::RolledBack));
    let at = |what: &str| world.acts.iter().position(|act| act == what).unwrap();
    assert!(at("delete job check-smoke") < at("job restore"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Losing any actions at any turns changes neither the end nor what was done: each check's Job is made once.
    #[test]
    fn crashes_anywhere_make_each_check_once(losses in proptest::collection::vec((0usize..80, 0usize..3), 0..12)) {
        let mut calm = world(&EVERY_STAGE, []);
        calm.run();
        let mut world = world(&EVERY_STAGE, []);
        for turn in 0..400 {
            let lose = losses.iter().find(|(at, _)| *at == turn).map(|(_, keep)| *keep);
            if !world.turn(lose) && world.journal.outcome.is_some() {
                break;
            }
        }
        prop_assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
        prop_assert_eq!(&world.seen.jobs, &calm.seen.jobs);
        prop_assert_eq!(&world.journal.checks, &calm.journal.checks);
        for (name, ..) in EVERY_STAGE {
            prop_assert_eq!(world.acts.iter().filter(|act| **act == format!("job check-{name}")).count(), 1);
        }
    }
}
