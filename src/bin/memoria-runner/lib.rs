//! The part of the runner that the operator uses too: orders, results, and how a database URL is taken apart.

pub mod order;
pub mod url;

pub use order::RunnerOrder;
