//! From the server's rows to a file's: hashed and written as JSON, on a thread of their own.

use std::sync::mpsc::SyncSender;

use tokio::sync::mpsc;

use super::{
    rows::{lines, misread},
    value::Field,
};
use crate::snapshot::{
    Error, Result,
    digest::{RowSums, row_hash},
    portable::{Progress, copy_text::Row, form::RowFrame},
};

/// Writes the rows of one table.
pub(super) struct Encoder {
    pub table: String,
    pub fields: Vec<Field>,
    pub frame: RowFrame,
    /// Rows that were counted before.
    pub expected: i64,
    pub progress: Progress,
}

impl Encoder {
    /// Takes pieces of COPY's text until there are no more; gives the digest of what it wrote. A file that takes no more is
    /// no error here: whoever has it knows why.
    pub fn run(mut self, mut pieces: mpsc::Receiver<Vec<u8>>, file: &SyncSender<Vec<u8>>) -> Result<RowSums> {
        let (mut sums, mut row) = (RowSums::default(), Row::default());
        while let Some(piece) = pieces.blocking_recv() {
            // JSON is UTF-8; a database without an encoding may hold anything.
            if std::str::from_utf8(&piece).is_err() {
                return Err(Error::Unportable { what: format!("table {} holds text that is not UTF-8", self.table) });
            }
            let mut out = Vec::with_capacity(piece.len() + piece.len() / 2);
            for line in lines(&piece) {
                row.parse(line, self.fields.len()).ok_or_else(|| misread(&self.table))?;
                sums.add(&row_hash(row.values(line)));
                self.frame.begin(&mut out);
                for (at, (field, value)) in self.fields.iter().zip(row.values(line)).enumerate() {
                    self.frame.key(at, &mut out);
                    field.write(value, &mut out);
                }
                self.frame.end(&mut out);
            }
            if file.send(out).is_err() {
                break;
            }
            (self.progress)(&self.table, sums.rows(), Some(self.expected));
        }
        Ok(sums)
    }
}
