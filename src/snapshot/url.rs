//! SQLAlchemy database URLs, read as SQLAlchemy reads them, and turned into what sqlx and PostgreSQL's own tools need.
//! The password leaves this module towards the server, and into a PGPASSFILE of mode 0600, never into text for people.

use std::{
    fmt,
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::error::{Error, Result};

/// Why a URL is refused. Quotes nothing of it but the driver and parameter names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("it is empty; give the Server's Secret a SQLAlchemy URL such as postgresql://user:password@host:5432/db")]
    Empty,
    #[error("it has no scheme; write postgresql://user:password@host:5432/db")]
    NoScheme,
    #[error("it names an SQLite file, and this step is for PostgreSQL only")]
    Sqlite,
    #[error(
        "SQLAlchemy does not know the scheme \"postgres\" any more; write postgresql:// (or postgresql+psycopg2://, postgresql+psycopg://)"
    )]
    Postgres,
    #[error(
        "driver {0:?} is not known; write postgresql://, postgresql+psycopg2:// or postgresql+psycopg:// as the Server does"
    )]
    UnknownDriver(String),
    #[error("it has no {0}; write postgresql://user:password@host:5432/db")]
    Missing(&'static str),
    #[error("its host contains an @; write an @ inside user or password as %40")]
    AtInHost,
    #[error("its port is not a number from 1 to 65535; write a / inside user or password as %2F and a : as %3A")]
    Port,
    #[error("it names several hosts; give one host that is always the primary")]
    SeveralHosts,
    #[error("parameter {name} has a value that is not understood; write {expected}")]
    Parameter { name: &'static str, expected: &'static str },
    #[error("its {0} contains a line break or a zero byte")]
    ControlCharacter(&'static str),
}

/// A password and the forms in which it may turn up in somebody's output.
#[derive(Clone, PartialEq, Eq)]
pub struct Password {
    decoded: String,
    written: String,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Everything that is not unreserved, as strict encoders write it.
const STRICT: &AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What a URL's userinfo must not hold, as lenient encoders write it.
const LENIENT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%').add(b'/').add(b':').add(b'?').add(b'@').add(b'#');

impl Password {
    /// Every form of the password, longest first, so that replacing one leaves no rest of another.
    fn forms(&self) -> Vec<String> {
        let strict = utf8_percent_encode(&self.decoded, STRICT).to_string();
        let json = serde_json::to_string(&self.decoded).unwrap_or_default();
        let mut forms = vec![
            strict.replace("%20", "+"),
            strict,
            utf8_percent_encode(&self.decoded, LENIENT).to_string(),
            json.trim_matches('"').to_owned(),
            self.written.clone(),
            self.decoded.clone(),
        ];
        forms.retain(|form| !form.is_empty());
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.dedup();
        forms
    }
}

/// Where and as whom to open sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseUrl {
    /// The scheme as written: Memoria's own commands need the same driver.
    pub scheme: String,
    pub user: String,
    password: Option<Password>,
    /// A name, an address, or the directory of a Unix socket.
    pub host: String,
    pub port: u16,
    pub database: String,
    ssl_mode: Option<String>,
    ssl_root_cert: Option<String>,
    ssl_cert: Option<String>,
    ssl_key: Option<String>,
    /// Server settings from `options=-c name=value`.
    settings: Vec<(String, String)>,
    /// Names of parameters that have no meaning for short-lived sessions of ours.
    pub ignored: Vec<String>,
}

impl FromStr for DatabaseUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::NoScheme)?;
        check_scheme(scheme)?;
        let (address, query) = match rest.split_once('@') {
            // As in SQLAlchemy's pattern: a user holds no slash, a password anything but an @.
            Some((credentials, after)) if !credentials.split(':').next().unwrap_or_default().contains('/') => {
                let (place, query) = after.split_once('?').unwrap_or((after, ""));
                (Some((credentials, place)), query)
            }
            _ => (None, rest.split_once('?').map_or("", |(_, query)| query)),
        };
        let (credentials, place) = match address {
            Some((credentials, place)) => (credentials, place),
            None => ("", rest.split('?').next().unwrap_or_default()),
        };
        let (user, written) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (credentials, None),
        };
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = host_and_port(authority)?;

        let mut url = Self {
            scheme: scheme.to_owned(),
            user: decode(user),
            password: written.map(|written| Password { decoded: decode(written), written: written.to_owned() }),
            host,
            port,
            // SQLAlchemy does not decode the database's name either.
            database: database.to_owned(),
            ssl_mode: None,
            ssl_root_cert: None,
            ssl_cert: None,
            ssl_key: None,
            settings: Vec::new(),
            ignored: Vec::new(),
        };
        url.read_query(query)?;
        url.check()?;
        Ok(url)
    }
}

