"""The WSGI application, `memoria.server:app`. Importing it connects, changes the database, and only then returns."""

import logging
import os
import sys

from memoria import database, settings, startup, web

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")

_settings = settings.load()
_engine = database.connect(
    _settings["database"]["connection_string"], sqlite_busy_seconds=database.SERVER_SQLITE_BUSY_SECONDS
)
startup.prepare(_engine, _settings)

app = web.create(_engine, _settings, api_key=os.environ.get("MEMORIA_API_KEY") or None)
