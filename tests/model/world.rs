//! The world around the machine: what API server, kubelet, Jobs, database, storage, clients and people may do next.

use std::{fmt, sync::Arc};

use memoria_operator::api::upgrade::Outcome;
use stateright::{Model, Property};

use crate::{
    jobs,
    machine::{Act, Decided, Machine},
    mutants::Mutant,
    plan::Seen,
    rules,
    state::{
        Candidate, Fresh, HalfRead, Image, Job, Load, Marker, Pending, Pod, Report, Run, Schema, Settings, State, Step,
        Text, Wanted, Who,
    },
};

/// The clock's last value: limits of what begins under it never run out.
const LAST: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// The leader reads everything and decides.
    Look,
    /// The same; of the actions that are under way at the same time the last one is the first to arrive.
    LookReversed,
    /// The same, with journal and workloads as they were when half of it was read.
    LookTorn,
    /// The leader stores its journal, or does its next action.
    Act,
    /// The former leader's last write arrives, or never will.
    GhostLands,
    GhostFades,
    /// Pods follow their workload.
    Pods(Who),
    Candidate,
    /// A Job goes one step on.
    Job(Step),
    /// What a deleted or doubled migration left in the database server ends.
    Zombie,
    /// A client writes a row through whatever writer runs.
    Write,
    /// Nothing moves until a limit runs out.
    Wait,
    /// A person agrees to the loss that is waited for, or ends the suspension.
    Accept,
    Unsuspend,
    Disturb(Disturbance),
}

/// What counts against the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disturbance {
    /// The leader dies between two writes.
    Crash,
    /// Another one takes over while the leader is paused just before a write.
    TakenOver,
    /// The leader reads one half now and the other half later.
    HalfRead,
    /// The next write is refused for good.
    Refused,
    /// The pod of this Job goes before it did anything; or after it, with its report.
    Lost(Step),
    Fails(Step),
    Hangs(Step),
    /// A second pod starts for the migrate Job, whose first one still runs.
    Twin,
    CandidateBreaks,
    ServerBreaks,
    /// Another hand asks for a replica.
    ScaledUp(Who),
    /// The same where nobody watches, and it is gone again, with what it wrote.
    Visited(Who),
    /// Another hand sets the server's other image.
    Flipped,
    /// Another hand writes settings, or deletes the copy of what they were.
    Set(Text),
    CopyDeleted,
    /// A limit runs out early: everything took longer.
    Late,
    Abort,
    Rollback,
    /// A person has what failed tried again.
    Retry,
    Suspend,
    /// `spec.version` changes.
    Wants(Wanted),
}

/// Whether a disturbance may come at all.
pub type May = fn(Disturbance) -> bool;

pub struct World {
    pub machine: Machine,
    pub may: May,
    pub mutant: Option<Mutant>,
    /// The plan has settings to refresh.
    pub settings: bool,
    /// Disturbances on every path.
    pub bound: u8,
}

impl World {
    pub fn new(automatic: bool, settings: bool, bound: u8, mutant: Option<Mutant>) -> Self {
        let may = mutant.map_or((|_| true) as May, Mutant::needs);
        Self { machine: Machine::new(automatic, settings, mutant), may, mutant, settings, bound }
    }

    /// Only these disturbances, but more of them.
    pub fn only(self, may: May) -> Self {
        Self { may, ..self }
    }

    fn ask(&self, state: &State, journal: u32, server: Load, worker: Load) -> (u32, Arc<Decided>) {
        let seen = Seen {
            server,
            worker,
            candidate: state.candidate,
            // Whose doing it was is not to be seen.
            settings: state.settings.map(|settings| Settings { stray: false, ..settings }),
            jobs: state.jobs.map(|job| (hidden(job.run), job.uid)),
            orders: state.orders,
            refusal: state.refusal,
            clock: state.clock,
        };
        self.machine.decide(journal, seen)
    }

