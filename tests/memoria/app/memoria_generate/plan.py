"""How many rows each table gets."""

from memoria import version

# The proportions of a database of 44,000 rows, about 64 MB. Parents stand before their children.
PROPORTIONS = {
    "agents": 50,
    "teams": 10,
    "workspaces": 20,
    "workspace_members": 100,
    "chat_history": 10_000,
    "long_term_memory": 20_000,
    "short_term_memory": 2_000,
    "spatial_metadata": 4_000,
    "memory_access_events": 4_000,
    "link_memory_threads": 1_000,
    "thread_events": 200,
    "thread_message_links": 1_000,
    "clusters": 100,
    "cluster_members": 1_000,
    "policy_artifacts": 40,
    "retention_policy_audits": 460,
    "service_metadata": 20,
}
PROVENANCE = 1_000


class PlanError(Exception):
    """The number of rows cannot be divided among the tables."""


def proportions() -> dict[str, int]:
    """Of this version's schema; what the later one adds is taken from the access events, so that the sum stays."""
    if version.current().schema_revision < 2:
        return dict(PROPORTIONS)
    later = {**PROPORTIONS, "memory_access_events": PROPORTIONS["memory_access_events"] - PROVENANCE}
    return {**later, "memory_provenance": PROVENANCE}


def counts(rows: int) -> dict[str, int]:
    """Table → rows, in the order of insertion; their sum is `rows` and every table has at least one."""
    shares = proportions()
    if rows < len(shares):
        raise PlanError(f"--rows must be at least {len(shares)}, one for each table")
    whole = sum(shares.values())
    planned = {table: max(1, rows * share // whole) for table, share in shares.items()}
    # What rounding leaves over, or takes too much, is the largest table's.
    planned["long_term_memory"] += rows - sum(planned.values())
    if planned["long_term_memory"] < 1:
        planned = dict.fromkeys(shares, 1)
        planned["long_term_memory"] += rows - len(shares)
    return planned
