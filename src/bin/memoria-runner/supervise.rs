//! Runs one command at a time as this container's first process should: signals go on to its process group, every
//! process that ends is collected, and what is left of the group ends with the command.

use std::{
    ffi::OsStr,
    io::{Read, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use memoria_runner::order::{CommandResult, RunnerOrder};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};
use signal_hook::{
    consts::{SIGCHLD, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    command::Access,
    output::{Kept, Lines},
    preload::{Connection, Preloaded, Told, listen},
    redact::{Redactor, Secrets},
};

/// From the polite signal to the hard one.
const GRACE: Duration = Duration::from_secs(10);
/// For what is still in the pipes when the command has ended; a process that left the group may hold them open.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a module may take to be imported before each command is started by itself.
const IMPORT: Duration = Duration::from_secs(60);
/// Output that waits to be shown; a program that prints faster is slowed down.
const QUEUE: usize = 64;

enum Event {
    Signal(i32),
    /// With the number of the run: a process that left its group may still print when the next command runs.
    Output(u64, Stream, Vec<u8>),
    Closed(u64),
    /// From the process that has imported the module.
    Told(Told),
}

/// How a process ended.
#[derive(Clone, Copy)]
struct Exit {
    code: Option<i32>,
    signal: Option<i32>,
}

impl Exit {
    /// The process that waited for it is gone, and was not ended by us: somebody killed it.
    const LOST: Self = Self { code: None, signal: Some(Signal::KILL.as_raw()) };

    fn of(status: WaitStatus) -> Self {
        Self { code: status.exit_status(), signal: status.terminating_signal() }
    }

    /// As Python tells it: a negative code is a signal.
    fn told(code: i32) -> Self {
        if code < 0 {
            Self { code: None, signal: Some(code.saturating_neg()) }
        } else {
            Self { code: Some(code), signal: None }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

/// Why the runner cannot begin.
#[derive(Debug)]
pub struct NoSignals(std::io::Error);

impl std::fmt::Display for NoSignals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "signals cannot be received: {}", self.0)
    }
}

impl std::error::Error for NoSignals {}

/// The one place where signals arrive and processes are waited for.
pub struct Supervisor {
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    stopping: bool,
    /// Number of the latest run.
    runs: u64,
}

/// A command that has ended.
pub struct Ended {
    pub result: CommandResult,
    /// Its standard output, at most 64 KiB.
    pub answer: String,
}

impl Supervisor {
    pub fn new() -> Result<Self, NoSignals> {
        let (sender, events) = sync_channel(QUEUE);
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGCHLD]).map_err(NoSignals)?;
        // Orphans then come to us even where another process is the first of the pod.
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            eprintln!("memoria-runner: orphans of commands are not collected: {error}");
        }
        let to_us = sender.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                if to_us.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { events, sender, stopping: false, runs: 0 })
    }

    /// Whether the pod is being ended: nothing new may begin.
    pub const fn stopping(&self) -> bool {
        self.stopping
    }

    /// Waits, awake for signals.
    pub fn pause(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Ok(event) = self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            match event {
                Event::Signal(SIGCHLD) => while ended_process().is_some() {},
                Event::Signal(_) => {
                    self.stopping = true;
                    return;
                }
                // Left over from a command that has been given up.
                Event::Output(..) | Event::Closed(_) | Event::Told(_) => {}
            }
        }
    }

    /// Runs a command to its end, or to `limit`. Its redacted output goes to ours.
    pub fn run(&mut self, name: &str, mut command: Command, secrets: &Secrets, limit: Instant) -> Ended {
        let begun = Instant::now();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let program = command.get_program().to_string_lossy();
                return Ended::never_began(name, &format!("{program:?} cannot be started: {error}"));
            }
        };
        self.runs += 1;
        for (stream, pipe) in [
            (Stream::Out, child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>)),
            (Stream::Err, child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>)),
        ] {
            let (sender, number) = (self.sender.clone(), self.runs);
            thread::spawn(move || forward(number, stream, pipe, &sender));
        }
        let mut run = self.running(secrets);
        run.group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        self.finish_run(run, name, begun, limit)
    }

    /// Imports the command line's module once for all that follow. `None` where that is not as good as starting it anew
    /// each time, which standard error then explains.
    pub fn preload(&mut self, order: &RunnerOrder, access: &Access, limit: Instant) -> Option<Preloaded> {
        let sender = self.sender.clone();
        let mut preloaded = Preloaded::start(order, access, move |connection| {
            let sender = sender.clone();
            thread::spawn(move || match connection {
                Connection::Control(control) => listen(control, |told| drop(sender.send(Event::Told(told)))),
                Connection::Output { number, error, stream } => {
                    let which = if error { Stream::Err } else { Stream::Out };
                    forward(number, which, Some(Box::new(stream)), &sender);
                }
            });
        })?;
        if let Err(why) = self.until_imported(limit.min(Instant::now() + IMPORT)) {
            eprintln!("memoria-runner: each command imports what it needs by itself: {why}");
            return None;
        }
        // Its module is run under a second name: whether that works is asked before anything depends on it.
        let help = ["migrate", "run", "--help"].map(OsStr::new);
        let tried = self.run_preloaded(&mut preloaded, "migrate run --help", &help, &access.secrets, limit);
        if !tried.result.exited_well() {
            eprintln!("memoria-runner: each command is started by itself: a fork does not even print its help");
            return None;
        }
        Some(preloaded)
    }

    fn until_imported(&mut self, limit: Instant) -> Result<(), String> {
        loop {
            match self.events.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(Event::Told(Told::Ready)) => return Ok(()),
                Ok(Event::Told(Told::Unfit(why))) => return Err(why),
                Ok(Event::Told(_)) => return Err("the interpreter ended while it imported it".to_owned()),
                // Not collected here: while nothing runs, all that can end is the interpreter, which says so by itself.
                Ok(Event::Signal(SIGCHLD) | Event::Output(..) | Event::Closed(_)) => {}
                Ok(Event::Signal(_)) => {
                    self.stopping = true;
                    return Err("the pod is being ended".to_owned());
                }
                Err(_) => return Err(format!("importing it took longer than {} s", IMPORT.as_secs())),
            }
        }
    }

    /// The same as [`Self::run`], in a fork of what was preloaded.
    pub fn run_preloaded(
        &mut self,
        preloaded: &mut Preloaded,
        name: &str,
        arguments: &[&OsStr],
        secrets: &Secrets,
        limit: Instant,
    ) -> Ended {
        let begun = Instant::now();
        self.runs += 1;
        let mut run = self.running(secrets);
        if let Err(error) = preloaded.ask(self.runs, arguments) {
            return Ended::never_began(name, &format!("the interpreter that was to run it is gone: {error}"));
        }
        run.preloaded = true;
        self.finish_run(run, name, begun, limit)
    }

    fn running(&self, secrets: &Secrets) -> Running {
        Running {
            number: self.runs,
            group: None,
            preloaded: false,
            status: None,
            open: 2,
            kill_at: None,
            streams: [StreamState::new(secrets), StreamState::new(secrets)],
            kept: Kept::default(),
        }
    }

    fn finish_run(&mut self, mut run: Running, name: &str, begun: Instant, limit: Instant) -> Ended {
        let timed_out = self.until_ended(&mut run, limit);
        run.signal(Signal::KILL);
        self.drain(&mut run);
        let kept = run.finish();
        let exit_code = run.status.and_then(|exit| exit.code);
        let result = CommandResult {
            name: name.to_owned(),
            exit_code,
            signal: run.status.and_then(|exit| exit.signal),
            reported_failure: exit_code == Some(0) && kept.reported_failure,
            timed_out,
            millis: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            tail: kept.tail(),
        };
        Ended { result, answer: kept.into_answer() }
    }

    /// Until the command itself has ended; whether it had to be ended at its limit.
    fn until_ended(&mut self, run: &mut Running, limit: Instant) -> bool {
        let mut timed_out = false;
        // It may have ended before this loop began to look.
        run.collect();
        while run.status.is_none() {
            let next = run.kill_at.unwrap_or(limit);
            match self.events.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Event::Signal(SIGCHLD)) => run.collect(),
                Ok(Event::Signal(signal)) => {
                    self.stopping = true;
                    run.signal(if signal == SIGINT { Signal::INT } else { Signal::TERM });
                    run.kill_at.get_or_insert(Instant::now() + GRACE);
                }
                Ok(Event::Output(number, stream, bytes)) => run.show(number, stream, &bytes),
                Ok(Event::Closed(number)) => run.close(number),
                Ok(Event::Told(told)) => run.hear(&told),
                Err(RecvTimeoutError::Timeout) if run.kill_at.is_some() => {
                    run.signal(Signal::KILL);
                    run.kill_at = Some(Instant::now() + GRACE);
                }
                Err(RecvTimeoutError::Timeout) => {
                    timed_out = true;
                    run.signal(Signal::TERM);
                    run.kill_at = Some(Instant::now() + GRACE);
                }
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => return timed_out,
            }
        }
        timed_out
    }

    fn drain(&mut self, run: &mut Running) {
        let until = Instant::now() + DRAIN;
        while run.open > 0 {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Output(number, stream, bytes)) => run.show(number, stream, &bytes),
                Ok(Event::Closed(number)) => run.close(number),
                Ok(Event::Signal(SIGCHLD)) => run.collect(),
                Ok(Event::Signal(_)) => self.stopping = true,
                Ok(Event::Told(told)) => run.hear(&told),
                Err(_) => return,
            }
        }
    }
}

