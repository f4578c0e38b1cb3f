//! Rows of the tables that `spec.rollback.carryForward` names: those that were inserted late go into the restored data before
//! it takes the failed state's place. Updated and deleted rows stay aside: of a table to which rows are only ever added they
//! are no history to keep, and somebody should look at them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    Late,
    reapplied::{Aside, Table},
    set_aside::Chosen,
};
use crate::{
    api::upgrade::TableLate,
    job::{protocol::RestoreFacts, report::LIST_LIMIT},
    snapshot::{
        digest::{DataDigest, RowSums, TableDigest},
        error::{Error, Result},
        schema::Relation,
    },
};

/// Conflicts that a table's reason names by their keys.
const KEYS: usize = 3;

/// Sums over the rows that came to the snapshot's, by table.
pub type Came = BTreeMap<String, TableDigest>;

/// What clients wrote late, and what of it a restore is to carry forward.
#[derive(Debug)]
pub struct Carry<'a> {
    /// Where `late.json` lies.
    pub directory: &'a Path,
    pub late: &'a Late,
    /// The tables that are to be carried forward, as `late` names them.
    pub named: BTreeSet<String>,
    /// How many rows may be lost; absent where a person accepted the loss.
    pub allowed: Option<i64>,
}

impl Carry<'_> {
    /// Whose rows are to go in.
    pub fn tables(&self) -> impl Iterator<Item = &TableLate> {
        self.late.tables.iter().filter(|table| self.is_named(table) && table.inserted > 0)
    }

    /// There is nothing to carry.
    pub fn is_empty(&self) -> bool {
        self.tables().next().is_none()
    }

    pub fn chosen(&self) -> Chosen<'_> {
        let tables = self.tables().collect();
        Chosen { directory: self.directory, late: self.late, tables, only_inserted: true }
    }

    fn is_named(&self, table: &TableLate) -> bool {
        self.named.contains(&table.table)
    }

    /// More would be lost than may be.
    pub fn loses_too_much(&self, carried: &[Table]) -> bool {
        self.allowed.is_some_and(|allowed| self.late.rows() - carried.iter().map(Table::kept).sum::<i64>() > allowed)
    }

    /// Writes into a report's facts how many rows were written late, and what became of those that were to be carried.
    pub fn tell(&self, carried: &[Table], facts: &mut RestoreFacts) {
        let Late { inserted, updated, deleted, .. } = *self.late;
        (facts.late_inserted, facts.late_updated, facts.late_deleted) = (inserted, updated, deleted);
        facts.late_carried = carried.iter().map(Table::kept).sum();
        let mut tables = self.late.tables.clone();
        for table in tables.iter_mut().filter(|table| self.is_named(table)) {
            let fate = carried.iter().find(|fate| fate.table == table.table);
            table.carried = fate.map(Table::kept).unwrap_or_default();
            let aside = fate.and_then(|fate| fate.aside.as_ref()).map(in_words);
            let changed = (table.updated + table.deleted > 0).then(|| {
                format!(
                    "only inserted rows are carried: {} updated and {} deleted ones stay aside",
                    table.updated, table.deleted
                )
            });
            let why: Vec<_> = aside.into_iter().chain(changed).collect();
            table.not_carried = (!why.is_empty()).then(|| why.join("; "));
        }
        tables.sort_by_key(|table| !self.is_named(table));
        tables.truncate(LIST_LIMIT);
        facts.late_tables = tables;
    }
}

/// Why a table's rows stay aside, with the keys of the first that contradict the data.
fn in_words(aside: &Aside) -> String {
    let keys = aside.conflicts.iter().take(KEYS).map(|conflict| format!("{}: {}", conflict.key, conflict.why.words()));
    let keys: Vec<_> = keys.collect();
    if keys.is_empty() { aside.why.clone() } else { format!("{} ({})", aside.why, keys.join("; ")) }
}

/// Whether a name of `carryForward` means this table of PostgreSQL: without a schema one of `public`.
pub fn means(name: &str, table: &Relation) -> bool {
    let (schema, name) = name.split_once('.').unwrap_or(("public", name));
    (schema, name) == (&table.schema, &table.name)
}

