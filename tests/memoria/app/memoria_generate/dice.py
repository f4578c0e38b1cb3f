"""Seeded choices that every Python version makes alike: only Random.random() is used, whose sequence is guaranteed."""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

EPOCH = datetime(2025, 1, 1)
SPAN_SECONDS = 300 * 24 * 3600

# Written so that careless quoting, trimming, re-encoding or CSV handling shows.
FRAGMENTS = (
    "The quick brown fox jumps over the lazy dog",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "دَرَجَةُ الحَرارةِ اليومَ مُرتفِعةٌ",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "我能吞下玻璃而不伤身体",
    "いろはにほへと ちりぬるを",
    "키스의 고유조건은 입술끼리 만나야 한다",
    "ⵜⴰⵎⴰⵣⵉⵖⵜ ⴷ ⵜⵓⵜⵍⴰⵢⵜ",
    "🦊🇮🇹 👩‍👩‍👧‍👦 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "e\u0301 is not \u00e9, nor is \ufb01 fi",
    "it's \"quoted\", 100 % of C:\\temp\\new, and\ta tab",
    "line one\nline two\r\nline three\n\\.\nstill here",
    "\u202bright to left\u202c and a zero\u200bwidth space",
    "NULL",
    "  leading and trailing  ",
    "'); DROP TABLE chat_history; --",
)
FLOATS = (0.0, -0.0, 0.1 + 0.2, 1e-300, 5e-324, 1.7976931348623157e308, 1 / 3, -2.5, 123456789.123456789)


class Dice:
    """The choices of one table."""

    def __init__(self, seed: int, table: str) -> None:
        self._random = random.Random(f"{seed}:{table}")
        self._seed = seed

    def below(self, limit: int) -> int:
        return int(self._random.random() * limit)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[self.below(len(choices))]

    def maybe(self, value: Any, probability: float = 0.85) -> Any:
        return value if self.chance(probability) else None

    def unit(self) -> float:
        return self._random.random()

    def odd_float(self) -> float:
        """Mostly an ordinary number, sometimes one that only an exact copy keeps."""
        return self.pick(FLOATS) if self.chance(0.02) else self.unit() * 2 - 1

    def boolean(self) -> bool | None:
        return self.pick((True, False, None))

    def time(self) -> datetime:
        """Of 2025; a fifth without a fraction, the rest to the microsecond."""
        at = EPOCH + timedelta(seconds=self.below(SPAN_SECONDS))
        return at if self.chance(0.2) else at + timedelta(microseconds=self.below(1_000_000))

    def text(self, least: int, most: int) -> str:
        """From `least` to `most` fragments."""
        return " ".join(self.pick(FRAGMENTS) for _ in range(least + self.below(most - least + 1)))

    def vector(self, length: int) -> list[float]:
        return [self.unit() * 2 - 1 for _ in range(length)]

    def key(self, kind: str, index: int) -> str:
        """The key of row `index` of a kind of rows, known without making the row."""
        return key(self._seed, kind, index)


def key(seed: int, kind: str, index: int) -> str:
    """In the form of a UUID; uuid.UUID itself costs more than all the rest of a row's references."""
    digest = sha256(f"{seed}:{kind}:{index}".encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"
