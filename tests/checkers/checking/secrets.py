"""Knows the secrets, and says which of them a text holds, without ever saying them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from checking.forms import SHORTEST, forms, readings
from checking.outcome import CannotAsk

CHUNK = 4 << 20


def read_file(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            secrets = json.loads(text)
            if not all(isinstance(value, str) for value in secrets.values()):
                raise ValueError("every value must be a string")
        else:
            secrets = {f"line {number}": line for number, line in enumerate(text.splitlines(), 1) if line}
    except (OSError, ValueError) as error:
        raise CannotAsk(f"{path} holds no secrets that can be read: {error}") from error
    short = [name for name, value in secrets.items() if len(value) < SHORTEST]
    if short or not secrets:
        raise CannotAsk(f"{path}: {f'{short[0]!r} is shorter than {SHORTEST} characters' if short else 'it is empty'}")
    return secrets


class Finder:
    def __init__(self, secrets: dict[str, str]) -> None:
        self._needles: list[tuple[bytes, str, str]] = []
        for name, secret in secrets.items():
            found = forms(secret)
            self._needles += [(needle, name, form) for needle, form in found.items()]
        # A needle that holds another one of the same secret is found by it; it only names the form better.
        self._short = [
            (needle, name)
            for needle, name, _ in self._needles
            if not any(other != needle and other_name == name and other in needle for other, other_name, _ in self._needles)
        ]
        self._longest = max(len(needle) for needle, _, _ in self._needles)

    def find(self, text: bytes) -> dict[str, str]:
        """Secret's name → the form in which it was found, the longest one."""
        found: dict[str, str] = {}
        for depth, reading in enumerate(readings(text)):
            for name in {name for needle, name in self._short if name not in found and needle in reading}:
                form = max((len(needle), form) for needle, of, form in self._needles if of == name and needle in reading)[1]
                found[name] = form if depth == 0 else f"{form}, inside another encoding"
        return found

    def find_in_stream(self, chunks: Iterable[bytes]) -> dict[str, str]:
        found: dict[str, str] = {}
        tail = b""
        for chunk in chunks:
            text = tail + chunk
            found = self.find(text) | found
            # Encodings within encodings make a secret longer.
            tail = text[-8 * self._longest :]
        return found

    def scrub(self, text: str) -> str:
        """A place's own name may hold a secret, too."""
        data = text.encode("utf-8", "replace")
        for needle, _, _ in sorted(self._needles, key=lambda entry: -len(entry[0])):
            data = data.replace(needle, "‹secret›".encode())
        return data.decode()


@dataclass
class Findings:
    finder: Finder
    places: list[dict[str, str]] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    unsearched: list[str] = field(default_factory=list)
    searched: dict[str, int] = field(default_factory=dict)
    _known: set[tuple[str, str]] = field(default_factory=set)

    def search(self, kind: str, place: str, *chunks: bytes) -> bool:
        self.count(kind, sum(map(len, chunks)))
        return self.record(place, self.finder.find_in_stream(chunks))

    def count(self, kind: str, size: int) -> None:
        self.searched[kind] = self.searched.get(kind, 0) + 1
        self.searched["bytes"] = self.searched.get("bytes", 0) + size

    def record(self, place: str, found: dict[str, str]) -> bool:
        for secret, form in found.items():
            shown = self.finder.scrub(place)
            if (shown, secret) not in self._known:
                self._known.add((shown, secret))
                self.places.append({"place": shown, "secret": self.finder.scrub(secret), "form": form})
        return bool(found)

    def result(self) -> dict:
        return {
            "secretsLeaked": len(self.places),
            "places": self.places,
            "searched": self.searched,
            "excluded": [self.finder.scrub(line) for line in self.excluded],
            "unsearched": [self.finder.scrub(line) for line in self.unsearched],
        }