impl Ended {
    /// For a command that was not even begun, with the reason.
    pub fn never_began(name: &str, why: &str) -> Self {
        let result = CommandResult {
            name: name.to_owned(),
            exit_code: None,
            signal: None,
            reported_failure: false,
            timed_out: false,
            millis: 0,
            tail: why.to_owned(),
        };
        Self { result, answer: String::new() }
    }
}

struct StreamState {
    redactor: Redactor,
    lines: Lines,
}

impl StreamState {
    fn new(secrets: &Secrets) -> Self {
        Self { redactor: Redactor::new(secrets.clone()), lines: Lines::default() }
    }
}

struct Running {
    number: u64,
    /// The command's process group: its own process id.
    group: Option<Pid>,
    /// It is a fork of another process of ours, which tells how it ends.
    preloaded: bool,
    status: Option<Exit>,
    /// Streams that have not reached their end.
    open: usize,
    kill_at: Option<Instant>,
    streams: [StreamState; 2],
    kept: Kept,
}

impl Running {
    fn collect(&mut self) {
        while let Some((pid, status)) = ended_process() {
            if Some(pid) == self.group {
                self.status = Some(Exit::of(status));
            }
        }
    }

    fn hear(&mut self, told: &Told) {
        match *told {
            Told::Began { number, pid } if number == self.number => self.group = Pid::from_raw(pid),
            Told::Ended { number, code } if number == self.number => self.status = Some(Exit::told(code)),
            Told::Lost if self.preloaded && self.status.is_none() => self.status = Some(Exit::LOST),
            _ => {}
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Fails when no process is left in the group, which is what we want.
            let _ = kill_process_group(group, signal);
        }
    }

