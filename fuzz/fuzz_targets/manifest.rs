//! Any bytes as one of the files that say what is stored: what is read is written and read again as the same.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use memoria_operator::snapshot::{late, manifest, portable, schema, sqlite};
use serde_json::{from_slice, to_vec};

/// Reads, writes, and compares with what is read from that.
fn comes_back<T: serde::de::DeserializeOwned + serde::Serialize + Debug>(bytes: &[u8]) {
    let Ok(read) = from_slice::<T>(bytes) else { return };
    let written = to_vec(&read).expect("what was read can be written");
    let again: T = from_slice(&written).expect("what was written can be read");
    assert_eq!(format!("{read:?}"), format!("{again:?}"));
}

fuzz_target!(|bytes: &[u8]| {
    comes_back::<manifest::Manifest>(bytes);
    comes_back::<portable::Manifest>(bytes);
    comes_back::<late::Baseline>(bytes);
    comes_back::<late::Late>(bytes);
    comes_back::<schema::Schema>(bytes);
    comes_back::<sqlite::schema::Schema>(bytes);
});
