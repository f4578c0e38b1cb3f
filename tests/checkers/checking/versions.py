"""Which migrations lie between two versions of Memoria, by their version files."""

import tomllib
from pathlib import Path

from checking.outcome import CannotAsk

# What each of them does to data and schema is recomputed in upgrade.py and additions.py.
WITH_EFFECT = ("add_memory_provenance", "add_consent_scope", "normalize_retention_types")
# Every schema since 0.9.0 has what these add, and lacks what they drop.
WITHOUT_EFFECT = (
    "add_cluster_centroids", "add_cluster_member_counts", "add_cluster_member_token_columns", "add_cluster_token_columns",
    "add_memory_embeddings", "add_policy_artifacts", "add_spatial_namespace", "add_team_support", "add_timestamp_columns",
    "add_workspace_support", "remove_manual_x_override", "rename_chat_metadata_column",
)  # fmt: skip


def migrations_between(directory: Path, old: str, new: str) -> list[str]:
    before, after = _migrations(directory, old), _migrations(directory, new)
    if set(before) - set(after):
        raise CannotAsk(f"{new} lacks migrations of {old}; no upgrade leads from {old} to {new}")
    return known([name for name in after if name not in before])


def known(names: list[str]) -> list[str]:
    unknown = set(names) - {*WITH_EFFECT, *WITHOUT_EFFECT}
    if unknown:
        raise CannotAsk(f"what {', '.join(sorted(unknown))} must yield is not known here; teach tests/checkers/checking/upgrade.py")
    return names


def _migrations(directory: Path, tag: str) -> list[str]:
    path = directory / f"{tag}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).get("migrations", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CannotAsk(f"{path} cannot be read: {error}; name the directory of the version files by --versions") from error
