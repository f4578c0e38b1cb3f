//! Runs a command and measures what it took: seconds, and the peak of its resident memory as the kernel keeps it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often the peak is read. It only ever grows, so what is missed is the growth of the last moment.
const EVERY: Duration = Duration::from_millis(5);

/// What one command took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub seconds: f64,
    pub peak_mib: f64,
}

/// Runs a command to its end, which must be a good one. Only the process itself is measured, not what it starts.
pub fn measure(command: &mut Command) -> Result<Cost> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let (output, seconds, peak) = watch(child, started)?;
    if !output.status.success() {
        bail!("{name} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    #[expect(clippy::cast_precision_loss, reason = "no machine has so much memory that it shows")]
    let peak_mib = (peak as f64 / 102.4).round() / 10.0;
    Ok(Cost { seconds, peak_mib })
}

/// Its output, the seconds and the peak in KiB. What it says on standard error is little, so the pipe never fills.
fn watch(mut child: Child, started: Instant) -> Result<(std::process::Output, f64, u64)> {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if child.try_wait().context("cannot wait")?.is_some() {
            let seconds = started.elapsed().as_secs_f64();
            return Ok((child.wait_with_output().context("cannot read its output")?, seconds, peak));
        }
        peak = peak_of(&fs::read_to_string(&status).unwrap_or_default()).max(peak);
        sleep(EVERY);
    }
}

/// In KiB.
fn peak_of(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_peak_is_read() {
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t   9000 kB\nVmRSS:\t   5120 kB\n"), 9000);
        assert_eq!(peak_of(""), 0);
    }

    #[test]
    fn a_command_that_fails_is_an_error_with_what_it_said() {
        let cost = measure(Command::new("sleep").arg("0.05")).unwrap();
        assert!(cost.seconds >= 0.05 && cost.peak_mib > 0.0);
        let refused = measure(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(refused.contains("why") && refused.contains('3'), "{refused}");
    }
}
