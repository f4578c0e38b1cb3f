"""The migrations that 1.0.0 adds: a table, two columns, and values written anew.

After them a database has exactly the schema that this version's init-db builds.
"""

from sqlalchemy import Engine, text

from memoria.migrations.steps import add_columns, create_index, create_table

RETENTION_TYPES = {"short_term": "short-term", "long_term": "long-term"}


def add_memory_provenance(engine: Engine) -> None:
    create_table(engine, "memory_provenance")
    with engine.begin() as connection:
        filled = connection.execute(
            text(
                "INSERT INTO memory_provenance (memory_id, origin, origin_id, recorded_at) "
                "SELECT memory_id, 'chat', original_chat_id, created_at FROM long_term_memory AS memory "
                "WHERE original_chat_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM memory_provenance AS known "
                "WHERE known.memory_id = memory.memory_id AND known.origin = 'chat') ORDER BY memory_id"
            )
        ).rowcount
    print(f"Recorded the provenance of {filled} memories", flush=True)


def add_consent_scope(engine: Engine) -> None:
    add_columns(
        engine,
        ("long_term_memory", "consent_scope", "VARCHAR DEFAULT 'workspace' NOT NULL"),
        ("long_term_memory", "reviewed_at", "DATETIME"),
    )
    create_index(engine, "ix_long_term_memory_consent_scope", "long_term_memory", "consent_scope")


def normalize_retention_types(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in ("long_term_memory", "short_term_memory"):
            for old, new in RETENTION_TYPES.items():
                changed = connection.execute(
                    text(f"UPDATE {table} SET retention_type = :new WHERE retention_type = :old"),
                    {"old": old, "new": new},
                ).rowcount
                print(f"{table}: {changed} rows from {old} to {new}", flush=True)


MIGRATIONS = (
    ("add_memory_provenance", "Create memory_provenance and fill it from chats.", add_memory_provenance),
    ("add_consent_scope", "Add consent scope and review time to long term memories.", add_consent_scope),
    ("normalize_retention_types", "Rewrite retention types with a hyphen.", normalize_retention_types),
)
NOT_STRUCTURAL = ("normalize_retention_types",)
