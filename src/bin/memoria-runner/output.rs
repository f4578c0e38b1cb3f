//! What of a command's output is kept: its last lines, whether it told of a failure, and for questions its answer.

use std::collections::VecDeque;

use memoria_runner::order::TAIL_BYTES;

/// Of a longer line only the beginning is kept.
const LINE_BYTES: usize = 400;
/// Of an answer on standard output.
const ANSWER_BYTES: usize = 64 * 1024;

/// The lines of one stream as they come.
#[derive(Default)]
pub struct Lines {
    line: Vec<u8>,
}

impl Lines {
    /// Hands on each line that is complete.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for byte in bytes {
            if *byte == b'\n' {
                self.finish(&mut each);
            } else if self.line.len() < LINE_BYTES {
                self.line.push(*byte);
            }
        }
    }

    /// Hands on a last line without its end.
    pub fn finish(&mut self, mut each: impl FnMut(&str)) {
        if !self.line.is_empty() {
            each(String::from_utf8_lossy(&self.line).trim_end());
            self.line.clear();
        }
    }
}

/// The last lines of all streams together.
#[derive(Default)]
pub struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
    pub reported_failure: bool,
    answer: String,
}

impl Kept {
    pub fn line(&mut self, line: &str) {
        self.reported_failure |= tells_of_failure(line);
        let line = without_rows(line);
        if line.is_empty() {
            return;
        }
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.bytes > TAIL_BYTES {
            self.bytes -= self.lines.pop_front().map_or(self.bytes, |dropped| dropped.len() + 1);
        }
    }

    pub fn answer_line(&mut self, line: &str) {
        if self.answer.len() + line.len() < ANSWER_BYTES {
            self.answer.push_str(line);
            self.answer.push('\n');
        }
    }

    /// At most [`TAIL_BYTES`].
    pub fn tail(&self) -> String {
        self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    pub fn into_answer(self) -> String {
        self.answer
    }
}

/// Memoria's migrations print `Failed to …` and exit 0; other programs print a traceback or the exception.
fn tells_of_failure(line: &str) -> bool {
    let exception = || {
        let name = line.split([':', ' ']).next().unwrap_or_default();
        (name.ends_with("Error") || name.ends_with("Exception"))
            && name.len() > "Error".len()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_')
    };
    line.starts_with("Failed to ") || line.starts_with("Traceback (most recent call last)") || exception()
}

/// Statement parameters and PostgreSQL's details hold rows: personal data, not for a report.
fn without_rows(line: &str) -> String {
    for marker in ["[parameters: ", "DETAIL:", "Failing row contains"] {
        if let Some(at) = line.find(marker) {
            return format!("{}{marker} [left out]", &line[..at]);
        }
    }
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Kept, Lines, tells_of_failure};

    #[test]
    fn a_failure_is_told_by_the_beginning_of_a_line() {
        for line in [
            "Failed to add consent_scope to agents: no such table",
            "Traceback (most recent call last):",
            "sqlalchemy.exc.OperationalError: (psycopg2.OperationalError) timeout",
            "ValueError: x",
        ] {
            assert!(tells_of_failure(line), "{line}");
        }
        for line in ["Added x; Failed to y did not happen", "0 errors", "Error codes: none", "RuntimeErrors are none"] {
            assert!(!tells_of_failure(line), "{line}");
        }
    }

    #[test]
    fn the_tail_is_short_and_holds_no_rows() {
        let mut kept = Kept::default();
        let mut lines = Lines::default();
        for at in 0..1000 {
            lines.push(format!("line {at}\n").as_bytes(), |line| kept.line(line));
        }
        lines.push(b"[parameters: {'user_input': 'private words'}]\nDETAIL:  Key (id)=(7) exists\nx", |line| {
            kept.line(line);
        });
        lines.finish(|line| kept.line(line));
        let tail = kept.tail();
        assert!(tail.len() <= super::TAIL_BYTES, "{}", tail.len());
        assert!(tail.contains("line 999") && !tail.contains("line 10\n"));
        assert!(tail.ends_with("[parameters:  [left out]\nDETAIL: [left out]\nx"), "{tail}");
    }
}
