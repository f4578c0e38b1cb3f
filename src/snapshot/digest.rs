//! Digests of data, computed by the server in constant memory, independent of the order of rows and columns.
//!
//! Of each row: SHA-256 over its values by column name, as text under pinned settings, each with its length, NULL apart
//! from everything (`array_send` of a text array is exactly that form). Of each table: the number of rows and four sums
//! modulo 2^64 of the quarters of all row hashes, 256 bits in all. So a lost, added, doubled or changed row changes the digest, and
//! two equal rows do not cancel each other as they would under XOR.
//!
//! Strength: against accidents, restores that went wrong and writers nobody saw, a collision has a chance of 2^-256.
//! Against somebody who builds rows on purpose it is weaker than SHA-256, because sums can be steered (a generalised birthday
//! attack): it is no signature. The stored files are hashed as files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{
    error::{Error, Result},
    hex, quote_ident,
    schema::{Relation, Schema},
};

/// A table's content at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableDigest {
    pub rows: i64,
    /// 64 hex digits: the four sums.
    pub digest: String,
}

/// A sequence's position; compared as "not behind".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SequencePosition {
    pub last_value: i64,
    pub is_called: bool,
}

/// All tables' digests and all sequences' positions, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataDigest {
    pub tables: BTreeMap<String, TableDigest>,
    pub sequences: BTreeMap<String, SequencePosition>,
}

impl TableDigest {
    /// The digest after these rows came and those went.
    pub fn changed(&self, came: &Self, went: &Self) -> Option<Self> {
        let (mut sums, came_sums, went_sums) = (self.sums()?, came.sums()?, went.sums()?);
        for (sum, (came, went)) in sums.iter_mut().zip(came_sums.into_iter().zip(went_sums)) {
            *sum = sum.wrapping_add(came).wrapping_sub(went);
        }
        Some(RowSums { rows: self.rows + came.rows - went.rows, sums }.finish())
    }

    fn sums(&self) -> Option<[u64; 4]> {
        let mut sums = [0; 4];
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = u64::from_str_radix(self.digest.get(at * 16..at * 16 + 16)?, 16).ok()?;
        }
        Some(sums)
    }
}

/// Adds up the hashes of rows, by whoever reads them himself: the same sums as the server's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowSums {
    rows: i64,
    sums: [u64; 4],
}

impl RowSums {
    pub fn add(&mut self, hash: &[u8; 32]) {
        for (sum, quarter) in self.sums.iter_mut().zip(hash.chunks_exact(8)) {
            *sum = sum.wrapping_add(quarter.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        }
        self.rows += 1;
    }

    pub fn rows(&self) -> i64 {
        self.rows
    }

    pub fn finish(&self) -> TableDigest {
        TableDigest { rows: self.rows, digest: self.sums.iter().map(|sum| format!("{sum:016x}")).collect() }
    }
}

/// Type `text` in `pg_type`.
const TEXT_OID: u32 = 25;

/// The hash that `hash_sql` has the server compute, of a row whose values are here: in the byte order of their columns'
/// names, as the server writes them as text under pinned settings.
pub fn row_hash<'a>(values: impl ExactSizeIterator<Item = Option<&'a [u8]>> + Clone) -> [u8; 32] {
    let mut hash = Sha256::new();
    let has_null = u32::from(values.clone().any(|value| value.is_none()));
    let count = u32::try_from(values.len()).unwrap_or(u32::MAX);
    if count == 0 {
        // An empty array has no dimension.
        [0, 0, TEXT_OID].iter().for_each(|word: &u32| hash.update(word.to_be_bytes()));
        return hash.finalize().into();
    }
    [1, has_null, TEXT_OID, count, 1].iter().for_each(|word: &u32| hash.update(word.to_be_bytes()));
    for value in values {
        match value {
            None => hash.update(u32::MAX.to_be_bytes()),
            Some(bytes) => {
                hash.update(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
                hash.update(bytes);
            }
        }
    }
    hash.finalize().into()
}

/// SHA-256 over these columns' values as text, each with its length, NULL apart from everything: `bytea`.
pub(crate) fn hash_sql<'a>(columns: impl Iterator<Item = &'a String>) -> String {
    hash_values_sql(columns.map(|column| quote_ident(column)))
}

/// The same over expressions, which are in the byte order of their columns' names.
pub(crate) fn hash_values_sql(values: impl Iterator<Item = String>) -> String {
    let values: Vec<_> = values.map(|value| format!("{value}::text")).collect();
    format!("sha256(array_send(ARRAY[{}]::text[]))", values.join(", "))
}

/// Digests one table. `ONLY`: children of a table have digests of their own.
pub async fn table(session: &mut PgConnection, name: &str, table: &Relation) -> Result<TableDigest> {
    let hashes = format!("SELECT encode({}, 'hex') AS hash FROM ONLY {name}", hash_sql(table.columns.keys()));
    of_hashes(session, name, &hashes).await
}

