"""Reads a PostgreSQL database (11 or later) into a capture: one read-only transaction, rows hashed by the server."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checking import catalogue
from checking.captures import Writer
from checking.profile import retained
from checking.psql import Session

# All that changes how a value is printed, and what a role's or a database's own settings might break.
PINNED = {
    "search_path": "''",
    "TimeZone": "'UTC'",
    "DateStyle": "'ISO, YMD'",
    "IntervalStyle": "'postgres'",
    "extra_float_digits": "1",
    "bytea_output": "'hex'",
    "lc_monetary": "'C'",
    "client_encoding": "'UTF8'",
    "quote_all_identifiers": "off",
    "row_security": "off",
    "statement_timeout": "0",
    "lock_timeout": "'60s'",
}
BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"


def capture(prefix: str, out: Path, more_values: list[str], *, begin: str = BEGIN) -> dict[str, int]:
    """`begin` opens the transaction, which is rolled back in the end; the checkers' own tests seed corruptions in it."""
    with Session(prefix) as session:
        session.run(f"{begin} {''.join(f'SET LOCAL {name} = {value};' for name, value in PINNED.items())}")
        header = {"dialect": "postgresql", "takenAt": datetime.now(UTC).isoformat(timespec="seconds")}
        writer = Writer(out, {**header, **_one(session, catalogue.IDENTITY)})
        try:
            for query in catalogue.OBJECTS:
                for entry in _many(session, query):
                    writer.object(entry["kind"], entry["name"], entry["definition"])
            for name in _many(session, catalogue.SEQUENCES):
                state = _one(session, catalogue.SEQUENCE.format(name=name))
                writer.sequence(name, state)
            for table in _many(session, catalogue.TABLES):
                _rows(session, writer, table, more_values)
            writer.table("pg_largeobject", ["oid"], ["data"], [], session.lines(catalogue.LARGE_OBJECTS))
            session.run("ROLLBACK;")
            return writer.finish()
        except BaseException:
            writer.abandon()
            raise


def _many(session: Session, sql: str) -> Iterator[Any]:
    # All of it before the caller asks the session for something else.
    return iter([json.loads(line) for line in session.lines(f"{sql.strip()};")])


def _one(session: Session, sql: str) -> Any:
    (value,) = _many(session, sql)
    return value


def _rows(session: Session, writer: Writer, table: dict[str, Any], more_values: list[str]) -> None:
    quoted = dict(zip(table["columns"], table["quoted"], strict=True))
    key = table["key"]
    kept = retained(table["table"], more_values)
    values = [column for column in table["columns"] if column in kept and column not in key]
    # By name, so that the order of the columns does not change the hash; it is compared with the schema.
    hashed = sorted(column for column in table["columns"] if column not in key and column not in values)
    # The text of a record tells NULL from '' and quotes its fields, so no two rows share one.
    row = "ROW(" + ", ".join(quoted[column] for column in hashed) + ")::text"
    if len(key) == 1:
        key_sql = f"{quoted[key[0]]}::text"
    elif key:
        key_sql = "ROW(" + ", ".join(quoted[column] for column in key) + ")::text"
    else:
        key_sql = "''"
    selected = [key_sql, f"encode(sha256(convert_to({row}, 'UTF8')), 'hex')", *(f"{quoted[column]}::text" for column in values)]
    sql = f"COPY (SELECT {', '.join(selected)} FROM ONLY {table['name']}) TO STDOUT;"
    writer.table(table["name"], key, hashed, values, session.lines(sql))
