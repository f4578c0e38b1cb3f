"""The database checkers say "yes" to what is right and "no" to every seeded corruption."""

import gzip
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import unittest
from contextlib import redirect_stderr
from pathlib import Path

from checking import captures, differences, postgres, probe, sqlite, upgrade
from checking.outcome import Reasons
from tests import servers

ROWS = 1000
ALL_NEW = frozenset(upgrade.GROWING)
MIGRATIONS = ["add_memory_provenance", "add_consent_scope", "normalize_retention_types"]
# What an installation may have beside Memoria's own tables.
BESIDE = """
CREATE TABLE notes (body text, n int);
INSERT INTO notes VALUES ('a', 1), ('a', 1), (NULL, 2), ('', 3);
CREATE TYPE mood AS ENUM ('calm', 'loud');
CREATE TABLE places (town text, street text, mood mood, at timestamptz DEFAULT now(), PRIMARY KEY (town, street));
INSERT INTO places VALUES ('a, "b"', 'c', 'calm'), ('a', '"b", c', 'loud'), (E'tab\\there', E'line\\nand \\\\ back', NULL);
CREATE FUNCTION shout(text) RETURNS text LANGUAGE sql AS 'SELECT upper($1)';
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER quiet BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION nothing();
GRANT SELECT ON agents TO visitor; GRANT UPDATE (name) ON teams TO visitor; GRANT USAGE ON SEQUENCE clusters_id_seq TO visitor;
SELECT lo_from_bytea(4242, 'picture');
"""
DROPPED_KEY = "ALTER TABLE spatial_metadata DROP CONSTRAINT spatial_metadata_pkey; "
ONE_PLACE = "(SELECT min(memory_id) FROM spatial_metadata WHERE x IS NOT NULL AND y IS NOT NULL AND x <> y)"
# SQL of the owner, and what the reasons must name. Each must be found by both checkers.
CORRUPTIONS = {
    "a lost row": ("DELETE FROM cluster_members WHERE id = 2", "row public.cluster_members id=2: missing"),
    "a duplicated row where there is no key": ("INSERT INTO notes VALUES ('a', 1)", "table public.notes: 1 rows are there"),
    "a lost row where there is no key": ("DELETE FROM notes WHERE n = 2", "table public.notes: 1 rows are missing"),
    "a duplicated row whose key was dropped": (
        DROPPED_KEY + "INSERT INTO spatial_metadata SELECT * FROM spatial_metadata LIMIT 1",
        "constraint public.spatial_metadata.spatial_metadata_pkey: missing",
    ),
    "swapped columns": (f"UPDATE spatial_metadata SET x = y, y = x WHERE memory_id = {ONE_PLACE}", "row public.spatial_metadata"),
    "swapped rows": (
        "UPDATE cluster_members SET summary = (SELECT summary FROM cluster_members o WHERE o.id = 3 - cluster_members.id) WHERE id IN (1, 2)",
        "row public.cluster_members id=1: another column changed",
    ),
    "a value changed by one": ("UPDATE cluster_members SET chars = coalesce(chars, 0) + 1 WHERE id = 1", "row public.cluster_members id=1"),
    "a float changed in its last bit": (
        "UPDATE spatial_metadata SET z = nextafter FROM (SELECT memory_id, z * (1 + 2.3e-16) AS nextafter FROM spatial_metadata "
        "WHERE z > 0 ORDER BY 1 LIMIT 1) one WHERE one.memory_id = spatial_metadata.memory_id",
        "row public.spatial_metadata",
    ),
    "a value in a table beside": ("UPDATE places SET mood = 'loud' WHERE town = 'a, \"b\"'", "row public.places town, street="),
    "NULL instead of an empty text": ("UPDATE notes SET body = NULL WHERE body = ''", "table public.notes"),
    "an empty text instead of NULL": ("UPDATE places SET mood = NULL, street = '' WHERE mood IS NULL", "row public.places"),
    "a JSON null instead of NULL": (
        "UPDATE agents SET metadata = CASE WHEN metadata IS NULL THEN 'null'::json END WHERE agent_id = (SELECT min(agent_id) FROM agents)",
        "row public.agents",
    ),
    "a sequence set back": ("SELECT setval('memory_access_events_id_seq', 2)", "sequence public.memory_access_events_id_seq: gives 3"),
    "a sequence that counts down": ("ALTER SEQUENCE clusters_id_seq INCREMENT -1", "sequence public.clusters_id_seq: increment"),
    "a lost grant": ("REVOKE SELECT ON agents FROM visitor", "table public.agents: grants"),
    "a lost grant on a column": ("REVOKE UPDATE (name) ON teams FROM visitor", "column public.teams.name: grants"),
    "a lost grant on a sequence": ("REVOKE USAGE ON SEQUENCE clusters_id_seq FROM visitor", "sequence public.clusters_id_seq: grants"),
    "a dropped index": ("DROP INDEX ix_chat_history_timestamp", "index public.ix_chat_history_timestamp: missing"),
    "an index over something else": (
        "DROP INDEX ix_chat_history_timestamp; CREATE INDEX ix_chat_history_timestamp ON chat_history (model)",
        "index public.ix_chat_history_timestamp: definition",
    ),
    "a dropped foreign key": (
        "ALTER TABLE cluster_members DROP CONSTRAINT fk_cluster_members_cluster_id_clusters",
        "fk_cluster_members_cluster_id_clusters: missing",
    ),
    "a missing column": ("ALTER TABLE clusters DROP COLUMN weight", "column public.clusters.weight: missing"),
    "a column too many": ("ALTER TABLE clusters ADD COLUMN extra int", "column public.clusters.extra: not expected"),
    "a changed type": ("ALTER TABLE clusters ALTER COLUMN size TYPE bigint", "column public.clusters.size: type is bigint"),
    "a lost NOT NULL": ("ALTER TABLE clusters ALTER COLUMN summary DROP NOT NULL", "column public.clusters.summary: notNull is False"),
    "a lost default": ("ALTER TABLE places ALTER COLUMN at DROP DEFAULT", "column public.places.at: default is None"),
    "a dropped view": ("DROP VIEW active_memories", "view public.active_memories: missing"),
    "another view": (
        "CREATE OR REPLACE VIEW active_memories AS SELECT memory_id, namespace, category_primary, summary, importance_score, timestamp FROM long_term_memory",
        "view public.active_memories: query",
    ),
    "a lost table": ("DROP TABLE notes", "table public.notes: missing"),
    "a table too many": ("CREATE TABLE more (n int)", "table public.more: not expected"),
    "another function": ("CREATE OR REPLACE FUNCTION shout(text) RETURNS text LANGUAGE sql AS 'SELECT $1'", "function public.shout(text): definition"),
    "a disabled trigger": ("ALTER TABLE notes DISABLE TRIGGER quiet", "trigger public.notes.quiet: enabled"),
    "a label too many": ("ALTER TYPE mood ADD VALUE 'ever'", "type public.mood: labels"),
    "a forced row security": ("ALTER TABLE agents ENABLE ROW LEVEL SECURITY", "table public.agents: rowSecurity"),
    "a changed large object": ("DO $$ BEGIN PERFORM lo_put(4242, 0, 'P'); END $$", "row pg_largeobject oid=4242"),
    "a fence that was left": ("ALTER DATABASE {database} SET default_transaction_read_only = on", "database itself: settings"),
    "a connection limit that was left": ("ALTER DATABASE {database} CONNECTION LIMIT 0", "database itself: connectionLimit"),
}
NOTHING = "SET LOCAL work_mem = '8MB'"
ONE_MEMORY = "(SELECT min(memory_id) FROM long_term_memory WHERE {})"
AGEING = ONE_MEMORY.format("retention_type = 'short-term' AND y_coord <> 0 AND importance_score > 0.06")
OTHER = ONE_MEMORY.format("retention_type NOT LIKE '%-term'")
# What only the recomputation of an upgrade can find; on the upgraded database.
WRONG_UPGRADES = {
    "a new column is missing": ("ALTER TABLE long_term_memory DROP COLUMN reviewed_at", "column public.long_term_memory.reviewed_at: missing"),
    "a new column has another default": (
        "ALTER TABLE long_term_memory ALTER COLUMN consent_scope SET DEFAULT 'x'",
        "column public.long_term_memory.consent_scope: default",
    ),
    "a new index is missing": ("DROP INDEX ix_long_term_memory_consent_scope", "index public.ix_long_term_memory_consent_scope: missing"),
    "a new table is missing": ("DROP TABLE memory_provenance", "table public.memory_provenance: missing"),
    "a new table lacks its foreign key": (
        "ALTER TABLE memory_provenance DROP CONSTRAINT fk_memory_provenance_memory_id_long_term_memory",
        "fk_memory_provenance_memory_id_long_term_memory: missing",
    ),
    "a new sequence is behind": ("SELECT setval('memory_provenance_id_seq', 1)", "sequence public.memory_provenance_id_seq: gives 2 next, but"),
    "one value was not rewritten": (
        f"UPDATE long_term_memory SET retention_type = 'short_term' WHERE memory_id = {AGEING}",
        "retention_type is 'short_term', expected 'short-term'",
    ),
    "a value was rewritten that must not be": (
        f"UPDATE long_term_memory SET retention_type = 'long-term' WHERE memory_id = {OTHER}",
        "retention_type is 'long-term', expected",
    ),
    "a short-term memory was not rewritten": (
        "UPDATE short_term_memory SET retention_type = 'short_term' WHERE memory_id = (SELECT min(memory_id) FROM short_term_memory WHERE retention_type = 'short-term')",
        "row public.short_term_memory",
    ),
    "one memory aged once more": (f"UPDATE long_term_memory SET y_coord = y_coord * 0.97 WHERE memory_id = {AGEING}", "y_coord is"),
    "one importance is off by its last bit": (
        f"UPDATE long_term_memory SET importance_score = importance_score * (1 + 2.3e-16) WHERE memory_id = {AGEING}",
        "importance_score is",
    ),
    "one x went down twice": (
        f"UPDATE long_term_memory SET x_coord = x_coord - 1 WHERE memory_id = {ONE_MEMORY.format('x_coord IS NOT NULL')}",
        "x_coord is",
    ),
    "a memory aged that must not": (
        "UPDATE long_term_memory SET y_coord = y_coord * 0.97 WHERE memory_id = "
        + ONE_MEMORY.format("retention_type NOT LIKE 'short%' AND y_coord <> 0"),
        "y_coord is",
    ),
    "the date of the ageing is gone": ("DELETE FROM service_metadata WHERE key = 'last_decrement_date'", "last_decrement_date is None"),
    "a setting of the service changed": ("UPDATE service_metadata SET value = value || 'x' WHERE key LIKE 'setting-%'", "row public.service_metadata"),
    "a setting of the service appeared": ("INSERT INTO service_metadata VALUES ('more', 'x')", "key=more: not expected"),
    "another consent": (f"UPDATE long_term_memory SET consent_scope = 'global' WHERE memory_id = {AGEING}", "consent_scope is 'global'"),
    "a review that nobody made": (f"UPDATE long_term_memory SET reviewed_at = now() WHERE memory_id = {AGEING}", "reviewed_at is"),
    "a memory's text changed": (f"UPDATE long_term_memory SET summary = summary || ' ' WHERE memory_id = {AGEING}", "another column changed"),
    "a provenance is missing": ("DELETE FROM memory_provenance WHERE id = 2", "has 0 rows of memory_provenance"),
    "a provenance is wrong": ("UPDATE memory_provenance SET origin_id = 'x' WHERE id = 2", "row public.memory_provenance id=2: origin_id"),
    "a provenance too many": (
        "INSERT INTO memory_provenance (memory_id, origin, recorded_at) SELECT memory_id, 'other', now() FROM long_term_memory LIMIT 1",
        "origin is 'other'",
    ),
    "a read that no event tells of": (
        f"UPDATE long_term_memory SET access_count = coalesce(access_count, 0) + 1 WHERE memory_id = {AGEING}",
        "access_count is",
    ),
    "a read event that no memory tells of": (
        "INSERT INTO memory_access_events (memory_id, namespace, accessed_at, access_type) "
        f"SELECT {AGEING}, 'default', now(), 'read'",
        "access_count went from",
    ),
    "half of a new memory": ("DELETE FROM spatial_metadata WHERE memory_id = 'new-1'", "memory new-1: new, but without its place"),
    "a new row where none may be": ("INSERT INTO agents SELECT 'x', name, role, preferred_model, is_agent, metadata, created_at, updated_at FROM agents LIMIT 1", "agent_id=x: not expected"),
    "an acknowledged memory is missing": (NOTHING, "memory never-stored: was acknowledged and is not there"),
}  # fmt: skip


