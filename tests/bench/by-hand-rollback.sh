#!/usr/bin/env bash
# Takes a Memoria on Kubernetes back by hand after an upgrade that failed: the "Rollback Commands" of the release's "GA
# Launch Announcement", with kubectl, as an experienced person carries them out. `cargo xtask bench rollback` compares the
# operator with it.
#
# Needs NAMESPACE, and on the claim memoria-backups the file pre-ga.json that `by-hand.sh` exported before the upgrade
# ("Use the pre-upgrade export to revert"). SERVERS, WORKERS and DASHBOARDS are the replicas of before, which whoever
# stopped them has noted. Comments name the announcement's line that a step carries out. Left out: "Re-apply previous
# migrations if required", because the export is of a database that had them, and "Capture audit notes in the governance
# runbook", which is for people.
#
# Standard error tells what is done; the one line on standard output is a JSON object.
set -euo pipefail

NAMESPACE=${NAMESPACE:?the namespace of the Memoria to take back}
SERVERS=${SERVERS:-2}
WORKERS=${WORKERS:-2}
DASHBOARDS=${DASHBOARDS:-1}
# shellcheck source=tests/bench/by-hand-kubectl.sh
source "$(dirname "$0")/by-hand-kubectl.sh"

begin=$(now)

# An import while servers run loses what they write meanwhile, so they are quiesced first, as for the export. After an
# upgrade whose migration failed they are: then this only looks.
say 'servers, workers and dashboard are stopped'
k scale deployment/memoria-worker deployment/memoria-server deployment/memoria-dashboard --replicas=0 >/dev/null
k wait pod --selector='app.kubernetes.io/name in (memoria-server,memoria-worker,memoria-dashboard)' \
    --for=delete --timeout="$LIMIT" >/dev/null

# "Restore database state": `import-data backups/pre-ga.json --database-url <database-url>`, by the version that wrote it.
say 'import-data backups/pre-ga.json'
# shellcheck disable=SC2016 # the variable is the pod's
in_job import "$SERVER:$FROM" 'exec python -m memoria.cli import-data backups/pre-ga.json --database-url "$DATABASE_URL"'
must_work
imported_tables=$(sed -nE 's/^Imported dataset for ([0-9]+) tables.*/\1/p' <<<"$OUTPUT")
imported=$(now)

# "roll back … to the previous image tag … and restart services".
say "images of $FROM"
k set image deployment/memoria-server "server=$SERVER:$FROM" >/dev/null
k set image deployment/memoria-worker "worker=$SERVER:$FROM" >/dev/null
k set image deployment/memoria-dashboard "dashboard=$DASHBOARD:$FROM" >/dev/null
say 'servers, dashboard and workers start'
k scale deployment/memoria-server --replicas="$SERVERS" >/dev/null
k scale deployment/memoria-dashboard --replicas="$DASHBOARDS" >/dev/null
k scale deployment/memoria-worker --replicas="$WORKERS" >/dev/null
rolled_out memoria-server
rolled_out memoria-dashboard
rolled_out memoria-worker
started=$(now)

# "Capture evidence after rollback": `export-data backups/post-rollback.json --database-url <database-url>`.
say 'export-data backups/post-rollback.json'
# shellcheck disable=SC2016
in_job evidence "$SERVER:$FROM" \
    'exec python -m memoria.cli export-data backups/post-rollback.json --database-url "$DATABASE_URL"'
must_work
read -r exported_rows exported_tables < <(sed -nE 's/^Exported ([0-9]+) rows across ([0-9]+) tables.*/\1 \2/p' <<<"$OUTPUT")
end=$(now)

printf '{"begin":%s,"imported":%s,"started":%s,"end":%s,' "$begin" "$imported" "$started" "$end"
printf '"importedTables":%d,"exportedRows":%d,"exportedTables":%d}\n' \
    "$imported_tables" "$exported_rows" "$exported_tables"
