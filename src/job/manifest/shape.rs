//! What Jobs copy from the adopted Server's pod template, and nothing else of it: above all no labels, because a
//! Service would then send requests to a Job.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EnvVar, LocalObjectReference, PodSecurityContext, PodTemplateSpec, ResourceRequirements,
    SecurityContext, Toleration,
};

use super::url_source::database_env;
pub use super::url_source::{UrlError, UrlSeen};
use crate::api::release::{Jobs, SecurityContextMode, UrlFrom};

/// Scheduling, identity and database source of a release's Jobs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodShape {
    pub image_pull_secrets: Vec<LocalObjectReference>,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    /// The container's own, else the pod's; absent: what the image says.
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub fs_group: Option<i64>,
    /// Of the container, for commands of the same image.
    pub working_dir: Option<String>,
    /// Ends with the entry for the database URL; entries that it refers to come before it. Empty for a target that is
    /// not the Server.
    pub database_env: Vec<EnvVar>,
    /// What the template shows of that URL.
    pub url: UrlSeen,
    pub security: Security,
    /// Of each Job's main container, where the release names them.
    pub resources: Option<ResourceRequirements>,
}

/// Which security context Jobs get.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Security {
    /// That of the PodSecurity level `restricted`.
    #[default]
    Restricted,
    /// The Server's own, for images that must run as root.
    AsServer { pod: Box<PodSecurityContext>, container: Box<SecurityContext> },
}

/// Why Jobs cannot be made from a pod template. Each names the field and the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("the pod template has no spec; write one")]
    NoSpec,
    #[error("the pod template has no container {name:?}, only {present}; set targets[].container to one of them")]
    NoContainer { name: String, present: String },
    #[error(
        "container {container:?} runs as root (runAsUser: 0), but jobs.securityContext is Restricted; give the \
         container another runAsUser, or set jobs.securityContext: AsServer"
    )]
    Root { container: String },
    #[error(transparent)]
    Url(#[from] UrlError),
}

impl PodShape {
    /// The shape of the Server's Jobs: with the source of the database URL.
    ///
    /// # Errors
    /// [`ShapeError`] when the container is missing, runs as root against the spec, or its URL cannot be handed on.
    pub fn from_server(
        template: &PodTemplateSpec,
        container: &str,
        jobs: &Jobs,
        url_from: &UrlFrom,
    ) -> Result<Self, ShapeError> {
        let found = find_container(template, container)?;
        let (database_env, url) = database_env(found, url_from)?;
        Ok(Self { database_env, url, ..Self::from_target(template, container, jobs)? })
    }

    /// The shape of another target's probe: its own pull secrets, place and user, and no database.
    ///
    /// # Errors
    /// [`ShapeError`] when the container is missing or runs as root against the spec.
    pub fn from_target(template: &PodTemplateSpec, container: &str, jobs: &Jobs) -> Result<Self, ShapeError> {
        let found = find_container(template, container)?;
        let spec = template.spec.as_ref().ok_or(ShapeError::NoSpec)?;
        let pod = spec.security_context.clone().unwrap_or_default();
        let own = found.security_context.clone().unwrap_or_default();
        let run_as_user = own.run_as_user.or(pod.run_as_user);
        if jobs.security_context == SecurityContextMode::Restricted && run_as_user == Some(0) {
            return Err(ShapeError::Root { container: container.to_owned() });
        }
        Ok(Self {
            image_pull_secrets: spec.image_pull_secrets.clone().unwrap_or_default(),
            node_selector: jobs
                .node_selector
                .clone()
                .unwrap_or_else(|| spec.node_selector.clone().unwrap_or_default().into_iter().collect()),
            tolerations: jobs.tolerations.clone().or_else(|| spec.tolerations.clone()).unwrap_or_default(),
            run_as_user,
            run_as_group: own.run_as_group.or(pod.run_as_group),
            fs_group: pod.fs_group,
            working_dir: found.working_dir.clone(),
            database_env: Vec::new(),
            url: UrlSeen::Hidden,
            security: match jobs.security_context {
                SecurityContextMode::Restricted => Security::Restricted,
                SecurityContextMode::AsServer => Security::AsServer { pod: Box::new(pod), container: Box::new(own) },
            },
            resources: jobs.resources.clone(),
        })
    }
}

fn find_container<'a>(template: &'a PodTemplateSpec, name: &str) -> Result<&'a Container, ShapeError> {
    let spec = template.spec.as_ref().ok_or(ShapeError::NoSpec)?;
    spec.containers.iter().find(|c| c.name == name).ok_or_else(|| ShapeError::NoContainer {
        name: name.to_owned(),
        present: spec.containers.iter().map(|c| format!("{:?}", c.name)).collect::<Vec<_>>().join(", "),
    })
}
