//! The files by which guard and runner speak, in the directory that their pod shares.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use memoria_runner::order::{GO_FILE, Go, RESULT_FILE, RunnerResult, VERDICT_FILE};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::protocol::JobReport;
use crate::snapshot::{Error, Result};

/// A random name of this pod, the guard's own: tells a restarted container from another pod.
const TOKEN_FILE: &str = "guard-token";

pub struct Shared {
    directory: PathBuf,
}

/// How waiting for the runner ended.
pub enum Waited {
    Result(RunnerResult),
    TimeUp,
    /// The pod is being ended, and the runner left nothing.
    Stopped,
}

impl Shared {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// This pod's token, made at the first call.
    pub fn token(&self) -> Result<String> {
        let path = self.path(TOKEN_FILE);
        match fs::read_to_string(&path) {
            Ok(token) => return Ok(token),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("reading", &path)(error)),
        }
        let source = "/proc/sys/kernel/random/uuid";
        let token = fs::read_to_string(source).map_err(Error::io("reading", source))?.trim().to_owned();
        self.write(TOKEN_FILE, token.as_bytes())?;
        Ok(token)
    }

    pub fn go(&self) -> Result<Option<Go>> {
        self.read(GO_FILE)
    }

    pub fn verdict(&self) -> Result<Option<JobReport>> {
        self.read(VERDICT_FILE)
    }

    pub fn proceed(&self, database_url: Option<String>) -> Result<()> {
        self.write_json(GO_FILE, &Go { v: 1, proceed: true, database_url, report: None })
    }

    /// Tells the runner that there is nothing to run, and why. A go-ahead that was given stays.
    pub fn refuse(&self, report: &JobReport) -> Result<()> {
        if self.go()?.is_some() {
            return Ok(());
        }
        let report = serde_json::to_value(report).map_err(|error| Error::Order { what: error.to_string() })?;
        self.write_json(GO_FILE, &Go { v: 1, proceed: false, database_url: None, report: Some(report) })
    }

    pub fn write_verdict(&self, report: &JobReport) -> Result<()> {
        self.refuse(report)?;
        self.write_json(VERDICT_FILE, report)
    }

    /// Waits for the runner's result. When the pod is being ended the runner still gets a moment to write it.
    pub async fn wait(&self, limit: Duration, stop: &mut watch::Receiver<bool>) -> Result<Waited> {
        let (started, mut stopped_at) = (Instant::now(), None);
        loop {
            if let Some(result) = self.read(RESULT_FILE)? {
                return Ok(Waited::Result(result));
            }
            if *stop.borrow() {
                let since: &mut Instant = stopped_at.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_secs(2) {
                    return Ok(Waited::Stopped);
                }
            }
            if started.elapsed() > limit {
                return Ok(Waited::TimeUp);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(Error::Order { what: format!("{name}: {error}") }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("reading", &path)(error)),
        }
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::Order { what: error.to_string() })?;
        self.write(name, &bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, temporary) = (self.path(name), self.path(&format!("{name}.tmp")));
        fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path)).map_err(Error::io("writing", &path))
    }
}
