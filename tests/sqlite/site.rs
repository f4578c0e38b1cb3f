//! Where one test's Jobs run: the real binary, with directories in place of mounts.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use memoria_operator::{
    api::upgrade::{Category, DatabaseIdentity},
    job::protocol::{
        DATABASE_URL_ENV, DataVolume, DatabaseTask, INPUT_ENV, JobInput, JobOrder, JobReport, ORDER_ENV, SnapshotOrder,
    },
    snapshot::sqlite::markers::Markers,
};
use memoria_runner::order::{CommandResult, Go, RunnerResult};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

/// UID of the release in these tests.
pub const RELEASE: &str = "0b8ff1f4-1c0c-4b8e-9d59-6f1f2f0a5f10";
pub const CLAIM: &str = "a1b2c3d4-0000-4000-8000-000000000001";
/// Directory of attempt and pre-flight run in the storage.
pub const DIRECTORY: &str = "prod-0b8ff1f4/prod-1";

/// Enough of Memoria's tables: keys of both kinds, references with a cycle, a view, JSON and floats.
pub const MEMORIA: &str = "
    CREATE TABLE agents (agent_id VARCHAR NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, best_team VARCHAR REFERENCES teams(team_id), metadata JSON);
    CREATE TABLE teams (team_id VARCHAR NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, lead VARCHAR REFERENCES agents(agent_id));
    CREATE UNIQUE INDEX ix_teams_name ON teams (name);
    CREATE TABLE memory_access_events (id INTEGER PRIMARY KEY AUTOINCREMENT, memory_id VARCHAR NOT NULL, score FLOAT, accessed_at DATETIME NOT NULL);
    CREATE VIEW team_leads AS SELECT t.name, a.name AS lead FROM teams t JOIN agents a ON a.agent_id = t.lead;
    INSERT INTO agents (agent_id, name, metadata) VALUES ('a1', 'one', '{\"x\": 1}'), ('a2', 'zwei', NULL);
    INSERT INTO teams VALUES ('t1', 'team', 'a1'), ('t2', 'other', 'a2');
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
        INSERT INTO memory_access_events (memory_id, score, accessed_at) SELECT 'm' || i, i / 7.0, '2026-01-10' FROM n;
    DELETE FROM memory_access_events WHERE id > 295;";

/// The mounts of one pod; storage and data may be shared with another.
pub struct Site {
    directory: tempfile::TempDir,
    pub storage: PathBuf,
    /// Names an archive, if there is one: then each pod's storage is its own workplace.
    pub archive: Vec<(String, String)>,
    pub data: PathBuf,
}

pub struct Answer {
    pub report: JobReport,
    pub code: Option<i32>,
}

impl Answer {
    #[track_caller]
    pub fn is(&self, ok: bool, reason: &str, category: Option<Category>) {
        let report = &self.report;
        assert_eq!((report.ok, report.reason.as_str(), report.category), (ok, reason, category), "{}", report.message);
        assert_eq!(self.code, Some(i32::from(!ok)));
    }
}

/// A Job that runs. Killed with the value.
pub struct Running {
    child: Child,
    directory: PathBuf,
    serial: usize,
}

impl Site {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("mop-sqlite-").tempdir().unwrap();
        for name in ["storage", "data", "shared", "scratch"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let (storage, data) = (directory.path().join("storage"), directory.path().join("data"));
        Self { directory, storage, data, archive: Vec::new() }
    }

    /// With a database in this journal mode, closed.
    pub fn with(journal_mode: &str, sql: &str) -> Self {
        let site = Self::new();
        let connection = Connection::open(site.database()).unwrap();
        connection.pragma_update(None, "journal_mode", journal_mode).unwrap();
        connection.execute_batch(sql).unwrap();
        site
    }

    /// Another pod with the same storage and data.
    pub fn other_pod(&self) -> Self {
        let (pod, data, archive) = (Self::new(), self.data.clone(), self.archive.clone());
        let storage = if archive.is_empty() { self.storage.clone() } else { pod.storage.clone() };
        Self { storage, data, archive, ..pod }
    }

    pub fn database(&self) -> PathBuf {
        self.data.join("memoria.db")
    }

    pub fn url(&self) -> String {
        format!("sqlite:///{}", self.database().display())
    }

