//! The operator's own configuration: one YAML file, read once at start. Unknown fields are refused, and what is wrong
//! is told with field, line and fix. `config.example.yaml` shows every field with its default.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_saphyr::Spanned;

use crate::{api::GoDuration, cluster::client::REQUEST_DEADLINE};

/// Everything that can be set. Absent fields have their default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Namespaces whose releases are carried out; empty means all of them.
    pub watch_namespaces: Vec<String>,
    /// The image that this operator runs from: Jobs take the runner and the checks from it.
    pub operator_image: String,
    /// The tool image of each PostgreSQL major version; a server of another major fails pre-flight.
    pub tool_images: BTreeMap<String, String>,
    pub leader_election: LeaderElection,
    pub metrics: Listener,
    pub health: Listener,
    pub log: Log,
}

/// How replicas of the operator agree on the one that acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaderElection {
    /// The Lease's name.
    pub lease_name: String,
    /// The Lease's namespace; absent means the operator's own.
    pub namespace: Option<String>,
    /// How long a leader that fell silent keeps its place.
    pub lease_duration: GoDuration,
    /// How long a leader tries to renew before it stops acting.
    pub renew_deadline: GoDuration,
    /// Time between two tries.
    pub retry_period: GoDuration,
}

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// IP address and port.
    pub listen: SocketAddr,
}

/// What the operator logs, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
    /// A level, or levels by module: `info`, or `info,kube=debug`.
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Default for Config {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let tools =
            |major: &str| (major.to_owned(), format!("registry.arca.run/memoria-operator/tools:{version}-pg{major}"));
        Self {
            watch_namespaces: Vec::new(),
            operator_image: format!("registry.arca.run/memoria-operator/operator:{version}"),
            tool_images: [tools("15"), tools("17")].into(),
            leader_election: LeaderElection::default(),
            metrics: Listener { listen: ([0, 0, 0, 0], 8080).into() },
            health: Listener { listen: ([0, 0, 0, 0], 8081).into() },
            log: Log::default(),
        }
    }
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            lease_name: "memoria-operator".to_owned(),
            namespace: None,
            lease_duration: GoDuration::from_secs(30),
            renew_deadline: GoDuration::from_secs(20),
            retry_period: GoDuration::from_secs(4),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: "info".to_owned() }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}; name a readable file with --config", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// No YAML, an unknown field, or a value of another type. The text carries line and column.
    #[error("{}: {message}", path.display())]
    Malformed { path: PathBuf, message: String },
    #[error("{}: {}", path.display(), list(problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

/// One value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, as a path from the root.
    pub field: String,
    /// The line that sets it, from 1; absent when a default is in the way.
    pub line: Option<u64>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}: {}", self.field, self.message),
            None => write!(f, "{} (its default): {}", self.field, self.message),
        }
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

