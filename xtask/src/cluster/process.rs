//! Long-running processes: started detached, found again later, and never mistaken for another that got the same pid.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::command;
use super::layout::Layout;

/// One process for ever: a pid alone is used again, but not with the same start time in the same boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since the boot.
    start_time: u64,
    boot: String,
}

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: i32,
    start_time: u64,
}

/// See proc_pid_stat(5). The name is in parentheses and may hold spaces and parentheses itself, so read from the last one.
fn parse_stat(line: &str) -> Option<Stat> {
    let mut fields = line[line.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Fields 3 and 4 are taken; the start time is field 22.
    let start_time = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, start_time })
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn boot() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the kernel's boot id")?;
    Ok(id.trim().to_owned())
}

impl Identity {
    /// Of a process that runs now.
    pub fn of(pid: i32) -> Result<Option<Self>> {
        let boot = boot()?;
        Ok(stat(pid).map(|s| Self { pid, start_time: s.start_time, boot }))
    }

    /// A zombie counts as ended: its parent may take seconds to reap it.
    pub fn is_running(&self) -> bool {
        let same = stat(self.pid).is_some_and(|s| s.start_time == self.start_time && !matches!(s.state, 'Z' | 'X'));
        same && boot().is_ok_and(|boot| boot == self.boot)
    }

    /// Sends the signal to this very process or to none. Whether it was still there.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(false) };
        // The descriptor pins the process: compare after opening it, and the pid cannot change hands in between.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(false) };
        if !self.is_running() {
            return Ok(false);
        }
        match pidfd_send_signal(&descriptor, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot end process {}", self.pid)),
        }
    }

    /// Its children, as the host numbers them.
    pub fn children(&self) -> Vec<i32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|&pid| stat(pid).is_some_and(|s| s.parent == self.pid && s.state != 'Z')).collect()
    }
}

/// The name that a process goes by in `/proc`.
pub fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|n| n.trim().to_owned()).unwrap_or_default()
}

/// The processes of one cluster: a file each says which one it is, another takes its messages.
pub struct Processes {
    run: PathBuf,
    logs: PathBuf,
}

impl Processes {
    pub fn of(layout: &Layout) -> Self {
        Self { run: layout.state.join("run"), logs: layout.logs() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.json"))
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Starts it in a session of its own, so that it outlives this command and the terminal. What the user's environment
    /// holds (proxies, credentials) stays out.
    pub fn start(&self, name: &str, program: &Path, args: &[String]) -> Result<Identity> {
        self.spawn(name, program, args, Stdio::null()).map(|(identity, _)| identity)
    }

    /// The same; the process waits for a line on its standard input, and ends if this command ends before it sends one.
    pub fn start_waiting(
        &self,
        name: &str,
        program: &Path,
        args: &[String],
    ) -> Result<(Identity, std::process::ChildStdin)> {
        let (identity, mut child) = self.spawn(name, program, args, Stdio::piped())?;
        Ok((identity, child.stdin.take().context("the standard input is piped")?))
    }

    fn spawn(
        &self,
        name: &str,
        program: &Path,
        args: &[String],
        stdin: Stdio,
    ) -> Result<(Identity, std::process::Child)> {
        fs::create_dir_all(&self.run)?;
        let log = open_log(&self.log(name))?;
        // setsid keeps the pid: it only forks when it leads a group already, which a new child does not.
        let child = Command::new("setsid")
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", super::SYSTEM_PATH)
            .env("HOME", "/root")
            .current_dir("/")
            .stdin(stdin)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = i32::try_from(child.id())?;
        let identity = Identity::of(pid)?.with_context(|| format!("{name} ended at once{}", self.last_words(name)))?;
        let file = self.file(name);
        fs::write(&file, serde_json::to_vec(&identity)?).with_context(|| format!("cannot write {}", file.display()))?;
        Ok((identity, child))
    }

    /// The process of this name, if it was started and still runs.
    pub fn running(&self, name: &str) -> Option<Identity> {
        let identity: Identity = serde_json::from_slice(&fs::read(self.file(name)).ok()?).ok()?;
        identity.is_running().then_some(identity)
    }

    /// Names of all that were started and not stopped, whether or not they run.
    pub fn known(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.run) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.flatten().filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".json")?.to_owned())).collect();
        names.sort();
        names
    }

    /// Fails with the end of its log when it no longer runs.
    pub fn check(&self, name: &str) -> Result<()> {
        if self.running(name).is_none() {
            bail!("{name} has ended{}", self.last_words(name));
        }
        Ok(())
    }

    /// Waits while the process of this name runs; its death ends the wait with its last messages.
    pub fn wait_for<T>(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        command::wait_for(what, limit, || {
            self.check(name)?;
            ask()
        })
        .with_context(|| format!("see {}", self.log(name).display()))
    }

    /// Signals them all, then waits for them all; whoever ignores it for ten seconds is killed.
    pub fn stop(&self, names: &[&str], signal: Signal) -> Result<()> {
        let running: Vec<_> = names.iter().filter_map(|name| Some((*name, self.running(name)?))).collect();
        for (_, identity) in &running {
            identity.signal(signal)?;
        }
        for (name, identity) in &running {
            let gone = |limit| {
                command::wait_for(&format!("the end of {name}"), limit, || Ok((!identity.is_running()).then_some(())))
            };
            if gone(Duration::from_secs(10)).is_err() {
                identity.signal(Signal::KILL)?;
                gone(Duration::from_secs(10))?;
            }
        }
        for name in names {
            let _ = fs::remove_file(self.file(name));
        }
        Ok(())
    }

    /// The end of its log, for an error message.
    pub fn last_words(&self, name: &str) -> String {
        let log = fs::read(self.log(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(3000)..]).into_owned();
        let lines: Vec<_> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(12)..].join("\n  ");
        format!("; the end of {}:\n  {end}", self.log(name).display())
    }
}

