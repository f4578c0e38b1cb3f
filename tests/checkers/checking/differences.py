"""Compares what two captures hold, apart from what an upgrade may change."""

from checking.captures import Capture, Table, split
from checking.outcome import Reasons

# What the operator keeps in the database for itself.
OPERATORS_SCHEMA = "memoria_operator"


class Scope:
    """Which schemas are compared; remembers what was left out."""

    def __init__(self, ignored_schemas: list[str]) -> None:
        self._ignored = {schema for schema in ignored_schemas if schema}
        self._left_out: set[str] = set()

    def holds(self, kind: str, name: str) -> bool:
        schema = name if kind == "schema" else name.partition(".")[0]
        if schema not in self._ignored or kind in ("role", "database", "extension", "pragma"):
            return True
        self._left_out.add(f"{kind} {name}")
        return False

    def left_out(self) -> list[str]:
        return sorted(self._left_out)


def definitions(expected: dict, found: dict, scope: Scope, reasons: Reasons) -> int:
    """Compares objects by kind and name; gives how many were compared."""
    compared = 0
    for kind, name in sorted({*expected, *found}):
        if not scope.holds(kind, name):
            continue
        compared += 1
        left, right = expected.get((kind, name)), found.get((kind, name))
        if right is None:
            reasons.add("object", f"{kind} {name}: missing")
        elif left is None:
            reasons.add("object", f"{kind} {name}: not expected")
        else:
            for part in sorted({*left, *right}):
                if left.get(part) != right.get(part):
                    reasons.add("object", f"{kind} {name}: {part} is {_short(right.get(part))}, expected {_short(left.get(part))}")
    return compared


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "…"


def sequences(before: Capture, after: Capture, scope: Scope, reasons: Reasons, *, may_be_ahead: bool) -> int:
    compared = 0
    for name, left in sorted(before.sequences.items()):
        if not scope.holds("sequence", name):
            continue
        compared += 1
        right = after.sequences.get(name)
        if right is None:
            reasons.add("sequence", f"sequence {name}: missing")
            continue
        for part in sorted({*left, *right} - {"next"}):
            if left.get(part) != right.get(part):
                reasons.add("sequence", f"sequence {name}: {part} is {right.get(part)}, expected {left.get(part)}")
        ahead = (right["next"] - left["next"]) * (1 if left["increment"] > 0 else -1)
        if ahead < 0 or (ahead > 0 and not may_be_ahead):
            reasons.add("sequence", f"sequence {name}: gives {right['next']} next, expected {left['next']}")
    return compared


def rows(before: Table, after: Table, reasons: Reasons) -> None:
    """Every row the same, none more and none less."""
    if not comparable(before, after, reasons):
        return
    for key, rest in before.rows.items():
        other = after.rows.get(key)
        if other is None:
            reasons.add(f"lost row of {before.name}", f"{before.label(key)}: missing")
        elif other != rest:
            reasons.add(f"different row of {before.name}", f"{before.label(key)}: {what_differs(before, rest, after, other)}")
    for key in after.rows:
        if key not in before.rows:
            reasons.add(f"new row of {after.name}", f"{after.label(key)}: not expected")
    unkeyed(before, after, reasons)


def unkeyed(before: Table, after: Table, reasons: Reasons) -> None:
    """Rows of a table without a key, and rows whose key is there twice."""
    lost, more = (before.unkeyed - after.unkeyed).total(), (after.unkeyed - before.unkeyed).total()
    if lost:
        reasons.add(f"lost row of {before.name}", f"table {before.name}: {lost} rows are missing")
    if more:
        reasons.add(f"new row of {after.name}", f"table {after.name}: {more} rows are there that were not, or are there twice")


def comparable(before: Table, after: Table, reasons: Reasons) -> bool:
    """Hashes over different columns say nothing."""
    if before.key == after.key and before.hashed == after.hashed:
        return True
    changed = sorted(before.columns() ^ after.columns())
    why = f"columns {', '.join(changed)}" if changed else f"key {before.key} and {after.key}"
    reasons.add("columns", f"table {before.name}: its rows cannot be compared, they differ in {why}")
    return False


def what_differs(before: Table, rest: bytes, after: Table, other: bytes) -> str:
    left_hash, left = split(before, rest)
    right_hash, right = split(after, other)
    parts = [column for column in {**left, **right} if left.get(column) != right.get(column)]
    if left_hash != right_hash:
        parts.append("another column")
    return f"{', '.join(parts)} changed"
