//! SQLite's values as JSON and back. SQLite keeps any class of value in any column; what JSON, with the column's declared
//! type, could not tell apart is tagged. Memoria's ordinary values never are.

use rusqlite::{
    ToSql,
    types::{ToSqlOutput, ValueRef},
};

use crate::snapshot::{
    hex,
    portable::{
        json::{self, Malformed},
        value::{Tagged, iso_to_stored, nests, read_nested, read_tagged, stored_to_iso, write_tagged},
    },
    sqlite::schema::{Column, Table},
};

/// A value as SQLite keeps it. Its text need not be UTF-8, so it is no `rusqlite::types::Value`.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Stored {
    pub fn borrowed(&self) -> ValueRef<'_> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Integer(integer) => ValueRef::Integer(*integer),
            Self::Real(real) => ValueRef::Real(*real),
            Self::Text(text) => ValueRef::Text(text),
            Self::Blob(blob) => ValueRef::Blob(blob),
        }
    }
}

impl ToSql for Stored {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.borrowed()))
    }
}

/// What of a column decides how its values are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    kind: Kind,
    nullable: bool,
    /// SQLite computes it.
    pub generated: bool,
}

/// By the declared type, as SQLAlchemy declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `BOOLEAN`: 0 and 1 are `false` and `true`
    Boolean,
    /// `JSON`: text is nested
    Json,
    /// `DATETIME`, `TIMESTAMP`: text of SQLAlchemy's form is ISO 8601
    Timestamp,
    Other,
}

impl Field {
    fn new(name: &str, column: &Column) -> Self {
        let kind = match column.data_type.as_str() {
            "boolean" => Kind::Boolean,
            "json" => Kind::Json,
            "datetime" | "timestamp" => Kind::Timestamp,
            _ => Kind::Other,
        };
        Self { name: name.to_owned(), kind, nullable: column.nullable, generated: column.generated.is_some() }
    }

    /// Those of a table that count, in the byte order of their names.
    pub fn all(table: &Table) -> Vec<Self> {
        crate::snapshot::sqlite::digest::columns(table).map(|(name, column)| Self::new(name, column)).collect()
    }

    /// Appends a value as JSON.
    pub fn write(&self, value: ValueRef<'_>, out: &mut Vec<u8>) {
        match (value, self.kind) {
            (ValueRef::Null, _) => out.extend_from_slice(b"null"),
            (ValueRef::Integer(0), Kind::Boolean) => out.extend_from_slice(b"false"),
            (ValueRef::Integer(1), Kind::Boolean) => out.extend_from_slice(b"true"),
            (ValueRef::Integer(integer), _) => out.extend_from_slice(integer.to_string().as_bytes()),
            (ValueRef::Real(real), _) => out.extend_from_slice(real_text(real).as_bytes()),
            (ValueRef::Blob(blob), _) => write_tagged("blob", hex(blob).as_bytes(), out),
            (ValueRef::Text(text), _) if std::str::from_utf8(text).is_err() => {
                write_tagged("bytes", hex(text).as_bytes(), out);
            }
            (ValueRef::Text(text), Kind::Json) if self.nests_text(text) => out.extend_from_slice(text),
            (ValueRef::Text(text), Kind::Json) => write_tagged("text", text, out),
            (ValueRef::Text(text), Kind::Timestamp) => match (stored_to_iso(text), iso_to_stored(text)) {
                (Some(iso), _) => json::write_string(&iso, out),
                // Would be read as what SQLAlchemy stores.
                (None, Some(_)) => write_tagged("text", text, out),
                (None, None) => json::write_string(text, out),
            },
            (ValueRef::Text(text), _) => json::write_string(text, out),
        }
    }

    /// Numbers in such a column are numbers, by its affinity; NULL is `null`.
    fn nests_text(&self, text: &[u8]) -> bool {
        let begins = match text.first() {
            Some(b'{' | b'[' | b'"') => true,
            _ => text == b"true" || text == b"false" || (text == b"null" && !self.nullable),
        };
        begins && nests(text) && json::is_value(text)
    }

    /// The value that a JSON text stands for.
    pub fn read(&self, raw: &[u8]) -> Result<Stored, Malformed> {
        if let Some(Tagged { kind, text }) = read_tagged(raw)? {
            return match kind.as_slice() {
                b"text" => Ok(Stored::Text(text)),
                b"blob" => unhex(&text).map(Stored::Blob),
                b"bytes" => unhex(&text).map(Stored::Text),
                // Of late writes, where an infinite number must be JSON.
                b"real" => std::str::from_utf8(&text)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .map(Stored::Real)
                    .ok_or(Malformed("a number that is none")),
                _ => Err(Malformed("a tag of another engine's")),
            };
        }
        match (raw.first(), self.kind) {
            (Some(b'{' | b'[' | b'"' | b't' | b'f'), Kind::Json) => {
                let mut nested = Vec::new();
                read_nested(raw, &mut nested)?;
                Ok(Stored::Text(nested))
            }
            (Some(b'n'), Kind::Json) if raw == b"null" && !self.nullable => Ok(Stored::Text(b"null".to_vec())),
            (Some(b'"'), kind) => {
                let mut string = Vec::new();
                json::read_string(raw, &mut string)?;
                let stored = if kind == Kind::Timestamp { iso_to_stored(&string) } else { None };
                Ok(Stored::Text(stored.unwrap_or(string)))
            }
            // What another database had nested is kept as text.
            (Some(b'{' | b'['), _) => Ok(Stored::Text(raw.to_vec())),
            _ => plain(raw),
        }
    }
}

