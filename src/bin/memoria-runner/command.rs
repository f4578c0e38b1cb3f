//! One call of Memoria's command line: its arguments, and an environment in which no password is left.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use memoria_runner::order::{DATABASE_URL_ENV, MEMORIA_URL_ENVS, ORDER_ENV, RunnerOrder};

use crate::{
    redact::Secrets,
    url::{DatabaseUrl, UrlError, pgpass_line},
};

/// Why a command cannot get its database.
#[derive(Debug)]
pub enum AccessError {
    Url(UrlError),
    PasswordFile { path: String, source: io::Error },
}

impl std::fmt::Display for AccessError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(error) => error.fmt(f),
            Self::PasswordFile { path, source } => write!(
                f,
                "the password file {path} cannot be written: {source}; the container needs an emptyDir at its directory"
            ),
        }
    }
}

impl std::error::Error for AccessError {}

impl From<UrlError> for AccessError {
    fn from(error: UrlError) -> Self {
        Self::Url(error)
    }
}

/// How commands reach the database: a URL without password, and the password in a file that only we can read.
pub struct Access {
    url: String,
    options: String,
    application: String,
    password_file: Option<PasswordFile>,
    pub secrets: Secrets,
}

struct PasswordFile(PathBuf);

impl Drop for PasswordFile {
    fn drop(&mut self) {
        // The emptyDir ends with the pod in any case.
        let _ = fs::remove_file(&self.0);
    }
}

impl Access {
    /// # Errors
    /// [`AccessError`]
    pub fn new(order: &RunnerOrder, url: &str) -> Result<Self, AccessError> {
        let mut url = DatabaseUrl::parse(url)?;
        url.check_handover()?;
        let secrets = Secrets::of(&url);
        // A client that is killed must not leave its statement running; one that waits for a lock must give up.
        let options =
            format!("-c client_connection_check_interval=500ms -c lock_timeout={}s", order.lock_timeout_seconds);
        url.yield_to_environment(&options);
        let password_file = match url.password() {
            Some(password) if url.is_postgresql() && !password.is_empty() => {
                Some(write_password(Path::new(&order.private_directory), &password)?)
            }
            _ => None,
        };
        let application = format!("mop-{}-{}", order.attempt, order.step);
        Ok(Self { url: url.without_password(), options, application, password_file, secrets })
    }

    /// For the command line.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn give(&self, command: &mut Command) {
        for name in MEMORIA_URL_ENVS {
            command.env(name, &self.url);
        }
        let options = match std::env::var("PGOPTIONS") {
            Ok(already) if !self.secrets.are_in(already.as_bytes()) => format!("{already} {}", self.options),
            _ => self.options.clone(),
        };
        command.env("PGOPTIONS", options).env("PGAPPNAME", &self.application);
        if std::env::var_os("PGCONNECT_TIMEOUT").is_none() {
            command.env("PGCONNECT_TIMEOUT", "30");
        }
        if let Some(PasswordFile(path)) = &self.password_file {
            command.env("PGPASSFILE", path);
        }
    }
}

fn write_password(directory: &Path, password: &[u8]) -> Result<PasswordFile, AccessError> {
    let path = directory.join(format!(".pgpass-{}", std::process::id()));
    let failed = |source| AccessError::PasswordFile { path: path.display().to_string(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let kept = PasswordFile(path.clone());
    file.write_all(&pgpass_line(password)).map_err(failed)?;
    Ok(kept)
}

/// `<cli> <arguments>` with the container's environment, less what is ours and less every variable that holds a
/// password; with `access`, ways to the database.
pub fn cli(order: &RunnerOrder, arguments: &[&OsStr], access: Option<&Access>) -> Command {
    let (program, first) = order.cli.split_first().map_or(("", &[][..]), |(program, rest)| (program.as_str(), rest));
    let mut command = with_environment(program, access);
    command.args(first).args(arguments);
    command
}

/// The same environment for a program of ours in the image's interpreter.
pub fn interpreter(program: &str, access: &Access) -> Command {
    with_environment(program, Some(access))
}

fn with_environment(program: &str, access: Option<&Access>) -> Command {
    let mut command = Command::new(program);
    for (name, value) in std::env::vars_os() {
        let ours = name == ORDER_ENV || name == DATABASE_URL_ENV || name == "PGPASSWORD";
        let telling = access.is_some_and(|access| access.secrets.are_in(value.as_bytes()));
        if ours || telling || holds_password(&value) {
            command.env_remove(name);
        }
    }
    // What it prints shall reach us even if it is killed.
    command.env("PYTHONUNBUFFERED", "1");
    if let Some(access) = access {
        access.give(&mut command);
    }
    command
}

fn holds_password(value: &OsStr) -> bool {
    let url = value.to_str().and_then(|text| DatabaseUrl::parse(text).ok());
    url.is_some_and(|url| url.is_postgresql() && url.raw_password().is_some_and(|password| !password.is_empty()))
}

/// Variables through which a command would find a database, by name or by value.
pub fn database_variables() -> Vec<String> {
    const LIBPQ: [&str; 6] = ["PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE", "PGPASSWORD", "PGPASSFILE"];
    let mut names: Vec<String> = std::env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let by_name =
                name == DATABASE_URL_ENV || MEMORIA_URL_ENVS.contains(&name.as_str()) || LIBPQ.contains(&name.as_str());
            let by_value = value.to_str().and_then(|text| DatabaseUrl::parse(text).ok());
            (by_name || by_value.is_some_and(|url| url.is_postgresql() || url.is_sqlite())).then_some(name)
        })
        .collect();
    names.sort();
    names
}
