"""The objects that migrations of Memoria add to a schema, written out by hand for each dialect."""

from typing import Any

from checking.captures import Capture
from checking.outcome import CannotAsk

Objects = dict[tuple[str, str], dict[str, Any]]


def schema_of(capture: Capture) -> str:
    """What stands before the tables' names: "public." on PostgreSQL, nothing on SQLite."""
    for name in capture.tables:
        if name.rpartition(".")[2] == "long_term_memory":
            return name.removesuffix("long_term_memory")
    raise CannotAsk("the capture holds no table long_term_memory; is it one of Memoria?")


def added(before: Capture, migrations: list[str]) -> Objects:
    schema = schema_of(before)
    make = _Postgres(before, schema) if before.dialect == "postgresql" else _Sqlite(before)
    objects: Objects = {}
    if "add_memory_provenance" in migrations and f"{schema}memory_provenance" not in before.tables:
        objects |= make.provenance()
    if "add_consent_scope" in migrations and ("column", f"{schema}long_term_memory.consent_scope") not in before.objects:
        objects |= make.consent()
    return objects


def service_metadata(before: Capture) -> Objects:
    """The table that a starting server makes when it is not there."""
    schema = schema_of(before)
    make = _Postgres(before, schema) if before.dialect == "postgresql" else _Sqlite(before)
    return make.table(
        "service_metadata", [("key", make.text, True, None), ("value", "text" if make.text != "VARCHAR" else "TEXT", True, None)], "key"
    )


def _columns_of_memories(before: Capture, schema: str) -> int:
    prefix = f"{schema}long_term_memory."
    return sum(kind == "column" and name.startswith(prefix) for kind, name in before.objects)


class _Postgres:
    text = "character varying"

    def __init__(self, before: Capture, schema: str) -> None:
        self._before, self._schema = before, schema
        self._memories = before.objects["table", f"{schema}long_term_memory"]
        self._owner = self._memories["owner"]

    def _relation(self, like: dict[str, Any], replica_identity: str) -> dict[str, Any]:
        # Only the owner's own grants: the kinds of privilege differ between majors of PostgreSQL.
        grants = [grant for grant in like["grants"] if grant.startswith(f"{self._owner} ")]
        return {
            "owner": self._owner, "grants": grants, "persistence": "p", "partitioned": False, "bound": None, "parents": None,
            "rowSecurity": "falsefalse", "replicaIdentity": replica_identity, "options": None, "query": None, "comment": None,
        }  # fmt: skip

    def _column(self, kind: str, required: bool, default: str | None, position: int) -> dict[str, Any]:
        storage = "x" if kind in (self.text, "text") else "p"
        return {
            "type": kind, "notNull": required, "default": default, "identity": "", "generated": "", "collation": None,
            "storage": storage, "options": None, "grants": [], "comment": None, "position": position,
        }  # fmt: skip

    def _index(self, name: str, rest: str, *, unique: bool = False) -> Objects:
        statement = f"CREATE {'UNIQUE ' if unique else ''}INDEX {name} ON {self._schema}{rest}"
        return {("index", f"{self._schema}{name}"): {"definition": statement, "valid": True, "clustered": False, "comment": None}}

    def _constraint(self, table: str, name: str, definition: str) -> Objects:
        return {("constraint", f"{self._schema}{table}.{name}"): {"definition": definition, "validated": True, "comment": None}}

    def table(self, name: str, columns: list[tuple[str, str, bool, str | None]], key: str) -> Objects:
        objects: Objects = {("table", f"{self._schema}{name}"): self._relation(self._memories, "d")}
        for position, (column, kind, required, default) in enumerate(columns, 1):
            objects["column", f"{self._schema}{name}.{column}"] = self._column(kind, required, default, position)
        objects |= self._constraint(name, f"{name}_pkey", f"PRIMARY KEY ({key})")
        return objects | self._index(f"{name}_pkey", f"{name} USING btree ({key})", unique=True)

    def provenance(self) -> Objects:
        table, schema = "memory_provenance", self._schema
        columns = [
            ("id", "integer", True, f"nextval('{schema}memory_provenance_id_seq'::regclass)"),
            ("memory_id", self.text, True, None),
            ("origin", self.text, True, None),
            ("origin_id", self.text, False, None),
            ("confidence", "double precision", True, "'1'::double precision"),
            ("recorded_at", "timestamp without time zone", True, None),
        ]
        like = self._before.objects["sequence", f"{schema}memory_access_events_id_seq"]
        return {
            **self.table(table, columns, "id"),
            ("sequence", f"{schema}memory_provenance_id_seq"): self._relation(like, "n"),
            **self._constraint(
                table,
                "fk_memory_provenance_memory_id_long_term_memory",
                f"FOREIGN KEY (memory_id) REFERENCES {schema}long_term_memory(memory_id) ON DELETE CASCADE",
            ),
            **self._constraint(table, "uq_memory_provenance_memory_id_origin", "UNIQUE (memory_id, origin)"),
            **self._index("uq_memory_provenance_memory_id_origin", f"{table} USING btree (memory_id, origin)", unique=True),
            **self._index("ix_memory_provenance_memory_id", f"{table} USING btree (memory_id)"),
        }

    def consent(self) -> Objects:
        last, memories = _columns_of_memories(self._before, self._schema), f"{self._schema}long_term_memory"
        return {
            ("column", f"{memories}.consent_scope"): self._column(self.text, True, "'workspace'::character varying", last + 1),
            ("column", f"{memories}.reviewed_at"): self._column("timestamp without time zone", False, None, last + 2),
            **self._index("ix_long_term_memory_consent_scope", "long_term_memory USING btree (consent_scope)"),
        }


