//! Takes an SQLAlchemy database URL apart the way SQLAlchemy does, so that a command gets it without its password.

use std::fmt::Write as _;

/// Drivers that leave the password to libpq's password file.
const READS_PASSFILE: [&str; 7] = [
    "postgresql",
    "postgres",
    "postgresql+psycopg2",
    "postgresql+psycopg2cffi",
    "postgresql+psycopg",
    "postgresql+psycopg_async",
    "postgresql+asyncpg",
];

/// A database URL; its `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    scheme: String,
    /// As written, percent-encoded.
    user: Option<String>,
    password: Option<String>,
    /// Host, port and path as written.
    place: String,
    /// As written, each percent-encoded.
    query: Vec<(String, String)>,
}

/// Why a URL cannot be used. Shows no part of it but the scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UrlError {
    NoScheme,
    Driver(String),
    QuerySecret(&'static str),
}

impl std::fmt::Display for UrlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoScheme => f.write_str(
                "the database URL has no `scheme://`; write one as SQLAlchemy does, e.g. \
                 postgresql://user@host:5432/name",
            ),
            Self::Driver(driver) => write!(
                f,
                "the database URL's driver {driver} does not read libpq's password file, and a password in a command \
                 line is readable for all; use postgresql:// , postgresql+psycopg2:// or postgresql+psycopg://"
            ),
            Self::QuerySecret(key) => write!(
                f,
                "the database URL carries {key} in its query, which would be readable in a command line; use a file \
                 instead"
            ),
        }
    }
}

impl std::error::Error for UrlError {}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DatabaseUrl({})", self.without_password())
    }
}

impl DatabaseUrl {
    /// Splits by the rules of `sqlalchemy.engine.url`: the user ends at the first `:` or the last `@` before a `/`, the
    /// password at the first `@` after it and may hold anything else.
    ///
    /// # Errors
    /// [`UrlError::NoScheme`]
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(UrlError::NoScheme)?;
        if scheme.is_empty() || !scheme.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '+') {
            return Err(UrlError::NoScheme);
        }
        let run = rest.find([':', '/']).unwrap_or(rest.len());
        let with_password = rest[run..].strip_prefix(':').and_then(|after| after.split_once('@'));
        let (user, password, rest) = match (with_password, rest[..run].rfind('@')) {
            (Some((password, rest_of)), _) => (Some(&rest[..run]), Some(password), rest_of),
            (None, Some(at)) => (Some(&rest[..at]), None, &rest[at + 1..]),
            (None, None) => (None, None, rest),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let in_query = query.iter().find(|(key, _)| key == "password").map(|(_, value)| value.clone());
        Ok(Self {
            scheme: scheme.to_owned(),
            user: user.filter(|user| !user.is_empty()).map(str::to_owned),
            password: password.map(str::to_owned).or(in_query),
            place: place.to_owned(),
            query: query.into_iter().filter(|(key, _)| key != "password").collect(),
        })
    }

    /// Refuses what would put a secret into a command line.
    ///
    /// # Errors
    /// [`UrlError::Driver`] for a password with a driver that does not read it from a file, [`UrlError::QuerySecret`]
    /// for secrets in the query.
    pub fn check_handover(&self) -> Result<(), UrlError> {
        if self.query.iter().any(|(key, _)| key == "sslpassword") {
            return Err(UrlError::QuerySecret("sslpassword"));
        }
        let secret = self.password.as_ref().is_some_and(|p| !p.is_empty());
        if secret && !READS_PASSFILE.contains(&self.scheme.as_str()) {
            return Err(UrlError::Driver(self.scheme.clone()));
        }
        Ok(())
    }

    /// As written, percent-encoded or not.
    pub fn raw_password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// As the server knows it.
    pub fn password(&self) -> Option<Vec<u8>> {
        self.password.as_deref().map(percent_decode)
    }

    pub fn is_postgresql(&self) -> bool {
        self.scheme == "postgres" || self.scheme == "postgresql" || self.scheme.starts_with("postgresql+")
    }

    pub fn is_sqlite(&self) -> bool {
        self.scheme == "sqlite" || self.scheme.starts_with("sqlite+")
    }

    /// The same URL for a command line.
    pub fn without_password(&self) -> String {
        let mut url = format!("{}://", self.scheme);
        if let Some(user) = &self.user {
            url.push_str(user);
            url.push('@');
        }
        url.push_str(&self.place);
        for (at, (key, value)) in self.query.iter().enumerate() {
            // Writing into a String cannot fail.
            let _ = write!(url, "{}{key}={value}", if at == 0 { '?' } else { '&' });
        }
        url
    }

    /// Takes out what would win over the environment variables that the runner sets: libpq prefers a URL's parameters.
    /// `options` are kept, with ours after them.
    pub fn yield_to_environment(&mut self, options: &str) {
        self.query.retain(|(key, _)| !matches!(key.as_str(), "application_name" | "passfile"));
        for (key, value) in &mut self.query {
            if key == "options" {
                value.push_str(&percent_encode(&format!(" {options}"), |_| false));
            }
        }
    }
}

