"""Stores one memory: the chat, the memory, its place and the access event that telemetry counts."""

import uuid
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from memoria import version
from memoria.models import ChatHistory, LongTermMemory, SpatialMetadata
from memoria.models_threads import MemoryAccessEvent

INGEST = "ingest"
READ = "read"
MAX_TEXT = 100_000


class InvalidMemory(Exception):
    """The request holds no memory that can be stored."""


def now() -> datetime:
    """UTC without a zone, as every column of the schema has it."""
    return datetime.now(UTC).replace(tzinfo=None)


def store(engine: Engine, body: Any, *, default_namespace: str) -> tuple[dict[str, Any], bool]:
    """Stores the memory and says whether it is new: the same memory_id twice is one memory, read once more."""
    fields = _checked(body, default_namespace)
    at = now()
    with Session(engine) as session, session.begin():
        known = session.get(LongTermMemory, fields["memory_id"])
        if known is not None:
            known.access_count = (known.access_count or 0) + 1
            known.last_accessed = at
            session.add(_event(fields, READ, at))
            return {"memory_id": known.memory_id, "chat_id": known.original_chat_id, "stored": False}, False
        chat_id = f"chat-{fields['memory_id']}"
        session.add(
            ChatHistory(
                chat_id=chat_id,
                user_input=fields["user_input"],
                ai_output=fields["ai_output"],
                model=fields["model"],
                timestamp=at,
                session_id=fields["session_id"],
                namespace=fields["namespace"],
                tokens_used=len(fields["user_input"].split()),
                metadata_={"source": fields["source"]},
            )
        )
        session.flush()
        memory = _memory(fields, chat_id, at)
        session.add(memory)
        session.add(
            SpatialMetadata(
                memory_id=memory.memory_id,
                namespace=memory.namespace,
                timestamp=at,
                x=memory.x_coord,
                y=memory.y_coord,
                z=memory.z_coord,
            )
        )
        session.add(_event(fields, INGEST, at))
    return {"memory_id": fields["memory_id"], "chat_id": chat_id, "stored": True}, True


def _checked(body: Any, default_namespace: str) -> dict[str, str]:
    if not isinstance(body, dict):
        raise InvalidMemory("the body must be a JSON object")
    fields = {
        "memory_id": body.get("memory_id") or str(uuid.uuid4()),
        "user_input": body.get("user_input"),
        "ai_output": body.get("ai_output", ""),
        "model": body.get("model", "unknown"),
        "session_id": body.get("session_id", "api"),
        "namespace": body.get("namespace", default_namespace),
        "source": body.get("source", "api"),
    }
    for key, value in fields.items():
        if not isinstance(value, str) or len(value) > MAX_TEXT or "\0" in value:
            raise InvalidMemory(f"{key} must be a string of at most {MAX_TEXT} characters")
    if not fields["user_input"]:
        raise InvalidMemory("user_input must not be empty")
    return fields


def _memory(fields: dict[str, str], chat_id: str, at: datetime) -> LongTermMemory:
    text = fields["user_input"]
    digest = sha256(text.encode()).digest()
    return LongTermMemory(
        memory_id=fields["memory_id"],
        original_chat_id=chat_id,
        processed_data={"text": text, "source": fields["source"]},
        importance_score=0.5,
        category_primary="conversation",
        retention_type="long_term" if version.current().schema_revision == 1 else "long-term",
        namespace=fields["namespace"],
        timestamp=at,
        created_at=at,
        access_count=0,
        searchable_content=text,
        summary=text[:120],
        x_coord=0.0,
        y_coord=digest[0] / 255,
        z_coord=digest[1] / 255,
        embedding=[byte / 255 for byte in digest[:16]],
        classification="conversational",
        memory_importance="medium",
        extraction_timestamp=at,
    )


def _event(fields: dict[str, str], access_type: str, at: datetime) -> MemoryAccessEvent:
    return MemoryAccessEvent(
        memory_id=fields["memory_id"],
        namespace=fields["namespace"],
        accessed_at=at,
        access_type=access_type,
        source=fields["source"],
    )
