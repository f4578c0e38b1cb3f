//! Another process with the database open, using the SQLite library that Memoria itself uses.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

/// A Python process that runs the statements and then waits. Killed with the value, without closing anything.
pub struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

const PROGRAM: &str = "
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0.2)
for line in sys.stdin:
    try:
        print('ok', connection.execute(line).fetchall(), flush=True)
    except sqlite3.Error as error:
        print('error', error, flush=True)
";

impl Python {
    pub fn open(database: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    /// Runs one statement; its answer begins with `ok` or `error`.
    pub fn run(&mut self, sql: &str) -> String {
        writeln!(self.input, "{}", sql.replace('\n', " ")).unwrap();
        self.input.flush().unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn must(&mut self, sql: &str) -> &mut Self {
        let answer = self.run(sql);
        assert!(answer.starts_with("ok"), "{sql}: {answer}");
        self
    }

    /// As a node's end or an out-of-memory kill ends it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
