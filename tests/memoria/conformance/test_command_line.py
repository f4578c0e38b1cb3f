"""The command line's contract: flags, output, exit codes."""

import json
import stat

import pytest

from support.memoria import VERSIONS

FIRST = (
    "add_cluster_centroids add_cluster_member_counts add_cluster_member_token_columns add_cluster_token_columns "
    "add_memory_embeddings add_policy_artifacts add_spatial_namespace add_team_support add_timestamp_columns "
    "add_workspace_support remove_manual_x_override rename_chat_metadata_column"
).split()
SECOND = ["add_memory_provenance", "add_consent_scope", "normalize_retention_types"]


def test_migrate_list_prints_a_name_two_spaces_and_a_description(memoria):
    listed = memoria("0.9.0").cli("migrate", "list")
    assert listed.returncode == 0
    lines = listed.stdout.splitlines()
    assert [line.split("  ", 1)[0] for line in lines] == FIRST
    assert all(line.split("  ", 1)[1].strip() for line in lines)


def test_the_archived_migration_is_listed_only_on_request(memoria):
    listed = memoria("0.9.0").cli("migrate", "list", "--include-archived")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [*FIRST, "remove_emotional_intensity"]


def test_the_next_release_lists_its_own_migrations_after_the_old_ones(memoria):
    assert memoria("1.0.0").migrations() == FIRST + SECOND


@pytest.mark.parametrize("tag", ["0.9.0", "1.0.0"])
def test_what_the_runbook_passes_is_refused_with_exit_2(memoria, tag):
    one = memoria(tag)
    listed = one.cli("migrate", "list", "--database-url", "sqlite:///x.db")
    assert (listed.returncode, listed.stdout) == (2, "")
    assert "unrecognized arguments" in listed.stderr
    ran = one.cli("migrate", "run", "--database-url", "sqlite:///x.db", "--all")
    assert ran.returncode == 2
    assert not (one.directory / "x.db").exists()
    assert "--all" not in one.cli("migrate", "run", "--help").stdout
    assert "--database-url" not in one.cli("migrate", "list", "--help").stdout


def test_a_release_that_accepts_all_says_so_in_its_help_and_runs_all(memoria, make_database):
    one, database = memoria("1.0.2-accepts-all"), make_database("sqlite", "0.9.0", 40)
    assert "--all" in one.cli("migrate", "run", "--help").stdout
    assert "--database-url" in one.cli("migrate", "list", "--help").stdout
    assert one.cli("migrate", "list", "--database-url", database.url).returncode == 0
    ran = one.cli("migrate", "run", "--all", "--database-url", database.url)
    assert ran.returncode == 0, ran.stderr
    executed = [line.split("'")[1] for line in ran.stdout.splitlines() if line.startswith("Executed")]
    assert executed == FIRST + SECOND
    assert {"consent_scope", "reviewed_at"} <= set(database.columns("long_term_memory"))
    assert one.cli("migrate", "run", "--database-url", database.url).returncode == 2
    assert one.cli("migrate", "run", FIRST[0], "--all", "--database-url", database.url).returncode == 2


def test_migrate_run_prints_the_url_with_its_password(memoria, make_database):
    database = make_database("postgresql", "0.9.0")
    ran = memoria("0.9.0").cli("migrate", "run", "add_policy_artifacts", "--database-url", database.url)
    assert ran.returncode == 0
    assert f"Executed migration 'add_policy_artifacts' against {database.url}." in ran.stdout


def test_a_dry_run_runs_nothing(memoria, make_database, dialect):
    database = make_database(dialect, "0.9.0")
    ran = memoria("1.0.0").cli("migrate", "run", "add_consent_scope", "--dry-run", "--database-url", database.url)
    assert ran.returncode == 0
    assert "consent_scope" not in database.columns("long_term_memory")


def test_an_unknown_migration_exits_1_and_the_archived_one_needs_its_flag(memoria, make_database):
    one, url = memoria("0.9.0"), make_database("sqlite", "0.9.0").url
    assert one.cli("migrate", "run", "no_such", "--database-url", url).returncode == 1
    assert one.cli("migrate", "run", "remove_emotional_intensity", "--database-url", url).returncode == 1
    archived = ("migrate", "run", "remove_emotional_intensity", "--include-archived", "--database-url", url)
    assert one.cli(*archived).returncode == 0


def test_the_command_line_reads_no_url_from_the_environment(memoria, make_database, dialect):
    one, database = memoria("1.0.0"), make_database(dialect, "0.9.0", 60)
    variables = {name: database.url for name in ("MEMORIA_DATABASE__CONNECTION_STRING", "DATABASE_URL", "MEMORIA_DB_URL")}
    exported = one.cli("export-data", "backup.json", **variables)
    assert exported.returncode == 0
    assert "Exported 0 rows across 0 tables to backup.json" in exported.stdout
    assert (one.directory / "memoria.db").exists()
    migrated = one.cli("migrate", "run", "add_cluster_centroids", **variables)
    assert migrated.returncode == 0
    assert "consent_scope" not in database.columns("long_term_memory")
    assert json.loads((one.directory / "backup.json").read_text())["data"] == {}


