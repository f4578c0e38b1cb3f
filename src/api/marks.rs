//! Labels, annotations, finalizer and field managers: the marks by which the operator knows its own. They are read
//! for ever; `docs/formats.md` shows each with an example.

/// On every object that the operator makes: the release's name.
pub const RELEASE_LABEL: &str = "memoria.arca.run/release";
/// On Jobs and pods of an attempt: the attempt's name. On pre-flight Jobs: the run's name.
pub const ATTEMPT_LABEL: &str = "memoria.arca.run/attempt";
/// On Jobs and their pods: the step, e.g. `snapshot`.
pub const STEP_LABEL: &str = "memoria.arca.run/step";
/// On targets and workers, by server-side apply without force: the UID of the release that owns it.
pub const OWNER_ANNOTATION: &str = "memoria.arca.run/owner";
/// On targets and workers while an attempt is open: the attempt's name.
pub const ATTEMPT_ANNOTATION: &str = "memoria.arca.run/attempt";
/// On targets and workers while an attempt is open: the replica count to come back to.
pub const PRIOR_REPLICAS_ANNOTATION: &str = "memoria.arca.run/prior-replicas";
/// On Jobs: SHA-256 of the pinned manifest and its input, in hex. A Job with another hash is not ours.
pub const TEMPLATE_HASH_ANNOTATION: &str = "memoria.arca.run/template-hash";
/// On a release, set by a person: any new value starts the pre-flight checks again.
pub const REQUESTED_AT_ANNOTATION: &str = "memoria.arca.run/requested-at";
/// Held on a release while an attempt is open.
pub const FINALIZER: &str = "memoria.arca.run/open-attempt";

/// Field manager of the annotations on targets and workers.
pub const OWNER_MANAGER: &str = "memoria-operator";
/// Field manager of the container image; it never applies anything else.
pub const IMAGE_MANAGER: &str = "memoria-operator-image";
/// Field manager of replica counts, through the scale subresource.
pub const SCALE_MANAGER: &str = "memoria-operator-scale";
