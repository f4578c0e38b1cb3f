//! The release's status, projected from plan, journal and pre-flight. Pure: equal input gives equal status, so that a
//! settled release is never written again.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;

use crate::{
    api::{
        MemoriaRelease, MemoriaReleaseStatus, MemoriaUpgrade, MemoriaUpgradeStatus,
        conditions::{self, reason},
        decision::DecisionAction,
        marks,
        release::{
            AttemptSummary, Current, CurrentImage, HoldStatus, IngestionState, IngestionStatus, PreFlightStatus,
            RejectedImages, RollbackStatus,
        },
        upgrade::{Category, Hold, HoldOutcome, Outcome},
    },
    commands::Command,
    upgrade::{
        estimate, hold,
        image::{ImageRef, digest_of},
        phase::RESTORE,
        preflight::{Answer, run_name},
        retry,
    },
};

/// How many rejections are remembered.
const MAX_REJECTED: usize = 16;

/// How the release is, for kstatus and people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Ready,
    /// The operator works; `Ready` is Unknown.
    Working,
    /// A person must act.
    Stalled,
}

/// The status while no attempt is open.
///
/// `running` is what the workloads run, where they tell; it is recorded only when nothing was before.
pub fn of_preflight(
    release: &MemoriaRelease,
    answer: &Answer,
    running: Option<Current>,
    now: Timestamp,
) -> MemoriaReleaseStatus {
    let mut status = begin(release);
    status.current = status.current.or(running);
    status.next_action = None;
    status.rollback = None;
    status.hold = None;
    let (standing, reason, message, phase) = match answer {
        Answer::Settled(current) => {
            let message =
                match status.attempt.as_ref().and_then(|attempt| Some((attempt, attempt.finished_at.as_ref()?))) {
                    Some((attempt, at)) if attempt.to == current.version => format!(
                        "{} runs since {}; writers were stopped {} s",
                        current.version,
                        at.0.strftime("%Y-%m-%dT%H:%M:%SZ"),
                        attempt.writers_stopped_seconds.unwrap_or_default()
                    ),
                    _ => format!("{} runs; it was adopted as it is", current.version),
                };
            let reason = match &status.attempt {
                Some(attempt) if attempt.to == current.version => reason::RELEASE_SUCCEEDED,
                _ => reason::ADOPTED,
            };
            status.current = Some(current.clone());
            status.pre_flight = None;
            status.ingestion = Some(IngestionStatus { state: IngestionState::Running, stopped_since: None });
            (Standing::Ready, reason, message, "Succeeded")
        }
        Answer::Refused { reason, message, current } => {
            if let Some(current) = current {
                status.current = Some(current.clone());
            }
            (Standing::Stalled, *reason, message.clone(), "Pending")
        }
        Answer::Checking { status: found, message, .. } => {
            status.pre_flight = Some(found.clone());
            (Standing::Working, reason::PROGRESSING, message.clone(), "PreFlight")
        }
        Answer::DryRun { status: found, .. } => {
            status.pre_flight = Some(found.clone());
            (Standing::Working, reason::PROGRESSING, "the API server dry-runs the plan".to_owned(), "PreFlight")
        }
        Answer::Planned { status: found, .. } => {
            status.pre_flight = Some(found.clone());
            let (standing, reason, message) = planned(found);
            (standing, reason, message, "PreFlight")
        }
        Answer::NotPassed { status: found, reason, message } => {
            status.pre_flight = Some(found.clone());
            status.next_action = Some(ask_again(release));
            status.hold = inconclusive(found, reason, message, now);
            (Standing::Stalled, *reason, message.clone(), "PreFlight")
        }
    };
    status.phase = Some(phase.to_owned());
    stand(&mut status, release, standing, reason, &message, now);
    tell_hold(&mut status, release, now);
    status
}

/// A pre-flight that found nothing wrong but could not tell everything holds; Memoria runs unchanged meanwhile.
fn inconclusive(found: &PreFlightStatus, reason: &str, message: &str, now: Timestamp) -> Option<HoldStatus> {
    (reason == reason::INCONCLUSIVE).then(|| HoldStatus {
        since: found.finished_at.clone().unwrap_or(Time(now)),
        phase: "PreFlight".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        deadline: None,
        outcome: HoldOutcome::Keep,
    })
}

