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
    let intended = |world: &World| world.journal.phases.last().and_then(|record| record.done.get("write-1")).cloned();
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