fn check_scheme(scheme: &str) -> Result<(), UrlError> {
    match scheme {
        "postgresql" | "postgresql+psycopg2" | "postgresql+psycopg" => Ok(()),
        "postgres" => Err(UrlError::Postgres),
        sqlite if sqlite.split('+').next() == Some("sqlite") => Err(UrlError::Sqlite),
        // A scheme is made of letters, digits and signs; anything else is a mangled URL and is not repeated.
        other if other.len() <= 32 && other.chars().all(|c| c.is_ascii_alphanumeric() || "+._-".contains(c)) => {
            Err(UrlError::UnknownDriver(other.to_owned()))
        }
        _ => Err(UrlError::NoScheme),
    }
}

fn host_and_port(authority: &str) -> Result<(String, u16), UrlError> {
    if authority.contains('@') {
        return Err(UrlError::AtInHost);
    }
    if authority.contains(',') {
        return Err(UrlError::SeveralHosts);
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, ""),
        Some((host, port)) => (host, port.strip_prefix(':').ok_or(UrlError::Port)?),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = if port.is_empty() { 5432 } else { parse_port(port)? };
    Ok((host.to_owned(), port))
}

fn parse_port(text: &str) -> Result<u16, UrlError> {
    text.parse().ok().filter(|port| *port > 0).ok_or(UrlError::Port)
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl DatabaseUrl {
    fn read_query(&mut self, query: &str) -> Result<(), UrlError> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, written) = (decode(&name.replace('+', " ")), value);
            let value = decode(&written.replace('+', " "));
            match name.as_str() {
                "sslmode" => self.ssl_mode = Some(value),
                "sslrootcert" => self.ssl_root_cert = Some(value),
                "sslcert" => self.ssl_cert = Some(value),
                "sslkey" => self.ssl_key = Some(value),
                "user" => self.user = value,
                "password" => self.password = Some(Password { decoded: value, written: written.to_owned() }),
                "dbname" => self.database = value,
                "port" => self.port = parse_port(&value)?,
                "host" if value.contains(',') => return Err(UrlError::SeveralHosts),
                // SQLAlchemy's form for several hosts is host:port, repeated; a socket's directory has no colon.
                "host" => match value.rsplit_once(':') {
                    Some((host, port)) if !value.starts_with('/') => {
                        (self.host, self.port) = (host.to_owned(), parse_port(port)?);
                    }
                    _ => self.host = value,
                },
                "options" => self.settings = parse_options(&value)?,
                _ => self.ignored.push(name.chars().take(40).collect()),
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), UrlError> {
        for (part, name) in [(&self.user, "user"), (&self.host, "host"), (&self.database, "database")] {
            if part.is_empty() {
                return Err(UrlError::Missing(name));
            }
            if part.contains(['\n', '\r', '\0']) {
                return Err(UrlError::ControlCharacter(name));
            }
        }
        if self.password.as_ref().is_some_and(|p| p.decoded.contains(['\n', '\r', '\0'])) {
            return Err(UrlError::ControlCharacter("password"));
        }
        self.ssl_mode()?;
        Ok(())
    }

    fn ssl_mode(&self) -> Result<Option<PgSslMode>, UrlError> {
        let expected = "disable, allow, prefer, require, verify-ca or verify-full";
        self.ssl_mode
            .as_deref()
            .map(|mode| mode.parse().map_err(|_| UrlError::Parameter { name: "sslmode", expected }))
            .transpose()
    }

    /// For people and reports: `user@host:port/db`.
    pub fn place(&self) -> String {
        format!("{}@{}/{}", self.user, self.host_and_port(), self.database)
    }

    /// Host and port without credentials, as the identity keeps them.
    pub fn host_and_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The URL of the same user, driver and settings in `database` of a server on this host that wants no password.
    pub fn on_this_host(&self, port: u16, database: &str) -> String {
        let user = utf8_percent_encode(&self.user, STRICT);
        let setting =
            |(name, value): &(String, String)| format!("-c {name}={}", value.replace('\\', "\\\\").replace(' ', "\\ "));
        let settings: Vec<_> = self.settings.iter().map(setting).collect();
        let options = match settings.join(" ") {
            empty if empty.is_empty() => String::new(),
            all => format!("?options={}", utf8_percent_encode(&all, STRICT)),
        };
        format!("{}://{user}@127.0.0.1:{port}/{database}{options}", self.scheme)
    }

    /// `text` without any form of the password.
    pub fn redact(&self, text: &str) -> String {
        let forms = self.password.iter().flat_map(Password::forms);
        forms.fold(text.to_owned(), |text, form| text.replace(&form, "***"))
    }

    /// For sqlx. Reads nothing from the environment or from files of the user.
    pub fn connect_options(&self) -> Result<PgConnectOptions, UrlError> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .database(&self.database)
            .ssl_mode(self.ssl_mode()?.unwrap_or(PgSslMode::Prefer))
            .options(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        if self.host.starts_with('/') {
            options = options.socket(&self.host);
        }
        if let Some(password) = &self.password {
            options = options.password(&password.decoded);
        }
        if let Some(file) = &self.ssl_root_cert {
            options = options.ssl_root_cert(file);
        }
        if let Some(file) = &self.ssl_cert {
            options = options.ssl_client_cert(file);
        }
        if let Some(file) = &self.ssl_key {
            options = options.ssl_client_key(file);
        }
        Ok(options)
    }

    /// Writes the password into a file of mode 0600 below `scratch` and gives the environment for PostgreSQL's tools.
    pub fn tool_environment(&self, scratch: &Path, application_name: &str) -> Result<ToolEnvironment> {
        let mut variables = vec![
            ("PGHOST", self.host.clone()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database.clone()),
            ("PGAPPNAME", application_name.to_owned()),
            ("PGSSLMODE", self.ssl_mode.clone().unwrap_or_else(|| "prefer".to_owned())),
            ("PGCLIENTENCODING", "UTF8".to_owned()),
        ];
        for (name, value) in
            [("PGSSLROOTCERT", &self.ssl_root_cert), ("PGSSLCERT", &self.ssl_cert), ("PGSSLKEY", &self.ssl_key)]
        {
            variables.extend(value.clone().map(|value| (name, value)));
        }
        if !self.settings.is_empty() {
            let escaped = |(name, value): &(String, String)| {
                format!("-c {name}={}", value.replace('\\', "\\\\").replace(' ', "\\ "))
            };
            variables.push(("PGOPTIONS", self.settings.iter().map(escaped).collect::<Vec<_>>().join(" ")));
        }
        let passfile = scratch.join(format!(".pgpass-{application_name}"));
        if let Some(password) = &self.password {
            let line = format!("*:*:*:*:{}\n", password.decoded.replace('\\', "\\\\").replace(':', "\\:"));
            let _ = std::fs::remove_file(&passfile);
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&passfile)
                .and_then(|mut file| file.write_all(line.as_bytes()))
                .map_err(Error::io("writing", &passfile))?;
        }
        variables.push(("PGPASSFILE", passfile.to_string_lossy().into_owned()));
        Ok(ToolEnvironment { variables, passfile })
    }
}

