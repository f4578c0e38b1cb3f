//! The objects below a prefix of a bucket, by the `object_store` crate. Region, endpoint and credentials come from the
//! standard AWS variables.

use std::{
    fmt,
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt};
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    path::{Path, PathPart},
};
use tokio::runtime::Handle;

use super::{
    Entries,
    error::{Kind, StoreError, code},
};
use crate::snapshot::Error;

type Result<T, E = StoreError> = std::result::Result<T, E>;
type Pieces = std::pin::Pin<Box<dyn Stream<Item = object_store::Result<Piece>> + Send>>;
type Piece = bytes::Bytes;

/// How a place in a bucket begins.
pub const SCHEME: &str = "s3://";
/// What an upload's part may have, in MiB.
pub const PART_MIB: std::ops::RangeInclusive<u32> = 5..=5120;
/// Memory of an export is four of these; with S3's 10,000 parts a file may have 156 GiB.
pub const DEFAULT_PART_MIB: u32 = 16;
pub(super) const MIB: usize = 1024 * 1024;
/// An object is read in pieces of this many bytes, each of which is asked for again by itself.
const RANGE: u64 = 16 * 1024 * 1024;
/// What tells whether the place can be written to. Lies there for a moment only.
pub const PROBE: &str = "write-probe";
/// The slowest network that is waited for, in bytes a second.
const SLOWEST: usize = 64 * 1024;

/// Request by request: about 12 s in all, while the storage answers at once that it cannot.
fn retries() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(10), base: 2.0 };
    // Requests keep their signature, which is good for 15 minutes.
    RetryConfig { backoff, max_retries: 6, retry_timeout: Duration::from_secs(600) }
}

/// A bucket and how to reach it.
pub(super) struct Bucket {
    name: String,
    pub store: AmazonS3,
    /// Size of an upload's parts, in bytes.
    pub part: usize,
    pub runtime: Handle,
}

/// All below a key's beginning. Its calls wait for the network: never from within the runtime.
#[derive(Clone)]
pub struct Prefix {
    pub(super) bucket: Arc<Bucket>,
    path: Path,
}

/// The client would show its credentials.
impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.bucket.name)?;
        if self.path.is_root() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

impl Prefix {
    /// Nothing is asked of the storage yet. `runtime` carries the requests; `part_mib` lies within [`PART_MIB`].
    pub fn new(url: &str, part_mib: u32, runtime: Handle) -> Result<Self> {
        let (name, path) = parse(url)?;
        if !PART_MIB.contains(&part_mib) {
            let what = format!("a part has {} to {} MiB, not {part_mib}", PART_MIB.start(), PART_MIB.end());
            return Err(StoreError::Settings { what });
        }
        let part = part_mib as usize * MIB;
        let builder = AmazonS3Builder::from_env();
        let plain = has_plain_endpoint(&builder)?;
        let client = |key| AmazonS3ConfigKey::Client(key);
        let patience = 60 + part / SLOWEST;
        let store = builder
            .with_bucket_name(&name)
            .with_retry(retries())
            // Not every storage knows the other way, and we remove a handful of objects.
            .with_disable_bulk_delete(true)
            .with_config(client(ClientConfigKey::AllowHttp), plain.to_string())
            // A request may take as long as there is an answer within the other.
            .with_config(client(ClientConfigKey::Timeout), "1day")
            .with_config(client(ClientConfigKey::ReadTimeout), format!("{patience}s"))
            .build()
            .map_err(|error| StoreError::Settings { what: error.to_string() })?;
        Ok(Self { bucket: Arc::new(Bucket { name, store, part, runtime }), path })
    }

    pub fn below(&self, name: &str) -> Self {
        Self { bucket: self.bucket.clone(), path: self.key(name) }
    }

    pub fn above(&self) -> Option<Self> {
        self.path.parent().map(|path| Self { bucket: self.bucket.clone(), path })
    }

    /// The last part of the prefix.
    pub fn last(&self) -> Option<String> {
        self.path.filename().map(str::to_owned)
    }

    pub(super) fn key(&self, name: &str) -> Path {
        match PathPart::parse(name) {
            Ok(part) => self.path.clone().join(part),
            Err(_) => self.path.clone().join(name),
        }
    }

