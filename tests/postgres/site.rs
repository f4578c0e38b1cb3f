//! Where one test's Jobs run: the real binary as an unprivileged process, with directories in place of mounts.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::OnceLock,
    time::{Duration, Instant},
};

use memoria_operator::{
    api::upgrade::{Category, DatabaseIdentity},
    job::protocol::{
        DATABASE_URL_ENV, DatabaseTask, INPUT_ENV, JobInput, JobOrder, JobReport, ORDER_ENV, SnapshotOrder,
    },
    snapshot::identity,
};
use memoria_runner::order::{CommandResult, Go, RunnerResult};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::cluster::{Cluster, PASSWORD, PASSWORD_ENCODED, as_server_user, bin, give, private_directory};

/// UID of the release in these tests.
pub const RELEASE: &str = "0b8ff1f4-1c0c-4b8e-9d59-6f1f2f0a5f10";
/// Directory of attempt and pre-flight run in the storage.
pub const DIRECTORY: &str = "prod-0b8ff1f4/prod-1";

/// The binary where the server's user can execute it.
fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            let place = PathBuf::from(format!("/tmp/mop-test-binary-{}", rustix::process::geteuid().as_raw()));
            fs::create_dir_all(&place).unwrap();
            let (copy, kept) = (place.join(format!("copy-{}", std::process::id())), place.join("memoria-operator"));
            fs::copy(env!("CARGO_BIN_EXE_memoria-operator"), &copy).unwrap();
            fs::rename(copy, &kept).unwrap();
            kept
        })
        .clone()
}

/// The mounts of one pod; `storage` may be shared with another.
pub struct Site {
    directory: tempfile::TempDir,
    pub storage: PathBuf,
    /// Names an archive, if there is one: then each pod's storage is its own workplace.
    pub archive: Vec<(String, String)>,
}

pub struct Answer {
    pub report: JobReport,
    pub code: Option<i32>,
}

impl Answer {
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
    /// A pod that goes with its Job.
    pod: Option<Site>,
}

impl Site {
    pub fn new() -> Self {
        let directory = private_directory("site");
        for name in ["storage", "shared", "scratch"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        give(directory.path());
        let storage = directory.path().join("storage");
        Self { directory, storage, archive: Vec::new() }
    }

    /// Another pod with the same storage.
    pub fn other_pod(&self) -> Self {
        let (pod, archive) = (Self::new(), self.archive.clone());
        let storage = if archive.is_empty() { self.storage.clone() } else { pod.storage.clone() };
        Self { storage, archive, ..pod }
    }

    pub fn shared(&self, name: &str) -> PathBuf {
        self.directory.path().join("shared").join(name)
    }

    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join("scratch").join(name)
    }

    pub fn spawn(&self, order: &JobOrder, input: &JobInput, url: &str) -> Running {
        let directory = self.directory.path().to_owned();
        let serial = (0..).find(|n| !directory.join(format!("output-{n}")).exists()).unwrap();
        let output = File::create(directory.join(format!("output-{serial}"))).unwrap();
        let mut command: Command = as_server_user(binary());
        let child = command
            .arg("job")
            .env("PATH", format!("{}:/usr/bin:/bin", bin().display()))
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
        Running { child, directory, serial, pod: None }
    }

    /// The same in a pod that has no other use.
    pub fn spawn_kept(self, order: &JobOrder, input: &JobInput, url: &str) -> Running {
        let mut running = self.spawn(order, input, url);
        running.pod = Some(self);
        running
    }

    /// Runs a Job that is no sidecar to its end.
    pub async fn run(&self, order: &JobOrder, cluster: &Cluster) -> Answer {
        self.run_with(order, &cluster.url_text()).await
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
pub fn command(name: &str, exit_code: Option<i32>, reported_failure: bool, tail: &str) -> CommandResult {
    CommandResult {
        name: name.to_owned(),
        exit_code,
        signal: exit_code.is_none().then_some(9),
        reported_failure,
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
        for said in [&text, &self.output()] {
            assert!(!said.contains(PASSWORD) && !said.contains(PASSWORD_ENCODED), "a password was told: {said}");
            assert!(!said.contains("wi\\\"th space"), "a password was told: {said}");
        }
        let left: Vec<_> =
            fs::read_dir(self.directory.join("scratch")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".pgpass")), "a passfile was left");
        Answer { report: serde_json::from_str(&text).unwrap(), code: status.code() }
    }

    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
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

pub async fn identity(cluster: &Cluster) -> DatabaseIdentity {
    identity::read(&mut cluster.pinned().await, &cluster.url()).await.unwrap()
}

pub async fn task(cluster: &Cluster, attempt: &str) -> DatabaseTask {
    let identity = Some(identity(cluster).await);
    let (attempt, release_uid) = (attempt.to_owned(), RELEASE.to_owned());
    DatabaseTask { attempt, release_uid, identity, volumes: Vec::new(), working_directory: None }
}

pub async fn snapshot_order(cluster: &Cluster) -> SnapshotOrder {
    SnapshotOrder {
        database: task(cluster, "prod-1").await,
        release: "prod".to_owned(),
        from_version: "0.9.0".to_owned(),
        directory: DIRECTORY.to_owned(),
        operator_version: "0.1.0".to_owned(),
        portable: true,
        rescue: None,
    }
}

/// Every file below a directory must be free of the password.
pub fn holds_no_password(directory: &Path) {
    let output = Command::new("grep").args(["-rlaF", PASSWORD]).arg(directory).output().unwrap();
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}
