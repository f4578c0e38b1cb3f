//! PostgreSQL's values as JSON and back. The text of a value is what `::text` gives under pinned settings; that text comes
//! back byte by byte, so digests of rows that were read from a file are the server's.

use crate::snapshot::{
    portable::{
        json::{self, Malformed},
        value::{nests, read_iso, read_nested, read_tagged, write_iso, write_tagged},
    },
    schema::{Column, Relation},
};

/// What of a column decides how its values are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub kind: Kind,
    pub nullable: bool,
    /// The server computes it.
    pub generated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true`, `false`
    Boolean,
    /// A number
    Integer,
    /// A number, or `NaN`, `Infinity`, `-Infinity`
    Float,
    /// Nested, as it is stored
    Json,
    /// ISO 8601
    Timestamp,
    /// A string with PostgreSQL's own text: numeric, bytea, arrays, enums, intervals, vectors and whatever else there is
    Text,
}

impl Kind {
    /// By the type as `format_type` writes it.
    fn of(data_type: &str) -> Self {
        let without_precision = match (data_type.split_once('('), data_type.split_once(')')) {
            (Some((before, _)), Some((_, after))) => format!("{before}{after}"),
            _ => data_type.to_owned(),
        };
        match without_precision.as_str() {
            "boolean" => Self::Boolean,
            "smallint" | "integer" | "bigint" => Self::Integer,
            "real" | "double precision" => Self::Float,
            "json" | "jsonb" => Self::Json,
            "timestamp without time zone" | "timestamp with time zone" => Self::Timestamp,
            _ => Self::Text,
        }
    }
}

impl Field {
    fn new(name: &str, column: &Column) -> Self {
        let kind = Kind::of(&column.data_type);
        Self { name: name.to_owned(), kind, nullable: column.nullable, generated: column.generated }
    }

    /// All of a table's, in the byte order of their names.
    pub fn all(relation: &Relation) -> Vec<Self> {
        relation.columns.iter().map(|(name, column)| Self::new(name, column)).collect()
    }

    /// Appends a value as JSON.
    pub fn write(&self, value: Option<&[u8]>, out: &mut Vec<u8>) {
        let Some(text) = value else {
            out.extend_from_slice(b"null");
            return;
        };
        match self.kind {
            Kind::Boolean | Kind::Integer => out.extend_from_slice(text),
            Kind::Float => {
                out.extend_from_slice(text);
                // Python reads a number without a fraction as an integer, and -0 as 0.
                if text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-') {
                    out.extend_from_slice(b".0");
                }
            }
            Kind::Json if nests(text) && !(self.nullable && text == b"null") => out.extend_from_slice(text),
            Kind::Json => write_tagged("json", text, out),
            Kind::Timestamp => {
                out.push(b'"');
                if write_iso(text, out) {
                    out.push(b'"');
                } else {
                    out.pop();
                    json::write_string(text, out);
                }
            }
            Kind::Text => json::write_string(text, out),
        }
    }

    /// Appends the text of a JSON value; false where it is NULL. What the type cannot be is left for the server to refuse.
    pub fn read(&self, raw: &[u8], out: &mut Vec<u8>) -> Result<bool, Malformed> {
        if raw == b"null" && (self.kind != Kind::Json || self.nullable) {
            return Ok(false);
        }
        match (self.kind, raw.first()) {
            (Kind::Json, _) => match read_tagged(raw)? {
                Some(tagged) if tagged.kind == b"json" => out.extend_from_slice(&tagged.text),
                Some(_) => return Err(Malformed("a tag of another engine's")),
                None => read_nested(raw, out)?,
            },
            (Kind::Timestamp, Some(b'"')) => {
                let mut text = Vec::with_capacity(raw.len());
                json::read_string(raw, &mut text)?;
                read_iso(&text, out);
            }
            (_, Some(b'"')) => json::read_string(raw, out)?,
            (Kind::Float, _) => out.extend_from_slice(raw.strip_suffix(b".0").unwrap_or(raw)),
            _ => out.extend_from_slice(raw),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(data_type: &str, nullable: bool) -> Field {
        Field::new("c", &Column { data_type: data_type.to_owned(), nullable, ..Column::default() })
    }

    #[test]
    fn every_kind_is_written_for_python_and_comes_back_byte_by_byte() {
        for (data_type, text, written) in [
            ("boolean", "true", "true"),
            ("bigint", "-9223372036854775808", "-9223372036854775808"),
            ("double precision", "-0", "-0.0"),
            ("double precision", "100000", "100000.0"),
            ("double precision", "1e-300", "1e-300"),
            ("double precision", "0.30000000000000004", "0.30000000000000004"),
            ("real", "NaN", "NaN"),
            ("real", "-Infinity", "-Infinity"),
            ("numeric(10,2)", "1.10", "\"1.10\""),
            ("numeric", "NaN", "\"NaN\""),
            ("timestamp without time zone", "2025-01-01 00:00:00.25", "\"2025-01-01T00:00:00.250000\""),
            ("timestamp(3) with time zone", "2025-01-01 00:00:00+00", "\"2025-01-01T00:00:00+00:00\""),
            ("timestamp without time zone", "infinity", "\"infinity\""),
            ("bytea", "\\x00ff", "\"\\\\x00ff\""),
            ("text[]", "{a,\"b c\",NULL}", "\"{a,\\\"b c\\\",NULL}\""),
            ("json", "{\"b\":  1, \"a\": 1.10}", "{\"b\":  1, \"a\": 1.10}"),
            ("json", "{\"a\":\n1}", "{\"$memoria\": \"json\", \"value\": \"{\\\"a\\\":\\n1}\"}"),
            ("jsonb", "null", "{\"$memoria\": \"json\", \"value\": \"null\"}"),
            ("character varying(3)", "", "\"\""),
        ] {
            let field = field(data_type, true);
            let (mut out, mut back) = (Vec::new(), Vec::new());
            field.write(Some(text.as_bytes()), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), written, "{data_type}");
            assert!(field.read(&out, &mut back).unwrap());
            assert_eq!(String::from_utf8_lossy(&back), text, "{data_type}");
        }
    }

    #[test]
    fn null_and_json_s_null_are_told_apart() {
        let required = field("json", false);
        let (mut out, mut back) = (Vec::new(), Vec::new());
        required.write(Some(b"null"), &mut out);
        assert_eq!(out, b"null");
        assert!(required.read(b"null", &mut back).unwrap());
        assert_eq!(back, b"null");
        assert!(!field("json", true).read(b"null", &mut back).unwrap());
        assert!(!field("text", false).read(b"null", &mut back).unwrap());
    }
}
