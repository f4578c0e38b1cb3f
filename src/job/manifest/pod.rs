//! The parts that all Jobs' pods have in common: marks, security contexts, volumes, limits.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Capabilities, Container, EmptyDirVolumeSource, EnvVar, PersistentVolumeClaimVolumeSource,
            PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile, SecurityContext,
            Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{JobContext, RenderError, archive, job_name, place, shape::Security};
use crate::{
    api::marks::{ATTEMPT_LABEL, RELEASE_LABEL, STEP_LABEL},
    job::protocol::{ARCHIVE_MOUNT, KEYS_MOUNT, SCRATCH_MOUNT, SHARED_MOUNT, STORAGE_MOUNT},
};

/// The container whose termination message is the Job's answer.
pub const MAIN: &str = "main";
/// The sidecar that opens the database beside the runner.
pub const GUARD: &str = "guard";
/// The init container that puts the runner in place.
pub const INSTALL: &str = "install";
/// The user of the operator's and the tools' images, where the Server names none: their servers refuse to run as root.
const NOBODY: i64 = 65532;

/// Where Jobs mount what is their own. A claim of the Server at one of these places cannot be mounted beside it.
pub const OWN_MOUNTS: [&str; 6] = [TMP.1, SHARED_MOUNT, SCRATCH_MOUNT, STORAGE_MOUNT, ARCHIVE_MOUNT, KEYS_MOUNT];

const TMP: (&str, &str) = ("tmp", "/tmp");
const SHARED: (&str, &str) = ("shared", SHARED_MOUNT);
const SCRATCH: (&str, &str) = ("scratch", SCRATCH_MOUNT);
pub(super) const STORAGE: (&str, &str) = ("snapshots", STORAGE_MOUNT);

/// Whose image a container runs: it decides user and mounts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// The operator's or the tools' image.
    Ours,
    /// An image of Memoria that only carries the runner: any user will do.
    Carrier,
    /// Memoria's image, whose commands run: the Server's user.
    Memoria,
}

/// One Job before it is put together.
pub(super) struct Draft<'a> {
    pub step: &'a str,
    pub init: Vec<Container>,
    pub main: Container,
    /// The inner limit in seconds; the Job's own is far above it.
    pub limit_seconds: u64,
    /// Whether losing the pod in the middle costs more than time.
    pub precious: bool,
}

impl Draft<'_> {
    pub fn into_job(self, ctx: &JobContext) -> Result<Job, RenderError> {
        let name = job_name(&ctx.attempt, self.step)?;
        let labels: BTreeMap<String, String> =
            [(RELEASE_LABEL, ctx.release.as_str()), (ATTEMPT_LABEL, &ctx.attempt), (STEP_LABEL, self.step)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        let annotations = self.precious.then(|| {
            [("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"), ("karpenter.sh/do-not-disrupt", "true")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        });
        let volumes = volumes(ctx, self.init.iter().chain([&self.main]));
        let affinity = place::affinity(ctx, self.init.iter().chain([&self.main]));
        let shape = &ctx.shape;
        let spec = PodSpec {
            restart_policy: Some("Never".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            // The runner passes the signal on and waits for what it started.
            termination_grace_period_seconds: Some(if self.precious { 60 } else { 30 }),
            image_pull_secrets: not_empty(shape.image_pull_secrets.clone()),
            node_selector: Some(shape.node_selector.clone()).filter(|selector| !selector.is_empty()),
            tolerations: not_empty(shape.tolerations.clone()),
            affinity,
            security_context: Some(pod_security(ctx)),
            volumes: Some(volumes),
            init_containers: not_empty(self.init),
            containers: vec![self.main],
            ..PodSpec::default()
        };
        Ok(Job {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(ctx.namespace.clone()),
                labels: Some(labels.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(JobSpec {
                backoff_limit: Some(0),
                completions: Some(1),
                parallelism: Some(1),
                pod_replacement_policy: Some("Failed".to_owned()),
                active_deadline_seconds: Some(deadline(self.limit_seconds)),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta { labels: Some(labels), annotations, ..ObjectMeta::default() }),
                    spec: Some(spec),
                },
                ..JobSpec::default()
            }),
            status: None,
        })
    }
}

/// Twice the inner limit and a quarter of an hour for pulling images: it must never be the one that ends a healthy Job.
fn deadline(limit_seconds: u64) -> i64 {
    i64::try_from(limit_seconds.saturating_mul(2).saturating_add(900)).unwrap_or(i64::MAX)
}

fn not_empty<T>(items: Vec<T>) -> Option<Vec<T>> {
    Some(items).filter(|items| !items.is_empty())
}

/// A container of our own or Memoria's image, with a read-only root and its own `/tmp`.
pub(super) fn container(ctx: &JobContext, name: &str, image: &str, of: Of, command: &[&str]) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(command.iter().map(|&word| word.to_owned()).collect()),
        working_dir: if of == Of::Memoria { ctx.shape.working_dir.clone() } else { None },
        security_context: Some(container_security(ctx, of)),
        resources: Some(
            ctx.shape.resources.clone().filter(|_| name == MAIN).unwrap_or_else(|| default_resources(name)),
        ),
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: Some(vec![mount(tmp_of(name))]),
        ..Container::default()
    }
}

