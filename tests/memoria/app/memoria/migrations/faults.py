"""Breaks one migration in the way that the version file asks for; the migration itself stays what it is."""

from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

from sqlalchemy import Engine, text

from memoria.migrations.steps import add_column
from memoria.version import Faults

if TYPE_CHECKING:
    from memoria.migrations import Migration

FIRST_COLUMN = ("long_term_memory", "consent_scope", "VARCHAR DEFAULT 'workspace' NOT NULL")


def spoil(migration: "Migration", faults: Faults) -> "Migration":
    """Returns the migration with the fault that names it, or as it is."""
    if migration.name == faults.system_exit:

        def exits_cleanly(engine: Engine) -> None:
            migration.apply(engine)
            # How a script says that all is well, which the command line then takes for a failure.
            raise SystemExit(0)

        return replace(migration, apply=exits_cleanly)
    if migration.name != faults.migrate_name:
        return migration
    broken = {
        "half-ddl-then-exit-1": _stops_half_way,
        "reports-failure-schema-wrong": _misspells_the_type,
        "reports-failure-schema-right": lambda engine: _misspells_the_type_and_recovers(engine, migration),
        "hangs-in-transaction": _hangs,
    }[faults.migrate]
    return replace(migration, apply=broken)


def _stops_half_way(engine: Engine) -> None:
    add_column(engine, *FIRST_COLUMN)
    raise RuntimeError("consent scopes of 3 workspaces are contradictory; reviewed_at was not added")


def _misspells_the_type(engine: Engine) -> None:
    table, column, _ = FIRST_COLUMN
    add_column(engine, table, column, "VARCHARACTER(16) DEFAULT 'workspace' NOT NULL,")


def _misspells_the_type_and_recovers(engine: Engine, migration: "Migration") -> None:
    _misspells_the_type(engine)
    migration.apply(engine)


def _hangs(engine: Engine) -> None:
    """Commits half of the DDL, opens a transaction that locks the table, and waits for something that never comes."""
    add_column(engine, *FIRST_COLUMN)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE long_term_memory ADD COLUMN reviewed_at TIMESTAMP"))
        print("Waiting for the consent service", flush=True)
        Event().wait()
