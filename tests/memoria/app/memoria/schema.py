"""Builds the schema: tables, the view, and the columns that older databases lack."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import OrderedSet

from memoria import models_threads  # noqa: F401 - registers its tables on Base
from memoria.models import Base

log = logging.getLogger(__name__)

# SQLAlchemy keeps indexes in a set and creates them in its order; two databases are to be alike to the byte.
for _table in Base.metadata.tables.values():
    _table.indexes = OrderedSet(sorted(_table.indexes, key=lambda index: str(index.name)))

VIEW = "active_memories"
VIEW_SQL = (
    f"CREATE VIEW {VIEW} AS SELECT memory_id, namespace, category_primary, summary, importance_score, timestamp "
    "FROM long_term_memory WHERE duplicate_of IS NULL"
)

# Columns that once had no migration. Every start tries to add them and expects to be refused.
PROBED_COLUMNS = (
    ("chat_history", "last_edited_by_model", "VARCHAR"),
    ("long_term_memory", "documents_json", "JSON"),
    ("short_term_memory", "last_edited_by_model", "VARCHAR"),
)

# Any constant will do, as long as all of Memoria's processes use the same one.
SCHEMA_LOCK = 7_266_834_104


@contextmanager
def locked(engine: Engine) -> Iterator[Connection]:
    """A transaction in which no other process of Memoria creates tables.

    Several workers of several pods start at once, and on PostgreSQL even CREATE TABLE IF NOT EXISTS races. On SQLite the
    driver begins no transaction before the first row is written, so another could create a table after the look for it.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def initialise(engine: Engine, *, transactional_probe: bool = False) -> None:
    """Creates what is missing. With `transactional_probe` it dies on PostgreSQL as the unmodified release does."""
    with locked(engine) as connection:
        Base.metadata.create_all(connection)
        if VIEW not in inspect(connection).get_view_names():
            connection.execute(text(VIEW_SQL))
    if transactional_probe:
        with engine.begin() as connection:
            probe_columns(connection)
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            probe_columns(connection)


def probe_columns(connection: Connection) -> None:
    """Adds each probed column and swallows the refusal. Inside a transaction PostgreSQL refuses all that follows."""
    for table, column, kind in PROBED_COLUMNS:
        try:
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN {column} {kind}"))
        except DBAPIError as error:
            log.debug("column %s.%s not added: %s", table, column, error.orig)
    connection.execute(text("SELECT count(*) FROM agents"))