class _Sqlite:
    text = "VARCHAR"

    def __init__(self, before: Capture) -> None:
        self._before = before

    @staticmethod
    def _index(table: str, name: str, columns: list[str], origin: str) -> Objects:
        definition = {"table": table, "columns": columns, "unique": origin != "c", "origin": origin, "partial": 0}
        return {("index", name): definition}

    def table(self, name: str, columns: list[tuple[str, str, bool, str | None]], key: str) -> Objects:
        objects: Objects = {("table", name): {}}
        for position, (column, kind, required, default) in enumerate(columns, 1):
            definition = {"type": kind, "notNull": required, "default": default, "key": int(column == key), "position": position}
            objects["column", f"{name}.{column}"] = definition
        kinds = {column: kind for column, kind, _, _ in columns}
        if kinds[key] != "INTEGER":
            objects |= self._index(name, f"sqlite_autoindex_{name}_1", [key], "pk")
        return objects

    def provenance(self) -> Objects:
        table = "memory_provenance"
        columns = [
            ("id", "INTEGER", True, None),
            ("memory_id", "VARCHAR", True, None),
            ("origin", "VARCHAR", True, None),
            ("origin_id", "VARCHAR", False, None),
            ("confidence", "FLOAT", True, "'1.0'"),
            ("recorded_at", "DATETIME", True, None),
        ]
        foreign = {"to": "long_term_memory.memory_id", "onUpdate": "NO ACTION", "onDelete": "CASCADE", "match": "NONE", "number": 0}
        return {
            **self.table(table, columns, "id"),
            ("foreign key", f"{table}.memory_id long_term_memory 0"): foreign,
            **self._index(table, "sqlite_autoindex_memory_provenance_1", ["memory_id", "origin"], "u"),
            **self._index(table, "ix_memory_provenance_memory_id", ["memory_id"], "c"),
        }

    def consent(self) -> Objects:
        last, memories = _columns_of_memories(self._before, ""), "long_term_memory"
        scope = {"type": "VARCHAR", "notNull": True, "default": "'workspace'", "key": 0, "position": last + 1}
        review = {"type": "DATETIME", "notNull": False, "default": None, "key": 0, "position": last + 2}
        return {
            ("column", f"{memories}.consent_scope"): scope,
            ("column", f"{memories}.reviewed_at"): review,
            **self._index(memories, "ix_long_term_memory_consent_scope", ["consent_scope"], "c"),
        }