    fn close(&mut self, number: u64) {
        if number == self.number {
            self.open = self.open.saturating_sub(1);
        }
    }

    fn show(&mut self, number: u64, stream: Stream, bytes: &[u8]) {
        if number != self.number {
            return;
        }
        let shown = self.streams[stream as usize].redactor.push(bytes);
        self.keep(stream, &shown);
    }

    fn keep(&mut self, stream: Stream, shown: &[u8]) {
        write_out(stream, shown);
        let kept = &mut self.kept;
        self.streams[stream as usize].lines.push(shown, |line| keep_line(kept, stream, line));
    }

    fn finish(&mut self) -> Kept {
        for stream in [Stream::Out, Stream::Err] {
            let rest = self.streams[stream as usize].redactor.finish();
            self.keep(stream, &rest);
            let kept = &mut self.kept;
            self.streams[stream as usize].lines.finish(|line| keep_line(kept, stream, line));
        }
        std::mem::take(&mut self.kept)
    }
}

fn keep_line(kept: &mut Kept, stream: Stream, line: &str) {
    kept.line(line);
    if stream == Stream::Out {
        kept.answer_line(line);
    }
}

/// One process that has ended, ours or an orphan that came to us.
fn ended_process() -> Option<(Pid, WaitStatus)> {
    wait(WaitOptions::NOHANG).ok().flatten()
}

/// A log that cannot be written must not stop a migration.
fn write_out(stream: Stream, bytes: &[u8]) {
    let _ = match stream {
        Stream::Out => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
        Stream::Err => std::io::stderr().write_all(bytes),
    };
}

fn forward(number: u64, stream: Stream, pipe: Option<Box<dyn Read + Send>>, sender: &SyncSender<Event>) {
    let mut buffer = vec![0; 16 * 1024];
    let mut pipe = pipe;
    while let Some(reader) = &mut pipe {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                if sender.send(Event::Output(number, stream, buffer[..read].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = sender.send(Event::Closed(number));
}
