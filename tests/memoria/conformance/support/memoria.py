"""Runs Memoria's processes as the image would, from the source tree."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app"
VERSIONS = ROOT / "versions"
KEY = 'k@y%/"1 2'
TIMEOUT_SECONDS = 60

MANY = """
import json, sys
from memoria.cli import main
for argv in json.loads(sys.argv[1]):
    try:
        code = main(argv)
    except SystemExit as left:
        code = left.code
    print("exit", code, flush=True)
"""


@dataclass
class Answer:
    status: int
    body: Any


@dataclass
class Process:
    handle: subprocess.Popen
    log: Path

    def terminate(self) -> float:
        """Sends TERM and returns the seconds until it was gone; fails when that takes more than ten."""
        sent = time.monotonic()
        self.handle.send_signal(signal.SIGTERM)
        self.handle.wait(timeout=10)
        return time.monotonic() - sent

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> int:
        return self.handle.wait(timeout=seconds)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


class Memoria:
    def __init__(self, tag: str, directory: Path) -> None:
        self.tag = tag
        self.directory = directory
        self._processes: list[Process] = []

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "PYTHONPATH": str(APP),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MEMORIA_VERSION_FILE": str(VERSIONS / f"{self.tag}.toml"),
            **more,
        }

    def cli(self, *arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "memoria.cli", *arguments],
            cwd=self.directory,
            env=self.environment(**environment),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )

    def cli_many(self, *calls: list[str]) -> tuple[list[int], str]:
        """Several calls of the command line in one interpreter: exit codes and all output, standard error included."""
        done = subprocess.run(
            [sys.executable, "-c", MANY, json.dumps(calls)],
            cwd=self.directory,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exit ")]
        assert len(codes) == len(calls), done.stdout
        return codes, done.stdout

    def migrate(self, url: str, *names: str) -> tuple[list[int], str]:
        return self.cli_many(*(["migrate", "run", name, "--database-url", url] for name in names))

    def migrations(self) -> list[str]:
        listed = self.cli("migrate", "list")
        assert listed.returncode == 0, listed.stderr
        return [line.split("  ", 1)[0] for line in listed.stdout.splitlines()]

    def start(self, *command: str, **environment: str) -> Process:
        log = self.directory / f"process{len(self._processes)}.log"
        with log.open("wb") as sink:
            handle = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.directory,
                env=self.environment(**environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        process = Process(handle, log)
        self._processes.append(process)
        return process

    def start_server(self, url: str, *, workers: int = 1, **environment: str) -> tuple[Process, int]:
        """gunicorn with the options of the manifests; it may not be ready yet."""
        port = free_port()
        process = self.start(
            *("-m", "gunicorn", f"--bind=127.0.0.1:{port}", f"--workers={workers}", "--threads=4", "--timeout=120"),
            *("--graceful-timeout=5", "memoria.server:app"),
            MEMORIA_DATABASE__CONNECTION_STRING=url,
            MEMORIA_API_KEY=KEY,
            **environment,
        )
        return process, port

    @contextmanager
    def server(self, url: str, **options: Any):
        """A ready server, stopped at the end; gives the port."""
        process, port = self.start_server(url, **options)
        wait_until(lambda: settings_status(port) == 200, process=process)
        yield port
        process.terminate()

    def stop_all(self) -> None:
        for process in self._processes:
            if process.handle.poll() is None:
                process.handle.kill()
                process.handle.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(port: int, path: str, body: Any = None, *, key: str | None = KEY, timeout: float = 30) -> Answer:
    """GET, or POST where there is a body (a string goes as it is). Status 0 when nobody answered."""
    data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
    headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key is not None else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return Answer(answer.status, _decoded(answer.read()))
    except urllib.error.HTTPError as error:
        return Answer(error.code, _decoded(error.read()))
    except OSError:
        return Answer(0, None)


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode()


def settings_status(port: int) -> int:
    return call(port, "/settings", timeout=2).status


def wait_until(condition: Any, *, seconds: float = TIMEOUT_SECONDS, process: Process | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.handle.poll() is not None:
            raise AssertionError(f"the process ended with {process.handle.returncode}:\n{process.output()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s:\n{process.output() if process else ''}")
        time.sleep(0.1)
