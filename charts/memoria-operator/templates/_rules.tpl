{{/* What the operator may do where it looks after releases. No rule on Secrets: Jobs refer to them, and the kubelet
     reads them. No rule on nodes, and none on roles. */}}
{{- define "memoria-operator.rules" -}}
# What people ask for. Patch is for the finalizer that an open attempt holds; the spec is never written.
- apiGroups: [memoria.arca.run]
  resources: [memoriareleases]
  verbs: [get, list, watch, patch]
- apiGroups: [memoria.arca.run]
  resources: [memoriareleases/status]
  verbs: [update, patch]
# Attempts: made with their plan, which is immutable, and deleted beyond spec.historyLimit. Their status is the journal.
- apiGroups: [memoria.arca.run]
  resources: [memoriaupgrades]
  verbs: [get, list, watch, create, delete]
- apiGroups: [memoria.arca.run]
  resources: [memoriaupgrades/status]
  verbs: [update, patch]
# What people decided.
- apiGroups: [memoria.arca.run]
  resources: [memoriadecisions]
  verbs: [get, list, watch]
# Targets and workers: the annotations that mark them, and the image of Memoria's container.
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, patch]
# Their replica counts, and nothing else of them.
- apiGroups: [apps]
  resources: [deployments/scale, statefulsets/scale]
  verbs: [get, update, patch]
# Whether writers are gone and new pods run; candidate pods are made from a target's template and removed again. Patch lifts
# the scheduling gate that they are made with.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# The steps of an attempt, and workers that are Jobs. Patch sets the lifetime of finished steps, and suspends and resumes
# workers.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# Workers that are CronJobs: marked, suspended and resumed. CronJobs whose template a check runs are only read.
- apiGroups: [batch]
  resources: [cronjobs]
  verbs: [get, list, watch, patch]
# Workers that are scaled by KEDA, where it is installed: marked, paused and resumed.
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, watch, patch]
# The maintenance flag and Memoria's settings: one key is changed in each. Created is the immutable one that keeps the
# settings from before an attempt; it goes with the attempt.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
# The claim for snapshots, made when a release names none, and the Server's claims, which are only read. None is ever
# deleted.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create]
# A candidate pod must not carry the labels that a Service selects.
- apiGroups: [""]
  resources: [services]
  verbs: [list]
# An autoscaler would bring back what an attempt scaled to zero.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
# Why a pod does not start (a volume that cannot be mounted is told only there).
- apiGroups: [""]
  resources: [events]
  verbs: [list]
# What the operator tells about a release.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [get, create, patch]
{{- end }}
