//! Any bytes as the file of an export, in either form: they end in rows or in an error, and so does every value, whatever
//! column it is read for.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use memoria_operator::snapshot::portable::{
    postgres,
    read::{RawRow, Reader},
    sqlite,
};

#[path = "../columns.rs"]
mod columns;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut reader) = Reader::new(bytes, Path::new("fuzzed")) else { return };
    let postgres: Vec<postgres::Field> = columns::postgres();
    let sqlite: Vec<sqlite::Field> = columns::sqlite();
    let mut row = RawRow::default();
    while let Ok(true) = reader.next(&mut row) {
        for member in &row.members {
            let raw = row.value(member);
            for field in &postgres {
                let _ = field.read(raw, &mut Vec::new());
            }
            for field in &sqlite {
                let _ = field.read(raw);
            }
        }
    }
    let _ = reader.miscounted(|_| 0);
});