/// Whether a name of `carryForward` means this table of an SQLite file, where letters are the same in either case.
pub fn means_in_file(name: &str, table: &str) -> bool {
    name.eq_ignore_ascii_case(table)
}

/// The check's name in pre-flight.
pub const CHECK: &str = "CarryForward";

/// A table that a name of `carryForward` means.
pub struct Found<'a> {
    /// False of a view, and of a partitioned table.
    pub has_rows: bool,
    pub primary_key: &'a [String],
}

/// Of which tables nothing would ever be carried forward, why, and what to do.
pub fn obstacles<'a>(names: &[String], find: impl Fn(&str) -> Option<Found<'a>>) -> Option<String> {
    let all: Vec<_> = names.iter().filter_map(|name| obstacle(name, find(name))).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn obstacle(name: &str, found: Option<Found<'_>>) -> Option<String> {
    let why = match found {
        None => {
            "but the database has no such table; correct the name (on PostgreSQL with its schema, unless that is public)"
        }
        Some(Found { has_rows: false, .. }) => {
            "which has no rows of its own; name the table, or each partition, that holds them"
        }
        Some(Found { primary_key: [], .. }) => {
            "which has no primary key, so nobody could tell which of its rows are there already; give it one"
        }
        Some(_) => return None,
    };
    Some(format!("spec.rollback.carryForward names {name}, {why}, or remove it from the list"))
}

/// What came by these rows, for later proofs.
pub fn came(carried: &[Table]) -> Came {
    let put_in = carried.iter().filter(|table| table.inserted > 0);
    put_in.map(|table| (table.table.clone(), table.came.clone())).collect()
}

/// What the snapshot's data is with these rows.
pub fn with(snapshot: DataDigest, came: &Came) -> Result<DataDigest> {
    let mut data = snapshot;
    for (name, rows) in came {
        let sum = data.tables.get(name).and_then(|table| table.changed(rows, &RowSums::default().finish()));
        let sum = sum.ok_or_else(|| Error::Order { what: format!("the snapshot has no {name} to add rows to") })?;
        data.tables.insert(name.clone(), sum);
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::snapshot::late::reapplied::{Conflict, Why};

    fn late(tables: &[(&str, [i64; 3])]) -> Late {
        let mut late = Late::new("b");
        for (table, [inserted, updated, deleted]) in tables {
            let (inserted, updated, deleted) = (*inserted, *updated, *deleted);
            late.inserted += inserted;
            late.updated += updated;
            late.deleted += deleted;
            late.tables.push(TableLate {
                table: (*table).to_owned(),
                inserted,
                updated,
                deleted,
                ..TableLate::default()
            });
        }
        late
    }

    fn carry<'a>(late: &'a Late, named: &[&str], allowed: Option<i64>) -> Carry<'a> {
        let named = named.iter().map(|name| (*name).to_owned()).collect();
        Carry { directory: Path::new("/late"), late, named, allowed }
    }

    fn found(late: &Late, table: &str) -> TableLate {
        late.tables.iter().find(|found| found.table == table).unwrap().clone()
    }

    fn put_in(table: &str, inserted: i64, already: i64) -> Table {
        Table { inserted, already, ..Table::empty(table) }
    }

    #[test]
    fn only_what_is_in_the_data_counts_for_nothing_lost() {
        let late = late(&[("agents", [0, 3, 0]), ("audits", [4, 1, 0]), ("others", [2, 0, 0]), ("records", [0, 0, 1])]);
        let of = |allowed| carry(&late, &["audits", "records", "missing"], allowed);
        let names: Vec<_> = of(None).tables().map(|table| table.table.clone()).collect();
        assert_eq!(names, ["audits"], "whose rows there are to carry");
        // Eleven rows, four of them in.
        let done = [put_in("audits", 3, 1)];
        assert!(!of(Some(7)).loses_too_much(&done) && of(Some(6)).loses_too_much(&done));
        assert!(of(Some(10)).loses_too_much(&[]) && !of(Some(11)).loses_too_much(&[]));
        assert!(!of(None).loses_too_much(&[]), "a person accepted it");
    }

    #[test]
    fn the_facts_say_of_each_named_table_how_many_and_why_not() {
        let mut many: Vec<_> = (0..12).map(|n| (format!("t{n:02}"), [20, 0, 0])).collect();
        many.extend([("audits".to_owned(), [4, 1, 2]), ("records".to_owned(), [3, 0, 0])]);
        let many: Vec<_> = many.iter().map(|(name, counts)| (name.as_str(), *counts)).collect();
        let late = late(&many);
        let conflict = |n: i32| Conflict { change: "inserted".into(), key: json!({"id": n}), why: Why::KeyTaken };
        let aside = Aside::of_conflicts(4, (1..=4).map(conflict).collect());
        let fates = [put_in("audits", 4, 0), Table::aside(&found(&late, "records"), aside)];
        let mut facts = RestoreFacts::default();
        carry(&late, &["audits", "records"], None).tell(&fates, &mut facts);
        assert_eq!((facts.late_inserted, facts.late_updated, facts.late_deleted, facts.late_carried), (247, 1, 2, 4));
        assert_eq!(facts.late_tables.len(), LIST_LIMIT);
        let told: Vec<_> =
            facts.late_tables.iter().take(3).map(|table| (table.table.as_str(), table.carried)).collect();
        assert_eq!(told, [("audits", 4), ("records", 0), ("t00", 0)], "the named ones come first");
        let why = |n: usize| facts.late_tables[n].not_carried.clone();
        assert_eq!(why(0).unwrap(), "only inserted rows are carried: 1 updated and 2 deleted ones stay aside");
        let keys = "{\"id\":1}: another row has this key; {\"id\":2}: another row has this key; {\"id\":3}: another row has this key";
        assert_eq!(why(1).unwrap(), format!("4 of its rows contradict the database ({keys})"));
        assert_eq!(why(2), None);
    }

    #[test]
    fn a_name_without_a_schema_is_one_of_public() {
        let table =
            |schema: &str, name: &str| Relation { schema: schema.into(), name: name.into(), ..Relation::default() };
        assert!(means("audits", &table("public", "audits")) && means("public.audits", &table("public", "audits")));
        assert!(!means("audits", &table("extra", "audits")) && means("extra.audits", &table("extra", "audits")));
        assert!(!means("Audits", &table("public", "audits")) && means("Audits", &table("public", "Audits")));
        assert!(means_in_file("Audits", "audits") && !means_in_file("main.audits", "audits"));
    }

    #[test]
    fn what_could_never_be_carried_is_told_with_field_and_fix() {
        let key = ["id".to_owned()];
        let find = |name: &str| match name {
            "audits" => Some(Found { has_rows: true, primary_key: &key }),
            "loose" => Some(Found { has_rows: true, primary_key: &[] }),
            "parts" => Some(Found { has_rows: false, primary_key: &key }),
            _ => None,
        };
        let told = |names: &[&str]| obstacles(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), find);
        assert_eq!((told(&["audits"]), told(&[])), (None, None));
        for (name, part) in [("gone", "no such table"), ("loose", "no primary key"), ("parts", "each partition")] {
            let message = told(&["audits", name]).unwrap();
            assert!(message.starts_with(&format!("spec.rollback.carryForward names {name}, ")), "{message}");
            assert!(message.contains(part) && message.ends_with("or remove it from the list"), "{message}");
        }
        assert_eq!(told(&["gone", "loose"]).unwrap().matches("carryForward").count(), 2);
    }

    #[test]
    fn the_data_is_the_snapshot_s_with_the_rows_that_came() {
        let of = |rows: &[u8]| {
            let mut sums = RowSums::default();
            rows.iter().for_each(|row| sums.add(&Sha256::digest([*row]).into()));
            sums.finish()
        };
        let snapshot = DataDigest {
            tables: [("audits".to_owned(), of(&[1, 2])), ("teams".to_owned(), of(&[9]))].into(),
            ..DataDigest::default()
        };
        let fates = [Table { came: of(&[3]), ..put_in("audits", 1, 1) }, put_in("teams", 0, 2)];
        let data = with(snapshot.clone(), &came(&fates)).unwrap();
        assert_eq!((&data.tables["audits"], &data.tables["teams"]), (&of(&[1, 2, 3]), &of(&[9])));
        let strange = with(snapshot, &[("gone".to_owned(), of(&[1]))].into()).unwrap_err();
        assert_eq!(strange.reason(), "OrderInvalid");
    }
}
