"""What governance sees of ingestion: counters over the access events, and the events since this process started.

All of it is read from the database, so that every worker of every pod answers alike.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from memoria import version
from memoria.memories import INGEST, now
from memoria.models import ChatHistory, LongTermMemory
from memoria.models_threads import MemoryAccessEvent, RetentionPolicyAudit

SHOWN_EVENTS = 50


def _counted_type() -> str:
    # The fault: telemetry waits for a kind of event that ingestion does not write.
    return "memory.ingested" if version.current().faults.telemetry_silent else INGEST


def report(engine: Engine, *, since: datetime) -> dict[str, Any]:
    ingested = MemoryAccessEvent.access_type == _counted_type()
    recent = ingested & (MemoryAccessEvent.accessed_at >= since)
    with Session(engine) as session:
        counters = {
            "ingested_total": _count(session, MemoryAccessEvent, ingested),
            "ingested_since_start": _count(session, MemoryAccessEvent, recent),
        }
        newest = select(MemoryAccessEvent).where(recent).order_by(MemoryAccessEvent.id.desc()).limit(SHOWN_EVENTS)
        events = [
            {
                "id": event.id,
                "type": event.access_type,
                "memory_id": event.memory_id,
                "namespace": event.namespace,
                "source": event.source,
                "at": event.accessed_at.isoformat(),
            }
            for event in session.scalars(newest)
        ]
        last = session.scalar(select(func.max(MemoryAccessEvent.accessed_at)).where(ingested))
    return {
        "counters": counters,
        "events": events,
        "last_ingested_at": last.isoformat() if last else None,
        "since": since.isoformat(),
        "generated_at": now().isoformat(),
    }


def ingestion(engine: Engine, settings: dict[str, Any]) -> dict[str, Any]:
    with Session(engine) as session:
        return {
            "namespace": settings["memory"]["namespace"],
            "sovereign_ingest": settings["memory"]["sovereign_ingest"],
            "chats": _count(session, ChatHistory),
            "memories": _count(session, LongTermMemory),
        }


def escalations(engine: Engine, settings: dict[str, Any]) -> dict[str, Any]:
    """Verified when everyone to whom an audit escalated is still named by a retention rule."""
    named = {rule["escalate_to"] for rule in settings["policy"]["retention_rules"] if rule.get("escalate_to")}
    with Session(engine) as session:
        query = select(RetentionPolicyAudit.escalate_to).where(RetentionPolicyAudit.escalate_to.is_not(None))
        used = set(session.scalars(query.distinct()))
    return {
        "verified": used <= named,
        "contacts": sorted(named),
        "unknown_contacts": sorted(used - named),
        "checked_at": now().isoformat(),
    }


def _count(session: Session, model: type, *where: Any) -> int:
    return session.scalar(select(func.count()).select_from(model).where(*where)) or 0
