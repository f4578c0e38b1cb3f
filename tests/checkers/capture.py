#!/usr/bin/env python3
"""Writes everything of a database into one capture file, for identical.py and data_expected.py."""

import argparse
import time
from collections import Counter
from pathlib import Path

from checking import captures, outcome, postgres, sqlite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--psql", metavar="PREFIX", help="the psql command, local or by kubectl exec -i; no password in it")
    what.add_argument("--sqlite", metavar="FILE", type=Path, help="a SQLite file that nobody writes")
    what.add_argument("--summary", metavar="CAPTURE", type=Path, help="print what a capture holds, and nothing else")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the capture to write")
    parser.add_argument("--values", metavar="TABLE.COLUMN", action="append", default=[], help="keep this column's values, too")
    arguments = parser.parse_args()
    if arguments.summary:
        outcome.answer(summary(captures.read(arguments.summary)))
        return outcome.YES
    if arguments.out is None:
        parser.error("--out is missing")
    started = time.monotonic()
    if arguments.psql:
        counts = postgres.capture(arguments.psql, arguments.out, arguments.values)
    else:
        counts = sqlite.capture(arguments.sqlite, arguments.out, arguments.values)
    outcome.say(f"captured {counts['rows']} rows of {counts['tables']} tables in {time.monotonic() - started:.1f} s")
    outcome.answer({"out": str(arguments.out), **counts})
    return outcome.YES


def summary(capture: captures.Capture) -> dict:
    return {
        **{key: value for key, value in capture.header.items() if key != "format"},
        "objects": dict(sorted(Counter(kind for kind, _ in capture.objects).items())),
        "sequences": {name: state["next"] for name, state in sorted(capture.sequences.items())},
        "rows": {name: table.count() for name, table in sorted(capture.tables.items())},
    }


if __name__ == "__main__":
    outcome.finish(main)
