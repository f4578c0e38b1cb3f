//! How Memoria's own export frames rows: one JSON document with sorted keys and an indent of two, or NDJSON, a row a line.
//! The official tool's files look the same, but for what is nested in a row: that stays on one line, as it was stored.

use serde::{Deserialize, Serialize};

use super::json::write_string;

/// Which of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Form {
    /// One document
    Json,
    /// A row a line
    #[default]
    Ndjson,
}

impl Form {
    pub fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
        }
    }
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// `postgresql` or `sqlite`.
    pub dialect: String,
    pub exported_at: String,
    pub format: String,
    pub tables: Vec<TableEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    pub name: String,
    pub row_count: i64,
}

/// Writes what stands around the rows of one file.
#[derive(Debug)]
pub struct Frame<'a> {
    form: Form,
    metadata: &'a Metadata,
    tables: usize,
}

impl<'a> Frame<'a> {
    pub fn new(form: Form, metadata: &'a Metadata) -> Self {
        Self { form, metadata, tables: 0 }
    }

    /// Before the first table.
    pub fn head(&self) -> Vec<u8> {
        match self.form {
            // The official tool knows the form by these bytes.
            Form::Ndjson => format!("{{\"metadata\": {}}}\n", text(serde_json::to_string(self.metadata))).into_bytes(),
            Form::Json if self.metadata.tables.is_empty() => b"{\n  \"data\": {".to_vec(),
            Form::Json => b"{\n  \"data\": {\n".to_vec(),
        }
    }

    /// Before a table's rows.
    pub fn begin(&mut self, name: &str) -> Vec<u8> {
        let mut out = Vec::new();
        if self.form == Form::Json {
            out.extend_from_slice(if self.tables == 0 { b"    " } else { b",\n    " });
            write_string(name.as_bytes(), &mut out);
            out.extend_from_slice(b": [");
        }
        self.tables += 1;
        out
    }

    /// After a table's rows.
    pub fn end(&self, rows: i64) -> &'static [u8] {
        match (self.form, rows) {
            (Form::Ndjson, _) => b"",
            (Form::Json, 0) => b"]",
            (Form::Json, _) => b"\n    ]",
        }
    }

    /// After the last table.
    pub fn tail(&self) -> Vec<u8> {
        if self.form == Form::Ndjson {
            return Vec::new();
        }
        let metadata = text(serde_json::to_string_pretty(self.metadata)).replace('\n', "\n  ");
        let close = if self.tables == 0 { "}" } else { "\n  }" };
        format!("{close},\n  \"metadata\": {metadata}\n}}\n").into_bytes()
    }
}

/// Strings and numbers always serialise.
fn text(json: Result<String, serde_json::Error>) -> String {
    json.unwrap_or_default()
}

/// Frames the rows of one table.
#[derive(Debug)]
pub struct RowFrame {
    form: Form,
    head: &'static [u8],
    keys: Vec<Vec<u8>>,
    tail: Vec<u8>,
    begun: bool,
}

impl RowFrame {
    /// `columns` in the byte order of their names, which is how Python sorts keys.
    pub fn new<'a>(form: Form, table: &str, columns: impl Iterator<Item = &'a String>) -> Self {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for column in columns {
            let mut key = match (form, keys.is_empty()) {
                (Form::Ndjson, true) => Vec::new(),
                (Form::Ndjson, false) => b", ".to_vec(),
                (Form::Json, true) => b"\n        ".to_vec(),
                (Form::Json, false) => b",\n        ".to_vec(),
            };
            write_string(column.as_bytes(), &mut key);
            key.extend_from_slice(b": ");
            keys.push(key);
        }
        let mut tail = Vec::new();
        match form {
            Form::Ndjson => {
                tail.extend_from_slice(b"}, \"table\": ");
                write_string(table.as_bytes(), &mut tail);
                tail.extend_from_slice(b"}\n");
            }
            Form::Json if keys.is_empty() => tail.push(b'}'),
            Form::Json => tail.extend_from_slice(b"\n      }"),
        }
        let head: &[u8] = if form == Form::Json { b",\n      {" } else { b"{\"data\": {" };
        Self { form, head, keys, tail, begun: false }
    }

    pub fn begin(&mut self, out: &mut Vec<u8>) {
        let first = !std::mem::replace(&mut self.begun, true);
        let skipped = usize::from(first && self.form == Form::Json);
        out.extend_from_slice(self.head.get(skipped..).unwrap_or_default());
    }

    /// Before the value of the column with this number.
    pub fn key(&self, column: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(self.keys.get(column).map(Vec::as_slice).unwrap_or_default());
    }

    pub fn end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(form: Form, tables: &[(&str, &[&str], usize)]) -> String {
        let entries =
            tables.iter().map(|(name, _, rows)| TableEntry { name: (*name).to_owned(), row_count: *rows as i64 });
        let metadata = Metadata {
            dialect: "sqlite".to_owned(),
            exported_at: "2026-01-10T03:00:00+00:00".to_owned(),
            format: form.word().to_owned(),
            tables: entries.collect(),
        };
        let mut frame = Frame::new(form, &metadata);
        let mut out = frame.head();
        for (name, columns, rows) in tables {
            out.extend(frame.begin(name));
            let columns: Vec<String> = columns.iter().map(|c| (*c).to_owned()).collect();
            let mut row = RowFrame::new(form, name, columns.iter());
            for _ in 0..*rows {
                row.begin(&mut out);
                for column in 0..columns.len() {
                    row.key(column, &mut out);
                    out.extend_from_slice(b"1");
                }
                row.end(&mut out);
            }
            out.extend_from_slice(frame.end(*rows as i64));
        }
        out.extend(frame.tail());
        String::from_utf8(out).unwrap()
    }

    const TABLES: &[(&str, &[&str], usize)] = &[("agents", &["a", "b"], 2), ("empty", &["x"], 0), ("bare", &[], 2)];

    #[test]
    fn a_document_is_what_python_writes_with_an_indent_of_two_and_sorted_keys() {
        assert_eq!(
            file(Form::Json, TABLES),
            r#"{
  "data": {
    "agents": [
      {
        "a": 1,
        "b": 1
      },
      {
        "a": 1,
        "b": 1
      }
    ],
    "empty": [],
    "bare": [
      {},
      {}
    ]
  },
  "metadata": {
    "dialect": "sqlite",
    "exported_at": "2026-01-10T03:00:00+00:00",
    "format": "json",
    "tables": [
      {
        "name": "agents",
        "row_count": 2
      },
      {
        "name": "empty",
        "row_count": 0
      },
      {
        "name": "bare",
        "row_count": 2
      }
    ]
  }
}
"#
        );
        let nothing: serde_json::Value = serde_json::from_str(&file(Form::Json, &[])).unwrap();
        assert_eq!(nothing["data"], serde_json::json!({}));
    }

    #[test]
    fn a_line_is_a_row() {
        assert_eq!(
            file(Form::Ndjson, TABLES),
            "{\"metadata\": {\"dialect\":\"sqlite\",\"exported_at\":\"2026-01-10T03:00:00+00:00\",\"format\":\"ndjson\",\"tables\":[\
             {\"name\":\"agents\",\"row_count\":2},{\"name\":\"empty\",\"row_count\":0},{\"name\":\"bare\",\"row_count\":2}]}}\n\
             {\"data\": {\"a\": 1, \"b\": 1}, \"table\": \"agents\"}\n{\"data\": {\"a\": 1, \"b\": 1}, \"table\": \"agents\"}\n\
             {\"data\": {}, \"table\": \"bare\"}\n{\"data\": {}, \"table\": \"bare\"}\n"
        );
    }
}
