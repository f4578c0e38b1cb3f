//! Rows at risk are counted beside the phases: what becomes of a count changes nothing of the attempt.

use proptest::prelude::*;

use super::{as_before, at, good, rolled_back};
use crate::{
    api::upgrade::{AtRisk, Category, Outcome, PhaseState},
    upgrade::{
        estimate,
        world::{Fault, World},
    },
};

/// Without a verdict of the verification it holds, and clients write.
const HELD: Fault = Fault::JobFails { step: "verify", category: Category::Environment, reason: "CheckInconclusive" };

fn pass(world: &mut World, seconds: u32) {
    for _ in 0..seconds {
        world.turn(None);
    }
}

fn counts(world: &World) -> usize {
    world.acts.iter().filter(|act| *act == "job at-risk").count()
}

fn known(world: &World) -> AtRisk {
    world.journal.at_risk.clone().unwrap()
}

/// A world that holds in Verification.
fn held() -> World {
    let mut world = World::counting();
    world.faults.push(HELD);
    pass(&mut world, 60);
    assert_eq!(world.journal.hold.as_ref().unwrap().phase, "Verification");
    world
}

#[test]
fn an_upgrade_that_ends_soon_counts_nothing() {
    let mut world = World::counting();
    world.run();
    let calm = good();
    assert_eq!((&world.acts, world.journal.at_risk.as_ref()), (&calm.acts, None));
    assert_eq!(world.journal.phases, calm.journal.phases);
}

#[test]
fn while_it_holds_rows_are_counted_every_few_minutes_and_nothing_else_happens() {
    let mut world = held();
    assert_eq!((counts(&world), estimate::rows_at_risk(&world.journal)), (0, None), "not at once");
    let since = world.journal.hold.clone().unwrap().since;
    pass(&mut world, 200);
    assert_eq!(counts(&world), 1);
    assert!(at(&world, "delete job at-risk") > at(&world, "job at-risk"));
    let (rows, measured) = estimate::rows_at_risk(&world.journal).unwrap();
    assert_eq!((rows, known(&world).tables.len(), known(&world).failure), (3, 1, None));
    assert!(measured.unwrap().0 <= world.now);
    pass(&mut world, 1800);
    assert_eq!(counts(&world), 11, "one in three minutes");
    assert_eq!(estimate::rows_at_risk(&world.journal).unwrap().0, 13, "as it was counted last");
    assert_eq!(world.journal.hold.as_ref().unwrap().since, since, "it still is the same hold");
    // It is looked again when the next one is due, though nothing changes.
    while world.seen.jobs.contains_key("at-risk") {
        world.turn(None);
    }
    assert!(world.decide().wake.is_some());
    world.faults.clear();
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    as_before(&world);
    let decision = world.decide();
    assert!(decision.actions.is_empty() && decision.wake.is_none() && decision.journal == world.journal);
}

#[test]
fn a_count_that_takes_long_rests_long() {
    let mut world = held();
    world.count_millis = 120_000;
    pass(&mut world, 3000);
    // After the first one each rests ten times two minutes.
    assert_eq!(counts(&world), 3);
}

#[test]
fn a_count_that_fails_or_is_lost_or_hangs_changes_nothing() {
    let fails = Fault::JobFails { step: "at-risk", category: Category::Environment, reason: "DatabaseUnreachable" };
    for (fault, why) in [
        (fails, Some("at-risk: DatabaseUnreachable")),
        (Fault::JobVanishes { step: "at-risk" }, Some("pod lost")),
        (Fault::JobHangs { step: "at-risk" }, None),
    ] {
        let mut world = held();
        pass(&mut world, 200);
        let before = known(&world);
        world.faults.push(fault.clone());
        pass(&mut world, 400);
        assert!(counts(&world) >= 2, "{fault:?}");
        assert_eq!(known(&world).failure.as_deref(), why);
        assert_eq!((known(&world).measured_at, known(&world).rows()), (before.measured_at.clone(), before.rows()));
        world.faults.retain(|fault| *fault != HELD);
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Succeeded), "{fault:?}: {:?}", world.journal.message);
        assert!(world.journal.phases.iter().all(|phase| phase.state == PhaseState::Passed));
    }
}

