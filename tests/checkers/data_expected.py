#!/usr/bin/env python3
"""Is AFTER exactly what an upgrade of Memoria must make of BEFORE?"""

import argparse
from pathlib import Path

from checking import captures, differences, outcome, probe, upgrade, versions

VERSIONS = Path(__file__).resolve().parents[1] / "memoria" / "versions"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--from", dest="old", required=True, metavar="TAG")
    parser.add_argument("--to", dest="new", required=True, metavar="TAG")
    parser.add_argument("--versions", type=Path, default=VERSIONS, metavar="DIR")
    parser.add_argument("--migrations", metavar="A,B", help="exactly these ran")
    parser.add_argument("--server-starts", type=_starts, default=(0, 64), metavar="N|MIN..MAX")
    parser.add_argument("--allow-new-rows", nargs="?", const=",".join(upgrade.GROWING), default="", metavar="TABLE,…")
    parser.add_argument("--must-hold", type=Path, metavar="FILE", help="acknowledged memory ids, one a line")
    parser.add_argument("--probe-insert", action="store_true", help="needs --psql")
    parser.add_argument("--psql", metavar="PREFIX")
    parser.add_argument("--ignore-schema", action="append", metavar="NAME", help=f"default: {differences.OPERATORS_SCHEMA}")
    arguments = parser.parse_args()
    if arguments.probe_insert and not arguments.psql:
        parser.error("--probe-insert needs --psql")
    ignored = arguments.ignore_schema or [differences.OPERATORS_SCHEMA]
    question = upgrade.Question(
        _migrations(arguments),
        *arguments.server_starts,
        growing=frozenset(filter(None, arguments.allow_new_rows.split(","))),
        must_hold=_lines(arguments.must_hold),
        ignored_schemas=ignored,
    )
    before, after = captures.read(arguments.before), captures.read(arguments.after)
    if before.dialect != after.dialect:
        raise outcome.CannotAsk(f"one capture is of {before.dialect}, the other of {after.dialect}")
    check = upgrade.Check(before, after, question)
    check.run()
    result = {"migrations": question.migrations, "serverStarts": check.starts}
    if arguments.probe_insert:
        result["inserts"] = probe.probe(arguments.psql, ignored, check.reasons)
    outcome.answer(
        {
            "asExpected": not check.reasons,
            "reasons": check.reasons.lines(),
            **result,
            "counts": {"tables": len(before.tables), "rows": check.rows, "rowsAfter": sum(t.count() for t in after.tables.values())},
            "newRows": check.new_rows,
            "acknowledged": len(question.must_hold),
            "notes": check.notes,
            "ignored": check.left_out(),
        }
    )
    return outcome.NO if check.reasons else outcome.YES


def _migrations(arguments: argparse.Namespace) -> list[str]:
    if arguments.migrations is not None:
        return versions.known([name for name in arguments.migrations.split(",") if name])
    return versions.migrations_between(arguments.versions, arguments.old, arguments.new)


def _starts(text: str) -> tuple[int, int]:
    least, dots, most = text.partition("..")
    return int(least), int(most if dots else least)


def _lines(path: Path | None) -> list[str]:
    try:
        return [] if path is None else [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise outcome.CannotAsk(f"{path} cannot be read: {error}") from error


if __name__ == "__main__":
    outcome.finish(main)
