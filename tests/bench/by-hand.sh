#!/usr/bin/env bash
# Upgrades a Memoria on Kubernetes by hand: the steps of the release's "GA Launch Announcement", with kubectl, as an
# experienced person carries them out. `cargo xtask bench upgrade` compares the operator with it.
#
#   by-hand.sh quiesced      servers, workers and dashboard are stopped before the export and started after the migrations
#   by-hand.sh as-written    the announcement to the letter: it stops nothing
#
# Comments name the announcement's line that a step carries out: "Self-managed" and "Hosted" are its two lists of steps.
# A person with a cluster of their own follows the first; of the second they take what the first lacks for a deployment
# with workers. Left out: Self-managed 4 (configuration defaults), which the release that the operator gets does not ask
# for either, and what is done outside the cluster (status pages, the workflow in CI).
#
# Every command of Memoria runs in a Job of its own, in the image of the version that it belongs to: what a person gets who
# keeps one manifest and changes its command. MIGRATIONS=one runs the commands of the new version one after the other in
# one pod instead, by `kubectl exec`, which is faster for whoever thinks of it.
#
# Needs NAMESPACE. Standard error tells what is done; the one line on standard output is a JSON object. Passwords that
# Memoria prints are counted and not shown.
set -euo pipefail

variant=${1:-}
NAMESPACE=${NAMESPACE:?the namespace of the Memoria to upgrade}
TO=${TO:-1.0.0}
MIGRATIONS=${MIGRATIONS:-each}
# shellcheck source=tests/bench/by-hand-kubectl.sh
source "$(dirname "$0")/by-hand-kubectl.sh"

case "$variant/$MIGRATIONS" in
quiesced/each | quiesced/one | as-written/each | as-written/one) ;;
*)
    echo "usage: NAMESPACE=… [MIGRATIONS=each|one] $0 quiesced|as-written" >&2
    exit 2
    ;;
esac

failed=() writers_stopped=null writers_back=null

# Runs a line of shell in the new image: in a Job, or in the one pod for all of them.
in_new_image() {
    if [[ $MIGRATIONS == each ]]; then
        in_job "$1" "$SERVER:$TO" "$2"
        return
    fi
    CODE=0
    OUTPUT=$(k exec by-hand -- sh -c "$2" 2>&1) || CODE=$?
    redact
}

start_one_pod() {
    k apply --filename=- >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: by-hand}
spec:
  terminationGracePeriodSeconds: 0
$(pod_spec by-hand "$SERVER:$TO" 'exec sleep infinity' '  ')
YAML
    k wait pod/by-hand --for=condition=ready --timeout="$LIMIT" >/dev/null
}

# A command as it stands in the announcement. Exit code 2: the command line does not know what it was given, which is
# counted; $1 is what to count it as. Any other failure ends the upgrade.
documented() {
    if [[ $CODE == 2 ]]; then
        failed+=("\"$1\"")
        printf '      exit code 2: %s\n' "$1" >&2
        return 1
    fi
    must_work
}

begin=$(now)

# Pre-flight: "Rollback snapshot targets validated".
say 'a volume for the export'
k apply --filename=- >/dev/null <<'YAML'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: memoria-backups}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
YAML

if [[ $variant == quiesced ]]; then
    # Hosted 1: "Schedule the maintenance window". An export while writers run is of no one point in time.
    say 'servers, workers and dashboard stop'
    servers=$(replicas memoria-server) workers=$(replicas memoria-worker) dashboards=$(replicas memoria-dashboard)
    writers_stopped=$(now)
    k scale deployment/memoria-worker deployment/memoria-server deployment/memoria-dashboard --replicas=0 >/dev/null
    k wait pod --selector='app.kubernetes.io/name in (memoria-server,memoria-worker,memoria-dashboard)' \
        --for=delete --timeout="$LIMIT" >/dev/null
fi

# Self-managed 1: "Back up the deployment database".
say 'export-data backups/pre-ga.json'
# shellcheck disable=SC2016 # the variable is the pod's
in_job export "$SERVER:$FROM" 'exec python -m memoria.cli export-data backups/pre-ga.json --database-url "$DATABASE_URL"'
must_work
read -r exported_rows exported_tables < <(sed -nE 's/^Exported ([0-9]+) rows across ([0-9]+) tables.*/\1 \2/p' <<<"$OUTPUT")

