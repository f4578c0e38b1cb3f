//! Takes a password out of a stream of output, in each form in which a program may print it, wherever chunks end.

use crate::url::{DatabaseUrl, percent_encode};

const MARK: &[u8] = b"[redacted]";
/// At the end of a stream, a beginning of the password of this length or more is taken out too.
const TELLING: usize = 4;

/// The forms of one password, longest first.
#[derive(Clone, Default)]
pub struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// As written in the URL, as the server knows it, and as Python, JSON, libpq and SQLAlchemy print it.
    pub fn of(url: &DatabaseUrl) -> Self {
        let Some(raw) = url.raw_password() else { return Self::default() };
        let mut forms: Vec<Vec<u8>> = vec![raw.as_bytes().to_vec()];
        if let Some(decoded) = url.password() {
            let text = String::from_utf8_lossy(&decoded).into_owned();
            for keep in [&b""[..], b"/", b" +", b"!$&'()*+,;=", b"!$&'()*+,;=:@/? \"#[]"] {
                let encoded = percent_encode(&text, |byte| keep.contains(&byte));
                forms.push(encoded.to_lowercase_escapes().into_bytes());
                forms.push(encoded.replace("%20", "+").into_bytes());
                forms.push(encoded.into_bytes());
            }
            // SQLAlchemy's own way: only what would break the URL.
            forms.push(
                text.replace('%', "%25").replace(':', "%3A").replace('@', "%40").replace('/', "%2F").into_bytes(),
            );
            forms.push(text.replace(':', "%3A").replace('@', "%40").replace('/', "%2F").into_bytes());
            forms.push(text.replace('\\', "\\\\").into_bytes());
            forms.push(text.replace('\\', "\\\\").replace('\'', "\\'").into_bytes());
            forms.push(text.replace('\\', "\\\\").replace(':', "\\:").into_bytes());
            let json = serde_json::Value::String(text.clone()).to_string();
            forms.push(json.as_bytes()[1..json.len() - 1].to_vec());
            forms.push(decoded);
        }
        forms.retain(|form| !form.is_empty());
        forms.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        forms.dedup();
        Self(forms)
    }

    /// Whether a text holds the password. Of a short one only when it is the whole text: `PATH` must survive it.
    pub fn are_in(&self, text: &[u8]) -> bool {
        self.0.iter().any(|form| text == form || (form.len() >= 6 && text.windows(form.len()).any(|part| part == form)))
    }
}

trait LowerCaseEscapes {
    fn to_lowercase_escapes(&self) -> String;
}

impl LowerCaseEscapes for String {
    /// `%2F` becomes `%2f`; all else stays.
    fn to_lowercase_escapes(&self) -> String {
        let mut in_escape = 0;
        self.chars()
            .map(|c| {
                if c == '%' {
                    in_escape = 2;
                    c
                } else if in_escape > 0 {
                    in_escape -= 1;
                    c.to_ascii_lowercase()
                } else {
                    c
                }
            })
            .collect()
    }
}

/// One stream on its way through.
pub struct Redactor {
    secrets: Secrets,
    /// What may be the beginning of a password.
    held: Vec<u8>,
}

impl Redactor {
    pub const fn new(secrets: Secrets) -> Self {
        Self { secrets, held: Vec::new() }
    }

    /// What may be shown now.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(chunk);
        let mut shown = Vec::with_capacity(self.held.len());
        let mut at = 0;
        while at < self.held.len() {
            let rest = &self.held[at..];
            // A longer form that may still come wins over a shorter one that is already there.
            if self.secrets.0.iter().any(|form| form.len() > rest.len() && form.starts_with(rest)) {
                break;
            }
            if let Some(form) = self.secrets.0.iter().find(|form| rest.starts_with(form)) {
                shown.extend_from_slice(MARK);
                at += form.len();
            } else {
                shown.push(rest[0]);
                at += 1;
            }
        }
        self.held.drain(..at);
        shown
    }

    /// What is left at the end of the stream.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        let mut shown = Vec::new();
        let mut rest = &held[..];
        while let Some(first) = rest.first() {
            let begun = self.secrets.0.iter().any(|form| form.len() > rest.len() && form.starts_with(rest));
            if let Some(form) = self.secrets.0.iter().find(|form| rest.starts_with(form)) {
                shown.extend_from_slice(MARK);
                rest = &rest[form.len()..];
            } else if begun && rest.len() >= TELLING {
                shown.extend_from_slice(MARK);
                rest = &[];
            } else {
                shown.push(*first);
                rest = &rest[1..];
            }
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::{Redactor, Secrets};
    use crate::url::DatabaseUrl;

    fn secrets(url: &str) -> Secrets {
        Secrets::of(&DatabaseUrl::parse(url).unwrap())
    }

    fn through(secrets: &Secrets, text: &[u8], chunk: usize) -> String {
        let mut redactor = Redactor::new(secrets.clone());
        let mut shown: Vec<u8> = text.chunks(chunk).flat_map(|part| redactor.push(part)).collect();
        shown.extend(redactor.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn each_form_is_taken_out_wherever_chunks_end() {
        let secrets = secrets("postgresql://u:p%40ss%25w%2Ford%22%20x@db/m");
        let forms = [
            "p%40ss%25w%2Ford%22%20x",
            "p%40ss%25w%2ford%22%20x",
            "p@ss%w/ord\" x",
            "p%40ss%25w/ord%22%20x",
            "p%40ss%25w%2Ford%22+x",
            "p@ss%w/ord\\\" x",
            "p%40ss%25w%2Ford\" x",
        ];
        for form in forms {
            let text = format!("before {form}{form} after {}", &form[..3]);
            for chunk in 1..text.len() {
                let shown = through(&secrets, text.as_bytes(), chunk);
                assert_eq!(shown, format!("before [redacted][redacted] after {}", &form[..3]), "{form} by {chunk}");
            }
        }
    }

    #[test]
    fn backslash_and_quote_are_found_as_python_and_libpq_print_them() {
        let secrets = secrets(r"postgresql://u:a\b:c'd@db/m");
        for form in [r"a\\b:c\'d", r"a\\b:c'd", r"a\\b\:c'd", r"a\b:c'd"] {
            assert_eq!(through(&secrets, form.as_bytes(), 3), "[redacted]", "{form}");
        }
    }

    #[test]
    fn a_password_that_was_cut_off_at_the_end_is_not_shown_either() {
        let secrets = secrets("postgresql://u:correct-horse@db/m");
        assert_eq!(through(&secrets, b"password correct-hor", 5), "password [redacted]");
        assert_eq!(through(&secrets, b"we cor", 5), "we cor");
    }

    #[test]
    fn without_a_password_nothing_changes() {
        let secrets = secrets("postgresql://u@db/m");
        assert_eq!(through(&secrets, b"Executed migration 'x' against postgresql://u@db/m.", 7).len(), 51);
        assert!(!secrets.are_in(b"anything"));
    }

    #[test]
    fn variables_that_hold_the_password_are_known() {
        let long = secrets("postgresql://u:correct-horse@db/m");
        assert!(long.are_in(b"host=db password=correct-horse"));
        let short = secrets("postgresql://u:a@db/m");
        assert!(short.are_in(b"a") && !short.are_in(b"/usr/bin:/sbin:a/b"));
    }
}