impl Config {
    /// Reads and validates a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Validates `text`; `path` is what errors call it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        // A file of comments only is YAML's null: nothing set, so all defaults.
        let parsed: Option<Self> = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::Malformed { path: path.to_owned(), message: error.to_string() })?;
        let config = parsed.unwrap_or_default();
        let mut problems = config.problems();
        if problems.is_empty() {
            return Ok(config);
        }
        let lines = Lines::of(text);
        for problem in &mut problems {
            problem.line = lines.find(&problem.field);
        }
        Err(ConfigError::Invalid { path: path.to_owned(), problems })
    }

    /// The whole configuration with its defaults, as YAML.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        serde_saphyr::to_string(self)
    }

    /// All that is wrong, without lines.
    fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut add = |field: String, message: String| found.push(Problem { field, line: None, message });

        for (i, name) in self.watch_namespaces.iter().enumerate() {
            if !is_dns_label(name) {
                add(format!("watchNamespaces[{i}]"), format!("{name:?} is no namespace; {DNS_LABEL}"));
            }
        }
        if let Err(why) = image_problem(&self.operator_image) {
            add("operatorImage".to_owned(), why);
        }
        if self.tool_images.is_empty() {
            add("toolImages".to_owned(), "name at least one, e.g. \"15\": registry.example/tools:15".to_owned());
        }
        for (major, image) in &self.tool_images {
            let field = format!("toolImages.{major}");
            if !major.parse::<u16>().is_ok_and(|n| (10..100).contains(&n)) {
                add(field.clone(), format!("{major:?} is no PostgreSQL major version; write e.g. \"15\""));
            }
            if let Err(why) = image_problem(image) {
                add(field, why);
            }
        }
        if let Err(why) = tracing_subscriber::EnvFilter::builder().parse(&self.log.level) {
            add("log.level".to_owned(), format!("{why}; write a level such as info, or info,kube=debug"));
        }
        if self.metrics.listen == self.health.listen && self.metrics.listen.port() != 0 {
            add("health.listen".to_owned(), "is the same as metrics.listen; give it a port of its own".to_owned());
        }

        let election = &self.leader_election;
        if !is_dns_subdomain(&election.lease_name) {
            let name = &election.lease_name;
            add("leaderElection.leaseName".to_owned(), format!("{name:?} is no object name; {DNS_LABEL}"));
        }
        if let Some(namespace) = election.namespace.as_deref().filter(|n| !is_dns_label(n)) {
            add("leaderElection.namespace".to_owned(), format!("{namespace:?} is no namespace; {DNS_LABEL}"));
        }
        if election.retry_period.get() < Duration::from_secs(1) {
            add("leaderElection.retryPeriod".to_owned(), "must be at least 1s".to_owned());
        }
        if election.renew_deadline.get() <= election.retry_period.get() * 2 {
            add(
                "leaderElection.renewDeadline".to_owned(),
                format!(
                    "must be longer than twice retryPeriod ({}): one lost try may not end the term",
                    election.retry_period
                ),
            );
        }
        let margin = election.lease_duration.get().saturating_sub(election.renew_deadline.get());
        if margin < REQUEST_DEADLINE {
            add(
                "leaderElection.leaseDuration".to_owned(),
                format!(
                    "must be at least {}s longer than renewDeadline ({}): the last request of a leader that lost its \
                     place has to end before another begins",
                    REQUEST_DEADLINE.as_secs(),
                    election.renew_deadline
                ),
            );
        }
        found
    }
}

const DNS_LABEL: &str = "use lower-case letters, digits and '-', beginning and ending with a letter or digit";

fn is_dns_label(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}

/// Only what would be noticed too late, when a Job's pod cannot start.
fn image_problem(image: &str) -> Result<(), String> {
    if image.is_empty() || image.contains(char::is_whitespace) || image.contains("://") {
        return Err(format!(
            "{image:?} is no image; write repository:tag or, better, repository@sha256:<64 hex digits>"
        ));
    }
    let Some((_, digest)) = image.split_once('@') else {
        let name = image.rsplit('/').next().unwrap_or(image);
        return if name.contains(':') {
            Ok(())
        } else {
            Err(format!("{image:?} has neither tag nor digest; pin it, e.g. {image}@sha256:<64 hex digits>"))
        };
    };
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        Ok(())
    } else {
        Err(format!("the digest in {image:?} is not sha256: and 64 lower-case hex digits"))
    }
}

/// Where each value stands in the text.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Lines {
    watch_namespaces: Option<Spanned<Vec<Spanned<IgnoredAny>>>>,
    operator_image: Option<Spanned<IgnoredAny>>,
    tool_images: Option<Section>,
    leader_election: Option<Section>,
    health: Option<Section>,
    log: Option<Section>,
}

type Section = Spanned<BTreeMap<String, Spanned<IgnoredAny>>>;

impl Lines {
    /// Of a text that was already read as a [`Config`]; lines are a help only, so that none is better than an error.
    fn of(text: &str) -> Self {
        serde_saphyr::from_str::<Option<Self>>(text).ok().flatten().unwrap_or_default()
    }

    fn find(&self, field: &str) -> Option<u64> {
        let (section, rest) = field.split_once(['.', '[']).unwrap_or((field, ""));
        let section = match section {
            "watchNamespaces" => {
                let list = self.watch_namespaces.as_ref()?;
                let item = list.value.get(rest.trim_end_matches(']').parse::<usize>().ok()?)?;
                return Some(item.referenced.line());
            }
            "operatorImage" => return Some(self.operator_image.as_ref()?.referenced.line()),
            "toolImages" => self.tool_images.as_ref()?,
            "leaderElection" => self.leader_election.as_ref()?,
            "health" => self.health.as_ref()?,
            "log" => self.log.as_ref()?,
            _ => return None,
        };
        Some(section.value.get(rest).map_or(section.referenced.line(), |value| value.referenced.line()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("operator.yaml")).map_err(|e| e.to_string())
    }

    fn refused(text: &str) -> String {
        parse(text).expect_err(text)
    }

    #[test]
    fn the_example_has_every_field_with_its_default() {
        let text = include_str!("../config.example.yaml");
        assert_eq!(parse(text).unwrap(), Config::default());
        let written: serde_json::Value = serde_saphyr::from_str(text).unwrap();
        assert_eq!(written, serde_json::to_value(Config::default()).unwrap());
    }

    #[test]
    fn every_field_of_the_example_has_a_comment() {
        let text = include_str!("../config.example.yaml");
        let mut commented = false;
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            let is_comment = line.starts_with('#');
            assert!(is_comment || line.is_empty() || commented, "line {}: {line:?} has no comment above it", n + 1);
            // The entries of toolImages share one comment.
            commented = is_comment || (commented && line.starts_with(['"', 't']));
        }
    }

