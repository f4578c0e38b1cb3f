#!/bin/sh
# Fills a database with seeded data, outside an image:
#   run.sh TAG --rows N --seed S --database-url U
# TAG names the schema's version (versions/TAG.toml). Inside an image: python -m memoria_generate --rows …
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tag=${1:?usage: run.sh TAG --rows N --seed S --database-url U}
shift
python=$("$here/conformance/venv.sh")
PYTHONPATH=$here/app MEMORIA_VERSION_FILE=$here/versions/$tag.toml exec "$python" -m memoria_generate "$@"
