#!/bin/sh
# Runs the conformance suite; arguments go to pytest. Needs python3 with venv, and PostgreSQL's server programs
# (any major, /usr/lib/postgresql/*/bin or PG_BIN). It touches no cluster but its own, in a temporary directory.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$("$here/venv.sh")
exec "$python" -B -m pytest -q -p no:cacheprovider --rootdir "$here" "$here" "$@"
