"""What every conformance test stands on: a private PostgreSQL, databases to try things on, and Memoria's processes."""

import pytest

from support.memoria import Memoria
from support.postgres import Cluster, Database, SqliteDatabase, SqliteTemplates


@pytest.fixture(scope="session")
def cluster():
    with Cluster() as running:
        yield running


@pytest.fixture
def make_database(request, tmp_path):
    """make_database(dialect, tag="0.9.0", rows=0): without a tag empty, with one its schema, with rows filled."""
    count = 0

    def make(dialect: str, tag: str | None = None, rows: int = 0) -> Database | SqliteDatabase:
        nonlocal count
        count += 1
        if dialect == "sqlite":
            templates = request.getfixturevalue("sqlite_templates")
            return templates.copy_to(tmp_path / f"database{count}.db", tag, rows)
        return request.getfixturevalue("cluster").database(tag, rows)

    return make


@pytest.fixture(scope="session")
def sqlite_templates(tmp_path_factory):
    return SqliteTemplates(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request):
    return request.param


@pytest.fixture
def memoria(tmp_path):
    """memoria(tag): the Memoria of that version, with a working directory of its own. Its processes end with the test."""
    started = []

    def make(tag: str) -> Memoria:
        directory = tmp_path / f"work{len(started)}"
        directory.mkdir()
        started.append(Memoria(tag, directory))
        return started[-1]

    yield make
    for one in started:
        one.stop_all()