    pub fn execute(&self, sql: &str) {
        let connection = Connection::open(self.database()).unwrap();
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// As the next one who opens the file finds it.
    pub fn journal_mode(&self) -> String {
        let connection = Connection::open(self.database()).unwrap();
        connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap()
    }

    pub fn markers(&self) -> Markers {
        Markers::read(&self.database()).unwrap()
    }

    pub fn volume(&self) -> DataVolume {
        DataVolume {
            claim_name: "memoria-data".to_owned(),
            claim_uid: CLAIM.to_owned(),
            mount_path: self.data.to_string_lossy().into_owned(),
            sub_path: Some("app".to_owned()),
        }
    }

    pub fn task(&self, attempt: &str) -> DatabaseTask {
        let identity = DatabaseIdentity {
            system_identifier: CLAIM.to_owned(),
            name: "app/memoria.db".to_owned(),
            oid: 0,
            host: "sqlite".to_owned(),
        };
        DatabaseTask {
            attempt: attempt.to_owned(),
            release_uid: RELEASE.to_owned(),
            identity: Some(identity),
            volumes: vec![self.volume()],
            working_directory: None,
        }
    }

    pub fn snapshot_order(&self) -> SnapshotOrder {
        SnapshotOrder {
            database: self.task("prod-1"),
            release: "prod".to_owned(),
            from_version: "0.9.0".to_owned(),
            directory: DIRECTORY.to_owned(),
            operator_version: "0.1.0".to_owned(),
            portable: true,
            rescue: None,
        }
    }

    pub fn shared(&self, name: &str) -> PathBuf {
        self.directory.path().join("shared").join(name)
    }

    pub fn spawn(&self, order: &JobOrder, input: &JobInput, url: &str) -> Running {
        let directory = self.directory.path().to_owned();
        let serial = (0..).find(|n| !directory.join(format!("output-{n}")).exists()).unwrap();
        let output = File::create(directory.join(format!("output-{serial}"))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_memoria-operator"))
            .arg("job")
            .env(ORDER_ENV, serde_json::to_string(order).unwrap())
            .env(INPUT_ENV, serde_json::to_string(input).unwrap())
            .env(DATABASE_URL_ENV, url)
            .envs(self.archive.iter().cloned())
            .env("MEMORIA_OPERATOR_PLACE_STORAGE", &self.storage)
            .env("MEMORIA_OPERATOR_PLACE_SHARED", directory.join("shared"))
            .env("MEMORIA_OPERATOR_PLACE_SCRATCH", directory.join("scratch"))
            .env("MEMORIA_OPERATOR_PLACE_TERMINATION_LOG", directory.join("scratch").join(format!("log-{serial}")))
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Running { child, directory, serial }
    }

    /// Runs a Job that is no sidecar to its end.
    pub async fn run(&self, order: &JobOrder) -> Answer {
        self.run_with(order, &self.url()).await
    }

    pub async fn run_with(&self, order: &JobOrder, url: &str) -> Answer {
        self.spawn(order, &JobInput::default(), url).end().await
    }

    /// Waits for a file of the guard's.
    pub async fn wait_for<T: DeserializeOwned>(&self, name: &str) -> T {
        let (path, started) = (self.shared(name), Instant::now());
        while !path.exists() {
            let said = || fs::read_to_string(self.directory.path().join("output-0")).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_secs(90), "no {name}: {}", said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    pub async fn go(&self) -> Go {
        self.wait_for("go.json").await
    }

    /// What the runner leaves.
    pub fn result(&self, commands: Vec<CommandResult>) {
        let text = serde_json::to_string(&RunnerResult { v: 1, commands }).unwrap();
        fs::write(self.shared("result.tmp"), text).unwrap();
        fs::rename(self.shared("result.tmp"), self.shared("result.json")).unwrap();
    }
}

/// A command that ended so.
pub fn command(name: &str, exit_code: Option<i32>, tail: &str) -> CommandResult {
    CommandResult {
        name: name.to_owned(),
        exit_code,
        signal: exit_code.is_none().then_some(9),
        reported_failure: false,
        timed_out: false,
        millis: 5,
        tail: tail.to_owned(),
    }
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).unwrap()
    }

    pub fn kill(&mut self) {
        kill_process(self.pid(), Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }

    /// False when it had ended by itself.
    pub fn kill_if_running(&mut self) -> bool {
        let runs = self.child.try_wait().unwrap().is_none();
        if runs {
            self.kill();
        }
        runs
    }

    /// As the kubelet ends a sidecar once the main container is done.
    pub async fn terminate(self) -> Answer {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.end().await
    }

    pub async fn end(mut self) -> Answer {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "does not end: {}", self.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let log = self.directory.join("scratch").join(format!("log-{}", self.serial));
        let text = fs::read_to_string(&log).unwrap_or_else(|error| panic!("{error}: {}", self.output()));
        assert!(text.len() <= 4096);
        Answer { report: serde_json::from_str(&text).unwrap(), code: status.code() }
    }

    pub fn output(&self) -> String {
        fs::read_to_string(self.directory.join(format!("output-{}", self.serial))).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.kill();
        }
    }
}
