"""The generator: size, determinism, coverage, and integrity of what it makes."""

import pytest

from support.memoria import Memoria

SERIAL = (
    "workspace_members memory_access_events link_memory_threads thread_message_links clusters cluster_members "
    "policy_artifacts retention_policy_audits"
).split()


def generate(one: Memoria, url: str, rows: int, seed: int):
    process = one.start("-m", "memoria_generate", *f"--rows {rows} --seed {seed} --database-url".split(), url)
    return process.wait(), process.output()


@pytest.mark.parametrize("tag", ["0.9.0", "1.0.0"])
def test_a_seed_gives_the_same_bytes_again_and_another_seed_others(memoria, make_database, dialect, tag):
    one = memoria(tag)
    databases = [make_database(dialect, None) for _ in range(3)]
    for database, seed in zip(databases, (7, 7, 8), strict=True):
        code, output = generate(one, database.url, 400, seed)
        assert code == 0, output
        assert f"Generated 400 rows in {17 if tag == '0.9.0' else 18} tables (seed {seed})" in output
    first, second, other = [database.dump() for database in databases]
    assert first == second
    assert first != other
    if dialect == "sqlite":
        assert databases[0].path.read_bytes() == databases[1].path.read_bytes()


def test_every_table_has_rows_and_every_reference_holds(make_database):
    database = make_database("sqlite", "0.9.0", 400)
    tables = database.tables()
    assert len(tables) == 17
    counts = {table: database.value(f"SELECT count(*) FROM {table}") for table in tables}
    assert sum(counts.values()) == 400
    assert min(counts.values()) > 0
    assert database.query("PRAGMA foreign_key_check") == []
    assert database.value("SELECT count(*) FROM active_memories") > 0
    assert {row[0] for row in database.query("SELECT name FROM sqlite_sequence")} >= {"memory_access_events"}


def test_sequences_stand_behind_the_last_row(make_database):
    database = make_database("postgresql", "0.9.0", 400)
    for table in SERIAL:
        highest = database.value(f"SELECT max(id) FROM {table}")
        assert database.value(f"SELECT nextval(pg_get_serial_sequence('{table}', 'id'))") == highest + 1


def test_both_databases_hold_the_same(memoria, make_database):
    one, exports = memoria("0.9.0"), []
    for dialect in ("sqlite", "postgresql"):
        done = one.cli("export-data", "-", "--format", "ndjson", "--database-url", make_database(dialect, "0.9.0", 400).url)
        # SQLite stores a negative zero as zero; everything else is alike.
        exports.append(done.stdout.replace("-0.0", "0.0").splitlines()[1:])
    assert exports[0] and set(exports[0]) == set(exports[1])


def test_the_data_has_what_careless_copies_lose(make_database):
    database = make_database("postgresql", "0.9.0", 400)
    for sample in ("研究", "🦊", "e\u0301", "C:\\temp\\new, and\ta tab", "line one\nline two\r\n", "'); DROP"):
        quoted = sample.replace("'", "''")
        found = f"SELECT count(*) FROM chat_history WHERE position('{quoted}' in user_input || ai_output || namespace) > 0"
        assert database.value(found) > 0, sample
    assert database.value("SELECT count(*) FROM long_term_memory WHERE topic IS NULL") > 0
    assert database.value("SELECT count(*) FROM spatial_metadata WHERE x IS NULL") > 0


def test_rows_are_added_to_no_filled_database_and_too_few_are_refused(memoria, make_database, dialect):
    one, database = memoria("0.9.0"), make_database(dialect, "0.9.0", 40)
    code, output = generate(one, database.url, 40, 1)
    assert code == 1 and "holds rows" in output
    code, output = generate(one, make_database(dialect).url, 16, 1)
    assert code == 1 and "at least 17" in output


def test_foreign_keys_have_a_cycle_and_are_five_at_least(make_database):
    database = make_database("postgresql", "0.9.0")
    pairs = database.query(
        "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f'"
    )
    assert len(pairs) >= 5
    assert {("workspaces", "workspace_members"), ("workspace_members", "workspaces")} <= set(pairs)
    assert database.value("SELECT count(*) FROM pg_views WHERE schemaname = 'public'") == 1
    unique = "SELECT count(*) FROM pg_index WHERE indisunique AND NOT indisprimary AND indrelid::regclass::text !~ 'pg_'"
    assert database.value(unique) >= 4


def test_the_columns_are_those_of_the_contract(make_database):
    database = make_database("postgresql", "0.9.0", 40)
    shown = database.query(
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns WHERE table_schema = 'public'"
    )
    found = {(table, column): (kind, nullable) for table, column, kind, nullable in shown}
    expected = {
        ("agents", "metadata"): ("json", "YES"),
        ("agents", "is_agent"): ("boolean", "NO"),
        ("chat_history", "tokens_used"): ("integer", "YES"),
        ("chat_history", "user_input"): ("text", "NO"),
        ("long_term_memory", "importance_score"): ("double precision", "NO"),
        ("long_term_memory", "extraction_timestamp"): ("timestamp without time zone", "NO"),
        ("long_term_memory", "topic"): ("character varying", "YES"),
        ("cluster_members", "cluster_id"): ("integer", "NO"),
        ("service_metadata", "value"): ("text", "NO"),
    }
    assert {key: found[key] for key in expected} == expected
    counts = {"long_term_memory": 43, "chat_history": 12, "short_term_memory": 22, "clusters": 14, "policy_artifacts": 11}
    for table, columns in counts.items():
        assert len(database.columns(table)) == columns, table


