//! What a real API server makes of our kinds: rules, defaults, samples, status and stored objects. It runs without
//! kubelet and controllers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod admission;
mod chart;
mod rules;
mod samples;
mod server;
mod status;
mod stored;

use std::path::PathBuf;

/// Asked of cargo at run time: checkouts that share its target directory share one binary.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap().into()
}