/// `-c name=value` and `-cname=value`, separated by spaces; a backslash keeps the next character.
fn parse_options(text: &str) -> Result<Vec<(String, String)>, UrlError> {
    let bad = || UrlError::Parameter { name: "options", expected: "-c name=value" };
    let mut words = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => words.last_mut().ok_or_else(bad)?.push(chars.next().ok_or_else(bad)?),
            ' ' => words.push(String::new()),
            c => words.last_mut().ok_or_else(bad)?.push(c),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("-c"), word.strip_prefix("--")) {
            (Some(""), _) => words.next().ok_or_else(bad)?,
            (Some(setting), _) | (None, Some(setting)) => setting.to_owned(),
            (None, None) => return Err(bad()),
        };
        let (name, value) = setting.split_once('=').ok_or_else(bad)?;
        settings.push((name.to_owned(), value.to_owned()));
    }
    Ok(settings)
}

/// Environment of PostgreSQL's tools; the passfile goes when this goes.
#[derive(Debug)]
pub struct ToolEnvironment {
    pub variables: Vec<(&'static str, String)>,
    passfile: PathBuf,
}

impl Drop for ToolEnvironment {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.passfile);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> DatabaseUrl {
        text.parse().unwrap()
    }

    #[test]
    fn urls_are_read_as_sqlalchemy_reads_them() {
        let url = parse("postgresql+psycopg2://me%40x:p%40%25%2F%22%20q@db.example:6432/memoria?sslmode=disable");
        assert_eq!(url.place(), "me@x@db.example:6432/memoria");
        assert_eq!(url.password.as_ref().unwrap().decoded, "p@%/\" q");
        assert_eq!(url.ssl_mode().unwrap().map(|m| format!("{m:?}")), Some("Disable".to_owned()));

        let here = url.on_this_host(5433, "copy");
        assert_eq!(here, "postgresql+psycopg2://me%40x@127.0.0.1:5433/copy");
        assert_eq!(parse(&here).place(), "me@x@127.0.0.1:5433/copy");
        let set = parse("postgresql://u:p@h/d?options=-c%20search_path%3Da%5C%20b%20-crole%3Dapp");
        assert_eq!(parse(&set.on_this_host(1, "d")).settings, set.settings);
        assert_eq!(parse("postgresql://u@h/d").port, 5432);
        assert_eq!(parse("postgresql://u:p@[::1]:6000/d").host_and_port(), "[::1]:6000");
        assert_eq!(parse("postgresql://u:p@/d?host=/run/postgresql").host, "/run/postgresql");
        assert_eq!(parse("postgresql:///d?host=h&user=u&port=7").place(), "u@h:7/d");
        // SQLAlchemy lets a password hold : / and ? as they are.
        assert_eq!(parse("postgresql://u:a:b/c?d@h/d").password.unwrap().decoded, "a:b/c?d");
        assert_eq!(
            parse("postgresql://u:p@h/d?options=-c%20role%3Dapp&keepalives=1").settings,
            [("role".to_owned(), "app".to_owned())]
        );
        assert_eq!(parse("postgresql://u:p@h/d?keepalives=1").ignored, ["keepalives"]);
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name_and_without_the_password() {
        for (text, part) in [
            ("sqlite:////data/memoria.db", "SQLite file"),
            ("sqlite+aiosqlite:///x", "SQLite"),
            ("mysql+pymysql://u:topsecret@h/d", "mysql+pymysql"),
            ("postgresql+asyncpg://u:topsecret@h/d", "postgresql+asyncpg"),
            ("postgres://u:topsecret@h/d", "postgresql://"),
            ("postgresql://u:topsecret@h:port/d", "port"),
            ("postgresql://u:top@secret@h/d", "%40"),
            ("postgresql://u:topsecret@h", "database"),
            ("postgresql://u:topsecret@/d", "host"),
            ("postgresql://:topsecret@h/d", "user"),
            ("postgresql://u:topsecret@a,b/d", "several hosts"),
            ("postgresql://u:topsecret@h/d?sslmode=topsecret", "verify-full"),
            ("postgresql://u:topsecret%0A@h/d", "line break"),
            ("topsecret", "scheme"),
            ("", "empty"),
        ] {
            let message = text.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
            assert!(!message.contains("secret@") && !message.contains("topsecret"), "{message}");
        }
    }

    #[test]
    fn a_passfile_is_private_escaped_and_goes_away() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = std::env::temp_dir();
        let environment =
            parse("postgresql://u:a%3Ab%5Cc@h/d").tool_environment(&scratch, "mop-passfile-test").unwrap();
        let path = environment.passfile.clone();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "*:*:*:*:a\\:b\\\\c\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(environment.variables.iter().all(|(_, value)| !value.contains("b\\c")));
        drop(environment);
        assert!(!path.exists());
    }