    /// What happens by itself sooner or later.
    fn free(&self, state: &State, moves: &mut Vec<Move>) {
        let mut later = false;
        match state.lead {
            Some(_) => moves.push(Move::Act),
            None => {
                // A look that was begun is ended before another one begins.
                let half = state.half.map(|half| (half.journal, half.server, half.worker));
                let (journal, server, worker) = half.unwrap_or((state.journal, state.server, state.worker));
                let (_, decided) = self.ask(state, journal, server, worker);
                later = decided.later;
                if half.is_some() {
                    moves.push(Move::LookTorn);
                } else if decided.journal != journal || !decided.actions.is_empty() || state.refusal {
                    moves.push(Move::Look);
                    if decided.reversed.is_some() {
                        moves.push(Move::LookReversed);
                    }
                }
            }
        }
        if state.ghost.is_some() {
            moves.extend([Move::GhostFades, Move::GhostLands]);
        }
        for who in [Who::Server, Who::Worker] {
            if pods(state.load(who)) != state.load(who).pod {
                moves.push(Move::Pods(who));
            }
        }
        if matches!(state.candidate, Candidate::Starting | Candidate::Ending) {
            moves.push(Move::Candidate);
        }
        let runs = |step: &Step| matches!(state.job(*step).run, Run::Pending | Run::Working);
        moves.extend(Step::ALL.into_iter().filter(runs).map(Move::Job));
        if state.zombie {
            moves.push(Move::Zombie);
        }
        if moves.is_empty() && later && state.clock < LAST {
            moves.push(Move::Wait);
        }
        if moves.is_empty() {
            let hangs = |step: &Step| step.restores() && state.job(*step).run == Run::Hung;
            moves.extend(Step::ALL.into_iter().filter(hangs).map(Move::Job));
        }
    }

    /// What may happen beside that.
    fn disturbances(&self, state: &State, moves: &mut Vec<Move>) {
        use Disturbance::{
            Abort, CandidateBreaks, CopyDeleted, Crash, Fails, Flipped, HalfRead, Hangs, Late, Lost, Refused, Retry,
            Rollback, ScaledUp, ServerBreaks, Set, Suspend, TakenOver, Twin, Visited, Wants,
        };
        let told = self.machine.told(state.journal);
        if state.writer_runs() && state.stored.is_some_and(|stored| state.data.writes == stored.writes) {
            moves.push(Move::Write);
        }
        if told.awaits && !state.orders.accept {
            moves.push(Move::Accept);
        }
        if state.orders.suspend {
            moves.push(Move::Unsuspend);
        }
        if state.left == 0 {
            return;
        }
        let open = told.outcome.is_none();
        let halted = told.outcome == Some(Outcome::Halted);
        let mut may = |disturbance| {
            if (self.may)(disturbance) {
                moves.push(Move::Disturb(disturbance));
            }
        };
        if let Some(pending) = state.lead {
            may(Crash);
            if state.ghost.is_none() {
                may(TakenOver);
            }
            if pending.at > 0 {
                may(Refused);
            }
        } else if state.half.is_none() && open {
            may(HalfRead);
        }
        for step in Step::ALL {
            let run = state.job(step).run;
            if matches!(run, Run::Pending | Run::Working) {
                may(Lost(step));
                may(Hangs(step));
                let begun = step == Step::Migrate && run == Run::Working && state.data.schema == Schema::Half;
                if begun || step != Step::Migrate && run == Run::Pending {
                    may(Fails(step));
                }
                if step == Step::Migrate && run == Run::Working {
                    may(Twin);
                }
            }
        }
        if matches!(state.candidate, Candidate::Starting | Candidate::Ready) {
            may(CandidateBreaks);
        }
        if matches!(state.server.pod, Pod::Up(_)) && state.server.up && state.stored.is_some() {
            may(ServerBreaks);
        }
        if open || halted {
            for who in [Who::Server, Who::Worker] {
                if !state.load(who).up {
                    may(ScaledUp(who));
                }
            }
        }
        if halted {
            [Who::Server, Who::Worker].into_iter().filter(|who| !state.load(*who).up).for_each(|who| may(Visited(who)));
        }
        if open {
            if state.stored.is_some() {
                may(Flipped);
            }
            if let Some(settings) = state.settings {
                for text in [Text::Prior, Text::New, Text::Theirs] {
                    if settings.text != text {
                        may(Set(text));
                    }
                }
                if settings.kept {
                    may(CopyDeleted);
                }
            }
            if state.clock < LAST {
                may(Late);
            }
            if !state.orders.suspend {
                may(Suspend);
            }
            if state.orders.wanted == Wanted::Planned {
                may(Wants(Wanted::Former));
                may(Wants(Wanted::Later));
            }
        }
        if !state.orders.abort && told.outcome.is_none_or(|o| matches!(o, Outcome::Halted | Outcome::RollbackFailed)) {
            may(Abort);
        }
        if !state.orders.retry && (halted || told.outcome == Some(Outcome::RollbackFailed)) {
            may(Retry);
        }
        let stands = |outcome| {
            use Outcome::{Halted, RollbackFailed, Succeeded, Unverified};
            matches!(outcome, Halted | RollbackFailed | Succeeded | Unverified)
        };
        if !state.orders.rollback && told.outcome.is_some_and(stands) {
            may(Rollback);
        }
    }

