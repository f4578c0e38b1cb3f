"""A small threaded HTTP service that stops at once on SIGTERM, also as process 1 of a container."""

import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, status: int, value: Any) -> None:
        self.answer(status, json.dumps(value).encode() + b"\n")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a line per poll of a worker says nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # Or server_close() waits for workers that are in a long poll.
    block_on_close = False


def serve(address: tuple[str, int], handler: type[Handler]) -> None:
    """Serves until SIGTERM or SIGINT."""
    server = Server(address, handler)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    print(f"listening on {address[0]}:{server.server_address[1]}", flush=True)
    stop.wait()
    server.shutdown()
    server.server_close()
