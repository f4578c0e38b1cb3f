"""Opens a database from a SQLAlchemy URL, for the server and for the command line alike."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url

DEFAULT_URL = "sqlite:///memoria.db"

# Seconds that a statement waits for another process's lock on a SQLite file before "database is locked".
SQLITE_BUSY_SECONDS = 5
SERVER_SQLITE_BUSY_SECONDS = 30


def connect(url: str, *, sqlite_busy_seconds: int = SQLITE_BUSY_SECONDS) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return create_engine(parsed, connect_args={"timeout": sqlite_busy_seconds})
    # psycopg2 else sends the rows of an UPDATE one by one.
    batched = {"executemany_mode": "values_plus_batch"} if parsed.get_driver_name() == "psycopg2" else {}
    return create_engine(parsed, pool_pre_ping=True, **batched)


def without_password(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)
