//! Sequences never go backwards: what was given out after the snapshot is not given out again.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::snapshot::{
    digest::SequencePosition,
    error::{Error, Result},
    schema::{Schema, Sequence},
};

/// Sets every sequence of the snapshot, which is where they are now, to the further of its two positions, and gives those.
/// A rollback takes this back only of sequences that were made in the same transaction.
pub async fn forward(
    session: &mut PgConnection,
    schema: &Schema,
    snapshot: &BTreeMap<String, SequencePosition>,
    live: &BTreeMap<String, SequencePosition>,
) -> Result<BTreeMap<String, SequencePosition>> {
    let mut reached = BTreeMap::new();
    for (name, kept) in snapshot {
        let position = match (live.get(name), schema.sequences.get(name)) {
            (Some(found), Some(sequence)) => further(kept, found, sequence),
            _ => kept.clone(),
        };
        if position != *kept {
            sqlx::query(AssertSqlSafe("SELECT setval($1::text::regclass, $2, $3)".to_owned()))
                .bind(name)
                .bind(position.last_value)
                .bind(position.is_called)
                .execute(&mut *session)
                .await
                .map_err(Error::query(format!("moving sequence {name} forward")))?;
        }
        reached.insert(name.clone(), position);
    }
    Ok(reached)
}

/// Where the sequences of these tables' columns would be if they were at the highest key.
pub async fn highest(
    session: &mut PgConnection,
    live: &Schema,
    scope: &[String],
) -> Result<BTreeMap<String, SequencePosition>> {
    let mut positions = BTreeMap::new();
    for (name, sequence) in live.sequences.iter().filter(|(_, sequence)| sequence.increment > 0) {
        let Some(owner) = &sequence.owned_by else { continue };
        let owned = scope.iter().find_map(|table| {
            let column = owner.strip_prefix(table.as_str())?.strip_prefix('.')?;
            Some((table, column))
        });
        let Some((table, column)) = owned else { continue };
        let (highest,): (Option<i64>,) =
            sqlx::query_as(AssertSqlSafe(format!("SELECT max({column})::bigint FROM ONLY {table}")))
                .fetch_one(&mut *session)
                .await
                .map_err(Error::query(format!("reading the highest key of {table}")))?;
        if let Some(last_value) = highest {
            positions.insert(name.clone(), SequencePosition { last_value, is_called: true });
        }
    }
    Ok(positions)
}

fn further(kept: &SequencePosition, found: &SequencePosition, sequence: &Sequence) -> SequencePosition {
    // A migration may have widened the sequence beyond what the old one can hold.
    let value = found.last_value.clamp(sequence.min, sequence.max);
    let is_further = match value.cmp(&kept.last_value) {
        std::cmp::Ordering::Equal => return SequencePosition { is_called: kept.is_called || found.is_called, ..*kept },
        order => (order == std::cmp::Ordering::Greater) == (sequence.increment > 0),
    };
    if is_further { SequencePosition { last_value: value, is_called: found.is_called } } else { kept.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_further_position_wins_in_the_sequence_s_own_direction() {
        let at = |last_value, is_called| SequencePosition { last_value, is_called };
        let up = Sequence { increment: 1, min: 1, max: 1000, ..Sequence::default() };
        let down = Sequence { increment: -1, min: -1000, max: -1, ..Sequence::default() };
        assert_eq!(further(&at(100, true), &at(105, true), &up), at(105, true));
        assert_eq!(further(&at(100, true), &at(1, false), &up), at(100, true));
        assert_eq!(further(&at(100, false), &at(100, true), &up), at(100, true));
        assert_eq!(further(&at(100, true), &at(5000, true), &up), at(1000, true));
        assert_eq!(further(&at(-5, true), &at(-9, true), &down), at(-9, true));
        assert_eq!(further(&at(-5, true), &at(-1, false), &down), at(-5, true));
    }
}