/// The condition `Held`, only while True.
fn tell_hold(status: &mut MemoriaReleaseStatus, release: &MemoriaRelease, now: Timestamp) {
    let Some(hold) = status.hold.clone() else { return };
    set(&mut status.conditions, release, conditions::HELD, "True", &hold.reason, &hold.message, now);
}

fn planned(found: &PreFlightStatus) -> (Standing, &'static str, String) {
    let plan = found.plan.as_ref();
    let message = format!(
        "plan {} ready: {} checks passed; set spec.mode to Apply to carry it out",
        plan.map(|plan| plan.hash.as_str()).unwrap_or_default(),
        found.checks.len()
    );
    (Standing::Ready, reason::PLAN_READY, message)
}

/// The command that starts the pre-flight checks anew.
fn ask_again(release: &MemoriaRelease) -> String {
    let namespace = release.namespace().unwrap_or_default();
    Command::AskAgain { release: &release.name_any() }.in_namespace(&namespace)
}

/// The status while spec.suspend keeps pre-flight from beginning.
pub fn suspended(release: &MemoriaRelease, now: Timestamp) -> MemoriaReleaseStatus {
    let mut status = begin(release);
    status.rollback = None;
    status.phase = Some("Pending".to_owned());
    let message = "spec.suspend is true: no phase starts until it is false; Memoria runs unchanged";
    status.next_action = Some(unsuspend(release));
    let known = status.hold.take().filter(|known| known.reason == reason::SUSPENDED).map(|known| known.since);
    status.hold = Some(HoldStatus {
        since: known.unwrap_or(Time(now)),
        phase: "PreFlight".to_owned(),
        reason: reason::SUSPENDED.to_owned(),
        message: message.to_owned(),
        deadline: None,
        outcome: HoldOutcome::Keep,
    });
    stand(&mut status, release, Standing::Working, reason::SUSPENDED, message, now);
    tell_hold(&mut status, release, now);
    status
}

