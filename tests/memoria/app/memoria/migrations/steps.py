"""The steps that migrations are made of, with Memoria's habit: a refused ALTER TABLE is printed and forgotten."""

from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from memoria.schema import Base  # and with it every table, its indexes in order


def add_column(engine: Engine, table: str, column: str, kind: str) -> bool:
    """Adds a column, or prints why not. Each in a transaction of its own, so that one refusal spoils no other."""
    if engine.dialect.name == "postgresql":
        kind = kind.replace("DATETIME", "TIMESTAMP WITHOUT TIME ZONE")
    try:
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN {column} {kind}"))
    except DBAPIError as error:
        print(f"Failed to add {column} to {table}: {str(error.orig).strip()}", flush=True)
        return False
    print(f"Added {column} to {table}", flush=True)
    return True


def add_columns(engine: Engine, *columns: tuple[str, str, str]) -> None:
    for table, column, kind in columns:
        add_column(engine, table, column, kind)


def create_table(engine: Engine, name: str) -> None:
    """Creates a table with its indexes, if it is not there."""
    table = Base.metadata.tables[name]
    with engine.begin() as connection:
        if inspect(connection).has_table(name):
            print(f"Table {name} is already there", flush=True)
            return
        # CreateTable leaves out the constraint of the workspace cycle, which needs both its tables.
        connection.execute(CreateTable(table))
        for index in table.indexes:
            index.create(connection)
    print(f"Created table {name}", flush=True)


def create_index(engine: Engine, name: str, table: str, column: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"CREATE INDEX IF NOT EXISTS {name} ON {table} ({column})"))


def has_column(engine: Engine, table: str, column: str) -> bool:
    inspector = inspect(engine)
    return inspector.has_table(table) and any(c["name"] == column for c in inspector.get_columns(table))
