//! How long a failed look at a release rests before the next one: longer each time, until one succeeds.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// Failures in a row, by namespace and name of the release.
#[derive(Default)]
pub struct Retries(Mutex<HashMap<(String, String), u32>>);

impl Retries {
    /// Counts one more failure and answers how long to rest.
    pub fn next(&self, namespace: &str, name: &str) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry((namespace.to_owned(), name.to_owned())).or_default();
        let wait = FIRST.saturating_mul(1 << (*count).min(16)).min(LONGEST);
        *count += 1;
        wait
    }

    /// Forgets the failures after a success.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Retries;

    #[test]
    fn failures_in_a_row_rest_longer_and_a_success_starts_anew() {
        let retries = Retries::default();
        let waits: Vec<_> = (0..9).map(|_| retries.next("ns", "memoria")).collect();
        assert!(waits.is_sorted() && waits[0] == Duration::from_millis(250) && waits[8] == Duration::from_secs(30));
        assert_eq!(retries.next("ns", "other"), Duration::from_millis(250));
        retries.forget("ns", "memoria");
        assert_eq!(retries.next("ns", "memoria"), Duration::from_millis(250));
    }
}
