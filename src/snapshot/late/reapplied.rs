//! What became of late writes that were to go back into the restored data, the same for both engines.

use serde::Serialize;

use crate::{
    api::upgrade::{self, TableLate},
    snapshot::digest::{RowSums, TableDigest},
};

/// Of each table at most so many conflicts are named.
pub const NAMED: usize = 20;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether it was only tried, and taken back.
    pub dry_run: bool,
    pub tables: Vec<Table>,
}

impl Report {
    /// Every row that was set aside is in the database.
    pub fn complete(&self) -> bool {
        self.tables.iter().all(|table| table.aside.is_none())
    }
}

/// One table: all of its rows went in, or none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    pub table: String,
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
    /// Rows that were as they were written late already.
    pub already: i64,
    /// Sums over the rows that came, as they are now.
    #[serde(skip)]
    pub came: TableDigest,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aside: Option<Aside>,
}

impl Table {
    /// There was nothing to do.
    pub fn empty(table: &str) -> Self {
        let came = RowSums::default().finish();
        Self { table: table.to_owned(), inserted: 0, updated: 0, deleted: 0, already: 0, came, aside: None }
    }

    /// Nothing of it was done.
    pub fn aside(found: &TableLate, aside: Aside) -> Self {
        Self { aside: Some(aside), ..Self::empty(&found.table) }
    }

    /// Of the inserted rows those that are in the data.
    pub fn kept(&self) -> i64 {
        self.inserted + self.already
    }
}

/// Why a table's rows stay where they are. No text here holds a value of a row that is no key.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Aside {
    pub why: String,
    /// Rows that contradict the database.
    #[serde(skip_serializing_if = "upgrade::is_zero")]
    pub conflicting: i64,
    /// The first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<Conflict>,
}

impl Aside {
    pub fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), conflicting: 0, conflicts: Vec::new() }
    }

    pub fn of_conflicts(conflicting: i64, conflicts: Vec<Conflict>) -> Self {
        Self { why: format!("{conflicting} of its rows contradict the database"), conflicting, conflicts }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// `inserted`, `updated` or `deleted`.
    pub change: String,
    /// The primary key's values.
    pub key: serde_json::Value,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    /// Inserted, but another row has its key.
    KeyTaken,
    /// Updated, but the row is not there.
    Gone,
    /// Updated or deleted, but the row is not what it was before that.
    Changed,
    /// Its values do not come back from the file exactly.
    NotExact,
}

impl Why {
    pub const ALL: [Self; 4] = [Self::KeyTaken, Self::Gone, Self::Changed, Self::NotExact];

    pub fn words(self) -> &'static str {
        match self {
            Self::KeyTaken => "another row has this key",
            Self::Gone => "the row is not there any more",
            Self::Changed => "the row is not what it was when it was changed",
            Self::NotExact => "its values do not come back from the file exactly",
        }
    }
}

/// What keeps all rows of a table aside, whatever they are.
pub fn unfit(covered: Option<&[String]>, key: &[String], columns: Option<Vec<&String>>) -> Option<Aside> {
    let Some(columns) = columns else { return Some(Aside::because("the database has no such table")) };
    let Some(covered) = covered else {
        let why = "an older operator set them aside, without the hashes that it takes to put them back";
        return Some(Aside::because(why));
    };
    let new: Vec<_> = covered.iter().filter(|column| !columns.contains(column)).map(String::as_str).collect();
    let gone: Vec<_> = columns.iter().filter(|column| !covered.contains(column)).map(|name| name.as_str()).collect();
    match (new.as_slice(), gone.as_slice()) {
        ([], []) if key.is_empty() => {
            Some(Aside::because("it has no primary key, so nobody could tell which of its rows are there already"))
        }
        ([], []) => None,
        ([], gone) => Some(Aside::because(format!("when they were written it had no {}", gone.join(", ")))),
        (new, _) => Some(Aside::because(format!("in the database it has no {}", new.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_table_fits_with_the_same_columns_and_a_key_only() {
        let (columns, key) = (names(&["a", "b"]), names(&["a"]));
        let why = |covered: Option<&[String]>, key: &[String], live: Option<&[String]>| {
            unfit(covered, key, live.map(|live| live.iter().collect())).map(|aside| aside.why)
        };
        assert_eq!(why(Some(&columns), &key, Some(&columns)), None);
        let more = names(&["a", "b", "c"]);
        assert_eq!(why(Some(&more), &key, Some(&columns)).unwrap(), "in the database it has no c");
        assert_eq!(why(Some(&columns), &key, Some(&more)).unwrap(), "when they were written it had no c");
        assert!(why(Some(&columns), &[], Some(&columns)).unwrap().contains("no primary key"));
        assert!(why(None, &key, Some(&columns)).unwrap().contains("older operator"));
        assert_eq!(why(Some(&columns), &key, None).unwrap(), "the database has no such table");
    }
}
