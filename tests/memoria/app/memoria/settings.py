"""The server's settings: defaults, over them config.yaml where there is one, over that the environment."""

import copy
import os
from pathlib import Path
from typing import Any

import yaml

from memoria import database

ENVIRONMENT_PREFIX = "MEMORIA_"

DEFAULTS: dict[str, Any] = {
    "debug": False,
    "verbose": False,
    "database": {"connection_string": database.DEFAULT_URL, "migration_auto": True},
    "agents": {"default_model": "local-small", "max_parallel": 4},
    "memory": {"namespace": "default", "team_mode": False, "sovereign_ingest": False},
    "integrations": {"litellm_enabled": False},
    "policy": {"retention_rules": []},
}


class SettingsError(Exception):
    """config.yaml or an environment variable cannot be used."""


def load() -> dict[str, Any]:
    settings = copy.deepcopy(DEFAULTS)
    path = Path(os.environ.get("MEMORIA_CONFIG_FILE") or "config.yaml")
    if path.exists():
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise SettingsError(f"{path} is no YAML: {error}") from error
        if not isinstance(document, dict):
            raise SettingsError(f"{path} must hold a mapping")
        _merge(settings, document)
    _apply_environment(settings)
    return settings


def _merge(into: dict[str, Any], document: dict[str, Any]) -> None:
    for key, value in document.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _apply_environment(settings: dict[str, Any]) -> None:
    """MEMORIA_DATABASE__MIGRATION_AUTO=false sets database.migration_auto, and so for every setting of two levels."""
    for section, values in settings.items():
        if not isinstance(values, dict):
            continue
        for key in values:
            text = os.environ.get(f"{ENVIRONMENT_PREFIX}{section.upper()}__{key.upper()}")
            if text is not None:
                # Only booleans and numbers are parsed: a URL may hold anything that YAML finds meaning in.
                values[key] = text if isinstance(values[key], str) else yaml.safe_load(text)


def public(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the database's password."""
    shown = copy.deepcopy(settings)
    shown["database"]["connection_string"] = database.without_password(settings["database"]["connection_string"])
    return shown
