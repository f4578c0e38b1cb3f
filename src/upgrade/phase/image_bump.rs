//! ImageBump: only our container's image on each target, at zero replicas.

use super::{Context, Phase, Step, chain, take};
use crate::{api::upgrade::Category, upgrade::Action};

pub const PHASE: Phase =
    Phase { name: "ImageBump", limit: |plan| Some(plan.timeouts.rollout), step, uninterruptible: false };

fn step(cx: &Context<'_>) -> Step {
    chain!(cx.breach());
    if cx.journal.snapshot.is_none() {
        return Step::fail(
            Category::Bug,
            "NoSnapshot",
            "no verified snapshot is in the journal; the image is not moved without one",
        );
    }
    let mut actions = Vec::new();
    for planned in &cx.plan.targets {
        let target = take!(cx.target(planned));
        if target.seen.image == planned.to_image {
            continue;
        }
        if target.seen.image != planned.from_image {
            return Step::fail(
                Category::Conflict,
                "ImageChanged",
                format!(
                    "{} container {} now has image {}, neither {} nor {}; something else moves it",
                    planned.workload, planned.container, target.seen.image, planned.from_image, planned.to_image
                ),
            );
        }
        actions.push(Action::SetImage {
            workload: planned.workload.clone(),
            precondition: target.precondition(),
            container: planned.container.clone(),
            image: planned.to_image.clone(),
        });
    }
    if !actions.is_empty() {
        return Step::act(actions, "setting the new images");
    }
    for planned in &cx.plan.targets {
        let seen = take!(cx.target(planned)).seen;
        if seen.observed_generation < seen.generation {
            return Step::wait(format!("{} takes the new image up", planned.workload));
        }
    }
    Step::done(format!("{} set", cx.plan.targets.iter().map(|t| t.to_image.as_str()).collect::<Vec<_>>().join(", ")))
}
