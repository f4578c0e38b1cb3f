//! Directories of one runner, and what stands around it.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use memoria_runner::order::{Report, RunnerOrder, RunnerResult};
use serde_json::{Value, json};

pub const URL: &str = "postgresql+psycopg2://memoria:p%40ss%25w%2Ford%22%20x@db:5432/memoria?sslmode=disable";
pub const PASSWORD: &str = "p@ss%w/ord\" x";

/// Directories of one runner, and a command line in Python.
pub struct Place {
    pub root: PathBuf,
    pub order: RunnerOrder,
}

impl Place {
    pub fn new(name: &str, program: &str) -> Self {
        let root = std::env::temp_dir().join(format!("memoria-runner-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for directory in ["shared", "private"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let cli = root.join("cli.py");
        fs::write(&cli, program).unwrap();
        let order = RunnerOrder {
            go_seconds: 20,
            verdict_seconds: 20,
            shared_directory: root.join("shared").display().to_string(),
            private_directory: root.join("private").display().to_string(),
            termination_log: root.join("termination-log").display().to_string(),
            ..RunnerOrder::new("memoria-7", "migrate", &["python3".to_owned(), cli.display().to_string()], 60)
        };
        Self { root, order }
    }

    /// The same program as a Python module, as Memoria's images have it; beside it a slow import that counts itself.
    pub fn module(mut self, import: &str) -> Self {
        let package = self.root.join("package");
        fs::create_dir(&package).unwrap();
        fs::write(package.join("__init__.py"), "").unwrap();
        fs::write(package.join("heavy.py"), import).unwrap();
        let program = fs::read_to_string(self.root.join("cli.py")).unwrap();
        fs::write(package.join("cli.py"), format!("import os, sys\nfrom package import heavy\nif __name__ == '__main__' and '--help' in sys.argv: sys.exit(0)\ndef main():\n{}\nif __name__ == '__main__': main()\n", indented(&program))).unwrap();
        self.order.cli = ["python3", "-m", "package.cli"].map(str::to_owned).to_vec();
        self
    }

    pub fn migrations(mut self, names: &[&str]) -> Self {
        self.order.migrations = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    pub fn shared(&self, name: &str) -> PathBuf {
        self.root.join("shared").join(name)
    }

    pub fn go(&self, value: &Value) {
        fs::write(self.shared("go.json"), value.to_string()).unwrap();
    }

    pub fn command(&self, mode: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-runner"));
        command
            .arg(mode)
            .current_dir(&self.root)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("MEMORIA_RUNNER_ORDER", serde_json::to_string(&self.order).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts `migrate` with the go-ahead given.
    pub fn migrate(&self) -> Child {
        self.go(&json!({"v": 1, "proceed": true, "databaseUrl": null}));
        self.command("migrate").env("MEMORIA_OPERATOR_DATABASE_URL", URL).spawn().unwrap()
    }

    /// Waits for the result as the guard does, then gives its verdict.
    pub fn judge(&self, verdict: &Value) -> RunnerResult {
        let result = self.wait_for("result.json");
        fs::write(self.shared("verdict.tmp"), verdict.to_string()).unwrap();
        fs::rename(self.shared("verdict.tmp"), self.shared("verdict.json")).unwrap();
        serde_json::from_str(&result).unwrap()
    }

    pub fn wait_for(&self, name: &str) -> String {
        let until = Instant::now() + Duration::from_secs(40);
        while Instant::now() < until {
            if let Ok(text) = fs::read_to_string(self.shared(name)) {
                return text;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} never came");
    }

    pub fn answer(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(&self.order.termination_log).unwrap()).unwrap()
    }

    pub fn report(&self) -> Report {
        serde_json::from_value(self.answer()).unwrap()
    }

    /// Everything in the directories, and the output.
    pub fn all_text(&self, output: &Output) -> String {
        let mut text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
        for directory in [self.root.clone(), self.root.join("shared"), self.root.join("private")] {
            for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_file() && entry.file_name().unwrap() != "cli.py" {
                    text.push_str(&fs::read_to_string(entry).unwrap());
                }
            }
        }
        text
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn indented(program: &str) -> String {
    program.lines().map(|line| format!("    {line}\n")).collect()
}

/// The guard's last word, all being well.
pub fn done() -> Value {
    json!({"v": 1, "ok": true, "reason": "Done", "message": "as expected", "facts": {"of": "migrate", "x": [1]}})
}

pub fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
