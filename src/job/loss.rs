//! What a restore would lose, against what the plan lets it lose unasked; the same for both engines.

use super::{
    protocol::{Facts, JobReport, RestoreFacts, RestoreOrder},
    report,
};
use crate::{
    api::upgrade::{Category, TableLate},
    snapshot::late::carry::Carry,
};

/// Has the facts tell of the late writes, or why nothing is known of them. Gives the answer where a person has to decide
/// before anything is tried.
pub fn before(
    carry: &Carry<'_>,
    why_unknown: Option<&String>,
    order: &RestoreOrder,
    facts: &mut RestoreFacts,
) -> Option<JobReport> {
    carry.tell(&[], facts);
    if let Some(why) = why_unknown {
        nothing_known(facts, &order.carry_forward, why);
        return carry.allowed.map(|_| unknown(facts.clone(), why));
    }
    // Where there are rows to carry forward, only the restore itself tells how many are lost.
    let certain = carry.is_empty() && carry.loses_too_much(&[]);
    certain.then(|| over_budget(facts.clone(), order.data_loss_budget_rows))
}

/// More rows would be lost than may be: a person decides.
pub fn over_budget(facts: RestoreFacts, budget: i64) -> JobReport {
    let RestoreFacts { late_inserted: inserted, late_updated: updated, late_deleted: deleted, .. } = facts;
    let counts =
        format!("clients wrote after the upgrade: {inserted} rows inserted, {updated} updated, {deleted} deleted");
    let (carried, lost) = (facts.late_carried, inserted + updated + deleted - facts.late_carried);
    let budget = match carried {
        0 => format!("more than the budget of {budget}"),
        _ => format!(
            "of which {carried} can be carried into the restored data; the other {lost} are more than the budget of {budget}"
        ),
    };
    let aside = facts.late_tables.iter().filter_map(|table| Some((&table.table, table.not_carried.as_ref()?)));
    let aside: String = aside.map(|(table, why)| format!(". Not carried of {table}: {why}")).collect();
    let message = format!(
        "{counts}, {budget}; they are kept in {}, and nothing was restored. Decide whether they may be taken back{aside}",
        directory(&facts)
    );
    asked("DataLossOverBudget", message, facts)
}

/// Nobody knows how many rows would be lost: a person decides.
fn unknown(facts: RestoreFacts, why: &str) -> JobReport {
    let named: Vec<_> = facts.late_tables.iter().map(|table| table.table.as_str()).collect();
    let named = match named.as_slice() {
        [] => String::new(),
        names => format!("; nor can anything be carried forward of {}", names.join(", ")),
    };
    let message = format!(
        "clients may have written after the upgrade, and how much is unknown: {why}; the whole state is kept in {}, and \
         nothing was restored. Decide whether what they wrote may be taken back{named}",
        directory(&facts)
    );
    asked("LateWritesUnknown", message, facts)
}

/// Has the facts say of every table that was to be carried forward why nothing of it is.
fn nothing_known(facts: &mut RestoreFacts, carry_forward: &[String], why: &str) {
    let why = format!("what was written late is unknown: {why}");
    let table =
        |name: &String| TableLate { table: name.clone(), not_carried: Some(why.clone()), ..TableLate::default() };
    facts.late_tables = carry_forward.iter().map(table).collect();
}

/// How many late rows are in the restored data, for the report that it is done.
pub fn carried(facts: &RestoreFacts) -> String {
    match facts.late_carried {
        0 => String::new(),
        1 => " with 1 late row that was carried forward".to_owned(),
        many => format!(" with {many} late rows that were carried forward"),
    }
}

fn directory(facts: &RestoreFacts) -> &str {
    facts.failed_state.as_deref().unwrap_or_default()
}

fn asked(reason: &str, message: String, facts: RestoreFacts) -> JobReport {
    let facts = Facts::Restore(RestoreFacts { restored: false, ..facts });
    JobReport { facts: Some(facts), ..report::refused(Category::Decision, reason, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(carried: i64, tables: Vec<TableLate>) -> RestoreFacts {
        RestoreFacts {
            restored: true,
            failed_state: Some("prod/failed".to_owned()),
            late_inserted: 5,
            late_updated: 3,
            late_deleted: 1,
            late_carried: carried,
            late_tables: tables,
            ..RestoreFacts::default()
        }
    }

    #[test]
    fn a_person_is_told_what_is_lost_and_what_is_not() {
        let report = over_budget(facts(0, Vec::new()), 2);
        assert_eq!(
            report.message,
            "clients wrote after the upgrade: 5 rows inserted, 3 updated, 1 deleted, more than the budget of 2; they are \
             kept in prod/failed, and nothing was restored. Decide whether they may be taken back"
        );
        assert!(matches!(report.facts, Some(Facts::Restore(RestoreFacts { restored: false, .. }))));
        let table =
            TableLate { table: "audits".to_owned(), not_carried: Some("no key".to_owned()), ..Default::default() };
        let message = over_budget(facts(4, vec![TableLate::default(), table]), 2).message;
        assert!(
            message.contains("of which 4 can be carried into the restored data; the other 5 are more"),
            "{message}"
        );
        assert!(message.ends_with("taken back. Not carried of audits: no key"), "{message}");
    }

    #[test]
    fn of_what_nobody_knows_nothing_is_carried_and_that_is_said() {
        let mut facts = facts(0, Vec::new());
        nothing_known(&mut facts, &["audits".to_owned()], "no baseline was taken");
        let why = facts.late_tables[0].not_carried.clone().unwrap();
        assert_eq!(why, "what was written late is unknown: no baseline was taken");
        let message = unknown(facts, "no baseline was taken").message;
        assert!(message.ends_with("taken back; nor can anything be carried forward of audits"), "{message}");
    }
}
