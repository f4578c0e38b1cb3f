"""Which Memoria this is: reads version.toml, the one file in which two images differ."""

import os
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "version.toml"

MIGRATE_FAULTS = ("half-ddl-then-exit-1", "reports-failure-schema-wrong", "reports-failure-schema-right", "hangs-in-transaction")
START_FAULTS = ("crash", "alter-then-crash", "transactional-probe")


class VersionFileError(Exception):
    """version.toml is missing or says something that this code does not know."""


@dataclass(frozen=True)
class Faults:
    """Each set member is one way in which this version is broken; unset means it works."""

    migrate: str | None = None
    migrate_name: str | None = None
    start: str | None = None
    init_db: str | None = None
    system_exit: str | None = None
    never_ready: bool = False
    bootstrap_fails: bool = False
    telemetry_silent: bool = False


@dataclass(frozen=True)
class Version:
    version: str
    base: str
    schema_revision: int
    migrations: tuple[str, ...] = ()
    accepts_all: bool = False
    accepts_list_url: bool = False
    faults: Faults = field(default_factory=Faults)


def _build(cls, table: dict, where: str):
    known = set(cls.__dataclass_fields__)
    unknown = set(table) - known
    if unknown:
        raise VersionFileError(f"{where}: unknown keys {sorted(unknown)}; known are {sorted(known)}")
    return cls(**table)


def _checked(faults: Faults, where: str) -> Faults:
    if faults.migrate is not None and faults.migrate not in MIGRATE_FAULTS:
        raise VersionFileError(f"{where}: faults.migrate is one of {MIGRATE_FAULTS}")
    if (faults.migrate is None) != (faults.migrate_name is None):
        raise VersionFileError(f"{where}: faults.migrate and faults.migrate_name go together")
    if faults.start is not None and faults.start not in START_FAULTS:
        raise VersionFileError(f"{where}: faults.start is one of {START_FAULTS}")
    if faults.init_db not in (None, "transactional-probe"):
        raise VersionFileError(f"{where}: faults.init_db can only be 'transactional-probe'")
    return faults


def load(path: Path) -> Version:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VersionFileError(f"{path} is missing; bake one of versions/*.toml there or set MEMORIA_VERSION_FILE") from error
    faults = _checked(_build(Faults, table.pop("faults", {}), f"{path} [faults]"), str(path))
    table["migrations"] = tuple(table.get("migrations", ()))
    return _build(Version, {**table, "faults": faults}, str(path))


@cache
def current() -> Version:
    return load(Path(os.environ.get("MEMORIA_VERSION_FILE") or DEFAULT_FILE))