# Self-managed 2: "Upgrade application services", with Hosted 2's "Apply the GA container images".
say "images of $TO"
k set image deployment/memoria-server "server=$SERVER:$TO" >/dev/null
k set image deployment/memoria-worker "worker=$SERVER:$TO" >/dev/null
k set image deployment/memoria-dashboard "dashboard=$DASHBOARD:$TO" >/dev/null
if [[ $variant == as-written ]]; then
    rolled_out memoria-server
    rolled_out memoria-worker
    rolled_out memoria-dashboard
fi

[[ $MIGRATIONS == each ]] || start_one_pod

# Hosted 3: `migrate list --database-url $CONTROL_PLANE_DB`.
say 'migrate list'
# shellcheck disable=SC2016
in_new_image list-documented 'exec python -m memoria.cli migrate list --database-url "$DATABASE_URL"'
if ! documented 'migrate list --database-url'; then
    in_new_image list 'exec python -m memoria.cli migrate list'
    must_work
fi
mapfile -t names < <(sed -nE 's/^([a-z0-9_]+) {2,}.*/\1/p' <<<"$OUTPUT")

# Self-managed 3: "Run schema migrations", `migrate run --database-url … --all`.
say "migrate run, ${#names[@]} migrations"
# shellcheck disable=SC2016
in_new_image all-documented 'exec python -m memoria.cli migrate run --database-url "$DATABASE_URL" --all'
if ! documented 'migrate run --all'; then
    for name in "${names[@]}"; do
        say "migrate run $name"
        in_new_image "$name" "exec python -m memoria.cli migrate run $name --database-url \"\$DATABASE_URL\""
        must_work
    done
fi

if [[ $variant == quiesced ]]; then
    # Self-managed 2: "restart services".
    say 'servers and dashboard start'
    k scale deployment/memoria-server --replicas="$servers" >/dev/null
    k scale deployment/memoria-dashboard --replicas="$dashboards" >/dev/null
    rolled_out memoria-server
    rolled_out memoria-dashboard
    # Hosted 4: "Re-enable ingestion workers".
    say 'workers start'
    k scale deployment/memoria-worker --replicas="$workers" >/dev/null
    rolled_out memoria-worker
    writers_back=$(now)
fi

# Hosted 4: "confirm queue depth normalises within 10 minutes".
say 'the depth of the queue'
for ((waited = 0; ; waited++)); do
    depth=$(k exec deployment/memoria-server -- python -c '
import json, urllib.request
print(json.load(urllib.request.urlopen("http://memoria-queue:8080/depth", timeout=10))["depth"])')
    ((depth > 10)) || break
    ((waited < 600)) || { echo "by-hand.sh: the depth is still $depth" >&2 && exit 1; }
    sleep 1
done

# Self-managed 5: "Validate ingestion", a sample bootstrap and the telemetry.
say 'a sample bootstrap, telemetry'
k exec deployment/memoria-server -- \
    python -m memoria.cli bootstrap --non-interactive --force --config /tmp/memoria.json --env-file /tmp/.env >/dev/null
k exec deployment/memoria-server -- python -c '
import os, urllib.request
url, key = "http://127.0.0.1:8000/governance/telemetry", os.environ["MEMORIA_API_KEY"]
urllib.request.urlopen(urllib.request.Request(url, headers={"X-API-Key": key}), timeout=10).read()' >/dev/null

end=$(now)
# Cleaning up is not part of the upgrade.
[[ $MIGRATIONS == each ]] || k delete pod by-hand --wait=false >/dev/null

printf '{"variant":"%s","begin":%s,"writersStopped":%s,"writersBack":%s,"end":%s,' \
    "$variant" "$begin" "$writers_stopped" "$writers_back" "$end"
printf '"failedCommands":[%s],"passwordsPrinted":%d,"exportedRows":%d,"exportedTables":%d,"migrations":%d}\n' \
    "$(IFS=,; echo "${failed[*]}")" "$passwords" "$exported_rows" "$exported_tables" "${#names[@]}"