/// The status from an attempt, open or closed.
pub fn of_attempt(release: &MemoriaRelease, upgrade: &MemoriaUpgrade, now: Timestamp) -> MemoriaReleaseStatus {
    let mut status = begin(release);
    let (plan, journal) = (&upgrade.spec, upgrade.status.clone().unwrap_or_default());
    let seconds = match (&journal.writers_stopped_at, &journal.writers_back_at) {
        (Some(from), Some(to)) => Some(to.0.duration_since(from.0).as_secs()),
        _ => None,
    };
    status.attempt = Some(AttemptSummary {
        id: upgrade.name_any(),
        from: plan.from.clone(),
        to: plan.to.clone(),
        generation: plan.release_generation,
        plan_hash: plan.plan_hash.get(..12).unwrap_or_default().to_owned(),
        started_at: upgrade.creation_timestamp().unwrap_or(Time(now)),
        finished_at: journal.finished_at.clone(),
        outcome: journal.outcome,
        writers_stopped_seconds: seconds,
    });
    status.attempts = status.attempts.max(number(&upgrade.name_any()));
    status.phase = journal.phase.clone();
    status.pre_flight = None;
    let stopped = journal.writers_stopped_at.is_some() && journal.writers_back_at.is_none();
    status.ingestion = Some(match stopped {
        true => IngestionStatus { state: IngestionState::Stopped, stopped_since: journal.writers_stopped_at.clone() },
        false => IngestionStatus { state: IngestionState::Running, stopped_since: None },
    });
    let message = journal.message.clone().unwrap_or_default();
    let (standing, reason, message, next) = match journal.outcome {
        None => match &journal.hold {
            Some(hold) => {
                let standing = if hold.expired { Standing::Stalled } else { Standing::Working };
                (standing, why_held(hold), hold::sentence(hold), Some(hold.next_command.clone()))
            }
            None if awaiting(&journal) => {
                let next = decide(upgrade, DecisionAction::AcceptDataLoss);
                let message = format!("{}; to go on: {next}", named(&journal.phase, &message));
                (Standing::Stalled, reason::DATA_LOSS_OVER_BUDGET, message, Some(next))
            }
            None => (Standing::Working, reason::PROGRESSING, named(&journal.phase, &message), None),
        },
        Some(Outcome::Succeeded) => {
            let message = format!("{} runs; writers were stopped {} s", plan.to, seconds.unwrap_or_default());
            (Standing::Ready, reason::RELEASE_SUCCEEDED, message, None)
        }
        Some(Outcome::Resumed) => {
            let message = format!("{message}; {} runs again, nothing was changed", plan.from);
            (Standing::Stalled, reason::RESUMED, message, Some(ask_again(release)))
        }
        Some(Outcome::Halted) => {
            let (message, next) = halted(upgrade, &message);
            (Standing::Stalled, reason::HALTED, message, Some(next))
        }
        Some(Outcome::Unverified) => {
            let message = format!("{message}; {} keeps running, the snapshot is kept", plan.to);
            let next = restorable(upgrade).then(|| decide(upgrade, DecisionAction::Rollback));
            (Standing::Stalled, reason::UNVERIFIED, message, next.or_else(|| Some(ask_again(release))))
        }
        Some(Outcome::RolledBack) => {
            let (message, next) = rolled_back(release, upgrade, &message);
            (Standing::Stalled, reason::ROLLED_BACK, message, Some(next))
        }
        Some(Outcome::RollbackFailed) => {
            let (message, next) = halted(upgrade, &message);
            (Standing::Stalled, reason::ROLLBACK_FAILED, message, Some(next))
        }
        Some(Outcome::Aborted) => (Standing::Stalled, reason::ABORTED, message, Some(ask_again(release))),
    };
    status.next_action = next;
    status.rollback = way_back(upgrade);
    reject(&mut status, upgrade);
    status.hold = journal.hold.as_ref().filter(|_| journal.outcome.is_none()).map(|hold| HoldStatus {
        since: hold.since.clone(),
        phase: hold.phase.clone(),
        reason: hold.reason.clone(),
        message: hold.message.clone(),
        deadline: hold.deadline.clone(),
        outcome: hold.outcome,
    });
    let message = match refused(&journal) {
        Some(refused) => format!("{refused}; {message}"),
        None => message,
    };
    let message = match waiting_spec(release, upgrade) {
        Some(waiting) => format!("{message}; {waiting}"),
        None => message,
    };
    let moved =
        [Outcome::Succeeded, Outcome::Halted, Outcome::Unverified, Outcome::RolledBack, Outcome::RollbackFailed];
    if let Some(outcome) = journal.outcome.filter(|outcome| moved.contains(outcome)) {
        status.current = Some(after(release, upgrade, outcome));
    }
    stand(&mut status, release, standing, reason, &message, now);
    tell_hold(&mut status, release, now);
    if awaiting(&journal) {
        set(&mut status.conditions, release, conditions::AWAITING_DECISION, "True", reason, &message, now);
    }
    if stopped {
        let since = journal.writers_stopped_at.as_ref().map(|at| at.0.strftime("%H:%M:%SZ").to_string());
        let why = journal.phase.clone().unwrap_or_default();
        let message = format!("writers are stopped since {}", since.unwrap_or_default());
        set(&mut status.conditions, release, conditions::INGESTION_STOPPED, "True", &why, &message, now);
    }
    status
}

/// Why nothing came of the last decision; the next one, or what happens next, takes its place.
fn refused(journal: &MemoriaUpgradeStatus) -> Option<String> {
    let last = journal.decisions.last()?;
    let since = journal.finished_at.iter().chain(journal.phases.last().map(|record| &record.started_at)).max();
    let why = last.refused.as_ref().filter(|_| since.is_none_or(|since| last.at >= *since))?;
    Some(format!("decision {} ({:?}) is refused: {why}", last.name, last.action))
}

fn why_held(hold: &Hold) -> &'static str {
    match hold.reason.as_str() {
        _ if hold.expired => reason::HOLD_EXPIRED,
        reason::SUSPENDED => reason::SUSPENDED,
        _ => reason::HELD,
    }
}

/// A spec that was changed while an attempt is open waits for its end, and says how that can be had.
fn waiting_spec(release: &MemoriaRelease, upgrade: &MemoriaUpgrade) -> Option<String> {
    let open = upgrade.status.as_ref().is_none_or(|journal| journal.outcome.is_none());
    let generation = release.metadata.generation.unwrap_or_default();
    let waits = open && generation != upgrade.spec.release_generation && run_name(release) != upgrade.spec.run;
    waits.then(|| {
        format!(
            "generation {generation} of the spec (version {}) waits until attempt {} ends; a MemoriaDecision with \
             action Abort, or spec.version {}, ends it",
            release.spec.version,
            upgrade.name_any(),
            upgrade.spec.from
        )
    })
}

fn named(phase: &Option<String>, message: &str) -> String {
    match phase {
        Some(phase) => format!("{phase}: {message}"),
        None => message.to_owned(),
    }
}

