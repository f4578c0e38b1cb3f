//! Durations as Go writes them (`1h30m`, `45s`), the form Kubernetes users know.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration in whole seconds, written with `h`, `m` and `s` in that order; days are written in hours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(Duration);

/// What CRD schema and parser both accept.
const PATTERN: &str = "^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$";

impl GoDuration {
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub const fn from_mins(minutes: u64) -> Self {
        Self::from_secs(minutes * 60)
    }

    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }

    pub const fn get(self) -> Duration {
        self.0
    }

    /// The same for arithmetic on timestamps. At most 99999 h, so it always fits.
    pub fn signed(self) -> jiff::SignedDuration {
        jiff::SignedDuration::from_secs(self.0.as_secs().cast_signed())
    }
}

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write hours, minutes and seconds in that order, e.g. \"1h30m\", \"10m\" or \"45s\"")]
pub struct BadDuration(String);

impl FromStr for GoDuration {
    type Err = BadDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadDuration(text.to_owned());
        let mut seconds = 0u64;
        let mut units = [('h', 3600u64), ('m', 60), ('s', 1)].iter();
        let mut digits = String::new();
        for c in text.chars() {
            if c.is_ascii_digit() {
                digits.push(c);
                continue;
            }
            let (_, factor) = units.find(|(unit, _)| *unit == c).ok_or_else(bad)?;
            if digits.is_empty() || digits.len() > 5 {
                return Err(bad());
            }
            seconds += digits.parse::<u64>().map_err(|_| bad())? * factor;
            digits.clear();
        }
        if text.is_empty() || !digits.is_empty() { Err(bad()) } else { Ok(Self::from_secs(seconds)) }
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.as_secs();
        let (h, m, s) = (all / 3600, all / 60 % 60, all % 60);
        if h > 0 {
            write!(f, "{h}h")?;
        }
        if m > 0 {
            write!(f, "{m}m")?;
        }
        if s > 0 || all == 0 {
            write!(f, "{s}s")?;
        }
        Ok(())
    }
}

impl fmt::Debug for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for GoDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 2, "maxLength": 18, "pattern": PATTERN})
    }
}

#[cfg(test)]
mod tests {
    use super::GoDuration;

    #[test]
    fn a_duration_is_read_and_written_as_go_does() {
        for (text, seconds) in [("10m", 600), ("1h30m", 5400), ("45s", 45), ("168h", 604_800), ("1h1s", 3601)] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.as_secs(), seconds);
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!("90m".parse::<GoDuration>().unwrap().to_string(), "1h30m");
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in ["", "10", "m", "1d", "1m1h", "10m ", "-5s", "1.5h", "100000s"] {
            let message = text.parse::<GoDuration>().unwrap_err().to_string();
            assert!(message.contains("1h30m"), "{text}: {message}");
        }
    }
}
