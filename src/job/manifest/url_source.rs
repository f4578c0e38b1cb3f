//! Where a Job's database URL comes from: the Server's own reference to it, copied as it stands. The operator sees
//! names of Secrets, never what is in them; what it could see (a password written into the template) it refuses.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, SecretKeySelector};
use memoria_runner::url::DatabaseUrl;

use crate::{api::release::UrlFrom, job::protocol::DATABASE_URL_ENV};

/// How deep literals may refer to each other.
const MAX_DEPTH: usize = 8;
/// Stands for a value that the kubelet will put in. No URL contains it.
const UNSEEN: char = '\u{1}';

/// Why the URL's source cannot be copied. Never shows a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("database.urlFrom is empty; set database.urlFrom.env or database.urlFrom.secretKeyRef")]
    NoSource,
    #[error(
        "container {container:?} has no environment entry {name}; name the entry in database.urlFrom.env, or the \
         Secret in database.urlFrom.secretKeyRef. If it has no URL at all, Memoria writes an SQLite file into its own \
         working directory, which is lost with the pod: put the file on a claim and set the entry, e.g. \
         {name}=sqlite:////data/memoria.db"
    )]
    Missing { container: String, name: String },
    #[error(
        "container {container:?} has no environment entry {name}, but it has envFrom, whose keys the operator does not \
         read; name the Secret and key in database.urlFrom.secretKeyRef"
    )]
    EnvFrom { container: String, name: String },
    #[error(
        "environment entry {name} of container {container:?} is a literal with a password in it, which would be copied \
         into plan and Jobs; move it into a Secret and name that in database.urlFrom.secretKeyRef"
    )]
    LiteralPassword { container: String, name: String },
    #[error(
        "environment entry {name} of container {container:?} comes from the pod itself (fieldRef, resourceFieldRef or \
         fileKeyRef), which says nothing in a Job's pod; name the Secret in database.urlFrom.secretKeyRef"
    )]
    OfThePod { container: String, name: String },
    #[error(
        "environment entry {name} of container {container:?} refers to entries that refer to each other; name the \
         Secret in database.urlFrom.secretKeyRef"
    )]
    TooDeep { container: String, name: String },
    #[error("environment entry {name} of container {container:?} is empty; it must hold the database's URL")]
    Empty { container: String, name: String },
}

/// What a pod template shows of the database's URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UrlSeen {
    /// It comes from a Secret or a ConfigMap.
    #[default]
    Hidden,
    /// A server, whatever of the URL is hidden.
    Server,
    /// Neither PostgreSQL nor SQLite: its scheme.
    Unknown(String),
    /// A file: its path as written, where the template shows it.
    Sqlite(Option<String>),
}

impl UrlSeen {
    fn of(url: &str) -> Self {
        let Some((scheme, rest)) = url.trim().split_once("://").filter(|(scheme, _)| !scheme.contains(UNSEEN)) else {
            return Self::Hidden;
        };
        match scheme.split('+').next() {
            Some("sqlite") => {}
            // `postgres` is one that Inspect has a better answer for.
            Some("postgresql" | "postgres") => return Self::Server,
            Some(_) if is_scheme(scheme) => return Self::Unknown(scheme.to_owned()),
            _ => return Self::Server,
        }
        // As SQLAlchemy reads it: what follows the slash after an empty host, up to the query.
        let path = rest.split_once('?').map_or(rest, |(path, _)| path);
        let path = path.strip_prefix('/').unwrap_or_default();
        // A path in the form of a URI has rules of its own, which the Job that opens it knows.
        Self::Sqlite((!path.contains(UNSEEN) && !path.starts_with("file:")).then(|| path.to_owned()))
    }
}

/// What is none belongs to a mangled URL, of which nothing is repeated.
fn is_scheme(text: &str) -> bool {
    text.len() <= 32 && text.chars().all(|c| c.is_ascii_alphanumeric() || "+._-".contains(c))
}

