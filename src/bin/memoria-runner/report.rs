//! Answers: the termination message, and the files that runner and guard leave for each other.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use memoria_runner::order::{Category, MAX_REPORT_BYTES, Report, RunnerOrder};
use serde::Serialize;
use serde_json::Value;

use crate::supervise::Supervisor;

/// How often a file of the guard is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The guard's verdict is still awaited when the pod is being ended, but not for long.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// Of a message that had to be cut.
const CUT_MESSAGE: usize = 1024;

pub fn ok(message: String) -> Report {
    Report { v: 1, ok: true, reason: "Done".to_owned(), message, category: None, facts: None }
}

pub fn failed(reason: &str, category: Category, message: String) -> Report {
    Report { v: 1, ok: false, reason: reason.to_owned(), message, category: Some(category), facts: None }
}

/// Writes the answer into the termination message.
///
/// # Errors
/// When the file cannot be written: the Job then has no answer.
pub fn write(order: &RunnerOrder, report: &Report) -> io::Result<()> {
    let value = serde_json::to_value(report).map_err(io::Error::other)?;
    write_value(order, value)
}

/// The same for an answer that was made elsewhere. One that is too long loses its facts, never its verdict.
///
/// # Errors
/// When the file cannot be written: the Job then has no answer.
pub fn write_value(order: &RunnerOrder, mut report: Value) -> io::Result<()> {
    let mut text = report.to_string();
    if text.len() > MAX_REPORT_BYTES {
        if let Some(fields) = report.as_object_mut() {
            fields.remove("facts");
            let message: String = fields.get("message").and_then(Value::as_str).unwrap_or_default().into();
            let cut: String = message.chars().take(CUT_MESSAGE / 4).collect();
            let why = format!("{cut} (facts left out: the answer had {} bytes of {MAX_REPORT_BYTES})", text.len());
            fields.insert("message".to_owned(), Value::String(why));
        }
        text = report.to_string();
    }
    // A mounted file: it can be written, but not replaced.
    fs::write(&order.termination_log, text)
}

/// A file of the shared directory.
pub fn shared(order: &RunnerOrder, name: &str) -> PathBuf {
    Path::new(&order.shared_directory).join(name)
}

/// Whole or not at all: the guard may look at any time.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_shared(order: &RunnerOrder, name: &str, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::other)?;
    let whole = shared(order, &format!(".{name}.runner"));
    fs::write(&whole, text)?;
    fs::rename(&whole, shared(order, name))
}

/// What came of waiting for the guard.
pub enum Awaited {
    Text(String),
    TimeUp,
    Stopped,
}

/// Waits for a file of the guard.
pub fn wait_shared(order: &RunnerOrder, name: &str, seconds: u64, supervisor: &mut Supervisor) -> Awaited {
    let path = shared(order, name);
    let mut until = Instant::now() + Duration::from_secs(seconds);
    let already_stopping = supervisor.stopping();
    if already_stopping {
        until = until.min(Instant::now() + STOP_PATIENCE);
    }
    loop {
        match fs::read_to_string(&path) {
            Ok(text) => return Awaited::Text(text),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("memoria-runner: {} cannot be read: {error}", path.display());
            }
            Err(_) => {}
        }
        if supervisor.stopping() && !already_stopping {
            return Awaited::Stopped;
        }
        if Instant::now() >= until {
            return Awaited::TimeUp;
        }
        supervisor.pause(LOOK_EVERY);
    }
}
