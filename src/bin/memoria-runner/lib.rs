//! The part of the runner that the operator uses too: orders and results, how a database URL is taken apart, how a
//! password is taken out of a stream, and how a text is packed into an answer. Nothing in here starts a process.

pub mod order;
pub mod pack;
pub mod redact;
pub mod url;

pub use order::RunnerOrder;
