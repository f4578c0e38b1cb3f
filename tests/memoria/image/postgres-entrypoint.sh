#!/bin/sh
# Starts PostgreSQL in the test image; on an empty PGDATA it first makes the cluster, the owner role and the database.
#
# Environment, as in the well-known image, with one difference: the application's role is no superuser.
#   POSTGRES_USER            owner of the database, LOGIN NOSUPERUSER NOCREATEDB (default memoria)
#   POSTGRES_PASSWORD[_FILE] its password, required when the cluster is made
#   POSTGRES_DB              the database (default: the value of POSTGRES_USER)
#   POSTGRES_ADMIN_PASSWORD[_FILE]  password of the superuser "postgres"; without it that role logs in by the socket only
#   POSTGRES_INITDB_ARGS     more arguments for initdb
#   POSTGRES_SOCKET_DIR      default /tmp, because the root file system is read-only
#   PGDATA                   default /var/lib/postgresql/data/pgdata; created with mode 0700
# Arguments are handed to postgres.
# The image must have a passwd entry for the uid that this runs as: initdb refuses to start without one.
set -eu

PGDATA=${PGDATA:-/var/lib/postgresql/data/pgdata}
export PGDATA
user=${POSTGRES_USER:-memoria}
database=${POSTGRES_DB:-$user}
sockets=${POSTGRES_SOCKET_DIR:-/tmp}

# from_file NAME: the value of NAME, or the content of the file that NAME_FILE names.
from_file() {
    eval "value=\${$1:-} file=\${$1_FILE:-}"
    if [ -n "$file" ]; then value=$(cat "$file"); fi
    printf '%s' "$value"
}

make_cluster() {
    password=$(from_file POSTGRES_PASSWORD)
    admin_password=$(from_file POSTGRES_ADMIN_PASSWORD)
    if [ -z "$password" ]; then
        echo "postgres-entrypoint: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE to make the cluster" >&2
        exit 1
    fi
    # Built beside PGDATA and renamed at the end: a container killed in the middle starts over
    # instead of serving half a cluster.
    building=$PGDATA.building
    rm -rf "$building"
    # shellcheck disable=SC2086 # POSTGRES_INITDB_ARGS is a list of words
    initdb --pgdata="$building" --username=postgres --encoding=UTF8 --locale=C.UTF-8 \
        --auth-local=trust --auth-host=scram-sha-256 ${POSTGRES_INITDB_ARGS:-}
    echo "host all all all scram-sha-256" >> "$building/pg_hba.conf"
    pg_ctl --pgdata="$building" --wait --silent --options="-c listen_addresses='' -k '$sockets'" start
    # The passwords travel by environment and psql's own quoting, so neither argv nor SQL injection sees them.
    OWNER=$user DATABASE=$database PASSWORD=$password ADMIN_PASSWORD=$admin_password \
        psql --no-psqlrc --set=ON_ERROR_STOP=1 --quiet -h "$sockets" -U postgres -d postgres <<'SQL'
\getenv owner OWNER
\getenv database DATABASE
\getenv password PASSWORD
\getenv admin_password ADMIN_PASSWORD
CREATE ROLE :"owner" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE :"database" OWNER :"owner";
SELECT :'admin_password' <> '' AS has_admin_password \gset
\if :has_admin_password
ALTER ROLE postgres PASSWORD :'admin_password';
\endif
SQL
    pg_ctl --pgdata="$building" --wait --silent --mode=fast stop
    mv "$building" "$PGDATA"
}

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$(dirname "$PGDATA")"
    make_cluster
fi
unset POSTGRES_PASSWORD POSTGRES_ADMIN_PASSWORD

# TERM means "wait for every client to leave" to postgres; a pod that stops wants the fast shutdown, which is INT.
postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories="$sockets" "$@" &
server=$!
trap 'kill -INT $server' TERM INT
code=0
wait $server || code=$?
# The first wait ends when the signal arrives; the second one waits for the shutdown itself.
if kill -0 $server 2>/dev/null; then
    code=0
    wait $server || code=$?
fi
exit $code
