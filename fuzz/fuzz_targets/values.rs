//! Any value of any column, written into an export and read from it, is the same value.

#![no_main]

use libfuzzer_sys::fuzz_target;
use memoria_operator::snapshot::portable::{json, postgres::Field, sqlite::Stored};

#[path = "../columns.rs"]
mod columns;

fuzz_target!(|bytes: &[u8]| {
    let mut json = Vec::new();
    let whole = bytes.first_chunk().map(|eight| i64::from_be_bytes(*eight));
    let mut values = vec![Stored::Text(bytes.to_vec()), Stored::Blob(bytes.to_vec())];
    values.extend(whole.map(Stored::Integer));
    // SQLite keeps NULL in place of what is no number.
    values
        .extend(whole.map(|bits| f64::from_bits(bits.cast_unsigned())).filter(|real| !real.is_nan()).map(Stored::Real));
    for field in columns::sqlite() {
        for value in &values {
            json.clear();
            field.write(value.borrowed(), &mut json);
            let back = field.read(&json).expect("what was written can be read");
            assert_eq!(format!("{back:?}"), format!("{value:?}"), "{}", String::from_utf8_lossy(&json));
        }
    }
    // The server's text is UTF-8 and has no NUL, and its JSON is JSON without space around it.
    let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')) else { return };
    let json = if json::is_value(bytes) { columns::postgres_json() } else { Vec::new() };
    for field in columns::postgres_text().into_iter().chain(json) {
        text_comes_back(&field, text.as_bytes());
    }
});

fn text_comes_back(field: &Field, text: &[u8]) {
    let (mut json, mut back) = (Vec::new(), Vec::new());
    field.write(Some(text), &mut json);
    let there = field.read(&json, &mut back).expect("what was written can be read");
    assert!(there && back == text, "{}: {}", field.name, String::from_utf8_lossy(&json));
}