/// One line of libpq's password file, for whatever host, database and user the command's one URL names.
pub fn pgpass_line(password: &[u8]) -> Vec<u8> {
    let mut line = b"*:*:*:*:".to_vec();
    for byte in password {
        if matches!(byte, b':' | b'\\') {
            line.push(b'\\');
        }
        line.push(*byte);
    }
    line.push(b'\n');
    line
}

/// `%41` becomes `A`; what is no such escape stays.
fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let pair = bytes.get(at + 1).copied().and_then(hex_digit).zip(bytes.get(at + 2).copied().and_then(hex_digit));
        match (byte, pair) {
            (b'%', Some((high, low))) => {
                decoded.push(high << 4 | low);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Encodes all but letters, digits, `-._~` and what `keep` names.
pub(crate) fn percent_encode(text: &str, keep: impl Fn(u8) -> bool) -> String {
    text.bytes().fold(String::with_capacity(text.len() * 3), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep(byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::{DatabaseUrl, UrlError, pgpass_line};

    fn parse(text: &str) -> DatabaseUrl {
        DatabaseUrl::parse(text).unwrap()
    }

    #[test]
    fn the_password_leaves_the_url_and_all_else_stays() {
        for (url, without, password) in [
            ("postgresql://u:p%40s%2Fs@db:5432/m?sslmode=require", "postgresql://u@db:5432/m?sslmode=require", "p@s/s"),
            ("postgresql+psycopg2://u:a/b:c d\"e@db/m", "postgresql+psycopg2://u@db/m", "a/b:c d\"e"),
            ("postgresql://u@corp:pw@db/m", "postgresql://u@corp@db/m", "pw"),
            ("postgresql://u:%zz%4@[::1]:5432/m", "postgresql://u@[::1]:5432/m", "%zz%4"),
            ("postgresql://u@/m?host=/run/pg&password=p%20w&x=1", "postgresql://u@/m?host=/run/pg&x=1", "p w"),
            ("postgresql://:pw@db/m", "postgresql://db/m", "pw"),
        ] {
            let parsed = parse(url);
            assert_eq!(parsed.without_password(), without);
            assert_eq!(parsed.password().unwrap(), password.as_bytes(), "{url}");
            assert!(!format!("{parsed:?}").contains(password));
        }
    }

    #[test]
    fn a_url_without_password_stays_as_it_is() {
        assert!(parse("sqlite+pysqlite:///m.db").is_sqlite() && !parse("postgresql:///m").is_sqlite());
        for url in [
            "postgresql://u@db/m",
            "postgresql:///m",
            "sqlite:////data/m.db",
            "sqlite:///a@b/m.db?x=1",
            "postgresql://db:5432/m?a=b",
        ] {
            assert_eq!(parse(url).password(), None, "{url}");
            assert_eq!(parse(url).without_password(), url);
        }
    }

    #[test]
    fn a_driver_that_needs_the_password_in_its_url_is_refused() {
        let refused = parse("postgresql+pg8000://u:pw@db/m").check_handover();
        assert_eq!(refused, Err(UrlError::Driver("postgresql+pg8000".to_owned())));
        assert_eq!(parse("postgresql+pg8000://u@db/m").check_handover(), Ok(()));
        assert_eq!(parse("postgresql+psycopg://u:pw@db/m").check_handover(), Ok(()));
        assert!(parse("postgresql://u@db/m?sslpassword=x").check_handover().is_err());
        assert_eq!(DatabaseUrl::parse("u:pw@db"), Err(UrlError::NoScheme));
    }

    #[test]
    fn parameters_that_would_win_over_the_environment_give_way() {
        let mut url = parse("postgresql://u@db/m?application_name=x&options=-c%20a%3Db&passfile=/x&sslmode=disable");
        url.yield_to_environment("-c lock_timeout=30s");
        let expected = "postgresql://u@db/m?options=-c%20a%3Db%20-c%20lock_timeout%3D30s&sslmode=disable";
        assert_eq!(url.without_password(), expected);
    }

    #[test]
    fn the_password_file_escapes_what_libpq_splits_at() {
        assert_eq!(pgpass_line(br"a:b\c@d"), b"*:*:*:*:a\\:b\\\\c@d\n");
    }
}
