//! The live view of one upgrade: a table that is drawn anew on a terminal, a line for each change elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use crate::kube::Kube;

/// What comes, in the order it comes, so that a terminal also shows what is still ahead.
const PHASES: [&str; 8] =
    ["PreFlight", "Quiesce", "SnapshotExport", "ImageBump", "Migrate", "Start", "IngestionReenable", "Verification"];
/// How much of a message a terminal's line has room for.
const MESSAGE: usize = 90;

/// How an upgrade ended, from the objects' own times.
pub struct Ended {
    pub phase: String,
    pub message: String,
    /// From the beginning of pre-flight to the end of the attempt.
    pub seconds: Option<i64>,
    pub writers_stopped_seconds: Option<i64>,
    current: Option<String>,
}

impl Ended {
    /// The version that runs now.
    pub fn version(&self) -> String {
        self.current.clone().unwrap_or_default()
    }
}

/// What conditions say, as any client reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Ready,
    Working,
    Stalled,
}

/// The release as it is now.
pub fn release(kube: &Kube, namespace: &str, name: &str) -> Result<Value> {
    kube.get(namespace, "memoriarelease", name)?
        .with_context(|| format!("the MemoriaRelease {namespace}/{name} is gone"))
}

/// From conditions of the current generation alone.
pub fn standing(release: &Value) -> Standing {
    if release["status"]["observedGeneration"] != release["metadata"]["generation"] {
        return Standing::Working;
    }
    match (condition(release, "Ready"), condition(release, "Reconciling"), condition(release, "Stalled")) {
        (Some("True"), None, None) => Standing::Ready,
        (_, _, Some("True")) => Standing::Stalled,
        _ => Standing::Working,
    }
}

fn condition<'a>(release: &'a Value, name: &str) -> Option<&'a str> {
    let conditions = release["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == name)?["status"].as_str()
}

