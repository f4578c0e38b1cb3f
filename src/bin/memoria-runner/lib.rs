//! The part of the runner that the operator uses too: orders and results, how a database URL is taken apart, and how a
//! password is taken out of a stream. Nothing in here starts a process.

pub mod order;
pub mod redact;
pub mod url;

pub use order::RunnerOrder;
