//! The data plane against real SQLite files. Who else has a file open is a Python process with its own SQLite library.

// A test fails by panicking, and what supports tests is no test in clippy's eyes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod archive;
mod bucket;
mod by_hand;
mod carry;
#[path = "../dice.rs"]
mod dice;
mod digest;
mod encrypted;
mod erase;
mod fence;
mod guard;
mod inspect;
mod portable;
mod python;
mod reference;
mod rehearsal;
mod restore;
#[path = "../s3.rs"]
mod s3;
mod schema;
mod site;
mod snapshot;
#[path = "../stand_in.rs"]
mod stand_in;
