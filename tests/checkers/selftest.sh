#!/bin/sh
# The checkers' own tests; arguments go to unittest. Needs Python 3.11, psql and PostgreSQL's server programs.
# With MEMORIA_CHECKERS_CLUSTER=1 and KUBECONFIG it plants canaries in a real cluster, too.
set -eu
cd "$(dirname -- "$0")"
PYTHONDONTWRITEBYTECODE=1 exec python3 -m unittest discover --start-directory tests --top-level-directory . "$@"
