#!/bin/sh
# Prints the Python of a virtual environment that has requirements.txt; makes it once per content of that file.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
hash=$(sha256sum "$here/requirements.txt" | cut -c1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/memoria-operator
venv=$cache/venv-$hash
if [ ! -x "$venv/.ready" ]; then
    mkdir -p "$cache"
    # Only one of several callers builds it, and an interrupted build is not taken for a whole one.
    exec 9>"$venv.lock"
    flock 9
    if [ ! -x "$venv/.ready" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
        ln -s bin/python "$venv/.ready"
    fi
fi
echo "$venv/bin/python"
