"""`python -m memoria_generate --rows N --seed S --database-url U`: makes the schema where it is missing, then fills it."""

import argparse
import os
import sys

from sqlalchemy import Connection, inspect, text

from memoria import database, schema, service_metadata
from memoria.models import Base
from memoria_generate import plan
from memoria_generate.rows import rows
from memoria_generate.write import write

URL_VARIABLE = "MEMORIA_DATABASE__CONNECTION_STRING"


class NotEmpty(Exception):
    """The database holds rows already."""


def tables() -> dict:
    return {**Base.metadata.tables, service_metadata.TABLE.name: service_metadata.TABLE}


def refuse_rows(connection: Connection) -> None:
    for name in inspect(connection).get_table_names():
        if name in tables() and connection.execute(text(f"SELECT 1 FROM {name} LIMIT 1")).first():
            raise NotEmpty(f"{name} holds rows; generate into an empty database")


def generate(url: str, *, count: int, seed: int, journal_mode: str | None = None) -> dict[str, int]:
    """Fills the database in one transaction and returns the rows of each table."""
    counts = plan.counts(count)
    engine = database.connect(url)
    sqlite = engine.dialect.name == "sqlite"
    if journal_mode and sqlite:
        with engine.connect() as connection:
            connection.execute(text(f"PRAGMA journal_mode={journal_mode}"))
    schema.initialise(engine)
    known = tables()
    with engine.begin() as connection:
        service_metadata.ensure(connection)
        refuse_rows(connection)
        for name in counts:
            write(connection, known[name], rows(name, seed, counts))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="memoria_generate", description="Fills a Memoria database with seeded data")
    parser.add_argument("--rows", type=int, default=44_000, help="rows in all tables together (default 44000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--database-url", default=os.environ.get(URL_VARIABLE), help=f"SQLAlchemy URL (default: ${URL_VARIABLE})"
    )
    parser.add_argument("--journal-mode", choices=("delete", "wal"), help="SQLite only")
    arguments = parser.parse_args()
    if not arguments.database_url:
        parser.error(f"give --database-url or set {URL_VARIABLE}")
    try:
        counts = generate(
            arguments.database_url, count=arguments.rows, seed=arguments.seed, journal_mode=arguments.journal_mode
        )
    except (plan.PlanError, NotEmpty) as error:
        print(f"memoria_generate: {error}", file=sys.stderr)
        return 1
    print(f"Generated {sum(counts.values())} rows in {len(counts)} tables (seed {arguments.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
