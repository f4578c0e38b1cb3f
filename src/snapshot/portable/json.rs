//! The little of JSON that this format needs, byte by byte: what Python's `json` writes and reads, `NaN` and `Infinity`
//! included, and never a value that is parsed into less than it was.

use memchr::memchr2;

/// What is wrong with a text that should be JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no JSON: {0}")]
pub struct Malformed(pub &'static str);

/// Which bytes a string cannot hold as they are.
const ESCAPED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table
};

/// Appends `text` as a JSON string. Bytes beyond ASCII stay as they are, so UTF-8 stays UTF-8.
pub fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| ESCAPED[usize::from(*byte)]) {
        let (plain, from) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, after)) = from.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Appends what a JSON string, quotes included, stands for, as UTF-8.
pub fn read_string(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let inner = raw.strip_prefix(b"\"").and_then(|raw| raw.strip_suffix(b"\"")).ok_or(Malformed("a string is open"))?;
    let mut rest = inner;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let (plain, from) = rest.split_at(at);
        out.extend_from_slice(plain);
        let escape = *from.get(1).ok_or(Malformed("an escape is cut off"))?;
        let mut used = 2;
        match escape {
            b'"' | b'\\' | b'/' => out.push(escape),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let (character, length) = unicode(from)?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                used = length;
            }
            _ => return Err(Malformed("an unknown escape")),
        }
        rest = from.get(used..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    Ok(())
}

/// The character of `\uXXXX`, or of two that are a pair, and how many bytes it took.
fn unicode(from: &[u8]) -> Result<(char, usize), Malformed> {
    let first = hex4(from.get(2..6))?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first).map(|character| (character, 6)).ok_or(Malformed("half a pair of surrogates"));
    }
    let second = match from.get(6..8) {
        Some(b"\\u") => hex4(from.get(8..12))?,
        _ => return Err(Malformed("half a pair of surrogates")),
    };
    let low = second.checked_sub(0xdc00).filter(|low| *low < 0x400).ok_or(Malformed("half a pair of surrogates"))?;
    let character = char::from_u32(0x10000 + ((first - 0xd800) << 10) + low);
    character.map(|character| (character, 12)).ok_or(Malformed("half a pair of surrogates"))
}

fn hex4(digits: Option<&[u8]>) -> Result<u32, Malformed> {
    let digits = digits.ok_or(Malformed("an escape is cut off"))?;
    digits.iter().try_fold(0, |number, digit| match char::from(*digit).to_digit(16) {
        Some(digit) => Ok(number << 4 | digit),
        None => Err(Malformed("an escape without its digits")),
    })
}

/// Where the string that begins at `at` ends, one behind its closing quote.
fn string_end(bytes: &[u8], at: usize) -> Result<usize, Malformed> {
    let mut from = at + 1;
    loop {
        let rest = bytes.get(from..).unwrap_or_default();
        let found = memchr2(b'"', b'\\', rest).ok_or(Malformed("a string is open"))?;
        match rest.get(found) {
            Some(b'"') => return Ok(from + found + 1),
            _ => from += found + 2,
        }
    }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// Where the value that begins at `at` ends. Nested ones are only balanced: whoever takes them checks them.
pub fn value_end(bytes: &[u8], at: usize) -> Result<usize, Malformed> {
    match bytes.get(at) {
        Some(b'"') => string_end(bytes, at),
        Some(b'{' | b'[') => nested_end(bytes, at),
        Some(_) => {
            let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
            let length = bytes.get(at..).unwrap_or_default().iter().take_while(|byte| is_part(byte)).count();
            if length == 0 { Err(Malformed("a value is missing")) } else { Ok(at + length) }
        }
        None => Err(Malformed("a value is missing")),
    }
}

fn nested_end(bytes: &[u8], at: usize) -> Result<usize, Malformed> {
    let (mut from, mut depth) = (at, 0u32);
    loop {
        match bytes.get(from) {
            None => return Err(Malformed("a bracket is open")),
            Some(b'"') => {
                from = string_end(bytes, from)?;
                continue;
            }
            Some(b'{' | b'[') => depth += 1,
            Some(b'}' | b']') => depth -= 1,
            Some(_) => {}
        }
        from += 1;
        if depth == 0 {
            return Ok(from);
        }
    }
}

/// One member of an object: its key without quotes, as written, and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// With quotes.
    pub key: std::ops::Range<usize>,
    pub value: std::ops::Range<usize>,
}