def test_a_url_without_password_and_a_passfile_work(memoria, make_database):
    one, database = memoria("0.9.0"), make_database("postgresql", "0.9.0", 50)
    passfile = one.directory / "pgpass"
    # In a passfile only colons and backslashes are special.
    passfile.write_text(f"127.0.0.1:{database.port}:*:memoria:p@ss%w/o\"rd 1\n")
    passfile.chmod(0o600)
    for scheme in ("postgresql", "postgresql+psycopg2", "postgresql+psycopg"):
        url = database.url_without_password.replace("postgresql+psycopg2", scheme) + "?sslmode=prefer"
        done = one.cli("export-data", "-", "--database-url", url, PGPASSFILE=str(passfile))
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["data"]) == 14
    migrated = one.cli(
        *("migrate", "run", "add_policy_artifacts", "--database-url", database.url_without_password),
        PGPASSFILE=str(passfile),
    )
    assert migrated.returncode == 0
    assert "p@ss" not in migrated.stdout + migrated.stderr and "%40" not in migrated.stdout + migrated.stderr


def test_init_db_creates_the_seventeen_tables_but_for_the_services_own(memoria, make_database, dialect):
    database = make_database(dialect)
    done = memoria("0.9.0").cli("init-db", "--database-url", database.url)
    assert done.returncode == 0, done.stderr
    assert len(database.tables()) == 16
    assert "service_metadata" not in database.tables()
    again = memoria("0.9.0").cli("init-db", "--database-url", database.url)
    assert again.returncode == 0, again.stderr


def test_bootstrap_writes_two_files_and_overwrites_only_by_force(memoria):
    one = memoria("1.0.0")
    made = one.cli("bootstrap", "--non-interactive")
    assert made.returncode == 0, made.stderr
    document = json.loads((one.directory / "memoria.json").read_text())
    assert document["database"] == {"connection_string": "sqlite:///memoria.db", "migration_auto": True}
    secret = (one.directory / ".env").read_text()
    assert "MEMORIA_API_KEY=" in secret
    assert stat.S_IMODE((one.directory / ".env").stat().st_mode) == 0o600
    assert one.cli("bootstrap", "--non-interactive").returncode == 1
    assert (one.directory / ".env").read_text() == secret
    assert one.cli("bootstrap", "--non-interactive", "--force").returncode == 0
    assert (one.directory / ".env").read_text() != secret


def test_bootstrap_takes_paths_and_answers(memoria):
    one = memoria("0.9.0")
    (one.directory / "answers.json").write_text('{"namespace": "研究"}')
    made = one.cli("bootstrap", "--config", "a/m.json", "--env-file", "a/e", "--config-json", "answers.json")
    assert made.returncode == 0, made.stderr
    assert json.loads((one.directory / "a/m.json").read_text())["memory"]["namespace"] == "研究"
    asked = one.cli("bootstrap", stdin="sqlite:///other.db\n\n")
    assert asked.returncode == 0, asked.stderr
    assert "sqlite:///other.db" in (one.directory / ".env").read_text()


def test_the_commands_offer_the_flags_of_the_contract(memoria):
    one = memoria("0.9.0")
    flags = {
        ("migrate", "list"): ["--include-archived"],
        ("migrate", "run"): ["--database-url", "--include-archived", "--dry-run"],
        ("export-data",): ["--database-url", "--format", "--table"],
        ("import-data",): ["--database-url", "--format", "--table", "--no-truncate"],
        ("bootstrap",): ["--config", "--env-file", "--force", "--non-interactive", "--config-json"],
        ("runserver",): ["--host", "--port", "--reload"],
    }
    _, output = one.cli_many(*([*command, "--help"] for command in flags))
    for command, wanted in flags.items():
        usage = output.split(f"usage: memoria {' '.join(command)}")[1].split("exit ")[0]
        assert all(flag in usage for flag in wanted), (command, usage)


def test_a_missing_version_file_is_said_in_one_line(memoria):
    done = memoria("0.9.0").cli("migrate", "list", MEMORIA_VERSION_FILE="/nonexistent/version.toml")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: VersionFileError: /nonexistent/version.toml is missing")


def test_every_version_file_is_read(memoria):
    one = memoria("0.9.0")
    for path in sorted(VERSIONS.glob("*.toml")):
        script = "from memoria import version; print(version.current().version)"
        process = one.start("-c", script, MEMORIA_VERSION_FILE=str(path))
        assert process.wait() == 0, process.output()
        assert process.output().strip() == path.name.removesuffix(".toml")
