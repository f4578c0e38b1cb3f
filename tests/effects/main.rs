//! Reads and writes against a real API server (no kubelet, no controllers: tests write pods' and Jobs' statuses
//! themselves, as those would).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod adoption;
mod candidates;
mod claims;
mod commands;
mod data;
mod dry_runs;
mod events;
mod findings;
mod job_checks;
mod jobs;
mod kinds;
mod leases;
mod observations;
#[path = "../apiserver/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the API, which use all of it")]
mod server;
mod settings;
mod watches;
mod world;
mod writes;
mod wrong;

/// The tests of the API store objects of older versions first; these do not.
mod stored {
    pub fn before_the_upgrade(_: &crate::server::Server) {}
}

/// Asked of cargo at run time: checkouts that share its target directory share one binary.
fn root() -> std::path::PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap().into()
}