/// Adds up the hashes, in hex, that a statement gives as `hash`, of rows of the table of this name.
pub(crate) async fn of_hashes(session: &mut PgConnection, name: &str, hashes: &str) -> Result<TableDigest> {
    let quarter = |n: usize| format!("coalesce(sum(substring(bits from {} for 64)::bigint), 0)::text", n * 64 + 1);
    // Without OFFSET the planner would have each row hashed once for each quarter.
    let sql = format!(
        "SELECT count(*), {}, {}, {}, {} FROM
         (SELECT ('x' || hash)::bit(256) AS bits FROM ({hashes}) AS rows OFFSET 0) AS hashed",
        quarter(0),
        quarter(1),
        quarter(2),
        quarter(3),
    );
    let (rows, a, b, c, d): (i64, String, String, String, String) = sqlx::query_as(AssertSqlSafe(sql))
        .fetch_one(session)
        .await
        .map_err(Error::query(format!("reading every row of {name}")))?;
    let digest = [a, b, c, d].iter().map(|sum| modulo(sum)).collect::<Option<String>>();
    let digest = digest.ok_or_else(|| Error::Order { what: format!("the sums over {name} are no numbers") })?;
    Ok(TableDigest { rows, digest })
}

/// A decimal sum of signed 64-bit numbers modulo 2^64, in 16 hex digits.
fn modulo(sum: &str) -> Option<String> {
    let sum: i128 = sum.parse().ok()?;
    u64::try_from(sum.rem_euclid(1 << 64)).ok().map(|rest| format!("{rest:016x}"))
}

/// Digests every table and reads every sequence, in the session's transaction; `progress` hears of each table.
pub async fn all(
    session: &mut PgConnection,
    schema: &Schema,
    mut progress: impl FnMut(&str, &TableDigest),
) -> Result<DataDigest> {
    let mut data = DataDigest::default();
    for (name, relation) in schema.tables() {
        let digest = table(session, name, relation).await?;
        progress(name, &digest);
        data.tables.insert(name.to_owned(), digest);
    }
    data.sequences = sequences(session, schema).await?;
    Ok(data)
}

/// Reads where every sequence is. That is no part of a transaction's snapshot: it is read as it is now.
pub async fn sequences(session: &mut PgConnection, schema: &Schema) -> Result<BTreeMap<String, SequencePosition>> {
    let mut positions = BTreeMap::new();
    for name in schema.sequences.keys() {
        let (last_value, is_called) =
            sqlx::query_as(AssertSqlSafe(format!("SELECT last_value, is_called FROM {name}")))
                .fetch_one(&mut *session)
                .await
                .map_err(Error::query(format!("reading sequence {name}")))?;
        positions.insert(name.clone(), SequencePosition { last_value, is_called });
    }
    Ok(positions)
}

impl DataDigest {
    /// SHA-256 over the schema's fingerprint and every table's name, count and digest; sequences are not in it.
    pub fn total(&self, schema_fingerprint: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("memoria-operator data digest 1\n{schema_fingerprint}\n"));
        for (name, TableDigest { rows, digest }) in &self.tables {
            hash.update(format!("{}:{name} {rows} {digest}\n", name.len()));
        }
        hex(&hash.finalize())
    }

    pub fn rows(&self) -> i64 {
        self.tables.values().map(|table| table.rows).sum()
    }

    /// What in `found` is not as in `self`, each line naming its table or sequence. A sequence may only be ahead.
    pub fn differences(&self, found: &Self, schema: &Schema) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, expected) in &self.tables {
            match found.tables.get(name) {
                None => lines.push(format!("table {name}: missing")),
                Some(actual) if actual.rows != expected.rows => {
                    lines.push(format!("table {name}: {} rows, expected {}", actual.rows, expected.rows));
                }
                Some(actual) if actual != expected => {
                    lines.push(format!("table {name}: {} rows, but not the same", actual.rows));
                }
                Some(_) => {}
            }
        }
        for name in found.tables.keys().filter(|name| !self.tables.contains_key(*name)) {
            lines.push(format!("table {name}: not expected"));
        }
        for (name, expected) in &self.sequences {
            let forward = schema.sequences.get(name).is_none_or(|sequence| sequence.increment > 0);
            let behind = |actual: &SequencePosition| match (actual.last_value, expected.last_value) {
                (a, e) if a == e => expected.is_called && !actual.is_called,
                (a, e) => (a < e) == forward,
            };
            match found.sequences.get(name) {
                None => lines.push(format!("sequence {name}: missing")),
                Some(actual) if behind(actual) => {
                    lines.push(format!("sequence {name}: at {}, expected {}", actual.last_value, expected.last_value));
                }
                Some(_) => {}
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_follows_the_rows_that_come_and_go() {
        let of = |rows: &[u8]| {
            let mut sums = RowSums::default();
            rows.iter().for_each(|row| sums.add(&Sha256::digest([*row]).into()));
            sums.finish()
        };
        assert_eq!(of(&[1, 2, 3]).changed(&of(&[4, 4]), &of(&[2])), Some(of(&[1, 3, 4, 4])));
        assert_eq!(of(&[]).changed(&of(&[1]), &of(&[1])), Some(of(&[])));
        let broken = TableDigest { rows: 1, digest: "00".to_owned() };
        assert_eq!(broken.changed(&of(&[]), &of(&[])), None);
    }
}
