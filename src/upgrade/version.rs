//! Versions: semver, or PEP 440 as Python projects write it, mapped onto one order.

use std::{cmp::Ordering, fmt, str::FromStr};

/// A release's version. `1.0`, `1.0.0`, `v1.0.0` are the same; pre-releases come before their release and post-releases
/// after it. Other suffixes (`1.0.1-hotfix`) are pre-releases by semver's rule.
#[derive(Clone, Debug)]
pub struct Version {
    text: String,
    numbers: Vec<u64>,
    pre: Option<Vec<Part>>,
    post: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

/// Why a text is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version that can be compared: write numbers, e.g. 1.0.0, 1.1.0-rc.1 or 0.9.0a0")]
pub struct BadVersion(String);

impl FromStr for Version {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadVersion(text.to_owned());
        let body = text.strip_prefix(['v', 'V']).unwrap_or(text);
        // Build metadata does not order.
        let body = body.split('+').next().unwrap_or(body);
        let end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
        let (numbers, suffix) = body.split_at(end);
        let numbers = numbers.strip_suffix('.').unwrap_or(numbers);
        let mut numbers =
            numbers.split('.').map(|n| n.parse::<u64>().map_err(|_| bad())).collect::<Result<Vec<_>, _>>()?;
        while numbers.len() > 1 && numbers.last() == Some(&0) {
            numbers.pop();
        }
        let suffix = suffix.trim_start_matches(['-', '_', '.']);
        let (pre, post) = match suffix.strip_prefix("post") {
            _ if suffix.is_empty() => (None, None),
            Some(post) => (None, Some(post.trim_start_matches('.').parse().map_err(|_| bad())?)),
            None => (Some(parts(suffix).ok_or_else(bad)?), None),
        };
        Ok(Self { text: text.to_owned(), numbers, pre, post })
    }
}

/// `rc.1` and `rc1` alike: runs of digits and of letters, PEP 440's short names spelled out.
fn parts(suffix: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut rest = suffix;
    while let Some(first) = rest.chars().next() {
        if matches!(first, '.' | '-' | '_') {
            rest = &rest[1..];
            continue;
        }
        let digits = first.is_ascii_digit();
        let end = rest
            .find(|c: char| c.is_ascii_digit() != digits || !c.is_ascii_alphanumeric())
            .filter(|end| *end > 0)
            .unwrap_or(if first.is_ascii_alphanumeric() { rest.len() } else { return None });
        let (run, tail) = rest.split_at(end);
        parts.push(match (digits, run) {
            (true, run) => Part::Number(run.parse().ok()?),
            (false, "a") => Part::Word("alpha".to_owned()),
            (false, "b") => Part::Word("beta".to_owned()),
            (false, "c") => Part::Word("rc".to_owned()),
            (false, "dev") => Part::Word("Dev".to_owned()),
            (false, word) => Part::Word(word.to_ascii_lowercase()),
        });
        rest = tail;
    }
    Some(parts)
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers
            .cmp(&other.numbers)
            .then_with(|| match (&self.pre, &other.pre) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) => a.cmp(b),
            })
            .then_with(|| self.post.cmp(&other.post))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_are_ordered_as_their_makers_mean_it() {
        let ordered = [
            "0.9.0.dev1",
            "0.9.0a0",
            "0.9.0a1",
            "0.9.0b1",
            "0.9.0rc1",
            "0.9.0",
            "0.9.0.post1",
            "0.9.1",
            "0.10.0",
            "1.0.0-alpha.1",
            "1.0.0-rc.1",
            "1.0.0-rc.2",
            "1.0.0",
            "1.0.1-hotfix",
            "1.0.1",
            "2",
        ];
        let parsed: Vec<Version> = ordered.iter().map(|text| text.parse().unwrap()).collect();
        for pair in parsed.windows(2) {
            assert!(pair[0] < pair[1], "{} < {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn the_same_version_may_be_written_in_several_ways() {
        for (a, b) in [("1.0", "1.0.0"), ("v1.0.0", "1.0.0"), ("1.0.0rc1", "1.0.0-rc.1"), ("1.0.0+build5", "1.0.0")] {
            assert_eq!(a.parse::<Version>().unwrap(), b.parse::<Version>().unwrap(), "{a} = {b}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        for text in ["", "latest", "ga", "1..0", "1.0.0-\u{e4}", "x1"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
