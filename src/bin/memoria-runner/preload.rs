//! One import for several commands. Memoria's command line takes a second or two to import what it needs, at each start,
//! while writers are stopped. Where it is called as `python -m MODULE`, that is done once, and each command runs in a fork
//! of the process that did it: a process of its own with its own exit code, output and group, but without the wait.
//!
//! Where a fork would not be as good as a new process (the module starts threads, opens connections, or cannot be imported
//! and run) nothing is preloaded, and each command is started by itself.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::Duration,
};

use memoria_runner::order::RunnerOrder;

use crate::command::{Access, interpreter};

const PROGRAM: &str = include_str!("preload.py");
/// The longest greeting, `control` or `out` with a number, in bytes.
const GREETING: usize = 64;
/// A process that has not even connected by then has ended, or hangs.
const CONNECTED: Duration = Duration::from_secs(30);

/// A process that has imported the module and waits for requests. It ends when this is dropped.
pub struct Preloaded {
    child: Child,
    control: UnixStream,
    place: PathBuf,
}

/// What the process says, and what its forks print.
pub enum Told {
    /// The module is imported.
    Ready,
    /// It cannot be used, and why.
    Unfit(String),
    /// The run of this number is this process, in a group of its own.
    Began { number: u64, pid: i32 },
    /// Its exit code; negative: the signal that ended it.
    Ended { number: u64, code: i32 },
    /// The process is gone.
    Lost,
}

/// What connects to the runner's socket.
pub enum Connection {
    Control(UnixStream),
    Output { number: u64, error: bool, stream: UnixStream },
}

impl Preloaded {
    /// Starts the process. `None` where the command line is no Python module; what cannot be set up is told on standard
    /// error, and is no reason not to run the commands. `connected` gets each connection, in a thread of its own.
    pub fn start(
        order: &RunnerOrder,
        access: &Access,
        mut connected: impl FnMut(Connection) + Send + 'static,
    ) -> Option<Self> {
        let [program, flag, module] = order.cli.as_slice() else { return None };
        let is_python = Path::new(program).file_name().and_then(OsStr::to_str).is_some_and(|n| n.starts_with("python"));
        if !is_python || flag != "-m" {
            return None;
        }
        let place = Path::new(&order.private_directory).join(format!(".preload-{}", std::process::id()));
        let said = |error: std::io::Error| {
            eprintln!("memoria-runner: {module} is imported anew for each command: {}: {error}", place.display());
        };
        let listener = UnixListener::bind(&place).map_err(said).ok()?;
        let mut command: Command = interpreter(program, access);
        command.arg("-c").arg(PROGRAM).arg(&place).arg(module);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(said);
        let Ok(mut child) = child else {
            let _ = fs::remove_file(&place);
            return None;
        };
        let (sender, first) = sync_channel(1);
        thread::spawn(move || accept(&listener, &sender, &mut connected));
        // The process connects before anything else.
        let Ok(control) = first.recv_timeout(CONNECTED) else {
            let _ = child.kill();
            let _ = fs::remove_file(&place);
            return None;
        };
        Some(Self { child, control, place })
    }

    /// Has a fork run the module with these arguments.
    ///
    /// # Errors
    /// When the process is gone or an argument is not text.
    pub fn ask(&mut self, number: u64, arguments: &[&OsStr]) -> std::io::Result<()> {
        let texts: Option<Vec<&str>> = arguments.iter().map(|argument| argument.to_str()).collect();
        let texts = texts.ok_or_else(|| std::io::Error::other("an argument is not UTF-8"))?;
        let line = serde_json::json!([number, texts]).to_string();
        self.control.write_all(format!("{line}\n").as_bytes())
    }
}

impl Drop for Preloaded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = fs::remove_file(&self.place);
    }
}

/// Every connection says first what it is. Ends with the process.
fn accept(listener: &UnixListener, first: &SyncSender<UnixStream>, connected: &mut impl FnMut(Connection)) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let Some(greeting) = greeting(&mut stream) else { continue };
        match greeting.split_once(' ') {
            None => {
                let Ok(ours) = stream.try_clone() else { return };
                if first.send(ours).is_err() {
                    return;
                }
                connected(Connection::Control(stream));
            }
            Some((name, number)) => {
                let Ok(number) = number.parse() else { continue };
                connected(Connection::Output { number, error: name == "err", stream });
            }
        }
    }
}

/// Byte by byte: what follows the line is the command's own output.
fn greeting(stream: &mut UnixStream) -> Option<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < GREETING {
        stream.read_exact(&mut byte).ok()?;
        match byte {
            [b'\n'] => return String::from_utf8(line).ok(),
            [byte] => line.push(byte),
        }
    }
    None
}

/// Hands on all that the process tells, and at last that it is gone.
pub fn listen(control: UnixStream, mut told: impl FnMut(Told)) {
    for line in BufReader::new(control).lines().map_while(Result::ok) {
        let mut words = line.splitn(3, ' ');
        let (word, one, two) = (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
        told(match (word, one.parse(), two.parse()) {
            (Some("ready"), ..) => Told::Ready,
            (Some("pid"), Ok(number), Ok(pid)) => Told::Began { number, pid },
            (Some("ended"), Ok(number), Ok(code)) => Told::Ended { number, code },
            _ => Told::Unfit(line.strip_prefix("unfit ").unwrap_or(&line).to_owned()),
        });
    }
    told(Told::Lost);
}
