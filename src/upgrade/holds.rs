//! Each kind of hold in the small world: entered, explained, left, and past its deadline.

use proptest::prelude::*;

use super::world::{Fault, World};
use crate::{
    api::{
        GoDuration,
        release::OnHold,
        upgrade::{Category, HoldOutcome, Outcome, PlannedJob},
    },
    upgrade::seen::JobState,
};

fn inconclusive(step: &'static str) -> Fault {
    Fault::JobFails { step, category: Category::Environment, reason: "CheckInconclusive" }
}

/// A world with checks of stage BeforeIngestion.
fn world() -> World {
    let mut world = World::new();
    world.plan.jobs.push(PlannedJob { step: "candidate".into(), check: None, manifest: serde_json::json!({}) });
    world.plan.candidate_seconds = 600;
    world
}

/// Runs for that long, or until it holds no longer or has ended.
fn pass(world: &mut World, seconds: u32) {
    for _ in 0..seconds {
        world.turn(None);
    }
}

fn held(step: &'static str) -> World {
    let mut world = world();
    world.faults.push(inconclusive(step));
    for _ in 0..200 {
        world.turn(None);
        if world.journal.hold.is_some() {
            return world;
        }
    }
    panic!("it never holds for {step}: {:?}", world.journal);
}

#[test]
fn a_check_without_a_verdict_holds_says_why_and_asks_again_until_there_is_one() {
    for (step, phase) in [("candidate", "Start"), ("gate", "IngestionReenable"), ("verify", "Verification")] {
        let mut world = held(step);
        let hold = world.journal.hold.clone().unwrap();
        assert_eq!((hold.phase.as_str(), hold.reason.as_str()), (phase, "CheckInconclusive"));
        let next = format!(
            "kubectl -n ns logs job/memoria-1-{step} --all-containers || kubectl -n ns describe job/memoria-1-{step}"
        );
        assert_eq!(hold.next_command, next);
        assert_eq!(hold.deadline.is_some(), step == "candidate", "only stopped writers have a deadline");
        let jobs = |world: &World| world.acts.iter().filter(|act| **act == format!("job {step}")).count();
        pass(&mut world, 25);
        assert_eq!(jobs(&world), 1, "it rests before it asks again");
        pass(&mut world, 200);
        assert!((4..=8).contains(&jobs(&world)), "{} jobs in 225 s", jobs(&world));
        assert_eq!(world.journal.hold.as_ref().map(|now| &now.since), Some(&hold.since));
        world.faults.clear();
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Succeeded), "{step}: {:?}", world.journal.message);
        assert!(world.journal.hold.is_none());
        let record = world.journal.phases.iter().find(|record| record.name == phase).unwrap();
        assert!(record.held_seconds > 200, "{}", record.held_seconds);
    }
}

#[test]
fn a_check_whose_pod_is_lost_proves_nothing_and_holds() {
    for fault in [Fault::JobVanishes { step: "gate" }, Fault::JobVanishes { step: "candidate" }] {
        let mut world = world();
        world.faults.push(fault);
        pass(&mut world, 60);
        assert_eq!(world.journal.hold.as_ref().map(|hold| hold.reason.as_str()), Some("JobLost"));
        world.faults.clear();
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    }
}

#[test]
fn a_verdict_that_comes_late_is_a_verdict() {
    let mut world = held("gate");
    world.faults = vec![Fault::JobFails { step: "gate", category: Category::Candidate, reason: "CheckFailed" }];
    world.run();
    assert_eq!(world.journal.failure.as_ref().map(|failure| failure.reason.as_str()), Some("CheckFailed"));
    assert!(world.journal.hold.is_none() && world.journal.outcome.is_some());
}

#[test]
fn a_person_has_a_check_asked_now_instead_of_after_its_rest() {
    for step in ["candidate", "gate", "verify"] {
        let mut world = held(step);
        pass(&mut world, 3);
        assert!(world.journal.hold.as_ref().unwrap().next_try.is_some(), "it rests");
        world.seen.orders.retry = Some("now".into());
        world.turn(None);
        assert_eq!(world.acts.last(), Some(&format!("delete job {step}")));
        pass(&mut world, 3);
        assert_eq!(world.journal.hold.as_ref().map(|hold| hold.tries), Some(1), "{step}");
        assert_eq!(world.journal.decisions.len(), 1);
        assert_eq!(world.journal.decisions[0].refused, None);
        world.faults.clear();
        world.run();
        assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    }
}

#[test]
fn an_order_to_ask_now_survives_a_crash() {
    let mut world = held("candidate");
    pass(&mut world, 3);
    world.seen.orders.retry = Some("now".into());
    world.turn(Some(0));
    assert_eq!(world.journal.decisions.len(), 1);
    world.turn(None);
    assert_eq!(world.acts.last().map(String::as_str), Some("delete job candidate"));
}

