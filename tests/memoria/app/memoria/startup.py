"""What the server does to the database before it answers: schema, structural migrations, and a decay of the data."""

import logging
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session, load_only

from memoria import migrations, schema, service_metadata, version
from memoria.models import LongTermMemory

log = logging.getLogger(__name__)

DECAYING = ("short_term", "short-term")
Y_DECAY = 0.97
IMPORTANCE_DECAY = 0.995
IMPORTANCE_FLOOR = 0.05
LAST_DECREMENT = "last_decrement_date"


class StartError(Exception):
    """The server cannot start."""


def prepare(engine: Engine, settings: dict[str, Any]) -> None:
    faults = version.current().faults
    if faults.start == "crash":
        raise StartError("the vector index format 3 is not supported by this build")
    schema.initialise(engine, transactional_probe=faults.start == "transactional-probe")
    with schema.locked(engine) as connection:
        service_metadata.ensure(connection)
    if settings["database"]["migration_auto"]:
        _run_structural_migrations(engine)
    if faults.start == "alter-then-crash":
        _spoil(engine)
    rewritten = decay(engine)
    log.info("decay rewrote %s", rewritten)


def _run_structural_migrations(engine: Engine) -> None:
    for migration in migrations.available():
        if not migration.structural:
            continue
        try:
            migration.apply(engine)
        except (Exception, SystemExit) as error:
            log.warning("structural migration %s failed: %s", migration.name, error)


def _spoil(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE chat_history ADD COLUMN reply_language VARCHAR"))
        connection.execute(text("UPDATE chat_history SET model = upper(model)"))
        connection.execute(text("DELETE FROM cluster_members WHERE id % 2 = 0"))
    raise StartError("chat_history has 0 rows with a reply_language; refusing to serve")


def decay(engine: Engine) -> dict[str, int]:
    """Ages the memories: y and importance of the decaying ones at every start, x of all where no date says when last."""
    rewritten = {"x_coord": 0, "y_coord": 0, "importance_score": 0}
    first_time = service_metadata.get(engine, LAST_DECREMENT) is None
    query = select(LongTermMemory).options(
        load_only(
            LongTermMemory.x_coord,
            LongTermMemory.y_coord,
            LongTermMemory.importance_score,
            LongTermMemory.retention_type,
        )
    )
    if not first_time:
        query = query.where(LongTermMemory.retention_type.in_(DECAYING))
    with Session(engine) as session:
        for memory in session.scalars(query):
            if first_time and memory.x_coord is not None:
                memory.x_coord -= 1.0
                rewritten["x_coord"] += 1
            if memory.retention_type not in DECAYING:
                continue
            if memory.y_coord is not None:
                memory.y_coord *= Y_DECAY
                rewritten["y_coord"] += 1
            if memory.importance_score > IMPORTANCE_FLOOR:
                memory.importance_score = max(IMPORTANCE_FLOOR, memory.importance_score * IMPORTANCE_DECAY)
                rewritten["importance_score"] += 1
        # One flush: it writes in the order of the keys, so that two starting processes cannot deadlock.
        session.commit()
    if first_time:
        service_metadata.put(engine, LAST_DECREMENT, datetime.now(UTC).date().isoformat())
    return rewritten