    /// A decision that was made is on its way.
    fn set_out(&self, state: &mut State, journal: u32, server: Load, worker: Load, fresh: Fresh) -> Arc<Decided> {
        let (decision, decided) = self.ask(state, journal, server, worker);
        state.refusal = false;
        let at = u8::from(decided.journal == journal);
        if at == 0 || !decided.actions.is_empty() {
            state.lead = Some(Pending { decision, at, fresh });
        }
        decided
    }

    /// One write of a decision; answers whether the rest of it may follow.
    fn write(&self, state: &mut State, pending: Pending) -> bool {
        let decided = self.machine.decided(pending.decision);
        if pending.at == 0 {
            if !pending.fresh.journal {
                return false;
            }
            state.store(decided.journal);
            self.judge_outcome(state, pending.fresh.server);
            return !decided.actions.is_empty();
        }
        let at = usize::from(pending.at) - 1;
        let fresh = |who| match who {
            Who::Server => pending.fresh.server,
            Who::Worker => pending.fresh.worker,
        };
        match decided.actions[at] {
            Act::Mark(who, back) => {
                let load = state.change(who);
                // Both are Deployments, whose generation counts changed annotations.
                load.generation += u8::from((load.marked, load.back) != (true, back));
                (load.marked, load.back) = (true, back);
            }
            Act::Unmark(who) => {
                let load = state.change(who);
                load.generation += u8::from(load.marked || load.back);
                (load.marked, load.back) = (false, false);
            }
            Act::Scale(who, up) => {
                if !fresh(who) {
                    return false;
                }
                if up {
                    judge_let_in(state, pending.fresh.server);
                }
                let load = state.change(who);
                load.up = up;
                load.stray = false;
                load.generation += 1;
            }
            Act::SetImage(image) => {
                if !pending.fresh.server {
                    return false;
                }
                judge_image(state, image);
                let load = state.change(Who::Server);
                load.image = image;
                load.generation += 1;
            }
            Act::CreateJob { step, manifest, late, baseline } => {
                if !manifest && (step == Step::Migrate || step.restores()) {
                    state.broke |= rules::SNAPSHOT_FIRST;
                }
                let job = state.job_mut(step);
                if job.run == Run::Absent {
                    *job = Job { run: Run::Pending, uid: job.uid + 1, late, baseline };
                }
            }
            Act::DeleteJob { step, uid } => {
                let job = *state.job(step);
                if job.uid == uid && job.run != Run::Absent {
                    state.job_mut(step).run = Run::Absent;
                    // Its session may outlive it, until a restore ends whatever is left of the attempt.
                    let begun = matches!(job.run, Run::Working | Run::Hung) && state.data.schema == Schema::Half;
                    state.zombie |= step == Step::Migrate && begun;
                }
            }
            Act::CreateCandidate => match state.candidate {
                Candidate::Absent => state.candidate = Candidate::Gated,
                Candidate::Ending => return false,
                _ => {}
            },
            Act::AdmitCandidate => {
                if state.candidate == Candidate::Gated {
                    state.candidate = Candidate::Starting;
                }
            }
            Act::DeleteCandidate => match state.candidate {
                Candidate::Absent => {}
                // No node has anything of it to end.
                Candidate::Gated => state.candidate = Candidate::Absent,
                _ => state.candidate = Candidate::Ending,
            },
            Act::KeepSettings => {
                // It merges again what is there, which must be what the plan was made of; and it only creates.
                match &mut state.settings {
                    Some(Settings { text: Text::Prior, kept: kept @ false, .. }) => *kept = true,
                    _ => return false,
                }
            }
            Act::SetSettings(text) => {
                let Some(settings) = state.settings.filter(|settings| settings.kept && pending.fresh.settings) else {
                    return false;
                };
                if settings.text == Text::Theirs {
                    state.broke |= rules::SETTINGS;
                }
                state.write_settings(text, false);
                if state.server.up && !state.server.stray {
                    judge_settings(state);
                }
            }
        }
        at + 1 < decided.actions.len()
    }

