//! A private server for one test: a copy of a data directory made once, a port of its own, gone with the test.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use memoria_operator::snapshot::{session, url::DatabaseUrl};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};

/// The application's password, and how it looks in a URL.
pub const PASSWORD: &str = "s@cr%t/wi\"th space";
pub const PASSWORD_ENCODED: &str = "s%40cr%25t%2Fwi%22th%20space";

/// Directory with `postgres` and `initdb` of the major that `MOP_TEST_POSTGRES` names, else of the newest one.
pub fn bin() -> PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        let wanted = std::env::var("MOP_TEST_POSTGRES").ok();
        let installed = fs::read_dir("/usr/lib/postgresql").expect("install postgresql: the tests start servers of it");
        let mut majors: Vec<u32> = installed
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(|major: &u32| wanted.as_ref().is_none_or(|wanted| *wanted == major.to_string()))
            .collect();
        majors.sort_unstable();
        Path::new("/usr/lib/postgresql").join(majors.last().expect("no such major").to_string()).join("bin")
    })
    .clone()
}

pub fn major() -> u32 {
    bin().parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command as a user that PostgreSQL agrees to run as, ended when this thread ends.
pub fn as_server_user(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "INT"]).arg(program.as_ref()).current_dir("/").process_group(0);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command
}

/// Gives a path to the server's user.
pub fn give(path: &Path) {
    if is_root() {
        let status = Command::new("chown").arg("-R").arg("postgres:postgres").arg(path).status().unwrap();
        assert!(status.success());
    }
}

/// A directory that the server's user may write, gone with the value.
pub fn private_directory(what: &str) -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix(&format!("mop-{what}-")).tempdir_in("/tmp").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    give(directory.path());
    directory
}

fn template() -> PathBuf {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE
        .get_or_init(|| {
            let user = rustix::process::geteuid().as_raw();
            let kept = PathBuf::from(format!("/tmp/mop-postgres-template-{}-{user}", major()));
            if !kept.join("PG_VERSION").exists() {
                let made = private_directory("template");
                let data = made.path().join("data");
                let output = as_server_user(bin().join("initdb"))
                    .args(["--no-sync", "--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256"])
                    .args(["--encoding=UTF8", "--locale=C.UTF-8", "-D"])
                    .arg(&data)
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                // Another process may have been first; then its directory is as good.
                let _ = fs::rename(&data, &kept);
            }
            kept
        })
        .clone()
}

/// One server with a database `memoria` owned by the plain role `app`.
pub struct Cluster {
    directory: tempfile::TempDir,
    pub port: u16,
    server: Child,
}

