//! Records what happens in a namespace: one `kubectl get --watch` a kind, and a clock of its own, so that the operator's
//! times and a person's come from the same source.

use std::io::{BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Deserializer, Value};

use super::event::{self, Event};
use crate::kube::Kube;

/// How long the watches may take to tell what there is already.
const BEGUN: Duration = Duration::from_secs(60);
/// How often the recorded events are looked at.
const LOOK: Duration = Duration::from_millis(50);

pub struct Recorder {
    zero: Instant,
    events: Arc<Mutex<Vec<Event>>>,
    watches: Vec<Watch>,
}

struct Watch {
    kind: &'static str,
    kubectl: Child,
    reader: JoinHandle<()>,
}

impl Recorder {
    /// Begins to watch these kinds, and returns when each watch has told what exists. In the namespace there must be an
    /// object of every kind but Job.
    pub fn begin(kube: &Kube, namespace: &str, kinds: &[&'static str]) -> Result<Self> {
        let mut recorder = Self { zero: Instant::now(), events: Arc::default(), watches: Vec::new() };
        for kind in kinds {
            let watch = recorder.watch(kube, namespace, kind)?;
            recorder.watches.push(watch);
        }
        recorder.wait("what there is to be told by the watches", BEGUN, |events| {
            let told = |kind: &str| events.iter().any(|event| event.object.starts_with(&format!("{kind}/")));
            let expected = kinds.iter().filter(|kind| **kind != "Job");
            Ok(expected.into_iter().all(|kind| told(kind)).then_some(()))
        })?;
        // The Jobs' watch was begun at the same time, and has nothing to tell.
        sleep(Duration::from_secs(1));
        Ok(recorder)
    }

    fn watch(&self, kube: &Kube, namespace: &str, kind: &'static str) -> Result<Watch> {
        let resource = if kind == "MemoriaRelease" { "memoriareleases.memoria.arca.run" } else { kind };
        let mut kubectl = kube.kubectl(&[
            "--namespace",
            namespace,
            "get",
            resource,
            "--watch",
            "--output-watch-events",
            "--output=json",
        ])?;
        let mut kubectl = kubectl
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        let printed = kubectl.stdout.take().context("kubectl has a standard output")?;
        let (zero, events) = (self.zero, Arc::clone(&self.events));
        let reader = thread::spawn(move || {
            each_document(printed, |document| {
                if let Some(event) = event::read(millis(zero.elapsed()), &document) {
                    events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            });
        });
        Ok(Watch { kind, kubectl, reader })
    }

    /// The recorder's time in milliseconds.
    pub fn now(&self) -> u64 {
        millis(self.zero.elapsed())
    }

    /// What was recorded so far, by time.
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        events.sort_by_key(|event| event.millis);
        events
    }

    /// Waits until the recorded events have an answer. A watch that has ended is an error: what follows would be missing.
    pub fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ask: impl FnMut(&[Event]) -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        let mut seen = 0;
        loop {
            let events = self.events();
            // Nothing new, nothing to ask.
            if events.len() > seen {
                seen = events.len();
                if let Some(answer) = ask(&events)? {
                    return Ok(answer);
                }
            }
            self.still_watches()?;
            if Instant::now() > end {
                bail!("waited {} s for {what} in vain", limit.as_secs());
            }
            sleep(LOOK);
        }
    }

    /// Ends the watches. All of them must have lived until now.
    pub fn finish(mut self) -> Result<Vec<Event>> {
        self.still_watches()?;
        self.end();
        Ok(self.events())
    }

    fn still_watches(&mut self) -> Result<()> {
        for watch in &mut self.watches {
            let Some(status) = watch.kubectl.try_wait()? else { continue };
            let mut said = String::new();
            if let Some(stderr) = &mut watch.kubectl.stderr {
                stderr.read_to_string(&mut said)?;
            }
            bail!("the watch of {} ended by itself ({status}): {}", watch.kind, said.trim());
        }
        Ok(())
    }

    fn end(&mut self) {
        for mut watch in self.watches.drain(..) {
            let _ = watch.kubectl.kill();
            let _ = watch.kubectl.wait();
            let _ = watch.reader.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Hands on each document as soon as it is complete, until there are no more or one cannot be read: kubectl was ended in
/// the middle of it.
fn each_document(printed: impl Read, told: impl FnMut(Value)) {
    let documents = Deserializer::from_reader(BufReader::new(printed)).into_iter::<Value>();
    documents.map_while(Result::ok).for_each(told);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Write as _, pipe};
    use std::sync::mpsc;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_handed_on_before_the_next_one_comes() {
        let (from, mut to) = pipe().unwrap();
        let (sender, received) = mpsc::channel();
        let reader = thread::spawn(move || each_document(from, |document| sender.send(document).unwrap()));
        for number in 1..=2 {
            write!(to, "{{\n  \"number\": {number}\n}}").unwrap();
            assert_eq!(received.recv_timeout(Duration::from_secs(10)).unwrap(), json!({"number": number}));
        }
        write!(to, "{{\"number\": ").unwrap();
        drop(to);
        reader.join().unwrap();
        assert!(received.recv().is_err());
    }
}