class OnPostgres(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = servers.Postgres()
        cls.addClassCleanup(cls.server.stop)
        cls.directory = Path(tempfile.mkdtemp(prefix="checkers-"))
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        cls.old = cls.server.create()
        servers.generate(cls.server.url(cls.old), ROWS)
        cls.server.sql(BESIDE, cls.old)
        cls.before = cls.capture(cls.old)
        cls.new = cls.server.create(cls.old)
        servers.migrate(cls.server.url(cls.new))
        servers.start(cls.server.url(cls.new), 2)
        cls.known = cls.server.sql("SELECT max(memory_id) FROM long_term_memory", cls.old)
        servers.post(cls.server.url(cls.new), "new-1", "new-2", "new-1", cls.known)
        cls.after = cls.capture(cls.new)

    @classmethod
    def capture(cls, database: str, **options: str) -> captures.Capture:
        path = cls.directory / f"{database}{'.corrupted' if options else ''}.capture"
        postgres.capture(cls.server.prefix(database), path, [], **options)
        return captures.read(path)

    def corrupted(self, database: str, sql: str) -> captures.Capture:
        if "setval" not in sql:
            # Within the capture's own transaction, which is rolled back: much faster than a copy.
            return self.capture(database, begin=f"BEGIN; {sql.replace('{database}', database)};")
        copy = self.server.create(database)
        self.server.sql(sql, copy)
        return self.capture(copy)

    def compare(self, before: captures.Capture, after: captures.Capture) -> list[str]:
        """As identical.py does, without its process."""
        import identical

        scope, reasons = differences.Scope([differences.OPERATORS_SCHEMA]), Reasons()
        differences.definitions(before.objects, after.objects, scope, reasons)
        identical._sequences(before, after, scope, reasons, False)
        identical._rows(before, after, scope, reasons)
        return reasons.lines()

    def upgraded(self, after: captures.Capture, before: captures.Capture | None = None, **ask) -> upgrade.Check:
        ask = {"migrations": MIGRATIONS, "growing": ALL_NEW, **ask}
        check = upgrade.Check(before or self.before, after, upgrade.Question(**ask))
        check.run()
        return check

    def assert_found(self, line: str, lines: list[str]) -> None:
        self.assertTrue(any(line in found for found in lines), f"{line!r} is not among {lines}")

    def test_every_corruption_makes_two_captures_different(self) -> None:
        for what, (sql, line) in CORRUPTIONS.items():
            with self.subTest(what):
                self.assert_found(line, self.compare(self.before, self.corrupted(self.old, sql)))

    def test_every_corruption_makes_an_upgrade_wrong(self) -> None:
        # The same corruption, in the upgraded database. Nobody has changed rows that clients may not add to.
        for what, (sql, line) in CORRUPTIONS.items():
            with self.subTest(what):
                self.assert_found(line, self.upgraded(self.corrupted(self.new, sql)).reasons.lines())

    def test_every_wrong_upgrade_is_found(self) -> None:
        for what, (sql, line) in WRONG_UPGRADES.items():
            with self.subTest(what):
                check = self.upgraded(self.corrupted(self.new, sql), must_hold=["new-1", "never-stored"] if sql == NOTHING else [])
                self.assert_found(line, check.reasons.lines())
                # One seeded fault must not hide under many false ones.
                self.assertLessEqual(len(check.reasons.lines()), 14, check.reasons.lines())

    def test_the_right_upgrade_is_right(self) -> None:
        check = self.upgraded(self.after, must_hold=["new-1", "new-2", self.known])
        self.assertEqual(check.reasons.lines(), [])
        self.assertEqual(check.starts, 2)
        self.assertEqual(check.new_rows, {"chat_history": 2, "long_term_memory": 2, "memory_access_events": 4, "spatial_metadata": 2})
        self.assertEqual(check.rows, sum(table.count() for table in self.before.tables.values()))

    def test_new_rows_need_leave_and_starts_their_number(self) -> None:
        self.assert_found("memory_id=new-1: not expected", self.upgraded(self.after, growing=frozenset()).reasons.lines())
        self.assert_found("servers started 2 times, expected at least 3", self.upgraded(self.after, least_starts=3).reasons.lines())
        self.assertTrue(self.upgraded(self.after, most_starts=1).reasons)
        self.assert_found("memory_provenance: not expected", self.upgraded(self.after, migrations=[]).reasons.lines())

    def test_an_upgrade_that_did_not_happen_is_wrong(self) -> None:
        self.assert_found("table public.memory_provenance: missing", self.upgraded(self.before).reasons.lines())

    def test_after_a_rollback_servers_of_the_old_version_have_started(self) -> None:
        copy = self.server.create(self.old)
        servers.start(self.server.url(copy), 3, tag="0.9.0")
        servers.post(self.server.url(copy), "late", tag="0.9.0")
        check = self.upgraded(self.capture(copy), migrations=[], must_hold=["late"])
        self.assertEqual((check.reasons.lines(), check.starts), ([], 3))
        self.assertNotEqual(self.compare(self.before, self.capture(copy)), [])

    def test_a_dump_and_its_restore_are_identical(self) -> None:
        restored = self.server.create()
        admin = ["-h", str(self.server.directory), "-p", str(self.server.port), "-U", "postgres"]
        with tempfile.TemporaryFile() as dump:
            subprocess.run([servers.programs() / "pg_dump", *admin, "-Fc", self.old], check=True, stdout=dump)
            dump.seek(0)
            subprocess.run([servers.programs() / "pg_restore", *admin, "-d", restored], check=True, stdin=dump)
        self.assertEqual(self.compare(self.before, self.capture(restored)), [])

    def test_settings_of_the_role_do_not_change_a_capture(self) -> None:
        copy = self.server.create(self.old)
        for setting in ("timezone = 'Asia/Tokyo'", "extra_float_digits = -10", "datestyle = 'German'", "bytea_output = 'escape'", "search_path = 'pg_temp'"):
            self.server.sql(f"ALTER ROLE {servers.OWNER} IN DATABASE {copy} SET {setting}", copy)
        found = self.compare(self.before, self.capture(copy))
        self.assertEqual(len(found), 1, found)
        self.assertIn("database itself: settings", found[0])

    def test_the_operators_own_schema_is_left_out_and_named(self) -> None:
        after = self.corrupted(self.old, "CREATE SCHEMA memoria_operator; CREATE TABLE memoria_operator.step (n int PRIMARY KEY)")
        self.assertEqual(self.compare(self.before, after), [])
        everything, reasons = differences.Scope([""]), Reasons()
        differences.definitions(self.before.objects, after.objects, everything, reasons)
        self.assert_found("schema memoria_operator: not expected", reasons.lines())

    def test_the_next_insert_is_tried_and_leaves_no_row(self) -> None:
        copy, reasons = self.server.create(self.new), Reasons()
        found = probe.probe(self.server.prefix(copy), [], reasons)
        self.assertEqual((reasons.lines(), len(found), set(found.values())), ([], 9, {"inserted"}))
        counts = {name: table.count() for name, table in self.capture(copy).tables.items()}
        self.assertEqual(counts, {name: table.count() for name, table in self.after.tables.items()})
        self.server.sql("SELECT setval('cluster_members_id_seq', 1, false)", copy)
        probe.probe(self.server.prefix(copy), [], reasons)
        self.assert_found("table public.cluster_members: the next insert is refused: duplicate key", reasons.lines())

    def test_the_programs_answer_by_exit_code_and_json(self) -> None:
        old, new = self.directory / f"{self.old}.capture", self.directory / f"{self.new}.capture"
        torn, ahead = self.directory / "torn", self.directory / "ahead"
        torn.write_bytes(gzip.compress(gzip.decompress(old.read_bytes())[:-40]))
        postgres.capture(self.server.prefix(self._ahead()), ahead, [])
        self.assertEqual(self.program("identical.py", old, old)[0], 0)
        code, result = self.program("identical.py", old, new)
        self.assertEqual((code, result["identical"]), (1, False))
        self.assertEqual(self.program("identical.py", old, torn)[0], 2)
        self.assertEqual(self.program("identical.py", old, ahead)[0], 1)
        self.assertEqual(self.program("identical.py", old, ahead, "--ignore-sequences-forward")[0], 0)
        self.assertEqual(self.program("identical.py", ahead, old, "--ignore-sequences-forward")[0], 1)
        versions = ("--from", "0.9.0", "--to", "1.0.0")
        code, result = self.program("data_expected.py", old, new, *versions, "--allow-new-rows", "--server-starts", "2", "--probe-insert", "--psql", self.server.prefix(self.new))
        self.assertEqual((code, result["reasons"]), (0, []))
        self.assertEqual(self.program("data_expected.py", old, new, *versions)[0], 1)
        self.assertEqual(self.program("data_expected.py", old, new, "--from", "0.9.0", "--to", "7.0.0")[0], 2)
        code, _ = self.program("capture.py", "--psql", "psql postgresql://memoria:secret@localhost/x", "--out", self.directory / "x")
        self.assertEqual((code, (self.directory / "x").exists()), (2, False))
        code, _ = self.program("capture.py", "--psql", self.server.prefix("nowhere"), "--out", self.directory / "x")
        self.assertEqual((code, (self.directory / "x").exists()), (2, False))

    def _ahead(self) -> str:
        copy = self.server.create(self.old)
        self.server.sql("SELECT nextval('clusters_id_seq')", copy)
        return copy

    def program(self, name: str, *arguments: object) -> tuple[int, dict]:
        command = [sys.executable, servers.CHECKERS / name, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, json.loads(done.stdout or "{}")


class OnSqlite(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = Path(tempfile.mkdtemp(prefix="checkers-"))
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        cls.old, cls.new = cls.directory / "old.db", cls.directory / "new.db"
        servers.generate(f"sqlite:///{cls.old}", 400)
        shutil.copy(cls.old, cls.new)
        servers.migrate(f"sqlite:///{cls.new}")
        servers.start(f"sqlite:///{cls.new}", 2)
        servers.post(f"sqlite:///{cls.new}", "new-1")

    def captured(self, database: Path, sql: str = "SELECT 1") -> captures.Capture:
        copy, out = self.directory / "copy.db", self.directory / "capture"
        shutil.copy(database, copy)
        connection = sqlite3.connect(copy)
        connection.executescript(sql)
        connection.close()
        sqlite.capture(copy, out, [])
        return captures.read(out)

    def reasons(self, sql: str = "SELECT 1") -> list[str]:
        check = upgrade.Check(self.captured(self.old), self.captured(self.new, sql), upgrade.Question(MIGRATIONS, growing=ALL_NEW))
        check.run()
        return check.reasons.lines()

    def test_the_right_upgrade_is_right(self) -> None:
        self.assertEqual(self.reasons(), [])

    def test_corruptions_are_found(self) -> None:
        for sql, line in {
            "DELETE FROM cluster_members WHERE id = 2": "row cluster_members id=2: missing",
            "UPDATE cluster_members SET chars = CAST(chars AS TEXT) || '.5' WHERE id = 1": "row cluster_members id=1",
            "UPDATE clusters SET weight = NULL WHERE id = 1; UPDATE clusters SET weight = '' WHERE id = 1": "row clusters id=1",
            "DROP INDEX ix_long_term_memory_consent_scope": "index ix_long_term_memory_consent_scope: missing",
            "DROP TABLE memory_provenance": "table memory_provenance: missing",
            "ALTER TABLE agents ADD COLUMN extra": "column agents.extra: not expected",
            "UPDATE sqlite_sequence SET seq = 1 WHERE name = 'memory_access_events'": "sequence memory_access_events: gives 2",
            "UPDATE long_term_memory SET y_coord = y_coord + 1 WHERE rowid = 3": "y_coord",
        }.items():
            with self.subTest(sql):
                found = self.reasons(sql)
                self.assertTrue(any(line in one for one in found), found)

    def test_a_storage_class_counts(self) -> None:
        first, second = (self.captured(self.old, f"CREATE TABLE t (a); INSERT INTO t VALUES ({value})") for value in ("1", "'1'"))
        reasons = Reasons()
        differences.rows(first.tables["t"], second.tables["t"], reasons)
        self.assertEqual(len(reasons.lines()), 2)


if __name__ == "__main__":
    with redirect_stderr(io.StringIO()):
        unittest.main()
