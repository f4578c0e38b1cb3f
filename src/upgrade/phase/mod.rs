//! What all phases share: their context, their answers, their order, and the few moves that several of them make.

mod config_refresh;
mod halt;
mod image_bump;
mod import_snapshot;
mod ingestion_reenable;
mod intruder;
mod leave;
mod member;
mod migrate;
mod quiesce;
mod restore_config;
mod restore_image;
mod resume;
mod resume_ingestion;
mod rollback_quiesce;
mod snapshot_export;
mod start;
mod verification;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use self::member::{
    Member, mark, pod_failure, remember_autoscaled, scale_back, to_prior, to_zero, unmark, wait_only,
};
use super::{
    Action, Observed, hold,
    seen::{JobState, Trouble},
};
use crate::{
    api::{
        GoDuration, MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        release::Stage,
        upgrade::{Category, PhaseRecord, PlannedCheck, PlannedJob},
    },
    commands::Command,
    job::{
        manifest::{CheckStep, job_name},
        protocol::{CheckFacts, Facts, JobInput, JobReport},
    },
};

/// One phase: its name, its limit and its step.
pub struct Phase {
    pub name: &'static str,
    /// How long it may run before it counts as failed; `None`: it waits for ever, and says so.
    pub limit: fn(&MemoriaUpgradeSpec) -> Option<GoDuration>,
    pub step: fn(&Context<'_>) -> Step,
    /// True when an abort must wait for its end, because stopping in the middle would leave an unknown state.
    pub uninterruptible: bool,
}

/// The way forward, in order. PreFlight comes before it: it makes the plan.
pub const FORWARD: &[Phase] = &[
    quiesce::PHASE,
    snapshot_export::PHASE,
    image_bump::PHASE,
    migrate::PHASE,
    config_refresh::PHASE,
    start::PHASE,
    ingestion_reenable::PHASE,
    verification::PHASE,
];

/// The way back after the image moved, in order.
pub const BACK: &[Phase] = &[
    rollback_quiesce::PHASE,
    import_snapshot::PHASE,
    restore_config::PHASE,
    restore_image::PHASE,
    resume_ingestion::PHASE,
];

/// The ways to turn back or stop where that is not the way.
pub const RESUME: &Phase = &resume::PHASE;
pub const HALT: &Phase = &halt::PHASE;
pub const LEAVE: &Phase = &leave::PHASE;

/// Names that the driver and the status need.
pub const QUIESCE: &str = quiesce::PHASE.name;
pub const IMAGE_BUMP: &str = image_bump::PHASE.name;
pub const INGESTION_REENABLE: &str = ingestion_reenable::PHASE.name;
pub const RESUME_INGESTION: &str = resume_ingestion::PHASE.name;
pub const START: &str = start::PHASE.name;
pub const ROLLBACK_QUIESCE: &str = rollback_quiesce::PHASE.name;
pub const MIGRATE: &str = migrate::PHASE.name;
pub const VERIFICATION: &str = verification::PHASE.name;
pub const IMPORT_SNAPSHOT: &str = import_snapshot::PHASE.name;
pub use halt::stood_still;
pub use import_snapshot::{ACCEPTED, BASELINE, CLIENTS_MAY_WRITE, RESTORE, RESTORE_ACCEPTED, asked};
pub use intruder::wrote_unasked;
pub use migrate::STEP as MIGRATE_STEP;
pub use restore_config::config_record;

/// The phase of that name, on the way forward or back.
pub fn by_name(name: &str) -> Option<&'static Phase> {
    FORWARD.iter().chain(BACK).chain([RESUME, HALT, LEAVE]).find(|phase| phase.name == name)
}

