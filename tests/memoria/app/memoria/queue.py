"""The ingestion queue, `python -m memoria.queue`: a service of its own, outside the database, that lives as long as its process.

POST /jobs              one job object, or {"jobs": [job, …]}         → 202 {"ids": […], "depth": n}
GET  /jobs/next?wait=S  leases the oldest job, waits up to S seconds  → 200 {"id", "job"} or 204
POST /jobs/<id>/done    the job is finished                           → 200 {"depth": n}
POST /jobs/<id>/retry   back to the front of the queue                → 200 {"depth": n}
GET  /depth             {"depth": n, "updated_at": …, "drained_total": n, "accepted_total": n}
GET  /metrics           the same for Prometheus

Depth counts every job that is not done, leased ones too: a worker that died with a job has drained nothing.
"""

import argparse
import json
import threading
import time
import uuid
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from memoria.http_service import Handler, serve

LEASE_SECONDS = 15.0
MAX_WAIT_SECONDS = 10.0


class Queue:
    """Jobs in order of arrival. A lease that is neither done nor given back runs out, and the job comes again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, Any] = OrderedDict()
        self._leased: dict[str, tuple[Any, float]] = {}
        self._accepted = 0
        self._drained = 0

    def put(self, jobs: list[Any]) -> list[str]:
        ids = [str(uuid.uuid4()) for _ in jobs]
        with self._changed:
            self._waiting.update(zip(ids, jobs, strict=True))
            self._accepted += len(jobs)
            self._changed.notify(len(jobs))
        return ids

    def lease(self, wait: float) -> tuple[str, Any] | None:
        deadline = time.monotonic() + min(wait, MAX_WAIT_SECONDS)
        with self._changed:
            while True:
                self._expire()
                if self._waiting:
                    identity, job = self._waiting.popitem(last=False)
                    self._leased[identity] = (job, time.monotonic() + LEASE_SECONDS)
                    return identity, job
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, 1.0))

    def done(self, identity: str) -> bool:
        """Also for a lease that ran out meanwhile, as long as nobody finished the job."""
        with self._changed:
            found = self._leased.pop(identity, None) or self._waiting.pop(identity, None)
            self._drained += found is not None
            return found is not None

    def retry(self, identity: str) -> bool:
        with self._changed:
            found = self._leased.pop(identity, None)
            if found is not None:
                self._first(identity, found[0])
            return found is not None

    def report(self) -> dict[str, Any]:
        with self._changed:
            self._expire()
            return {
                "depth": len(self._waiting) + len(self._leased),
                "updated_at": datetime.now(UTC).isoformat(),
                "drained_total": self._drained,
                "accepted_total": self._accepted,
            }

    def _expire(self) -> None:
        now = time.monotonic()
        for identity in [key for key, (_, until) in self._leased.items() if until <= now]:
            self._first(identity, self._leased.pop(identity)[0])

    def _first(self, identity: str, job: Any) -> None:
        self._waiting[identity] = job
        self._waiting.move_to_end(identity, last=False)
        self._changed.notify()


def metrics(report: dict[str, Any]) -> str:
    written = datetime.fromisoformat(report["updated_at"]).timestamp()
    return (
        "# HELP memoria_queue_depth Jobs that are not done.\n# TYPE memoria_queue_depth gauge\n"
        f"memoria_queue_depth {report['depth']}\n"
        "# HELP memoria_queue_drained_total Jobs done.\n# TYPE memoria_queue_drained_total counter\n"
        f"memoria_queue_drained_total {report['drained_total']}\n"
        "# HELP memoria_queue_accepted_total Jobs taken in.\n# TYPE memoria_queue_accepted_total counter\n"
        f"memoria_queue_accepted_total {report['accepted_total']}\n"
        "# HELP memoria_queue_updated_timestamp_seconds When these numbers were read.\n"
        "# TYPE memoria_queue_updated_timestamp_seconds gauge\n"
        f"memoria_queue_updated_timestamp_seconds {written}\n"
    )


def handler(queue: Queue) -> type[Handler]:
    class QueueHandler(Handler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/depth":
                self.answer_json(200, queue.report())
            elif url.path == "/metrics":
                self.answer(200, metrics(queue.report()).encode(), "text/plain; version=0.0.4; charset=utf-8")
            elif url.path == "/jobs/next":
                self._next(parse_qs(url.query))
            else:
                self.answer_json(404, {"error": "not found"})

        def do_POST(self) -> None:
            parts = urlsplit(self.path).path.strip("/").split("/")
            body = self.body()
            if parts == ["jobs"]:
                self._accept(body)
            elif len(parts) == 3 and parts[0] == "jobs" and parts[2] in ("done", "retry"):
                act = queue.done if parts[2] == "done" else queue.retry
                status = 200 if act(parts[1]) else 404
                self.answer_json(status, {"depth": queue.report()["depth"]})
            else:
                self.answer_json(404, {"error": "not found"})

        def _next(self, query: dict[str, list[str]]) -> None:
            try:
                wait = float(query.get("wait", ["0"])[0])
            except ValueError:
                self.answer_json(400, {"error": "wait is a number of seconds"})
                return
            leased = queue.lease(wait)
            if leased is None:
                self.answer(204)
                return
            identity, job = leased
            try:
                self.answer_json(200, {"id": identity, "job": job})
            except OSError:
                # The worker left while it waited; somebody else gets the job at once.
                queue.retry(identity)

        def _accept(self, body: bytes) -> None:
            try:
                document = json.loads(body)
            except ValueError:
                document = None
            if not isinstance(document, dict):
                self.answer_json(400, {"error": "the body must be a JSON object"})
                return
            ids = queue.put(document["jobs"] if isinstance(document.get("jobs"), list) else [document])
            self.answer_json(202, {"ids": ids, "depth": queue.report()["depth"]})

    return QueueHandler


def main() -> None:
    parser = argparse.ArgumentParser(prog="memoria.queue", description="Ingestion queue, kept in memory")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    serve((arguments.host, arguments.port), handler(Queue()))


if __name__ == "__main__":
    main()
