//! PostgreSQL's own programs, of the server's major version: dump, restore and the ephemeral server.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use tokio::process::Command;

use super::error::{Error, Result};

/// Where Debian keeps each major's programs.
const INSTALLED: &str = "/usr/lib/postgresql";

/// The programs of one major.
#[derive(Clone, Debug)]
pub struct Tools {
    bin: PathBuf,
    pub major: u32,
    /// As `pg_dump --version` says it.
    pub version: String,
}

impl Tools {
    /// The programs of this major; another one's dump may not restore where it was made.
    pub async fn of(major: u32) -> Result<Self> {
        for bin in candidates() {
            if let Some(tools) = Self::at(bin).await
                && tools.major == major
            {
                return Ok(tools);
            }
        }
        Err(Error::ToolMissing { tool: "pg_dump", major })
    }

    /// The newest programs in this image.
    pub async fn newest() -> Result<Self> {
        let mut newest: Option<Self> = None;
        for bin in candidates() {
            if let Some(tools) = Self::at(bin).await
                && newest.as_ref().is_none_or(|found| found.major < tools.major)
            {
                newest = Some(tools);
            }
        }
        newest.ok_or(Error::ToolMissing { tool: "postgres", major: 0 })
    }

    async fn at(bin: PathBuf) -> Option<Self> {
        if !bin.join("pg_dump").exists() || !bin.join("postgres").exists() {
            return None;
        }
        let output = Command::new(bin.join("pg_dump")).arg("--version").output().await.ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let version = text.strip_prefix("pg_dump (PostgreSQL) ")?.to_owned();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(Self { bin, major: digits.parse().ok()?, version })
    }

    /// A command with an environment of its own: nothing of this process', so no secret, is handed on.
    /// It dies with the value that runs it.
    pub fn command(&self, tool: &'static str, scratch: &Path) -> Command {
        let mut command = Command::new(self.bin.join(tool));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC").env("HOME", scratch);
        command.envs(user_name(scratch)).stdin(Stdio::null()).current_dir("/").kill_on_drop(true);
        command
    }

    /// Runs a command to its end; anything but exit 0 is an error with its first error line.
    pub async fn run(tool: &'static str, command: &mut Command) -> Result<Output> {
        let output = command.output().await.map_err(|error| Error::Tool {
            tool,
            status: "not started".to_owned(),
            tail: error.to_string(),
        })?;
        if output.status.success() {
            return Ok(output);
        }
        Err(Error::Tool { tool, status: output.status.to_string(), tail: error_line(&output.stderr) })
    }
}

fn candidates() -> Vec<PathBuf> {
    let installed = std::fs::read_dir(INSTALLED).into_iter().flatten().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut bins: Vec<_> = installed.map(|entry| entry.path().join("bin")).collect();
    bins.sort();
    bins.extend(std::env::split_paths(&path));
    bins
}

/// The first line that tells of an error, without the value that PostgreSQL quotes at its end: that may be a row's.
pub(super) fn error_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let telling = |line: &&str| ["error:", "FATAL:", "PANIC:", "ERROR:"].iter().any(|word| line.contains(word));
    let line = lines.clone().find(telling).or_else(|| lines.next_back()).unwrap_or("it said nothing");
    line.split(": \"").next().unwrap_or(line).chars().take(300).collect()
}

/// `initdb` wants a name for the user it runs as, and a Job's user often has none: then libnss_wrapper gives it one.
fn user_name(scratch: &Path) -> Vec<(&'static str, PathBuf)> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if known.lines().any(|line| line.split(':').nth(2) == Some(&uid.to_string())) {
        return Vec::new();
    }
    let library = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("libnss_wrapper.so"))
        .find(|path| path.exists());
    let (passwd, group) = (scratch.join(".passwd"), scratch.join(".group"));
    let line = format!("memoria:x:{uid}:{gid}::{}:/bin/false\n", scratch.display());
    let written = std::fs::write(&passwd, line).and_then(|()| std::fs::write(&group, format!("memoria:x:{gid}:\n")));
    match (library, written) {
        (Some(library), Ok(())) => {
            vec![("LD_PRELOAD", library), ("NSS_WRAPPER_PASSWD", passwd), ("NSS_WRAPPER_GROUP", group)]
        }
        // initdb then says itself what it misses.
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::error_line;

    #[test]
    fn an_error_line_quotes_no_row() {
        let output = b"pg_restore: while PROCESSING TOC:\npg_restore: error: COPY failed for table \"t\": ERROR:  invalid input syntax for type integer: \"chat text\"\nCONTEXT:  COPY t, line 1: \"chat text\"\n";
        assert_eq!(
            error_line(output),
            "pg_restore: error: COPY failed for table \"t\": ERROR:  invalid input syntax for type integer"
        );
        assert_eq!(error_line(b""), "it said nothing");
    }
}