/// The entries that give a Job its URL, in the order in which the kubelet must read them, and what shows of it.
pub(super) fn database_env(container: &Container, url_from: &UrlFrom) -> Result<(Vec<EnvVar>, UrlSeen), UrlError> {
    if let Some(key) = &url_from.secret_key_ref {
        let reference = SecretKeySelector { name: key.name.clone(), key: key.key.clone(), optional: None };
        let entry = EnvVar {
            name: DATABASE_URL_ENV.to_owned(),
            value_from: Some(EnvVarSource { secret_key_ref: Some(reference), ..EnvVarSource::default() }),
            value: None,
        };
        return Ok((vec![entry], UrlSeen::Hidden));
    }
    let name = url_from.env.as_deref().ok_or(UrlError::NoSource)?;
    let source = Source::new(container);
    let mut needed = BTreeMap::new();
    let seen = source.resolve(name, 0, &mut needed)?;
    if seen.is_empty() {
        return Err(UrlError::Empty { container: container.name.clone(), name: name.to_owned() });
    }
    let password = DatabaseUrl::parse(&seen).ok().and_then(|url| url.raw_password().map(str::to_owned));
    if password.is_some_and(|p| !p.is_empty() && !p.contains(UNSEEN)) {
        return Err(UrlError::LiteralPassword { container: container.name.clone(), name: name.to_owned() });
    }
    // The kubelet expands a reference only to an entry that stands before it, as it did in the Server's own list.
    let (_, url) = needed.remove(name).map_or_else(|| (0, EnvVar::default()), |(at, entry)| (at, entry));
    let mut entries: Vec<(usize, EnvVar)> = needed.into_values().collect();
    entries.sort_by_key(|(at, _)| *at);
    let mut env: Vec<EnvVar> = entries.into_iter().map(|(_, entry)| entry).collect();
    env.push(EnvVar { name: DATABASE_URL_ENV.to_owned(), ..url });
    Ok((env, UrlSeen::of(&seen)))
}

/// A container's environment as the kubelet reads it: of two entries of one name, the last one counts.
struct Source<'a> {
    container: &'a Container,
    entries: BTreeMap<&'a str, (usize, &'a EnvVar)>,
}

impl<'a> Source<'a> {
    fn new(container: &'a Container) -> Self {
        let env = container.env.as_deref().unwrap_or_default();
        Self { container, entries: env.iter().enumerate().map(|(at, e)| (e.name.as_str(), (at, e))).collect() }
    }

    /// The value as far as the template shows it, with [`UNSEEN`] for the rest. Collects the entries it needs.
    fn resolve(
        &self,
        name: &str,
        depth: usize,
        needed: &mut BTreeMap<String, (usize, EnvVar)>,
    ) -> Result<String, UrlError> {
        let (container, name) = (self.container.name.clone(), name.to_owned());
        if depth > MAX_DEPTH {
            return Err(UrlError::TooDeep { container, name });
        }
        let Some((at, entry)) = self.entries.get(name.as_str()) else {
            return Err(if self.container.env_from.as_ref().is_some_and(|from| !from.is_empty()) {
                UrlError::EnvFrom { container, name }
            } else {
                UrlError::Missing { container, name }
            });
        };
        needed.insert(name.clone(), (*at, (*entry).clone()));
        if let Some(source) = &entry.value_from {
            return if source.secret_key_ref.is_some() || source.config_map_key_ref.is_some() {
                Ok(UNSEEN.to_string())
            } else {
                Err(UrlError::OfThePod { container, name })
            };
        }
        let mut seen = String::new();
        for part in parts(entry.value.as_deref().unwrap_or_default()) {
            match part {
                Part::Text(text) => seen.push_str(text),
                Part::Reference(other) => seen.push_str(&self.resolve(other, depth + 1, needed)?),
            }
        }
        Ok(seen)
    }
}

enum Part<'a> {
    Text(&'a str),
    Reference(&'a str),
}

/// Kubernetes' own rule: `$(NAME)` is a reference, `$$` is a dollar sign, anything else stands for itself.
fn parts(value: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        parts.push(Part::Text(&rest[..at]));
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix('$') {
            parts.push(Part::Text("$"));
            rest = next;
        } else if let Some((name, next)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            parts.push(Part::Reference(name));
            rest = next;
        } else {
            parts.push(Part::Text("$"));
            rest = after;
        }
    }
    parts.push(Part::Text(rest));
    parts
}
