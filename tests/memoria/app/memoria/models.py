"""The tables of the core entities: agents, teams, chats, memories. The rest is in models_threads.py.

Column names and types are Memoria's own and fixed by its contract; keys, indexes and the cycle
between workspaces and their members are this stand-in's, so that restores meet what real databases have.
A column that a later schema revision brings stands last in its table, where ALTER TABLE puts it.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, mapped_column

from memoria import version

REVISION = version.current().schema_revision


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        }
    )


def text_key():
    return mapped_column(String, primary_key=True)


def serial_key():
    return mapped_column(Integer, primary_key=True)


def required(kind=String, *args, **options):
    return mapped_column(kind, *args, nullable=False, **options)


def optional(kind=String, *args, **options):
    # A missing JSON value is NULL, never the JSON literal null, so that a round trip keeps it.
    return mapped_column(JSON(none_as_null=True) if kind is JSON else kind, *args, nullable=True, **options)


class Agent(Base):
    __tablename__ = "agents"
    agent_id = text_key()
    name = required()
    role = optional()
    preferred_model = optional()
    is_agent = required(Boolean)
    metadata_ = optional(JSON, name="metadata")
    created_at = required(DateTime)
    updated_at = required(DateTime)


class Team(Base):
    __tablename__ = "teams"
    team_id = text_key()
    name = required()
    slug = required()
    description = optional(Text)
    created_at = required(DateTime)
    updated_at = required(DateTime)
    __table_args__ = (Index("ix_teams_slug", "slug", unique=True),)


class Workspace(Base):
    __tablename__ = "workspaces"
    workspace_id = text_key()
    name = required()
    slug = required()
    description = optional(Text)
    owner_id = optional()
    team_id = optional(String, ForeignKey("teams.team_id"), index=True)
    created_at = required(DateTime)
    updated_at = required(DateTime)
    __table_args__ = (
        Index("ix_workspaces_slug", "slug", unique=True),
        # The owner is a member, and a member belongs to a workspace: the cycle.
        ForeignKeyConstraint(
            ["workspace_id", "owner_id"],
            ["workspace_members.workspace_id", "workspace_members.user_id"],
            name="fk_workspaces_owner_is_member",
            deferrable=True,
            initially="DEFERRED",
            use_alter=True,
        ),
    )


class WorkspaceMember(Base):
    __tablename__ = "workspace_members"
    id = serial_key()
    workspace_id = required(
        String, ForeignKey("workspaces.workspace_id", deferrable=True, initially="DEFERRED")
    )
    user_id = required()
    role = required()
    is_admin = required(Boolean)
    is_agent = required(Boolean)
    joined_at = required(DateTime)
    updated_at = required(DateTime)
    __table_args__ = (UniqueConstraint("workspace_id", "user_id"),)


class ChatHistory(Base):
    __tablename__ = "chat_history"
    chat_id = text_key()
    user_input = required(Text)
    ai_output = required(Text)
    model = required()
    timestamp = required(DateTime, index=True)
    session_id = required()
    namespace = required(index=True)
    tokens_used = optional(Integer)
    metadata_ = optional(JSON, name="metadata")
    team_id = optional(String, ForeignKey("teams.team_id"), index=True)
    workspace_id = optional(String, ForeignKey("workspaces.workspace_id"), index=True)
    last_edited_by_model = optional()


class LongTermMemory(Base):
    __tablename__ = "long_term_memory"
    memory_id = text_key()
    original_chat_id = optional(String, ForeignKey("chat_history.chat_id"), index=True)
    processed_data = required(JSON)
    importance_score = required(Float)
    category_primary = required()
    retention_type = required()
    namespace = required()
    timestamp = required(DateTime)
    created_at = required(DateTime)
    access_count = optional(Integer)
    last_accessed = optional(DateTime)
    searchable_content = required(Text)
    summary = required(Text)
    novelty_score = optional(Float)
    relevance_score = optional(Float)
    actionability_score = optional(Float)
    x_coord = optional(Float)
    y_coord = optional(Float)
    z_coord = optional(Float)
    symbolic_anchors = optional(JSON)
    embedding = optional(JSON)
    documents_json = optional(JSON)
    team_id = optional()
    workspace_id = optional()
    last_edited_by_model = optional()
    classification = required()
    memory_importance = required()
    topic = optional()
    entities_json = optional(JSON)
    keywords_json = optional(JSON)
    is_user_context = optional(Boolean)
    is_preference = optional(Boolean)
    is_skill_knowledge = optional(Boolean)
    is_current_project = optional(Boolean)
    promotion_eligible = optional(Boolean)
    duplicate_of = optional(
        String,
        ForeignKey("long_term_memory.memory_id", deferrable=True, initially="DEFERRED"),
        index=True,
    )
    supersedes_json = optional(JSON)
    related_memories_json = optional(JSON)
    confidence_score = optional(Float)
    extraction_timestamp = required(DateTime)
    classification_reason = optional(Text)
    processed_for_duplicates = optional(Boolean)
    conscious_processed = optional(Boolean)
    if REVISION >= 2:
        consent_scope = required(server_default="workspace")
        reviewed_at = optional(DateTime)
    __table_args__ = (
        Index("ix_long_term_memory_namespace_category", "namespace", "category_primary"),
        *((Index("ix_long_term_memory_consent_scope", "consent_scope"),) if REVISION >= 2 else ()),
    )


class ShortTermMemory(Base):
    __tablename__ = "short_term_memory"
    memory_id = text_key()
    chat_id = optional(String, ForeignKey("chat_history.chat_id"), index=True)
    processed_data = required(JSON)
    importance_score = required(Float)
    category_primary = required()
    retention_type = required()
    namespace = required(index=True)
    created_at = required(DateTime)
    expires_at = optional(DateTime)
    access_count = optional(Integer)
    last_accessed = optional(DateTime)
    searchable_content = required(Text)
    summary = required(Text)
    is_permanent_context = optional(Boolean)
    x_coord = optional(Float)
    y_coord = optional(Float)
    z_coord = optional(Float)
    symbolic_anchors = optional(JSON)
    embedding = optional(JSON)
    team_id = optional()
    workspace_id = optional()
    last_edited_by_model = optional()


class SpatialMetadata(Base):
    __tablename__ = "spatial_metadata"
    memory_id = text_key()
    namespace = required(index=True)
    team_id = optional()
    timestamp = required(DateTime)
    x = optional(Float)
    y = optional(Float)
    z = optional(Float)
    symbolic_anchors = optional(JSON)
    workspace_id = optional()


if REVISION >= 2:

    class MemoryProvenance(Base):
        """New in schema revision 2: where a memory came from."""

        __tablename__ = "memory_provenance"
        id = serial_key()
        memory_id = required(
            String, ForeignKey("long_term_memory.memory_id", ondelete="CASCADE"), index=True
        )
        origin = required()
        origin_id = optional()
        confidence = required(Float, server_default="1.0")
        recorded_at = required(DateTime)
        __table_args__ = (UniqueConstraint("memory_id", "origin"),)
