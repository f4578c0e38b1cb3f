//! The operator on a real cluster, with real Memorias. `cargo xtask test --tier cluster` starts the cluster, installs the
//! operator by its chart, and runs these tests, three namespaces at a time.

mod archive;
mod audit;
mod checkers;
mod checks;
mod conditions;
mod config;
#[path = "../dice.rs"]
mod dice;
mod dump;
mod environment;
mod failures;
mod good;
mod holds;
mod keda;
mod killed;
mod kills;
mod kinds;
mod matrix;
mod rehearsal;
mod rescue;
mod rollback;
#[path = "../s3.rs"]
#[allow(clippy::unwrap_used, reason = "it is a server of tests alone")]
mod s3;
mod silence;
mod site;
mod sqlite;
mod untouched;
mod wrong;

/// Tests end with what went wrong and why.
type Outcome = anyhow::Result<()>;
