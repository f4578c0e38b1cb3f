//! SQLAlchemy's SQLite URLs, read as SQLAlchemy and its driver read them: which file, and relative to what.

use std::path::{Component, Path, PathBuf};

/// Why a URL is refused. Quotes nothing of it but driver and path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqliteUrlError {
    #[error(
        "it names a database in memory, which ends with its process; give the Server a file on a claim: sqlite:////data/memoria.db"
    )]
    InMemory,
    #[error("it names the file by file:…?uri=true; write its absolute path instead: sqlite:////data/memoria.db")]
    FileUri,
    #[error("driver {0:?} is not known; write sqlite:////data/memoria.db")]
    Driver(String),
    #[error("an SQLite URL has no host; a path begins after three slashes: sqlite:////data/memoria.db")]
    Host,
    #[error(
        "{0:?} is relative to a working directory that nobody states; write the absolute path, e.g. sqlite:////data/memoria.db, or set workingDir of the Server's container"
    )]
    Relative(String),
    #[error("its path contains a line break or a zero byte")]
    ControlCharacter,
}

/// A URL of an SQLite file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteUrl {
    /// As written: SQLAlchemy decodes nothing in it.
    path: String,
}

impl SqliteUrl {
    /// Whether a URL's scheme is SQLite's, whatever the driver.
    pub fn is_meant(text: &str) -> bool {
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        scheme == "sqlite" || scheme.starts_with("sqlite+")
    }

    pub fn parse(text: &str) -> Result<Self, SqliteUrlError> {
        let (scheme, rest) = text.trim_end_matches(['\n', '\r']).split_once("://").unwrap_or_default();
        if !matches!(scheme, "sqlite" | "sqlite+pysqlite" | "sqlite+aiosqlite") {
            let driver = scheme.strip_prefix("sqlite+").unwrap_or(scheme);
            return Err(SqliteUrlError::Driver(driver.to_owned()));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_once('/').unwrap_or((place, ""));
        if !authority.is_empty() {
            return Err(SqliteUrlError::Host);
        }
        let in_memory = query.split('&').any(|pair| pair == "mode=memory");
        if path.is_empty() || path == ":memory:" || in_memory {
            return Err(SqliteUrlError::InMemory);
        }
        if path.starts_with("file:") {
            return Err(SqliteUrlError::FileUri);
        }
        if path.contains(['\n', '\r', '\0']) {
            return Err(SqliteUrlError::ControlCharacter);
        }
        Ok(Self { path: path.to_owned() })
    }

    /// The absolute path, without `.` and `..`, as `os.path.abspath` gives it.
    pub fn resolve(&self, working_directory: Option<&str>) -> Result<PathBuf, SqliteUrlError> {
        let written = Path::new(&self.path);
        let base = working_directory.filter(|directory| directory.starts_with('/'));
        let whole = match (written.is_absolute(), base) {
            (true, _) => written.to_owned(),
            (false, Some(base)) => Path::new(base).join(written),
            (false, None) => return Err(SqliteUrlError::Relative(self.path.clone())),
        };
        let mut path = PathBuf::from("/");
        for part in whole.components() {
            match part {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => drop(path.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(url: &str, working_directory: Option<&str>) -> Result<String, SqliteUrlError> {
        let path = SqliteUrl::parse(url)?.resolve(working_directory)?;
        Ok(path.to_string_lossy().into_owned())
    }

    #[test]
    fn a_url_names_its_file_as_sqlalchemy_reads_it() {
        for (url, directory, path) in [
            ("sqlite:////data/memoria.db", None, "/data/memoria.db"),
            ("sqlite+pysqlite:////data/a%20b@c.db?timeout=5", None, "/data/a%20b@c.db"),
            ("sqlite:///memoria.db", Some("/srv/app"), "/srv/app/memoria.db"),
            ("sqlite:///./x/../memoria.db\n", Some("/srv/app/"), "/srv/app/memoria.db"),
            ("sqlite:////data//x/./../memoria.db", Some("/srv"), "/data/memoria.db"),
        ] {
            assert_eq!(resolve(url, directory).as_deref(), Ok(path), "{url}");
        }
    }

    #[test]
    fn what_is_no_file_on_a_volume_is_refused_by_name() {
        for (url, error) in [
            ("sqlite://", SqliteUrlError::InMemory),
            ("sqlite:///", SqliteUrlError::InMemory),
            ("sqlite:///:memory:", SqliteUrlError::InMemory),
            ("sqlite:///file:memoria.db?uri=true", SqliteUrlError::FileUri),
            ("sqlite:///file:x?mode=memory&uri=true", SqliteUrlError::InMemory),
            ("sqlite://data/memoria.db", SqliteUrlError::Host),
            ("sqlite+pysqlcipher:////data/memoria.db", SqliteUrlError::Driver("pysqlcipher".to_owned())),
            ("sqlite:///memoria.db", SqliteUrlError::Relative("memoria.db".to_owned())),
        ] {
            assert_eq!(resolve(url, None), Err(error), "{url}");
        }
        assert!(SqliteUrl::is_meant("sqlite+pysqlite:///x") && !SqliteUrl::is_meant("sqlitex:///x"));
    }
}