/// A word or a number.
fn plain(raw: &[u8]) -> Result<Stored, Malformed> {
    match raw {
        b"null" => Ok(Stored::Null),
        b"true" => Ok(Stored::Integer(1)),
        b"false" => Ok(Stored::Integer(0)),
        b"NaN" => Ok(Stored::Null),
        b"Infinity" => Ok(Stored::Real(f64::INFINITY)),
        b"-Infinity" => Ok(Stored::Real(f64::NEG_INFINITY)),
        number if json::is_number(number) => {
            let text = std::str::from_utf8(number).map_err(|_| Malformed("a number is no text"))?;
            let fraction = number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'));
            let integer = if fraction { None } else { text.parse().ok().map(Stored::Integer) };
            let real = || text.parse().map(Stored::Real).map_err(|_| Malformed("a number that is none"));
            integer.map_or_else(real, Ok)
        }
        _ => Err(Malformed("an unknown word")),
    }
}

/// The shortest text that gives the same number, never an integer's.
fn real_text(real: f64) -> String {
    if real.is_infinite() {
        return if real > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // Debug writes a fraction or an exponent always.
    format!("{real:?}")
}

fn unhex(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes.filter(|_| rest.is_empty()).ok_or(Malformed("a blob is not written in hex"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(data_type: &str, nullable: bool) -> Field {
        Field::new("c", &Column { data_type: data_type.to_owned(), nullable, ..Column::default() })
    }

    fn text(text: &str) -> Stored {
        Stored::Text(text.as_bytes().to_vec())
    }

    fn written(field: &Field, value: &Stored) -> String {
        let mut out = Vec::new();
        field.write(value.borrowed(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn memoria_s_ordinary_values_are_what_its_own_export_writes() {
        for (data_type, value, expected) in [
            ("boolean", Stored::Integer(1), "true"),
            ("boolean", Stored::Null, "null"),
            ("float", Stored::Real(100_000.0), "100000.0"),
            ("float", Stored::Real(-0.0), "-0.0"),
            ("float", Stored::Real(1e-300), "1e-300"),
            ("float", Stored::Real(5e-324), "5e-324"),
            ("integer", Stored::Integer(i64::MIN), "-9223372036854775808"),
            ("datetime", text("2025-01-01 12:00:00.000000"), "\"2025-01-01T12:00:00\""),
            ("datetime", text("2025-01-01 12:00:00.250000"), "\"2025-01-01T12:00:00.250000\""),
            ("json", text("{\"a\": [1, NaN]}"), "{\"a\": [1, NaN]}"),
            ("varchar", text("é\u{0}\n"), "\"é\\u0000\\n\""),
        ] {
            let field = field(data_type, true);
            assert_eq!(written(&field, &value), expected, "{data_type}");
            let back = field.read(expected.as_bytes()).unwrap();
            // -0.0 == 0.0, so by their texts.
            assert_eq!(format!("{back:?}"), format!("{value:?}"), "{data_type}");
        }
    }

    #[test]
    fn what_json_could_not_tell_apart_is_tagged() {
        for (data_type, value, expected) in [
            ("blob", Stored::Blob(vec![0, 255]), r#"{"$memoria": "blob", "value": "00ff"}"#),
            ("json", text("not json"), r#"{"$memoria": "text", "value": "not json"}"#),
            ("json", text("null"), r#"{"$memoria": "text", "value": "null"}"#),
            ("json", text("5"), r#"{"$memoria": "text", "value": "5"}"#),
            ("datetime", text("2025-01-01T12:00:00"), r#"{"$memoria": "text", "value": "2025-01-01T12:00:00"}"#),
        ] {
            let field = field(data_type, true);
            assert_eq!(written(&field, &value), expected);
            assert_eq!(field.read(expected.as_bytes()).unwrap(), value);
        }
        assert_eq!(written(&field("json", false), &text("null")), "null");
        assert_eq!(field("json", false).read(b"null").unwrap(), text("null"));
    }

    fn any_value() -> impl Strategy<Value = Stored> {
        prop_oneof![
            Just(Stored::Null),
            any::<i64>().prop_map(Stored::Integer),
            (0i64..2).prop_map(Stored::Integer),
            any::<f64>().prop_filter("SQLite stores no NaN", |real| !real.is_nan()).prop_map(Stored::Real),
            ".{0,20}".prop_map(|chars| text(&chars)),
            "[{}\\[\\]\":,truefalsn0-9 $memoria]{0,16}".prop_map(|chars| text(&chars)),
            "2025-01-0[0-9][ T]1[0-9]:00:00(\\.[0-9]{1,7})?".prop_map(|chars| text(&chars)),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(Stored::Blob),
            proptest::collection::vec(any::<u8>(), 0..6).prop_map(Stored::Text),
        ]
    }

    proptest! {
        #[test]
        fn every_value_comes_back_from_a_column_of_every_kind(
            value in any_value(), kind in prop_oneof![Just("boolean"), Just("json"), Just("datetime"), Just("varchar"), Just("")],
            nullable in any::<bool>()
        ) {
            let field = field(kind, nullable);
            // A column that cannot be NULL holds none.
            prop_assume!(nullable || value != Stored::Null);
            let json = written(&field, &value);
            prop_assert!(!json.contains(['\n', '\r']));
            let back = field.read(json.as_bytes()).unwrap();
            prop_assert_eq!(format!("{:?}", back), format!("{:?}", value), "{}", json);
        }

        #[test]
        fn no_bytes_end_otherwise_than_by_an_error(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            for kind in ["boolean", "json", "datetime", ""] {
                let _ = field(kind, true).read(&raw);
            }
        }
    }
}