#[test]
fn a_suspension_is_not_ended_by_asking_again() {
    let mut world = world();
    world.seen.orders.suspend = true;
    world.turn(None);
    world.seen.orders.retry = Some("now".into());
    pass(&mut world, 5);
    let refused = world.journal.decisions[0].refused.clone().unwrap();
    assert!(refused.contains("spec.suspend holds it") && refused.contains("\"suspend\":false"), "{refused}");
    assert!(world.journal.hold.is_some() && world.journal.phases.is_empty());
}

#[test]
fn a_hold_with_writers_stopped_stays_or_counts_as_failed_as_the_plan_says() {
    let mut world = held("candidate");
    assert_eq!(world.journal.hold.as_ref().unwrap().outcome, HoldOutcome::Keep);
    pass(&mut world, 1900);
    let hold = world.journal.hold.clone().unwrap();
    assert!(hold.expired && world.journal.outcome.is_none() && world.journal.failure.is_none());
    assert!(crate::upgrade::hold::sentence(&hold).contains("is past: writers stay stopped"));

    let mut world = self::world();
    world.plan.timeouts.on_hold = OnHold::Rollback;
    world.plan.timeouts.hold = GoDuration::from_secs(120);
    world.faults.push(inconclusive("candidate"));
    world.run();
    let failure = world.journal.failure.as_ref().unwrap();
    assert_eq!((failure.phase.as_str(), failure.reason.as_str()), ("Start", "HoldExpired"));
    assert!(world.journal.outcome.is_some() && world.journal.hold.is_none());
}

#[test]
fn a_hold_while_writers_run_has_no_deadline() {
    let mut world = held("gate");
    world.plan.timeouts.on_hold = OnHold::Rollback;
    pass(&mut world, 4000);
    assert!(world.journal.hold.is_some() && world.journal.outcome.is_none());
}

#[test]
fn a_suspension_before_the_image_moved_resumes_at_its_deadline() {
    let mut world = world();
    while world.journal.phase.as_deref() != Some("SnapshotExport") {
        world.turn(None);
    }
    world.seen.orders.suspend = true;
    pass(&mut world, 60);
    let hold = world.journal.hold.clone().unwrap();
    assert_eq!((hold.phase.as_str(), hold.reason.as_str()), ("ImageBump", "Suspended"));
    assert_eq!(hold.outcome, HoldOutcome::Resume);
    assert!(hold.next_command.contains("patch mrel memoria") && hold.next_command.contains("\"suspend\":false"));
    assert!(world.decide().wake.is_some());
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Resumed));
    assert_eq!(world.journal.failure.as_ref().map(|failure| failure.reason.as_str()), Some("HoldExpired"));
    assert!(world.seen.targets.values().all(|target| target.replicas > 0));
}

#[test]
fn a_hold_ends_with_an_abort() {
    for step in ["candidate", "gate", "verify"] {
        let mut world = held(step);
        world.seen.orders.abort = Some("stop-it".into());
        world.run();
        assert!(world.journal.outcome.is_some() && world.journal.hold.is_none(), "{step}");
    }
}

#[test]
fn a_candidate_that_is_replaced_is_asked_anew() {
    let mut world = held("candidate");
    world.seen.candidates.clear();
    world.faults.clear();
    world.run();
    assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    assert!(world.acts.contains(&"delete job candidate".to_owned()));
    assert_eq!(world.acts.iter().filter(|act| *act == "job candidate").count(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// However holds, suspensions and crashes fall, no writer runs between Quiesce and the verdict on the candidate.
    #[test]
    fn a_hold_never_lets_writers_in(
        faults in proptest::collection::vec((0usize..3, 0u32..240, 1u32..240), 0..5),
        losses in proptest::collection::vec((0u32..240, 0usize..3), 0..6),
        suspended in proptest::collection::vec(0u32..240, 0..4),
    ) {
        let steps = ["candidate", "gate", "verify"];
        let mut world = world();
        for turn in 0..900 {
            world.faults = faults
                .iter()
                .filter(|(_, from, long)| (*from..from + long).contains(&turn))
                .map(|(step, ..)| inconclusive(steps[*step]))
                .collect();
            world.seen.orders.suspend = suspended.iter().any(|at| (*at..at + 20).contains(&turn));
            let lose = losses.iter().find(|(at, _)| *at == turn).map(|(_, keep)| *keep);
            world.turn(lose);
            let began = |name: &str| world.journal.phases.iter().any(|record| record.name == name);
            let asked = world.journal.phases.iter().any(|r| r.done.contains_key("candidate-server"));
            if began("SnapshotExport") && !asked {
                prop_assert!(world.seen.targets.values().all(super::seen::Workload::is_gone), "at turn {}", turn);
            }
            if began("SnapshotExport") && !began("IngestionReenable") {
                prop_assert!(world.seen.workers.values().all(super::seen::Workload::is_gone), "at turn {}", turn);
            }
            let passed = matches!(
                world.seen.jobs.get("candidate").map(|job| &job.state),
                Some(JobState::Finished { succeeded: true, report: Some(report), .. }) if report.ok
            );
            prop_assert!(passed || !began("IngestionReenable"), "it went on without the candidate's verdict");
        }
        prop_assert_eq!(world.journal.outcome, Some(Outcome::Succeeded));
    }
}
