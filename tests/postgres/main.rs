//! The data plane against real private PostgreSQL servers, one for each test: the newest major below
//! `/usr/lib/postgresql`, or the one that `MOP_TEST_POSTGRES` names. As root the servers run as the user `postgres`.

// A test fails by panicking, and what supports tests is no test in clippy's eyes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod archive;
mod at_risk;
mod bucket;
mod carry;
mod checks;
mod cluster;
#[path = "../dice.rs"]
mod dice;
mod digest;
mod erase;
mod fence;
mod guard;
mod inspect;
mod late;
mod lost;
mod pooler;
mod portable;
mod reapply;
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
