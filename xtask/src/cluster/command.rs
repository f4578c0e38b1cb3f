//! Runs programs to their end, with errors that say what was run and what it answered.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Runs it and returns what it printed; an exit code other than 0 is an error that carries its messages.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    check(command, &output)
}

/// The same with `input` on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let mut stdin = child.stdin.take().context("the child has a standard input")?;
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let printed = check(command, &output)?;
    written.with_context(|| format!("{} did not read its input", command.get_program().to_string_lossy()))?;
    Ok(printed)
}

fn check(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        let said = [&output.stderr, &output.stdout].map(|b| String::from_utf8_lossy(b).trim().to_owned());
        let said = said.into_iter().find(|s| !s.is_empty()).unwrap_or_else(|| "it printed nothing".into());
        bail!("`{}` failed ({}): {said}", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command line, cut where it becomes unreadable.
fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Whether a program of this name is on the PATH or where system tools live.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(Into::into))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Asks every tenth of a second until there is an answer. `Err` from `ask` ends the wait: use it for what cannot get better.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("waited {} s for {what} in vain", limit.as_secs());
        }
        sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("no such thing") && error.contains("3"), "{error}");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(run_with_input(&mut Command::new("cat"), "hello").unwrap(), "hello");
    }

    #[test]
    fn a_wait_says_what_it_waited_for() {
        let error = wait_for("a bus", Duration::ZERO, || Ok(None::<()>)).unwrap_err().to_string();
        assert!(error.contains("a bus"), "{error}");
    }
}
