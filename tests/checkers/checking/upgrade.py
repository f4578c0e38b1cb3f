"""Decides whether a capture is what an upgrade of Memoria must make of another one, row by row.

Written after the description of the migrations and of the server's start, not after anybody's code that runs them.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

from checking import additions, ageing, differences
from checking.ageing import Pair, number
from checking.captures import Capture, Table, escape, split, unescape
from checking.outcome import Reasons

RENAMED_RETENTION = {"short_term": "short-term", "long_term": "long-term"}
CONSENT = "workspace"
LAST_DECREMENT = "last_decrement_date"
# What POST /memory writes to.
GROWING = ("chat_history", "long_term_memory", "spatial_metadata", "memory_access_events")
Values = dict[str, str | None]


@dataclass
class Question:
    migrations: list[str]
    least_starts: int = 0
    most_starts: int = 64
    growing: frozenset[str] = frozenset()
    must_hold: list[str] = field(default_factory=list)
    ignored_schemas: list[str] = field(default_factory=lambda: [differences.OPERATORS_SCHEMA])


class Check:
    def __init__(self, before: Capture, after: Capture, question: Question) -> None:
        self._before, self._after, self._ask = before, after, question
        self._schema = additions.schema_of(before)
        self._scope = differences.Scope(question.ignored_schemas)
        self.reasons, self.notes = Reasons(), []
        self.starts: int | None = None
        self.new_rows: dict[str, int] = {}
        self.rows = 0

    def run(self) -> None:
        self._objects()
        differences.sequences(self._before, self._after, self._scope, self.reasons, may_be_ahead=True)
        self._sequences_are_past_their_tables()
        special = {
            f"{self._schema}{name}": rule
            for name, rule in {
                "long_term_memory": self._long_term_memory,
                "short_term_memory": self._short_term_memory,
                "service_metadata": self._service_metadata,
                "memory_provenance": self._memory_provenance,
            }.items()
        }
        for name, table in sorted(self._before.tables.items()):
            if not self._scope.holds("table", name):
                continue
            self.rows += table.count()
            if name not in self._after.tables:
                self.reasons.add("object", f"table {name}: its rows are missing")
                continue
            special.get(name, self._plain)(table, self._after.tables[name])
        for name in ("memory_provenance", "service_metadata"):
            if f"{self._schema}{name}" not in self._before.tables and (table := self._table(self._after, name)):
                special[table.name](Table(table.name, table.key, table.hashed, table.values), table)
        self._memories_are_whole()
        self._acknowledged_memories()

    def left_out(self) -> list[str]:
        return self._scope.left_out()

    def _table(self, capture: Capture, name: str) -> Table | None:
        return capture.tables.get(f"{self._schema}{name}")

    # The schema

    def _objects(self) -> None:
        expected = self._before.objects | additions.added(self._before, self._ask.migrations)
        if self._table(self._before, "service_metadata") is None and self._table(self._after, "service_metadata"):
            expected |= additions.service_metadata(self._before)
        found = self._after.objects
        if self._before.dialect == "sqlite":
            # ALTER TABLE edits the statement of a table; its columns and constraints are objects of their own.
            expected, found = ({key: value for key, value in side.items() if key[0] != "statement"} for side in (expected, found))
        differences.definitions(expected, found, self._scope, self.reasons)

    def _sequences_are_past_their_tables(self) -> None:
        owned = {state["ownedBy"]: name for name, state in self._after.sequences.items() if state["ownedBy"]}
        for table in self._after.tables.values():
            if len(table.key) != 1 or not table.rows:
                continue
            sequence = owned.get(f"{table.name}.{table.key[0]}", table.name)
            state = self._after.sequences.get(sequence)
            if state is None:
                continue
            greatest = max(map(int, table.rows))
            if state["next"] <= greatest:
                self.reasons.add("sequence", f"sequence {sequence}: gives {state['next']} next, but {table.name} has {greatest} already")

    # Rows

    def _plain(self, before: Table, after: Table) -> None:
        for key, left, right in self._pairs(before, after):
            if left != right:
                line = f"{before.label(key)}: {differences.what_differs(before, left, after, right)}"
                self.reasons.add(f"different row of {before.name}", line)

    def _pairs(self, before: Table, after: Table):
        """The rows that both have; reports those that are missing, and those that nobody may have added."""
        if not differences.comparable(before, after, self.reasons):
            return
        for key, left in before.rows.items():
            right = after.rows.get(key)
            if right is None:
                self.reasons.add(f"lost row of {before.name}", f"{before.label(key)}: missing")
            else:
                yield key, left, right
        self._count_new(before, after)
        differences.unkeyed(before, after, self.reasons)

    def _count_new(self, before: Table, after: Table) -> None:
        new = [key for key in after.rows if key not in before.rows]
        name = after.name.removeprefix(self._schema)
        if name in ("memory_provenance", "service_metadata"):
            # Their new rows are recomputed, whoever wrote meanwhile.
            return
        if new and name in self._ask.growing:
            self.new_rows[name] = len(new)
            return
        for key in new:
            self.reasons.add(f"new row of {after.name}", f"{after.label(key)}: not expected")

    def _differs(self, table: Table, key: bytes, column: str, why: str) -> None:
        self.reasons.add(f"{column} of {table.name}", f"{table.label(key)}: {column} {why}")

    def _values(self, before: Table, after: Table):
        """Both rows' kept values; reports whatever is only in the hash and differs."""
        for key, left, right in self._pairs(before, after):
            left_hash, left_values = split(before, left)
            right_hash, right_values = split(after, right)
            if left_hash != right_hash:
                self._differs(before, key, "another column", "changed")
            yield key, left_values, right_values

    def _retention(self, value: str | None) -> str | None:
        return RENAMED_RETENTION.get(value, value) if "normalize_retention_types" in self._ask.migrations else value

    def _short_term_memory(self, before: Table, after: Table) -> None:
        for key, left, right in self._values(before, after):
            self._expect(before, key, left, right, "retention_type", self._retention(left["retention_type"]))
            self._equal(before, key, left, right, except_=("retention_type",))

    def _expect(self, table: Table, key: bytes, left: Values, right: Values, column: str, expected: str | None) -> None:
        if right.get(column) != expected:
            self._differs(table, key, column, f"is {right.get(column)!r}, expected {expected!r} (it was {left.get(column)!r})")

    def _equal(self, table: Table, key: bytes, left: Values, right: Values, except_: tuple[str, ...]) -> None:
        for column in left:
            if column not in except_ and left[column] != right.get(column):
                self._differs(table, key, column, "changed")

    # Memories

    def _long_term_memory(self, before: Table, after: Table) -> None:
        computed = (
            "retention_type", "importance_score", "x_coord", "y_coord", "access_count", "last_accessed", "consent_scope", "reviewed_at",
        )  # fmt: skip
        consent = "add_consent_scope" in self._ask.migrations and "consent_scope" not in before.values
        reads = self._new_reads()
        pairs: list[Pair] = []
        for key, left, right in self._values(before, after):
            self._equal(before, key, left, right, except_=computed)
            self._expect(before, key, left, right, "retention_type", self._retention(left["retention_type"]))
            for column, filled in (("consent_scope", CONSENT), ("reviewed_at", None)):
                if column in right and (consent or column in left):
                    self._expect(before, key, left, right, column, filled if consent else left[column])
            self._access(before, key, left, right, reads[unescape(key)])
            pairs.append(Pair(key, left["retention_type"] in ageing.AGEING, _coordinates(left), _coordinates(right)))
        self._aged(before, pairs)
        if consent or "normalize_retention_types" in self._ask.migrations:
            for key, values in self._new_memories().items():
                if values["retention_type"] in RENAMED_RETENTION:
                    self._differs(after, key, "retention_type", f"is {values['retention_type']!r} in a new row")

    def _access(self, table: Table, key: bytes, left: Values, right: Values, reads: int) -> None:
        count, before = int(right["access_count"] or 0), int(left["access_count"] or 0)
        if reads == 0:
            self._expect(table, key, left, right, "access_count", left["access_count"])
            self._expect(table, key, left, right, "last_accessed", left["last_accessed"])
        else:
            if count != before + reads:
                self._differs(table, key, "access_count", f"went from {before} to {count} by {reads} new read events")
            if right["last_accessed"] is None or (left["last_accessed"] or "") > right["last_accessed"]:
                self._differs(table, key, "last_accessed", "did not go forward")

    def _new_reads(self) -> Counter:
        """Memory id → read events that were added."""
        before, after = self._table(self._before, "memory_access_events"), self._table(self._after, "memory_access_events")
        if before is None or after is None or "memory_access_events" not in self._ask.growing:
            return Counter()
        added = (split(after, rest)[1] for key, rest in after.rows.items() if key not in before.rows)
        return Counter(values["memory_id"] for values in added if values["access_type"] == "read")

    def _aged(self, table: Table, pairs: list[Pair]) -> None:
        most = self._ask.most_starts
        self.starts = ageing.starts(pairs, most)
        if self.starts is None:
            self.notes.append("no memory tells how often a server started")
        elif self.starts < self._ask.least_starts:
            self.reasons.add("starts", f"servers started {self.starts} times, expected at least {self._ask.least_starts}")
        starts = self.starts or 0
        known_before, known_after = (self._last_decrement(capture) for capture in (self._before, self._after))
        shifts = 0 if known_before is not None else ageing.shifts(pairs, most if self.starts is None else starts) or 0
        tells_x = any(pair.before[0] is not None for pair in pairs)
        if known_before is None and tells_x and (shifts > 0) != (known_after is not None):
            self.reasons.add("starts", f"x_coord went down {shifts} times, but {LAST_DECREMENT} is {known_after!r}")
        for pair in pairs:
            x, (y, importance) = ageing.shifted(pair, shifts), ageing.aged(pair, starts)
            for column, expected, found in zip(("x_coord", "y_coord", "importance_score"), (x, y, importance), pair.after, strict=True):
                if expected != found:
                    self._differs(table, pair.key, column, f"is {found!r}, but {starts} starts make {expected!r}")

    # The service's own table

    def _last_decrement(self, capture: Capture) -> str | None:
        table = self._table(capture, "service_metadata")
        rest = table.rows.get(escape(LAST_DECREMENT)) if table else None
        return None if rest is None else split(table, rest)[1]["value"]

    def _service_metadata(self, before: Table, after: Table) -> None:
        for key, left, right in self._values(before, after):
            self._equal(before, key, left, right, except_=())
        for key in set(after.rows) - set(before.rows):
            if unescape(key) != LAST_DECREMENT:
                self.reasons.add("service_metadata", f"{after.label(key)}: not expected")
            elif not _is_date(self._last_decrement(self._after)):
                self.reasons.add("service_metadata", f"{after.label(key)}: is no date")
            elif self.starts == 0:
                self.reasons.add("service_metadata", f"{after.label(key)}: appeared, though no server started")

    # Where memories came from

    def _memory_provenance(self, before: Table, after: Table) -> None:
        for key, left, right in self._values(before, after):
            self._equal(before, key, left, right, except_=())
        after_memories, before_memories = self._table(self._after, "long_term_memory"), self._table(self._before, "long_term_memory")
        recorded: Counter = Counter()
        for key, rest in after.rows.items():
            values = split(after, rest)[1]
            if values["origin"] == "chat":
                recorded[values["memory_id"]] += 1
            if key not in before.rows:
                self._provenance_of(after, key, values, after_memories)
        if "add_memory_provenance" not in self._ask.migrations:
            return
        for key, rest in before_memories.rows.items():
            memory, wanted = unescape(key), int(split(before_memories, rest)[1]["original_chat_id"] is not None)
            if recorded[memory] != wanted:
                line = f"memory {memory}: has {recorded[memory]} rows of memory_provenance with origin chat, expected {wanted}"
                self.reasons.add("provenance", line)

    def _provenance_of(self, table: Table, key: bytes, values: Values, memories: Table) -> None:
        rest = memories.rows.get(escape(values["memory_id"]))
        if rest is None:
            self.reasons.add("provenance", f"{table.label(key)}: its memory is not there")
            return
        memory = split(memories, rest)[1]
        expected = {"origin": "chat", "origin_id": memory["original_chat_id"], "recorded_at": memory["created_at"]}
        for column, value in expected.items():
            if values[column] != value or value is None:
                self._differs(table, key, column, f"is {values[column]!r}, expected {value!r}")
        if number(values["confidence"]) != 1.0:
            self._differs(table, key, "confidence", f"is {values['confidence']!r}, expected the default 1.0")

    # What clients wrote

    def _new_memories(self) -> dict[bytes, Values]:
        before, after = self._table(self._before, "long_term_memory"), self._table(self._after, "long_term_memory")
        return {key: split(after, rest)[1] for key, rest in after.rows.items() if key not in before.rows} if after else {}

    def _memories_are_whole(self) -> None:
        """A memory is stored with its chat, its place and an event, or not at all."""
        new = self._new_memories()
        if not new or not set(GROWING) <= self._ask.growing:
            return
        chats, places, events = (
            self._table(self._after, name) for name in ("chat_history", "spatial_metadata", "memory_access_events")
        )
        if not (chats and places and events):
            return
        ingested = {
            values["memory_id"]
            for values in (split(events, rest)[1] for rest in events.rows.values())
            if values["access_type"] == "ingest"
        }
        for key, values in new.items():
            parts = {
                "chat": escape(values["original_chat_id"]) in chats.rows,
                "place": key in places.rows,
                "event": unescape(key) in ingested,
            }
            missing = [part for part, there in parts.items() if not there]
            if missing:
                self.reasons.add("half a memory", f"memory {unescape(key)}: new, but without its {' and '.join(missing)}")

    def _acknowledged_memories(self) -> None:
        after = self._table(self._after, "long_term_memory")
        for identity in self._ask.must_hold:
            if after is None or escape(identity) not in after.rows:
                self.reasons.add("acknowledged", f"memory {identity}: was acknowledged and is not there")


def _coordinates(values: Values) -> tuple[float | None, float | None, float | None]:
    return number(values["x_coord"]), number(values["y_coord"]), number(values["importance_score"])


def _is_date(text: str | None) -> bool:
    try:
        return text is not None and date.fromisoformat(text) is not None
    except ValueError:
        return False
