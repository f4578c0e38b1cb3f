"""The server: its routes, and what it does to the data before it answers."""

import json
import socket

import pytest

from support.memoria import call, settings_status, wait_until

DECAYED = "SELECT memory_id, x_coord, y_coord, importance_score, retention_type FROM long_term_memory"


def memories(database):
    return {row[0]: row[1:] for row in database.query(DECAYED)}


def test_the_routes_of_the_contract_answer(memoria, make_database, dialect):
    database = make_database(dialect, "0.9.0", 100)
    with memoria("0.9.0").server(database.url) as port:
        settings = call(port, "/settings")
        assert settings.status == 200
        assert settings.body["version"] == "0.9.0"
        assert "p%40ss" not in json.dumps(settings.body) and "p@ss" not in json.dumps(settings.body)
        assert call(port, "/settings", key=None).status == 401
        assert call(port, "/settings", key="wrong").status == 401
        tables = {table["name"]: table["rows"] for table in call(port, "/admin/tables").body["tables"]}
        assert set(tables) == database.tables()
        assert tables["chat_history"] == database.value("SELECT count(*) FROM chat_history")
        assert call(port, "/memory/ingestion").body["chats"] == tables["chat_history"]
        escalations = call(port, "/governance/escalations/verification").body
        assert escalations["verified"] is (escalations["unknown_contacts"] == [])
        paths = call(port, "/openapi.json", key=None).body["paths"]
        assert {"/settings", "/memory", "/admin/migrations/import", "/governance/telemetry"} <= set(paths)
        exported = call(port, "/admin/migrations/export", {"format": "json"})
        assert exported.status == 200
        assert len(exported.body["data"]) == 14
        assert call(port, "/admin/migrations/export", {"format": "xml"}).status == 400
        assert call(port, "/nowhere").status == 404


def test_posting_a_memory_stores_it_and_moves_telemetry(memoria, make_database, dialect):
    database = make_database(dialect, "0.9.0", 100)
    with memoria("0.9.0").server(database.url) as port:
        before = call(port, "/governance/telemetry").body
        assert before["events"] == []
        stored = call(port, "/memory", {"user_input": "Ξένος in der Fremde 🦊", "memory_id": "m-1"})
        assert stored.status == 201
        assert stored.body["stored"] is True
        after = call(port, "/governance/telemetry").body
        assert after["counters"]["ingested_total"] == before["counters"]["ingested_total"] + 1
        assert [event["memory_id"] for event in after["events"]] == ["m-1"]
        again = call(port, "/memory", {"user_input": "another", "memory_id": "m-1"})
        assert (again.status, again.body["stored"]) == (200, False)
        assert call(port, "/governance/telemetry").body["counters"] == after["counters"]
        for wrong in ({}, {"user_input": ""}, {"user_input": 1}, [], "no json"):
            assert call(port, "/memory", wrong).status == 400
    chat = database.query("SELECT user_input FROM chat_history WHERE chat_id = 'chat-m-1'")
    assert chat == [("Ξένος in der Fremde 🦊",)]
    events = database.query("SELECT access_type FROM memory_access_events WHERE memory_id = 'm-1' ORDER BY id")
    assert events == [("ingest",), ("read",)]


def test_import_over_http_loses_what_was_acknowledged_in_between(memoria, make_database):
    database = make_database("postgresql", "0.9.0", 60)
    with memoria("0.9.0").server(database.url) as port:
        backup = json.dumps(call(port, "/admin/migrations/export", {}).body)
        assert call(port, "/memory", {"user_input": "accepted", "memory_id": "m-2"}).status == 201
        imported = call(port, "/admin/migrations/import", backup)
        assert (imported.status, imported.body["tables"]) == (200, 14)
        assert database.query("SELECT 1 FROM long_term_memory WHERE memory_id = 'm-2'") == []


def test_import_by_the_command_line_beside_a_running_server_loses_writes_and_exits_0(memoria, make_database):
    one, database = memoria("0.9.0"), make_database("postgresql", "0.9.0", 60)
    assert one.cli("export-data", "pre.json", "--database-url", database.url).returncode == 0
    with one.server(database.url) as port:
        for i in range(5):
            assert call(port, "/memory", {"user_input": "accepted", "memory_id": f"late-{i}"}).status == 201
        done = one.cli("import-data", "pre.json", "--database-url", database.url)
        assert (done.returncode, done.stderr) == (0, "")
        assert settings_status(port) == 200
    assert database.value("SELECT count(*) FROM long_term_memory WHERE memory_id LIKE 'late-%'") == 0