/// Opens a log to append to. A log of an earlier start that has grown large is put aside first.
pub fn open_log(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if fs::metadata(path).is_ok_and(|m| m.len() > 20 << 20) {
        fs::rename(path, path.with_extension("old.log"))?;
    }
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_name_with_parentheses() {
        let line =
            "4321 (odd ) name) S 17 1 1 0 -1 4194304 1 0 0 0 5 6 0 0 20 0 1 0 987654 1000 2 18446744073709551615";
        assert_eq!(parse_stat(line), Some(Stat { state: 'S', parent: 17, start_time: 987_654 }));
        assert_eq!(parse_stat("garbage"), None);
        assert_eq!(parse_stat("1 (short) S 1"), None);
    }

    #[test]
    fn a_pid_that_was_used_again_is_not_the_process() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id() as i32).unwrap().unwrap();
        let reused = Identity { start_time: identity.start_time + 1, ..identity.clone() };
        let earlier_boot = Identity { boot: "another".into(), ..identity.clone() };
        assert!(identity.is_running() && !reused.is_running() && !earlier_boot.is_running());
        assert!(!reused.signal(Signal::KILL).unwrap() && !earlier_boot.signal(Signal::KILL).unwrap());
        assert!(child.try_wait().unwrap().is_none(), "the wrong process was signalled");
        assert!(identity.signal(Signal::KILL).unwrap());
        child.wait().unwrap();
        assert!(!identity.is_running() && !identity.signal(Signal::KILL).unwrap());
    }

    #[test]
    fn a_zombie_counts_as_ended() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        command::wait_for("the zombie", Duration::from_secs(5), || Ok(stat(pid).filter(|s| s.state == 'Z'))).unwrap();
        assert!(!Identity::of(pid).unwrap().unwrap().is_running());
        child.wait().unwrap();
    }

    #[test]
    fn a_started_process_is_found_again_and_stopped() {
        let dir = std::env::temp_dir().join(format!("memoria-process-{}", std::process::id()));
        let processes = Processes { run: dir.join("run"), logs: dir.join("logs") };
        let args = ["-c", "echo ready; exec sleep 60"].map(String::from);
        let identity = processes.start("sleeper", Path::new("/bin/sh"), &args).unwrap();
        assert_eq!(processes.running("sleeper"), Some(identity.clone()));
        command::wait_for("its message", Duration::from_secs(5), || {
            Ok(processes.last_words("sleeper").contains("ready").then_some(()))
        })
        .unwrap();
        processes.stop(&["sleeper"], Signal::TERM).unwrap();
        assert!(!identity.is_running() && processes.known().is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
