# shellcheck shell=bash
# What a person with kubectl does again and again: `by-hand.sh` and `by-hand-rollback.sh` read this file.

KUBECTL=${KUBECTL:-kubectl}
FROM=${FROM:-0.9.0}
SERVER=${SERVER:-registry.arca.run/memoria/server}
DASHBOARD=${DASHBOARD:-registry.arca.run/memoria/dashboard}
# More than any step takes; a person would have looked long before.
LIMIT=${LIMIT:-600s}
SCRIPT=${0##*/}

OUTPUT='' CODE=0 passwords=0 step='the beginning'
trap 'echo "$SCRIPT: stopped at: $step" >&2' ERR

now() { echo "${EPOCHREALTIME/,/.}"; }

say() {
    step=$1
    printf '    %s\n' "$1" >&2
}

k() { "$KUBECTL" --namespace "$NAMESPACE" "$@"; }

# Counts the lines of OUTPUT that hold the password of a URL, then takes the passwords out.
redact() {
    local url='://[^:/@ ]*:[^@ ]+@' found
    found=$(grep -cE "$url" <<<"$OUTPUT" || true)
    passwords=$((passwords + found))
    OUTPUT=$(sed -E "s#$url#://***@#g" <<<"$OUTPUT")
}

# What every pod of ours has: the database's URL from the Secret, what PodSecurity "restricted" asks for, the claim for
# the backups. $1 container name, $2 image, $3 line for the shell (without single quotes), $4 spaces of indent.
pod_spec() {
    sed "s/^/$4/" <<YAML
restartPolicy: Never
automountServiceAccountToken: false
securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
containers:
- name: $1
  image: $2
  command: [sh, -c, '$3']
  env:
  - {name: DATABASE_URL, valueFrom: {secretKeyRef: {name: memoria-db, key: url}}}
  securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
  volumeMounts:
  - {name: backups, mountPath: /app/backups}
  - {name: tmp, mountPath: /tmp}
volumes:
- {name: backups, persistentVolumeClaim: {claimName: memoria-backups}}
- {name: tmp, emptyDir: {}}
YAML
}

# Runs a line of shell in a Job. $1 its name, $2 the image, $3 the line. Leaves the log in OUTPUT, the exit code in CODE.
in_job() {
    local name=by-hand-${1//_/-} complete broken
    k apply --filename=- >/dev/null <<YAML
apiVersion: batch/v1
kind: Job
metadata: {name: $name}
spec:
  backoffLimit: 0
  template:
    spec:
$(pod_spec "${name#by-hand-}" "$2" "$3" '      ')
YAML
    # Whichever comes first; `kubectl wait` waits for one condition only.
    "$KUBECTL" --namespace "$NAMESPACE" wait "job/$name" --for=condition=complete --timeout="$LIMIT" >/dev/null 2>&1 &
    complete=$!
    "$KUBECTL" --namespace "$NAMESPACE" wait "job/$name" --for=condition=failed --timeout="$LIMIT" >/dev/null 2>&1 &
    broken=$!
    wait -n "$complete" "$broken" || true
    kill "$complete" "$broken" 2>/dev/null || true
    wait "$complete" "$broken" 2>/dev/null || true
    OUTPUT=$(k logs "job/$name" 2>&1)
    redact
    CODE=$(k get pods --selector="batch.kubernetes.io/job-name=$name" \
        --output='jsonpath={.items[0].status.containerStatuses[0].state.terminated.exitCode}')
    if [[ -z $CODE ]]; then
        echo "$SCRIPT: $name did not end within $LIMIT" >&2
        exit 1
    fi
}

# Ends the script when the last command failed: the announcement says nothing about going on.
must_work() {
    if [[ $CODE != 0 ]]; then
        printf '%s\n' "$OUTPUT" >&2
        echo "$SCRIPT: $step: exit code $CODE" >&2
        exit 1
    fi
}

rolled_out() { k rollout status "deployment/$1" --timeout="$LIMIT" >/dev/null; }

replicas() { k get deployment "$1" --output='jsonpath={.spec.replicas}'; }