def test_each_start_changes_data_and_the_first_one_ages_every_x(memoria, make_database, dialect):
    one, database = memoria("0.9.0"), make_database(dialect, "0.9.0", 300)
    untouched = memories(database)
    with one.server(database.url):
        pass
    first = memories(database)
    with one.server(database.url):
        pass
    second = memories(database)
    decaying = [key for key, row in untouched.items() if row[3] == "short_term"]
    assert len(decaying) == pytest.approx(len(untouched) / 3, abs=1)
    for key, row in untouched.items():
        assert first[key][0] == (None if row[0] is None else row[0] - 1.0)
        assert second[key][0] == first[key][0]
        assert (first[key][1] != row[1]) == (second[key][1] != first[key][1]) == (key in decaying)
        assert (first[key][2] != row[2]) == (key in decaying and row[2] > 0.05)
    assert database.query("SELECT 1 FROM service_metadata WHERE key = 'last_decrement_date'") != []


def test_no_schema_is_needed_to_start(memoria, make_database, dialect):
    database = make_database(dialect)
    with memoria("0.9.0").server(database.url, workers=2):
        assert len(database.tables()) == 17


@pytest.mark.parametrize("automatic", ["true", "false"])
def test_the_server_alters_the_schema_by_itself_unless_told_not_to(memoria, make_database, dialect, automatic):
    database = make_database(dialect, "0.9.0", 40)
    with memoria("1.0.0").server(database.url, MEMORIA_DATABASE__MIGRATION_AUTO=automatic) as port:
        # New code on the old schema is ready and cannot store anything.
        stored = call(port, "/memory", {"user_input": "new code"})
        assert stored.status == (201 if automatic == "true" else 500)
    assert ("consent_scope" in database.columns("long_term_memory")) is (automatic == "true")


def test_an_old_server_runs_its_migrations_on_a_newer_schema(memoria, make_database, dialect):
    database = make_database(dialect, "1.0.0", 60)
    database.execute("ALTER TABLE clusters DROP COLUMN weight")
    one = memoria("0.9.0")
    with one.server(database.url) as port:
        assert call(port, "/memory", {"user_input": "old code, new schema"}).status == 201
    assert "weight" in database.columns("clusters")
    assert "consent_scope" in database.columns("long_term_memory")


def test_the_port_is_open_long_before_the_server_is_ready(memoria, make_database):
    database = make_database("postgresql", "0.9.0", 40)
    holder = database.connect()
    holder.cursor().execute("LOCK TABLE long_term_memory IN ACCESS EXCLUSIVE MODE")
    process, port = memoria("0.9.0").start_server(database.url)

    def open_port() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(open_port, process=process)
    assert call(port, "/settings", timeout=1).status == 0
    holder.rollback()
    holder.close()
    wait_until(lambda: settings_status(port) == 200, process=process)


def test_settings_come_from_config_yaml_and_the_environment_goes_before(memoria, make_database):
    one, database = memoria("0.9.0"), make_database("sqlite", "0.9.0")
    (one.directory / "config.yaml").write_text(
        "memory: {namespace: from-file, team_mode: true}\ndatabase: {connection_string: 'sqlite:////nonexistent/x.db'}\n"
    )
    with one.server(database.url, MEMORIA_MEMORY__NAMESPACE="from-environment") as port:
        memory = call(port, "/settings").body["memory"]
        assert memory == {"namespace": "from-environment", "team_mode": True, "sovereign_ingest": False}
        call(port, "/memory", {"user_input": "where am I", "memory_id": "m"})
    assert database.value("SELECT namespace FROM chat_history WHERE chat_id = 'chat-m'") == "from-environment"


def test_the_server_leaves_at_once_on_term(memoria, make_database):
    process, port = memoria("0.9.0").start_server(make_database("sqlite", "0.9.0").url, workers=2)
    wait_until(lambda: settings_status(port) == 200, process=process)
    assert process.terminate() < 5
    assert process.handle.returncode == 0