    /// `current`: nobody changed the server since it was looked at.
    fn judge_outcome(&self, state: &mut State, current: bool) {
        let runs = |image| !current || state.server.image == image;
        let told = self.machine.told(state.journal);
        let verified = state.marker == Marker::Finished(Report::Ok);
        let holds = match told.outcome {
            Some(Outcome::Succeeded) => state.data.schema == Schema::New && verified && runs(Image::New),
            // Nobody but another hand can have moved the image.
            Some(Outcome::Resumed) => state.begun == 0 && (state.server.stray || state.data.schema == Schema::Old),
            Some(Outcome::RolledBack) => {
                !current || state.data.schema == Schema::Old && state.server.image == Image::Old
            }
            _ => true,
        };
        let settings = state.settings.filter(|settings| !settings.stray).map(|settings| settings.text);
        let holds = holds
            && match told.outcome {
                Some(Outcome::Succeeded) => settings != Some(Text::Prior),
                Some(Outcome::Resumed | Outcome::RolledBack) => settings != Some(Text::New),
                _ => true,
            };
        if !holds {
            state.broke |= rules::OUTCOME;
        }
        if told.blames && !state.guilty {
            state.broke |= rules::BLAME;
        }
    }

    fn disturb(&self, state: &mut State, disturbance: Disturbance) {
        state.left -= 1;
        match disturbance {
            Disturbance::Crash => {
                state.lead = None;
                state.refusal = false;
                state.half = None;
            }
            Disturbance::TakenOver => {
                state.ghost = state.lead.take();
                state.refusal = false;
                state.half = None;
            }
            Disturbance::HalfRead => {
                let (journal, server, worker) = (state.journal, state.server, state.worker);
                state.half = Some(HalfRead { journal, server, worker, fresh: Fresh::ALL });
            }
            Disturbance::Refused => {
                state.lead = None;
                state.refusal = true;
            }
            Disturbance::Lost(step) => jobs::lose(state, step),
            Disturbance::Fails(step) => jobs::fail(state, step),
            Disturbance::Hangs(step) => state.job_mut(step).run = Run::Hung,
            Disturbance::Twin => {
                state.zombie = state.data.schema == Schema::Half;
                state.job_mut(Step::Migrate).run = Run::Pending;
            }
            Disturbance::CandidateBreaks => {
                state.candidate = Candidate::Broken;
                state.guilty = true;
            }
            Disturbance::ServerBreaks => {
                if let Pod::Up(image) = state.server.pod {
                    state.change(Who::Server).pod = Pod::Broken(image);
                    state.guilty |= image == Image::New;
                }
            }
            Disturbance::ScaledUp(who) => {
                let load = state.change(who);
                (load.up, load.stray) = (true, true);
                load.generation += 1;
            }
            Disturbance::Visited(who) => {
                let known = state.stored.is_some_and(|stored| state.data.writes > stored.writes);
                state.data.writes += u8::from(!known);
                state.data.touched = true;
                if (who, state.server.image, state.data.schema) == (Who::Server, Image::New, Schema::Old) {
                    state.data.schema = Schema::New;
                }
                state.change(who).generation += 2;
            }
            Disturbance::Flipped => {
                let load = state.change(Who::Server);
                load.image = if load.image == Image::Old { Image::New } else { Image::Old };
                load.stray = true;
                load.generation += 1;
            }
            Disturbance::Set(text) => state.write_settings(text, true),
            Disturbance::CopyDeleted => {
                if let Some(settings) = &mut state.settings {
                    settings.kept = false;
                    settings.stray |= settings.text == Text::New;
                }
            }
            Disturbance::Late => state.clock += 1,
            Disturbance::Abort => state.orders.abort = true,
            Disturbance::Rollback => state.orders.rollback = true,
            Disturbance::Retry => state.orders.retry = true,
            Disturbance::Suspend => state.orders.suspend = true,
            Disturbance::Wants(wanted) => state.orders.wanted = wanted,
        }
    }
}

