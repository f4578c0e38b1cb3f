"""The ingestion worker, `python -m memoria.worker`: takes jobs from the queue and posts them to the server.

MEMORIA_QUEUE_URL         the queue, e.g. http://memoria-queue:8080
MEMORIA_SERVER_URL        the server, e.g. http://memoria-server:8000
MEMORIA_API_KEY           sent as X-API-Key
MEMORIA_MAINTENANCE_FILE  while this file's content is "true", no job is taken

A job is a body of POST /memory. The job's id is its memory_id unless it brings one, so a job that comes twice is stored once.
"""

import json
import logging
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger("memoria.worker")

POLL_SECONDS = 2.0
PAUSE_SECONDS = 0.5
RETRY_SECONDS = 1.0
HTTP_TIMEOUT_SECONDS = 10.0
# On the way out nothing may take long; the lease runs out by itself.
LAST_HTTP_TIMEOUT_SECONDS = 0.3


class Stop(BaseException):
    """Raised by the signal handler, out of whatever the worker waits for."""


class Worker:
    def __init__(self, queue_url: str, server_url: str, api_key: str, maintenance_file: Path | None) -> None:
        self._queue_url = queue_url.rstrip("/")
        self._server_url = server_url.rstrip("/")
        self._api_key = api_key
        self._maintenance_file = maintenance_file
        self._idle = threading.Event()
        self._leased: str | None = None
        self._paused = False

    def run(self) -> None:
        try:
            while True:
                self._step()
        except Stop:
            if self._leased is not None:
                self._give_back(self._leased, LAST_HTTP_TIMEOUT_SECONDS)

    def _step(self) -> None:
        paused = self._in_maintenance()
        if paused != self._paused:
            log.info("maintenance %s", "on: taking no jobs" if paused else "off")
            self._paused = paused
        if paused:
            self._idle.wait(PAUSE_SECONDS)
            return
        try:
            leased = _call(f"{self._queue_url}/jobs/next?wait={POLL_SECONDS}", timeout=POLL_SECONDS + HTTP_TIMEOUT_SECONDS)
        except OSError as error:
            log.warning("queue: %s", error)
            self._idle.wait(RETRY_SECONDS)
            return
        if leased is not None:
            self._ingest(leased["id"], leased["job"])

    def _in_maintenance(self) -> bool:
        if self._maintenance_file is None:
            return False
        try:
            return self._maintenance_file.read_text(encoding="utf-8").strip() == "true"
        except FileNotFoundError:
            return False

    def _ingest(self, identity: str, job: dict[str, Any]) -> None:
        self._leased = identity
        body = {"memory_id": identity, "source": "worker", **job}
        try:
            _call(f"{self._server_url}/memory", body, {"X-API-Key": self._api_key}, timeout=HTTP_TIMEOUT_SECONDS)
            _call(f"{self._queue_url}/jobs/{identity}/done", {}, timeout=HTTP_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code == 400:
                # It will never be accepted; keeping it would stop the queue for ever.
                log.error("job %s refused: %s", identity, error.read().decode(errors="replace").strip())
                self._finish_refused(identity)
            else:
                log.warning("job %s: %s", identity, error)
                self._give_back(identity, HTTP_TIMEOUT_SECONDS)
                self._idle.wait(RETRY_SECONDS)
        except OSError as error:
            log.warning("job %s: %s", identity, error)
            self._give_back(identity, HTTP_TIMEOUT_SECONDS)
            self._idle.wait(RETRY_SECONDS)
        self._leased = None

    def _finish_refused(self, identity: str) -> None:
        try:
            _call(f"{self._queue_url}/jobs/{identity}/done", {}, timeout=HTTP_TIMEOUT_SECONDS)
        except OSError as error:
            log.warning("queue: %s", error)

    def _give_back(self, identity: str, timeout: float) -> None:
        try:
            _call(f"{self._queue_url}/jobs/{identity}/retry", {}, timeout=timeout)
        except OSError as error:
            log.warning("job %s not given back, its lease will run out: %s", identity, error)


def _call(url: str, body: Any = None, headers: dict[str, str] | None = None, *, timeout: float) -> Any:
    """The decoded answer, None where it is empty. Without a body a GET, else a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def _stop(number: int, frame: FrameType | None) -> None:
    # Only once: a second signal must not interrupt the handing back.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Stop


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        queue_url, server_url = os.environ["MEMORIA_QUEUE_URL"], os.environ["MEMORIA_SERVER_URL"]
    except KeyError as missing:
        log.error("set %s", missing.args[0])
        return 2
    file = os.environ.get("MEMORIA_MAINTENANCE_FILE")
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    Worker(queue_url, server_url, os.environ.get("MEMORIA_API_KEY", ""), Path(file) if file else None).run()
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
