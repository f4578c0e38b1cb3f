//! Words of a shell: whatever a value holds, the shell reads it as one word and as nothing else.

/// A value as one word of `sh`. Plain ones stay readable.
pub fn word(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    // Nothing is special between single quotes but their end; NUL cannot be in a word at all.
    format!("'{}'", value.replace('\0', "").replace('\'', r"'\''"))
}

/// A value within a comment or a message: on one line, without what a terminal would act on.
pub fn plain(value: &str) -> String {
    value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::{plain, word};

    #[test]
    fn plain_words_stay_readable() {
        assert_eq!(word("deployment/memoria-server"), "deployment/memoria-server");
        assert_eq!(word("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(word(""), "''");
        assert_eq!(word("a=b"), "'a=b'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_shell_reads_back_what_was_quoted(value in "(?s)[^\0]{0,40}") {
            let script = format!("printf %s {}", word(&value));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            prop_assert!(output.status.success());
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }

        #[test]
        fn a_comment_stays_one_line(value in "(?s).{0,40}") {
            let left = plain(&value).chars().any(char::is_control);
            prop_assert!(!left);
        }
    }
}
