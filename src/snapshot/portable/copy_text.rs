//! COPY's text format: a row a line, values divided by tabs, `\N` for NULL, and escapes with a backslash.

use memchr::{memchr, memchr_iter};

/// A row's values: ranges in what [`Row::parse`] was given or, of those with escapes, in a buffer of its own.
#[derive(Debug, Default)]
pub struct Row {
    values: Vec<Value>,
    unescaped: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Value {
    Null,
    Line(std::ops::Range<usize>),
    Unescaped(std::ops::Range<usize>),
}

impl Row {
    /// Reads a line, without the line break that ends it, of `columns` values; `None` when it has not so many.
    pub fn parse(&mut self, line: &[u8], columns: usize) -> Option<()> {
        self.values.clear();
        self.unescaped.clear();
        if columns == 0 {
            return line.is_empty().then_some(());
        }
        let escapes = memchr(b'\\', line).is_some();
        let mut begin = 0;
        for end in memchr_iter(b'\t', line).chain([line.len()]) {
            let value = self.value(line, begin..end, escapes)?;
            self.values.push(value);
            begin = end + 1;
        }
        (self.values.len() == columns).then_some(())
    }

    fn value(&mut self, line: &[u8], range: std::ops::Range<usize>, escapes: bool) -> Option<Value> {
        let raw = line.get(range.clone())?;
        if !escapes || memchr(b'\\', raw).is_none() {
            return Some(Value::Line(range));
        }
        if raw == b"\\N" {
            return Some(Value::Null);
        }
        let begin = self.unescaped.len();
        let mut rest = raw;
        while let Some(at) = memchr(b'\\', rest) {
            let (plain, from) = rest.split_at(at);
            self.unescaped.extend_from_slice(plain);
            self.unescaped.push(match from.get(1)? {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 11,
                other => *other,
            });
            rest = from.get(2..)?;
        }
        self.unescaped.extend_from_slice(rest);
        Some(Value::Unescaped(begin..self.unescaped.len()))
    }

    /// The values, in order. `line` is what was parsed.
    pub fn values<'a>(&'a self, line: &'a [u8]) -> impl ExactSizeIterator<Item = Option<&'a [u8]>> + Clone {
        self.values.iter().map(move |value| match value {
            Value::Null => None,
            Value::Line(range) => line.get(range.clone()),
            Value::Unescaped(range) => self.unescaped.get(range.clone()),
        })
    }
}

/// Appends a value as COPY reads it.
pub fn write_value(value: Option<&[u8]>, out: &mut Vec<u8>) {
    let Some(mut rest) = value else {
        out.extend_from_slice(b"\\N");
        return;
    };
    let special = |byte: &u8| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t');
    while let Some(at) = rest.iter().position(special) {
        let (plain, from) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, after)) = from.split_first() else { break };
        out.push(b'\\');
        out.push(match byte {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            other => *other,
        });
        rest = after;
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_of_the_server_s_is_read() {
        let line = b"a\\tb\t\\N\t\t\\\\N\tz\\n\\b\\f\\v\\r";
        let mut row = Row::default();
        row.parse(line, 5).unwrap();
        let values: Vec<_> = row.values(line).collect();
        let expected: [Option<&[u8]>; 5] = [Some(b"a\tb"), None, Some(b""), Some(b"\\N"), Some(b"z\n\x08\x0c\x0b\r")];
        assert_eq!(values, expected);
        assert!(row.parse(line, 4).is_none() && row.parse(b"a\\", 1).is_none());
        assert!(row.parse(b"", 0).is_some() && row.parse(b"x", 0).is_none());
    }

    proptest! {
        #[test]
        fn every_row_comes_back(values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(1u8.., 0..20)), 1..6)) {
            let mut line = Vec::new();
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    line.push(b'\t');
                }
                write_value(value.as_deref(), &mut line);
            }
            prop_assert!(!line.contains(&b'\n'));
            let mut row = Row::default();
            row.parse(&line, values.len()).unwrap();
            prop_assert_eq!(row.values(&line).map(|v| v.map(<[u8]>::to_vec)).collect::<Vec<_>>(), values);
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..40), columns in 0usize..5) {
            let _ = Row::default().parse(&line, columns);
        }
    }
}