    proptest! {
        #[test]
        fn any_user_and_password_survive_encoding(user in "[^\\x00-\\x1f]{1,20}", password in "[^\\x00-\\x1f]{0,30}") {
            let written = format!(
                "postgresql://{}:{}@h:5433/d",
                utf8_percent_encode(&user, STRICT),
                utf8_percent_encode(&password, STRICT)
            );
            let url = parse(&written);
            prop_assert_eq!(&url.user, &user);
            prop_assert_eq!(&url.password.as_ref().unwrap().decoded, &password);
        }

        #[test]
        fn no_form_of_the_password_survives_redaction(password in "[a-zA-Z0-9@%/\" ]{4,20}") {
            let strict = utf8_percent_encode(&password, STRICT).to_string();
            let written = format!("postgresql://u:{strict}@h/d");
            let url = parse(&written);
            let redacted = url.redact(&format!("{written} {password} {strict} {url:?}"));
            prop_assert!(!redacted.contains(&password));
            prop_assert!(!redacted.contains(&strict));
        }

        #[test]
        fn no_text_makes_the_parser_fail_other_than_by_an_error(text in "\\PC{0,60}") {
            let _ = text.parse::<DatabaseUrl>();
            let _ = format!("postgresql://{text}").parse::<DatabaseUrl>();
        }
    }
}
