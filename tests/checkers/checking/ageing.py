"""What starting servers of Memoria do to memories, recomputed: one number of starts must explain every row to the last bit."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

AGEING = ("short_term", "short-term")
Y_FACTOR, IMPORTANCE_FACTOR, IMPORTANCE_FLOOR = 0.97, 0.995, 0.05
SAMPLE = 500


@dataclass(frozen=True)
class Pair:
    """The values of one memory before and after."""

    key: bytes
    ageing: bool
    before: tuple[float | None, float | None, float | None]  # x, y, importance
    after: tuple[float | None, float | None, float | None]


def number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _y(value: float) -> float:
    return value * Y_FACTOR


def _importance(value: float) -> float:
    return max(IMPORTANCE_FLOOR, value * IMPORTANCE_FACTOR) if value > IMPORTANCE_FLOOR else value


def _repeated(step, value: float | None, times: int) -> float | None:
    for _ in range(times if value is not None else 0):
        value = step(value)
    return value


def aged(pair: Pair, starts: int) -> tuple[float | None, float | None]:
    """y and importance after so many starts."""
    times = starts if pair.ageing else 0
    return _repeated(_y, pair.before[1], times), _repeated(_importance, pair.before[2], times)


def shifted(pair: Pair, times: int) -> float | None:
    return _repeated(lambda value: value - 1.0, pair.before[0], times)


def _candidates(first, step, target, most: int) -> Iterator[int]:
    value = first
    for times in range(most + 1):
        if value == target:
            yield times
        value = step(value)


def starts(pairs: list[Pair], most: int) -> int | None:
    """The number of starts that explains most of the ageing memories; None when there is none that tells."""
    votes: Counter[int] = Counter()
    telling = (pair for pair in pairs if pair.ageing and (pair.before[1] or (pair.before[2] or 0) > IMPORTANCE_FLOOR))
    for pair, _ in zip(telling, range(SAMPLE), strict=False):
        y = set(_candidates(pair.before[1], _y, pair.after[1], most)) if pair.before[1] is not None else None
        importance = set(_candidates(pair.before[2], _importance, pair.after[2], most))
        votes.update(importance if y is None else importance & y)
        votes[0] += 0
    return _winner(votes)


def shifts(pairs: list[Pair], most: int) -> int | None:
    """How often x of every memory went down by one."""
    votes: Counter[int] = Counter()
    telling = (pair for pair in pairs if pair.before[0] is not None and pair.after[0] is not None)
    for pair, _ in zip(telling, range(SAMPLE), strict=False):
        votes.update(_candidates(pair.before[0], lambda value: value - 1.0, pair.after[0], most))
        votes[0] += 0
    return _winner(votes)


def _winner(votes: Counter[int]) -> int | None:
    # The smallest of equals: a value that rests at its floor fits every greater number, too.
    return min(votes, key=lambda times: (-votes[times], times)) if votes else None