/// The machine sees no difference between a Job that works and one that hangs.
fn hidden(run: Run) -> Run {
    match run {
        Run::Working | Run::Hung => Run::Pending,
        other => other,
    }
}

/// What the pods of a workload become.
fn pods(load: &Load) -> Pod {
    match (load.up, load.pod) {
        (false, _) => Pod::None,
        (true, _) => Pod::Up(load.image),
    }
}

/// The operator asks for a replica. What another hand did to the server since the look (`!current`) is not its doing.
fn judge_let_in(state: &mut State, current: bool) {
    let verified = state.marker == Marker::Finished(Report::Ok) && state.data.schema == Schema::New;
    let fits = match state.server.image {
        Image::Old => state.data.schema == Schema::Old,
        Image::New => verified && state.baseline.is_some(),
        Image::Later => false,
    };
    if !fits && (current || !state.server.stray) || state.zombie {
        state.broke |= rules::WRITERS;
    }
    if state.untold {
        state.broke |= rules::NOTHING_LOST;
    }
    if current || !state.server.stray {
        judge_settings(state);
    }
}

/// The operator starts the server, or writes the settings of one that runs.
fn judge_settings(state: &mut State) {
    let settings = state.settings.filter(|settings| !settings.stray).map(|settings| settings.text);
    if matches!((state.server.image, settings), (Image::Old, Some(Text::New)) | (Image::New, Some(Text::Prior))) {
        state.broke |= rules::SETTINGS;
    }
}

/// The operator sets an image.
fn judge_image(state: &mut State, image: Image) {
    match image {
        Image::Later => state.broke |= rules::PLAN,
        Image::New if state.stored.is_none() => state.broke |= rules::SNAPSHOT_FIRST,
        Image::Old if state.data.schema != Schema::Old => state.broke |= rules::WRITERS,
        _ => {}
    }
    if state.server.pod != Pod::None {
        state.broke |= rules::WRITERS;
    }
}

