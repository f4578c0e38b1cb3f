//! An ephemeral server in a scratch directory: proves that a snapshot restores, and shows what a new version's own
//! `init-db` builds. Reached over a Unix socket that only this container sees, and over loopback by one role when asked; trusts
//! whoever reaches it; keeps nothing. Its superuser runs programs as this container, so nobody else may be that.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::process::Child;

use super::{
    error::{Error, Result},
    session,
    tools::{Tools, error_line},
};

/// Its superuser.
pub const SUPERUSER: &str = "postgres";

/// A running server; it is killed and its data removed when this goes.
#[derive(Debug)]
pub struct ScratchServer {
    server: Child,
    data: PathBuf,
    socket: PathBuf,
    pub port: u16,
}

impl ScratchServer {
    /// Makes and starts a server with its data and its socket below `directory`, which no other container mounts.
    /// `guest`: this role is let in on 127.0.0.1 as well, for the other container of the same pod.
    pub async fn start(tools: &Tools, directory: &Path, guest: Option<&str>) -> Result<Self> {
        let (data, socket) = (directory.join("data"), directory.join("socket"));
        let _ = fs::remove_dir_all(&data);
        fs::create_dir_all(directory).map_err(Error::io("making", directory))?;
        fs::create_dir_all(&socket).map_err(Error::io("making", &socket))?;
        let mut initdb = tools.command("initdb", directory);
        initdb.args(["--no-sync", "--auth=trust", "--username", SUPERUSER, "--encoding=UTF8", "--locale=C", "-D"]);
        Tools::run("initdb", initdb.arg(&data)).await?;
        let access = data.join("pg_hba.conf");
        fs::write(&access, rules(guest)).map_err(Error::io("writing", &access))?;
        let port = match guest {
            Some(_) => free_port().map_err(Error::io("looking for a free port in", directory))?,
            None => 5432,
        };
        let log = directory.join("log");
        let output = fs::File::create(&log).map_err(Error::io("making", &log))?;
        let mut command = tools.command("postgres", directory);
        command.arg("-D").arg(&data).arg("-k").arg(&socket).args(["-p", &port.to_string()]);
        for setting in [
            if guest.is_some() { "listen_addresses=127.0.0.1" } else { "listen_addresses=" },
            // It outlives nothing, so nothing is forced to disk.
            "fsync=off",
            "full_page_writes=off",
            "synchronous_commit=off",
            "autovacuum=off",
            "max_wal_senders=0",
            "wal_level=minimal",
            "max_wal_size=256MB",
            "maintenance_work_mem=64MB",
            // A container's /dev/shm is often too small.
            "dynamic_shared_memory_type=mmap",
            "shared_memory_type=mmap",
            "unix_socket_permissions=0770",
            "logging_collector=off",
        ] {
            command.args(["-c", setting]);
        }
        let server = command.stdout(Stdio::null()).stderr(output).spawn().map_err(Error::io("starting", directory))?;
        let mut scratch = Self { server, data, socket, port };
        scratch.wait_ready(&log).await?;
        Ok(scratch)
    }

    async fn wait_ready(&mut self, log: &Path) -> Result<()> {
        let started = Instant::now();
        loop {
            let ended = self.server.try_wait().ok().flatten().is_some();
            let answer = PgConnection::connect_with(&self.options(SUPERUSER, "postgres")).await;
            if let Ok(session) = answer {
                let _ = session.close().await;
                return Ok(());
            }
            if ended || started.elapsed() > Duration::from_secs(60) {
                let tail = error_line(&fs::read(log).unwrap_or_default());
                return Err(Error::Scratch { directory: self.data.clone(), tail });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn options(&self, user: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.socket).port(self.port).username(user).database(database)
    }

    /// A session with pinned settings over the socket.
    pub async fn session(&self, user: &str, database: &str) -> Result<PgConnection> {
        let options = self.options(user, database).application_name("mop-scratch");
        session::open_with(&options, &format!("{user}@scratch/{database}")).await
    }

    /// Environment of a tool that works on `database` as the superuser.
    pub fn tool_environment(&self, database: &str) -> Vec<(&'static str, String)> {
        vec![
            ("PGHOST", self.socket.to_string_lossy().into_owned()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", SUPERUSER.to_owned()),
            ("PGDATABASE", database.to_owned()),
        ]
    }

    /// Ends it at once.
    pub async fn stop(mut self) {
        self.signal();
        let _ = tokio::time::timeout(Duration::from_secs(10), self.server.wait()).await;
    }

    fn signal(&self) {
        // SIGQUIT is PostgreSQL's immediate shutdown: the postmaster ends its children too.
        if let Some(pid) = self.server.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process(pid, Signal::QUIT);
        }
    }
}

impl Drop for ScratchServer {
    fn drop(&mut self) {
        self.signal();
        let _ = fs::remove_dir_all(&self.data);
    }
}

/// Who is let in: everybody who reaches the socket, and over loopback the guest alone.
fn rules(guest: Option<&str>) -> String {
    let guest = guest.map(|role| format!("host all \"{}\" 127.0.0.1/32 trust\n", role.replace('"', "\"\"")));
    format!("local all all trust\n{}", guest.unwrap_or_default())
}

fn free_port() -> std::io::Result<u16> {
    TcpListener::bind("127.0.0.1:0")?.local_addr().map(|address| address.port())
}
