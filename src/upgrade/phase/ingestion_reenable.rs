//! IngestionReenable: flag off, workers back at their counts, and the gate that the queue is normal again.

use super::{Context, Phase, Step, both, chain, flag, intruder::images, take, to_prior};
use crate::{
    api::{GoDuration, release::Stage},
    job::protocol::JobInput,
};

pub const PHASE: Phase = Phase {
    name: "IngestionReenable",
    limit: |plan| Some(GoDuration::from_secs(plan.timeouts.rollout.as_secs() + plan.gate_seconds.unsigned_abs())),
    step,
    uninterruptible: false,
};

/// Remembered when all writers are back, before the gate begins.
pub const WORKERS_BACK: &str = "workers-back";

fn step(cx: &Context<'_>) -> Step {
    chain!(images(cx, |target| &target.to_image));
    let workers = take!(cx.workers());
    chain!(both(flag(cx, false), to_prior(&workers)));
    if !cx.record.done.contains_key(WORKERS_BACK) {
        return Step::Remember { key: WORKERS_BACK.to_owned(), value: format!("{} workloads", workers.len()) };
    }
    match take!(cx.checks(Stage::IngestionReenable, &JobInput::default())) {
        Some(done) => Step::Done(Box::new(done)),
        None => Step::done("ingestion runs; no check of stage IngestionReenable was asked for"),
    }
}
