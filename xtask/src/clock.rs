//! Says what is being done and how long each part took.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Parts of a longer job, in their order, each with its time.
pub struct Clock {
    begin: Instant,
    parts: Vec<(String, Duration)>,
}

impl Clock {
    pub fn start() -> Self {
        Self { begin: Instant::now(), parts: Vec::new() }
    }

    /// A line with the time since the beginning.
    pub fn say(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.begin.elapsed().as_secs_f64());
    }

    /// Does one part and remembers how long it took, also when it fails.
    pub fn part<T>(&mut self, name: &str, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.say(name);
        let start = Instant::now();
        let result = work(self);
        self.parts.push((name.to_owned(), start.elapsed()));
        result
    }

    /// Prints a table of the parts.
    pub fn table(&self) {
        println!("\nHow long it took:");
        for (name, took) in &self.parts {
            println!("  {:>8.1} s  {name}", took.as_secs_f64());
        }
        println!("  {:>8.1} s  in all", self.begin.elapsed().as_secs_f64());
    }
}
