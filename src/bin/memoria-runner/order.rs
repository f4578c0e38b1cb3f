//! What the operator tells the runner, and what runner and guard leave for each other in the shared directory. Defined
//! here once; the operator uses these types too. Fields are only ever added, each with a default.

use serde::{Deserialize, Serialize};

/// Environment variable with a [`RunnerOrder`] as JSON.
pub const ORDER_ENV: &str = "MEMORIA_RUNNER_ORDER";
/// Environment variable with the SQLAlchemy URL of the database, password and all. Commands never see it.
pub const DATABASE_URL_ENV: &str = "MEMORIA_OPERATOR_DATABASE_URL";
/// Variables from which parts of Memoria read a database URL; `migrate`, `rehearse` and `init-db` set them without a
/// password.
pub const MEMORIA_URL_ENVS: [&str; 3] = ["DATABASE_URL", "MEMORIA_DB_URL", "MEMORIA_DATABASE__CONNECTION_STRING"];
/// The emptyDir that runner and guard share.
pub const SHARED_DIRECTORY: &str = "/memoria-operator";
/// Where `install` puts the runner, below [`SHARED_DIRECTORY`].
pub const INSTALLED_NAME: &str = "memoria-runner";
/// By the guard: whether the runner may begin.
pub const GO_FILE: &str = "go.json";
/// By the runner: what became of its commands.
pub const RESULT_FILE: &str = "result.json";
/// By the guard: the Job's answer.
pub const VERDICT_FILE: &str = "verdict.json";
/// Kubernetes cuts a termination message here.
pub const MAX_REPORT_BYTES: usize = 4096;
/// How much of a command's output is kept in its result.
pub const TAIL_BYTES: usize = 2048;

/// What the runner shall do; which part of it is used depends on the mode in its argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerOrder {
    /// Version of this form: 1.
    pub v: i32,
    /// Attempt or pre-flight run; with `step` it makes the `application_name` of the commands' sessions.
    pub attempt: String,
    pub step: String,
    /// How Memoria's command line is called, e.g. `["python", "-m", "memoria.cli"]`.
    pub cli: Vec<String>,
    /// Names for `migrate run`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub migrations: Vec<String>,
    /// How long all commands together may take, in seconds. The running one is then ended.
    pub limit_seconds: u64,
    /// How long to wait for the guard's go-ahead, in seconds.
    #[serde(default = "minutes_10")]
    pub go_seconds: u64,
    /// How long to wait for the guard's verdict, in seconds.
    #[serde(default = "minutes_10")]
    pub verdict_seconds: u64,
    /// `probe`: whether to ask the image's command line what it can do.
    #[serde(default)]
    pub ask_cli: bool,
    /// `defaults`: the image's file of default settings; absent: the runner looks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_path: Option<String>,
    /// `lock_timeout` of the commands' database sessions, in seconds.
    #[serde(default = "lock_timeout")]
    pub lock_timeout_seconds: u64,
    #[serde(default = "shared_directory")]
    pub shared_directory: String,
    /// A directory that only this container writes: password file, bootstrap's output.
    #[serde(default = "private_directory")]
    pub private_directory: String,
    #[serde(default = "termination_log")]
    pub termination_log: String,
}

const fn minutes_10() -> u64 {
    600
}

const fn lock_timeout() -> u64 {
    30
}

fn shared_directory() -> String {
    SHARED_DIRECTORY.to_owned()
}

fn private_directory() -> String {
    "/tmp".to_owned()
}

fn termination_log() -> String {
    "/dev/termination-log".to_owned()
}

impl RunnerOrder {
    /// An order with every default.
    pub fn new(attempt: &str, step: &str, cli: &[String], limit_seconds: u64) -> Self {
        Self {
            v: 1,
            attempt: attempt.to_owned(),
            step: step.to_owned(),
            cli: cli.to_vec(),
            migrations: Vec::new(),
            limit_seconds,
            go_seconds: minutes_10(),
            verdict_seconds: minutes_10(),
            ask_cli: false,
            baseline_path: None,
            lock_timeout_seconds: lock_timeout(),
            shared_directory: shared_directory(),
            private_directory: private_directory(),
            termination_log: termination_log(),
        }
    }
}

/// [`GO_FILE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Go {
    /// Version of this form: 1.
    pub v: i32,
    pub proceed: bool,
    /// The ephemeral server for `init-db` and `rehearse`; absent for `migrate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_url: Option<String>,
    /// The Job's answer when there is nothing to run; handed on as it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<serde_json::Value>,
}

/// [`RESULT_FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerResult {
    /// Version of this form: 1.
    pub v: i32,
    /// The commands that were begun, in order. One that failed is the last.
    pub commands: Vec<CommandResult>,
}

/// What became of one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandResult {
    /// The migration's name, or the subcommand.
    pub name: String,
    /// Absent when it was ended by a signal or never started.
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    /// Exit 0, but its output has a line that tells of a failure.
    pub reported_failure: bool,
    pub timed_out: bool,
    pub millis: u64,
    /// The last [`TAIL_BYTES`] of its output, redacted. Or, when it never started, why.
    pub tail: String,
}

impl CommandResult {
    /// Whether its exit code says success.
    pub const fn exited_well(&self) -> bool {
        matches!(self.exit_code, Some(0)) && !self.timed_out
    }
}

/// The Job's answer in the termination message, as far as the runner writes it itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Version of this form: 1.
    pub v: i32,
    pub ok: bool,
    /// CamelCase; `Done` when ok.
    pub reason: String,
    /// One sentence: what was found, or cause and what to do.
    pub message: String,
    /// Present when not ok.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
}

/// Whose fault it was, as far as the runner can tell; the operator's own list is longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Category {
    Transient,
    Candidate,
    Environment,
    Bug,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "camelCase")]
pub enum Facts {
    Probe(ProbeFacts),
    Defaults(DefaultsFacts),
}

/// What `probe` found out about an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeFacts {
    pub uid: u32,
    pub gid: u32,
    /// Whether the command line answered `--help`; absent when it was not asked.
    pub cli: Option<bool>,
    /// Names printed by `migrate list`, in order.
    #[serde(default)]
    pub migrations: Vec<String>,
    /// Whether `migrate run` knows `--all`.
    #[serde(default)]
    pub runs_all: bool,
}

/// The settings that an image comes with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DefaultsFacts {
    /// Where the file was found in the image.
    pub path: String,
    /// Its text, as [`crate::pack::pack`] writes it.
    pub packed: String,
}