/// What a phase remembered when it was tried before, as far as it is still true when it is begun again.
pub fn still_true(
    name: &str,
    plan: &MemoriaUpgradeSpec,
    journal: &MemoriaUpgradeStatus,
    seen: &Observed,
) -> Remembered {
    let output = seen.config.as_ref().and_then(|config| config.output.as_ref());
    let refreshed = plan.config.as_ref().zip(output).is_some_and(|(planned, output)| {
        output.sha256.as_ref() == Some(&planned.new_sha256) && planned.new_sha256 != planned.prior_sha256
    });
    let stays = |key: &str| match name {
        START => [import_snapshot::BASELINE, import_snapshot::CLIENTS_MAY_WRITE].contains(&key),
        // The settings that are there are the attempt's own.
        name if name == config_refresh::PHASE.name => refreshed && key.starts_with(config_refresh::WRITE),
        _ => false,
    };
    let last = |name: &str| journal.phases.iter().rfind(|record| record.name == name).map(|record| record.done.clone());
    let mut known: Remembered = last(name).into_iter().flatten().filter(|(key, _)| stays(key)).collect();
    let proved = [config_refresh::PHASE.name, START, rollback_quiesce::PHASE.name].contains(&name);
    if proved && !known.contains_key(import_snapshot::CLIENTS_MAY_WRITE) {
        // Between the last look at the halted attempt and the first one at this phase nobody watches either.
        known.extend(last(halt::PHASE.name).into_iter().flatten().filter(|(key, _)| key.starts_with(halt::STILL)));
    }
    known
}

/// Steps of a phase that are done, with what must be remembered of each.
pub type Remembered = BTreeMap<String, String>;

/// All that a phase may look at.
pub struct Context<'a> {
    /// The attempt's name.
    pub attempt: &'a str,
    pub namespace: &'a str,
    pub plan: &'a MemoriaUpgradeSpec,
    pub journal: &'a MemoriaUpgradeStatus,
    /// This phase's own record.
    pub record: &'a PhaseRecord,
    pub seen: &'a Observed,
    pub now: Timestamp,
}

/// What a phase wants next.
#[derive(Debug)]
pub enum Step {
    /// Act, then look again. The message says what is under way; it must not change while nothing changes.
    Act {
        actions: Vec<Action>,
        message: String,
    },
    /// Remember that a part is done (or is about to be) before going on.
    Remember {
        key: String,
        value: String,
    },
    /// Look again when something changes.
    Wait {
        message: String,
    },
    /// Neither go on nor fail: say why, rest, then ask again by these actions.
    Hold {
        why: hold::Reason,
        retry: Vec<Action>,
    },
    Done(Box<Done>),
    Fail {
        category: Category,
        reason: String,
        message: String,
    },
}

/// What a finished phase leaves in the journal.
#[derive(Debug, Default)]
pub struct Done {
    pub message: String,
    /// From a Job's report: snapshot, migrations, checks.
    pub facts: Option<Facts>,
}

impl Step {
    pub fn done(message: impl Into<String>) -> Self {
        Self::Done(Box::new(Done { message: message.into(), facts: None }))
    }

    pub fn wait(message: impl Into<String>) -> Self {
        Self::Wait { message: message.into() }
    }

    pub fn act(actions: Vec<Action>, message: impl Into<String>) -> Self {
        Self::Act { actions, message: message.into() }
    }

    pub fn fail(category: Category, reason: &str, message: impl Into<String>) -> Self {
        Self::Fail { category, reason: reason.to_owned(), message: message.into() }
    }
}

