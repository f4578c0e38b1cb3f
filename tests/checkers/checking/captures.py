"""The capture file: how it is written as a stream, and how it is read back.

Gzipped text. The first line is the header, then one JSON object a line for each object and sequence; for each table a
line that describes it, its rows as PostgreSQL's COPY text format has them (key, hash, values), a line `\\.` and the
count; at last the counts of everything, without which the file is taken for a torn one.
"""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from checking.outcome import CannotAsk

FORMAT = "memoria-capture/1"
END_OF_ROWS = b"\\.\n"
ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class Writer:
    """Writes beside the path and renames at the end, so that no capture exists half."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path, self._building = path, path.with_name(path.name + ".part")
        # It holds data of the database: nobody else is to read it.
        descriptor = os.open(self._building, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._raw: BinaryIO = os.fdopen(descriptor, "wb")
        self._file = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=self._raw, mtime=0)
        self._counts = Counter()
        self._line({"format": FORMAT, **header})

    def _line(self, value: Any) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False, sort_keys=True).encode() + b"\n")

    def object(self, kind: str, name: str, definition: dict[str, Any]) -> None:
        self._counts["objects"] += 1
        self._line({"object": [kind, name, definition]})

    def sequence(self, name: str, state: dict[str, Any]) -> None:
        self._counts["sequences"] += 1
        self._line({"sequence": [name, state]})

    def table(self, name: str, key: list[str], hashed: list[str], values: list[str], rows: Iterable[bytes]) -> None:
        self._line({"table": {"name": name, "key": key, "hashed": hashed, "values": values}})
        count = 0
        for row in rows:
            self._file.write(row)
            count += 1
        self._file.write(END_OF_ROWS)
        self._line({"rows": count})
        self._counts["tables"] += 1
        self._counts["rows"] += count

    def finish(self) -> dict[str, int]:
        counts = {name: self._counts[name] for name in ("objects", "sequences", "tables", "rows")}
        self._line({"end": counts})
        self._file.close()
        self._raw.close()
        self._building.rename(self._path)
        return counts

    def abandon(self) -> None:
        self._raw.close()
        self._building.unlink(missing_ok=True)


@dataclass
class Table:
    name: str
    key: list[str]
    hashed: list[str]
    values: list[str]
    # The key's text → the rest of the row's line. Empty where the table has no key.
    rows: dict[bytes, bytes] = field(default_factory=dict)
    # Without a key: the row's line → how often it is there. With a key: lines whose key was there already.
    unkeyed: Counter = field(default_factory=Counter)

    def count(self) -> int:
        return len(self.rows) + self.unkeyed.total()

    def columns(self) -> set[str]:
        return {*self.key, *self.hashed, *self.values}

    def label(self, key: bytes) -> str:
        return f"row {self.name} {', '.join(self.key)}={unescape(key)}"


@dataclass
class Capture:
    header: dict[str, Any]
    objects: dict[tuple[str, str], dict[str, Any]]
    sequences: dict[str, dict[str, Any]]
    tables: dict[str, Table]

    @property
    def dialect(self) -> str:
        return self.header["dialect"]


def unescape(text: bytes) -> str | None:
    """One field of COPY's text format."""
    if text == b"\\N":
        return None
    decoded = text.decode()
    if "\\" not in decoded:
        return decoded
    out, characters = [], iter(decoded)
    for character in characters:
        if character == "\\":
            character = next(characters)
            character = ESCAPES.get(character, character)
        out.append(character)
    return "".join(out)


def escape(text: str | None) -> bytes:
    """The reverse, for readers of databases that have no COPY."""
    if text is None:
        return b"\\N"
    escaped = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return escaped.encode("utf-8", "surrogateescape")


def split(table: Table, rest: bytes) -> tuple[bytes, dict[str, str | None]]:
    """What stands behind the key: the hash, and the values by column."""
    digest, *values = rest.rstrip(b"\n").split(b"\t")
    return digest, dict(zip(table.values, map(unescape, values), strict=True))


def read(path: Path) -> Capture:
    try:
        with gzip.open(path, "rb") as file:
            return _read(file)
    except (OSError, EOFError, ValueError, KeyError, StopIteration) as error:
        raise CannotAsk(f"{path} is no whole capture ({error or type(error).__name__}); make it again with capture.py") from error


def _read(file: Any) -> Capture:
    header = json.loads(next(file))
    if header.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    capture, counts = Capture(header, {}, {}, {}), Counter()
    for line in file:
        entry = json.loads(line)
        if "object" in entry:
            kind, name, definition = entry["object"]
            capture.objects[kind, name] = definition
            counts["objects"] += 1
        elif "sequence" in entry:
            name, state = entry["sequence"]
            capture.sequences[name] = state
            counts["sequences"] += 1
        elif "table" in entry:
            table = _read_rows(Table(**entry["table"]), file)
            capture.tables[table.name] = table
            counts["tables"] += 1
            counts["rows"] += table.count()
        elif "end" in entry:
            if {name: counts[name] for name in entry["end"]} != entry["end"]:
                raise ValueError("the counts at its end do not fit")
            return capture
    raise ValueError("its end is missing")


def _read_rows(table: Table, file: Any) -> Table:
    for line in file:
        if line == END_OF_ROWS:
            break
        key, _, rest = line.partition(b"\t")
        if not table.key:
            table.unkeyed[line] += 1
        elif key in table.rows:
            table.unkeyed[line] += 1
        else:
            table.rows[key] = rest
    if json.loads(next(file))["rows"] != table.count():
        raise ValueError(f"rows of {table.name} are missing")
    return table