fn unsuspend(release: &MemoriaRelease) -> String {
    crate::upgrade::unsuspend(&release.namespace().unwrap_or_default(), &release.name_any())
}

/// The command that makes a decision about this attempt.
fn decide(upgrade: &MemoriaUpgrade, action: DecisionAction) -> String {
    let namespace = upgrade.namespace().unwrap_or_default();
    let (release, attempt) = (&upgrade.spec.release_name, &upgrade.name_any());
    Command::Decide { release, attempt, action }.in_namespace(&namespace)
}

fn awaiting(journal: &MemoriaUpgradeStatus) -> bool {
    journal.outcome.is_none() && journal.rollback.as_ref().is_some_and(|rollback| rollback.awaiting.is_some())
}

/// Whether a person can still order the way back.
fn restorable(upgrade: &MemoriaUpgrade) -> bool {
    let snapshot = upgrade.status.as_ref().is_some_and(|journal| journal.snapshot.is_some());
    snapshot && upgrade.spec.jobs.iter().any(|job| job.step == RESTORE)
}

/// What the way back would cost now, as long as there is one and it was not taken.
fn way_back(upgrade: &MemoriaUpgrade) -> Option<RollbackStatus> {
    let journal = upgrade.status.as_ref()?;
    let stands = matches!(journal.outcome, None | Some(Outcome::Halted | Outcome::Unverified));
    if !stands || journal.rollback.is_some() || !restorable(upgrade) {
        return None;
    }
    let (rows_at_risk, rows_at_risk_at) = match estimate::rows_at_risk(journal) {
        Some((rows, at)) => (Some(rows), at),
        None => (None, None),
    };
    Some(RollbackStatus {
        to_version: upgrade.spec.from.clone(),
        estimate_seconds: estimate::seconds(&upgrade.spec, journal),
        rows_at_risk,
        rows_at_risk_at,
    })
}

/// Remembers images that were taken back for their own fault, each attempt once, the last ones first to stay.
fn reject(status: &mut MemoriaReleaseStatus, upgrade: &MemoriaUpgrade) {
    let Some(journal) = &upgrade.status else { return };
    let (Some(Outcome::RolledBack), Some(failure)) = (journal.outcome, &journal.failure) else { return };
    let attempt = upgrade.name_any();
    if failure.category != Category::Candidate || status.rejected.iter().any(|known| known.attempt == attempt) {
        return;
    }
    let targets = upgrade.spec.targets.iter();
    let mut digests: Vec<_> = targets.filter_map(|target| digest_of(&target.to_image)).map(str::to_owned).collect();
    digests.sort();
    let at = journal.finished_at.clone().unwrap_or_else(|| Time(Timestamp::default()));
    let reason = failure.reason.clone();
    status.rejected.push(RejectedImages { attempt, version: upgrade.spec.to.clone(), digests, reason, at });
    let surplus = status.rejected.len().saturating_sub(MAX_REJECTED);
    status.rejected.drain(..surplus);
}

/// What came back, and how to be Ready again.
fn rolled_back(release: &MemoriaRelease, upgrade: &MemoriaUpgrade, message: &str) -> (String, String) {
    let rollback = upgrade.status.clone().unwrap_or_default().rollback.unwrap_or_default();
    let data = match rollback.restored {
        Some(true) => "the snapshot was restored and proved",
        _ => "the data was proved unchanged",
    };
    let late = rollback.late_inserted + rollback.late_updated + rollback.late_deleted;
    let aside = match &rollback.failed_state {
        Some(place) if late > 0 => {
            let carried = match rollback.late_carried {
                0 => String::new(),
                rows => format!(", {rows} of them are in the restored data, too"),
            };
            format!("; {late} later writes are set aside in {place}{carried}")
        }
        _ => String::new(),
    };
    let from = &upgrade.spec.from;
    let namespace = release.namespace().unwrap_or_default();
    let next = Command::SetVersion { release: &release.name_any(), version: from }.in_namespace(&namespace);
    let text = format!(
        "{message}; {from} runs again, {data}{aside}. Set spec.version back to {from}, or to a mended version; to try \
         the same one again: {}",
        ask_again(release)
    );
    (text, next)
}

/// Where every end of an attempt is explained.
const ENDED: &str = "docs/runbooks/attempt-ended.md";

