//! Where snapshots are kept, as Jobs see it. A claim that takes them as they are is mounted, and Jobs work in it. A bucket,
//! or a claim whose files are encrypted, is an archive: Jobs work in an emptyDir, fetch from the archive and keep in it, with
//! credentials and keys that only the operator's own containers get.

use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, KeyToPath, SecretKeySelector, SecretVolumeSource, Volume, VolumeMount,
};

use super::{JobContext, pod::ContainerExt as _};
use crate::{
    api::{
        release::{Encryption, KeyRef, ObjectStore, SecretFrom, Snapshot},
        upgrade::PlannedStorage,
    },
    job::protocol::{ARCHIVE_MOUNT, KEYS_MOUNT},
    snapshot::archive::{ARCHIVE_ENV, IDENTITY_FILE_ENV, RECIPIENTS_FILE_ENV},
};

/// What is behind the storage of a release's Jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nothing: Plan mode keeps nothing.
    Nowhere,
    /// A claim of that name.
    Claim(String),
    Bucket(ObjectStore),
}

impl Storage {
    /// That of the release of that name.
    pub fn of(snapshot: &Snapshot, release: &str) -> Self {
        match (snapshot.object_store(), snapshot.claim_name(release)) {
            (Some(bucket), _) => Self::Bucket(bucket.clone()),
            (None, Some(claim)) => Self::Claim(claim),
            (None, None) => Self::Nowhere,
        }
    }

    pub fn is_kept(&self) -> bool {
        *self != Self::Nowhere
    }

    /// As plan and journal name it.
    pub fn planned(&self, directory: &str, encryption: Option<&Encryption>) -> PlannedStorage {
        let (claim_name, url) = match self {
            Self::Nowhere => (None, None),
            Self::Claim(claim) => (Some(claim.clone()), None),
            Self::Bucket(bucket) => (None, Some(bucket.url.trim_end_matches('/').to_owned())),
        };
        PlannedStorage { claim_name, url, directory: directory.to_owned(), encrypted: encryption.is_some() }
    }
}

/// The key that a bucket's Secret may have beside the two that it must.
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
const CREDENTIALS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", SESSION_TOKEN];

pub(super) const ARCHIVE: (&str, &str) = ("archive", ARCHIVE_MOUNT);
const RECIPIENTS: &str = "recipients";
const IDENTITY: &str = "identity";
/// The pod's group reads the keys, nobody else.
const KEY_MODE: i32 = 0o440;

/// The claim that Jobs work in; absent where they work in an emptyDir.
pub(super) fn workplace(ctx: &JobContext) -> Option<String> {
    match &ctx.storage {
        Storage::Claim(claim) if ctx.encryption.is_none() => Some(claim.clone()),
        _ => None,
    }
}

/// The claim behind the archive's mount.
pub(super) fn claim(ctx: &JobContext) -> Option<String> {
    match &ctx.storage {
        Storage::Claim(claim) if ctx.encryption.is_some() => Some(claim.clone()),
        _ => None,
    }
}

/// Lets a container of ours reach the archive, where there is one.
pub(super) fn reach(container: Container, ctx: &JobContext) -> Container {
    match &ctx.storage {
        Storage::Bucket(bucket) => bucket_env(container, bucket),
        Storage::Claim(_) if ctx.encryption.is_some() => {
            container.env(ARCHIVE_ENV, ARCHIVE_MOUNT.to_owned()).mounted(ARCHIVE)
        }
        Storage::Claim(_) | Storage::Nowhere => container,
    }
}

/// The variables that the storage's client reads. None of the values has a dollar sign, so the kubelet expands nothing.
fn bucket_env(container: Container, bucket: &ObjectStore) -> Container {
    let settings = [("AWS_REGION", bucket.region.as_ref()), ("AWS_ENDPOINT_URL", bucket.endpoint.as_ref())];
    let settings = settings.into_iter().filter_map(|(name, value)| Some((name, value?.clone())));
    let url = bucket.url.trim_end_matches('/').to_owned();
    let named = [(ARCHIVE_ENV, url)].into_iter().chain(settings);
    let container = named.fold(container, |container, (name, value)| container.env(name, value));
    let Some(secret) = &bucket.credentials_secret_ref else { return container };
    let credentials = CREDENTIALS.map(|key| {
        let from = KeyRef { name: secret.name.clone(), key: key.to_owned() };
        let optional = (key == SESSION_TOKEN).then_some(true);
        EnvVar { value_from: Some(source(&from, optional)), name: key.to_owned(), value: None }
    });
    container.envs(&credentials)
}

fn source(from: &KeyRef, optional: Option<bool>) -> EnvVarSource {
    let selector = SecretKeySelector { name: from.name.clone(), key: from.key.clone(), optional };
    EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() }
}

/// An environment entry that is a key of a Secret.
pub(super) fn from_secret(name: String, from: &KeyRef) -> EnvVar {
    EnvVar { name, value: None, value_from: Some(source(from, None)) }
}

/// Lets a container of ours read the keys, where there are any.
pub(super) fn keys(mut container: Container, ctx: &JobContext) -> Container {
    if ctx.encryption.is_none() {
        return container;
    }
    for (name, variable) in [(RECIPIENTS, RECIPIENTS_FILE_ENV), (IDENTITY, IDENTITY_FILE_ENV)] {
        let directory = format!("{KEYS_MOUNT}/{name}");
        container = container.env(variable, format!("{directory}/{name}"));
        container.volume_mounts.get_or_insert_default().push(VolumeMount {
            name: name.to_owned(),
            mount_path: directory,
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    container
}

/// The volume behind a mount of that name, if it holds a key: nothing else of its Secret is in it.
pub(super) fn key_volume(ctx: &JobContext, name: &str) -> Option<Volume> {
    let encryption = ctx.encryption.as_ref()?;
    let SecretFrom { secret_key_ref: from } = match name {
        RECIPIENTS => &encryption.recipients_from,
        IDENTITY => &encryption.identity_from,
        _ => return None,
    };
    let item = KeyToPath { key: from.key.clone(), path: name.to_owned(), mode: None };
    Some(Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(from.name.clone()),
            items: Some(vec![item]),
            default_mode: Some(KEY_MODE),
            optional: None,
        }),
        ..Volume::default()
    })
}
