//! Model checking: the shipped `decide` in a world whose API server, Jobs, database, clients, other hands and people do
//! whatever they can, in every order, with so many disturbances. `cargo test --test model -- --nocapture` tells how many
//! states that were.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod jobs;
mod machine;
mod mutants;
mod plan;
mod rules;
mod state;
mod world;

use std::{collections::BTreeSet, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::{mutants::Mutant, world::World};

/// How many disturbances a path may hold.
fn bound(default: u8) -> u8 {
    std::env::var("MEMORIA_MODEL_BOUND").ok().and_then(|bound| bound.parse().ok()).unwrap_or(default)
}

/// Explores to the end, and tells how far that was.
fn every_rule_holds(automatic: bool, settings: bool, bound: u8) {
    every_rule_holds_in(World::new(automatic, settings, bound, None), &format!("rollback.automatic {automatic}"));
}

fn every_rule_holds_in(world: World, name: &str) {
    let (settings, bound) = (world.settings, world.bound);
    let began = Instant::now();
    let checker = world.checker().finish_when(HasDiscoveries::All).spawn_bfs().join();
    let (journals, questions) = checker.model().machine.counts();
    println!(
        "{name}, settings {settings}, {bound} disturbances: {} states, {} steps, depth {}, {journals} journals, \
         {questions} decisions, {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    for (name, path) in checker.discoveries() {
        tell(&checker.model().machine, name, path);
    }
    assert!(checker.discoveries().is_empty(), "see above");
    assert!(checker.is_done(), "not every state was looked at");
}

fn tell(machine: &machine::Machine, name: &str, path: stateright::Path<state::State, world::Move>) {
    println!("rule {name} is broken by:");
    let mut last = None;
    for (state, action) in path.into_vec() {
        let phase = machine.told(state.journal).phase.clone();
        let doing = match (&action, state.lead.as_ref()) {
            (Some(world::Move::Act), Some(pending)) => format!(
                " {:?}",
                match pending.at {
                    0 => None,
                    at => Some(machine.decided(pending.decision).actions[usize::from(at) - 1]),
                }
            ),
            _ => String::new(),
        };
        println!("  {phase}: {action:?}{doing}");
        last = Some(state);
    }
    println!("  {last:?}");
}

#[test]
fn every_rule_holds_where_failures_are_taken_back() {
    every_rule_holds(true, false, bound(2));
}

#[test]
fn every_rule_holds_where_failures_stop() {
    every_rule_holds(false, false, bound(2));
}

/// Longer stories of few kinds: it fails, nobody watches, a person has it tried again and then taken back; or a former
/// leader's write comes late.
#[test]
fn every_rule_holds_where_a_halted_attempt_is_tried_again() {
    use crate::{
        state::Step::{Baseline, Migrate},
        world::Disturbance::{Late, Lost, Retry, Rollback, TakenOver, Visited},
    };
    let unwatched = World::new(false, false, bound(4), None)
        .only(|disturbance| matches!(disturbance, Lost(Baseline | Migrate) | Visited(_) | Retry | Rollback));
    every_rule_holds_in(unwatched, "tried again, and nobody watched");
    let late = World::new(false, false, bound(3), None)
        .only(|disturbance| matches!(disturbance, Lost(Baseline) | Late | TakenOver | Retry));
    every_rule_holds_in(late, "tried again, and a write comes late");
}

#[test]
fn every_rule_holds_where_settings_are_refreshed() {
    every_rule_holds(true, true, bound(1));
}

#[test]
fn a_guard_that_is_taken_away_is_missed() {
    for (mutant, rule) in Mutant::ALL {
        let (automatic, bound) = mutant.world();
        let checker = World::new(automatic, mutant.has_settings(), bound, Some(mutant))
            .checker()
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let found: BTreeSet<_> = checker.discoveries().into_keys().collect();
        println!("{mutant:?}: {found:?} after {} states", checker.unique_state_count());
        assert!(found.contains(rule), "{mutant:?} ought to break {rule}, and broke {found:?}");
    }
}