/// The members of an object that is all of `bytes`, into `members`.
pub fn members(bytes: &[u8], members: &mut Vec<Member>) -> Result<(), Malformed> {
    members.clear();
    let mut at = skip_space(bytes, 0);
    if bytes.get(at) != Some(&b'{') {
        return Err(Malformed("an object is missing"));
    }
    at = skip_space(bytes, at + 1);
    if bytes.get(at) == Some(&b'}') {
        return ended(bytes, at + 1);
    }
    loop {
        if bytes.get(at) != Some(&b'"') {
            return Err(Malformed("a key is missing"));
        }
        let key = at..string_end(bytes, at)?;
        at = skip_space(bytes, key.end);
        if bytes.get(at) != Some(&b':') {
            return Err(Malformed("a colon is missing"));
        }
        at = skip_space(bytes, at + 1);
        let value = at..value_end(bytes, at)?;
        at = skip_space(bytes, value.end);
        members.push(Member { key, value });
        match bytes.get(at) {
            Some(b',') => at = skip_space(bytes, at + 1),
            Some(b'}') => return ended(bytes, at + 1),
            _ => return Err(Malformed("a comma is missing")),
        }
    }
}

fn ended(bytes: &[u8], at: usize) -> Result<(), Malformed> {
    if skip_space(bytes, at) == bytes.len() { Ok(()) } else { Err(Malformed("something follows an object")) }
}

/// Whether this is one whole JSON value by Python's rules, without space around it.
pub fn is_value(text: &[u8]) -> bool {
    Checker { text, at: 0 }.value(0).is_some_and(|end| end == text.len())
}

/// Deeper than this is for the server to judge, and not for a stack.
const DEPTH: u32 = 500;

struct Checker<'a> {
    text: &'a [u8],
    at: usize,
}

impl Checker<'_> {
    fn value(&mut self, depth: u32) -> Option<usize> {
        if depth > DEPTH {
            return None;
        }
        match self.text.get(self.at)? {
            b'{' => self.list(b'}', depth, true),
            b'[' => self.list(b']', depth, false),
            b'"' => self.string(),
            _ => {
                let end = value_end(self.text, self.at).ok()?;
                let token = self.text.get(self.at..end)?;
                self.at = end;
                let word: [&[u8]; 6] = [b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity"];
                (word.contains(&token) || is_number(token)).then_some(end)
            }
        }
    }

    fn string(&mut self) -> Option<usize> {
        let end = string_end(self.text, self.at).ok()?;
        let raw = self.text.get(self.at..end)?;
        // A lone surrogate is for Python's reader alone, and no text of ours.
        read_string(raw, &mut Vec::new()).ok()?;
        let plain = raw.iter().all(|byte| *byte >= 0x20);
        self.at = end;
        plain.then_some(end)
    }

    fn list(&mut self, closing: u8, depth: u32, keyed: bool) -> Option<usize> {
        self.at = skip_space(self.text, self.at + 1);
        if self.text.get(self.at) == Some(&closing) {
            self.at += 1;
            return Some(self.at);
        }
        loop {
            if keyed {
                (self.text.get(self.at) == Some(&b'"')).then_some(())?;
                self.string()?;
                self.at = skip_space(self.text, self.at);
                (self.text.get(self.at) == Some(&b':')).then_some(())?;
                self.at = skip_space(self.text, self.at + 1);
            }
            self.value(depth + 1)?;
            self.at = skip_space(self.text, self.at);
            match self.text.get(self.at)? {
                b',' => self.at = skip_space(self.text, self.at + 1),
                end if *end == closing => {
                    self.at += 1;
                    return Some(self.at);
                }
                _ => return None,
            }
        }
    }
}

/// `-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?`
pub fn is_number(token: &[u8]) -> bool {
    let digits = |rest: &mut &[u8]| {
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        *rest = rest.get(count..).unwrap_or_default();
        count
    };
    let mut rest = token.strip_prefix(b"-").unwrap_or(token);
    let leading_zero = rest.first() == Some(&b'0');
    let whole = digits(&mut rest);
    if whole == 0 || (leading_zero && whole > 1) {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        rest = fraction;
        if digits(&mut rest) == 0 {
            return false;
        }
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        rest = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent);
        if digits(&mut rest) == 0 {
            return false;
        }
    }
    rest.is_empty()
}

