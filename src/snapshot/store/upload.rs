//! Writes an object in parts, in memory of two of them, and leaves nothing behind that would be paid for and not be seen.
//!
//! Parts of an upload without an end lie in no listing, and to look for them needs a right of its own that few give. So an
//! upload's id is kept in an object beside, `<name>.upload`, before its first part is sent, until its end. A run that was
//! killed leaves that object, and whoever comes next ends the upload by it. One that is killed between the two has sent no
//! part, so it costs nothing.

use std::io::{self, Write};

use bytes::Bytes;
use object_store::{
    MultipartId,
    multipart::{MultipartStore, PartId},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tracing::warn;

use super::{
    error::{Kind, StoreError, code},
    s3::{MIB, Prefix},
};
use crate::snapshot::Error;

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What the name of an object ends with that tells of an upload.
pub const SUFFIX: &str = ".upload";
/// S3's own bound.
const PARTS: usize = 10_000;
/// Refusals of a part that say nothing of the next try: it stalled, or was changed on its way.
const PASSING: [&str; 3] = ["RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch"];

/// Names an upload that has no end yet.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Journal {
    /// Version of this form: 1.
    v: i32,
    upload_id: MultipartId,
    started_at: jiff::Timestamp,
}

pub(super) fn journal(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// An object that comes to be at [`Upload::finish`], and not at all when this is dropped before.
#[derive(Debug)]
pub struct Upload {
    prefix: Prefix,
    name: String,
    /// The part that is being filled.
    part: Vec<u8>,
    bytes: u64,
    /// From the first full part on; what is smaller than one goes in one request.
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    id: MultipartId,
    parts: Vec<PartId>,
    /// The part that is under way.
    sending: Option<JoinHandle<object_store::Result<PartId>>>,
}

impl Upload {
    pub(super) fn new(prefix: Prefix, name: &str) -> Self {
        Self { prefix, name: name.to_owned(), part: Vec::new(), bytes: 0, begun: None }
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(object_store::Error) -> StoreError + use<> {
        StoreError::request(doing, self.prefix.object(&self.name))
    }

    fn begin(&mut self) -> Result<()> {
        if self.begun.is_some() {
            return Ok(());
        }
        let created = self.prefix.wait(self.prefix.bucket.store.create_multipart(&self.prefix.key(&self.name)));
        let id = created.map_err(self.failed("beginning to write"))?;
        let started_at = jiff::Timestamp::now();
        let kept = serde_json::to_vec(&Journal { v: 1, upload_id: id.clone(), started_at });
        self.begun = Some(Begun { id, parts: Vec::new(), sending: None });
        // Two strings and a number always serialise.
        self.prefix.put("writing", &journal(&self.name), kept.unwrap_or_default().into())
    }

    /// Waits for the part that is under way, and sends the next.
    fn send(&mut self) -> Result<()> {
        self.begin()?;
        self.settle()?;
        let (size, key) = (self.prefix.bucket.part, self.prefix.key(&self.name));
        let Some(begun) = &mut self.begun else { return Ok(()) };
        let number = begun.parts.len();
        if number == PARTS {
            let object = self.prefix.object(&self.name);
            return Err(StoreError::TooLarge { object, parts: PARTS, part_mib: size / MIB });
        }
        let bytes = Bytes::from(std::mem::replace(&mut self.part, Vec::with_capacity(size)));
        let (bucket, id) = (self.prefix.bucket.clone(), begun.id.clone());
        begun.sending = Some(self.prefix.bucket.runtime.spawn(async move {
            // What has no answer the client itself asks for again.
            let put = bucket.store.put_part(&key, &id, number, bytes.clone().into()).await;
            match put {
                Err(error) if code(&error).is_some_and(|code| PASSING.contains(&code.as_str())) => {
                    bucket.store.put_part(&key, &id, number, bytes.into()).await
                }
                other => other,
            }
        }));
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let failed = self.failed("writing a part of");
        let Some(begun) = &mut self.begun else { return Ok(()) };
        let Some(sending) = begun.sending.take() else { return Ok(()) };
        let sent = self
            .prefix
            .wait(sending)
            .unwrap_or_else(|error| Err(object_store::Error::Generic { store: "S3", source: error.into() }));
        begun.parts.push(sent.map_err(failed)?);
        Ok(())
    }

    /// Makes the object of what was written.
    pub fn finish(mut self) -> Result<(), Error> {
        if self.begun.is_none() {
            let bytes = Bytes::from(std::mem::take(&mut self.part));
            return Ok(self.prefix.put("writing", &self.name, bytes)?);
        }
        if !self.part.is_empty() {
            self.send()?;
        }
        self.settle()?;
        let Some(Begun { id, parts, .. }) = &mut self.begun else { return Ok(()) };
        let (key, parts) = (self.prefix.key(&self.name), std::mem::take(parts));
        let completed = self.prefix.wait(self.prefix.bucket.store.complete_multipart(&key, id, parts));
        match completed.map_err(self.failed("completing")) {
            // It was asked for again, and the first answer got lost. Whether it is the right object is read back later.
            Err(error) if error.kind() == Some(Kind::NoUpload) => {
                if self.prefix.size(&self.name)? != Some(self.bytes) {
                    return Err(error.into());
                }
            }
            other => drop(other?),
        }
        self.begun = None;
        Ok(self.prefix.remove(&journal(&self.name))?)
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.prefix.bucket.part - self.part.len();
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.part.extend_from_slice(taken);
        self.bytes += taken.len() as u64;
        if self.part.len() == self.prefix.bucket.part {
            self.send().map_err(|error| io::Error::other(Error::from(error)))?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(Begun { id, sending, .. }) = self.begun.take() else { return };
        // A part that arrived after the upload's end would stay.
        if let Some(sending) = sending {
            sending.abort();
            let _ = self.prefix.wait(sending);
        }
        let file = std::mem::take(&mut self.name);
        let unfinished = Unfinished { prefix: self.prefix.clone(), file, id, started_at: jiff::Timestamp::now() };
        if let Err(error) = unfinished.end() {
            warn!(%error, "an upload could not be ended; the next export or prune of this prefix does");
        }
    }
}

/// An upload that began and had no end.
#[derive(Debug)]
pub struct Unfinished {
    prefix: Prefix,
    /// The object that was to be.
    pub file: String,
    id: MultipartId,
    pub started_at: jiff::Timestamp,
}

impl Unfinished {
    /// Ends it: its parts go, and so does what names it. One that has ended already is none.
    pub fn end(&self) -> Result<()> {
        let aborted =
            self.prefix.wait(self.prefix.bucket.store.abort_multipart(&self.prefix.key(&self.file), &self.id));
        match aborted.map_err(StoreError::request("ending the upload of", self.prefix.object(&self.file))) {
            Err(error) if !matches!(error.kind(), Some(Kind::NoUpload | Kind::Missing)) => return Err(error),
            _ => {}
        }
        self.prefix.remove(&journal(&self.file))
    }
}

/// Those that objects of these names in a prefix tell of.
pub(super) fn unfinished(prefix: &Prefix, files: &[String]) -> Result<Vec<Unfinished>> {
    let mut found = Vec::new();
    for name in files {
        let Some(file) = name.strip_suffix(SUFFIX) else { continue };
        let Some(bytes) = prefix.read(name)? else { continue };
        let unknown = |what: String| StoreError::Journal { object: prefix.object(name), what };
        let Journal { v, upload_id, started_at } =
            serde_json::from_slice(&bytes).map_err(|error| unknown(error.to_string()))?;
        if v != 1 {
            return Err(unknown(format!("it has version {v}, this program reads 1")));
        }
        found.push(Unfinished { prefix: prefix.clone(), file: file.to_owned(), id: upload_id, started_at });
    }
    Ok(found)
}
