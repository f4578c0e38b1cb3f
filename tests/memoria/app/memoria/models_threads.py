"""The tables around the memories: access events, links, threads, clusters, policies and their audits."""

from sqlalchemy import JSON, DateTime, Float, ForeignKey, Index, Integer, String, Text

from memoria.models import Base, optional, required, serial_key, text_key


class MemoryAccessEvent(Base):
    __tablename__ = "memory_access_events"
    id = serial_key()
    memory_id = required(index=True)
    namespace = required()
    team_id = optional()
    accessed_at = required(DateTime)
    access_type = required()
    source = optional()
    metadata_json = optional(JSON)
    workspace_id = optional()
    __table_args__ = (
        Index("ix_memory_access_events_type_time", "access_type", "accessed_at"),
        # SQLite then keeps ids in sqlite_sequence, which a restore must not forget.
        {"sqlite_autoincrement": True},
    )


class LinkMemoryThread(Base):
    __tablename__ = "link_memory_threads"
    id = serial_key()
    source_memory_id = required(String, ForeignKey("long_term_memory.memory_id"), index=True)
    target_memory_id = required()
    relation = required()
    created_at = required(DateTime)


class ThreadEvent(Base):
    __tablename__ = "thread_events"
    thread_id = text_key()
    namespace = required(index=True)
    symbolic_anchors = optional(JSON)
    ritual_name = optional()
    ritual_phase = optional()
    ritual_metadata = optional(JSON)
    centroid_x = optional(Float)
    centroid_y = optional(Float)
    centroid_z = optional(Float)
    created_at = required(DateTime)
    updated_at = required(DateTime)


class ThreadMessageLink(Base):
    __tablename__ = "thread_message_links"
    id = serial_key()
    thread_id = required(String, ForeignKey("thread_events.thread_id"))
    memory_id = required(index=True)
    namespace = required()
    sequence_index = required(Integer)
    role = optional()
    anchor = optional()
    timestamp = optional(DateTime)
    __table_args__ = (
        Index("ix_thread_message_links_thread_sequence", "thread_id", "sequence_index", unique=True),
    )


class Cluster(Base):
    __tablename__ = "clusters"
    id = serial_key()
    summary = required(Text)
    centroid = optional(JSON)
    y_centroid = optional(Float)
    z_centroid = optional(Float)
    polarity = optional(Float)
    subjectivity = optional(Float)
    size = optional(Integer)
    avg_importance = optional(Float)
    update_count = optional(Integer)
    last_updated = optional(DateTime)
    weight = optional(Float)
    total_tokens = optional(Integer)
    total_chars = optional(Integer)


class ClusterMember(Base):
    __tablename__ = "cluster_members"
    id = serial_key()
    memory_id = required(index=True)
    anchor = optional()
    summary = required(Text)
    tokens = optional(Integer)
    chars = optional(Integer)
    cluster_id = required(Integer, ForeignKey("clusters.id"), index=True)


class PolicyArtifact(Base):
    __tablename__ = "policy_artifacts"
    id = serial_key()
    name = required()
    artifact_type = required()
    namespace = required()
    payload = required(JSON)
    schema_version = required()
    created_at = required(DateTime)
    updated_at = required(DateTime)
    created_by = optional()
    workspace_id = optional()
    team_id = optional()
    __table_args__ = (
        Index("ix_policy_artifacts_identity", "name", "artifact_type", "namespace", unique=True),
    )


class RetentionPolicyAudit(Base):
    __tablename__ = "retention_policy_audits"
    id = serial_key()
    memory_id = optional()
    namespace = required()
    policy_name = required()
    action = required()
    escalate_to = optional()
    details = optional(JSON)
    created_at = required(DateTime, index=True)
    team_id = optional()
    workspace_id = optional()
    __table_args__ = ({"sqlite_autoincrement": True},)
