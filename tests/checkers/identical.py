#!/usr/bin/env python3
"""Are two captures the same: schema, rows, sequences, grants, owners and settings?"""

import argparse
from pathlib import Path

from checking import captures, differences, outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--ignore-sequences-forward", action="store_true", help="sequences of the second may be ahead")
    parser.add_argument("--ignore-schema", action="append", metavar="NAME", help=f"default: {differences.OPERATORS_SCHEMA}")
    arguments = parser.parse_args()
    first, second = captures.read(arguments.first), captures.read(arguments.second)
    if first.dialect != second.dialect:
        raise outcome.CannotAsk(f"one capture is of {first.dialect}, the other of {second.dialect}")
    scope = differences.Scope(arguments.ignore_schema or [differences.OPERATORS_SCHEMA])
    reasons = outcome.Reasons()
    counts = {
        "objects": differences.definitions(first.objects, second.objects, scope, reasons),
        "sequences": _sequences(first, second, scope, reasons, arguments.ignore_sequences_forward),
        **_rows(first, second, scope, reasons),
    }
    outcome.answer(
        {"identical": not reasons, "differences": reasons.lines(), "counts": counts, "ignored": scope.left_out()}
    )
    return outcome.NO if reasons else outcome.YES


def _sequences(first: captures.Capture, second: captures.Capture, scope, reasons, ahead: bool) -> int:
    for name in second.sequences:
        if name not in first.sequences and scope.holds("sequence", name):
            reasons.add("sequence", f"sequence {name}: not expected")
    return differences.sequences(first, second, scope, reasons, may_be_ahead=ahead)


def _rows(first: captures.Capture, second: captures.Capture, scope, reasons) -> dict[str, int]:
    tables = rows = 0
    for name in sorted({*first.tables, *second.tables}):
        if not scope.holds("table", name):
            continue
        if name not in first.tables or name not in second.tables:
            reasons.add("object", f"table {name}: its rows are only in the {'second' if name not in first.tables else 'first'} capture")
            continue
        tables, rows = tables + 1, rows + first.tables[name].count()
        differences.rows(first.tables[name], second.tables[name], reasons)
    return {"tables": tables, "rows": rows}


if __name__ == "__main__":
    outcome.finish(main)
