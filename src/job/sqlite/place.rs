//! Where the file lies: its path in every container, the claim's volume that holds it, and so which database it is.

use std::path::{Path, PathBuf};

use super::super::{
    context::Context,
    protocol::{DataVolume, DatabaseTask},
};
use crate::{
    api::upgrade::DatabaseIdentity,
    snapshot::{Error, Result, identity},
};

/// In place of a host.
const HOST: &str = "sqlite";

/// A database's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    pub volume: DataVolume,
}

impl Place {
    /// The file that the URL names, proved to be the planned one where there is one.
    pub fn of(context: &Context, task: &DatabaseTask) -> Result<Self> {
        let place = Self::find(context, task)?;
        if let Some(expected) = &task.identity {
            identity::prove(expected, &place.identity())?;
        }
        Ok(place)
    }

    fn find(context: &Context, task: &DatabaseTask) -> Result<Self> {
        let path = context.sqlite_url()?.resolve(task.working_directory.as_deref())?;
        let holding = task.volumes.iter().filter(|volume| path.starts_with(&volume.mount_path));
        match holding.max_by_key(|volume| Path::new(&volume.mount_path).components().count()) {
            Some(volume) if path != Path::new(&volume.mount_path) => {
                let volume = volume.clone();
                Ok(Self { path, volume })
            }
            _ => {
                let mounts: Vec<_> =
                    task.volumes.iter().map(|v| format!("{} at {}", v.claim_name, v.mount_path)).collect();
                let mounts = if mounts.is_empty() { "it mounts no claim".to_owned() } else { mounts.join(", ") };
                Err(Error::NotOnClaim { path, mounts })
            }
        }
    }

    /// The volume and the path below its root: the mount may move, the file does not.
    pub fn identity(&self) -> DatabaseIdentity {
        let below = self.path.strip_prefix(&self.volume.mount_path).unwrap_or(&self.path);
        let root = Path::new(self.volume.sub_path.as_deref().unwrap_or_default());
        DatabaseIdentity {
            system_identifier: self.volume.claim_uid.clone(),
            name: root.join(below).to_string_lossy().into_owned(),
            oid: 0,
            host: HOST.to_owned(),
        }
    }

    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}
