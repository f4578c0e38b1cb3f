//! A private PostgreSQL server of the newest major on this machine, on a port of its own, gone with the value.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Its superuser, and whom the data belong to.
const SUPERUSER: &str = "postgres";
const OWNER: &str = "memoria";

pub struct Server {
    bin: PathBuf,
    directory: PathBuf,
    port: u16,
    process: Child,
    /// As `postgres --version` says it.
    pub version: String,
}

impl Server {
    /// With the settings of a new cluster, forced writes included.
    pub fn start() -> Result<Self> {
        let bin = newest()?;
        let directory = std::env::temp_dir().join(format!("memoria-bench-{}", std::process::id()));
        fs::create_dir_all(&directory).context("cannot make a directory for the server")?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        give(&directory)?;
        let data = directory.join("data");
        let mut initdb = as_server_user(&bin.join("initdb"));
        initdb.args([
            "--no-sync",
            "--auth=trust",
            "--username",
            SUPERUSER,
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "-D",
        ]);
        succeed(initdb.arg(&data))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let version = String::from_utf8(Command::new(bin.join("postgres")).arg("--version").output()?.stdout)?;
        let log = File::create(directory.join("log"))?;
        let process = as_server_user(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&directory)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "max_wal_size=4GB"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start postgres")?;
        let server = Self {
            bin,
            directory,
            port,
            process,
            version: version.trim().trim_start_matches("postgres (PostgreSQL) ").to_owned(),
        };
        let started = Instant::now();
        while server.run(SUPERUSER, &format!("CREATE ROLE {OWNER} LOGIN")).is_err() {
            if started.elapsed() > Duration::from_secs(60) {
                bail!("the server does not start: {}", fs::read_to_string(server.directory.join("log"))?);
            }
            sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    /// Makes a database anew.
    pub fn make(&self, database: &str) -> Result<()> {
        self.run(SUPERUSER, &format!("DROP DATABASE IF EXISTS {database}"))?;
        self.run(SUPERUSER, &format!("CREATE DATABASE {database} OWNER {OWNER}"))
    }

    /// Runs a statement as the superuser.
    pub fn run(&self, database: &str, sql: &str) -> Result<()> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-X", "-q", "-h", "127.0.0.1", "-U", SUPERUSER, "-p", &self.port.to_string(), "-d", database]);
        succeed(psql.args(["-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// One of PostgreSQL's own programs, as the owner of the data.
    pub fn tool(&self, tool: &str, database: &str) -> Command {
        let mut command = Command::new(self.bin.join(tool));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string());
        command.env("PGUSER", OWNER).env("PGDATABASE", database);
        command
    }

    /// A SQLAlchemy URL of the owner.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql+psycopg2://{OWNER}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// A new directory for files.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = std::env::temp_dir().join(format!("memoria-bench-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).context("cannot make a directory for the files")?;
        Ok(path)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown; setpriv became the postmaster.
        if let Some(pid) = Pid::from_raw(self.process.id().cast_signed()) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Where Debian keeps the newest major's programs.
fn newest() -> Result<PathBuf> {
    let installed = fs::read_dir("/usr/lib/postgresql").context("install postgresql: a server of it is measured")?;
    let majors = installed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let newest = majors.max().context("install postgresql: a server of it is measured")?;
    Ok(Path::new("/usr/lib/postgresql").join(newest.to_string()).join("bin"))
}

/// PostgreSQL refuses to run as root.
fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "INT"]).arg(program).current_dir("/").env("LC_ALL", "C");
    command
}

fn give(path: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        succeed(Command::new("chown").arg("postgres:postgres").arg(path))?;
    }
    Ok(())
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
