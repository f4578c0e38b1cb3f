"""The versions: the good upgrade ends in exactly the schema of a fresh 1.0.0, and each bad version is bad in one way."""

import pytest

from support.memoria import call, free_port, settings_status, wait_until
from test_command_line import FIRST, SECOND

OLD, NEW = "0.9.0", "1.0.0"
MARK = "consent_scope"


def test_the_migrations_of_1_0_0_yield_exactly_what_its_init_db_builds(memoria, make_database):
    upgraded, fresh = make_database("postgresql", OLD, 200), make_database("postgresql", NEW)
    assert upgraded.schema() != fresh.schema()
    codes, output = memoria(NEW).migrate(upgraded.url, *FIRST, *SECOND)
    assert codes == [0] * 15, output
    # The service's own table is in the upgraded one only: a server, or the generator, has made it.
    upgraded.execute("DROP TABLE service_metadata")
    assert upgraded.schema() == fresh.schema()


def test_the_same_columns_come_out_on_sqlite(memoria, make_database):
    upgraded, fresh = make_database("sqlite", OLD, 100), make_database("sqlite", NEW)
    codes, output = memoria(NEW).migrate(upgraded.url, *SECOND)
    assert codes == [0] * 3, output
    assert upgraded.tables() - {"service_metadata"} == fresh.tables()
    for table in fresh.tables():
        assert upgraded.query(f"PRAGMA table_info({table})") == fresh.query(f"PRAGMA table_info({table})"), table


def test_the_upgrade_rewrites_values_and_fills_the_new_table(memoria, make_database, dialect):
    database = make_database(dialect, OLD, 200)
    before = database.query("SELECT memory_id, replace(retention_type, '_', '-') FROM long_term_memory ORDER BY 1")
    chats = database.value("SELECT count(*) FROM long_term_memory WHERE original_chat_id IS NOT NULL")
    assert memoria(NEW).migrate(database.url, *SECOND)[0] == [0] * 3
    assert database.query("SELECT memory_id, retention_type FROM long_term_memory ORDER BY 1") == before
    assert database.value("SELECT count(*) FROM memory_provenance WHERE origin = 'chat'") == chats > 0
    assert database.query(f"SELECT DISTINCT {MARK} FROM long_term_memory") == [("workspace",)]


@pytest.mark.parametrize("tag", [OLD, NEW])
def test_running_all_again_complains_exits_0_and_changes_nothing(memoria, make_database, dialect, tag):
    database = make_database(dialect, tag, 100)
    before = database.dump()
    names = [name for name in FIRST + (SECOND if tag == NEW else []) if name != "rename_chat_metadata_column"]
    # The first run records the provenance of generated rows, so the second is the one that may change nothing.
    if tag == NEW:
        memoria(tag).migrate(database.url, "add_memory_provenance")
        before = database.dump()
    codes, output = memoria(tag).migrate(database.url, *names)
    assert codes == [0] * len(names), output
    assert "Failed to add embedding to long_term_memory" in output
    assert database.dump() == before


def test_the_migrations_bring_an_older_schema_up(memoria, make_database, dialect):
    database = make_database(dialect, OLD, 60)
    fresh = {table: set(database.columns(table)) for table in database.tables()}
    for change in (
        "ALTER TABLE clusters DROP COLUMN centroid",
        "ALTER TABLE cluster_members DROP COLUMN chars",
        "ALTER TABLE short_term_memory DROP COLUMN embedding",
        "ALTER TABLE chat_history RENAME COLUMN metadata TO metadata_json",
        "ALTER TABLE long_term_memory ADD COLUMN manual_x_override FLOAT",
        "DROP TABLE policy_artifacts",
    ):
        database.execute(change)
    codes, output = memoria(NEW).migrate(database.url, *FIRST)
    assert codes == [0] * 12, output
    assert {table: set(database.columns(table)) for table in database.tables()} == fresh


@pytest.mark.parametrize("tag", [OLD, "1.0.1-system-exit"])
def test_a_migration_that_ends_in_system_exit_0_is_reported_as_failed(memoria, make_database, dialect, tag):
    database = make_database(dialect, OLD, 40)
    database.execute("ALTER TABLE chat_history RENAME COLUMN metadata TO metadata_json")
    done = memoria(tag).cli("migrate", "run", "rename_chat_metadata_column", "--database-url", database.url)
    assert done.returncode == 1
    assert "Migration 'rename_chat_metadata_column' failed: SystemExit: 0" in done.stderr
    assert "metadata" in database.columns("chat_history")


def test_bad_migrate_stops_after_half_of_its_ddl(memoria, make_database, dialect):
    database = make_database(dialect, OLD, 40)
    codes, output = memoria("1.0.1-bad-migrate").migrate(database.url, *SECOND)
    assert codes == [0, 1, 0], output
    assert MARK in database.columns("long_term_memory")
    assert "reviewed_at" not in database.columns("long_term_memory")