/// A pod of a workload starts or ends.
fn follow(state: &mut State, who: Who) {
    let pod = pods(state.load(who));
    state.change(who).pod = pod;
    if let (Who::Server, Pod::Up(image)) = (who, pod) {
        // A server rewrites rows when it starts; and a new one migrates, which nobody but the attempt should let it do.
        state.data.touched |= state.stored.is_some();
        if image != Image::Old && state.data.schema == Schema::Old {
            state.data.schema = Schema::New;
            if !state.server.stray {
                state.broke |= rules::WRITERS;
            }
        }
        if image == Image::Old && state.data.schema != Schema::Old && !state.server.stray {
            state.broke |= rules::WRITERS;
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(self.bound, self.settings)]
    }

    fn actions(&self, state: &State, moves: &mut Vec<Move>) {
        // What broke once is told; there is nothing to be learned behind it.
        if state.broke != 0 {
            return;
        }
        self.free(state, moves);
        self.disturbances(state, moves);
    }

    fn next_state(&self, last: &State, action: Move) -> Option<State> {
        let mut state = *last;
        match action {
            Move::Look => {
                self.set_out(&mut state, last.journal, last.server, last.worker, Fresh::ALL);
            }
            Move::LookReversed => {
                let decided = self.set_out(&mut state, last.journal, last.server, last.worker, Fresh::ALL);
                let (pending, decision) = state.lead.as_mut().zip(decided.reversed)?;
                pending.decision = decision;
            }
            Move::LookTorn => {
                let half = state.half.take()?;
                // What is not a workload is read in the second half.
                let fresh = Fresh { settings: true, ..half.fresh };
                self.set_out(&mut state, half.journal, half.server, half.worker, fresh);
            }
            Move::Act => {
                let pending = state.lead.take()?;
                // While it is written, the write itself is what changes: its own reads stay as fresh as they were.
                let goes_on = self.write(&mut state, pending);
                state.lead = goes_on.then_some(Pending { at: pending.at + 1, ..pending });
            }
            Move::GhostLands => {
                let pending = state.ghost.take()?;
                self.write(&mut state, pending);
            }
            Move::GhostFades => state.ghost = None,
            Move::Pods(who) => follow(&mut state, who),
            Move::Candidate => match state.candidate {
                Candidate::Ending => state.candidate = Candidate::Absent,
                _ => {
                    state.candidate = Candidate::Ready;
                    state.data.touched = true;
                    if state.data.schema != Schema::New {
                        state.broke |= rules::WRITERS;
                    }
                    if state.settings.is_some_and(|found| found.text == Text::Prior && !found.stray) {
                        state.broke |= rules::SETTINGS;
                    }
                }
            },
            Move::Job(step) => {
                jobs::go_on(&mut state, step, self.mutant);
                if state.begun > last.begun
                    && state
                        .jobs
                        .iter()
                        .zip(Step::ALL)
                        .any(|(job, step)| step.restores() && job.run == Run::Ended(Report::Ok))
                {
                    state.broke |= rules::ONE_MIGRATION;
                }
            }
            Move::Zombie => {
                state.zombie = false;
                if state.data.schema == Schema::Half {
                    state.data.schema = Schema::New;
                }
            }
            Move::Write => state.data.writes += 1,
            Move::Wait => state.clock += 1,
            Move::Accept => state.orders.accept = true,
            Move::Unsuspend => state.orders.suspend = false,
            Move::Disturb(disturbance) => self.disturb(&mut state, disturbance),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn kept<const BIT: u16>(_: &World, state: &State) -> bool {
            state.broke & BIT == 0
        }
        fn rests_well(world: &World, state: &State) -> bool {
            let mut moves = Vec::new();
            if state.broke != 0 || state.lead.is_some() {
                return true;
            }
            world.free(state, &mut moves);
            let told = world.machine.told(state.journal);
            !moves.is_empty() || told.outcome.is_some() || told.awaits || state.orders.suspend
        }
        vec![
            Property::always(rules::NAMES[0].1, kept::<{ rules::NAMES[0].0 }>),
            Property::always(rules::NAMES[1].1, kept::<{ rules::NAMES[1].0 }>),
            Property::always(rules::NAMES[2].1, kept::<{ rules::NAMES[2].0 }>),
            Property::always(rules::NAMES[3].1, kept::<{ rules::NAMES[3].0 }>),
            Property::always(rules::NAMES[4].1, kept::<{ rules::NAMES[4].0 }>),
            Property::always(rules::NAMES[5].1, kept::<{ rules::NAMES[5].0 }>),
            Property::always(rules::NAMES[6].1, kept::<{ rules::NAMES[6].0 }>),
            Property::always(rules::NAMES[7].1, kept::<{ rules::NAMES[7].0 }>),
            Property::always(rules::NAMES[8].1, kept::<{ rules::NAMES[8].0 }>),
            Property::always(rules::REST, rests_well),
        ]
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World({:?})", self.mutant)
    }
}
