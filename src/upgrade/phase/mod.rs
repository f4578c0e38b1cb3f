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
        upgrade::{Category, PhaseRecord},
    },
    commands::Command,
    job::protocol::{Facts, JobInput, JobReport},
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
pub const IMPORT_SNAPSHOT: &str = import_snapshot::PHASE.name;
pub use import_snapshot::{ACCEPTED, RESTORE, RESTORE_ACCEPTED, asked};
pub use restore_config::config_record;

/// The phase of that name, on the way forward or back.
pub fn by_name(name: &str) -> Option<&'static Phase> {
    FORWARD.iter().chain(BACK).chain([RESUME, HALT, LEAVE]).find(|phase| phase.name == name)
}

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
        let name = format!("{}-{step}", self.attempt);
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
        let name = format!("{}-{step}", self.attempt);
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
            Some(JobState::Running { trouble: Some(trouble) }) if trouble.is_lasting().is_some() => held(
                "JobCannotRun",
                format!("the pod of job {name} does not run: {}: {}", trouble.reason, trouble.message),
            ),
            _ => self.job(step, input),
        }
    }

    fn job_trouble(&self, name: &str, trouble: &Trouble) -> Step {
        let message = format!("the pod of job {name} does not run: {}: {}", trouble.reason, trouble.message);
        match trouble.is_lasting() {
            Some(_) => Step::fail(Category::Environment, "JobCannotRun", message),
            None => Step::wait(message),
        }
    }

    /// The command that shows a Job's output.
    pub fn logs(&self, job: &str) -> String {
        Command::ShowOutput { job }.in_namespace(self.namespace)
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
