"""`bootstrap`: writes memoria.json and .env for a new installation. It touches no database."""

import json
import secrets
import sys
from pathlib import Path
from typing import Any

from memoria import version

DEFAULTS: dict[str, Any] = {
    "database_url": "sqlite:///memoria.db",
    "namespace": "default",
    "team_mode": False,
    "ingestion_enabled": True,
}


def run(*, config: Path, env_file: Path, force: bool, ask: bool, answers_file: Path | None) -> int:
    there = [str(path) for path in (config, env_file) if path.exists()]
    if there and not force:
        print(f"Error: {', '.join(there)} exists; use --force to overwrite.", file=sys.stderr)
        return 1
    answers = dict(DEFAULTS)
    if answers_file is not None:
        answers.update(json.loads(answers_file.read_text(encoding="utf-8")))
    elif ask:
        answers.update(_asked(answers))
    # The fault: this release reads an answer by the name that only an unreleased form gives it.
    namespace = answers["memory_namespace"] if version.current().faults.bootstrap_fails else answers["namespace"]
    document = {
        "version": version.current().version,
        "database": {"connection_string": answers["database_url"], "migration_auto": True},
        "memory": {"namespace": namespace, "team_mode": answers["team_mode"]},
        "ingestion": {"enabled": answers["ingestion_enabled"]},
    }
    for path in (config, env_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    env_file.touch(mode=0o600)
    env_file.write_text(
        f"MEMORIA_DATABASE__CONNECTION_STRING={answers['database_url']}\nMEMORIA_API_KEY={secrets.token_urlsafe(24)}\n",
        encoding="utf-8",
    )
    print(f"Wrote {config} and {env_file}")
    return 0


def _asked(defaults: dict[str, Any]) -> dict[str, Any]:
    answers = {}
    for key in ("database_url", "namespace"):
        given = input(f"{key} [{defaults[key]}]: ").strip()
        if given:
            answers[key] = given
    return answers