    /// As errors name it.
    pub(super) fn object(&self, name: &str) -> String {
        format!("{SCHEME}{}/{}", self.bucket.name, self.key(name))
    }

    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.bucket.runtime.block_on(work)
    }

    fn failed(&self, doing: &'static str, name: &str) -> impl FnOnce(object_store::Error) -> StoreError {
        StoreError::request(doing, self.object(name))
    }

    /// Writes, reads and removes a small object.
    pub fn probe(&self) -> Result<()> {
        self.put("trying to write", PROBE, PROBE.into())?;
        let read = self.wait(async { self.bucket.store.get(&self.key(PROBE)).await?.bytes().await });
        read.map_err(self.failed("trying to read back", PROBE))?;
        self.delete("trying to remove", PROBE)
    }

    /// How many bytes an object has; `None` where there is none.
    pub fn size(&self, name: &str) -> Result<Option<u64>> {
        match self.wait(self.bucket.store.head(&self.key(name))) {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            other => other.map(|meta| Some(meta.size)).map_err(self.failed("looking at", name)),
        }
    }

    /// A small object's bytes; `None` where there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let read = self.wait(async { self.bucket.store.get(&self.key(name)).await?.bytes().await });
        match read.map_err(self.failed("reading", name)) {
            Err(error) if error.kind() == Some(Kind::Missing) => Ok(None),
            other => other.map(|bytes| Some(bytes.into())),
        }
    }

    pub fn open(&self, name: &str) -> Result<Download> {
        let (key, object) = (self.key(name), self.object(name));
        let meta = self.wait(self.bucket.store.head(&key)).map_err(self.failed("opening", name))?;
        Ok(Download {
            prefix: self.clone(),
            key,
            object,
            size: meta.size,
            e_tag: meta.e_tag,
            asked: 0,
            pieces: None,
            rest: Piece::new(),
        })
    }

    /// Over whatever is there.
    pub(super) fn put(&self, doing: &'static str, name: &str, bytes: Piece) -> Result<()> {
        let put = self.wait(self.bucket.store.put(&self.key(name), bytes.into()));
        put.map(drop).map_err(self.failed(doing, name))
    }

    /// Writes an object where there is none yet. By a condition, where the storage knows such; looking first is enough
    /// where it does not, because one export at a time goes to a prefix.
    pub fn write_once(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut there = self.read(name)?;
        if there.is_none() {
            let only_new = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let key = self.key(name);
            let put = self.bucket.store.put_opts(&key, Piece::copy_from_slice(bytes).into(), only_new);
            match self.wait(put) {
                Ok(_) => return Ok(()),
                // Perhaps it is ours: an answer may be lost.
                Err(object_store::Error::AlreadyExists { .. }) => there = self.read(name)?,
                Err(error) if knows_no_condition(&error) => {
                    return self.put("writing", name, Piece::copy_from_slice(bytes));
                }
                Err(error) => return Err(self.failed("writing", name)(error)),
            }
        }
        if there.as_deref() == Some(bytes) { Ok(()) } else { Err(StoreError::Occupied { object: self.object(name) }) }
    }

    /// Removes an object, if it is there.
    pub fn remove(&self, name: &str) -> Result<()> {
        match self.delete("removing", name) {
            Err(error) if error.kind() == Some(Kind::Missing) => Ok(()),
            other => other,
        }
    }

    fn delete(&self, doing: &'static str, name: &str) -> Result<()> {
        self.wait(self.bucket.store.delete(&self.key(name))).map_err(self.failed(doing, name))
    }

    /// What lies directly below.
    pub fn entries(&self) -> Result<Entries> {
        let listed = self.wait(self.bucket.store.list_with_delimiter(Some(&self.path)));
        let listed = listed.map_err(StoreError::request("listing", self.to_string()))?;
        let last = |path: &Path| path.filename().map(str::to_owned);
        // Consoles mark what they call a directory by an object of its own name.
        let files = listed.objects.iter().filter(|object| object.location != self.path);
        Ok(Entries {
            files: files.filter_map(|object| last(&object.location)).collect(),
            places: listed.common_prefixes.iter().filter_map(last).collect(),
        })
    }
}

fn knows_no_condition(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotImplemented { .. }) || code(error).as_deref() == Some("NotImplemented")
}

