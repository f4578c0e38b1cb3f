"""Export and import of the data set. It knows fourteen tables, and everything goes through memory."""

from memoria.models import (
    Agent,
    ChatHistory,
    LongTermMemory,
    ShortTermMemory,
    SpatialMetadata,
    Team,
    Workspace,
    WorkspaceMember,
)
from memoria.models_threads import (
    Cluster,
    ClusterMember,
    LinkMemoryThread,
    MemoryAccessEvent,
    ThreadEvent,
    ThreadMessageLink,
)

# The order of both directions. Policies, retention audits and the service's metadata were never added.
MODELS = {
    model.__tablename__: model
    for model in (
        Agent,
        Team,
        Workspace,
        WorkspaceMember,
        ChatHistory,
        LongTermMemory,
        ShortTermMemory,
        SpatialMetadata,
        MemoryAccessEvent,
        LinkMemoryThread,
        ThreadEvent,
        ThreadMessageLink,
        Cluster,
        ClusterMember,
    )
}
FORMATS = ("json", "ndjson")


class TransferError(Exception):
    """The request or the file cannot be used; the message says why."""


def chosen(tables: list[str] | None) -> list[str]:
    """The tables asked for, in order; all of them where none is named."""
    unknown = sorted(set(tables or ()) - set(MODELS))
    if unknown:
        raise TransferError(f"Unknown tables: {', '.join(unknown)}. Known are: {', '.join(MODELS)}.")
    return [name for name in MODELS if not tables or name in tables]
