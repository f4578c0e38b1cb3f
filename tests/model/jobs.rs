//! What the attempt's Jobs do to database and storage. Guard and restore are as their own tests prove them: the guard
//! compares data and marker before it lets a migration begin, the restore is one transaction with its marker.

use crate::{
    mutants::Mutant,
    rules,
    state::{Marker, Report, Run, Schema, State, Step},
};

/// The Job goes one step on.
pub fn go_on(state: &mut State, step: Step, mutant: Option<Mutant>) {
    let run = match (step, state.job(step).run) {
        // Its own deadline ends it at last.
        (_, Run::Hung) => Run::Ended(Report::Lost),
        (Step::Fence, _) => Run::Ended(if state.writer_runs() { Report::Fails } else { Report::Ok }),
        (Step::Bootstrap, _) => Run::Ended(Report::Ok),
        (Step::Snapshot, Run::Pending) => {
            // A snapshot that is there is never overwritten.
            state.stored.get_or_insert(state.data);
            Run::Working
        }
        (Step::Baseline, Run::Pending) => {
            state.baseline.get_or_insert(state.data.writes);
            Run::Working
        }
        (Step::Migrate, Run::Pending) => begin(state, mutant),
        (Step::Migrate, _) => migrate(state),
        (Step::Restore | Step::RestoreAccepted, Run::Pending) => restore(state, step, mutant),
        (Step::Restore | Step::RestoreAccepted, _) => {
            if state.data.schema == Schema::Gone
                && let Some(stored) = state.stored
            {
                state.data = stored;
            }
            Run::Ended(Report::Ok)
        }
        (Step::Snapshot | Step::Baseline, _) => Run::Ended(Report::Ok),
    };
    state.job_mut(step).run = run;
}

/// The guard, before the first migration.
fn begin(state: &mut State, mutant: Option<Mutant>) -> Run {
    if mutant != Some(Mutant::MarkerIgnored) {
        match state.marker {
            Marker::None => {}
            Marker::Begun => return Run::Ended(Report::Unknown),
            Marker::Finished(report) => return Run::Ended(report),
        }
    }
    let same = state.stored == Some(state.data);
    if !same && mutant != Some(Mutant::DataNotCompared) && mutant != Some(Mutant::MarkerIgnored) {
        return Run::Ended(Report::Changed);
    }
    state.marker = Marker::Begun;
    state.begun += 1;
    state.data.schema = Schema::Half;
    if state.begun > 1 {
        state.broke |= rules::ONE_MIGRATION;
    } else if !same {
        state.broke |= rules::SNAPSHOT_FIRST;
    }
    Run::Working
}

fn migrate(state: &mut State) -> Run {
    if state.data.schema == Schema::Half {
        state.data.schema = Schema::New;
        return Run::Working;
    }
    match state.marker {
        Marker::Begun => {
            state.marker = Marker::Finished(Report::Ok);
            Run::Working
        }
        Marker::Finished(report) => Run::Ended(report),
        Marker::None => Run::Ended(Report::Unknown),
    }
}

/// Ends what is left of the attempt in the database, then takes the data back, or says why not.
fn restore(state: &mut State, step: Step, mutant: Option<Mutant>) -> Run {
    state.zombie = false;
    let job = *state.job(step);
    let Some(stored) = state.stored else { return Run::Ended(Report::Fails) };
    if state.data == stored {
        forbid(state);
        return Run::Working;
    }
    if state.restored {
        return Run::Ended(Report::Fails);
    }
    let known = state.baseline.filter(|_| job.baseline);
    let over = job.late && known.is_none_or(|known| state.data.writes > known);
    if over && step != Step::RestoreAccepted {
        return Run::Ended(Report::Asks);
    }
    // What it took back lies in the failed state: lost it is when the attempt goes on without a word.
    state.untold |= state.data.writes > stored.writes && !state.orders.accept;
    if mutant == Some(Mutant::DropsFirst) {
        state.data.schema = Schema::Gone;
        state.broke |= rules::OLD_DATA_KEPT;
        return Run::Working;
    }
    state.data = stored;
    state.restored = true;
    forbid(state);
    Run::Working
}

/// In the restore's transaction: a migration that was not begun may not begin any more, one that did not end is closed.
fn forbid(state: &mut State) {
    if matches!(state.marker, Marker::None | Marker::Begun) {
        state.marker = Marker::Finished(Report::Unknown);
    }
}

/// The pod goes without a report, wherever it stood.
pub fn lose(state: &mut State, step: Step) {
    // The database server may go on with what it was told.
    state.zombie |= step == Step::Migrate && state.job(step).run == Run::Working && state.data.schema == Schema::Half;
    state.job_mut(step).run = Run::Ended(Report::Lost);
}

/// The Job does not do what it is for, and says so.
pub fn fail(state: &mut State, step: Step) {
    if step == Step::Migrate {
        state.marker = Marker::Finished(Report::Fails);
    }
    state.guilty |= matches!(step, Step::Migrate | Step::Bootstrap);
    state.job_mut(step).run = Run::Ended(Report::Fails);
}