/// Each container has its own `/tmp`: the runner keeps a password file there.
fn tmp_of(container: &str) -> (&'static str, &'static str) {
    match container {
        GUARD => ("tmp-guard", "/tmp"),
        INSTALL => ("tmp-install", "/tmp"),
        _ => TMP,
    }
}

fn mount((name, path): (&str, &str)) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

/// What can be said while a container is built up.
pub(super) trait ContainerExt {
    fn env(self, name: &str, value: String) -> Self;
    fn envs(self, entries: &[EnvVar]) -> Self;
    fn shared(self) -> Self;
    fn scratch(self) -> Self;
    /// The storage of snapshots, and how to reach it where it is an archive.
    fn storage(self, ctx: &JobContext) -> Self;
    /// The keys of the archive, where it has some.
    fn keys(self, ctx: &JobContext) -> Self;
    fn mounted(self, volume: (&str, &str)) -> Self;
    /// The Server's claims, where the Server has them.
    fn data(self, ctx: &JobContext) -> Self;
    /// Keeps running beside the main container and is ended when that is done.
    fn sidecar(self) -> Self;
    fn always_pull(self) -> Self;
}

impl ContainerExt for Container {
    fn env(mut self, name: &str, value: String) -> Self {
        let entry = EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
        self.env.get_or_insert_default().push(entry);
        self
    }

    fn envs(mut self, entries: &[EnvVar]) -> Self {
        self.env.get_or_insert_default().extend_from_slice(entries);
        self
    }

    fn shared(self) -> Self {
        self.mounted(SHARED)
    }

    fn scratch(self) -> Self {
        self.mounted(SCRATCH)
    }

    fn storage(self, ctx: &JobContext) -> Self {
        archive::reach(self.mounted(STORAGE), ctx)
    }

    fn keys(self, ctx: &JobContext) -> Self {
        archive::keys(self, ctx)
    }

    fn mounted(mut self, volume: (&str, &str)) -> Self {
        self.volume_mounts.get_or_insert_default().push(mount(volume));
        self
    }

    fn data(mut self, ctx: &JobContext) -> Self {
        self.volume_mounts.get_or_insert_default().extend(place::mounts(ctx));
        self
    }

    fn sidecar(mut self) -> Self {
        self.restart_policy = Some("Always".to_owned());
        self
    }

    fn always_pull(mut self) -> Self {
        self.image_pull_policy = Some("Always".to_owned());
        self
    }
}

/// A volume for each mount, in the order of first use.
fn volumes<'a>(ctx: &JobContext, containers: impl Iterator<Item = &'a Container>) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::new();
    for mount in containers.flat_map(|c| c.volume_mounts.iter().flatten()) {
        if volumes.iter().any(|v| v.name == mount.name) {
            continue;
        }
        if let Some(key) = archive::key_volume(ctx, &mount.name) {
            volumes.push(key);
            continue;
        }
        let claim = place::claim(ctx, &mount.name);
        volumes.push(Volume {
            name: mount.name.clone(),
            empty_dir: claim.is_none().then(EmptyDirVolumeSource::default),
            persistent_volume_claim: claim
                .map(|claim_name| PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
            ..Volume::default()
        });
    }
    volumes
}

fn pod_security(ctx: &JobContext) -> PodSecurityContext {
    let group = ctx.shape.fs_group.or(ctx.shape.run_as_group).or(ctx.shape.run_as_user.filter(|uid| *uid != 0));
    // Without a group that may write, a fresh volume belongs to root alone.
    let (fs_group, fs_group_change_policy) = (Some(group.unwrap_or(NOBODY)), Some("OnRootMismatch".to_owned()));
    match &ctx.shape.security {
        Security::Restricted => PodSecurityContext {
            run_as_non_root: Some(true),
            seccomp_profile: Some(runtime_default()),
            fs_group,
            fs_group_change_policy,
            ..PodSecurityContext::default()
        },
        Security::AsServer { pod, .. } => PodSecurityContext { fs_group, fs_group_change_policy, ..(**pod).clone() },
    }
}

fn container_security(ctx: &JobContext, of: Of) -> SecurityContext {
    let shape = &ctx.shape;
    let ours = of != Of::Memoria;
    match (&shape.security, ours) {
        (Security::AsServer { container, .. }, false) => (**container).clone(),
        _ => SecurityContext {
            run_as_user: shape.run_as_user.filter(|uid| !ours || *uid != 0).or(ours.then_some(NOBODY)),
            run_as_group: shape.run_as_group.filter(|gid| !ours || *gid != 0).or(ours.then_some(NOBODY)),
            run_as_non_root: Some(true),
            privileged: Some(false),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
            seccomp_profile: Some(runtime_default()),
            ..SecurityContext::default()
        },
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

/// Small requests, so that a full node still takes the Job; a memory limit that only a runaway reaches.
fn default_resources(container: &str) -> ResourceRequirements {
    let (cpu, memory, limit) = match container {
        INSTALL => ("10m", "16Mi", "64Mi"),
        GUARD => ("50m", "128Mi", "2Gi"),
        _ => ("100m", "256Mi", "2Gi"),
    };
    let quantity = |name: &str, value: &str| (name.to_owned(), Quantity(value.to_owned()));
    ResourceRequirements {
        requests: Some([quantity("cpu", cpu), quantity("memory", memory)].into()),
        limits: Some([quantity("memory", limit)].into()),
        claims: None,
    }
}
