//! Says what is being done and how long it has taken, and runs the programs that do it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// How many lines of a failed program's log an error shows.
const SHOWN: usize = 25;

pub struct Progress {
    started: Instant,
    logs: PathBuf,
}

impl Progress {
    pub fn new(logs: PathBuf) -> Result<Self> {
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self { started: Instant::now(), logs })
    }

    pub fn say(&self, what: &str, doing: &str) {
        println!("[{:6.1} s] {what}: {doing}", self.started.elapsed().as_secs_f64());
    }

    /// Runs the program to its end with its output in a log. An error shows the log's end.
    pub fn run(&self, what: &str, command: &mut Command) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let name: String = what.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        let log = self.logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let status = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("cannot start {program}"))?;
        if !status.success() {
            let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
            let lines: Vec<_> = said.lines().collect();
            let end = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
            bail!("{what}: {program} failed ({status}); the log is {}, its end:\n{end}", log.display());
        }
        Ok(())
    }
}