pub fn ready_message(release: &Value) -> String {
    let conditions = release["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
    ready.and_then(|ready| ready["message"].as_str()).unwrap_or_default().to_owned()
}

/// Shows the upgrade until it has ended, well or not.
pub fn follow(kube: &Kube, namespace: &str, name: &str, limit: Duration) -> Result<Ended> {
    follow_with(kube, namespace, name, limit, &mut |_| Ok(()))
}

/// The same, with something to do at each look at the release.
pub fn follow_with(
    kube: &Kube,
    namespace: &str,
    name: &str,
    limit: Duration,
    each: &mut dyn FnMut(&Value) -> Result<()>,
) -> Result<Ended> {
    let begin = Instant::now();
    let mut screen = Screen::new();
    let mut pre_flight = None;
    loop {
        let release = release(kube, namespace, name)?;
        let status = &release["status"];
        // An attempt of this version, or of this very generation: holding it for a moment makes another generation.
        let of_now = status["attempt"]["generation"] == release["metadata"]["generation"]
            || status["attempt"]["to"] == release["spec"]["version"];
        let attempt = match status["attempt"]["id"].as_str().filter(|_| of_now) {
            Some(id) => kube.get(namespace, "memoriaupgrade", id)?,
            None => None,
        };
        let started = time(&status["preFlight"]["startedAt"]);
        pre_flight = pre_flight.or(started);
        let lines = lines(&release, attempt.as_ref(), pre_flight);
        screen.show(&lines, begin.elapsed());
        each(&release)?;
        let standing = standing(&release);
        if standing != Standing::Working && (attempt.is_some() || standing == Standing::Stalled) {
            screen.leave();
            return Ok(ended(&release, pre_flight));
        }
        if begin.elapsed() > limit {
            screen.leave();
            bail!("the upgrade did not end within {} s: {}", limit.as_secs(), ready_message(&release));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn ended(release: &Value, pre_flight: Option<Timestamp>) -> Ended {
    let status = &release["status"];
    let attempt = &status["attempt"];
    let seconds = match (pre_flight.or(time(&attempt["startedAt"])), time(&attempt["finishedAt"])) {
        (Some(from), Some(to)) => Some(to.duration_since(from).as_secs()),
        _ => None,
    };
    Ended {
        phase: status["phase"].as_str().unwrap_or_default().to_owned(),
        message: ready_message(release),
        seconds,
        writers_stopped_seconds: attempt["writersStoppedSeconds"].as_i64(),
        current: status["current"]["version"].as_str().map(str::to_owned),
    }
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// One phase in the view.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: String,
    state: &'static str,
    seconds: Option<i64>,
    message: String,
}

fn lines(release: &Value, attempt: Option<&Value>, pre_flight: Option<Timestamp>) -> Vec<Line> {
    let now = Timestamp::now();
    let seconds =
        |from: Option<Timestamp>, to: Option<Timestamp>| Some(to.unwrap_or(now).duration_since(from?).as_secs());
    let opened = attempt.and_then(|attempt| time(&attempt["metadata"]["creationTimestamp"]));
    let first = Line {
        name: PHASES[0].to_owned(),
        state: if attempt.is_some() { "Passed" } else { "Running" },
        seconds: seconds(pre_flight, opened),
        message: match attempt {
            Some(attempt) => format!(
                "plan {}",
                attempt["spec"]["planHash"].as_str().unwrap_or_default().get(..12).unwrap_or_default()
            ),
            None => ready_message(release),
        },
    };
    let mut lines = vec![first];
    for record in attempt.and_then(|attempt| attempt["status"]["phases"].as_array()).into_iter().flatten() {
        lines.push(Line {
            name: record["name"].as_str().unwrap_or_default().to_owned(),
            state: match record["state"].as_str() {
                Some("Passed") => "Passed",
                Some("Failed") => "Failed",
                _ => "Running",
            },
            seconds: seconds(time(&record["startedAt"]), time(&record["finishedAt"])),
            message: record["message"].as_str().unwrap_or_default().to_owned(),
        });
    }
    lines
}

/// Where the view is drawn.
struct Screen {
    terminal: bool,
    /// Lines of the last drawing.
    drawn: usize,
    /// What was told last of each phase.
    told: BTreeMap<String, (&'static str, String)>,
}

impl Screen {
    fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), drawn: 0, told: BTreeMap::new() }
    }

    fn show(&mut self, lines: &[Line], elapsed: Duration) {
        if self.terminal {
            self.draw(lines, elapsed)
        } else {
            self.tell(lines, elapsed)
        }
        let _ = std::io::stdout().flush();
    }

    fn draw(&mut self, lines: &[Line], elapsed: Duration) {
        if self.drawn > 0 {
            print!("\x1b[{}A\x1b[J", self.drawn);
        }
        println!("  {} s", elapsed.as_secs());
        for line in lines {
            println!(
                "  {} {:<18} {:>4} s  {}",
                mark(line.state),
                line.name,
                line.seconds.unwrap_or_default(),
                cut(&line.message)
            );
        }
        let ahead = ahead(lines);
        for name in &ahead {
            println!("  · {name}");
        }
        self.drawn = 1 + lines.len() + ahead.len();
    }

    fn tell(&mut self, lines: &[Line], elapsed: Duration) {
        for line in lines {
            let now = (line.state, line.message.clone());
            if self.told.get(&line.name) != Some(&now) {
                let took = match line.state {
                    "Running" => String::new(),
                    _ => format!(" ({} s)", line.seconds.unwrap_or_default()),
                };
                println!("  {:>4} s  {} {}{took}: {}", elapsed.as_secs(), mark(line.state), line.name, line.message);
                self.told.insert(line.name.clone(), now);
            }
        }
    }

    /// The last drawing stays; what is printed from now on goes below it.
    fn leave(&mut self) {
        self.drawn = 0;
    }
}

fn mark(state: &str) -> char {
    match state {
        "Passed" => '✔',
        "Failed" => '✖',
        _ => '▶',
    }
}

/// The phases that have not begun. After a failure other ones come, which nobody can tell beforehand.
fn ahead(lines: &[Line]) -> Vec<&'static str> {
    if lines.iter().any(|line| line.state == "Failed") {
        return Vec::new();
    }
    PHASES.into_iter().filter(|name| lines.iter().all(|line| line.name != *name)).collect()
}

fn cut(message: &str) -> String {
    match message.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(generation: i64, conditions: &[(&str, &str)]) -> Value {
        let conditions: Vec<_> =
            conditions.iter().map(|(kind, status)| json!({"type": kind, "status": status})).collect();
        json!({"metadata": {"generation": 2}, "status": {"observedGeneration": generation, "conditions": conditions}})
    }

    #[test]
    fn conditions_of_an_older_generation_say_nothing() {
        assert_eq!(standing(&with(1, &[("Ready", "True")])), Standing::Working);
        assert_eq!(standing(&with(2, &[("Ready", "True")])), Standing::Ready);
    }

    #[test]
    fn a_stalled_release_has_ended() {
        assert_eq!(standing(&with(2, &[("Ready", "False"), ("Stalled", "True")])), Standing::Stalled);
        assert_eq!(standing(&with(2, &[("Ready", "Unknown"), ("Reconciling", "True")])), Standing::Working);
    }

    #[test]
    fn what_is_ahead_is_unknown_after_a_failure() {
        let line = |name: &str, state| Line { name: name.into(), state, seconds: None, message: String::new() };
        assert_eq!(ahead(&[line("PreFlight", "Passed"), line("Quiesce", "Running")]).first(), Some(&"SnapshotExport"));
        assert_eq!(ahead(&[line("Quiesce", "Failed")]), Vec::<&str>::new());
    }
}