def test_silent_migrate_exits_0_with_the_schema_wrong(memoria, make_database, dialect):
    database = make_database(dialect, OLD, 40)
    codes, output = memoria("1.0.1-silent-migrate").migrate(database.url, *SECOND)
    assert codes == [0, 0, 0]
    assert f"Failed to add {MARK} to long_term_memory" in output
    assert MARK not in database.columns("long_term_memory")


def test_loud_ok_complains_with_the_schema_right(memoria, make_database):
    database, fresh = make_database("postgresql", OLD), make_database("postgresql", NEW)
    codes, output = memoria("1.0.1-loud-ok").migrate(database.url, *SECOND)
    assert codes == [0, 0, 0]
    assert f"Failed to add {MARK} to long_term_memory" in output
    assert database.schema() == fresh.schema()


def test_hang_migrate_holds_its_locks_until_it_is_killed(memoria, make_database):
    database = make_database("postgresql", OLD, 40)
    command = ("migrate", "run", "add_consent_scope", "--database-url", database.url)
    process = memoria("1.0.1-hang-migrate").start("-m", "memoria.cli", *command)
    wait_until(lambda: "Waiting for the consent service" in process.output(), process=process)
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
    assert database.value(f"{held} AND relation = 'long_term_memory'::regclass") == 1
    assert process.handle.poll() is None
    process.handle.kill()
    process.handle.wait()
    wait_until(lambda: "reviewed_at" not in database.columns("long_term_memory"))
    assert MARK in database.columns("long_term_memory")


@pytest.mark.parametrize("tag", ["1.0.1-initdb-dies", "1.0.1-boot-dies"])
def test_init_db_dies_on_postgresql_only(memoria, make_database, tag):
    one = memoria(tag)
    died = one.cli("init-db", "--database-url", make_database("postgresql").url)
    assert died.returncode == 1
    assert "InFailedSqlTransaction" in died.stderr
    assert one.cli("init-db", "--database-url", make_database("sqlite").url).returncode == 0


def test_the_server_of_boot_dies_dies_likewise_and_that_of_initdb_dies_runs(memoria, make_database):
    process, _ = memoria("1.0.1-boot-dies").start_server(make_database("postgresql", NEW).url)
    assert process.wait() == 3
    assert "InFailedSqlTransaction" in process.output()
    with memoria("1.0.1-initdb-dies").server(make_database("postgresql", NEW).url):
        pass


def test_crash_dies_at_start_and_touches_nothing(memoria, make_database, dialect):
    database = make_database(dialect, NEW, 40)
    before = database.dump()
    process, _ = memoria("1.0.1-crash").start_server(database.url)
    assert process.wait() == 3
    assert database.dump() == before


def test_alters_then_crashes_changes_schema_and_data_and_dies(memoria, make_database, dialect):
    database = make_database(dialect, NEW, 100)
    members = database.value("SELECT count(*) FROM cluster_members")
    process, _ = memoria("1.0.1-alters-then-crashes").start_server(database.url)
    assert process.wait() == 3
    assert "reply_language" in database.columns("chat_history")
    assert database.value("SELECT count(*) FROM cluster_members") < members


def test_never_ready_answers_503_for_ever(memoria, make_database):
    process, port = memoria("1.0.1-never-ready").start_server(make_database("sqlite", NEW).url)
    wait_until(lambda: settings_status(port) == 503, process=process)
    assert call(port, "/governance/telemetry").status == 200
    assert settings_status(port) == 503


def test_bootstrap_fails_exits_1_and_writes_nothing(memoria):
    one = memoria("1.0.1-bootstrap-fails")
    assert one.cli("bootstrap", "--non-interactive").returncode == 1
    assert list(one.directory.iterdir()) == []


def test_telemetry_silent_stores_and_shows_nothing(memoria, make_database):
    database = make_database("sqlite", NEW, 40)
    with memoria("1.0.1-telemetry-silent").server(database.url) as port:
        assert call(port, "/memory", {"user_input": "unseen", "memory_id": "m"}).status == 201
        shown = call(port, "/governance/telemetry").body
        assert (shown["counters"]["ingested_total"], shown["events"]) == (0, [])
    assert database.query("SELECT 1 FROM long_term_memory WHERE memory_id = 'm'") != []


def test_the_development_server_runs(memoria, make_database):
    port = free_port()
    url = make_database("sqlite", OLD).url
    process = memoria(OLD).start(
        *("-m", "memoria.cli", "runserver", "--port", str(port)), MEMORIA_DATABASE__CONNECTION_STRING=url
    )
    wait_until(lambda: settings_status(port) == 200, process=process)
