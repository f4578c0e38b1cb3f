
say() { printf '%s\n' "rescue: $*"; }
stop() { printf '%s\n' "rescue: stopped: $*" >&2; exit 1; }

# Waits until a command prints nothing more: what it is about, and the command.
until_none() {
  what=$1
  shift
  turns=0
  while :; do
    left=$("$@") || stop "cannot ask for $what"
    [ -n "$left" ] || return 0
    [ "$turns" -lt 300 ] || stop "$what did not end within 10 minutes: $left. Never force the end of a pod whose node may still run it"
    [ $((turns % 15)) -ne 0 ] || say "waiting for the end of $what:" $left
    turns=$((turns + 1))
    sleep 2
  done
}

# The pods of a Deployment or StatefulSet that have not ended.
pods_of() {
  selector=$(kubectl -n "$namespace" get "$1" --subresource=scale -o jsonpath='{.status.selector}') || return 1
  [ -n "$selector" ] || stop "$1 has no selector"
  pods_with "$selector"
}

# The pods with these labels that have not ended.
pods_with() {
  kubectl -n "$namespace" get pods --selector="$1" --field-selector=status.phase!=Succeeded,status.phase!=Failed -o name
}

# The Jobs of a CronJob that still run.
jobs_of() {
  kubectl -n "$namespace" get jobs -o go-template='{{range $j := .items}}{{range $j.metadata.ownerReferences}}{{if eq .kind "CronJob"}}{{if eq .name "'"$1"'"}}{{if $j.status.active}}{{$j.metadata.name}}{{"\n"}}{{end}}{{end}}{{end}}{{end}}{{end}}'
}

# The Jobs with these labels that still run.
running_jobs() {
  kubectl -n "$namespace" get jobs --selector="$1" -o go-template='{{range .items}}{{if .status.active}}{{.metadata.name}}{{"\n"}}{{end}}{{end}}'
}

# Whether an object is there.
there() {
  found=$(kubectl -n "$namespace" get "$1" --ignore-not-found -o name) || stop "cannot ask for $1"
  [ -n "$found" ]
}

# The count that the object itself remembers, else the one from before the attempt.
remembered() {
  count=$(kubectl -n "$namespace" get "$1" -o go-template='{{with .metadata.annotations}}{{with index . "memoria.arca.run/prior-replicas"}}{{.}}{{end}}{{end}}') || return 1
  case $count in
    '' | *[!0-9]*) printf '%s\n' "$2" ;;
    *) printf '%s\n' "$count" ;;
  esac
}

# Nothing, running, complete or failed.
job_state() {
  kubectl -n "$namespace" get "job/$1" --ignore-not-found -o go-template='{{$s := "running"}}{{range .status.conditions}}{{if eq .status "True"}}{{if eq .type "Complete"}}{{$s = "complete"}}{{end}}{{if eq .type "Failed"}}{{$s = "failed"}}{{end}}{{end}}{{end}}{{$s}}'
}

# What a Job's main container left as its report.
report_of() {
  kubectl -n "$namespace" get pods --selector="job-name=$1" -o jsonpath='{.items[*].status.containerStatuses[?(@.name=="main")].state.terminated.message}'
}
