"""`python -m memoria_dashboard`, port 8501.

GET /         a page with ingestion, telemetry and table counts; 502 when the server does not answer
GET /data     the same as JSON
GET /healthz  200 while the process lives

MEMORIA_SERVER_URL and MEMORIA_API_KEY say what it reads.
"""

import argparse
import html
import json
import os
import urllib.request
from typing import Any

from memoria.http_service import Handler, serve

SOURCES = {"ingestion": "/memory/ingestion", "telemetry": "/governance/telemetry", "tables": "/admin/tables"}
TIMEOUT_SECONDS = 5.0


def read(server_url: str, api_key: str) -> dict[str, Any]:
    found = {}
    for name, path in SOURCES.items():
        request = urllib.request.Request(server_url.rstrip("/") + path, headers={"X-API-Key": api_key})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            found[name] = json.loads(answer.read())
    return found


def page(data: dict[str, Any]) -> str:
    numbers = {**data["ingestion"], **data["telemetry"]["counters"]}
    numbers |= {f"rows in {table['name']}": table["rows"] for table in data["tables"]["tables"]}
    rows = "".join(f"<tr><th>{html.escape(key)}<td>{html.escape(str(value))}" for key, value in numbers.items())
    events = "".join(
        f"<li>{html.escape(event['at'])} {html.escape(event['type'])} {html.escape(event['memory_id'])}"
        for event in data["telemetry"]["events"]
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Memoria</title><h1>Memoria</h1>"
        f"<table>{rows}</table><h2>Events</h2><ul>{events}</ul>"
    )


def handler(server_url: str, api_key: str) -> type[Handler]:
    class Dashboard(Handler):
        def do_GET(self) -> None:
            if self.path == "/healthz":
                self.answer_json(200, {"status": "ok"})
                return
            if self.path not in ("/", "/data"):
                self.answer_json(404, {"error": "not found"})
                return
            try:
                data = read(server_url, api_key)
            except OSError as error:
                self.answer_json(502, {"error": f"the server does not answer: {error}"})
                return
            if self.path == "/data":
                self.answer_json(200, data)
            else:
                self.answer(200, page(data).encode(), "text/html; charset=utf-8")

    return Dashboard


def main() -> None:
    parser = argparse.ArgumentParser(prog="memoria_dashboard", description="Memoria's dashboard")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8501)
    arguments = parser.parse_args()
    server_url = os.environ.get("MEMORIA_SERVER_URL", "http://127.0.0.1:8000")
    serve((arguments.host, arguments.port), handler(server_url, os.environ.get("MEMORIA_API_KEY", "")))


if __name__ == "__main__":
    main()
