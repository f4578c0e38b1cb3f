"""Writes a whole copy of a SQLite file that a server may have open to standard output, for capture.py.

Meant for the server's own container, where nothing but Python is:
kubectl exec -i deploy/memoria -- python - /data/memoria.db < copy_sqlite.py > copy.db
"""

import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

source = sqlite3.connect(f"{Path(sys.argv[1]).absolute().as_uri()}?mode=ro", uri=True, timeout=60)
with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "copy.db"
    copy = sqlite3.connect(path)
    # SQLite's own backup: one point in time, whoever writes meanwhile.
    source.backup(copy)
    copy.close()
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
