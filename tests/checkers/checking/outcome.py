"""How a checker ends: one JSON object on standard output, an exit code, and no traceback for what a user can mend."""

import json
import sys
from collections.abc import Callable
from typing import Any

YES, NO, NOT_ASKED, INCOMPLETE = 0, 1, 2, 3


class CannotAsk(Exception):
    """The question could not be asked; the message says why and what to do."""


def finish(main: Callable[[], int]) -> None:
    try:
        code = main()
    except CannotAsk as error:
        say(str(error))
        code = NOT_ASKED
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # noqa: BLE001 - a checker that fails must not look like one that answers "no"
        import traceback

        traceback.print_exc()
        say(f"the checker itself failed: {type(error).__name__}")
        code = NOT_ASKED
    sys.exit(code)


def answer(result: dict[str, Any]) -> None:
    json.dump(result, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Reasons:
    """Reasons for a "no", at most `limit` of a kind; all are counted."""

    def __init__(self, limit: int = 20) -> None:
        self._limit = limit
        self._lines: list[str] = []
        self._counts: dict[str, int] = {}

    def add(self, kind: str, line: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= self._limit:
            self._lines.append(line)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def lines(self) -> list[str]:
        more = [f"{kind}: {count - self._limit} more" for kind, count in self._counts.items() if count > self._limit]
        return self._lines + more
