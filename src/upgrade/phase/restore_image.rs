//! RestoreImage: the prior image on each target, at zero replicas, and then the targets at their prior counts. The old
//! version needs no candidate: it ran this data before, and a pod that does not become ready gets no client.

use super::{Context, Phase, Step, chain, take, to_prior};
use crate::{
    api::{release::Role, upgrade::Category},
    upgrade::Action,
};

pub const PHASE: Phase =
    Phase { name: "RestoreImage", limit: |plan| Some(plan.timeouts.rollback), step, uninterruptible: true };

/// Remembered once every target has its prior image: another one after that is somebody else's doing.
pub const IMAGES_BACK: &str = "images-back";
/// Remembered before each write of an image: the workload's generation at that moment.
const WRITE: &str = "write-";
/// One write, and one more where somebody else's came right after it.
const MAX_WRITES: usize = 2;

fn step(cx: &Context<'_>) -> Step {
    if !cx.record.done.contains_key(IMAGES_BACK) {
        // Old code never meets a pod of the new one, and data that one of those met is not the snapshot's any more.
        chain!(cx.breach());
    }
    let mut actions = Vec::new();
    for planned in &cx.plan.targets {
        let target = take!(cx.target(planned));
        if target.seen.image == planned.from_image {
            continue;
        }
        let prefix = format!("{WRITE}{}-", planned.name);
        let writes: Vec<_> = cx.record.done.iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
        let generation = target.seen.generation.to_string();
        // The last intended write is still to be done where the workload is as it was when that was written down.
        if writes.last().is_none_or(|(_, at)| **at != generation) {
            if cx.record.done.contains_key(IMAGES_BACK) || writes.len() >= MAX_WRITES {
                return Step::fail(
                    Category::Conflict,
                    "ImageChanged",
                    format!(
                        "{} container {} was set back to {} and now has {}; something else moves it: make it stop (an \
                         Argo CD or Flux source may still name the new version), then take the attempt back again",
                        planned.workload, planned.container, planned.from_image, target.seen.image
                    ),
                );
            }
            return Step::Remember { key: format!("{prefix}{}", writes.len() + 1), value: generation };
        }
        actions.push(Action::SetImage {
            workload: planned.workload.clone(),
            precondition: target.precondition(),
            container: planned.container.clone(),
            image: planned.from_image.clone(),
        });
    }
    if !actions.is_empty() {
        return Step::act(actions, "setting the prior images");
    }
    if !cx.record.done.contains_key(IMAGES_BACK) {
        return Step::Remember { key: IMAGES_BACK.to_owned(), value: "all targets".to_owned() };
    }
    let mut order: Vec<_> = cx.plan.targets.iter().filter(|target| !target.worker).collect();
    order.sort_by_key(|target| target.role != Role::Server);
    for planned in order {
        chain!(to_prior(&take!(cx.with_scalers(planned))));
        let target = take!(cx.target(planned));
        let digest = planned.from_digest.rsplit_once('@').map_or(planned.from_digest.as_str(), |(_, digest)| digest);
        let other = target.seen.pods.iter().find(|pod| pod.image_id.as_ref().is_some_and(|id| !id.contains(digest)));
        if let Some(pod) = other {
            return Step::fail(
                Category::Environment,
                "PriorImageMoved",
                format!(
                    "pod {} runs {} although {} meant {digest} when the attempt began: its tag was moved; set the image of \
                     {} to {} by hand",
                    pod.name,
                    pod.image_id.clone().unwrap_or_default(),
                    planned.from_image,
                    planned.workload,
                    planned.from_digest
                ),
            );
        }
    }
    Step::done(format!("{} runs again", cx.plan.from))
}
