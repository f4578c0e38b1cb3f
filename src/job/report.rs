//! Makes reports, and makes any report fit into a termination message.

use super::protocol::{Facts, JobReport, MAX_REPORT_BYTES};
use crate::{
    api::upgrade::{Category, MigrationState},
    snapshot::Error,
};

/// Objects named in a list, at most.
pub const LIST_LIMIT: usize = 10;

pub fn done(message: impl Into<String>, facts: Facts) -> JobReport {
    JobReport { v: 1, ok: true, reason: "Done".to_owned(), message: message.into(), category: None, facts: Some(facts) }
}

pub fn refused(category: Category, reason: &str, message: impl Into<String>) -> JobReport {
    let (reason, message) = (reason.to_owned(), message.into());
    JobReport { v: 1, ok: false, reason, message, category: Some(category), facts: None }
}

/// The report of an error.
pub fn failed(error: &Error) -> JobReport {
    refused(error.category(), error.reason(), error.to_string())
}

/// Told to end before it was done.
pub fn interrupted() -> JobReport {
    refused(
        Category::Transient,
        "Interrupted",
        "the Job was told to end before it was done; what it began holds nothing and can be repeated",
    )
}

/// Every free text of a report.
pub fn texts(report: &mut JobReport) -> Vec<&mut String> {
    let mut texts = vec![&mut report.message];
    match &mut report.facts {
        Some(Facts::Inspect(facts)) => {
            texts.extend(facts.findings.iter_mut().map(|finding| &mut finding.message));
            texts.extend(&mut facts.unfinished);
        }
        Some(Facts::Fence(facts)) => texts.extend(&mut facts.others),
        Some(Facts::Migrate(facts)) => texts.extend(facts.differences.iter_mut().chain(&mut facts.extra)),
        Some(Facts::Check(facts)) => texts.extend(facts.checks.iter_mut().map(|check| &mut check.message)),
        Some(Facts::AtRisk(facts)) => texts.extend(facts.tables.iter_mut().map(|table| &mut table.table)),
        Some(Facts::Restore(facts)) => {
            for late in &mut facts.late_tables {
                texts.push(&mut late.table);
                texts.extend(&mut late.not_carried);
            }
        }
        Some(
            Facts::Reference(_)
            | Facts::Rehearsal(_)
            | Facts::Snapshot(_)
            | Facts::Probe(_)
            | Facts::Defaults(_)
            | Facts::Baseline(_),
        )
        | None => {}
    }
    texts
}

/// The report with lists and texts shortened until it fits. Which migrations failed is kept to the last.
pub fn fit(mut report: JobReport) -> JobReport {
    match &mut report.facts {
        Some(Facts::Fence(facts)) => facts.others.truncate(LIST_LIMIT),
        Some(Facts::Inspect(facts)) => facts.unfinished.truncate(LIST_LIMIT),
        Some(Facts::Migrate(facts)) => {
            facts.differences.truncate(LIST_LIMIT);
            facts.extra.truncate(LIST_LIMIT);
        }
        Some(Facts::Restore(facts)) => facts.late_tables.truncate(LIST_LIMIT),
        Some(Facts::AtRisk(facts)) => facts.tables.truncate(LIST_LIMIT),
        _ => {}
    }
    // The journal holds no longer ones.
    cut(&mut report.message, 1024);
    let mut limit = 512;
    while size(&report) > MAX_REPORT_BYTES && limit >= 16 {
        texts(&mut report).into_iter().for_each(|text| cut(text, limit));
        limit /= 2;
    }
    while size(&report) > MAX_REPORT_BYTES {
        match &mut report.facts {
            Some(Facts::Migrate(facts)) if facts.migrations.len() > 1 => {
                // What simply ran says least.
                let dull = facts.migrations.iter().position(|m| m.state == MigrationState::Ran);
                facts.migrations.remove(dull.unwrap_or_default());
            }
            Some(Facts::Probe(facts)) if !facts.migrations.is_empty() => drop(facts.migrations.pop()),
            Some(Facts::Inspect(facts)) if facts.findings.len() > 1 => drop(facts.findings.pop()),
            Some(Facts::Restore(facts)) if !facts.late_tables.is_empty() => drop(facts.late_tables.pop()),
            Some(Facts::AtRisk(facts)) if !facts.tables.is_empty() => drop(facts.tables.pop()),
            Some(Facts::Check(facts)) if facts.checks.len() > 1 => drop(facts.checks.pop()),
            _ => report.facts = None,
        }
        if report.facts.is_none() {
            cut(&mut report.message, 512);
            cut(&mut report.reason, 64);
            break;
        }
    }
    report
}

fn size(report: &JobReport) -> usize {
    serde_json::to_vec(report).map_or(usize::MAX, |bytes| bytes.len())
}

/// At most `limit` bytes, cut between characters.
pub fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let end = (0..=limit.saturating_sub(3)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        api::{
            release::{CheckResult, Verdict},
            upgrade::{DatabaseIdentity, Engine, MigrationRecord},
        },
        job::protocol::{FenceFacts, InspectFacts, MigrateFacts},
    };

    fn facts() -> impl Strategy<Value = Facts> {
        let list = || prop::collection::vec("\\PC{0,300}", 0..40);
        let state =
            prop_oneof![Just(MigrationState::Ran), Just(MigrationState::Failed), Just(MigrationState::ReportedFailure)];
        let records = prop::collection::vec(("[a-z_]{1,128}", state), 0..256);
        prop_oneof![
            (list(), list(), records).prop_map(|(differences, extra, records)| {
                let migrations = records.into_iter().map(|(name, state)| MigrationRecord { name, state }).collect();
                Facts::Migrate(MigrateFacts { migrations, differences, extra })
            }),
            list().prop_map(|others| Facts::Fence(FenceFacts { terminated: 1, others })),
            (list(), list()).prop_map(|(messages, unfinished)| {
                let finding = |message| CheckResult { name: "Privileges".to_owned(), result: Verdict::Failed, message };
                let identity = DatabaseIdentity {
                    system_identifier: "7".to_owned(),
                    name: "d".to_owned(),
                    oid: 1,
                    host: "h".to_owned(),
                };
                Facts::Inspect(InspectFacts {
                    major: 15,
                    server_version: "15.1".to_owned(),
                    identity,
                    bytes: 1,
                    tables: 1,
                    findings: messages.into_iter().map(finding).collect(),
                    unfinished,
                    engine: Engine::Postgresql,
                    data_volume: None,
                    path: None,
                })
            }),
        ]
    }

    proptest! {
        // Each case is a report of up to 40 kB.
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_report_fits_into_a_termination_message(message in "\\PC{0,6000}", facts in facts()) {
            let failing = match &facts {
                Facts::Migrate(facts) => facts.migrations.iter().rfind(|m| m.state == MigrationState::Failed).cloned(),
                _ => None,
            };
            let report = JobReport { facts: Some(facts), ..refused(Category::Candidate, "MigrateFailed", message) };
            let fitted = fit(report.clone());
            prop_assert!(size(&fitted) <= MAX_REPORT_BYTES);
            prop_assert_eq!((fitted.ok, &fitted.reason, fitted.category), (false, &report.reason, report.category));
            if let (Some(Facts::Migrate(facts)), Some(failing)) = (&fitted.facts, failing)
                && facts.migrations.iter().any(|m| m.state == MigrationState::Ran)
            {
                prop_assert!(facts.migrations.contains(&failing));
            }
        }
    }

    #[test]
    fn a_report_that_fits_is_left_alone() {
        let report = refused(Category::Environment, "WrongDatabase", "another database");
        assert_eq!(fit(report.clone()), report);
    }
}
