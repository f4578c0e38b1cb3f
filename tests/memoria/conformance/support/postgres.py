"""The databases of the tests: a PostgreSQL cluster of their own, started by the image's entrypoint, and SQLite files."""

import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

from support.memoria import ROOT, Memoria, free_port

OWNER = "memoria"
PASSWORD = 'p@ss%w/o"rd 1'
ADMIN_PASSWORD = 'adm@in%2/"x y'


def programs() -> Path:
    """The directory of PostgreSQL's server programs: $PG_BIN, else the newest major that is installed."""
    if "PG_BIN" in os.environ:
        return Path(os.environ["PG_BIN"])
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError("no PostgreSQL server programs; install the package postgresql or set PG_BIN")
    return found[-1].parent


class Database:
    """One database of the cluster, owned by a role that is no superuser."""

    dialect = "postgresql"

    def __init__(self, port: int, name: str) -> None:
        self.port = port
        self.name = name
        self.url = f"postgresql+psycopg2://{OWNER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/{name}"
        self.url_without_password = f"postgresql+psycopg2://{OWNER}@127.0.0.1:{port}/{name}"

    def connect(self) -> Any:
        return psycopg2.connect(host="127.0.0.1", port=self.port, dbname=self.name, user=OWNER, password=PASSWORD)

    def query(self, sql: str) -> list[tuple]:
        connection = self.connect()
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    execute = query

    def value(self, sql: str) -> Any:
        return self.query(sql)[0][0]

    def tables(self) -> set[str]:
        return {row[0] for row in self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}

    def columns(self, table: str) -> list[str]:
        rows = self.query(
            f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}' ORDER BY ordinal_position"
        )
        return [row[0] for row in rows]

    def dump(self, *options: str) -> str:
        """pg_dump's text without its comments and the key that newer minors put into it, which differs each time."""
        done = subprocess.run(
            [programs() / "pg_dump", "-h", "127.0.0.1", "-p", str(self.port), "-U", OWNER, *options, self.name],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = done.stdout.splitlines()
        return "\n".join(line for line in lines if not line.startswith(("--", "\\restrict", "\\unrestrict")))

    def schema(self) -> str:
        return self.dump("--schema-only")


class SqliteDatabase:
    dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def query(self, sql: str) -> list[tuple]:
        connection = sqlite3.connect(self.path)
        try:
            with connection:
                return connection.execute(sql).fetchall()
        finally:
            connection.close()

    execute = query

    def value(self, sql: str) -> Any:
        return self.query(sql)[0][0]

    def tables(self) -> set[str]:
        rows = self.query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {row[0] for row in rows}

    def columns(self, table: str) -> list[str]:
        return [row[1] for row in self.query(f"PRAGMA table_info({table})")]

    def dump(self) -> str:
        connection = sqlite3.connect(self.path)
        try:
            return "\n".join(connection.iterdump())
        finally:
            connection.close()


def fill(memoria: Memoria, url: str, rows: int) -> None:
    """The schema of that version, and `rows` rows where there are any."""
    command = ["-m", "memoria.cli", "init-db"] if rows == 0 else ["-m", "memoria_generate", "--rows", str(rows)]
    subprocess.run(
        [sys.executable, *command, "--database-url", url],
        cwd=memoria.directory,
        env=memoria.environment(),
        check=True,
        capture_output=True,
    )


class SqliteTemplates:
    """One file for each version and size, copied for each test."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def copy_to(self, path: Path, tag: str | None, rows: int) -> SqliteDatabase:
        if tag is not None:
            template = self._directory / f"{tag}-{rows}.db"
            if not template.exists():
                fill(Memoria(tag, self._directory), f"sqlite:///{template}", rows)
            shutil.copyfile(template, path)
        return SqliteDatabase(path)


class Cluster:
    """Lives in a directory directly below the temporary one: the path of a socket must be short."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="memoria-postgres-"))
        self._port = free_port()
        self._names = 0
        self._templates: set[str] = set()

    def __enter__(self) -> "Cluster":
        prefix = []
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root; any unprivileged user will do.
            user = pwd.getpwnam("postgres")
            prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            os.chown(self._directory, user.pw_uid, user.pw_gid)
        entrypoint = (ROOT / "image" / "postgres-entrypoint.sh").read_text()
        self._log = self._directory / "log"
        environment = {
            "PATH": f"{programs()}:{os.environ['PATH']}",
            "PGDATA": str(self._directory / "data"),
            "POSTGRES_SOCKET_DIR": str(self._directory),
            "POSTGRES_USER": OWNER,
            "POSTGRES_PASSWORD": PASSWORD,
            "POSTGRES_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "POSTGRES_INITDB_ARGS": "--no-sync",
        }
        options = f"-p {self._port} -c fsync=off -c listen_addresses=127.0.0.1 -c shared_buffers=32MB"
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*prefix, "sh", "-c", entrypoint, "postgres-entrypoint", *options.split()],
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self._admin("SELECT 1")
                return self
            except psycopg2.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError(f"PostgreSQL did not start:\n{self._log.read_text()}") from None
                time.sleep(0.2)

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        shutil.rmtree(self._directory)

    def _admin(self, sql: str) -> None:
        connection = psycopg2.connect(
            host="127.0.0.1", port=self._port, dbname="postgres", user="postgres", password=ADMIN_PASSWORD
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
        finally:
            connection.close()

    def database(self, tag: str | None, rows: int) -> Database:
        """A database of its own, copied from a template of that version and size."""
        self._names += 1
        name = f"test{self._names}"
        if tag is None:
            self._admin(f"CREATE DATABASE {name} OWNER {OWNER}")
            return Database(self._port, name)
        template = f"template-{tag}-{rows}"
        if template not in self._templates:
            self._admin(f'CREATE DATABASE "{template}" OWNER {OWNER}')
            fill(Memoria(tag, self._directory), Database(self._port, template).url, rows)
            self._templates.add(template)
        self._admin(f'CREATE DATABASE {name} OWNER {OWNER} TEMPLATE "{template}"')
        return Database(self._port, name)
