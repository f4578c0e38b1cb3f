"""The service's own key/value table. It is no model: the service makes it on first use, and exports do not know it."""

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, Text, select
from sqlalchemy.dialects import postgresql, sqlite

_metadata = MetaData()
TABLE = Table(
    "service_metadata",
    _metadata,
    Column("key", String, primary_key=True),
    Column("value", Text, nullable=False),
)


def ensure(connection: Connection) -> None:
    _metadata.create_all(connection)


def get(engine: Engine, key: str) -> str | None:
    with engine.connect() as connection:
        return connection.execute(select(TABLE.c.value).where(TABLE.c.key == key)).scalar()


def put(engine: Engine, key: str, value: str) -> None:
    """Writes through a connection of its own, whatever transaction the caller may hold."""
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    upsert = insert(TABLE).values(key=key, value=value)
    with engine.begin() as connection:
        ensure(connection)
        connection.execute(upsert.on_conflict_do_update(index_elements=["key"], set_={"value": value}))