/// Appends a nested value on one line, as Python's `json.dumps` divides its parts.
pub fn write_on_one_line(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut at = 0;
    while let Some(byte) = raw.get(at) {
        match byte {
            b'"' => {
                let end = string_end(raw, at)?;
                out.extend_from_slice(raw.get(at..end).unwrap_or_default());
                at = end;
                continue;
            }
            b' ' | b'\n' | b'\r' | b'\t' => {}
            b',' => out.extend_from_slice(b", "),
            b':' => out.extend_from_slice(b": "),
            other => out.push(*other),
        }
        at += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        write_string(text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn read(raw: &str) -> Result<String, Malformed> {
        let mut out = Vec::new();
        read_string(raw.as_bytes(), &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn escapes_are_read_as_python_writes_them() {
        assert_eq!(read(r#""\u00e9\ud83e\udd8a\/\b\f\n\r\t\"\\""#).unwrap(), "é🦊/\u{8}\u{c}\n\r\t\"\\");
        for bad in [r#""\ud83e""#, r#""\ud83e\u0041""#, r#""\udd8a""#, r#""\x""#, r#""\u12""#, r#""\u12G4""#, r#"""#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn members_are_found_whatever_they_hold() {
        let text = br#" { "a" : 1 , "b\"" : {"x": [1, "}]"]}, "c":NaN,"d": "" } "#;
        let mut found = Vec::new();
        members(text, &mut found).unwrap();
        let parts: Vec<_> = found
            .iter()
            .map(|m| {
                (
                    std::str::from_utf8(&text[m.key.clone()]).unwrap(),
                    std::str::from_utf8(&text[m.value.clone()]).unwrap(),
                )
            })
            .collect();
        assert_eq!(parts, [("\"a\"", "1"), ("\"b\\\"\"", "{\"x\": [1, \"}]\"]}"), ("\"c\"", "NaN"), ("\"d\"", "\"\"")]);
        for bad in
            ["", "{", "[]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\":1 \"b\":2}", "{} {}", "{\"a\": [1}", "{a: 1}"]
        {
            // An unbalanced bracket is only seen where it does not balance.
            let refused = members(bad.as_bytes(), &mut found);
            assert!(refused.is_err() || bad == "{\"a\": [1}", "{bad}");
        }
    }

    #[test]
    fn one_line_is_what_python_writes() {
        let mut out = Vec::new();
        write_on_one_line(b"{\n  \"a\": [\n    1,\n    \"x, y: z\"\n  ],\n  \"b\": {}\n}", &mut out).unwrap();
        assert_eq!(out, br#"{"a": [1, "x, y: z"], "b": {}}"#);
    }

    #[test]
    fn values_are_checked_by_python_s_rules() {
        for good in ["{}", "[]", r#"{"a": [1, -2.5e+7, NaN, -Infinity, null, true, "x\n"]}"#, "\"é\"", "0", "-0"] {
            assert!(is_value(good.as_bytes()), "{good}");
        }
        for bad in
            ["", " {}", "{} ", "[1,]", "{\"a\" 1}", "{1: 2}", "01", "1.", ".5", "+1", "nul", "[1", "\"\u{1}\"", "'x'"]
        {
            assert!(!is_value(bad.as_bytes()), "{bad}");
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(!is_value(deep.as_bytes()));
        assert_eq!(value_end(deep.as_bytes(), 0), Ok(deep.len()));
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in "\\PC{0,40}|[\\x00-\\x7f]{0,40}") {
            let raw = written(&text);
            prop_assert_eq!(&serde_json::from_str::<String>(&raw).unwrap(), &text);
            prop_assert_eq!(&read(&raw).unwrap(), &text);
            prop_assert!(is_value(raw.as_bytes()));
            prop_assert_eq!(&read(&serde_json::to_string(&text).unwrap()).unwrap(), &text);
        }

        #[test]
        fn no_bytes_end_otherwise_than_by_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = members(&bytes, &mut Vec::new());
            let _ = value_end(&bytes, 0);
            let _ = is_value(&bytes);
            let _ = read_string(&bytes, &mut Vec::new());
            let _ = write_on_one_line(&bytes, &mut Vec::new());
        }

        #[test]
        fn what_looks_like_json_is_judged_as_serde_judges_it(text in "[\\[\\]{}:,\"\\\\ntrue0-9.eE+ -]{0,16}") {
            if serde_json::from_str::<serde_json::Value>(&text).is_ok() && text == text.trim() {
                prop_assert!(is_value(text.as_bytes()), "{}", text);
            } else if is_value(text.as_bytes()) {
                // Numbers that serde cannot hold are numbers all the same.
                prop_assert!(text.contains(['e', 'E']), "{}", text);
            }
        }
    }
}
