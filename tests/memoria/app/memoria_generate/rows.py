"""Makes the rows of each table, one at a time, from its index alone: references are computed, nothing is kept."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from memoria import version
from memoria_generate.dice import Dice

Row = dict[str, Any]
Counts = dict[str, int]

NAMESPACES = ("default", "production", "forschung", "研究")
CATEGORIES = ("conversation", "fact", "preference", "skill", "contested")
MODELS = ("local-small", "local-medium", "remote-large")
EMBEDDING = 40


def _hyphenated(kind: str) -> str:
    return kind.replace("_", "-") if version.current().schema_revision >= 2 else kind


def agents(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "agent_id": dice.key("agent", i),
        "name": f"Agent {i} {dice.text(1, 1)}",
        "role": dice.maybe(dice.pick(("reader", "writer", "curator"))),
        "preferred_model": dice.maybe(dice.pick(MODELS)),
        "is_agent": dice.chance(0.7),
        "metadata": dice.maybe({"tier": dice.below(3), "note": dice.text(1, 1)}, 0.6),
        "created_at": dice.time(),
        "updated_at": dice.time(),
    }


def teams(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "team_id": dice.key("team", i),
        "name": f"Team {i}",
        "slug": f"team-{i}",
        "description": dice.maybe(dice.text(1, 3), 0.7),
        "created_at": dice.time(),
        "updated_at": dice.time(),
    }


def workspaces(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "workspace_id": dice.key("workspace", i),
        "name": f"Workspace {i}",
        "slug": f"workspace-{i}",
        "description": dice.maybe(dice.text(1, 3), 0.7),
        # Member row i is the owner's, see below.
        "owner_id": f"user-{i}" if i < counts["workspace_members"] else None,
        "team_id": dice.maybe(dice.key("team", dice.below(counts["teams"]))),
        "created_at": dice.time(),
        "updated_at": dice.time(),
    }


def workspace_members(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "id": i + 1,
        "workspace_id": dice.key("workspace", i % counts["workspaces"]),
        "user_id": f"user-{i}",
        "role": "owner" if i < counts["workspaces"] else dice.pick(("editor", "viewer")),
        "is_admin": dice.chance(0.2),
        "is_agent": dice.chance(0.1),
        "joined_at": dice.time(),
        "updated_at": dice.time(),
    }


def chat_history(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "chat_id": dice.key("chat", i),
        "user_input": dice.text(2, 10),
        "ai_output": "" if dice.chance(0.01) else dice.text(4, 18),
        "model": dice.pick(MODELS),
        "timestamp": dice.time(),
        "session_id": f"session-{i // 7}",
        "namespace": dice.pick(NAMESPACES),
        "tokens_used": dice.maybe(dice.below(4000)),
        "metadata": dice.maybe({"latency_ms": dice.unit() * 900, "tags": [dice.text(1, 1)]}, 0.5),
        "team_id": dice.maybe(dice.key("team", dice.below(counts["teams"])), 0.5),
        "workspace_id": dice.maybe(dice.key("workspace", dice.below(counts["workspaces"])), 0.5),
        "last_edited_by_model": dice.maybe(dice.pick(MODELS), 0.1),
    }


def long_term_memory(dice: Dice, i: int, counts: Counts) -> Row:
    created = dice.time()
    text = dice.text(1, 4)
    other = dice.below(counts["long_term_memory"])
    row = {
        "memory_id": dice.key("memory", i),
        "original_chat_id": dice.maybe(dice.key("chat", i % counts["chat_history"]), 0.9),
        "processed_data": {"text": text, "weight": dice.odd_float(), "parts": [i, None, True, {"ключ": "值"}]},
        # A few lie on the floor already, where the decay leaves them.
        "importance_score": 0.05 if i % 5001 == 0 else 0.06 + dice.unit() * 0.9,
        "category_primary": dice.pick(CATEGORIES),
        "retention_type": ("permanent", _hyphenated("long_term"), _hyphenated("short_term"))[(i + 2) % 3],
        "namespace": dice.pick(NAMESPACES),
        "timestamp": created,
        "created_at": created,
        "access_count": dice.maybe(dice.below(50), 0.9),
        "last_accessed": dice.maybe(created + timedelta(seconds=dice.below(900_000)), 0.6),
        "searchable_content": text,
        "summary": text[:120],
        "novelty_score": dice.maybe(dice.odd_float()),
        "relevance_score": dice.maybe(dice.odd_float()),
        "actionability_score": dice.maybe(dice.odd_float()),
        "x_coord": dice.maybe(dice.unit() * 100, 0.9),
        "y_coord": dice.unit() * 2 - 1,
        "z_coord": dice.maybe(dice.unit() * 2 - 1, 0.9),
        "symbolic_anchors": dice.maybe([dice.text(1, 1)], 0.6),
        "embedding": dice.maybe(dice.vector(EMBEDDING), 0.9),
        "documents_json": dice.maybe([{"name": dice.text(1, 1), "pages": dice.below(90)}], 0.1),
        "team_id": dice.maybe(dice.key("team", dice.below(counts["teams"])), 0.5),
        "workspace_id": dice.maybe(dice.key("workspace", dice.below(counts["workspaces"])), 0.5),
        "last_edited_by_model": dice.maybe(dice.pick(MODELS), 0.1),
        "classification": dice.pick(("conversational", "essential", "reference")),
        "memory_importance": dice.pick(("low", "medium", "high")),
        "topic": dice.maybe(dice.text(1, 1), 0.5),
        "entities_json": dice.maybe([dice.text(1, 1)], 0.3),
        "keywords_json": dice.maybe({"words": ["α", "β"], "n": dice.below(9)}, 0.3),
        **{
            flag: dice.boolean()
            for flag in (
                "is_user_context",
                "is_preference",
                "is_skill_knowledge",
                "is_current_project",
                "promotion_eligible",
                "processed_for_duplicates",
                "conscious_processed",
            )
        },
        "duplicate_of": dice.key("memory", other) if dice.chance(0.04) and other != i else None,
        "supersedes_json": dice.maybe([dice.key("memory", other)], 0.05),
        "related_memories_json": dice.maybe([dice.key("memory", other)], 0.1),
        "confidence_score": dice.maybe(dice.unit()),
        "extraction_timestamp": created,
        "classification_reason": dice.maybe(dice.text(1, 2), 0.4),
    }
    if version.current().schema_revision >= 2:
        row["consent_scope"] = dice.pick(("workspace", "team", "private"))
        row["reviewed_at"] = dice.maybe(dice.time(), 0.3)
    return row


def short_term_memory(dice: Dice, i: int, counts: Counts) -> Row:
    created = dice.time()
    text = dice.text(1, 4)
    return {
        "memory_id": dice.key("short", i),
        "chat_id": dice.maybe(dice.key("chat", dice.below(counts["chat_history"])), 0.8),
        "processed_data": {"text": text, "score": dice.odd_float()},
        "importance_score": dice.unit(),
        "category_primary": dice.pick(CATEGORIES),
        "retention_type": _hyphenated("short_term"),
        "namespace": dice.pick(NAMESPACES),
        "created_at": created,
        "expires_at": dice.maybe(created + timedelta(days=7)),
        "access_count": dice.maybe(dice.below(9)),
        "last_accessed": dice.maybe(created, 0.5),
        "searchable_content": text,
        "summary": text[:80],
        "is_permanent_context": dice.boolean(),
        "x_coord": dice.maybe(dice.unit()),
        "y_coord": dice.maybe(dice.unit()),
        "z_coord": dice.maybe(dice.unit()),
        "symbolic_anchors": dice.maybe([dice.text(1, 1)], 0.4),
        "embedding": dice.maybe(dice.vector(EMBEDDING), 0.5),
        "team_id": dice.maybe(dice.key("team", dice.below(counts["teams"])), 0.5),
        "workspace_id": dice.maybe(dice.key("workspace", dice.below(counts["workspaces"])), 0.5),
        "last_edited_by_model": None,
    }


def spatial_metadata(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "memory_id": dice.key("memory", i),
        "namespace": dice.pick(NAMESPACES),
        "team_id": dice.maybe(dice.key("team", dice.below(counts["teams"])), 0.5),
        "timestamp": dice.time(),
        "x": dice.maybe(dice.odd_float()),
        "y": dice.maybe(dice.odd_float()),
        "z": dice.maybe(dice.odd_float()),
        "symbolic_anchors": dice.maybe([dice.text(1, 1)], 0.4),
        "workspace_id": dice.maybe(dice.key("workspace", dice.below(counts["workspaces"])), 0.5),
    }


def memory_access_events(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "id": i + 1,
        "memory_id": dice.key("memory", dice.below(counts["long_term_memory"])),
        "namespace": dice.pick(NAMESPACES),
        "team_id": dice.maybe(dice.key("team", dice.below(counts["teams"])), 0.5),
        "accessed_at": dice.time(),
        "access_type": dice.pick(("ingest", "read", "search")),
        "source": dice.maybe(dice.pick(("api", "worker", "dashboard"))),
        "metadata_json": dice.maybe({"rank": dice.below(20), "score": dice.odd_float()}, 0.5),
        "workspace_id": dice.maybe(dice.key("workspace", dice.below(counts["workspaces"])), 0.5),
    }


def link_memory_threads(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "id": i + 1,
        "source_memory_id": dice.key("memory", dice.below(counts["long_term_memory"])),
        "target_memory_id": dice.key("memory", dice.below(counts["long_term_memory"])),
        "relation": dice.pick(("continues", "contradicts", "explains")),
        "created_at": dice.time(),
    }


def thread_events(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "thread_id": dice.key("thread", i),
        "namespace": dice.pick(NAMESPACES),
        "symbolic_anchors": dice.maybe([dice.text(1, 1), i]),
        "ritual_name": dice.maybe(dice.text(1, 1), 0.5),
        "ritual_phase": dice.maybe(dice.pick(("opening", "closing")), 0.5),
        "ritual_metadata": dice.maybe({"nested": {"deep": [dice.odd_float(), None]}}, 0.5),
        "centroid_x": dice.maybe(dice.odd_float()),
        "centroid_y": dice.maybe(dice.odd_float()),
        "centroid_z": dice.maybe(dice.odd_float()),
        "created_at": dice.time(),
        "updated_at": dice.time(),
    }


def thread_message_links(dice: Dice, i: int, counts: Counts) -> Row:
    threads = counts["thread_events"]
    return {
        "id": i + 1,
        "thread_id": dice.key("thread", i % threads),
        "memory_id": dice.key("memory", dice.below(counts["long_term_memory"])),
        "namespace": dice.pick(NAMESPACES),
        "sequence_index": i // threads,
        "role": dice.maybe(dice.pick(("user", "assistant"))),
        "anchor": dice.maybe(dice.text(1, 1), 0.5),
        "timestamp": dice.maybe(dice.time(), 0.9),
    }


def clusters(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "id": i + 1,
        "summary": dice.text(2, 5),
        "centroid": dice.maybe(dice.vector(3)),
        "y_centroid": dice.maybe(dice.odd_float()),
        "z_centroid": dice.maybe(dice.odd_float()),
        "polarity": dice.maybe(dice.odd_float()),
        "subjectivity": dice.maybe(dice.unit()),
        "size": dice.maybe(dice.below(40)),
        "avg_importance": dice.maybe(dice.unit()),
        "update_count": dice.maybe(dice.below(12)),
        "last_updated": dice.maybe(dice.time()),
        "weight": dice.maybe(dice.odd_float()),
        "total_tokens": dice.maybe(dice.below(90_000)),
        "total_chars": dice.maybe(dice.below(900_000)),
    }


def cluster_members(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "id": i + 1,
        "memory_id": dice.key("memory", dice.below(counts["long_term_memory"])),
        "anchor": dice.maybe(dice.text(1, 1), 0.5),
        "summary": dice.text(1, 3),
        "tokens": dice.maybe(dice.below(900)),
        "chars": dice.maybe(dice.below(4000)),
        "cluster_id": 1 + i % counts["clusters"],
    }


def policy_artifacts(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "id": i + 1,
        "name": f"policy-{i}",
        "artifact_type": dice.pick(("sox-control", "gdpr-record")),
        "namespace": dice.pick(NAMESPACES),
        "payload": {"controls": [dice.text(1, 1)], "threshold": dice.odd_float(), "owner": None},
        "schema_version": "1",
        "created_at": dice.time(),
        "updated_at": dice.time(),
        "created_by": dice.maybe(f"user-{dice.below(9)}"),
        "workspace_id": dice.maybe(dice.key("workspace", dice.below(counts["workspaces"]))),
        "team_id": None,
    }


def retention_policy_audits(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "id": i + 1,
        "memory_id": dice.maybe(dice.key("memory", dice.below(counts["long_term_memory"]))),
        "namespace": dice.pick(NAMESPACES),
        "policy_name": f"policy-{i % counts['policy_artifacts']}",
        "action": dice.pick(("retain", "redact", "escalate")),
        "escalate_to": dice.maybe("privacy-office", 0.3),
        "details": dice.maybe({"reason": dice.text(1, 2), "score": dice.odd_float()}),
        "created_at": dice.time(),
        "team_id": None,
        "workspace_id": dice.maybe(dice.key("workspace", dice.below(counts["workspaces"]))),
    }


def service_metadata(dice: Dice, i: int, counts: Counts) -> Row:
    # Never last_decrement_date: the first server to start then finds that nothing was ever aged.
    return {"key": f"setting-{i:03}", "value": dice.text(1, 1)}


def memory_provenance(dice: Dice, i: int, counts: Counts) -> Row:
    return {
        "id": i + 1,
        "memory_id": dice.key("memory", i % counts["long_term_memory"]),
        "origin": f"import-{i // counts['long_term_memory']}",
        "origin_id": dice.maybe(f"batch-{i // 100}"),
        "confidence": dice.unit(),
        "recorded_at": dice.time(),
    }


MAKERS: dict[str, Callable[[Dice, int, Counts], Row]] = {
    make.__name__: make
    for make in (
        agents,
        teams,
        workspaces,
        workspace_members,
        chat_history,
        long_term_memory,
        short_term_memory,
        spatial_metadata,
        memory_access_events,
        link_memory_threads,
        thread_events,
        thread_message_links,
        clusters,
        cluster_members,
        policy_artifacts,
        retention_policy_audits,
        service_metadata,
        memory_provenance,
    )
}


def rows(table: str, seed: int, counts: Counts) -> Iterator[Row]:
    dice = Dice(seed, table)
    make = MAKERS[table]
    for i in range(counts[table]):
        yield make(dice, i, counts)
