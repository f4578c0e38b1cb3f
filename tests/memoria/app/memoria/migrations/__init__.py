"""The bundled migrations. There is no record of which ones ran: each looks at nothing and just tries."""

from dataclasses import dataclass
from collections.abc import Callable

from sqlalchemy import Engine

from memoria import version
from memoria.migrations import faults, first, second


class UnknownMigration(Exception):
    """No migration of this version has that name."""


@dataclass(frozen=True)
class Migration:
    name: str
    description: str
    apply: Callable[[Engine], None]
    archived: bool = False
    # Structural migrations are those that a starting server runs by itself (database.migration_auto).
    structural: bool = True


def _catalogue() -> tuple[Migration, ...]:
    current = version.current()
    entries = [
        Migration(name, description, apply, structural=name not in first.NOT_STRUCTURAL)
        for name, description, apply in first.MIGRATIONS
    ]
    later = {name: (description, apply) for name, description, apply in second.MIGRATIONS}
    for name in current.migrations:
        description, apply = later[name]
        entries.append(Migration(name, description, apply, structural=name not in second.NOT_STRUCTURAL))
    entries.extend(
        Migration(name, description, apply, archived=True, structural=False)
        for name, description, apply in first.ARCHIVED
    )
    return tuple(faults.spoil(entry, current.faults) for entry in entries)


def available(*, include_archived: bool = False) -> list[Migration]:
    return [entry for entry in _catalogue() if include_archived or not entry.archived]


def find(name: str, *, include_archived: bool = False) -> Migration:
    for entry in available(include_archived=include_archived):
        if entry.name == name:
            return entry
    raise UnknownMigration(f"Unknown migration '{name}'. Run 'migrate list' to see what there is.")
