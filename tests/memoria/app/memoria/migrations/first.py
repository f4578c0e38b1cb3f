"""The twelve migrations bundled with 0.9.0, and the archived one."""

from sqlalchemy import Engine, text

from memoria.migrations.steps import add_columns, create_table, has_column

WITH_TEAM = ("chat_history", "long_term_memory", "short_term_memory", "spatial_metadata", "memory_access_events")


def add_cluster_centroids(engine: Engine) -> None:
    add_columns(
        engine,
        ("clusters", "centroid", "JSON"),
        ("clusters", "y_centroid", "FLOAT"),
        ("clusters", "z_centroid", "FLOAT"),
    )


def add_cluster_member_counts(engine: Engine) -> None:
    add_columns(
        engine,
        ("clusters", "size", "INTEGER"),
        ("clusters", "avg_importance", "FLOAT"),
        ("clusters", "update_count", "INTEGER"),
    )


def add_cluster_member_token_columns(engine: Engine) -> None:
    add_columns(engine, ("cluster_members", "tokens", "INTEGER"), ("cluster_members", "chars", "INTEGER"))


def add_cluster_token_columns(engine: Engine) -> None:
    add_columns(
        engine,
        ("clusters", "weight", "FLOAT"),
        ("clusters", "total_tokens", "INTEGER"),
        ("clusters", "total_chars", "INTEGER"),
    )


def add_memory_embeddings(engine: Engine) -> None:
    add_columns(engine, ("long_term_memory", "embedding", "JSON"), ("short_term_memory", "embedding", "JSON"))


def add_policy_artifacts(engine: Engine) -> None:
    create_table(engine, "policy_artifacts")
    create_table(engine, "retention_policy_audits")


def add_spatial_namespace(engine: Engine) -> None:
    add_columns(engine, ("spatial_metadata", "namespace", "VARCHAR DEFAULT 'default' NOT NULL"))


def add_team_support(engine: Engine) -> None:
    create_table(engine, "teams")
    add_columns(engine, *((table, "team_id", "VARCHAR") for table in WITH_TEAM))


def add_timestamp_columns(engine: Engine) -> None:
    add_columns(
        engine,
        ("thread_message_links", "timestamp", "DATETIME"),
        ("clusters", "last_updated", "DATETIME"),
        ("long_term_memory", "last_accessed", "DATETIME"),
    )


def add_workspace_support(engine: Engine) -> None:
    create_table(engine, "workspaces")
    create_table(engine, "workspace_members")
    add_columns(engine, *((table, "workspace_id", "VARCHAR") for table in WITH_TEAM))


def remove_manual_x_override(engine: Engine) -> None:
    _drop_column(engine, "long_term_memory", "manual_x_override")


def rename_chat_metadata_column(engine: Engine) -> None:
    if has_column(engine, "chat_history", "metadata_json"):
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE chat_history RENAME COLUMN metadata_json TO metadata"))
        print("Renamed chat_history.metadata_json to metadata", flush=True)
    else:
        print("chat_history.metadata has its name already", flush=True)


def remove_emotional_intensity(engine: Engine) -> None:
    _drop_column(engine, "long_term_memory", "emotional_intensity")


def _drop_column(engine: Engine, table: str, column: str) -> None:
    if not has_column(engine, table, column):
        print(f"{table} has no {column}", flush=True)
        return
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
    print(f"Dropped {column} from {table}", flush=True)


MIGRATIONS = (
    ("add_cluster_centroids", "Add centroid columns to clusters.", add_cluster_centroids),
    ("add_cluster_member_counts", "Add size and average importance to clusters.", add_cluster_member_counts),
    (
        "add_cluster_member_token_columns",
        "Add token and character counts to cluster members.",
        add_cluster_member_token_columns,
    ),
    ("add_cluster_token_columns", "Add weight and token totals to clusters.", add_cluster_token_columns),
    ("add_memory_embeddings", "Add embeddings to long and short term memories.", add_memory_embeddings),
    ("add_policy_artifacts", "Create the policy artifact and retention audit tables.", add_policy_artifacts),
    ("add_spatial_namespace", "Add the namespace to spatial metadata.", add_spatial_namespace),
    ("add_team_support", "Create teams and add team ids.", add_team_support),
    ("add_timestamp_columns", "Add timestamps to links, clusters and memories.", add_timestamp_columns),
    ("add_workspace_support", "Create workspaces and add workspace ids.", add_workspace_support),
    ("remove_manual_x_override", "Drop the manual override of the x coordinate.", remove_manual_x_override),
    ("rename_chat_metadata_column", "Rename chat_history.metadata_json to metadata.", rename_chat_metadata_column),
)
NOT_STRUCTURAL = ("rename_chat_metadata_column",)
ARCHIVED = (
    ("remove_emotional_intensity", "Drop the emotional intensity of memories.", remove_emotional_intensity),
)
