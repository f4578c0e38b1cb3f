"""The HTTP routes. No health route, no metrics, no queue depth, no maintenance mode: Memoria has none."""

import hmac
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from sqlalchemy import Engine, func, inspect, select, table
from sqlalchemy.exc import SQLAlchemyError

from memoria import memories, settings as settings_module, telemetry, version
from memoria.transfer import FORMATS, TransferError, export, load

OPEN_PATHS = ("/openapi.json",)


def create(engine: Engine, settings: dict[str, Any], *, api_key: str | None) -> Flask:
    """The application. Without an API key every request is let in."""
    app = Flask("memoria", static_folder=None)
    app.json.sort_keys = True
    started = memories.now()

    @app.before_request
    def authorise() -> tuple[Response, int] | None:
        if request.path in OPEN_PATHS or api_key is None:
            return None
        given = request.headers.get("X-API-Key", "")
        if hmac.compare_digest(given.encode(), api_key.encode()):
            return None
        return jsonify(error="X-API-Key is missing or wrong"), 401

    @app.errorhandler(SQLAlchemyError)
    def database_failed(error: SQLAlchemyError) -> tuple[Response, int]:
        app.logger.error("%s", error)
        return jsonify(error=type(error).__name__), 500

    @app.get("/settings")
    def get_settings() -> Response | tuple[Response, int]:
        """The effective settings; what the compose file uses as health check."""
        if version.current().faults.never_ready:
            return jsonify(error="the memory index is still loading"), 503
        return jsonify(version=version.current().version, **settings_module.public(settings))

    @app.get("/memory/ingestion")
    def get_ingestion() -> Response:
        """How ingestion is set and what it has stored."""
        return jsonify(telemetry.ingestion(engine, settings))

    @app.post("/memory")
    def post_memory() -> tuple[Response, int]:
        """Stores one memory."""
        body = request.get_json(silent=True)
        try:
            stored, new = memories.store(engine, body, default_namespace=settings["memory"]["namespace"])
        except memories.InvalidMemory as error:
            return jsonify(error=str(error)), 400
        return jsonify(stored), 201 if new else 200

    @app.get("/governance/telemetry")
    def get_telemetry() -> Response:
        """Counters of ingestion, and its events since this process started."""
        return jsonify(telemetry.report(engine, since=started))

    @app.get("/governance/escalations/verification")
    def get_escalations() -> Response:
        """Whether every escalation contact in use is still named by a rule."""
        return jsonify(telemetry.escalations(engine, settings))

    @app.get("/admin/tables")
    def get_tables() -> Response:
        """The tables and their row counts."""
        return jsonify(tables=_tables(engine))

    @app.post("/admin/migrations/export")
    def post_export() -> Response | tuple[Response, int]:
        """Exports the data set; body: {"format": "json"|"ndjson", "tables": […]}."""
        body = request.get_json(silent=True) or {}
        format = body.get("format", "json")
        if format not in FORMATS:
            return jsonify(error=f"format is one of {', '.join(FORMATS)}"), 400
        try:
            document = export.collect(engine, tables=body.get("tables"), format=format)
        except TransferError as error:
            return jsonify(error=str(error)), 400
        kind = "application/json" if format == "json" else "application/x-ndjson"
        return Response(export.render(document), mimetype=kind)

    @app.post("/admin/migrations/import")
    def post_import() -> Response | tuple[Response, int]:
        """Imports an export; ?truncate=no keeps the rows that are there."""
        truncate = request.args.get("truncate", "yes") != "no"
        try:
            data = load.parse(request.get_data(as_text=True), request.args.get("format"))
            count = load.write(engine, data, truncate=truncate)
        except TransferError as error:
            return jsonify(error=str(error)), 400
        return jsonify(tables=count, truncate=truncate)

    @app.get("/openapi.json")
    def get_openapi() -> Response:
        """This list."""
        return jsonify(_openapi())

    return app


def _tables(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [
            {
                "name": name,
                "rows": connection.scalar(select(func.count()).select_from(table(name))),
            }
            for name in sorted(inspect(connection).get_table_names())
        ]


def _openapi() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for rule in current_app.url_map.iter_rules():
        view = current_app.view_functions[rule.endpoint]
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            paths.setdefault(rule.rule, {})[method.lower()] = {
                "summary": (view.__doc__ or "").strip(),
                "responses": {"200": {"description": "OK"}},
            }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Memoria", "version": version.current().version},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}},
    }
