//! Labels, annotations, finalizer and field managers: the marks by which the operator knows its own. They are read
//! for ever; `docs/formats.md` shows each with an example.

/// On every object that the operator makes: the release's name.
pub const RELEASE_LABEL: &str = "memoria.arca.run/release";
/// On Jobs and pods of an attempt: the attempt's name. On pre-flight Jobs: the run's name.
pub const ATTEMPT_LABEL: &str = "memoria.arca.run/attempt";
/// On Jobs and their pods: the step, e.g. `snapshot`.
pub const STEP_LABEL: &str = "memoria.arca.run/step";
/// On the Job and pod that `memoria-operator rescue` prints, in place of all others: the attempt's name.
pub const RESCUE_LABEL: &str = "memoria.arca.run/rescue";
/// On targets and workers, by server-side apply without force: the UID of the release that owns it.
pub const OWNER_ANNOTATION: &str = "memoria.arca.run/owner";
/// On targets and workers while an attempt is open: the attempt's name.
pub const ATTEMPT_ANNOTATION: &str = "memoria.arca.run/attempt";
/// On targets and workers while an attempt goes back: `true`. It changes the object's version, so that no write that was
/// decided on the way forth can reach it any more.
pub const GOES_BACK_ANNOTATION: &str = "memoria.arca.run/goes-back";
/// On targets and workers while an attempt is open: the replica count to come back to.
pub const PRIOR_REPLICAS_ANNOTATION: &str = "memoria.arca.run/prior-replicas";
/// On CronJobs and Jobs while an attempt is open: the `spec.suspend` to come back to, `true` or `false`.
pub const PRIOR_SUSPEND_ANNOTATION: &str = "memoria.arca.run/prior-suspend";
/// On ScaledObjects while an attempt is open: the value of `autoscaling.keda.sh/paused-replicas` to come back to, or
/// `absent`.
pub const PRIOR_PAUSED_REPLICAS_ANNOTATION: &str = "memoria.arca.run/prior-paused-replicas";
/// On the ConfigMap with Memoria's settings: the attempt that put its prior ones back. It also gives the object another
/// version where the text is the same, so that a late write is refused.
pub const SETTINGS_RESTORED_ANNOTATION: &str = "memoria.arca.run/settings-restored-by";
/// On Jobs: SHA-256 of the pinned manifest and its input, in hex. A Job with another hash is not ours.
pub const TEMPLATE_HASH_ANNOTATION: &str = "memoria.arca.run/template-hash";
/// On a release, set by a person: any new value starts the pre-flight checks again.
pub const REQUESTED_AT_ANNOTATION: &str = "memoria.arca.run/requested-at";
/// On a target or worker, set by a person: what of it its GitOps source ignores, of `image`, `replicas`, `suspend` and
/// `paused-replicas`, separated by commas.
pub const GITOPS_IGNORES_ANNOTATION: &str = "memoria.arca.run/gitops-ignores";
/// On a CronJob, set by whoever may write it: `true` lets the checks of a release run its template.
pub const CHECK_TEMPLATE_ANNOTATION: &str = "memoria.arca.run/check-template";
/// On a MemoriaUpgrade, set by a person who acts in the operator's place: [`GUARD_LIFTED`] lets the chart's image guard pass
/// what others do to the attempt's workloads.
pub const GUARD_ANNOTATION: &str = "memoria.arca.run/guard";
/// The one value of [`GUARD_ANNOTATION`] that says anything.
pub const GUARD_LIFTED: &str = "Lifted";
/// Scheduling gate of a candidate pod: no node takes it before the leader that sees it there lifts the gate.
pub const CANDIDATE_GATE: &str = "memoria.arca.run/candidate";
/// Held on a release while an attempt is open.
pub const FINALIZER: &str = "memoria.arca.run/open-attempt";

/// Field manager of the annotations on targets and workers.
pub const OWNER_MANAGER: &str = "memoria-operator";
/// Field manager of the container image; it never applies anything else.
pub const IMAGE_MANAGER: &str = "memoria-operator-image";
/// Field manager of replica counts, through the scale subresource, and of what suspends or pauses other kinds.
pub const SCALE_MANAGER: &str = "memoria-operator-scale";

/// KEDA's own annotation: it keeps the scaled workload at that count and scales no more.
pub const KEDA_PAUSED_REPLICAS: &str = "autoscaling.keda.sh/paused-replicas";
/// KEDA's own annotation: it scales no more, whatever the count is.
pub const KEDA_PAUSED: &str = "autoscaling.keda.sh/paused";
