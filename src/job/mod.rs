//! What runs inside the operator's Jobs: `memoria-operator job`, reading its order from the environment and answering
//! by the termination message. No Kubernetes client in here: Jobs carry no token.

mod at_risk;
mod baseline;
pub mod check;
mod context;
mod exchange;
mod fence;
mod guard;
mod inspect;
mod loss;
pub mod manifest;
mod portable;
pub mod protocol;
mod reference;
mod rehearsal;
pub mod report;
mod restore;
mod retention;
mod snapshot;
mod sqlite;

use std::process::ExitCode;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{error, info, warn};

use crate::api::upgrade::Engine;
use crate::snapshot::Result;
use context::Context;
use protocol::{JobOrder, JobReport};

/// Carries out the order in the environment. Exit code 0 if and only if the report says ok.
pub async fn run() -> ExitCode {
    // A second initialisation in one process is somebody else's log, which is as good.
    let _ = crate::telemetry::init(&crate::config::Log::default());
    // What runs under this container's user, such as a server that a new version works on, cannot read its environment then.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "this process' environment is open to others of its user");
    }
    let places = context::Places::from_environment();
    let (context, order) = match Context::from_environment(places.clone()) {
        Ok(found) => found,
        Err(error) => {
            let report = report::fit(report::failed(&error));
            // A runner that waits beside this container learns it at once.
            if places.shared.is_dir() {
                let _ = exchange::Shared::new(&places.shared).write_verdict(&report);
            }
            return answer(&places, &report);
        }
    };
    let mut stop = stop_signal();
    let sidecar = matches!(order, JobOrder::Guard(_) | JobOrder::Reference(_) | JobOrder::Rehearsal(_));
    let done = if sidecar {
        // These end in an orderly way when told to, and then stay: a sidecar that ends is started again.
        carry_out(&context, &order, stop.clone()).await
    } else {
        tokio::select! {
            done = carry_out(&context, &order, stop.clone()) => done,
            _ = stop.wait_for(|stopped| *stopped) => Ok(report::interrupted()),
        }
    };
    let report = done.unwrap_or_else(|error| report::failed(&error));
    let report = report::fit(context.redact(report));
    if report.ok {
        info!(reason = report.reason, message = report.message, "done");
    } else {
        warn!(reason = report.reason, message = report.message, category = ?report.category, "not done");
    }
    if sidecar {
        if let Err(error) = exchange::Shared::new(&context.places.shared).write_verdict(&report) {
            error!(%error, "the verdict cannot be left for the runner");
        }
        let code = answer(&context.places, &report);
        let _ = stop.wait_for(|stopped| *stopped).await;
        return code;
    }
    answer(&context.places, &report)
}

async fn carry_out(context: &Context, order: &JobOrder, stop: watch::Receiver<bool>) -> Result<JobReport> {
    if context.engine() == Engine::Sqlite {
        match order {
            JobOrder::Inspect(order) => return sqlite::inspect::run(context, order).await,
            JobOrder::Fence(order) => return sqlite::fence::run(context, order).await,
            JobOrder::Snapshot(order) => return sqlite::snapshot::run(context, order).await,
            JobOrder::Guard(order) => return sqlite::guard::run(context, order, stop).await,
            JobOrder::Baseline(order) => return sqlite::baseline::run(context, order).await,
            JobOrder::Restore(order) => return sqlite::restore::run(context, order).await,
            // The same for both, or told apart by the order itself.
            JobOrder::Reference(_) | JobOrder::Rehearsal(_) | JobOrder::Check(_) => {}
            // The Server holds the file.
            JobOrder::AtRisk(_) => return Ok(at_risk::not_of_files()),
        }
    }
    match order {
        JobOrder::Inspect(order) => inspect::run(context, order).await,
        JobOrder::Reference(order) => reference::run(context, order, stop).await,
        JobOrder::Rehearsal(order) => rehearsal::run(context, order, stop).await,
        JobOrder::Fence(order) => fence::run(context, order).await,
        JobOrder::Snapshot(order) => snapshot::run(context, order).await,
        JobOrder::Guard(order) => guard::run(context, order, stop).await,
        JobOrder::Check(order) => Ok(check::run(context, order).await),
        JobOrder::Baseline(order) => baseline::run(context, order).await,
        JobOrder::AtRisk(order) => at_risk::run(context, order).await,
        JobOrder::Restore(order) => restore::run(context, order).await,
    }
}

/// Turns true at the first SIGTERM or SIGINT.
fn stop_signal() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    // Before anything else is done: a signal that comes first must not end the process without its report.
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = signals else {
            return std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = sender.send(true);
        // Receivers must never see the channel closed.
        std::future::pending::<()>().await;
    });
    receiver
}

fn answer(places: &context::Places, report: &JobReport) -> ExitCode {
    let text = serde_json::to_string(report).unwrap_or_default();
    match std::fs::write(&places.termination_log, &text) {
        Ok(()) if report.ok => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            error!(%error, path = %places.termination_log.display(), report = text, "the report cannot be written");
            ExitCode::FAILURE
        }
    }
}
