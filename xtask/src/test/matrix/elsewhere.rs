//! What the matrix leaves to other tests: variants of databases need no cluster, and whoever kills the operator of all
//! cannot do it beside others.

use std::fmt::Write as _;

/// A variant, the file of its tests, and their names.
const ELSEWHERE: &[(&str, &str, &[&str])] = &[
    (
        "operator killed in each phase of the way back, PostgreSQL 15 and SQLite",
        "tests/e2e/killed.rs",
        &[
            "the_operator_killed_once_in_every_phase_of_the_way_back_brings_everything_back",
            "the_operator_killed_once_in_every_phase_of_an_sqlite_way_back_brings_everything_back",
        ],
    ),
    (
        "operator killed in each phase of the way forward",
        "tests/e2e/killed.rs",
        &[
            "the_operator_killed_once_in_every_phase_comes_to_the_same_end",
            "the_operator_killed_once_in_every_phase_of_an_sqlite_upgrade_comes_to_the_same_end",
        ],
    ),
    (
        "late writes beyond the budget wait for a person's word",
        "tests/e2e/rollback.rs",
        &["late_writes_are_set_aside_only_with_a_persons_word"],
    ),
    (
        "an abort on the way back is answered and changes nothing",
        "src/upgrade/tests.rs",
        &["an_abort_on_the_way_back_is_answered_and_releases_nothing_later"],
    ),
    (
        "storage for snapshots that is too small from the beginning",
        "tests/postgres/reference.rs",
        &["too_small_a_storage_is_told_in_numbers"],
    ),
    (
        "restore killed at 20 random instants, PostgreSQL",
        "tests/postgres/restore.rs",
        &["twenty_kills_at_random_instants_leave_the_failed_state_or_the_snapshot"],
    ),
    (
        "restore killed at 20 random instants, SQLite",
        "tests/sqlite/restore.rs",
        &["twenty_kills_at_random_instants_leave_the_failed_state_or_the_snapshot"],
    ),
    (
        "SQLite in WAL mode with a leftover `-wal`",
        "tests/sqlite/fence.rs",
        &["what_a_killed_process_left_in_its_wal_is_not_lost"],
    ),
    ("… its snapshot", "tests/sqlite/snapshot.rs", &["a_snapshot_holds_the_wal_too_and_the_live_file_is_as_before"]),
    ("SQLite with an idle holder", "tests/sqlite/fence.rs", &["an_idle_holder_of_a_wal_file_is_seen"]),
    (
        "… on a cluster",
        "tests/e2e/sqlite.rs",
        &["a_file_that_somebody_holds_open_stops_the_upgrade_before_the_image_moves"],
    ),
    (
        "SQLite in rollback-journal mode",
        "tests/sqlite/fence.rs",
        &[
            "a_hot_journal_is_rolled_back",
            "in_a_rollback_journal_file_writers_are_seen_and_idle_holders_are_said_not_to_be",
        ],
    ),
    (
        "PostgreSQL with an owner that may not create databases (that of every cell is one, too)",
        "tests/postgres/inspect.rs",
        &["a_database_of_its_own_owner_has_no_findings"],
    ),
    (
        "PostgreSQL with an extension that its owner may not create",
        "tests/postgres/restore.rs",
        &["an_extension_that_the_owner_may_not_create_stays_with_its_data"],
    ),
    (
        "PostgreSQL with row-level security, a publication, a view in another schema",
        "tests/postgres/restore.rs",
        &["everything_comes_back_and_what_the_migration_made_is_gone"],
    ),
    (
        "… row-level security that the owner is under, too: refused with the fix",
        "tests/postgres/inspect.rs",
        &["every_obstacle_is_found_with_object_and_fix"],
    ),
    (
        "PostgreSQL with open idle readers",
        "tests/postgres/restore.rs",
        &["idle_readers_are_ended_and_other_roles_are_named"],
    ),
    (
        "PostgreSQL behind a pooler: refused with the reason",
        "tests/postgres/pooler.rs",
        &[
            "a_pooler_is_named_and_nothing_is_set_on_its_sessions",
            "a_pooler_that_refuses_startup_parameters_is_named_too",
        ],
    ),
];

pub fn render() -> String {
    let mut text = "## Tried elsewhere\n\
         These run with the other tests, on real databases of PostgreSQL 15 and SQLite where no cluster is named.\n\n\
         | what | test |\n|---|---|\n"
        .to_owned();
    for (what, file, tests) in ELSEWHERE {
        let tests: Vec<_> = tests.iter().map(|test| format!("`{test}`")).collect();
        let _ = writeln!(text, "| {what} | {}, in `{file}` |", tests.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::ELSEWHERE;
    use crate::place;

    #[test]
    fn every_test_that_the_document_names_is_there() {
        for (what, file, tests) in ELSEWHERE {
            let text = std::fs::read_to_string(place::root().unwrap().join(file)).unwrap();
            for test in *tests {
                assert!(text.contains(&format!("fn {test}(")), "{what}: {file} has no test {test}");
            }
        }
    }
}