impl<'a> Context<'a> {
    /// Brings one Job from absent to its report.
    pub fn job(&self, step: &str, input: JobInput) -> Result<&'a JobReport, Step> {
        let name = self.job_name(step);
        let Some(job) = self.seen.jobs.get(step) else {
            let create = Action::CreateJob { step: step.to_owned(), input };
            return Err(Step::act(vec![create], format!("job {name} starts")));
        };
        match &job.state {
            JobState::Running { trouble: None } => Err(Step::wait(format!("job {name} runs"))),
            JobState::Running { trouble: Some(trouble) } => Err(self.job_trouble(&name, trouble)),
            JobState::Finished { succeeded: true, report: Some(report), .. } if report.ok => Ok(report),
            JobState::Finished { report: Some(report), .. } if !report.ok => Err(Step::Fail {
                category: report.category.unwrap_or(Category::Bug),
                reason: report.reason.clone(),
                message: report.message.clone(),
            }),
            JobState::Finished { detail, .. } => Err(Step::fail(
                Category::Environment,
                "JobLost",
                format!("job {name} ended without a result ({detail}); see: {}", self.logs(&name)),
            )),
            JobState::Foreign { detail } => Err(Step::fail(
                Category::Conflict,
                "ForeignJob",
                format!("a job named {name} is not this attempt's ({detail}); delete it, then start again"),
            )),
        }
    }

    /// The same for a Job that makes checks: without a verdict the phase holds and asks again, because nothing is known
    /// to be wrong.
    pub fn check(&self, step: &str, input: JobInput) -> Result<&'a JobReport, Step> {
        let name = self.job_name(step);
        let held = |reason: &str, message: String| {
            let uid = self.seen.jobs.get(step).map(|job| job.uid.clone()).unwrap_or_default();
            let why = hold::Reason {
                phase: self.record.name.clone(),
                reason: reason.to_owned(),
                message,
                // A container that never began has no output.
                next_command: match reason {
                    "JobCannotRun" => Command::ShowPods { attempt: self.attempt, step }.in_namespace(self.namespace),
                    _ => self.logs(&name),
                },
            };
            Err(Step::Hold { why, retry: vec![Action::DeleteJob { step: step.to_owned(), uid }] })
        };
        match self.seen.jobs.get(step).map(|job| &job.state) {
            Some(JobState::Finished { report: Some(report), .. }) if report.reason == "CheckInconclusive" => {
                held("CheckInconclusive", report.message.clone())
            }
            Some(JobState::Finished { report: None, detail, .. }) => {
                held("JobLost", format!("job {name} ended without a result ({detail})"))
            }
            Some(JobState::Finished { report: Some(report), .. }) if report.reason == "Interrupted" => {
                held("JobLost", format!("job {name}: {}", report.message))
            }
            Some(JobState::Running { trouble: Some(trouble) }) if trouble.is_lasting().is_some() => {
                held("JobCannotRun", cannot_run(&name, trouble))
            }
            _ => self.job(step, input),
        }
    }

    /// All checks of a stage, side by side: the Job that asks for numbers, and those that run a CronJob's template. Nothing
    /// where none was asked for.
    pub fn checks(&self, stage: Stage, input: &JobInput) -> Result<Option<Done>, Step> {
        let (mut messages, mut checks, mut baselines) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut steps = Vec::new();
        for PlannedJob { step, check, .. } in self.checks_of(stage) {
            let answer = match check {
                Some(PlannedCheck { required: false, .. }) => self.told(step, input.clone()),
                _ => self.check(step, input.clone()),
            };
            match answer {
                Ok(report) => {
                    messages.push(report.message.as_str());
                    if let Some(Facts::Check(facts)) = &report.facts {
                        checks.extend(facts.checks.iter().cloned());
                        baselines.extend(facts.baselines.clone());
                    }
                }
                Err(step) => steps.push(step),
            }
        }
        match steps.into_iter().reduce(side_by_side) {
            Some(step) => Err(step),
            None if messages.is_empty() => Ok(None),
            None => {
                let facts = Some(Facts::Check(CheckFacts { checks, baselines }));
                Ok(Some(Done { message: messages.join("; "), facts }))
            }
        }
    }

    /// The plan's Jobs that make the checks of a stage.
    pub fn checks_of(&self, stage: Stage) -> impl Iterator<Item = &'a PlannedJob> {
        let asks = CheckStep::of(stage).as_str();
        let plan = self.plan;
        plan.jobs.iter().filter(move |job| match &job.check {
            Some(check) => check.stage == stage,
            None => job.step == asks,
        })
    }

    /// The end of a check that is only reported, however it ended.
    fn told(&self, step: &str, input: JobInput) -> Result<&'a JobReport, Step> {
        match self.seen.jobs.get(step).map(|job| &job.state) {
            Some(JobState::Finished { report: Some(report), .. }) => Ok(report),
            Some(JobState::Running { trouble: Some(trouble) }) => {
                Err(Step::wait(cannot_run(&self.job_name(step), trouble)))
            }
            _ => self.job(step, input),
        }
    }

    fn job_trouble(&self, name: &str, trouble: &Trouble) -> Step {
        let message = cannot_run(name, trouble);
        match trouble.is_lasting() {
            Some(_) => Step::fail(Category::Environment, "JobCannotRun", message),
            None => Step::wait(message),
        }
    }

    /// As the plan names it: a long one is shortened.
    fn job_name(&self, step: &str) -> String {
        job_name(self.attempt, step).unwrap_or_else(|_| format!("{}-{step}", self.attempt))
    }

    /// The command that shows a Job's output.
    pub fn logs(&self, job: &str) -> String {
        Command::ShowOutput { job }.in_namespace(self.namespace)
    }
}

