//! One guard taken away each: the rule that it keeps must be seen to break.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use memoria_operator::{
    api::{
        MemoriaUpgradeSpec, MemoriaUpgradeStatus,
        upgrade::{Category, PhaseState, SnapshotRecord},
    },
    job::protocol::JobReport,
    upgrade::{Action, Decision, Observed, decide as shipped, seen::JobState},
};

use crate::{
    plan::{self, ATTEMPT, LATER, MANIFEST, Seen},
    rules,
    state::{Step, Text, Wanted},
    world::{Disturbance, May},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The journal claims a snapshot that was never taken.
    SnapshotClaimed,
    /// The guard does not compare the data with the snapshot.
    DataNotCompared,
    /// The guard does not look at its marker.
    MarkerIgnored,
    /// The old servers come back before the data does.
    RestoreSkipped,
    /// The new servers come back without a migration.
    MigrationSkipped,
    /// The restore is not told that clients may have written.
    LateWritesUntold,
    /// A loss over the budget is accepted without a person.
    LossAccepted,
    /// Limits never run out.
    NoLimits,
    /// The restore drops the old data first, in a transaction of its own.
    DropsFirst,
    /// A Job that was lost is held against the image.
    OutageBlamed,
    /// The images are those of the newest spec.
    NewestSpec,
    /// The old servers come back before their settings do.
    SettingsStay,
    /// The settings are not compared with those that the plan was made of.
    SettingsNotCompared,
    /// What is tried again counts as done.
    RetrySkips,
    /// Whatever ran while nobody watched, a halted attempt is tried again.
    RetryUnwatched,
}

impl Mutant {
    pub const ALL: [(Mutant, &'static str); 15] = [
        (Mutant::SnapshotClaimed, rules::NAMES[0].1),
        (Mutant::DataNotCompared, rules::NAMES[0].1),
        (Mutant::MarkerIgnored, rules::NAMES[1].1),
        (Mutant::RestoreSkipped, rules::NAMES[2].1),
        (Mutant::MigrationSkipped, rules::NAMES[2].1),
        (Mutant::LateWritesUntold, rules::NAMES[3].1),
        (Mutant::LossAccepted, rules::NAMES[3].1),
        (Mutant::NoLimits, rules::REST),
        (Mutant::DropsFirst, rules::NAMES[4].1),
        (Mutant::OutageBlamed, rules::NAMES[5].1),
        (Mutant::NewestSpec, rules::NAMES[6].1),
        (Mutant::SettingsStay, rules::NAMES[8].1),
        (Mutant::SettingsNotCompared, rules::NAMES[8].1),
        (Mutant::RetrySkips, rules::NAMES[2].1),
        (Mutant::RetryUnwatched, rules::NAMES[3].1),
    ];

    /// Whether failures are taken back without a person, and how many disturbances it takes.
    pub fn world(self) -> (bool, u8) {
        match self {
            Mutant::RetrySkips => (false, 2),
            Mutant::RetryUnwatched => (false, 4),
            _ => (true, 1),
        }
    }

    /// Where it takes more than one, those that it takes: nothing is to be learned from others.
    pub fn needs(self) -> May {
        use Disturbance::{Lost, Retry, Rollback, Visited};
        match self {
            Mutant::RetrySkips => |disturbance| matches!(disturbance, Lost(Step::Baseline) | Retry),
            Mutant::RetryUnwatched => {
                |disturbance| matches!(disturbance, Lost(Step::Baseline) | Visited(_) | Retry | Rollback)
            }
            _ => |_| true,
        }
    }

    /// Whether its world has settings to refresh.
    pub fn has_settings(self) -> bool {
        matches!(self, Mutant::SettingsStay | Mutant::SettingsNotCompared)
    }
}

/// The shipped function, with what it is told or what it answers changed.
pub fn decide(
    mutant: Mutant,
    plan: &MemoriaUpgradeSpec,
    journal: &MemoriaUpgradeStatus,
    observed: &Observed,
    seen: &Seen,
) -> Decision {
    let (mut plan, mut journal, mut observed) = (plan.clone(), journal.clone(), observed.clone());
    let mut now = plan::time(seen.clock);
    let pass = |journal: &mut MemoriaUpgradeStatus, phase: &str| {
        let running = journal.phases.last_mut().filter(|r| r.name == phase && r.state == PhaseState::Running);
        running.map(|record| record.state = PhaseState::Passed).is_some()
    };
    match mutant {
        Mutant::SnapshotClaimed if pass(&mut journal, "SnapshotExport") => {
            journal.snapshot = Some(SnapshotRecord {
                claim_name: Some("snapshots".into()),
                url: None,
                encrypted: false,
                directory: "d".into(),
                bytes: 1,
                tables: 1,
                rows: 1,
                manifest_sha256: MANIFEST.into(),
                data_digest: "digest".into(),
                portable_directory: None,
                verified_at: Time(now),
                scratch_restore_seconds: None,
            });
        }
        Mutant::RestoreSkipped => drop(pass(&mut journal, "ImportSnapshot")),
        Mutant::MigrationSkipped => drop(pass(&mut journal, "Migrate")),
        Mutant::SettingsStay if journal.failure.is_some() => {
            for record in journal.phases.iter_mut().filter(|record| record.name == "ConfigRefresh") {
                record.done.retain(|key, _| !key.starts_with("write"));
            }
        }
        Mutant::SettingsNotCompared => {
            let output = observed.config.as_mut().and_then(|config| config.output.as_mut());
            if let Some(output) = output.filter(|_| seen.settings.is_some_and(|found| found.text == Text::Theirs)) {
                output.sha256 = Some(plan::text(Text::Prior).into());
            }
        }
        Mutant::RetryUnwatched => {
            for record in journal.phases.iter_mut().filter(|record| record.name == "Halt") {
                let still = record.done.iter_mut().filter(|(key, _)| key.starts_with("still-"));
                still.for_each(|(key, known)| {
                    let load = if key.ends_with("/server") { seen.server } else { seen.worker };
                    *known = load.generation.to_string();
                });
            }
        }
        Mutant::LossAccepted => observed.orders.accept_data_loss = Some("nobody".into()),
        Mutant::NoLimits => now = plan::time(0),
        Mutant::OutageBlamed => {
            for job in observed.jobs.values_mut() {
                if let JobState::Finished { report: report @ None, .. } = &mut job.state {
                    *report = Some(JobReport {
                        v: 1,
                        ok: false,
                        reason: "JobLost".into(),
                        message: "it was lost".into(),
                        category: Some(Category::Candidate),
                        facts: None,
                    });
                }
            }
        }
        Mutant::NewestSpec if seen.orders.wanted == Wanted::Later => plan.targets[0].to_image = LATER.into(),
        _ => {}
    }
    let mut decision = shipped(ATTEMPT, "ns", &plan, &journal, &observed, now);
    if mutant == Mutant::LateWritesUntold {
        for action in &mut decision.actions {
            if let Action::CreateJob { input, .. } = action {
                input.late_writes_possible = false;
            }
        }
    }
    let opened = observed.orders.retry.is_some() && journal.outcome.is_some() && decision.journal.outcome.is_none();
    if mutant == Mutant::RetrySkips && opened {
        decision.journal.phases.iter_mut().next_back().into_iter().for_each(|record| record.state = PhaseState::Passed);
    }
    decision
}