/// What a person reads at night: both copies, where they lie, and the next command.
fn halted(upgrade: &MemoriaUpgrade, message: &str) -> (String, String) {
    let journal = upgrade.status.clone().unwrap_or_default();
    let namespace = upgrade.namespace().unwrap_or_default();
    let snapshot = journal.snapshot.as_ref().map(|snapshot| {
        format!(
            "the snapshot is whole in {}, directory {} (manifest sha256 {})",
            upgrade.spec.storage,
            snapshot.directory,
            snapshot.manifest_sha256.get(..12).unwrap_or_default()
        )
    });
    let message = format!(
        "{message}; writers stay stopped, the database is as the failure left it, {}",
        snapshot.unwrap_or_else(|| "no snapshot was needed".to_owned())
    );
    let back = journal.outcome == Some(Outcome::RollbackFailed) && restorable(upgrade);
    if back && !retry::is_worn_out(&journal) || retry::forward(&upgrade.spec, &journal).is_ok() {
        let next = decide(upgrade, DecisionAction::Retry);
        let how = format!("{message}; next: mend the cause, then {next}; for all else see {ENDED}");
        return (how, next);
    }
    let next = match restorable(upgrade) {
        true => decide(upgrade, DecisionAction::Rollback),
        false => Command::ShowFailure { attempt: &upgrade.name_any() }.in_namespace(&namespace),
    };
    (format!("{message}; next: {next}, or see {ENDED}"), next)
}

/// The number at the end of an attempt's name.
pub fn number(attempt: &str) -> i64 {
    attempt.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or_default()
}

/// What runs after an attempt that moved the images.
fn after(release: &MemoriaRelease, upgrade: &MemoriaUpgrade, outcome: Outcome) -> Current {
    let back = outcome == Outcome::RolledBack;
    Current {
        version: match outcome {
            Outcome::Halted | Outcome::RollbackFailed => "unknown".to_owned(),
            Outcome::RolledBack => upgrade.spec.from.clone(),
            _ => upgrade.spec.to.clone(),
        },
        images: upgrade
            .spec
            .targets
            .iter()
            .map(|target| {
                let pinned = if back { &target.from_digest } else { &target.to_image };
                CurrentImage {
                    target: target.name.clone(),
                    image: if back { target.from_image.clone() } else { target.to_image.clone() },
                    digest: pinned.parse::<ImageRef>().ok().and_then(|image| image.digest),
                }
            })
            .collect(),
        requested_at: release.annotations().get(marks::REQUESTED_AT_ANNOTATION).cloned(),
    }
}

fn begin(release: &MemoriaRelease) -> MemoriaReleaseStatus {
    let mut status = release.status.clone().unwrap_or_default();
    status.observed_generation = release.metadata.generation;
    status
}

fn stand(
    status: &mut MemoriaReleaseStatus,
    release: &MemoriaRelease,
    standing: Standing,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let (ready, other) = match standing {
        Standing::Ready => ("True", None),
        Standing::Working => ("Unknown", Some(conditions::RECONCILING)),
        Standing::Stalled => ("False", Some(conditions::STALLED)),
    };
    let conditions = &mut status.conditions;
    conditions.retain(|known| known.type_ == conditions::READY || Some(known.type_.as_str()) == other);
    set(conditions, release, conditions::READY, ready, reason, message, now);
    if let Some(other) = other {
        set(conditions, release, other, "True", reason, message, now);
    }
}