/// Bucket and prefix. What was typed is not repeated: somebody may have put a secret into it.
fn parse(url: &str) -> Result<(String, Path)> {
    let wrong = |what: &str| StoreError::Url { what: what.to_owned() };
    let rest = url.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with s3://"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || ".-_".contains(letter);
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(allowed) {
        return Err(wrong("a bucket's name has 3 to 63 letters, digits, dots and hyphens"));
    }
    let path = Path::parse(prefix)
        .map_err(|_| wrong("the prefix has an empty or relative part, or a letter that no key has"))?;
    Ok((bucket.to_owned(), path))
}

/// Whether whoever named the endpoint asked for a connection without TLS.
fn has_plain_endpoint(builder: &AmazonS3Builder) -> Result<bool> {
    let named = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
    let Some(endpoint) = named.iter().find_map(|key| builder.get_config_value(key)) else { return Ok(false) };
    let wrong = |what: &str| StoreError::Settings { what: format!("AWS_ENDPOINT_URL {what}") };
    let url = url::Url::parse(&endpoint).map_err(|_| wrong("is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("holds a user or a password"));
    }
    match url.scheme() {
        "http" => Ok(true),
        "https" => Ok(false),
        _ => Err(wrong("begins with neither https:// nor http://")),
    }
}

/// An object that is being read: always the one that was opened, however long it takes.
pub struct Download {
    prefix: Prefix,
    key: Path,
    object: String,
    size: u64,
    e_tag: Option<String>,
    /// How much of it was asked for.
    asked: u64,
    pieces: Option<Pieces>,
    /// What has come and was not given yet.
    rest: Piece,
}

impl Download {
    fn next(&mut self) -> object_store::Result<Option<Piece>> {
        loop {
            if let Some(pieces) = &mut self.pieces
                && let Some(piece) = self.prefix.bucket.runtime.block_on(pieces.next())
            {
                return piece.map(Some);
            }
            if self.asked == self.size {
                return Ok(None);
            }
            let end = self.size.min(self.asked + RANGE);
            let options = GetOptions {
                range: Some(GetRange::Bounded(self.asked..end)),
                if_match: self.e_tag.clone(),
                ..GetOptions::default()
            };
            let got = self.prefix.wait(self.prefix.bucket.store.get_opts(&self.key, options))?;
            self.asked = end;
            self.pieces = Some(got.into_stream());
        }
    }
}

impl Read for Download {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            let failed = StoreError::request("reading", self.object.clone());
            match self.next().map_err(|error| io::Error::other(Error::from(failed(error))))? {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.rest.len());
        let now = self.rest.split_to(length);
        out.get_mut(..length).unwrap_or_default().copy_from_slice(&now);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_and_a_prefix_are_read_from_what_is_typed() {
        for (url, bucket, prefix) in [
            ("s3://backups/memoria/2026-01-10", "backups", "memoria/2026-01-10"),
            ("s3://backups/memoria/", "backups", "memoria"),
            ("s3://my.bucket-1", "my.bucket-1", ""),
        ] {
            let (found, path) = parse(url).unwrap();
            assert_eq!((found.as_str(), path.as_ref()), (bucket, prefix));
        }
    }

    #[test]
    fn what_is_no_place_is_refused_and_not_repeated() {
        for url in
            ["s3://", "s3:///x", "s3://b/x", "s3://key:secret@backups/x", "s3://backups/a//b", "s3://backups/../x"]
        {
            let refused = parse(url).unwrap_err().to_string();
            assert!(refused.contains("write s3://bucket/prefix") && !refused.contains("secret"), "{url}: {refused}");
        }
    }

    #[test]
    fn an_endpoint_without_tls_is_one_that_was_named_so() {
        let of = |endpoint: &str| has_plain_endpoint(&AmazonS3Builder::new().with_endpoint(endpoint));
        assert!(of("http://127.0.0.1:9000").unwrap() && !of("https://minio.example").unwrap());
        assert!(!has_plain_endpoint(&AmazonS3Builder::new()).unwrap());
        for wrong in ["minio:9000", "ftp://x", "http://user:secret@minio:9000", "x"] {
            let refused = of(wrong).unwrap_err().to_string();
            assert!(refused.contains("AWS_ENDPOINT_URL") && !refused.contains("secret"), "{refused}");
        }
    }
}