fn cannot_run(job: &str, trouble: &Trouble) -> String {
    format!("the pod of job {job} does not run: {}: {}", trouble.reason, trouble.message)
}

/// The one step that serves two parts: a failure, else the actions of both, else a wait, else a hold that asks both again.
fn side_by_side(first: Step, second: Step) -> Step {
    let rank = |step: &Step| match step {
        Step::Fail { .. } => 0,
        Step::Act { .. } => 1,
        Step::Wait { .. } => 2,
        Step::Hold { .. } => 3,
        Step::Remember { .. } | Step::Done(_) => 4,
    };
    match (first, second) {
        (Step::Act { mut actions, message }, Step::Act { actions: more, message: theirs }) => {
            actions.extend(more);
            Step::act(actions, format!("{message}, {theirs}"))
        }
        (Step::Wait { message }, Step::Wait { message: theirs }) => Step::wait(format!("{message}, {theirs}")),
        (Step::Hold { why, mut retry }, Step::Hold { why: theirs, retry: more }) => {
            retry.extend(more);
            let message = format!("{}; {}", why.message, theirs.message);
            Step::Hold { why: hold::Reason { message, ..why }, retry }
        }
        (first, second) if rank(&second) < rank(&first) => second,
        (first, _) => first,
    }
}

/// Lets Kubernetes clean up the attempt's finished Jobs. `Ok` when all are armed.
pub fn arm_jobs(cx: &Context<'_>) -> Result<(), Step> {
    let actions: Vec<_> = cx
        .seen
        .jobs
        .iter()
        .filter(|(_, job)| !job.ttl_armed && matches!(job.state, JobState::Finished { .. }))
        .map(|(step, job)| Action::ArmJobTtl { step: step.clone(), uid: job.uid.clone() })
        .collect();
    if actions.is_empty() { Ok(()) } else { Err(Step::act(actions, "arming the clean-up of finished jobs")) }
}

/// Sets the maintenance flag where there is one. `Ok` when it has the value.
pub fn flag(cx: &Context<'_>, on: bool) -> Result<(), Step> {
    let Some(flag) = &cx.plan.maintenance_flag else { return Ok(()) };
    let value = if on { &flag.on_value } else { &flag.off_value };
    if cx.seen.flag.as_ref() == Some(value) {
        return Ok(());
    }
    let at = &flag.config_map_key_ref;
    Err(Step::act(
        vec![Action::SetFlag { value: value.clone() }],
        format!("setting the maintenance flag {}/{} to {value}", at.name, at.key),
    ))
}

/// Two parts of which the second need not wait until the first was seen done: what both ask for is done in one go, the
/// first one's before the second one's. The results of both, or the step that serves both.
pub fn both<A, B>(first: Result<A, Step>, second: Result<B, Step>) -> Result<(A, B), Step> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(step), Ok(_)) | (Ok(_), Err(step)) => Err(step),
        (Err(first), Err(second)) => Err(side_by_side(first, second)),
    }
}

/// Runs a chain of parts that each say `Ok` when done.
macro_rules! chain {
    ($($part:expr),+ $(,)?) => {
        $(if let Err(step) = $part { return step; })+
    };
}
pub(crate) use chain;

/// `Ok` value or the step that is to be taken instead.
macro_rules! take {
    ($value:expr) => {
        match $value {
            Ok(value) => value,
            Err(step) => return step,
        }
    };
}
pub(crate) use take;
