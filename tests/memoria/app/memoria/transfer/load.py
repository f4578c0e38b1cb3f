"""Writes a document into a database, in one session. It creates no tables and sets no sequences."""

import json
import logging
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Engine, delete, func, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from memoria import service_metadata
from memoria.transfer import FORMATS, MODELS, TransferError, chosen

log = logging.getLogger(__name__)


def parse(text: str, format: str | None) -> dict[str, list[dict[str, Any]]]:
    """Table → rows. Without a format the first line tells: NDJSON begins with a whole object."""
    if format is None:
        first = text.split("\n", 1)[0].strip()
        format = "ndjson" if first.startswith('{"metadata"') else "json"
    if format not in FORMATS:
        raise TransferError(f"Unknown format '{format}'.")
    try:
        return _parse_ndjson(text) if format == "ndjson" else json.loads(text)["data"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TransferError(f"This is no {format} export: {error!r}") from error


def _parse_ndjson(text: str) -> dict[str, list[dict[str, Any]]]:
    lines = [json.loads(line) for line in text.split("\n") if line.strip()]
    data = {entry["name"]: [] for entry in lines[0]["metadata"]["tables"]}
    for line in lines[1:]:
        data.setdefault(line["table"], []).append(line["data"])
    return data


def write(
    engine: Engine, data: dict[str, list[dict[str, Any]]], *, tables: list[str] | None = None, truncate: bool = True
) -> int:
    """Replaces the content of the tables in `data` and returns how many there were."""
    names = [name for name in chosen(tables) if name in data]
    with Session(engine) as session:
        if truncate:
            for name in reversed(names):
                _truncate(session, name)
        # A connection of its own: where the deletes above already hold SQLite's only write lock, it is refused.
        service_metadata.put(engine, "last_import_started_at", datetime.now(UTC).isoformat())
        for name in names:
            rows = [_typed(name, row) for row in data[name]]
            if rows:
                session.execute(insert(MODELS[name].__table__), rows)
        session.commit()
    return len(names)


def _truncate(session: Session, name: str) -> None:
    model = MODELS[name]
    # Only PostgreSQL needs the savepoint: there a refused statement ends the transaction.
    postgresql = session.get_bind().dialect.name == "postgresql"
    try:
        with session.begin_nested() if postgresql else nullcontext():
            if session.scalar(select(func.count()).select_from(model)):
                session.execute(delete(model).execution_options(synchronize_session=False))
    except SQLAlchemyError as error:
        log.warning("could not truncate %s: %s", name, error)


def _typed(name: str, row: dict[str, Any]) -> dict[str, Any]:
    columns = MODELS[name].__table__.columns
    return {
        key: datetime.fromisoformat(value)
        if isinstance(value, str) and key in columns and isinstance(columns[key].type, DateTime)
        else value
        for key, value in row.items()
    }
