"""One session of psql, fed statement by statement: locally, or in a pod by `kubectl exec -i`."""

import re
import shlex
import subprocess
import tempfile
import uuid
from collections.abc import Iterator

from checking.outcome import CannotAsk

OPTIONS = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set=ON_ERROR_STOP=1"]
HOLDS_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@|\bpassword\s*=|PGPASSWORD\s*=", re.IGNORECASE)


def command(prefix: str) -> list[str]:
    if HOLDS_PASSWORD.search(prefix):
        raise CannotAsk("the --psql prefix holds a password, which every process of the machine could read; use PGPASSFILE")
    words = shlex.split(prefix)
    if not words:
        raise CannotAsk("the --psql prefix is empty")
    return [*words, *OPTIONS]


class Session:
    """Its process ends with the `with` block; an error of the server ends the session, because of ON_ERROR_STOP."""

    def __init__(self, prefix: str) -> None:
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                command(prefix), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            raise CannotAsk(f"{shlex.split(prefix)[0]} cannot be started: {error}") from error

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def run(self, sql: str) -> None:
        for line in self.lines(sql):
            raise CannotAsk(f"psql printed where nothing was expected: {line[:200]!r}")

    def lines(self, sql: str) -> Iterator[bytes]:
        """Runs statements, each ended by a semicolon, and gives what they print, with the line ends."""
        marker = uuid.uuid4().hex
        try:
            self._process.stdin.write(f"{sql}\nSELECT '{marker}';\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise CannotAsk(self._why()) from None
        end = marker.encode() + b"\n"
        for line in self._process.stdout:
            if line == end:
                return
            yield line
        raise CannotAsk(self._why())

    def _why(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return f"psql ended with {code}: {said or 'it said nothing'}"
