"""Reads a SQLite file into a capture. Storage class and value go into the hash: 1, '1' and 1.0 differ."""

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checking.captures import Writer, escape
from checking.outcome import CannotAsk
from checking.profile import retained

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)")


def capture(path: Path, out: Path, more_values: list[str]) -> dict[str, int]:
    if not path.is_file():
        raise CannotAsk(f"{path} is no file")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        # Text comes as bytes: a database may hold what is no UTF-8.
        connection.text_factory = bytes
        connection.execute("BEGIN")
        ((state,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if state != b"ok":
            raise CannotAsk(f"{path} is damaged: {state.decode(errors='replace')}")
        header = {"dialect": "sqlite", "takenAt": datetime.now(UTC).isoformat(timespec="seconds"), "file": path.name}
        writer = Writer(out, {**header, "serverVersion": sqlite3.sqlite_version})
        try:
            _all(connection, writer, more_values)
            return writer.finish()
        except BaseException:
            writer.abandon()
            raise
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise CannotAsk(f"{path} cannot be read: {error}") from error


def _all(connection: sqlite3.Connection, writer: Writer, more_values: list[str]) -> None:
    for pragma in ("user_version", "application_id", "encoding"):
        ((value,),) = connection.execute(f"PRAGMA {pragma}").fetchall()
        writer.object("pragma", pragma, {"value": _text(value)})
    master = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    tables = []
    for kind, name, _, sql in ((_text(a), _text(b), c, _text(d)) for a, b, c, d in master):
        if kind == "table" and not name.startswith("sqlite_"):
            tables.append(name)
            _table_objects(connection, writer, name, sql)
        elif kind in ("view", "trigger"):
            writer.object(kind, name, {"definition": sql})
    if any(_text(name) == "sqlite_sequence" for _, name, _, _ in master):
        for name, value in connection.execute("SELECT name, seq FROM sqlite_sequence ORDER BY name").fetchall():
            writer.sequence(_text(name), {"next": value + 1, "increment": 1, "ownedBy": None})
    for name in tables:
        _rows(connection, writer, name, more_values)


def _table_objects(connection: sqlite3.Connection, writer: Writer, table: str, sql: str) -> None:
    writer.object("table", table, {})
    # The statement itself shows CHECKs, AUTOINCREMENT and the like; ALTER TABLE edits it.
    writer.object("statement", table, {"sql": sql})
    for position, name, kind, required, default, key in _pragma(connection, "table_info", table):
        definition = {"type": kind, "notNull": bool(required), "default": default, "key": key, "position": position + 1}
        writer.object("column", f"{table}.{name}", definition)
    for number, place, target, source, to, on_update, on_delete, match in _pragma(connection, "foreign_key_list", table):
        definition = {"to": f"{target}.{to}", "onUpdate": on_update, "onDelete": on_delete, "match": match}
        writer.object("foreign key", f"{table}.{source} {target} {place}", definition | {"number": number})
    for _, name, unique, origin, partial in _pragma(connection, "index_list", table):
        columns = [column for _, _, column in _pragma(connection, "index_info", name)]
        writer.object("index", name, {"table": table, "columns": columns, "unique": bool(unique), "origin": origin, "partial": partial})


def _pragma(connection: sqlite3.Connection, pragma: str, name: str) -> list[tuple]:
    quoted = name.replace('"', '""')
    return [tuple(map(_text, row)) for row in connection.execute(f'PRAGMA {pragma}("{quoted}")')]


def _text(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _rows(connection: sqlite3.Connection, writer: Writer, table: str, more_values: list[str]) -> None:
    info = _pragma(connection, "table_info", table)
    columns = [row[1] for row in info]
    key = [row[1] for row in sorted((row for row in info if row[5]), key=lambda row: row[5])]
    kept = retained(table, more_values)
    values = [column for column in columns if column in kept and column not in key]
    hashed = sorted(column for column in columns if column not in key and column not in values)
    writer.table(table, key, hashed, values, _lines(connection, table, key, hashed, values))


def _lines(connection: sqlite3.Connection, table: str, key: list[str], hashed: list[str], values: list[str]) -> Iterator[bytes]:
    order = [*key, *hashed, *values]
    quoted = ['"' + name.replace('"', '""') + '"' for name in order]
    kinds = ", ".join(f"typeof({name})" for name in quoted)
    source = '"' + table.replace('"', '""') + '"'
    width, keys, hashes = len(order), len(key), len(key) + len(hashed)
    for row in connection.execute(f"SELECT {', '.join(quoted)}, {kinds} FROM {source}"):
        fields = [_plain(value, kind) for value, kind in zip(row[:width], row[width:], strict=True)]
        digest = hashlib.sha256()
        for kind, value in zip(row[width + keys : width + hashes], fields[keys:hashes], strict=True):
            content = b"" if value is None else value.encode("utf-8", "surrogateescape")
            # The length goes before the content, so that no two rows run together to the same bytes.
            digest.update(b"%s %d " % (kind, len(content)) + content)
        key_text = fields[0] if keys == 1 else repr(tuple(fields[:keys])) if keys else ""
        parts = [escape(key_text), digest.hexdigest().encode(), *map(escape, fields[hashes:])]
        yield b"\t".join(parts) + b"\n"


def _plain(value: Any, kind: bytes) -> str | None:
    if value is None:
        return None
    if kind == b"blob":
        return "x" + value.hex()
    if kind == b"text":
        text = _text(value)
        # In a key or a kept value '1' must not look like 1.
        return f"'{text}'" if NUMBER.fullmatch(text) else text
    return repr(value)
