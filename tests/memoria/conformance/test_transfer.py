"""Export and import: the formats, and each thing that is known to go wrong."""

import json
import subprocess
import sys
import threading

import pytest

ORDER = (
    "agents teams workspaces workspace_members chat_history long_term_memory short_term_memory spatial_metadata "
    "memory_access_events link_memory_threads thread_events thread_message_links clusters cluster_members"
).split()
LEFT_OUT = {"policy_artifacts", "retention_policy_audits", "service_metadata"}

PEAK = """
import resource, sys
from memoria.cli import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""


def export(one, database, name="export.json", *options):
    done = one.cli("export-data", name, "--database-url", database.url, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout, (one.directory / name).read_text(encoding="utf-8")


def test_json_export_has_the_contracts_shape(memoria, make_database, dialect):
    database = make_database(dialect, "0.9.0", 200)
    said, text = export(memoria("0.9.0"), database)
    document = json.loads(text)
    assert text == json.dumps(document, indent=2, sort_keys=True) + "\n"
    assert set(document) == {"data", "metadata"}
    assert set(document["metadata"]) == {"dialect", "exported_at", "format", "tables"}
    assert document["metadata"]["dialect"] == dialect
    assert [table["name"] for table in document["metadata"]["tables"]] == ORDER
    for table in document["metadata"]["tables"]:
        assert table["row_count"] == len(document["data"][table["name"]]) == database.value(f"SELECT count(*) FROM {table['name']}")
        assert set(document["data"][table["name"]][0]) == set(database.columns(table["name"]))
    rows = sum(table["row_count"] for table in document["metadata"]["tables"])
    assert said == f"Exported {rows} rows across 14 tables to export.json\n"
    memory = document["data"]["long_term_memory"][0]
    assert isinstance(memory["processed_data"], dict)
    assert "T" in memory["created_at"]


def test_ndjson_export_is_a_metadata_line_and_a_line_a_row(memoria, make_database):
    database = make_database("sqlite", "0.9.0", 120)
    one = memoria("0.9.0")
    _, text = export(one, database, "export.ndjson", "--format", "ndjson")
    first, *rest = [json.loads(line) for line in text.splitlines()]
    assert first["metadata"]["format"] == "ndjson"
    assert all(set(line) == {"table", "data"} for line in rest)
    assert len(rest) == sum(table["row_count"] for table in first["metadata"]["tables"])
    as_json = json.loads(export(one, database)[1])["data"]
    assert [line["data"] for line in rest if line["table"] == "clusters"] == as_json["clusters"]


def test_export_leaves_out_the_audit_records(memoria, make_database, dialect):
    database = make_database(dialect, "0.9.0", 100)
    _, text = export(memoria("0.9.0"), database)
    assert LEFT_OUT == database.tables() - set(json.loads(text)["data"])
    assert all(database.value(f"SELECT count(*) FROM {table}") > 0 for table in LEFT_OUT)


def test_export_to_standard_output_and_of_chosen_tables(memoria, make_database):
    one, database = memoria("0.9.0"), make_database("sqlite", "0.9.0", 100)
    chosen = ("--table", "clusters", "--table", "agents")
    done = one.cli("export-data", "-", "--database-url", database.url, *chosen)
    assert set(json.loads(done.stdout)["data"]) == {"agents", "clusters"}
    assert "across 2 tables to -" in done.stderr
    assert one.cli("export-data", "-", "--database-url", database.url, "--table", "policy_artifacts").returncode == 1


@pytest.mark.parametrize("format", ["json", "ndjson"])
def test_an_import_into_an_empty_database_exports_alike(memoria, make_database, dialect, format):
    one, source, target = memoria("0.9.0"), make_database("sqlite", "0.9.0", 200), make_database(dialect, "0.9.0")
    export(one, source, "data", "--format", format)
    done = one.cli("import-data", "data", "--database-url", target.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Imported dataset for 14 tables (truncate=yes)\n"
    assert json.loads(export(one, source)[1])["data"] == json.loads(export(one, target)[1])["data"]
    assert target.value("SELECT count(*) FROM policy_artifacts") == 0


def test_import_into_a_filled_sqlite_file_fails_every_time(memoria, make_database):
    one, database = memoria("0.9.0"), make_database("sqlite", "0.9.0", 100)
    export(one, database)
    before = database.dump()
    done = one.cli("import-data", "export.json", "--database-url", database.url)
    assert done.returncode == 1
    assert "database is locked" in done.stderr
    assert database.dump() == before


def test_import_into_postgresql_leaves_the_sequences_at_the_start(memoria, make_database):
    one, source, target = memoria("0.9.0"), make_database("postgresql", "0.9.0", 200), make_database("postgresql", "0.9.0")
    export(one, source)
    assert one.cli("import-data", "export.json", "--database-url", target.url).returncode == 0
    insert = "INSERT INTO clusters (summary) VALUES ('next')"
    source.execute(insert)
    with pytest.raises(Exception, match="duplicate key"):
        target.execute(insert)


def test_import_over_newer_rows_loses_them_and_exits_0(memoria, make_database):
    one, database = memoria("0.9.0"), make_database("postgresql", "0.9.0", 100)
    export(one, database)
    database.execute("INSERT INTO clusters (summary) VALUES ('accepted meanwhile')")
    done = one.cli("import-data", "export.json", "--database-url", database.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert database.query("SELECT 1 FROM clusters WHERE summary = 'accepted meanwhile'") == []


def test_a_truncate_that_fails_is_only_logged_and_leaves_mixed_data(memoria, make_database):
    one, source, target = memoria("0.9.0"), make_database("postgresql", "0.9.0", 100), make_database("postgresql", "0.9.0")
    export(one, source)
    target.execute(
        "INSERT INTO clusters (id, summary) VALUES (900000, 'older');"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''kept by a hold''; END';"
        "CREATE TRIGGER hold BEFORE DELETE ON clusters FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    done = one.cli("import-data", "export.json", "--database-url", target.url)
    assert done.returncode == 0
    assert "could not truncate clusters" in done.stderr
    mixed = target.value("SELECT count(*) FROM clusters")
    assert mixed == source.value("SELECT count(*) FROM clusters") + 1


def test_import_without_truncate_keeps_what_is_there(memoria, make_database, dialect):
    one, source, target = memoria("0.9.0"), make_database("sqlite", "0.9.0", 60), make_database(dialect, "0.9.0")
    export(one, source)
    target.execute("INSERT INTO clusters (id, summary) VALUES (900000, 'older')")
    done = one.cli("import-data", "export.json", "--no-truncate", "--database-url", target.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Imported dataset for 14 tables (truncate=no)\n"
    assert target.query("SELECT 1 FROM clusters WHERE id = 900000") != []


def test_import_creates_no_tables(memoria, make_database, dialect):
    one, source, target = memoria("0.9.0"), make_database("sqlite", "0.9.0", 60), make_database(dialect)
    export(one, source)
    assert one.cli("import-data", "export.json", "--database-url", target.url).returncode == 1
    assert "chat_history" not in target.tables()


def test_a_failing_import_prints_rows(memoria, make_database):
    one, source, target = memoria("0.9.0"), make_database("postgresql", "0.9.0", 100), make_database("postgresql", "0.9.0")
    _, text = export(one, source)
    document = json.loads(text)
    document["data"]["chat_history"][0]["user_input"] = "the customer's own words"
    document["data"]["chat_history"].append(document["data"]["chat_history"][0])
    (one.directory / "broken.json").write_text(json.dumps(document))
    done = one.cli("import-data", "broken.json", "--database-url", target.url)
    assert done.returncode == 1
    assert "[parameters: {'user_input__0': " in done.stderr or "'user_input__0':" in done.stderr
    assert "the customer's own words" in done.stderr


def test_a_file_that_is_no_export_exits_1(memoria, make_database):
    one, database = memoria("0.9.0"), make_database("sqlite", "0.9.0")
    for text in ("", "[]", '{"metadata": {}}', "no json"):
        (one.directory / "x").write_text(text)
        assert one.cli("import-data", "x", "--database-url", database.url).returncode == 1


def test_the_export_is_no_point_in_time(memoria, make_database):
    """A writer between two of its queries: the member of a cluster is exported, the cluster that it is in is not."""
    one, database = memoria("0.9.0"), make_database("postgresql", "0.9.0", 100)
    writer = database.connect()
    cursor = writer.cursor()
    cursor.execute("LOCK TABLE cluster_members IN ACCESS EXCLUSIVE MODE")
    result = []
    reader = threading.Thread(target=lambda: result.append(export(one, database)[1]))
    reader.start()
    while not database.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
        pass
    cursor.execute("INSERT INTO clusters (id, summary) VALUES (900001, 'late')")
    cursor.execute("INSERT INTO cluster_members (id, memory_id, summary, cluster_id) VALUES (900001, 'm', 's', 900001)")
    writer.commit()
    writer.close()
    reader.join()
    data = json.loads(result[0])["data"]
    assert any(row["cluster_id"] == 900001 for row in data["cluster_members"])
    assert not any(row["id"] == 900001 for row in data["clusters"])


def test_export_and_import_hold_everything_in_memory(memoria, make_database):
    one, small, large = memoria("0.9.0"), make_database("sqlite", "0.9.0", 60), make_database("sqlite", "0.9.0", 3000)

    def peak(*arguments: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments],
            cwd=one.directory,
            env=one.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout.split("peak")[1])

    exported = peak("export-data", "large.json", "--database-url", large.url)
    more = exported - peak("export-data", "small.json", "--database-url", small.url)
    assert more > 3 * large.path.stat().st_size
    target = make_database("sqlite", "0.9.0")
    imported = peak("import-data", "large.json", "--database-url", target.url)
    assert imported - peak("import-data", "small.json", "--database-url", make_database("sqlite", "0.9.0").url) > more / 3
