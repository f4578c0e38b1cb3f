//! Names of Jobs: `<attempt>-<step>`, the same every time, short enough for the labels that Kubernetes derives of them.

use sha2::{Digest, Sha256};

/// A Job's name becomes a label value of its pods.
const MAX_NAME: usize = 63;
/// Hex digits of the hash in a shortened name.
const HASH: usize = 10;

/// Why no name can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part} {value:?} cannot be part of a Job's name: it must be lower-case letters, digits and '-', begin and end with \
     a letter or digit, and have at most {MAX_NAME} characters; rename it"
)]
pub struct BadName {
    pub part: &'static str,
    pub value: String,
}

/// `<attempt>-<step>`; where that is too long, its beginning and a hash of the whole.
///
/// # Errors
/// [`BadName`] when either part is not a DNS label.
pub fn job_name(attempt: &str, step: &str) -> Result<String, BadName> {
    dns_label("attempt", attempt)?;
    dns_label("step", step)?;
    let whole = format!("{attempt}-{step}");
    if whole.len() <= MAX_NAME {
        return Ok(whole);
    }
    let hash = hex(&Sha256::digest(whole.as_bytes()));
    let (head, tail) = (&whole[..MAX_NAME - HASH - 1], &hash[..HASH]);
    Ok(format!("{}-{tail}", head.trim_end_matches('-')))
}

fn dns_label(part: &'static str, value: &str) -> Result<(), BadName> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = value.len() <= MAX_NAME
        && edge(value.chars().next())
        && edge(value.chars().next_back())
        && value.chars().all(inside);
    if good { Ok(()) } else { Err(BadName { part, value: value.to_owned() }) }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{dns_label, job_name};

    #[test]
    fn a_short_name_is_attempt_and_step() {
        assert_eq!(job_name("memoria-3", "snapshot").unwrap(), "memoria-3-snapshot");
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused_with_the_value() {
        for (attempt, step) in [("Memoria", "fence"), ("memoria-", "fence"), ("memoria", ""), ("a.b", "fence")] {
            let message = job_name(attempt, step).unwrap_err().to_string();
            assert!(message.contains("rename it"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn every_name_is_a_dns_label_and_tells_its_attempt_and_step_apart(
            attempt in "[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?",
            step in "[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?",
            other in "[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?",
        ) {
            let name = job_name(&attempt, &step).unwrap();
            prop_assert!(dns_label("name", &name).is_ok(), "{name}");
            prop_assert_eq!(&name, &job_name(&attempt, &step).unwrap());
            if other != step {
                prop_assert_ne!(name, job_name(&attempt, &other).unwrap());
            }
        }
    }
}
