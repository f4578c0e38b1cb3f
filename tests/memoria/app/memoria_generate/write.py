"""Writes rows as fast as the database takes them: COPY on PostgreSQL, executemany on SQLite; one transaction."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Integer, Table, text

from memoria_generate.rows import Row

CHUNK_CHARACTERS = 256 * 1024
BATCH_ROWS = 1000
COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def write(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    columns = [column.name for column in table.columns]
    if connection.dialect.name == "postgresql":
        _copy(connection, table.name, columns, rows)
        _set_sequence(connection, table)
    else:
        _execute_many(connection, table.name, columns, rows)


def _copy(connection: Connection, table: str, columns: list[str], rows: Iterable[Row]) -> None:
    lines = ("\t".join(_copy_text(row[column]) for column in columns) + "\n" for row in rows)
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
    cursor = connection.connection.cursor()
    try:
        if connection.dialect.driver == "psycopg2":
            cursor.copy_expert(statement, _Reader(lines))
        else:
            with cursor.copy(statement) as copy:
                for chunk in _chunks(lines):
                    copy.write(chunk)
    finally:
        cursor.close()


def _copy_text(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, (dict, list)):
        value = _json(value)
    elif isinstance(value, datetime):
        value = value.isoformat(" ")
    return value.translate(COPY_ESCAPES) if isinstance(value, str) else repr(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _chunks(lines: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK_CHARACTERS:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


class _Reader:
    """What copy_expert reads from: the chunks, cut to the size that it asks for."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._chunks = _chunks(lines)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk.encode()
        size = len(self._rest) if size < 0 else size
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


def _set_sequence(connection: Connection, table: Table) -> None:
    key = next(iter(table.primary_key.columns))
    if isinstance(key.type, Integer):
        connection.execute(
            text(
                f"SELECT setval(pg_get_serial_sequence('{table.name}', '{key.name}'), "
                f"(SELECT max({key.name}) FROM {table.name}))"
            )
        )


def _execute_many(connection: Connection, table: str, columns: list[str], rows: Iterable[Row]) -> None:
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    cursor = connection.connection.cursor()
    remaining = iter(rows)
    while batch := [tuple(_sqlite_value(row[column]) for column in columns) for row in islice(remaining, BATCH_ROWS)]:
        cursor.executemany(statement, batch)
    cursor.close()


def _sqlite_value(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        return _json(value)
    if isinstance(value, datetime):
        # As SQLAlchemy stores it: always with microseconds.
        return value.isoformat(" ", "microseconds")
    return value
