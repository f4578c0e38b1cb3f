//! The second tier: a real etcd and API server, started by the tests themselves.

use anyhow::Result;

use super::{Done, Part, cargo, succeed};
use crate::cluster;

/// Where the tests look for the programs.
const PROGRAMS_ENV: &str = "MEMORIA_TEST_KUBE_BIN";

pub fn parts() -> Vec<Part> {
    vec![Part { name: "Kubernetes' programs", run: programs }, Part { name: "kinds on an API server", run: kinds }]
}

/// Built once per machine; the first time takes minutes.
fn programs() -> Result<Done> {
    cluster::bin_dir().map(|_| Done::Passed)
}

fn kinds() -> Result<Done> {
    let mut test =
        cargo(&["test", "--locked", "--all-features", "--package", "memoria-operator", "--test", "apiserver"])?;
    succeed(test.env(PROGRAMS_ENV, cluster::bin_dir()?))
}
