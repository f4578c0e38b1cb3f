//! Quiesce: the targets' pods are gone, and nobody else has the file open or writes to it for a while.

use std::time::{Duration, Instant};

use tracing::info;

use super::{
    super::{
        context::Context,
        protocol::{Facts, FenceFacts, FenceOrder, JobReport},
        report,
    },
    place::Place,
};
use crate::{
    api::upgrade::Category,
    snapshot::{
        Error, Result,
        sqlite::{
            self,
            hold::{self, Hold, ask},
            markers::Lock,
        },
    },
};

pub async fn run(context: &Context, order: &FenceOrder) -> Result<JobReport> {
    let place = Place::of(context, &order.database)?;
    let order = order.clone();
    sqlite::blocking(move || fence(&place, &order)).await
}

fn fence(place: &Place, order: &FenceOrder) -> Result<JobReport> {
    let limit = Duration::from_secs(order.limit_seconds);
    let started = Instant::now();
    let lock = Lock::take(&place.path, limit.min(Duration::from_secs(60)))?;
    loop {
        let rest = limit.saturating_sub(started.elapsed());
        let hold = match Hold::take(&lock, rest) {
            Err(error @ (Error::InUse { .. } | Error::Leftover { .. })) => return Ok(held(&error)),
            other => other?,
        };
        let proof = hold.proof();
        let mode = hold.close();
        let quiet = quiet(place, order);
        hold::put_back(&lock, &mode)?;
        if quiet? {
            // Whoever opened the file meanwhile and sits idle is found by proving it again.
            let again = match Hold::take(&lock, limit.saturating_sub(started.elapsed())) {
                Err(error @ (Error::InUse { .. } | Error::Leftover { .. })) => return Ok(held(&error)),
                other => other?,
            };
            again.release()?;
            let message =
                format!("{proof}; nothing was written to {} for {} s", place.path.display(), order.quiet_seconds);
            return Ok(report::done(message, Facts::Fence(FenceFacts { terminated: 0, others: Vec::new() })));
        }
        if started.elapsed() >= limit {
            return Ok(held(&Error::InUse { path: place.path.clone() }));
        }
        info!("somebody wrote to the file; trying again");
    }
}

/// Whether nobody commits anything for as long as the order says. Others may open the file meanwhile, and are seen.
fn quiet(place: &Place, order: &FenceOrder) -> Result<bool> {
    let path = &place.path;
    let connection = sqlite::open_live(path)?;
    let version = |_: &()| ask::<i64>(&connection, path, "PRAGMA data_version");
    let before = version(&())?;
    let until = Instant::now() + Duration::from_secs(order.quiet_seconds);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(250).min(until.saturating_duration_since(Instant::now())));
        match version(&()) {
            Ok(now) if now == before => {}
            Ok(_) => return Ok(false),
            // A writer has it at this moment.
            Err(error) if error.is_busy() => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn held(error: &Error) -> JobReport {
    report::refused(Category::Environment, "WritersRemain", error.to_string())
}