/// Sets one condition; the transition time moves only with the status.
fn set(
    conditions: &mut Vec<Condition>,
    release: &MemoriaRelease,
    type_: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let known = conditions.iter().find(|known| known.type_ == type_ && known.status == value);
    let condition = Condition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: crate::upgrade::cut(message.to_owned()),
        observed_generation: release.metadata.generation,
        last_transition_time: known.map_or(Time(now), |known| known.last_transition_time.clone()),
    };
    conditions.retain(|known| known.type_ != type_);
    conditions.push(condition);
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::upgrade::world::{ATTEMPT, Fault, World};

    /// What the release says of this world's attempt.
    fn said(world: &World) -> MemoriaReleaseStatus {
        let release: MemoriaRelease = serde_json::from_value(json!({
            "metadata": {"name": "memoria", "namespace": "ns", "generation": 2},
            "spec": {"version": "1.0.0", "targets": [
                {"name": "server", "role": "Server", "workloadRef": {"kind": "Deployment", "name": "server"}}]}
        }))
        .unwrap();
        let mut upgrade = MemoriaUpgrade::new(ATTEMPT, world.plan.clone());
        upgrade.metadata.namespace = Some("ns".to_owned());
        upgrade.status = Some(world.journal.clone());
        of_attempt(&release, &upgrade, world.now)
    }

    fn message(status: &MemoriaReleaseStatus) -> String {
        status.conditions.iter().find(|known| known.type_ == conditions::READY).unwrap().message.clone()
    }

    fn fails(step: &'static str, category: Category, reason: &'static str) -> Fault {
        Fault::JobFails { step, category, reason }
    }

    #[test]
    fn what_a_person_is_told_to_type_is_what_will_be_done() {
        let broken = || fails("baseline", Category::Environment, "StorageFailed");
        for (faults, automatic, action) in [
            (vec![broken()], false, "\"action\":\"Retry\""),
            (vec![Fault::JobVanishes { step: "migrate" }], false, "\"action\":\"Rollback\""),
            (vec![fails("migrate", Category::Candidate, "MigrateFailed")], false, "\"action\":\"Rollback\""),
            (vec![broken(), fails("restore", Category::Environment, "StorageFailed")], true, "\"action\":\"Retry\""),
        ] {
            let mut world = World::new();
            world.plan.rollback.automatic = automatic;
            world.faults.clone_from(&faults);
            world.run();
            let next = said(&world).next_action.unwrap();
            assert!(next.contains(action) && next.ends_with("| kubectl -n ns create -f -"), "{faults:?}: {next}");
            assert!(message(&said(&world)).contains(&next), "the message has it whole");
            // It does something.
            match action.contains("Retry") {
                true => world.seen.orders.retry = Some("typed".into()),
                false => world.seen.orders.rollback = Some("typed".into()),
            }
            world.faults.clear();
            world.run();
            assert_eq!(world.journal.decisions[0].refused, None);
            assert!(matches!(world.journal.outcome, Some(Outcome::Succeeded | Outcome::RolledBack)));
        }
    }

    #[test]
    fn what_the_way_back_would_cost_is_told_while_there_is_one() {
        let mut world = World::counting();
        world.faults.push(fails("verify", Category::Environment, "CheckInconclusive"));
        let costs = |world: &World| said(world).rollback;
        assert_eq!(costs(&world), None, "there is nothing to go back to");
        while world.journal.snapshot.is_none() {
            world.turn(None);
        }
        let cost = costs(&world).unwrap();
        assert_eq!((cost.to_version.as_str(), cost.rows_at_risk, cost.rows_at_risk_at), ("0.9.0", Some(0), None));
        let stopping = cost.estimate_seconds.unwrap();
        assert!(stopping >= 21, "the restore into scratch took 20.5 s");
        for _ in 0..60 {
            world.turn(None);
        }
        let cost = costs(&world).unwrap();
        assert!(cost.estimate_seconds.unwrap() > stopping, "a start was measured, too");
        assert_eq!((cost.rows_at_risk, cost.rows_at_risk_at), (None, None), "nobody counted yet");
        for _ in 0..200 {
            world.turn(None);
        }
        let cost = costs(&world).unwrap();
        assert_eq!((cost.rows_at_risk, cost.rows_at_risk_at.is_some()), (Some(3), true));

        // A version that runs unverified can still be taken back; one that was, or that was verified, not.
        let failing = |automatic| {
            let mut world = World::counting();
            world.faults.push(fails("verify", Category::Candidate, "CheckFailed"));
            world.plan.rollback.automatic = automatic;
            world.run();
            world
        };
        let (left, back) = (failing(false), failing(true));
        assert_eq!((left.journal.outcome, costs(&left).is_some()), (Some(Outcome::Unverified), true));
        assert_eq!((back.journal.outcome, costs(&back)), (Some(Outcome::RolledBack), None));
        world.faults.clear();
        world.run();
        assert_eq!((world.journal.outcome, costs(&world)), (Some(Outcome::Succeeded), None));
    }

    #[test]
    fn a_refused_decision_is_told_until_something_else_happens() {
        let mut world = World::with(fails("migrate", Category::Candidate, "MigrateFailed"));
        world.plan.rollback.automatic = false;
        world.run();
        world.seen.orders.retry = Some("again".into());
        world.run();
        let refused = "decision again (Retry) is refused: Migrate failed by the new version's own fault";
        assert!(message(&said(&world)).starts_with(refused), "{}", message(&said(&world)));
        world.faults.clear();
        world.seen.orders.rollback = Some("back".into());
        world.run();
        assert!(!message(&said(&world)).contains("refused"));
    }
}
