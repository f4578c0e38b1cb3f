"""A private PostgreSQL for the tests, as a user that is not root, and Memorias made on it by the stand-in itself."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

CHECKERS = Path(__file__).resolve().parents[1]
MEMORIA = CHECKERS.parent / "memoria"
# As in a real installation the owner is no superuser.
OWNER, VISITOR = "memoria", "visitor"


def programs() -> Path:
    """Server programs: $PG_BIN, else the newest major below /usr/lib/postgresql."""
    if "PG_BIN" in os.environ:
        return Path(os.environ["PG_BIN"])
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError("no PostgreSQL server programs; install the package postgresql or set PG_BIN")
    return found[-1].parent


class Postgres:
    """Trusts its socket, whose directory only this user and root can enter."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="checkers-postgres-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.directory, user.pw_uid, user.pw_gid)
            self._prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._databases = 0
        self._run(programs() / "initdb", "--no-sync", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-D", self.data)
        settings = ["fsync=off", "listen_addresses=", "shared_buffers=32MB", "max_connections=20"]
        options = [word for setting in settings for word in ("-c", setting)]
        self._log = (self.directory / "log").open("wb")
        self._server = subprocess.Popen(
            [*self._prefix, programs() / "postgres", "-D", self.data, "-k", self.directory, "-p", str(self.port), *options],
            cwd="/", stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not (self.directory / f".s.PGSQL.{self.port}").exists() or self.try_sql("SELECT 1", "postgres", "postgres") != 0:
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise RuntimeError((self.directory / "log").read_text())
            time.sleep(0.1)
        self.sql(f"CREATE ROLE {OWNER} LOGIN; CREATE ROLE {VISITOR} LOGIN", "postgres", "postgres")

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def _run(self, *command: object) -> None:
        subprocess.run([*self._prefix, *map(str, command)], check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def stop(self) -> None:
        self._server.terminate()
        self._server.wait(timeout=30)
        self._log.close()
        shutil.rmtree(self.directory)

    def prefix(self, database: str, user: str = OWNER) -> str:
        return f"psql -h {self.directory} -p {self.port} -U {user} -d {database}"

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2://{OWNER}@/{database}?host={self.directory}&port={self.port}"

    def try_sql(self, sql: str, database: str, user: str = OWNER) -> int:
        command = [*self.prefix(database, user).split(), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode

    def sql(self, sql: str, database: str, user: str = OWNER) -> str:
        command = [*self.prefix(database, user).split(), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        done = subprocess.run(command, input=sql, capture_output=True, text=True)
        if done.returncode != 0:
            raise AssertionError(f"{sql}: {done.stderr}")
        return done.stdout.strip()

    def create(self, template: str | None = None) -> str:
        self._databases += 1
        name = f"memoria{self._databases}"
        self.sql(f"CREATE DATABASE {name} OWNER {OWNER}" + (f" TEMPLATE {template}" if template else ""), "postgres", "postgres")
        return name


@cache
def _python() -> str:
    return subprocess.run([MEMORIA / "conformance" / "venv.sh"], check=True, capture_output=True, text=True).stdout.strip()


def memoria(tag: str, *arguments: str) -> str:
    """Runs a program of the stand-in of that version, e.g. `-m memoria.cli …`, in an empty directory."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(MEMORIA / "app"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MEMORIA_VERSION_FILE": str(MEMORIA / "versions" / f"{tag}.toml"),
    }
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run([_python(), *arguments], cwd=directory, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{arguments[:4]} of {tag}: {done.stderr[-2000:]}")
    return done.stdout


MIGRATE = """
import sys
from memoria import database, migrations
engine = database.connect(sys.argv[1])
for migration in migrations.available():
    try:
        migration.apply(engine)
    except SystemExit:
        pass
"""
START = """
import sys
from memoria import database, startup
for _ in range(int(sys.argv[2])):
    startup.prepare(database.connect(sys.argv[1]), {"database": {"migration_auto": True}})
"""
POST = """
import sys
from memoria import database, memories
engine = database.connect(sys.argv[1])
for identity in sys.argv[2:]:
    memories.store(engine, {"memory_id": identity, "user_input": "written meanwhile"}, default_namespace="default")
"""


def generate(url: str, rows: int, tag: str = "0.9.0") -> None:
    memoria(tag, "-m", "memoria_generate", "--rows", str(rows), "--seed", "7", "--database-url", url)


def migrate(url: str, tag: str = "1.0.0") -> None:
    """Every migration of the version, in one process rather than in fifteen."""
    memoria(tag, "-c", MIGRATE, url)


def start(url: str, times: int = 1, tag: str = "1.0.0") -> None:
    """What a starting server does to the database, without serving."""
    memoria(tag, "-c", START, url, str(times))


def post(url: str, *identities: str, tag: str = "1.0.0") -> None:
    """Memories as the server stores them; one that is known already counts as read."""
    memoria(tag, "-c", POST, url, *identities)
