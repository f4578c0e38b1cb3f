//! `memoria-operator snapshot fetch`: the files of an attempt from where a Job kept them, decrypted, into a directory.

use std::path::Path;

use memoria_operator::snapshot::{
    Error,
    archive::{Archive, Brought, Part},
    portable::{Keys, Recipients},
    store::Place,
};

use super::{Failure, on_a_thread};

/// Brings everything that lies in a place.
pub async fn fetch(from: Place, to: &Path, keys: Keys) -> Result<Brought, Failure> {
    let directory = to.to_owned();
    on_a_thread(&from, move |from| {
        let to = Place::Directory(directory.clone());
        to.make()?;
        let found = to.entries()?;
        if let Some(found) = found.files.into_iter().chain(found.places).next() {
            return Err(Error::NotEmpty { directory, found });
        }
        let brought = Archive::new(&directory, from.clone(), Recipients::NONE, keys).bring("", Part::All)?;
        if brought.files == 0 {
            return Err(Error::NoExport { path: from.name(), what: "nothing that was kept whole lies there" });
        }
        Ok(brought)
    })
    .await
}
