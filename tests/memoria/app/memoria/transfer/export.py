"""Reads the data set into one document. Every table by a query of its own: writers between two of them show."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, inspect, select
from sqlalchemy.orm import Session

from memoria.transfer import MODELS, chosen


def collect(engine: Engine, *, tables: list[str] | None = None, format: str = "json") -> dict[str, Any]:
    """The whole document. Tables that the database lacks are left out without a word."""
    data = {}
    for name in chosen(tables):
        if inspect(engine).has_table(name):
            data[name] = _rows(engine, name)
    return {
        "data": data,
        "metadata": {
            "dialect": engine.dialect.name,
            "exported_at": datetime.now(UTC).isoformat(),
            "format": format,
            "tables": [{"name": name, "row_count": len(rows)} for name, rows in data.items()],
        },
    }


def _rows(engine: Engine, name: str) -> list[dict[str, Any]]:
    model = MODELS[name]
    attributes = [(column.key, _attribute(model, column)) for column in model.__table__.columns]
    key = list(model.__table__.primary_key.columns)
    with Session(engine) as session:
        return [
            {column: _plain(getattr(entity, attribute)) for column, attribute in attributes}
            for entity in session.scalars(select(model).order_by(*key)).all()
        ]


def _attribute(model: type, column: Any) -> str:
    return model.__mapper__.get_property_by_column(column).key


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def render(document: dict[str, Any]) -> str:
    """The text of a document, in the format that its metadata names."""
    if document["metadata"]["format"] == "json":
        return json.dumps(document, indent=2, sort_keys=True) + "\n"
    lines = [{"metadata": document["metadata"]}]
    lines += [{"table": table, "data": row} for table, rows in document["data"].items() for row in rows]
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)


def totals(document: dict[str, Any]) -> tuple[int, int]:
    """Rows and tables."""
    rows = document["data"].values()
    return sum(len(table) for table in rows), len(rows)
