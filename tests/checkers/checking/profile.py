"""Which columns of Memoria a capture keeps as values rather than in the hash: those that an upgrade or a start rewrites,
and those from which their new values are recomputed."""

RETAINED = {
    "long_term_memory": (
        "original_chat_id", "created_at", "retention_type", "importance_score", "x_coord", "y_coord",
        "access_count", "last_accessed", "consent_scope", "reviewed_at",
    ),
    "short_term_memory": ("retention_type",),
    "memory_provenance": ("memory_id", "origin", "origin_id", "confidence", "recorded_at"),
    "memory_access_events": ("memory_id", "access_type"),
    "service_metadata": ("value",),
}  # fmt: skip


def retained(table: str, more: list[str]) -> set[str]:
    """Columns of the table (its name without a schema) to keep; `more` holds TABLE.COLUMN of the command line."""
    added = {column for name, _, column in (entry.rpartition(".") for entry in more) if name == table}
    return {*RETAINED.get(table, ()), *added}