impl Cluster {
    pub async fn start() -> Self {
        let directory = private_directory("postgres");
        let data = directory.path().join("data");
        let status = Command::new("cp").args(["-a", "--reflink=auto"]).arg(template()).arg(&data).status().unwrap();
        assert!(status.success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = as_server_user(bin().join("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-p", &port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "full_page_writes=off",
            "synchronous_commit=off",
            "max_prepared_transactions=4",
            "wal_level=logical",
        ] {
            command.args(["-c", setting]);
        }
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let server = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let cluster = Self { directory, port, server };
        let started = Instant::now();
        let mut admin = loop {
            match PgConnection::connect_with(&cluster.socket("postgres", "postgres")).await {
                Ok(session) => break session,
                Err(error) if started.elapsed() > Duration::from_secs(30) => {
                    panic!("{error}: {}", fs::read_to_string(cluster.directory.path().join("log")).unwrap())
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        for sql in [
            format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'"),
            "CREATE ROLE visitor LOGIN PASSWORD 'v'".to_owned(),
            "CREATE DATABASE memoria OWNER app".to_owned(),
        ] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
        }
        cluster
    }

    fn socket(&self, user: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.directory.path())
            .port(self.port)
            .username(user)
            .database(database)
            .application_name("test")
    }

    /// Where the server listens for those who need no password.
    pub fn socket_file(&self) -> PathBuf {
        self.directory.path().join(format!(".s.PGSQL.{}", self.port))
    }

    /// A session of any user, without our settings.
    pub async fn session(&self, user: &str, database: &str) -> PgConnection {
        PgConnection::connect_with(&self.socket(user, database)).await.unwrap()
    }

    pub async fn admin(&self) -> PgConnection {
        self.session("postgres", "memoria").await
    }

    /// The application's URL, as its Secret holds it.
    pub fn url_text(&self) -> String {
        format!("postgresql+psycopg2://app:{PASSWORD_ENCODED}@127.0.0.1:{}/memoria?sslmode=disable", self.port)
    }

    pub fn url(&self) -> DatabaseUrl {
        self.url_text().parse().unwrap()
    }

    /// A session as the operator's Jobs open it.
    pub async fn pinned(&self) -> PgConnection {
        session::open(&self.url(), "mop-test-1-test").await.unwrap()
    }

    /// Runs statements as the application.
    pub async fn app(&self, sql: &str) {
        let mut session = self.session("app", "memoria").await;
        run(&mut session, sql).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGQUIT is PostgreSQL's immediate shutdown; the postmaster ends its children itself.
        if let Some(pid) = rustix::process::Pid::from_raw(self.server.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let _ = self.server.wait();
    }
}

pub async fn run(session: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(session)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Tables in Memoria's manner: text and serial keys, JSON, floats, a cycle of foreign keys, a view, an enum.
pub const MEMORIA: &str = r#"
CREATE TYPE retention AS ENUM ('short', 'long');
CREATE TABLE agents (agent_id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, metadata JSON, created_at TIMESTAMP NOT NULL DEFAULT now(), seen TIMESTAMPTZ);
CREATE TABLE teams (team_id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, slug VARCHAR NOT NULL UNIQUE, lead VARCHAR REFERENCES agents);
ALTER TABLE agents ADD COLUMN team_id VARCHAR REFERENCES teams DEFERRABLE;
CREATE TABLE long_term_memory (memory_id VARCHAR PRIMARY KEY, kind retention NOT NULL DEFAULT 'long', score DOUBLE PRECISION NOT NULL,
  payload BYTEA, embedding JSON, summary TEXT, CHECK (memory_id IN ('x', 'y') OR score >= 0));
CREATE INDEX ltm_score ON long_term_memory (score) WHERE kind = 'long';
CREATE TABLE memory_access_events (id SERIAL PRIMARY KEY, memory_id VARCHAR NOT NULL REFERENCES long_term_memory ON DELETE CASCADE, accessed_at TIMESTAMPTZ NOT NULL);
CREATE TABLE "Odd name" ("select" INTEGER GENERATED ALWAYS AS IDENTITY, "a""b" TEXT);
CREATE VIEW busy AS SELECT m.memory_id, count(*) AS n FROM long_term_memory m JOIN memory_access_events e USING (memory_id) GROUP BY 1;
INSERT INTO agents SELECT 'a' || i, 'agent ' || i, json_build_object('n', i), timestamp '2025-01-01' + i * interval '1 hour', timestamptz '2025-01-01 00:00+02' + i * interval '1 day' FROM generate_series(1, 50) i;
INSERT INTO teams SELECT 't' || i, 'team', 'slug-' || i, 'a' || i FROM generate_series(1, 5) i;
UPDATE agents SET team_id = 't1' WHERE agent_id < 'a3';
INSERT INTO long_term_memory SELECT 'm' || i, CASE WHEN i % 2 = 0 THEN 'short' ELSE 'long' END::retention, i / 7.0, decode(md5(i::text), 'hex'), '[0.1, 1e-7]', CASE WHEN i % 3 = 0 THEN NULL WHEN i % 3 = 1 THEN '' ELSE 'summary' END FROM generate_series(1, 200) i;
INSERT INTO memory_access_events (memory_id, accessed_at) SELECT 'm' || (i % 200 + 1), now() FROM generate_series(1, 300) i;
INSERT INTO "Odd name" ("a""b") VALUES ('x'), (NULL), ('');
"#;
