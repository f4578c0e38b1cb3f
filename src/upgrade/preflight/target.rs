//! One target between what runs and what is wanted.

use std::collections::BTreeMap;

use crate::{
    api::{
        MemoriaReleaseSpec,
        release::{Role, Target},
    },
    cluster::adopt::{Adopted, AdoptedTarget},
    job::manifest::{PodShape, ShapeError},
    upgrade::image::{ImageRef, digest_of},
};

pub(super) struct Wanted<'a> {
    pub name: &'a str,
    pub is_server: bool,
    pub role: Role,
    pub found: &'a AdoptedTarget,
    /// The image as the workload names it.
    pub from: ImageRef,
    /// Digest that its pods run, when one of them says so.
    pub running_digest: Option<String>,
    /// What the spec asks for, by tag or digest.
    pub to: ImageRef,
    pub to_text: String,
    /// What must still be there for the way back, by digest when a pod told it.
    pub prior_text: String,
    pub prior_name: String,
}

impl<'a> Wanted<'a> {
    pub fn all(spec: &'a MemoriaReleaseSpec, adopted: &'a Adopted) -> Result<Vec<Self>, String> {
        spec.targets.iter().map(|target| Self::one(spec, target, adopted)).collect()
    }

    fn one(spec: &'a MemoriaReleaseSpec, target: &'a Target, adopted: &'a Adopted) -> Result<Self, String> {
        let found = adopted
            .targets
            .iter()
            .find(|found| found.name == target.name)
            .ok_or_else(|| format!("target {}: {} was not found", target.name, target.workload_ref))?;
        let from: ImageRef =
            found.workload.seen.image.parse().map_err(|error| format!("target {}: {error}", target.name))?;
        let is_server = target.role == Role::Server;
        if is_server && from.tag.is_none() {
            return Err(format!(
                "target {}: the running image {from} has no tag, so its version is unknown: name it by tag (and digest)",
                target.name
            ));
        }
        let to = ImageRef {
            repository: target.image.repository.clone().unwrap_or_else(|| from.repository.clone()),
            tag: Some(target.image.tag.clone().unwrap_or_else(|| spec.version.clone())),
            digest: target.image.digest.clone(),
        };
        let running_digest =
            found.workload.seen.pods.iter().find_map(|pod| digest_of(pod.image_id.as_deref()?)).map(str::to_owned);
        let prior = match &running_digest {
            Some(digest) => format!("{}@{digest}", from.repository),
            None => from.to_string(),
        };
        Ok(Self {
            name: &target.name,
            is_server,
            role: target.role,
            found,
            to_text: to.to_string(),
            prior_text: prior,
            prior_name: format!("{}-prior", target.name),
            from,
            running_digest,
            to,
        })
    }

    /// The new image with the digest that the kubelet resolved: `repository:tag@sha256:…`.
    pub fn pinned(&self, digests: &BTreeMap<String, String>) -> Option<String> {
        let digest = digests.get(&self.to_text)?;
        Some(ImageRef { digest: Some(digest.clone()), ..self.to.clone() }.to_string())
    }

    /// The prior image by digest.
    pub fn prior(&self, digests: &BTreeMap<String, String>) -> Option<String> {
        let digest = self.running_digest.as_ref().or_else(|| digests.get(&self.prior_text))?;
        Some(format!("{}@{digest}", self.from.repository))
    }

    pub fn shape(&self, spec: &MemoriaReleaseSpec) -> Result<PodShape, ShapeError> {
        let template = &self.found.workload.template;
        match self.is_server {
            true => PodShape::from_server(template, &self.found.container, &spec.jobs, &spec.database.url_from),
            false => PodShape::from_target(template, &self.found.container, &spec.jobs),
        }
    }
}
