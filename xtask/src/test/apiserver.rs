//! The second tier: a real etcd and API server, started by the tests themselves.

use anyhow::Result;

use super::{Done, EVERYTHING, Part, cargo, quick, succeed};
use crate::cluster;

/// Where the tests look for the programs.
const PROGRAMS_ENV: &str = "MEMORIA_TEST_KUBE_BIN";
/// The feature that tests of this tier require.
const FEATURE: &str = "apiserver-tests";

pub fn parts() -> Vec<Part> {
    vec![
        Part { name: "Kubernetes' programs", run: Box::new(programs) },
        Part { name: "kinds, chart, effects on an API server", run: Box::new(tests) },
    ]
}

/// Built once per machine; the first time takes minutes.
fn programs() -> Result<Done> {
    cluster::bin_dir().map(|_| Done::Passed)
}

/// Every integration test that asks for an API server.
fn tests() -> Result<Done> {
    let mut test = cargo(&["test"])?;
    test.args(EVERYTHING);
    for name in quick::integration_tests(Some(FEATURE))? {
        test.arg("--test").arg(name);
    }
    succeed(test.env(PROGRAMS_ENV, cluster::bin_dir()?))
}