#[test]
fn the_way_back_ends_a_count_and_asks_for_no_other() {
    let mut world = held();
    world.faults.push(Fault::JobHangs { step: "at-risk" });
    pass(&mut world, 200);
    assert!(world.seen.jobs.contains_key("at-risk"));
    world.faults.push(Fault::JobFails { step: "verify", category: Category::Candidate, reason: "CheckFailed" });
    world.faults.retain(|fault| *fault != HELD);
    world.run();
    rolled_back(&world);
    assert_eq!(counts(&world), 1);
    assert!(at(&world, "delete job at-risk") < at(&world, "job restore"));
}

#[test]
fn nothing_is_at_risk_before_clients_are_let_in_and_nobody_knows_where_a_stranger_wrote() {
    let mut world = World::counting();
    while world.journal.phase.as_deref() != Some("IngestionReenable") {
        let let_in = world.journal.phases.iter().any(|record| record.done.contains_key("clients-may-write"));
        let expected = if let_in { None } else { Some((0, None)) };
        assert_eq!(estimate::rows_at_risk(&world.journal), expected);
        world.turn(None);
    }
    world.journal.phases[0].done.insert("writer-came-back".into(), "it did".into());
    assert_eq!(estimate::rows_at_risk(&world.journal), None);
    world.faults.push(HELD);
    pass(&mut world, 600);
    assert_eq!(counts(&world), 0, "a baseline that does not tell is not asked");
}

#[test]
fn the_estimate_is_what_was_measured_and_no_more() {
    let mut world = World::counting();
    assert_eq!(estimate::seconds(&world.plan, &world.journal), None, "nothing was measured");
    world.run();
    let took = |world: &World, name: &str| {
        let record = world.journal.phases.iter().find(|record| record.name == name).unwrap();
        record.finished_at.as_ref().unwrap().0.duration_since(record.started_at.0).as_secs() - record.held_seconds
    };
    let around = took(&world, "Quiesce") + took(&world, "Start");
    // The scratch restore took 20.5 s.
    assert_eq!(estimate::seconds(&world.plan, &world.journal), Some(21 + around));
    world.plan.estimates =
        Some(crate::api::upgrade::Estimates { snapshot_seconds: 9, migrate_seconds: 3, restore_seconds: 12 });
    assert_eq!(estimate::seconds(&world.plan, &world.journal), Some(12 + around));
    // A hold of Start is no part of a start.
    let start = world.journal.phases.iter_mut().find(|record| record.name == "Start").unwrap();
    let finished = start.finished_at.as_mut().unwrap();
    finished.0 = finished.0.checked_add(jiff::SignedDuration::from_mins(10)).unwrap();
    start.held_seconds += 600;
    assert_eq!(estimate::seconds(&world.plan, &world.journal), Some(12 + around));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever is lost of a count, at most one runs at a time (the world asserts it), they keep their distance, and the
    /// attempt goes as one that counts nothing.
    #[test]
    fn crashes_anywhere_never_disturb_the_attempt(
        losses in proptest::collection::vec((0u32..1200, 0usize..3), 0..24),
        faults in proptest::collection::vec((0u32..1200, 1u32..300, 0usize..3), 0..4),
    ) {
        let kinds = [
            Fault::JobVanishes { step: "at-risk" },
            Fault::JobHangs { step: "at-risk" },
            Fault::JobFails { step: "at-risk", category: Category::Bug, reason: "OrderInvalid" },
        ];
        let mut world = World::counting();
        for turn in 0..1200 {
            world.faults = vec![HELD];
            let now = faults.iter().filter(|(from, long, _)| (*from..from + long).contains(&turn));
            world.faults.extend(now.map(|(_, _, kind)| kinds[*kind].clone()));
            let lose = losses.iter().find(|(at, _)| *at == turn).map(|(_, keep)| *keep);
            world.turn(lose);
        }
        prop_assert!(counts(&world) <= 1200 / 180, "{} counts", counts(&world));
        prop_assert_eq!(world.journal.hold.as_ref().map(|hold| hold.phase.as_str()), Some("Verification"));
        world.faults.clear();
        world.run();
        prop_assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
        let done = |world: &World| {
            let mut acts: Vec<_> = world.acts.iter().filter(|act| !act.contains("at-risk")).cloned().collect();
            acts.retain(|act| !act.contains("job verify"));
            acts.sort();
            acts.dedup();
            acts
        };
        let calm = good();
        prop_assert_eq!(done(&world), done(&calm));
        as_before(&world);
    }
}
