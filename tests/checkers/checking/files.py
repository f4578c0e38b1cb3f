"""Searches files below directories; dumps of databases are left out by how they begin, never by their name."""

import gzip
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from checking.outcome import CannotAsk
from checking.secrets import CHUNK, Findings

DUMPS = {b"PGDMP": "a pg_dump archive", b"SQLite format 3\0": "a SQLite database"}
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def search(directory: Path, findings: Findings) -> None:
    if not directory.is_dir():
        raise CannotAsk(f"{directory} is no directory")
    for folder, folders, names in os.walk(directory, onerror=lambda error: findings.unsearched.append(str(error))):
        for name in [*folders, *names]:
            findings.record(f"name of {Path(folder, name)}", findings.finder.find(os.fsencode(name)))
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file():
                _search_file(path, findings)


def _search_file(path: Path, findings: Findings) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start[:2] == GZIP:
                with gzip.open(file) as inner:
                    _search_content(f"{path} (inside gzip)", inner, path, findings)
            elif start == ZSTD:
                _search_zstd(path, findings)
            else:
                _search_content(str(path), file, path, findings)
    except (OSError, EOFError, zlib.error) as error:
        findings.unsearched.append(f"{path}: {error}")


def _search_content(place: str, file: BinaryIO, path: Path, findings: Findings) -> None:
    start = file.read(16)
    for magic, what in DUMPS.items():
        if start.startswith(magic):
            findings.excluded.append(f"{path}: {what}, which holds table data")
            return
    findings.count("files", path.stat().st_size)
    findings.record(place, findings.finder.find_in_stream(_chunks(start, file)))


def _chunks(start: bytes, file: BinaryIO) -> Iterator[bytes]:
    yield start
    while chunk := file.read(CHUNK):
        yield chunk


def _search_zstd(path: Path, findings: Findings) -> None:
    if shutil.which("zstd") is None:
        findings.unsearched.append(f"{path}: compressed with zstd, and there is no zstd to read it with")
        return
    with subprocess.Popen(["zstd", "-dcq", "--", path], stdout=subprocess.PIPE) as process:
        _search_content(f"{path} (inside zstd)", process.stdout, path, findings)