    #[test]
    fn nothing_set_means_the_defaults() {
        for text in ["", "# nothing\n", "{}"] {
            assert_eq!(parse(text).unwrap(), Config::default(), "{text:?}");
        }
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        let text = "watchNamespaces: [memoria, \"on\"]\nlog: {format: Text, level: \"info,kube=debug\"}\n";
        let config = parse(text).unwrap();
        assert_eq!(parse(&config.to_yaml().unwrap()).unwrap(), config);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line_and_the_known_ones() {
        let message = refused("log:\n  format: Json\n  colour: true\n");
        for part in ["operator.yaml", "colour", "line 3", "level"] {
            assert!(message.contains(part), "no {part:?} in {message}");
        }
    }

    #[test]
    fn a_bad_value_is_told_with_its_line_and_an_example() {
        let message = refused("leaderElection:\n  retryPeriod: 8\n");
        assert!(message.contains("line 2") && message.contains("45s"), "{message}");
        let message = refused("metrics:\n  listen: \":8080\"\n");
        assert!(message.contains("line 2") && message.contains("socket address"), "{message}");
    }

    #[test]
    fn each_problem_names_field_line_and_fix() {
        let digest = "a".repeat(63);
        let cases = [
            ("watchNamespaces:\n- memoria\n- Memoria\n", "line 3: watchNamespaces[1]: \"Memoria\" is no namespace"),
            ("operatorImage: memoria/operator\n", "line 1: operatorImage: \"memoria/operator\" has neither tag"),
            ("operatorImage: host:5000/operator\n", "line 1: operatorImage: \"host:5000/operator\" has neither tag"),
            ("operatorImage: \"\"\n", "line 1: operatorImage: \"\" is no image"),
            (&format!("\noperatorImage: a@sha256:{digest}\n"), "line 2: operatorImage: the digest in"),
            ("toolImages: {}\n", "line 1: toolImages: name at least one"),
            ("toolImages:\n  \"15\": t:15\n  nine: t:9\n", "line 3: toolImages.nine: \"nine\" is no PostgreSQL major"),
            ("log:\n  level: \"loud=very=\"\n", "line 2: log.level:"),
            ("health:\n  listen: 0.0.0.0:8080\n", "line 2: health.listen: is the same as metrics.listen"),
            ("leaderElection:\n  leaseName: A_B\n", "line 2: leaderElection.leaseName: \"A_B\" is no object name"),
            ("leaderElection:\n  namespace: a.b\n", "line 2: leaderElection.namespace: \"a.b\" is no namespace"),
            ("leaderElection:\n  retryPeriod: 0s\n", "line 2: leaderElection.retryPeriod: must be at least 1s"),
            (
                "leaderElection:\n  retryPeriod: 10s\n",
                "line 2: leaderElection.renewDeadline: must be longer than twice",
            ),
            (
                "leaderElection:\n  leaseDuration: 24s\n",
                "line 2: leaderElection.leaseDuration: must be at least 5s longer",
            ),
            ("metrics:\n  listen: 0.0.0.0:8081\n", "health.listen (its default): is the same"),
        ];
        for (text, expected) in cases {
            let message = refused(text);
            assert!(message.contains(expected), "{text:?}: {message}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let message = refused("operatorImage: x\nlog: {level: \"a=b=c\"}\n");
        assert!(message.contains("operatorImage") && message.contains("log.level"), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = Config::load(Path::new("/nowhere/operator.yaml")).unwrap_err().to_string();
        assert!(message.contains("/nowhere/operator.yaml") && message.contains("--config"), "{message}");
    }
}
