//! Quiesce: maintenance flag on, workers and then servers to zero, pods gone, and the proof that nothing writes.

use super::{Context, Phase, Step, both, chain, flag, mark, remember_autoscaled, take, to_zero};
use crate::job::protocol::JobInput;

pub const PHASE: Phase =
    Phase { name: "Quiesce", limit: |plan| Some(plan.timeouts.quiesce), step, uninterruptible: false };

fn step(cx: &Context<'_>) -> Step {
    // What an autoscaler has set by now is what it comes back to: the plan may be hours old.
    chain!(remember_autoscaled(cx));
    // Marks first: from the first stopped pod on, the way back must be readable on the workloads themselves.
    chain!(mark(cx.attempt, &take!(cx.writers()), false));
    // Workers before servers, so that what they hold can still be handed over.
    chain!(both(flag(cx, true), to_zero(&take!(cx.workers()))), to_zero(&take!(cx.servers())));
    let report = take!(cx.job("fence", JobInput::default()));
    Step::done(report.message.clone())
}
